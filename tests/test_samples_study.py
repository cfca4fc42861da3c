"""The study of samples: its table against independent computations, and the whole of it on a tiny trained
phantom."""
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from conftest import TINY, arguments, draw_nothing

import main
from config import Config
from evaluation import volume_figures
from evaluation.samples import fair_crps
from experiment import session
from experiment.experiment import Experiment
from experiment.saved import read_settings
from experiment.session import check
from studies import samples
from studies.samples_page import subjects_of_page
from studies.samples_table import judge, make_table, to_markdown
from utils import InputError, derived_seed

PHANTOM = {"regions": "auto", "data_dir": "data/phantom", "phantom_subjects": (8, 6, 4), "phantom_voxel": 8,
           "aae_epochs": 1, "ldm_epochs": 1, "exp": "a"}
FOLDER = Path("result/a")
DRAWS = True


# ---------------------------------------------------------------- the table

def made_up(n: int = 30) -> pd.DataFrame:
    """Ensembles of two methods of one list, of which the second knows nothing of a scan."""
    rng = np.random.default_rng(0)
    real = pd.DataFrame({"ID": [f"s{i:02d}" for i in range(n)], "label": np.arange(n) % 2})
    centre = rng.normal(1.2, 0.2, n)
    for name in ("SUVR", "SUVR_a", "SUVR_b"):
        real[name] = centre + rng.normal(0, 0.1, n)
    ensembles = {}
    for method, middle, std in (("sampled", centre, 0.1), ("fixed", np.full(n, 1.2), 0.05)):
        ensembles[method] = {name: rng.normal(middle[:, None], std, (n, 12))
                             for name in ("SUVR", "SUVR_a", "SUVR_b")}
    return judge(ensembles, real, 0).assign(list="test")


def test_the_scores_of_the_table_are_those_of_the_subjects():
    subjects = made_up()
    table = make_table(subjects, {"sampled": 50}, 300, 0).set_index("method")
    for method, own in subjects.groupby("method"):
        row = table.loc[method]
        assert (row["n"], row["m"]) == (30, 12)
        for score in ("CRPS", "CRPS_regions", "energy"):
            assert row[score] == pytest.approx(own[score].mean())
        assert row["coverage_80"] == pytest.approx(own["covered_80"].mean())
        assert row["KS_p"] == pytest.approx(scipy.stats.kstest(own["PIT"], "uniform").pvalue)
        assert [row[f"PIT_bin_{i}"] for i in range(1, 11)] == np.histogram(own["PIT"], 10, (0, 1))[0].tolist()
    assert table.loc["fixed", "CRPS"] > 1.5 * table.loc["sampled", "CRPS"]
    assert table.loc["fixed", "coverage_80"] < 0.5 < table.loc["sampled", "coverage_80"]
    assert np.isnan(table.loc["fixed", "coverage_80_expected_low"])
    low, high = table.loc["sampled", ["coverage_80_expected_low", "coverage_80_expected_high"]]
    assert low < 0.8 < high


def test_a_change_has_the_paired_bootstrap_interval():
    subjects = made_up()
    row = make_table(subjects, {}, 300, 0).set_index("method").loc["fixed"]
    wide = subjects.pivot(index="ID", columns="method", values="CRPS")
    difference = (wide["fixed"] - wide["sampled"]).to_numpy()
    expected = scipy.stats.bootstrap((difference,), np.mean, n_resamples=300, method="percentile",
                                     rng=np.random.default_rng(derived_seed("samples", 0)), batch=500)
    assert row["CRPS_change"] == pytest.approx(difference.mean())
    assert (row["CRPS_change_low"], row["CRPS_change_high"]) == pytest.approx(
        tuple(expected.confidence_interval), abs=1e-9)


def test_the_text_has_no_nan_and_the_first_row_no_change():
    table = make_table(made_up().drop(columns=["energy", "CRPS_regions"]), {}, 50, 0)
    text = to_markdown(table, "note", ["a", "b"])
    assert "nan" not in text and "samples, amount drawn" in text
    assert (table.set_index("method").loc["sampled", "CRPS_change"]) == 0


# ---------------------------------------------------------------- regions

def test_parcels_are_six_parts_of_the_cortex_on_their_sides_from_back_to_front():
    cortex = np.ones((6, 9, 4), bool)
    cortex[:, 0] = False
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-5, -8, 0)                            # x from -5 to 5, y from -8 to 8
    found = samples.parcels(cortex, affine)
    assert list(found) == ["left_back", "left_middle", "left_front", "right_back", "right_middle",
                           "right_front"]
    assert (sum(part.astype(int) for part in found.values()) == cortex).all()
    assert not found["left_back"][3:].any()
    assert found["left_back"][0, 1].all() and found["right_front"][5, 8].all()
    assert {int(part.sum()) for part in found.values()} == {24, 36}        # 8 rows have no equal thirds
    one_side = samples.parcels(cortex & (np.arange(6) < 3)[:, None, None], affine)
    assert list(one_side) == ["left_back", "left_middle", "left_front"]


# ---------------------------------------------------------------- the whole study

def run_study(**settings) -> int:
    """Exit code of a study of experiment `a`."""
    try:
        return main.main(["study", "samples", *arguments({"exp": "a", "samples": 5} | settings)])
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """A project folder in which a tiny phantom went through training, a regression and the study, with three
    fresh phantoms."""
    root = tmp_path_factory.mktemp("studied")
    before = os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        words = [*arguments(TINY | PHANTOM), "--baselines", "latent_regression"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "_draws", draw_nothing)
            assert main.main([*words, "--stages", "aae", "encode", "ldm", "baselines"]) == 0
        assert run_study(fresh=3) == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(studied, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the working directory; a study draws no picture."""
    shutil.copytree(studied, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(volume_figures, "plot_samples", lambda *_: None)
    return tmp_path / "project"


def test_it_writes_a_row_a_list_and_method_and_a_row_a_subject(studied):
    table = pd.read_csv(studied / FOLDER / "samples.csv")
    subjects = pd.read_csv(studied / FOLDER / "samples_subjects.csv")
    methods = ["sampled", "fixed", "written", "latent_regression", "amount"]
    assert table[["list", "method", "n", "m"]].to_numpy().tolist() == [
        [name, method, n, m] for name, n in (("test", 4), ("fresh", 3))
        for method, m in zip(methods, (5, 5, 6, 6, 5), strict=True)]
    assert len(subjects) == 5 * 7 and subjects["CRPS"].notna().all()
    assert table.loc[table["method"] != "amount", "energy"].notna().all()
    folder = studied / FOLDER
    assert (folder / "samples.png").stat().st_size > 10_000
    assert "digital phantom" in (folder / "samples.md").read_text()
    assert not (studied / "data/phantom_fresh_3/latent_Abeta").exists()


def test_rows_are_what_the_samplers_and_the_validation_errors_make(project):
    cfg = Config(**read_settings("a"))
    exp = Experiment(cfg, check(cfg), torch.device("cpu"))
    synthesizer, predictor = exp.networks.best_synthesizer()
    rows = pd.read_csv(FOLDER / "samples_subjects.csv").query("list == 'test'").set_index(["method", "ID"])
    sampler = samples.samplers_of(exp, synthesizer, predictor, 5)["sampled"]
    written = exp.latent_sampler(synthesizer, predictor)
    errors = []
    for batch in exp.batches(exp.cohort.validation, "mri", "pet", batch=1):
        real, found = (exp.measurement.suvr(pet).item() for pet in (batch["pet"], written.synthesize(batch)))
        errors.append(real - found)
    for batch in exp.batches(exp.cohort.test, "mri", "pet", batch=1):
        [name], real = batch["id"], exp.measurement.suvr(batch["pet"]).numpy()
        suvr = exp.measurement.suvr(synthesizer.decode(sampler(batch)[0])).numpy()
        row = rows.loc[("sampled", name)]
        assert row["SUVR"] == pytest.approx(suvr.mean(), rel=1e-4)
        assert row["CRPS"] == pytest.approx(fair_crps(suvr[None], real)[0], rel=1e-2, abs=1e-4)
        conformal = exp.measurement.suvr(written.synthesize(batch)).numpy()[:, None] + np.array(errors)[None]
        row = rows.loc[("written", name)]
        assert row["CRPS"] == pytest.approx(fair_crps(conformal, real)[0], rel=1e-2, abs=1e-4)


def test_fresh_phantoms_are_others_of_the_same_settings(studied):
    fresh, own = studied / "data/phantom_fresh_3", studied / "data/phantom"
    settings = [pd.read_json(folder / "phantom.json", typ="series") for folder in (fresh, own)]
    differ = {name for name in settings[0].index if settings[0][name] != settings[1][name]}
    assert differ == {"phantom_subjects", "phantom_seed"} and settings[0]["phantom_subjects"][2] == 3
    suvr = [set(pd.read_csv(folder / "truth/truth.csv")["suvr"]) for folder in (fresh, own)]
    assert not suvr[0] & suvr[1]


def test_the_page_shows_the_first_subject_of_either_status(project):
    cfg = Config(**read_settings("a"))
    scans = check(cfg).test
    shown = subjects_of_page(scans)
    assert [scan.label for scan in shown] == [1, 0]
    assert subjects_of_page([scans[0]]) == [scans[0]]


def test_an_experiment_that_is_sampled_without_a_label_is_refused(project, capsys):
    assert run_study(label_at_sampling="none") == 2
    assert "sampled without one" in capsys.readouterr().err


def test_an_experiment_without_an_suvr_is_refused():
    exp = SimpleNamespace(measurement=SimpleNamespace(regions=None), cfg=Config(**TINY))
    with pytest.raises(InputError, match="no regions are known"):
        samples.refuse_without_uptake(exp)


def test_an_own_cohort_has_no_fresh_phantoms(project, capsys):
    cfg = Config(**read_settings("a"))
    exp = Experiment(cfg, check(cfg), torch.device("cpu"))
    exp.cfg = Config(**read_settings("a") | {"covariates": ("age",)})
    with pytest.raises(ValueError, match="it has covariates"):
        samples.fresh_experiment(exp, 3)
