"""Lists and labels from tables of made-up rows: which row is a scan's, what is refused in which words, and who gets into which list."""
import io
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, arguments, write_cohort
from made_up import amyloid_table

import main
from cohort.matching import ScanKeys
from config import Config
from dataset import SPLITS, read_demographics

SUBJECTS = [f"{100 + i % 7:03d}_S_{4000 + i}" for i in range(12)]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def place(*scans: str, folders=("whole_MRI", "whole_Abeta")) -> None:
    """Files of these IDs, empty: the stage reads none."""
    for folder in folders:
        (Path("data") / folder).mkdir(parents=True, exist_ok=True)
        for scan in scans:
            (Path("data") / folder / f"{scan}.nii.gz").touch()


def prepare(*argv: str, table: str | pd.DataFrame = "table.csv") -> int:
    """Exit code of the stage with a table, which is a file, the text of one, or a data frame."""
    if isinstance(table, pd.DataFrame):
        table = table.to_csv(index=False)
    if "\n" in table:
        Path("table.csv").write_text(table)
        table = "table.csv"
    return main.main(["--stages", "prepare", "--table", table, *argv])


def refused(capsys, *argv: str, table="table.csv") -> str:
    """The message of a run that ends as wrong input and leaves everything on the disk as it was."""
    if isinstance(table, str) and "\n" in table:
        Path("table.csv").write_text(table)
        table = "table.csv"
    before = contents()
    assert prepare(*argv, table=table) == 2
    assert contents() == before
    return capsys.readouterr().err


def contents() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def info() -> pd.DataFrame:
    """data_info.csv by ID, as text."""
    return pd.read_csv("data_info/data_info.csv", dtype=str, keep_default_na=False).set_index("ID")


def left_out() -> dict[str, tuple[str, str]]:
    table = pd.read_csv("data_info/left_out.csv").set_index("ID")
    return {scan: tuple(row) for scan, row in zip(table.index, table.to_numpy(), strict=True)}


def lists() -> dict[str, list[str]]:
    return {split: Path(f"data_info/{split}.txt").read_text().split() for split in SPLITS}


def with_others(rows: str, *scans: str) -> str:
    """A table with these rows, and scans placed with ten further subjects, which fill the lists."""
    header, *own = rows.strip().splitlines()
    names = header.split(",")
    others = [f"199_S_{8000 + i}" for i in range(10)]
    place(*scans, *others)
    for i, ptid in enumerate(others):
        values = {"PTID": ptid, "RID": str(8000 + i), "ID": ptid, "SCANDATE": "2015-06-01", "EXAMDATE": "2015-06-01", "qc_flag": "2",
                  "TRACER": "FBP", "AMYLOID_STATUS": str(i % 2), "label": str(i % 2), "CENTILOIDS": str(90 * (i % 2)),
                  "SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF": str(i % 2)}
        own.append(",".join(values.get(name, "") for name in names))
    return "\n".join([header, *own]) + "\n"


# ---------------------------------------------------------------- the whole stage

def test_adnis_table_gives_lists_and_labels_that_pass_the_check(project, capsys):
    write_cohort(project, {"train": SUBJECTS})             # whose lists are to be made
    for path in (project / "data_info").iterdir():
        path.unlink()
    truth = amyloid_table(SUBJECTS, seed=1)
    assert prepare(table=truth) == 0
    shown = capsys.readouterr().out
    assert "label from AMYLOID_STATUS" in shown and "12 scans get a label, 0 are left out" in shown
    expected = truth.drop_duplicates("PTID").set_index("PTID")["AMYLOID_STATUS"].astype(str)
    assert info()["label"].to_dict() == expected.to_dict()
    assert {split: len(ids) for split, ids in lists().items()} == {"train": 10, "validation": 1, "test": 1}
    assert main.main(["--stages", "check", *arguments(TINY)]) == 0


def test_a_table_of_ones_own_with_scans_ages_and_sexes_passes_the_check_and_its_ages_are_found(project):
    write_cohort(project, {"train": [f"case{i:02d}_bl" for i in range(12)]})
    for path in (project / "data_info").iterdir():
        path.unlink()
    rows = "".join(f"case{i:02d}_bl,{i % 2},{60 + i}.5,{'MF'[i % 2]}\n" for i in range(12))
    assert prepare(table="ID,label,age,sex\n" + rows) == 0
    assert main.main(["--stages", "check", *arguments(TINY)]) == 0
    cohort = main.check(Config(**TINY))
    table, problem = read_demographics(Path("data_info"), cohort.train + cohort.validation + cohort.test)
    assert not problem
    assert table.set_index("ID").loc["case03_bl"].tolist() == [63.5, "F"]


def test_the_same_seed_gives_the_same_lists_whatever_the_order_of_rows_and_files():
    table = amyloid_table([f"{i % 9:03d}_S_{1000 + i}" for i in range(60)], seed=0)
    ids = list(table["PTID"].unique())
    place(*ids)
    assert prepare(table=table) == 0
    first = contents_of_lists()
    assert prepare("--overwrite", table=table) == 0
    assert contents_of_lists() == first
    for path in Path("data").rglob("*.nii.gz"):
        path.unlink()
    random.Random(0).shuffle(ids)
    place(*ids)
    assert prepare("--overwrite", table=table.sample(frac=1, random_state=7)) == 0
    assert contents_of_lists() == first
    assert prepare("--overwrite", "--split_seed", "1", table=table) == 0
    assert contents_of_lists() != first


def contents_of_lists() -> tuple[dict, dict, str]:
    return lists(), info()["label"].to_dict(), Path("data_info/cohort.csv").read_text()


def test_all_scans_of_a_subject_are_in_one_list_and_ratios_and_labels_are_kept():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(150):                                   # visits of one subject may differ in their label, and in how it is spelled
        names = [f"{i % 11:03d}_S_{2000 + i}_m12", f"{i % 11:03d}S{2000 + i}", f"sub-ADNI{i % 11:03d}S{2000 + i}_ses-M024"]
        rows += [(name, int(rng.random() < 0.4)) for name in names[:int(rng.integers(1, 4))]]
    place(*(name for name, _ in rows))
    assert prepare("--split_ratios", "60", "20", "20", table=pd.DataFrame(rows, columns=["ID", "label"])) == 0
    members = {split: {info()["subject"][scan] for scan in ids} for split, ids in lists().items()}
    assert sum(map(len, lists().values())) == len(rows)
    assert [len(members[split]) for split in SPLITS] == [90, 30, 30] and len(set.union(*members.values())) == 150
    kinds = info().groupby("subject")["label"].agg(lambda labels: "+".join(sorted(set(labels))))
    for kind, count in kinds.value_counts().items():
        for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
            assert abs((kinds[list(members[split])] == kind).sum() - share * count) < 1


def test_the_cohort_table_counts_what_is_in_the_lists(capsys):
    place(*SUBJECTS)
    ages = pd.DataFrame({"PTID": SUBJECTS, "AGE": [60 + i for i in range(12)], "PTGENDER": [1 + i % 2 for i in range(12)]})
    ages.to_csv("people.csv", index=False)
    assert prepare("--demographics", "people.csv", table=amyloid_table(SUBJECTS, seed=1)) == 0
    cohort, known = pd.read_csv("data_info/cohort.csv").set_index("list"), info()
    for split, ids in lists().items():
        part = known.loc[ids]
        men, women, negative = ((part[name] == value).sum() for name, value in (("sex", "M"), ("sex", "F"), ("label", "0")))
        assert cohort.loc[split, ["subjects", "scans", "label 0", "M", "F", "sites"]].tolist() == [
            len(ids), len(ids), negative, men, women, part["site"].nunique()]
        assert cohort.loc[split, "age"] == pytest.approx(part["age"].astype(float).mean())
    assert cohort.loc["all", "SD"] == pytest.approx(np.std(range(12), ddof=1))
    assert cohort.loc["all", "sites"] == 7
    assert "sites" in capsys.readouterr().out


def test_nothing_is_overwritten_unless_asked_and_then_everything_is(capsys):
    place(*SUBJECTS)
    table = amyloid_table(SUBJECTS, seed=1)
    assert prepare(table=table) == 0
    Path("data_info/README.md").write_text("mine")
    for name in ("train.txt", "cohort.csv"):
        Path("data_info", name).write_text("old")
    message = refused(capsys)
    assert "data_info: data_info.csv, train.txt, validation.txt, test.txt, cohort.csv, left_out.csv there already; --overwrite" in message
    assert prepare("--overwrite") == 0
    assert "old" not in {Path("data_info", name).read_text() for name in ("train.txt", "cohort.csv")}
    assert Path("data_info/README.md").read_text() == "mine"
    assert not list(Path("data_info").glob(".*"))
    assert prepare("--info_dir", "other") == 0
    assert Path("other/train.txt").read_text() == Path("data_info/train.txt").read_text()


# ---------------------------------------------------------------- who is meant

@pytest.mark.parametrize("scan", ["037_S_6046", "037S6046", "037_S6046", "sub-ADNI037S6046", "sub-ADNI037S6046_ses-M012", "037_S_6046_m12",
                                  "037S6046_2015-03-02", "037_S_6046_I123456", "ADNI_037_S_6046_MR"])
@pytest.mark.parametrize("row", ["PTID\n037_S_6046", "PTID\n037S6046", "subject_id\nsub-ADNI037S6046", "RID\n6046", "rid\n6046.0"])
def test_all_spellings_of_a_subject_find_its_rows(scan, row):
    name, value = row.split("\n")
    prefix = "" if name.upper() == "RID" else "199_S_"
    others = "".join(f"{prefix}{8000 + i},{i % 2}\n" for i in range(10))
    place(scan, *(f"199_S_{8000 + i}" for i in range(10)))
    assert prepare(table=f"{name},label\n{value},1\n{others}") == 0
    assert info().loc[scan, ["label", "site", "subject"]].tolist() == ["1", "037", "037S6046"]


def test_roster_numbers_of_five_digits_are_subjects_of_their_own():
    pattern = Config().subject_pattern
    keys = ScanKeys(["941_S_10087", "941_S_10088_m12"], pattern)
    assert [keys.subject(scan) for scan in keys.parts] == ["941S10087", "941S10088"]
    assert keys.rosters.keys() == {10087, 10088}


def test_a_roster_number_that_fits_two_subjects_labels_neither(capsys):
    table = with_others("RID,label\n6046,1", "037_S_6046", "041_S_6046")
    assert prepare(table=table) == 0
    assert "subjects 037S6046, 041S6046 share an RID" in capsys.readouterr().out
    assert left_out().keys() == {"037_S_6046", "041_S_6046"}


def test_a_row_that_names_a_scan_speaks_of_that_scan_alone():
    table = with_others("ID,label\n037S6046_m12,1\nsub-ADNI037S6046_m24,0", "037_S_6046_m12", "037_S_6046_m24", "037_S_6046_m48")
    assert prepare(table=table) == 0
    assert info().loc[["037_S_6046_m12", "037_S_6046_m24"], "label"].tolist() == ["1", "0"]
    assert left_out()["037_S_6046_m48"][0] == "not in the table"


def test_subjects_with_a_date_behind_their_name_are_one():
    keys = ScanKeys(["case1_20150302", "case1_2017-03-02", "case1"], Config().subject_pattern)
    assert {keys.subject(scan) for scan in keys.parts} == {"case1"}


def test_what_is_left_out_is_listed_with_its_reason(capsys):
    table = with_others("ID,label\na1,1\na2,\na3,1\na4,1\na5,1\na6,0\na6,1", "a1", "a2", "a3", "a6", "no row")
    place("only_mri", folders=["whole_MRI"])
    place("only_pet", "._a1", folders=["whole_Abeta"])
    Path("data/whole_MRI/a3.nii").touch()
    assert prepare(table=table) == 0
    found = left_out()
    assert {scan: reason for scan, (reason, _) in found.items()} == {
        "a2": "no label in its row", "a3": "file cannot be used", "a6": "ambiguous", "no row": "file name is no ID", "only_mri": "no PET",
        "only_pet": "no MRI"}
    assert "a3.nii and a3.nii.gz: both are there" in found["a3"][1]
    assert "rows 7, 8 differ in their labels" in found["a6"][1]
    assert "11 scans get a label, 6 are left out\n" in (shown := capsys.readouterr().out)
    assert "      1 no PET: only_mri\n" in shown
    assert info().index.tolist() == sorted(info().index)


# ---------------------------------------------------------------- which of a subject's rows

ROWS = "PTID,SCANDATE,AMYLOID_STATUS\n037_S_6046,2015-03-02,0\n037_S_6046,2017-03-02,1\n"


@pytest.mark.parametrize(("scan", "expected"), [
    ("037_S_6046_2015-03-10", "0 2015-03-02 8 2"), ("037S6046_20170301", "1 2017-03-02 1 3"), ("037S6046_02-Mar-2017", "1 2017-03-02 0 3"),
    ("sub-ADNI037S6046_ses-20150228", "0 2015-03-02 2 2"), ("037_S_6046_03-20-2017", "1 2017-03-02 18 3"),
    ("037S6046_2017_02_20_10_11_12.0", "1 2017-03-02 10 3")])
def test_the_row_nearest_to_the_date_in_an_id_is_taken(scan, expected):
    assert prepare(table=with_others(ROWS, scan)) == 0
    assert " ".join(info().loc[scan, ["label", "row_date", "days", "rows"]]) == expected
    assert info().loc[scan, "matched"] == "nearest row"


@pytest.mark.parametrize("scan", ["037_S_6046_I20170302", "037_S_6046_20170302103045", "037S6046_S120170302", "037_S_6046_12-2017"])
def test_numbers_that_only_contain_a_date_are_none(scan):
    assert prepare(table=with_others(ROWS, scan)) == 0
    assert left_out() == {scan: ("ambiguous", "no date, and rows 2, 3 differ in their labels")}


def test_the_window_ends_with_its_last_day():
    assert prepare("--window_days", "30", table=with_others(ROWS, "037S6046_2015-04-01", "037_S_6046_2015-04-02")) == 0
    assert info().loc["037S6046_2015-04-01", "days"] == "30"
    reason, found = left_out()["037_S_6046_2015-04-02"]
    assert reason == "no row near its date"
    assert found == "the nearest is row 2, 31 days from 2015-04-02; window_days is 30"


def test_dates_come_from_a_table_where_the_ids_have_none():
    Path("dates.csv").write_text("ID,date\n037_S_6046_m12,3/1/2015\n037_S_6046_m36,3/31/2017\nelsewhere,4/1/2017\n")
    assert prepare("--scan_dates", "dates.csv", table=with_others(ROWS, "037_S_6046_m12", "037S6046_m36", "037_S_6046_m48")) == 0
    assert info().loc[["037_S_6046_m12", "037S6046_m36"], ["label", "days"]].to_numpy().tolist() == [["0", "1"], ["1", "29"]]
    assert left_out()["037_S_6046_m48"][0] == "ambiguous"


def test_a_date_of_a_subject_is_that_of_its_only_scan():
    Path("dates.csv").write_text("Subject,Acq Date\n037_S_6046,3/1/2015\n")
    assert prepare("--scan_dates", "dates.csv", table=with_others(ROWS, "037_S_6046_m12")) == 0
    assert info().loc["037_S_6046_m12", "label"] == "0"
    place("037_S_6046_m24")
    assert prepare("--scan_dates", "dates.csv", "--overwrite") == 0
    assert {reason for reason, _ in left_out().values()} == {"ambiguous"}


def test_dates_that_contradict_each_other_label_nothing():
    Path("dates.csv").write_text("ID,date\n037S6046_2015-03-02,2015-03-03\n037_S_6046_m36,2017-03-01\n037_S_6046_m36,2017-03-02\n")
    scans = ["037S6046_2015-03-02", "037_S_6046_m36", "037_S_6046_2015-03-02_2016-03-02", "037_S_6046_2015-13-02"]
    assert prepare("--scan_dates", "dates.csv", table=with_others(ROWS, *scans)) == 0
    assert left_out() == {
        scans[0]: ("several dates", "2015-03-02 in its ID, 2015-03-03 in scan_dates"),
        scans[1]: ("several dates", "2017-03-01 in scan_dates, 2017-03-02 in scan_dates"),
        scans[2]: ("several dates", "2015-03-02 in its ID, 2016-03-02 in its ID"),
        scans[3]: ("no readable date in its ID", "2015-13-02 is no date, or has not been yet")}


def test_a_scan_without_date_gets_a_label_only_if_its_rows_leave_no_doubt():
    rows = ("PTID,SCANDATE,AMYLOID_STATUS,CENTILOIDS,TRACER\n037_S_0001,2015-03-02,1,50,FBP\n037_S_0002,2015-03-02,1,50,FBP\n"
            "037_S_0002,2017-03-02,1,70,FBP\n037_S_0003,2015-03-02,0,10,FBP\n037_S_0003,2017-03-02,1,70,FBP\n")
    scans = ["037_S_0001", "037_S_0002", "037_S_0003"]
    table = with_others(rows, *scans)
    assert prepare(table=table) == 0
    assert info().loc[scans[:2], ["label", "matched", "rows", "row_date", "centiloids", "tracer"]].to_numpy().tolist() == [
        ["1", "only row", "2", "2015-03-02", "50.0", "FBP"], ["1", "agreeing rows", "3 4", "", "", "FBP"]]
    assert left_out() == {"037_S_0003": ("ambiguous", "no date, and rows 5, 6 differ in their labels")}
    place(*(f"199_S_{8000 + i}_2015-06-02" for i in range(10)))
    assert prepare("--overwrite", "--require_dates") == 0
    assert not info().index.isin(scans).any()
    assert {left_out()[scan][0] for scan in scans} == {"no date"}


def test_more_undated_scans_than_rows_cannot_all_be_those_of_the_rows():
    rows = ("PTID,SCANDATE,AMYLOID_STATUS,qc_flag\n037_S_0001,2015-03-02,1,2\n037_S_0001,2017-03-02,1,0\n"
            "037_S_0002,2015-03-02,1,2\n037_S_0002,2017-03-02,1,2\n")
    assert prepare(table=with_others(rows, "037_S_0001", "037S0001_m24", "037_S_0002", "037S0002_m24")) == 0
    assert {scan: found for scan, (_, found) in left_out().items()} == dict.fromkeys(
        ["037_S_0001", "037S0001_m24"], "2 scans of the subject have no date, and row 2 cannot be all of them")
    assert info().loc[["037_S_0002", "037S0002_m24"], "label"].tolist() == ["1", "1"]


def test_a_dated_scan_is_not_matched_to_a_row_without_date_in_a_table_with_dates():
    rows = "PTID,SCANDATE,AMYLOID_STATUS\n037_S_0001,,1\n037_S_0002,,1\n037_S_0002,2015-05-02,0\n"
    assert prepare(table=with_others(rows, "037_S_0001_2015-03-02", "037_S_0002_2015-03-02", "037S0001")) == 0
    assert left_out() == {"037_S_0001_2015-03-02": ("no row near its date", "row 2 without a date")}
    assert info().loc[["037S0001", "037_S_0002_2015-03-02"], "label"].tolist() == ["1", "0"]


def test_a_table_without_dates_speaks_of_all_scans_of_a_subject():
    assert prepare(table=with_others("ID,label\n037_S_0001,1", "037_S_0001_2015-03-02", "037_S_0001_m24")) == 0
    assert info().loc[["037_S_0001_2015-03-02", "037_S_0001_m24"], "label"].tolist() == ["1", "1"]


def test_the_nearest_row_decides_even_if_it_failed_quality_control():
    rows = ("PTID,SCANDATE,AMYLOID_STATUS,qc_flag\n037_S_0001,2015-03-02,1,0\n037_S_0001,2015-03-12,1,2\n"
            "037_S_0002,2015-03-02,1,1\n037_S_0002,2015-03-02,0,2\n037_S_0003,2015-03-02,0,1\n037_S_0003,2015-04-02,1,2\n")
    scans = ["037_S_0001_2015-03-03", "037_S_0001_2015-03-11", "037_S_0002_2015-03-03", "037_S_0003"]
    table = with_others(rows, *scans)
    assert prepare(table=table) == 0
    assert left_out() == {scans[0]: ("failed quality control", "row 2, 1 days from 2015-03-03")}
    assert info().loc[scans[1:], ["label", "rows"]].to_numpy().tolist() == [["1", "3"], ["0", "5"], ["1", "7"]]
    assert prepare("--overwrite", "--qc_keep", "0", "1", "2") == 0
    assert left_out().keys() == {scans[2], scans[3]}
    assert left_out()[scans[2]] == ("rows disagree", "rows 4, 5 are all 1 days from 2015-03-03, with different labels")


@pytest.mark.parametrize("swapped", [False, True])
def test_the_reason_does_not_depend_on_the_order_of_rows(swapped):
    rows = ["037_S_0001,2015-03-02,1,0\n", "037_S_0001,2015-03-02,,2\n"]
    table = "PTID,SCANDATE,AMYLOID_STATUS,qc_flag\n" + "".join(reversed(rows) if swapped else rows)
    assert prepare(table=with_others(table, "037_S_0001", "037_S_0001_2015-03-02")) == 0
    assert {reason for reason, _ in left_out().values()} == {"failed quality control"}


def test_rows_equally_near_count_if_they_agree():
    rows = "PTID,SCANDATE,AMYLOID_STATUS\n" + "".join(f"037_S_{i},2015-03-{day},{label}\n" for i, day, label in [
        ("0001", "01", 1), ("0001", "05", 1), ("0002", "01", 1), ("0002", "05", 0)])
    assert prepare(table=with_others(rows, "037_S_0001_2015-03-03", "037_S_0002_2015-03-03")) == 0
    assert info().loc["037_S_0001_2015-03-03", ["label", "rows", "row_date", "days"]].tolist() == ["1", "2 3", "", "2"]
    assert left_out()["037_S_0002_2015-03-03"][0] == "rows disagree"


def test_tracers_may_be_mixed_or_one_be_kept(capsys):
    rows = "PTID,SCANDATE,AMYLOID_STATUS,TRACER\n037_S_0001,2015-03-02,1,FBB\n037_S_0002,2015-03-02,1,FBB\n037_S_0002,2017-03-02,1,FBP\n"
    assert prepare(table=with_others(rows, "037_S_0001_2015-03-03", "037_S_0002")) == 0
    assert "several tracers (FBP 10, FBB 1): " in capsys.readouterr().out
    assert left_out() == {}
    assert prepare("--overwrite", "--tracer", "fbp") == 0
    assert left_out() == {"037_S_0001_2015-03-03": ("another tracer", "row 2, 1 days from 2015-03-03"),
                          "037_S_0002": ("ambiguous", "no date, and rows 3, 4 differ in what they would give")}


def test_centiloids_give_labels_from_a_cutoff_on_and_minus_4_is_one():
    rows = "PTID,CENTILOIDS\n037_S_0001,19.9\n037_S_0002,20\n037_S_0003,-4\n037_S_0004,\n"
    scans = [f"037_S_000{i}" for i in range(1, 5)]
    table = with_others(rows, *scans)
    assert prepare("--label_from", "centiloids", table=table) == 0
    assert info().loc[scans[:3], ["label", "centiloids"]].to_numpy().tolist() == [["0", "19.9"], ["1", "20.0"], ["0", "-4.0"]]
    assert left_out() == {scans[3]: ("no Centiloids", "row 5")}
    assert prepare("--overwrite", "--label_from", "centiloids", "--centiloid_cutoff", "12", "--grey_zone", "10", "20") == 0
    assert info().loc[[scans[1], scans[2]], "label"].tolist() == ["1", "0"]
    assert left_out()[scans[0]] == ("grey zone", "row 2")


def test_a_scan_in_the_grey_zone_does_not_fall_back_on_another_row():
    rows = "PTID,SCANDATE,AMYLOID_STATUS,CENTILOIDS\n037_S_0001,2015-03-02,1,25\n037_S_0001,2015-04-02,1,35\n"
    assert prepare("--grey_zone", "10", "30", table=with_others(rows, "037_S_0001_2015-03-03", "037S0001_2015-04-01", "037S0001")) == 0
    assert info().loc["037S0001_2015-04-01", "label"] == "1"
    assert {scan: reason for scan, (reason, _) in left_out().items()} == {"037_S_0001_2015-03-03": "grey zone", "037S0001": "ambiguous"}


@pytest.mark.parametrize("missing", ["", "-4", "NA", "nan", "-1"])
def test_a_row_without_status_gives_no_label(missing):
    assert prepare(table=with_others(f"PTID,AMYLOID_STATUS\n037_S_0001,{missing}", "037_S_0001")) == 0
    assert left_out() == {"037_S_0001": ("no label in its row", "row 2")}


def test_tables_of_old_releases_are_read_as_they_are(capsys):
    table = with_others("RID,EXAMDATE,SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF,SUMMARYSUVR_WHOLECEREBNORM\n6046,3/2/15,1,1.4\n"
                        "6046,3/9/17,0,1.0", "037_S_6046_2017-03-02")
    assert prepare(table=table) == 0
    assert info().loc["037_S_6046_2017-03-02", ["label", "row_date"]].tolist() == ["0", "2017-03-09"]
    assert "EXAMDATE: dates are read with the month first, as ADNI writes; no date here tells" in capsys.readouterr().out


# ---------------------------------------------------------------- dates

@pytest.mark.parametrize("form", ["%Y-%m-%d", "%m/%d/%Y", "%m/%d/%y", "%d-%b-%Y", "%Y%m%d", "%d%b%Y", "%Y-%m-%d 00:00:00", "%Y/%m/%d"])
def test_every_form_of_a_date_gives_the_same_labels(form):
    table = amyloid_table(SUBJECTS, seed=1)
    dates = pd.to_datetime(table["SCANDATE"])
    place(*(f"{ptid}_{day:%Y-%m-%d}" for ptid, day in zip(table["PTID"], dates, strict=True)))
    assert prepare(table=table.assign(SCANDATE=dates.dt.strftime(form))) == 0
    assert (info()["days"] == "0").all() and len(info()) == len(table)
    assert (info()["row_date"] == info()["scan_date"]).all()


@pytest.mark.parametrize(("dates", "expected", "remark"), [
    (("03/04/2015", "05/06/2015"), "2015-03-04", "month first, as ADNI writes; no date here tells"),
    (("03/04/2015", "05/13/2015"), "2015-03-04", "month first, as ADNI writes and as in 05/13/2015"),
    (("03/04/2015", "12/12/2015"), "2015-03-04", "no date here tells"),
    (("03/04/2015", "13/05/2015"), "2015-04-03", "day first, as in 13/05/2015"), (("3.4.2015", "25.5.2015"), "2015-04-03", "day first")])
def test_the_order_of_day_and_month_is_that_of_the_whole_column(capsys, dates, expected, remark):
    place("a1", "a2", "a3")
    small = ["--label_at_sampling", "none", "--aae_batch_size", "1", "--ldm_batch_size", "1"]
    assert prepare(*small, table=f"ID,date,label\na1,{dates[0]},0\na2,{dates[1]},1\na3,2015-01-02,1\n") == 0
    assert info().loc["a1", "row_date"] == expected
    assert remark in capsys.readouterr().out


def test_a_column_with_days_first_and_months_first_is_refused(capsys):
    place("a1", "a2", "a3")
    message = refused(capsys, table="ID,date,label\na1,25/03/2015,0\na2,03/25/2015,1\na3,,1\n")
    assert message.startswith("error: 1 problem(s):")
    assert "table table.csv: column date: 25/03/2015 (2) has the day first, 03/25/2015 (3) the month; bring all to one form" in message


@pytest.mark.parametrize("date", ["2015-13-02", "2015-02-30", "02/30/2015", "March 2015", "2015", "42065", "30-Foo-2015", "2999-01-01",
                                  "3-2-15", "20151302", "0215-03-02", "2015-3-2-1", "2015-03/02"])
def test_what_is_no_date_is_refused_with_its_row(capsys, date):
    place("a1", "a2", "a3")
    message = refused(capsys, table=f"ID,date,label\na1,2015-01-02,0\na2,{date},1\na3,,1\n")
    assert f"table table.csv: column date: row 3 ('{date}'); expected a date such as 2015-03-02, 20150302" in message


def test_contradictory_dates_in_the_ids_are_refused(capsys):
    message = refused(capsys, table=with_others(ROWS, "037_S_6046_25-03-2015", "037_S_6046_03-25-2015"))
    assert "dates in the IDs of the scans: 25-03-2015" in message


# ---------------------------------------------------------------- columns

BAD_TABLES = {
    "no such file": (None, ["table missing.csv: cannot be read: No such file"]),
    "empty": ("\n", ["table table.csv: cannot be read as a table"]),
    "header only": ("ID,label\n", ["table table.csv: holds no row"]),
    "no label": ("PTID,SCANDATE,status\na1,2015-03-02,1\n", ["no column for the label; expected AMYLOID_STATUS or label",
                                                             "found PTID, SCANDATE, status"]),
    "renamed label": ("PTID,AMYLOID_STATS\na1,1\n", ["did you mean AMYLOID_STATS? Then --label_column AMYLOID_STATS"]),
    "renamed ID": ("PTIDS,label\na1,1\n", ["no column for the id; expected PTID or RID", "did you mean PTIDS? Then --id_column PTIDS"]),
    "two IDs": ("PTID,label,ptid\na1,1,a1\n", ["more than one column for the id: PTID (column 1), ptid (column 3); keep one or choose"]),
    "label twice": ("ID,label,label\na1,1,1\n", ["more than one column for the label: label (column 2), label (column 3); keep one"]),
    "two kinds of label": ("ID,label,AMYLOID_STATUS\na1,1,1\n", ["AMYLOID_STATUS (column 3), label (column 2)", "--label_column"]),
    "two dates": ("ID,label,SCANDATE,EXAMDATE\na1,1,,\n", ["more than one column for the date: SCANDATE (column 3), EXAMDATE (column 4)"]),
    "SUVR as label": ("ID,label\na1,1.23\na2,0\na3,2\n", ["column label: rows 2 ('1.23'), 4 ('2'); expected a label in 0 .. 1; a SUVR"]),
    "many wrong": ("ID,label\n" + "a1,x\n" * 9, ["rows 2 ('x'), 3 ('x'), 4 ('x'), 5 ('x'), 6 ('x') and 4 more; expected"]),
    "row behind blank ones": ("ID,label\n\n\n,\na1,x\n", ["row 5 ('x')"]),
    "semicolons": ("ID;label\na1;1\n", ["error: 1 problem(s):\n  table table.csv: its columns are not separated by commas; save it"]),
    "tabs": ("ID\tlabel\na1\t1\n", ["its columns are not separated by commas"]),
    "one column": ("PTID\na1\n", ["no column for the label", "found PTID\n"]),
    "shifted": ("ID,label\na1,1,\na2,1,\n", ["rows have more fields than its header"]),
    "bad Centiloids": ("ID,label,CENTILOIDS\na1,1,high\na2,1,inf\n", ["column CENTILOIDS: rows 2 ('high'), 3 ('inf'); expected a number"]),
    "bad quality": ("ID,label,QC_FLAG\na1,1,pass\n", ["column QC_FLAG: row 2 ('pass'); expected a number"]),
    "bad age": ("ID,label,age\na1,1,230\na2,1,old\n", ["column age: rows 2 ('230'), 3 ('old'); expected an age from 1 to 120"]),
    "bad births": ("ID,label,PTDOB\na1,1,25/03/1945\na2,1,03/25/1945\n", ["column PTDOB: 25/03/1945 (2) has the day first"]),
    "bad year of birth": ("ID,label,PTDOBYY\na1,1,45\na2,1,?\n", ["column PTDOBYY: rows 2 ('45'), 3 ('?'); expected a year such as"]),
    "bad month of birth": ("ID,label,PTDOBYY,PTDOBMM\na1,1,1945,13\n", ["column PTDOBMM: row 2 ('13'); expected a month"]),
    "bad sex": ("ID,label,PTGENDER\na1,1,3\na2,1,2\na3,1,-4\n", ["column PTGENDER: row 2 ('3'); expected 1 or Male, 2 or Female"]),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_cannot_be_read_is_refused_in_words_that_name_what_is_wrong(capsys, name):
    text, expected = BAD_TABLES[name]
    place("a1", "a2", "a3")
    message = refused(capsys, table=text or "missing.csv")
    for part in expected:
        assert part in message


def test_all_problems_of_all_files_come_in_one_message(capsys):
    place("a1", folders=["whole_MRI"])
    place("b1", folders=["whole_Abeta"])
    Path("data_info").mkdir()
    Path("data_info/train.txt").write_text("mine")
    Path("people.csv").write_text("PTID,height\na1,180\n")
    Path("dates.csv").write_text("PTID,day\na1,180\n")
    message = refused(capsys, "--demographics", "people.csv", "--scan_dates", "dates.csv", "--date_column", "SCANDAT", "--tracer", "FBP",
                      table="ID,SCANDATE\na1,2015-03-02\n")
    for part in ("error: 7 problem(s):", "data_info: train.txt there already",
                 "no ID has both an MRI (1 files in whole_MRI) and a PET (1 in whole_Abeta)", "there are a1 and b1",
                 "table table.csv: no column for the label", "table table.csv: no column for the tracer",
                 "table table.csv: date_column 'SCANDAT' is not there, found ID, SCANDATE; did you mean SCANDATE?",
                 "demographics people.csv: no column for age or sex", "scan_dates dates.csv: no column for the date"):
        assert part in message


def test_columns_may_be_chosen(capsys):
    place(*SUBJECTS)
    rows = "".join(f"{i},{scan},0,{(i + 1) % 2},2015-03-02,x\n" for i, scan in enumerate(SUBJECTS))
    table = "ID,scan,label,visual,day,SCANDATE\n" + rows
    assert prepare("--id_column", "scan", "--label_column", "Visual", "--date_column", "day", table=table) == 0
    assert info().loc[SUBJECTS[0], ["label", "row_date"]].tolist() == ["1", "2015-03-02"]
    assert "id from scan, label from visual, date from day" in capsys.readouterr().out


def test_rows_without_an_id_are_passed_over_and_named(capsys):
    assert prepare(table=with_others("ID,label\n,1\nNA,0\n037_S_0001,1", "037_S_0001")) == 0
    assert "rows 2, 3 without ID passed over" in capsys.readouterr().out


def test_a_tracer_that_the_table_does_not_have_is_refused(capsys):
    place(*SUBJECTS)
    table = amyloid_table(SUBJECTS, seed=1)
    table.to_csv("table.csv", index=False)
    assert "column TRACER: no row has the tracer FPB; there are FBB, FBP" in refused(capsys, "--tracer", "FPB")


# ---------------------------------------------------------------- age and sex

POSITIVE_2015 = "PTID,SCANDATE,AMYLOID_STATUS\n037_S_6046,2015-03-02,1\n"


@pytest.mark.parametrize(("people", "expected"), [
    ("PTID,PTDOB,PTGENDER\n037_S_6046,03/02/1945,1\n", ("70.0", "M")), ("RID,PTDOB,PTGENDER\n6046,03/1945,2\n", ("70.0", "F")),
    ("PTID,PTDOB,PTGENDER\n037_S_6046,1945,Female\n", ("69.7", "F")), ("PTID,PTDOB,PTGENDER\n037_S_6046,3/2/45,-4\n", ("70.0", "")),
    ("ID,RID,PTDOBYY,PTDOBMM,PTGENDER\n9,6046,1945,3,2\n", ("70.0", "F")),
    ("RID,PTDOBYY,PTGENDER\n6046,1945,2\n6046,-4,2\n", ("69.7", "F")),
    ("PTID,VISCODE,EXAMDATE,EXAMDATE_bl,AGE,PTGENDER\n037_S_6046,bl,2011-03-02,2011-03-02,66,Male\n"
     "037_S_6046,m48,2015-03-02,2011-03-02,66,Male\n", ("70.0", "M")),
    ("Subject,Sex,Age,Acq Date\n037_S_6046,F,66,3/2/2011\n037_S_6046,F,69,3/2/2014\n", ("70.0", "F")),
    ("Subject,Sex,Age\n037_S_6046,1,66\n037_S_6046,1,66\n", ("66.0", "1")), ("ID,gender,age\n037S6046,female,66\n", ("66.0", "F"))])
def test_age_at_the_scan_and_sex_come_from_a_second_table(people, expected):
    Path("people.csv").write_text(people)
    assert prepare("--demographics", "people.csv", table=with_others(POSITIVE_2015, "037_S_6046")) == 0
    assert tuple(info().loc["037_S_6046", ["age", "sex"]]) == expected


@pytest.mark.parametrize("people", ["PTID,PTDOB,PTGENDER\n037_S_6046,03/1945,1\n037_S_6046,04/1945,2\n",
                                    "PTID,AGE,SEX\n037_S_6046,66,M\n037_S_6046,67,F",
                                    "PTID,EXAMDATE,AGE,SEX\n037_S_6046,2011-03-02,66,M\n037_S_6046,2014-03-02,66,F",
                                    "PTID,PTDOB,SEX\n037_S_6046,2014-09-02,M\n037_S_6046,,F"])
def test_rows_that_contradict_each_other_give_neither_age_nor_sex(capsys, people):
    Path("people.csv").write_text(people)
    assert prepare("--demographics", "people.csv", table=with_others(POSITIVE_2015, "037_S_6046")) == 0
    assert tuple(info().loc["037_S_6046", ["age", "sex"]]) == ("", "")
    shown = capsys.readouterr().out
    assert "age or sex impossible, or not the same in all rows: 037_S_6046" in shown
    assert "age unknown: 037_S_6046, 199_S_8000" in shown


def test_a_date_of_birth_needs_the_date_of_the_scan():
    Path("people.csv").write_text("PTID,PTDOB,PTGENDER\n037_S_6046,03/1945,1\n")
    rows = "PTID,SCANDATE,AMYLOID_STATUS\n037_S_6046,2015-03-02,1\n037_S_6046,2017-03-02,1"
    assert prepare("--demographics", "people.csv", table=with_others(rows, "037_S_6046")) == 0
    assert tuple(info().loc["037_S_6046", ["label", "age", "sex"]]) == ("1", "", "M")


# ---------------------------------------------------------------- what cannot work

@pytest.mark.parametrize(("argv", "expected"), [
    ([], "the stage prepare needs --table FILE.csv"),
    (["--table", "a.csv", "--preset", "demo"], "a phantom brings its lists"),
    (["--table", "a.csv", "--grey_zone", "30", "10"], "grey_zone (30.0, 10.0) must begin below its end"),
    (["--table", "a.csv", "--label_from", "centiloids", "--grey_zone", "30", "40"], "must hold the centiloid_cutoff 20.0"),
    (["--table", "a.csv", "--label_from", "centiloids", "--label_column", "x"], "without label_column"),
    (["--table", "a.csv", "--split_ratios", "1", "0", "0"], "split_ratios 0.0 must be at least")])
def test_settings_that_do_not_go_together_are_refused(capsys, argv, expected):
    with pytest.raises(SystemExit) as stop:
        main.main(["--stages", "prepare", *argv])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_cohort_that_the_check_would_refuse_is_refused(capsys):
    place("a1", "a2", "a3")
    assert "too few subjects for 3 lists get a label; left out, for example:\n  a3: not in the table" in refused(
        capsys, table="ID,label\na1,0\na2,1\n")
    assert "would hold 1 scans, too few for the 2 of one step" in refused(capsys, table="ID,label\na1,0\na2,1\na3,1\n")
    place("a4", "a5")
    one_label = "ID,label\n" + "".join(f"a{i},1\n" for i in range(1, 6))
    assert "not all of the 2 labels occur in the training list, but only 1;" in refused(capsys, table=one_label)
    assert prepare("--label_at_sampling", "none") == 0


def test_folders_without_scans_are_refused(capsys):
    assert "data/whole_MRI: not there; expected the volumes <ID>.nii" in refused(capsys, table="ID,label\na1,0\n")
    place()
    assert "no ID has both an MRI (0 files in whole_MRI)" in refused(capsys, table="ID,label\na1,0\n")


def test_a_folder_in_the_place_of_a_list_is_refused(capsys):
    place(*SUBJECTS)
    Path("data_info/test.txt").mkdir(parents=True)
    amyloid_table(SUBJECTS, seed=1).to_csv("table.csv", index=False)
    assert "data_info/test.txt: is a folder; move it away" in refused(capsys, "--overwrite")


def test_a_table_of_other_subjects_says_so_and_changes_nothing(capsys):
    place("a1", "a2", "a3")
    assert main.main(["--stages", "prepare", "--table", "table.csv"]) == 2
    amyloid_table(SUBJECTS, seed=1).to_csv("table.csv", index=False)
    capsys.readouterr()
    assert prepare() == 2
    shown = capsys.readouterr()
    assert "12 of its 12 subjects have no scan here" in shown.out and "3 not in the table: a1, a2, a3" in shown.out
    assert "too few subjects for 3 lists get a label" in shown.err
    assert not Path("data_info").exists()


def test_made_up_tables_are_of_the_asked_subjects_and_repeat_themselves():
    table = amyloid_table(SUBJECTS, seed=5)
    assert set(table["PTID"]) == set(SUBJECTS)
    pd.testing.assert_frame_equal(table, amyloid_table(SUBJECTS, seed=5))
    assert pd.read_csv(io.StringIO(table.to_csv(index=False)))["AMYLOID_STATUS"].nunique() == 2
