"""The study of what an MRI cannot know: its rows on a tiny phantom, and its table against hand
computation."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, arguments
from sklearn.metrics import roc_auc_score

import main
from studies import disagree, running
from studies.disagree_table import make_criteria, make_table, to_markdown

PHANTOM = {"phantom_subjects": (12, 4, 8), "phantom_voxel": 8, "regions": "auto", "aae_epochs": 1,
           "ldm_epochs": 1}
NAMES = [row.name for row in disagree.ROWS]
DRAWS = False


def run(*argv: str) -> int:
    """Exit code of the study with these words."""
    try:
        return main.main(["study", "disagree", *argv])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty folder as the working directory, and experiments small enough for a test."""
    monkeypatch.chdir(tmp_path)
    own_words = disagree.words

    def tiny(seed: int, discordance: float, is_long: bool) -> list[str]:
        """The command line with tiny sizes; of words that stand twice the last counts."""
        return [*own_words(seed, discordance, is_long)[2:], *arguments(TINY | PHANTOM)]

    def run_command(command: list[str]) -> int:
        """Run it here, where Python and torch have started already."""
        assert command[:2] == [sys.executable, str(Path(main.__file__))]
        return main.main(command[2:])

    monkeypatch.setattr(disagree, "words", tiny)
    monkeypatch.setattr(running, "run_command", run_command)
    return tmp_path


def test_every_row_samples_the_same_networks_and_rows_that_are_there_stay(project, monkeypatch, capsys):
    assert run("--seeds", "0", "--discordance", "0.6") == 0
    subjects = pd.read_csv("result/study/disagree_subjects.csv")
    assert subjects.groupby("row").size().to_dict() == dict.fromkeys(NAMES, 8)
    assert subjects["measured_on"].nunique() == 1 and set(subjects["discordant"]) == {0, 1}
    by_row = {name: part.set_index("ID") for name, part in subjects.groupby("row")}
    for name in NAMES[1:]:
        assert not np.allclose(by_row[name]["p_label"], by_row["mri"]["p_label"])
        assert np.allclose(by_row[name]["SUVR_real"], by_row["mri"]["SUVR_real"])
    assert "mri_all_shuffled" in (project / "result/study/disagree.md").read_text()

    def refuse(*_) -> None:
        """A measurement that should not be made."""
        raise AssertionError("measured again")

    monkeypatch.setattr(disagree, "measure_row", refuse)
    for words in (("--seeds", "0", "--discordance", "0.6"), ("--tables",)):
        before = {path: path.read_bytes() for path in (project / "result/study").glob("disagree*")}
        for name in ("disagree.csv", "disagree.md"):
            (project / "result/study" / name).unlink()
        assert run(*words) == 0
        assert {path: path.read_bytes() for path in (project / "result/study").glob("disagree*")} == before


def test_all_of_it_ends_with_one_longer_training():
    everything = disagree.cohorts(None, None, False)
    assert everything[:3] == [(0, 0.6, False), (1, 0.6, False), (2, 0.6, False)]
    assert len(everything) == 13 and everything[-1] == (0, 0.6, True)
    assert disagree.cohorts([1], None, False) == [(1, share, False) for share in disagree.DISCORDANCE]
    assert disagree.cohorts([1], [0.3], True) == [(1, 0.3, True)]


def test_without_results_there_is_no_table(project, capsys):
    assert run("--tables") == 2
    assert "python main.py study disagree does it" in capsys.readouterr().err


def made_up(seed: int, row: str, quality: float) -> pd.DataFrame:
    """Subjects whose synthetic SUVR follows the real one with this quality."""
    rng = np.random.default_rng([seed, 3])
    n, label = 40, np.arange(40) % 2
    real = 1.05 + 0.4 * label + 0.05 * rng.standard_normal(n)
    noise = np.random.default_rng([seed, 4]).standard_normal(n)
    return pd.DataFrame({
        "ID": [f"s{i}" for i in range(n)], "label": label, "discordant": np.arange(n) // 20, "seed": seed,
        "PSNR_brain": 28 + quality + 0.1 * noise, "SSIM_brain": 0.9, "SUVR": quality * real + 0.1 * noise,
        "SUVR_real": real, "p_label": label * 0.5 + 0.2, "p_status": 0.5, "row": row, "discordance": 0.6,
        "budget": "base", "measured_on": "x"})


def test_the_table_says_what_scikit_learn_and_numpy_say():
    subjects = pd.concat([made_up(seed, row, quality) for seed in (0, 1)
                          for row, quality in (("mri", 0.1), ("mri_marker", 0.8))])
    table = make_table(subjects, NAMES).set_index(["row", "group"])
    for row, group, chosen in (("mri_marker", "all", (0, 1)), ("mri", "discordant", (1,))):
        found, of_seeds = table.loc[(row, group)], []
        for seed in (0, 1):
            own = subjects[
                (subjects["row"] == row) & (subjects["seed"] == seed) & subjects["discordant"].isin(chosen)
            ]
            of_seeds.append(
                (
                    roc_auc_score(own["label"], own["SUVR"]),
                    own["SUVR"].corr(own["SUVR_real"]),
                    own["SUVR"].cov(own["SUVR_real"]) / own["SUVR_real"].var(),
                    own["PSNR_brain"].mean(),
                )
            )
        expected = np.mean(of_seeds, axis=0)
        assert found[["AUC", "r", "slope", "PSNR_brain"]].tolist() == pytest.approx(expected.tolist())
        assert found["AUC_sd"] == pytest.approx(np.std([one[0] for one in of_seeds], ddof=1))
        assert (found["n"], found["seeds"]) == (40 * len(chosen), 2)
        assert (found["AUC_label"], found["AUC_status"]) == (1, 0.5)
    row = table.loc[("mri", "all")]
    assert row["AUC_low"] < row["AUC"] < row["AUC_high"]
    gain = table.loc[("mri_marker", "all")]
    assert gain["gain_AUC"] == pytest.approx(gain["AUC"] - table.loc[("mri", "all"), "AUC"])
    assert 0 < gain["gain_AUC_low"] < gain["gain_AUC"] < gain["gain_AUC_high"]
    assert table.loc[("mri", "all"), ["gain_AUC", "gain_AUC_low"]].tolist() == [0, 0]
    assert to_markdown(table.reset_index()).count("| mri_marker ") == 3


def test_the_interval_of_the_auc_is_as_wide_as_theory_says():
    """Against the variance of Hanley and McNeil (1982), for the mean of two seeds."""
    subjects = pd.concat([made_up(seed, "mri", 0.1) for seed in (0, 1)])
    row = make_table(subjects, NAMES).set_index(["row", "group"]).loc[("mri", "all")]
    auc, n = row["AUC"], 20
    q_1, q_2 = auc / (2 - auc), 2 * auc ** 2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q_1 - auc ** 2) + (n - 1) * (q_2 - auc ** 2)) / n ** 2
    width = 2 * 1.96 * (variance / 2) ** 0.5
    assert row["AUC_high"] - row["AUC_low"] == pytest.approx(width, rel=0.25)
    assert f"[{row['AUC_low']:.2f}, {row['AUC_high']:.2f}]" in to_markdown(row.to_frame().T.assign(
        row="mri", group="all"))


def test_gains_are_paired_and_what_was_asked_is_answered():
    qualities = {"mri": 0.1, "mri_marker": 0.8, "mri_marker_gappy": 0.5, "mri_all": 0.8,
                 "mri_all_shuffled": 0.1}
    subjects = pd.concat([made_up(seed, row, quality)
                          for seed in (0, 1) for row, quality in qualities.items()])
    table = make_table(subjects, NAMES)
    all_of = table[table["group"] == "all"].set_index("row")
    marker = all_of.loc["mri_marker"]
    assert marker["gain_PSNR"] == pytest.approx(0.7)       # their noise is the same: a pair differs by it
    assert marker[["gain_PSNR_low", "gain_PSNR_high"]].tolist() == pytest.approx([0.7, 0.7])
    assert marker["lead"] == pytest.approx(marker["AUC"] - 0.5)
    criteria = make_criteria(table).set_index("criterion")
    assert criteria["reached"].to_dict() == {
        "`mri_all`: AUC minus that without PET": True, "`mri_marker`: gain in PSNR": True,
        "`mri_marker_gappy`: kept of the gain in AUC": True, "`mri_all_shuffled`: gain in AUC": True,
        "`mri_marker`: gain in AUC": True}
    kept = all_of.loc["mri_marker_gappy", "gain_AUC"] / marker["gain_AUC"]
    assert criteria.loc["`mri_marker_gappy`: kept of the gain in AUC", "found"] == pytest.approx(kept)
    worse = make_table(subjects.assign(p_status=subjects["label"], PSNR_brain=28, discordance=1.0), NAMES)
    reached = make_criteria(worse).set_index("criterion")["reached"]
    assert not reached["`mri_all`: AUC minus that without PET"] and not reached["`mri_marker`: gain in PSNR"]
    assert not reached["`mri`: AUC"]                       # 0.1 of the real SUVR is left in it
    assert "| no " in to_markdown(worse)


def test_small_groups_have_no_rows():
    subjects = made_up(0, "mri", 0.5)
    subjects["discordant"] = (np.arange(40) < 9).astype(int)
    assert make_table(subjects, NAMES)["group"].tolist() == ["all"]


def test_shuffled_cells_stay_within_their_list_and_gappy_ones_lose_a_third(project):
    from types import SimpleNamespace

    from dataset import Scan
    rows = "".join(f"s{i},0,{i},1,2,{i}\n" for i in range(400))
    (project / "data_info.csv").write_text("ID,label,age,apoe4,mmse,ptau217\n" + rows)
    scans = [Scan(f"s{i}", 0, project, project) for i in range(400)]
    cohort = SimpleNamespace(train=scans[:300], validation=scans[300:350], test=scans[350:], scans=scans)
    exp = SimpleNamespace(cfg=SimpleNamespace(info_folder=project, seed=0), cohort=cohort)
    shuffled = disagree.changed_cells(exp, disagree.ROWS[5])
    assert (shuffled["age"] == shuffled["ptau217"]).all()  # whole rows change places
    test = shuffled.loc[[scan.id for scan in cohort.test], "age"].astype(int)
    assert sorted(test) == list(range(350, 400)) and test.tolist() != list(range(350, 400))
    gappy = disagree.changed_cells(exp, disagree.ROWS[4])
    assert (gappy["ptau217"] == "").mean() == pytest.approx(0.3, abs=0.06)
    assert disagree.changed_cells(exp, disagree.ROWS[0]) is None
