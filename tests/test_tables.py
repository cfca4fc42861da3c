"""The tables, from made-up results: what they hold, what they refuse, and that they come back byte for byte."""
import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from presets import PRESETS

from config import Config
from evaluation.layout import to_csv, write_tables
from evaluation.metrics import METRICS
from evaluation.results import Run, load_run, load_runs, save_run
from evaluation.statistics import STATUS_METRICS, agreement, area_under_roc, bootstrap, holm, interval, status_metrics
from evaluation.tables import group_runs, image_quality, make_tables
from runtime.commandline import command, parse_args
from utils import InputError

N = 12
RESAMPLES = 200


def make_run(root, exp: str, seed: int = 0, cohort: str = "c0", better: float = 0.0, ids=range(N), label=None, training: str = "t0",
             control: float | None = None, **settings) -> None:
    """Results of an experiment under root/result: il_cldm is `better` than mean_pet in every score, and by `control`, if there is one,
    a regression control."""
    ids = list(ids)
    people = pd.DataFrame({"ID": [f"s{i:03d}" for i in ids], "label": np.array([i % 2 for i in ids]) if label is None else label})
    shared, own = np.random.default_rng([len(ids), *cohort.encode()]), np.random.default_rng([seed, *exp.encode()])
    base = {name: shared.normal(20 if "PSNR" in name else 0.5, 0.1, len(ids)) for name in METRICS}
    test = [people.assign(method="mean_pet", **base)]
    test.append(people.assign(method="il_cldm", **{name: value + (-1 if "MAE" in name else 1) * better + own.normal(0, 0.01, len(ids))
                                                   for name, value in base.items()}))
    if control is not None:
        noise = np.random.default_rng([len(ids), int(control)]).normal(0, 0.01, len(ids))
        test.append(people.assign(method="latent_regression", **{name: value + control + noise for name, value in base.items()}))
    real = shared.normal(1.2, 0.2, len(ids))
    uptake = [people.assign(method=method, SUVR=value) for method, value in
              (("real", real), ("il_cldm", real + own.normal(0.05, 0.1, len(ids))), ("mean_pet", np.full(len(ids), 1.2)))]
    predictions = []
    for classifier, method, generator in (("mri", "none", shared), ("pet", "real", shared), ("pet", "il_cldm", own)):
        score = (0.5 * generator.random(len(ids)) + 0.5 * people["label"] * (method == "real")).round(2)
        predictions.append(people.assign(classifier=classifier, method=method, score=score, threshold=0.4, positive=(score >= 0.4).astype(float)))
    facts = {"phantom": False, "notice": "research only", "note": "", "cohort": cohort, "training": training, "masks": {"brain": "b0"},
             **json.loads(Config(exp=exp, seed=seed, bootstrap_resamples=RESAMPLES, **settings).to_json())}
    folder = root / "result" / exp
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    order = ["method", "ID", "label"]
    save_run(folder, facts, {"test": pd.concat(test)[[*order, *METRICS]], "uptake": pd.concat(uptake)[[*order, "SUVR"]],
                             "predictions": pd.concat(predictions)[["classifier", *order, "score", "threshold", "positive"]]})


def tables_of(root) -> dict[str, pd.DataFrame]:
    runs, _ = load_runs(root / "result")
    return {table.name: to_csv(table) for table in make_tables(group_runs(runs)[0])}


def row(table: pd.DataFrame, **key) -> pd.Series:
    [found] = table.loc[np.logical_and.reduce([table[name] == value for name, value in key.items()])].to_dict("records")
    return pd.Series(found)


def test_one_seed_is_a_mean_and_deviation_over_subjects(tmp_path):
    make_run(tmp_path, "a")
    frame = pd.read_csv(tmp_path / "result" / "a" / "test.csv").query("method == 'il_cldm'")
    found = row(tables_of(tmp_path)["image_quality"], method="il_cldm")
    for name in METRICS:
        assert found[name] == pytest.approx(frame[name].mean())
        assert found[f"{name}_sd"] == pytest.approx(frame[name].std())
    assert (found["n"], found["seeds"], found["experiment"]) == (N, 1, "a")
    assert found["made_by"] == f"python main.py --exp a --bootstrap_resamples {RESAMPLES}"


def test_several_seeds_are_one_row_with_the_deviation_of_their_means(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path, f"a_seed{seed}", seed)
    tables = tables_of(tmp_path)
    frames = [pd.read_csv(tmp_path / "result" / f"a_seed{seed}" / "test.csv") for seed in (0, 1, 2)]
    means = [frame.query("method == 'il_cldm'")["PSNR"].mean() for frame in frames]
    found = row(tables["image_quality"], method="il_cldm")
    assert (found["PSNR"], found["PSNR_sd"]) == (pytest.approx(np.mean(means)), pytest.approx(np.std(means, ddof=1)))
    assert (found["n"], found["seeds"]) == (N, 3)
    assert found["made_by"].split(" ; ")[1] == f"python main.py --exp a_seed1 --seed 1 --bootstrap_resamples {RESAMPLES}"
    assert row(tables["image_quality"], method="mean_pet")["seeds"] == 1   # a control without chance is the same in every seed

    shutil.rmtree(tmp_path / "result" / "a_seed1")
    assert row(tables_of(tmp_path)["image_quality"], method="il_cldm")["seeds"] == 2


def test_status_and_quantification_equal_their_definitions(tmp_path):
    make_run(tmp_path, "a")
    tables, folder = tables_of(tmp_path), tmp_path / "result" / "a"
    part = pd.read_csv(folder / "predictions.csv").query("classifier == 'pet' and method == 'il_cldm'")
    found = row(tables["amyloid_status"], classifier="pet", method="il_cldm")
    expected = status_metrics(*(part[name].to_numpy() for name in ("label", "score", "positive")))
    np.testing.assert_allclose(found[list(STATUS_METRICS)].astype(float), expected)
    assert found["AUC_low"] < found["AUC"] < found["AUC_high"]
    uptake = pd.read_csv(folder / "uptake.csv").pivot(index="ID", columns="method", values="SUVR")
    found = row(tables["quantification"], method="il_cldm")
    for name, value in agreement(uptake["real"].to_numpy(), uptake["il_cldm"].to_numpy()).items():
        assert found[name] == pytest.approx(value)
    assert row(tables["quantification"], method="mean_pet")["slope"] == 0


def test_the_best_contender_is_bold_and_a_difference_is_marked(tmp_path):
    make_run(tmp_path, "worse", better=-0.2)
    make_run(tmp_path, "better", better=0.2, samples_per_scan=3)
    runs, _ = load_runs(tmp_path / "result")
    write_tables(tmp_path / "t", make_tables(group_runs(runs)[0]))
    lines = (tmp_path / "t" / "image_quality.md").read_text().splitlines()
    [better] = [line for line in lines if line.startswith("| better")]
    assert better.count("**") == 2 * len(METRICS)
    assert better.count("†") == len(METRICS)
    assert sum(line.count("**") for line in lines) == 2 * len(METRICS)
    comparisons = pd.read_csv(tmp_path / "t" / "comparisons.csv").query("metric == 'MAE_brain' and table == 'image_quality'")
    frames = [pd.read_csv(tmp_path / "result" / name / "test.csv") for name in ("better", "worse")]
    better, worse = (frame.set_index(["method", "ID"])["MAE_brain"] for frame in frames)
    pairs = [(better["il_cldm"], better["mean_pet"]), (worse["il_cldm"], worse["mean_pet"]), (better["il_cldm"], worse["il_cldm"])]
    p = [scipy.stats.wilcoxon(*pair).pvalue for pair in pairs]
    assert sorted(comparisons["p"]) == pytest.approx(sorted(p))
    assert sorted(comparisons["p_holm"]) == pytest.approx(sorted(holm(p)))


def test_what_cannot_be_compared_stands_apart(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", crop_start=(9, 18, 10))
    make_run(tmp_path, "c", samples_per_scan=4, ids=range(8), cohort="c1")    # the same settings of the cohort, another test list
    make_run(tmp_path, "d", samples_per_scan=2)
    tables = tables_of(tmp_path)
    sections = tables["image_quality"].groupby("data")
    assert sorted(sections["experiment"].agg(set).map(sorted)) == [["a", "all", "d"], ["all", "b"], ["all", "c"]]
    assert sorted(sections["n"].agg(set).map(list)) == [[8], [N], [N]]
    compared = tables["comparisons"].query("metric == 'PSNR'")
    assert sorted(zip(compared["a"], compared["b"], strict=True)) == sorted(
        [("mean_pet", f"il_cldm ({name})") for name in "abcd"] + [("il_cldm (a)", "il_cldm (d)")])


def test_another_training_list_or_mask_is_never_compared_and_no_repetition(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", training="t1")
    make_run(tmp_path, "c", seed=1, training="t1")
    groups, remarks = group_runs(load_runs(tmp_path / "result")[0])
    assert ([[run.name for run in group.runs] for group in groups], remarks) == ([["a"], ["b", "c"]], [])
    assert tables_of(tmp_path)["image_quality"].groupby("data").size().tolist() == [2, 2]


def test_a_test_list_that_changed_between_two_seeds_makes_two_rows(tmp_path):
    make_run(tmp_path, "a_seed0")
    make_run(tmp_path, "a_seed1", seed=1, ids=range(N - 1), cohort="c1")
    found = tables_of(tmp_path)["image_quality"].query("method == 'il_cldm'")
    assert sorted(zip(found["experiment"], found["n"], found["seeds"], strict=True)) == [("a_seed0", N, 1), ("a_seed1", N - 1, 1)]


def test_simulated_cohorts_of_several_seeds_are_one_row_of_all_their_subjects(tmp_path):
    demo = {name: value for name, value in PRESETS["demo"].items() if name != "data_dir"}
    for seed in (0, 1, 2):
        make_run(tmp_path, f"d{seed}", seed=seed, cohort=f"c{seed}", training=f"t{seed}", **demo | {"data_dir": f"data/d{seed}",
                                                                                                    "phantom_seed": seed})
    tables = tables_of(tmp_path)
    found = row(tables["image_quality"], method="il_cldm")
    assert (found["n"], found["seeds"], found["experiment"]) == (3 * N, 3, "d")
    parts = [pd.read_csv(tmp_path / "result" / f"d{seed}" / "predictions.csv").query("classifier == 'mri'") for seed in (0, 1, 2)]
    areas = [status_metrics(*(part[name].to_numpy() for name in ("label", "score", "positive")))[0] for part in parts]
    found = row(tables["amyloid_status"], classifier="mri")
    assert (found["AUC"], found["AUC_sd"]) == (pytest.approx(np.mean(areas)), pytest.approx(np.std(areas, ddof=1)))
    alone = [interval(bootstrap(lambda index, part=part: area_under_roc(part["label"].to_numpy()[index], part["score"].to_numpy()[index]),
                                N, 2000, seed=0)) for part in parts]
    width = np.sqrt(sum((high - low) ** 2 for low, high in alone)) / 3                        # of the mean of independent lists
    assert found["AUC_high"] - found["AUC_low"] == pytest.approx(width, rel=0.25)


def test_experiments_whose_names_begin_alike_stay_apart(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, f"s{seed}", seed)
        make_run(tmp_path, f"s{seed}_noimg", seed, image_conditioning=False)
    found = tables_of(tmp_path)["image_quality"].query("method == 'il_cldm'")
    assert found["seeds"].tolist() == [2, 2]
    assert found["experiment"].nunique() == 2
    assert [text.count("python main.py") for text in found["made_by"]] == [2, 2]
    assert found["made_by"].str.contains("image_conditioning").sum() == 1


def test_a_control_that_differs_in_one_seed_counts_every_seed(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path, f"a{seed}", seed)
    folder = tmp_path / "result" / "a2"
    run = load_run(folder)
    other = run.predictions.assign(score=run.predictions["score"].where(run.predictions["classifier"] != "mri", 1 - run.predictions["score"]))
    save_run(folder, {name: value for name, value in run.metadata.items() if name not in ("format", "files")},
             {"test": run.test, "uptake": run.uptake, "predictions": other})
    part = other[other["classifier"] == "mri"]
    areas = area_under_roc(part["label"].to_numpy(), np.stack([1 - part["score"], 1 - part["score"], part["score"]]))
    found = row(tables_of(tmp_path)["amyloid_status"], classifier="mri")
    assert (found["seeds"], found["AUC"]) == (3, pytest.approx(areas.mean()))
    assert found["AUC_sd"] == pytest.approx(areas.std(ddof=1))
    assert row(tables_of(tmp_path)["amyloid_status"], classifier="pet", method="real")["seeds"] == 1


def test_calls_of_an_even_number_of_seeds_are_compared_without_favour(tmp_path):
    """Two seeds that are right for half of the subjects each, against an MRI read-out that is right for half: no difference."""
    for seed in (0, 1):
        make_run(tmp_path, f"a{seed}", seed, ids=range(40))
        folder = tmp_path / "result" / f"a{seed}"
        run = load_run(folder)
        half = (np.arange(40) // 2 % 2).astype(bool)
        right = {"mri": half, "pet": half if seed else ~half}
        calls = run.predictions.copy()
        for classifier, values in right.items():
            mask = (calls["classifier"] == classifier) & (calls["method"] != "real")
            calls.loc[mask, "positive"] = np.where(values, calls.loc[mask, "label"], 1 - calls.loc[mask, "label"])
        save_run(folder, {name: value for name, value in run.metadata.items() if name not in ("format", "files")},
                 {"test": run.test, "predictions": calls})
    compared = tables_of(tmp_path)["comparisons"].query("table == 'amyloid_status' and metric == 'ACC'")
    assert compared["p"].min() > 0.5


def test_settings_that_change_no_result_keep_seeds_together(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1, shown_subjects=4, device="cpu", num_workers=0)
    assert row(tables_of(tmp_path)["image_quality"], method="il_cldm")["seeds"] == 2


def test_a_repeated_experiment_is_left_out_and_named(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", device="cpu")
    groups, remarks = group_runs(load_runs(tmp_path / "result")[0])
    assert [[run.name for run in group.runs] for group in groups] == [["a"]]
    assert remarks == ["b repeats a (same settings, seed and lists) and is left out"]


def test_a_test_list_of_one_label_is_not_defined_and_no_crash(tmp_path):
    make_run(tmp_path, "a", label=0)
    runs, _ = load_runs(tmp_path / "result")
    write_tables(tmp_path / "t", make_tables(group_runs(runs)[0]))
    [line] = [line for line in (tmp_path / "t" / "amyloid_status.md").read_text().splitlines() if "| il_cldm" in line]
    assert line.count("not defined") == 4                  # AUC, balanced ACC, SEN, MCC
    found = row(pd.read_csv(tmp_path / "t" / "amyloid_status.csv"), classifier="pet", method="il_cldm")
    assert np.isnan(found["AUC"])
    assert 0 <= found["SPE"] <= 1


def edit(change):
    """A change of a CSV as pandas would write it back."""
    def spoil(path):
        change(pd.read_csv(path, dtype={"ID": str})).to_csv(path, index=False)
    return spoil


@pytest.mark.parametrize("file", ["test.csv", "uptake.csv", "predictions.csv"])
@pytest.mark.parametrize("spoil", [
    edit(lambda t: t.drop(columns="label")), edit(lambda t: t.drop(columns=t.columns[-1])), edit(lambda t: t[t["ID"] != "s003"]),
    edit(lambda t: t.assign(ID=t["ID"].sample(frac=1, random_state=0).to_numpy())),
    edit(lambda t: t.assign(label=t["label"].sample(frac=1, random_state=0).to_numpy())), edit(lambda t: t.sample(frac=1, random_state=0)),
    lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_changed_results_are_an_error_that_names_file_and_remedy(tmp_path, file, spoil):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1)
    spoil(tmp_path / "result" / "b" / file)
    with pytest.raises(InputError) as error:
        load_runs(tmp_path / "result")
    assert f"b/{file}" in str(error.value)
    assert "run --stages test of experiment b again" in str(error.value)


def test_a_changed_index_is_an_error_and_so_is_one_of_another_version(tmp_path):
    make_run(tmp_path, "a")
    path = tmp_path / "result" / "a" / "scores.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 99'))
    with pytest.raises(InputError, match="scores.json: not there, damaged or changed"):
        load_run(tmp_path / "result" / "a")
    path.write_text(text)
    run = load_run(tmp_path / "result" / "a")
    del run.metadata["settings"]["volume_size"]
    save_run(tmp_path / "result" / "a", {name: value for name, value in run.metadata.items() if name not in ("format", "files")},
             {"test": run.test})
    with pytest.raises(InputError, match="written by another version"):
        load_run(tmp_path / "result" / "a")


def test_a_copied_folder_of_results_is_used(tmp_path):
    make_run(tmp_path, "a")
    (tmp_path / "result" / "a" / "config.json").unlink()
    assert [run.name for run in load_runs(tmp_path / "result")[0]] == ["a"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 0}'])
def test_a_damaged_index_is_an_error(tmp_path, text):
    make_run(tmp_path, "a")
    (tmp_path / "result" / "a" / "scores.json").write_text(text)
    with pytest.raises(InputError, match="scores.json: not there, damaged or changed"):
        load_run(tmp_path / "result" / "a")


def test_an_experiment_without_scores_is_left_out(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1)
    (tmp_path / "result" / "b" / "scores.json").unlink()
    runs, without = load_runs(tmp_path / "result")
    assert ([run.name for run in runs], without) == (["a"], ["b"])


def test_an_id_that_looks_like_a_missing_value_survives(tmp_path):
    make_run(tmp_path, "a")
    run = load_run(tmp_path / "result" / "a")
    frame = run.test.assign(ID=["NA", *run.test["ID"][1:]])
    save_run(tmp_path / "result" / "a", run.metadata, {"test": frame})
    again = load_run(tmp_path / "result" / "a")
    assert isinstance(again, Run)
    assert again.test["ID"].tolist()[0] == "NA"
    assert again.predictions is None


def test_latex_is_balanced_and_has_no_bare_special_character(tmp_path):
    make_run(tmp_path, "a_b", better=0.3)
    runs, _ = load_runs(tmp_path / "result")
    for path in write_tables(tmp_path / "t", make_tables(group_runs(runs)[0])):
        text = path.with_suffix(".tex").read_text()
        assert text.count(r"\begin{") == text.count(r"\end{") >= 2
        bare = re.sub(r"\\.", "", text)
        assert bare.count("{") == bare.count("}")
        assert "_" not in bare
        assert not re.search(r"[^\x00-\x7f]", text)
        widths = {line.replace(r"\&", "").count("&") for line in text.splitlines() if line.endswith(r"\\")}
        assert len(widths) == 1


def test_a_row_names_the_shortest_command_that_gives_its_settings():
    for argv in ([], ["--preset", "demo"], ["--preset", "demo", "published", "--sampler", "ddim", "--sampling_steps", "20"],
                 ["--preset", "demo", "--phantom_link", "0", "--data_dir", "data/a b", "--exp", "x", "--unet_attention_levels"],
                 ["--image_conditioning", "false", "--volume_size", "96", "96", "96"]):
        cfg = parse_args(argv)
        line = command(json.loads(cfg.to_json())["settings"])
        words = shlex.split(line)
        assert words[:2] == ["python", "main.py"]
        assert parse_args(words[2:]) == cfg
    assert command(json.loads(parse_args(["--preset", "demo"]).to_json())["settings"]) == "python main.py --preset demo"


@pytest.mark.parametrize(("controls", "seed", "expected"), [
    ((1.0,), 0, [("all", 1)]),                             # that of the only experiment
    ((1.0, None), 0, [("a", 1)]),                          # another experiment has none: it is not that of all
    ((1.0, 1.0), 0, [("all", 1)]),                         # the same in both
    ((1.0, 2.0), 0, [("a", 1), ("b", 1)]),
    ((1.0, 2.0), 1, [("a", 1), ("b", 1)])])                # no seed in common: nothing says that they are the same
def test_a_trained_control_is_that_of_all_only_if_all_have_it(tmp_path, controls, seed, expected):
    for name, control in zip("ab", controls, strict=False):
        make_run(tmp_path, name, control=control, ldm_lr=1e-4 if name == "a" else 1e-3, seed=seed * (name == "b"))
    table = image_quality(group_runs(load_runs(tmp_path / "result")[0])[0])[0].query("metric == 'PSNR'")
    found = table.query("method == 'latent_regression'")
    assert list(zip(found["experiment"], found["seeds"], strict=True)) == expected
    assert table["method"].tolist()[:2] == ["mean_pet", "latent_regression"]


def test_seeds_of_a_trained_control_are_all_kept(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, f"a{seed}", seed=seed, control=1.0)
    table = image_quality(group_runs(load_runs(tmp_path / "result")[0])[0])[0].query("metric == 'PSNR'")
    assert row(table, method="latent_regression")["seeds"] == 2
    assert row(table, method="mean_pet")["seeds"] == 1
