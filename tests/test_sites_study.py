"""The study of sites: its lists, its table of made-up results, and a run of it on a tiny phantom."""
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, arguments
from scipy.stats import pearsonr
from sklearn.metrics import recall_score, roc_auc_score

import main
from config import PRESETS, Config
from studies import running, sites
from studies.running import SEEDS
from studies.sites import CONTROL, ROWS, draw_lists, people_of, settings_of
from studies.sites_table import losses, score_run, to_markdown

LEFT_OUT = [row for row in ROWS if row != CONTROL]
DRAWS = False


# ---------------------------------------------------------------- the lists

@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_lists_of_the_same_lengths_without_overlap(row, seed):
    people = people_of(seed)
    lists = draw_lists(people, row, seed)
    assert {split: len(ids) for split, ids in lists.items()} == {"train": 160, "validation": 65, "test": 75}
    assert sorted(sum(lists.values(), [])) == sorted(people["ID"])
    assert lists == draw_lists(people, row, seed)
    assert all(ids == sorted(ids) for ids in lists.values())


@pytest.mark.parametrize("row", LEFT_OUT)
def test_the_left_out_site_is_the_test_list_and_in_no_other(row):
    people = people_of(0).set_index("ID")
    for split, ids in draw_lists(people_of(0), row, 0).items():
        counts = Counter(people.loc[ids, "site"])
        assert set(counts) == ({row} if split == "test" else {*LEFT_OUT} - {row})
        assert max(counts.values()) - min(counts.values()) <= 1
        assert set(people.loc[ids, "label"]) == {0, 1}


def test_the_control_has_every_site_and_label_in_every_list():
    people = people_of(0).set_index("ID")
    for ids in draw_lists(people_of(0), CONTROL, 0).values():
        counts = Counter(people.loc[ids, "site"])
        assert set(counts) == {*LEFT_OUT} and max(counts.values()) - min(counts.values()) <= 2
        assert people.loc[ids].groupby("site")["label"].nunique().eq(2).all()


def test_the_lists_of_another_seed_are_others():
    assert draw_lists(people_of(0), "site1", 0)["train"] != draw_lists(people_of(0), "site1", 1)["train"]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_the_benchmarks_default_on_a_cohort_of_ones_own(row):
    cfg, benchmark = settings_of(row, 1), Config(**PRESETS["benchmark"])
    for stage in ("aae", "ldm", "synthesis"):
        own, of_benchmark = cfg.settings_of(stage), benchmark.settings_of(stage)
        assert {name for name in own if own[name] != of_benchmark[name]} <= {"seed", "phantom_subjects"}
    assert (cfg.aae_epochs, cfg.ldm_epochs) == (benchmark.aae_epochs, benchmark.ldm_epochs)
    assert not cfg.is_phantom and not cfg.has_automatic_regions       # but has the phantom's own regions
    assert str(cfg.info_folder) == f"data/sites1/lists/{row}" and cfg.exp == f"sites1_{row}"


# ---------------------------------------------------------------- the table, of made-up results

def made_up_run(n: int = 12) -> SimpleNamespace:
    """The results of an experiment with n test subjects: every other positive, a third of the PETs missed."""
    ids, rng = [f"s{i}" for i in range(n)], np.random.default_rng(0)
    label, real = np.arange(n) % 2, 1 + 0.4 * (np.arange(n) % 2) + rng.normal(0, 0.05, n)
    uptake, test = [], []
    synthetic = real + rng.normal(0.1, 0.2, n)
    for method, suvr in (("real", real), ("il_cldm", synthetic), ("oracle", real)):
        uptake.append(pd.DataFrame({"method": method, "ID": ids, "label": label, "SUVR": suvr}))
    for method in ("il_cldm", "oracle", "aae"):
        test.append(pd.DataFrame({"method": method, "ID": ids, "label": label,
                                  "PSNR_brain": rng.normal(25, 1, n),
                                  "SSIM_brain": rng.uniform(0.7, 0.9, n)}))
    uncertainty = pd.DataFrame({"ID": ids, "covered": (np.arange(n) % 3 > 0).astype(int)})
    predictions = pd.DataFrame({"classifier": "suvr", "method": "il_cldm", "ID": ids, "label": label,
                                "positive": (synthetic > 1.25).astype(float)})
    return SimpleNamespace(test=pd.concat(test), uptake=pd.concat(uptake), uncertainty=uncertainty,
                           predictions=predictions)


def test_scores_of_a_left_out_site_are_those_of_other_libraries():
    run = made_up_run()
    [row] = score_run(run, "site2", 3, None)
    real, fake = (run.uptake.query(f"method == '{name}'") for name in ("real", "il_cldm"))
    assert (row["test"], row["trained"], row["seed"], row["n"], row["positive"]) == (
        "site2", "the other sites", 3, 12, 6)
    assert row["r"] == pytest.approx(pearsonr(real["SUVR"], fake["SUVR"]).statistic)
    assert row["slope"] == pytest.approx(np.polyfit(real["SUVR"], fake["SUVR"], 1)[0])
    assert row["bias"] == pytest.approx(fake["SUVR"].mean() - real["SUVR"].mean())
    assert row["AUC"] == pytest.approx(roc_auc_score(fake["label"], fake["SUVR"]))
    assert row["PSNR_brain"] == pytest.approx(run.test.query("method == 'il_cldm'")["PSNR_brain"].mean())
    oracle = run.test.query("method == 'oracle'")
    assert row["PSNR_brain_oracle"] == pytest.approx(oracle["PSNR_brain"].mean())
    assert row["AUC_oracle"] == 1 and "PSNR_brain_mean_pet" not in row
    decided = fake["SUVR"] > 1.25
    assert row["SEN"] == pytest.approx(recall_score(fake["label"], decided))
    assert row["SPE"] == pytest.approx(recall_score(fake["label"], decided, pos_label=0))
    assert row["coverage"] == pytest.approx(8 / 12)
    p, z = 8 / 12, 1.959964                                # Wilson 1927
    half = z / (1 + z ** 2 / 12) * np.sqrt(p * (1 - p) / 12 + z ** 2 / (4 * 12 ** 2))
    centre = (p + z ** 2 / 24) / (1 + z ** 2 / 12)
    found = row["coverage_low"], row["coverage_high"]
    assert found == pytest.approx((centre - half, centre + half), abs=1e-5)


def test_the_control_is_scored_whole_and_site_by_site():
    run = made_up_run()
    of = pd.Series([f"site{1 + i // 4}" for i in range(12)], index=[f"s{i}" for i in range(12)])
    rows = {row["test"]: row for row in score_run(run, CONTROL, 0, of)}
    assert list(rows) == ["all sites", "site1", "site2", "site3"] and rows["all sites"]["n"] == 12
    own = run.test.query("method == 'il_cldm'").set_index("ID").loc[["s4", "s5", "s6", "s7"]]
    assert rows["site2"]["n"] == 4 and rows["site2"]["PSNR_brain"] == pytest.approx(own["PSNR_brain"].mean())
    assert rows["site2"]["coverage"] == pytest.approx(3 / 4)          # s6 is missed


def test_without_intervals_the_coverage_is_a_dash():
    run = made_up_run()
    run.uncertainty["covered"] = np.nan
    table = pd.DataFrame(score_run(run, "site1", 0, None))
    assert np.isnan(table["coverage"].item())
    assert to_markdown(table).splitlines()[2].split("|")[-2].strip() == "-"


def test_an_unseen_site_stands_above_the_same_site_when_it_is_seen():
    run = made_up_run()
    of = pd.Series(["site1"] * 6 + ["site2"] * 6, index=[f"s{i}" for i in range(12)])
    table = pd.DataFrame([*score_run(run, CONTROL, 0, of), *score_run(run, "site2", 0, None),
                          *score_run(run, "site1", 0, None)])
    first, _ = to_markdown(table).split("\n\n", 1)
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in first.splitlines()[2:]]
    assert cells == [["all sites", "all sites"], ["site1", "the other sites"], ["site1", "all sites"],
                     ["site2", "the other sites"], ["site2", "all sites"]]


def test_what_an_unseen_site_loses_is_the_mean_over_the_seeds_of_unseen_less_seen():
    table = pd.DataFrame([
        {"test": test, "trained": trained, "seed": seed, "n": 9, "PSNR_brain": psnr, "AUC": auc}
        for test, trained, seed, psnr, auc in [
            ("site1", "the other sites", 0, 20.0, 0.7), ("site1", "all sites", 0, 23.0, 0.8),
            ("site1", "the other sites", 1, 22.0, np.nan), ("site1", "all sites", 1, 23.0, 0.9),
            ("site2", "the other sites", 0, 25.0, 0.6), ("all sites", "all sites", 0, 24.0, 0.8),
            ("site3", "all sites", 0, 25.0, 0.6)]])
    [row] = losses(table).to_dict("records")               # of site2 and site3 one half is missing
    assert (row["test"], row["seeds"]) == ("site1", 2)
    assert row["PSNR_brain"] == pytest.approx(-2.0) and row["PSNR_brain_sd"] == pytest.approx(2 ** 0.5)
    assert row["AUC"] == pytest.approx(-0.1) and np.isnan(row["AUC_sd"])        # of one seed
    assert "| site1" in to_markdown(table.iloc[:2]).split("Unseen less seen")[1]


# ---------------------------------------------------------------- the run

@pytest.fixture
def small(tmp_path, monkeypatch):
    """The study on 48 subjects at 8 mm, with tiny networks; main in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sites, "SUBJECTS", 48)
    monkeypatch.setattr(sites, "TRAINING", 20)
    monkeypatch.setattr(sites, "PRESET", PRESETS["benchmark"] | {"phantom_voxel": 8})
    whole, commands = sites.words, []
    tiny = TINY | {"image_size": (22, 27, 22), "aae_epochs": 1, "ldm_epochs": 1, "validation_every": 1,
                   "regions": "auto"}

    def words(row: str, seed: int) -> list[str]:
        """The command line of a row, with the settings of a tiny experiment."""
        return [*whole(row, seed), *arguments(tiny)]

    def run_command(command: list[str]) -> int:
        """Run it here, and note it."""
        commands.append(command[2:])
        return main.main(command[2:])
    monkeypatch.setattr(sites, "words", words)
    monkeypatch.setattr(running, "run_command", run_command)
    return tmp_path, commands


def test_the_study_scores_its_rows_and_goes_on_where_it_was_interrupted(small):
    root, commands = small
    assert main.main(["study", "sites", "--quick", "--rows", "control"]) == 0
    assert [command[-1] for command in commands] == ["ldm", "test"]
    assert main.main(["study", "sites", "--quick", "--rows", "control", "site2"]) == 0
    assert len(commands) == 4                              # the control is not run again
    table = pd.read_csv(root / "result" / "study" / "sites.csv")
    assert table[["test", "trained", "n"]].to_numpy().tolist() == [
        ["all sites", "all sites", 12], *([name, "all sites", 3] for name in LEFT_OUT),
        ["site2", "the other sites", 12]]
    images = table[["PSNR_brain", "coverage", "PSNR_brain_oracle", "PSNR_brain_mean_pet"]]
    assert np.isfinite(images).all(axis=None)
    test = pd.read_csv(root / "result" / "sites0_site2" / "test.csv").query("method == 'il_cldm'")
    info = pd.read_csv(root / "data" / "sites0" / "data_info" / "data_info.csv").set_index("ID")
    assert set(info.loc[test["ID"], "site"]) == {"site2"}
    assert table["PSNR_brain"].iloc[-1] == pytest.approx(test["PSNR_brain"].mean())

    written = (root / "result" / "study" / "sites.csv").read_bytes()
    commands.clear()
    assert main.main(["study", "sites", "--tables"]) == 0 and not commands
    assert (root / "result" / "study" / "sites.csv").read_bytes() == written
    assert "| site2" in (root / "result" / "study" / "sites.md").read_text()


def test_sites_and_labels_are_known_without_reading_the_phantom(small):
    root, _ = small
    sites.build(0)
    info = pd.read_csv(root / "data" / "sites0" / "data_info" / "data_info.csv")[["ID", "label", "site"]]
    pd.testing.assert_frame_equal(info, people_of(0), check_dtype=False)


def test_tables_of_nothing_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["study", "sites", "--tables"]) == 2
    said = capsys.readouterr().err
    assert "no experiment of the sites is finished; python main.py study sites runs them" in said


def test_a_folder_that_holds_something_else_is_left_alone(small, capsys):
    root, commands = small
    (root / "data" / "sites0").mkdir(parents=True)
    (root / "data" / "sites0" / "scan.nii").write_text("precious")
    assert main.main(["study", "sites", "--quick"]) == 2 and not commands
    assert "left untouched" in capsys.readouterr().err


def test_a_row_that_fails_ends_the_study_with_its_command(small, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_command", lambda command: 3)
    assert main.main(["study", "sites", "--quick"]) == 3
    assert "control, seed 0: exit code 3 of" in capsys.readouterr().err
