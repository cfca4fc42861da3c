"""Rows of made-up tables matched to scans: whose row it is, which row counts, and who is left out."""
from pathlib import Path

import pytest
from preparing import info, left_out, place, prepare, rows_of, with_others

from cohort.matching import ScanKeys
from config import Config


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- who is meant

@pytest.mark.parametrize("scan", ["037_S_6046", "037S6046", "037_S6046", "sub-ADNI037S6046",
                                  "sub-ADNI037S6046_ses-M012", "037_S_6046_m12", "037S6046_2015-03-02",
                                  "037_S_6046_I123456", "ADNI_037_S_6046_MR"])
@pytest.mark.parametrize("row", ["PTID\n037_S_6046", "PTID\n037S6046", "subject_id\nsub-ADNI037S6046",
                                 "RID\n6046", "rid\n6046.0"])
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
    table = with_others("ID,label\n037S6046_m12,1\nsub-ADNI037S6046_m24,0",
                        "037_S_6046_m12", "037_S_6046_m24", "037_S_6046_m48")
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
        "a2": "no label in its row", "a3": "file cannot be used", "a6": "ambiguous",
        "no row": "file name is no ID", "only_mri": "no PET", "only_pet": "no MRI"}
    assert "a3.nii and a3.nii.gz: both are there" in found["a3"][1]
    assert "rows 7, 8 differ in their labels" in found["a6"][1]
    assert "11 scans get a label, 6 are left out\n" in (shown := capsys.readouterr().out)
    assert "      1 no PET: only_mri\n" in shown
    assert info().index.tolist() == sorted(info().index)


# ---------------------------------------------------------------- which of a subject's rows

ROWS = "PTID,SCANDATE,AMYLOID_STATUS\n037_S_6046,2015-03-02,0\n037_S_6046,2017-03-02,1\n"


@pytest.mark.parametrize(("scan", "expected"), [
    ("037_S_6046_2015-03-10", "0 2015-03-02 8 2"),
    ("037S6046_20170301", "1 2017-03-02 1 3"),
    ("037S6046_02-Mar-2017", "1 2017-03-02 0 3"),
    ("sub-ADNI037S6046_ses-20150228", "0 2015-03-02 2 2"),
    ("037_S_6046_03-20-2017", "1 2017-03-02 18 3"),
    ("037S6046_2017_02_20_10_11_12.0", "1 2017-03-02 10 3")])
def test_the_row_nearest_to_the_date_in_an_id_is_taken(scan, expected):
    assert prepare(table=with_others(ROWS, scan)) == 0
    assert " ".join(info().loc[scan, ["label", "row_date", "days", "rows"]]) == expected
    assert info().loc[scan, "matched"] == "nearest row"


@pytest.mark.parametrize("scan", ["037_S_6046_I20170302", "037_S_6046_20170302103045", "037S6046_S120170302",
                                  "037_S_6046_12-2017"])
def test_numbers_that_only_contain_a_date_are_none(scan):
    assert prepare(table=with_others(ROWS, scan)) == 0
    assert left_out() == {scan: ("ambiguous", "no date, and rows 2, 3 differ in their labels")}


def test_the_window_ends_with_its_last_day():
    table = with_others(ROWS, "037S6046_2015-04-01", "037_S_6046_2015-04-02")
    assert prepare("--window_days", "30", table=table) == 0
    assert info().loc["037S6046_2015-04-01", "days"] == "30"
    reason, found = left_out()["037_S_6046_2015-04-02"]
    assert reason == "no row near its date"
    assert found == "the nearest is row 2, 31 days from 2015-04-02; window_days is 30"


def test_dates_come_from_a_table_where_the_ids_have_none():
    Path("dates.csv").write_text("ID,date\n037_S_6046_m12,3/1/2015\n037_S_6046_m36,3/31/2017\n"
                                 "elsewhere,4/1/2017\n")
    table = with_others(ROWS, "037_S_6046_m12", "037S6046_m36", "037_S_6046_m48")
    assert prepare("--scan_dates", "dates.csv", table=table) == 0
    assert rows_of("037_S_6046_m12", "037S6046_m36", columns=["label", "days"]) == [["0", "1"], ["1", "29"]]
    assert left_out()["037_S_6046_m48"][0] == "ambiguous"


def test_a_date_of_a_subject_is_that_of_its_only_scan():
    Path("dates.csv").write_text("Subject,Acq Date\n037_S_6046,3/1/2015\n")
    assert prepare("--scan_dates", "dates.csv", table=with_others(ROWS, "037_S_6046_m12")) == 0
    assert info().loc["037_S_6046_m12", "label"] == "0"
    place("037_S_6046_m24")
    assert prepare("--scan_dates", "dates.csv", "--overwrite") == 0
    assert {reason for reason, _ in left_out().values()} == {"ambiguous"}


def test_dates_that_contradict_each_other_label_nothing():
    Path("dates.csv").write_text("ID,date\n037S6046_2015-03-02,2015-03-03\n037_S_6046_m36,2017-03-01\n"
                                 "037_S_6046_m36,2017-03-02\n")
    scans = ["037S6046_2015-03-02", "037_S_6046_m36", "037_S_6046_2015-03-02_2016-03-02",
             "037_S_6046_2015-13-02"]
    assert prepare("--scan_dates", "dates.csv", table=with_others(ROWS, *scans)) == 0
    assert left_out() == {
        scans[0]: ("several dates", "2015-03-02 in its ID, 2015-03-03 in scan_dates"),
        scans[1]: ("several dates", "2017-03-01 in scan_dates, 2017-03-02 in scan_dates"),
        scans[2]: ("several dates", "2015-03-02 in its ID, 2016-03-02 in its ID"),
        scans[3]: ("no readable date in its ID", "2015-13-02 is no date, or has not been yet")}


def test_a_scan_without_date_gets_a_label_only_if_its_rows_leave_no_doubt():
    rows = ("PTID,SCANDATE,AMYLOID_STATUS,CENTILOIDS,TRACER\n"
            "037_S_0001,2015-03-02,1,50,FBP\n"
            "037_S_0002,2015-03-02,1,50,FBP\n"
            "037_S_0002,2017-03-02,1,70,FBP\n"
            "037_S_0003,2015-03-02,0,10,FBP\n"
            "037_S_0003,2017-03-02,1,70,FBP\n")
    scans = ["037_S_0001", "037_S_0002", "037_S_0003"]
    table = with_others(rows, *scans)
    assert prepare(table=table) == 0
    assert rows_of(*scans[:2], columns=["label", "matched", "rows", "row_date", "centiloids", "tracer"]) == [
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
    found = "2 scans of the subject have no date, and row 2 cannot be all of them"
    assert left_out() == {"037_S_0001": ("ambiguous", found), "037S0001_m24": ("ambiguous", found)}
    assert info().loc[["037_S_0002", "037S0002_m24"], "label"].tolist() == ["1", "1"]


def test_a_dated_scan_is_not_matched_to_a_row_without_date_in_a_table_with_dates():
    rows = "PTID,SCANDATE,AMYLOID_STATUS\n037_S_0001,,1\n037_S_0002,,1\n037_S_0002,2015-05-02,0\n"
    assert prepare(table=with_others(rows, "037_S_0001_2015-03-02", "037_S_0002_2015-03-02", "037S0001")) == 0
    assert left_out() == {"037_S_0001_2015-03-02": ("no row near its date", "row 2 without a date")}
    assert info().loc[["037S0001", "037_S_0002_2015-03-02"], "label"].tolist() == ["1", "0"]


def test_a_table_without_dates_speaks_of_all_scans_of_a_subject():
    table = with_others("ID,label\n037_S_0001,1", "037_S_0001_2015-03-02", "037_S_0001_m24")
    assert prepare(table=table) == 0
    assert info().loc[["037_S_0001_2015-03-02", "037_S_0001_m24"], "label"].tolist() == ["1", "1"]


def test_the_nearest_row_decides_even_if_it_failed_quality_control():
    rows = ("PTID,SCANDATE,AMYLOID_STATUS,qc_flag\n"
            "037_S_0001,2015-03-02,1,0\n"
            "037_S_0001,2015-03-12,1,2\n"
            "037_S_0002,2015-03-02,1,1\n"
            "037_S_0002,2015-03-02,0,2\n"
            "037_S_0003,2015-03-02,0,1\n"
            "037_S_0003,2015-04-02,1,2\n")
    scans = ["037_S_0001_2015-03-03", "037_S_0001_2015-03-11", "037_S_0002_2015-03-03", "037_S_0003"]
    table = with_others(rows, *scans)
    assert prepare(table=table) == 0
    assert left_out() == {scans[0]: ("failed quality control", "row 2, 1 days from 2015-03-03")}
    assert rows_of(*scans[1:], columns=["label", "rows"]) == [["1", "3"], ["0", "5"], ["1", "7"]]
    assert prepare("--overwrite", "--qc_keep", "0", "1", "2") == 0
    assert left_out().keys() == {scans[2], scans[3]}
    found = "rows 4, 5 are all 1 days from 2015-03-03, with different labels"
    assert left_out()[scans[2]] == ("rows disagree", found)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_reason_does_not_depend_on_the_order_of_rows(swapped):
    rows = ["037_S_0001,2015-03-02,1,0\n", "037_S_0001,2015-03-02,,2\n"]
    table = "PTID,SCANDATE,AMYLOID_STATUS,qc_flag\n" + "".join(reversed(rows) if swapped else rows)
    assert prepare(table=with_others(table, "037_S_0001", "037_S_0001_2015-03-02")) == 0
    assert {reason for reason, _ in left_out().values()} == {"failed quality control"}


def test_rows_equally_near_count_if_they_agree():
    rows = ("PTID,SCANDATE,AMYLOID_STATUS\n"
            "037_S_0001,2015-03-01,1\n"
            "037_S_0001,2015-03-05,1\n"
            "037_S_0002,2015-03-01,1\n"
            "037_S_0002,2015-03-05,0\n")
    assert prepare(table=with_others(rows, "037_S_0001_2015-03-03", "037_S_0002_2015-03-03")) == 0
    columns = ["label", "rows", "row_date", "days"]
    assert rows_of("037_S_0001_2015-03-03", columns=columns) == [["1", "2 3", "", "2"]]
    assert left_out()["037_S_0002_2015-03-03"][0] == "rows disagree"


@pytest.mark.parametrize("other", ["1,15", "unclear,90"])
def test_a_row_of_the_same_day_that_gives_no_clear_label_agrees_with_none(other):
    """In the grey zone, or with a label that cannot be read."""
    rows = ("PTID,SCANDATE,AMYLOID_STATUS,CENTILOIDS\n"
            "037_S_0001,2015-03-02,1,90\n"
            f"037_S_0001,2015-03-02,{other}\n")
    assert prepare("--grey_zone", "10", "30", table=with_others(rows, "037_S_0001_2015-03-03")) == 0
    assert left_out()["037_S_0001_2015-03-03"] == (
        "rows disagree", "rows 2, 3 are all 1 days from 2015-03-03, and differ in what they would give")


def test_tracers_may_be_mixed_or_one_be_kept(capsys):
    rows = ("PTID,SCANDATE,AMYLOID_STATUS,TRACER\n"
            "037_S_0001,2015-03-02,1,FBB\n"
            "037_S_0002,2015-03-02,1,FBB\n"
            "037_S_0002,2017-03-02,1,FBP\n")
    assert prepare(table=with_others(rows, "037_S_0001_2015-03-03", "037_S_0002")) == 0
    assert "several tracers (FBP 10, FBB 1): " in capsys.readouterr().out
    assert left_out() == {}
    assert prepare("--overwrite", "--tracer", "fbp") == 0
    assert left_out() == {
        "037_S_0001_2015-03-03": ("another tracer", "row 2, 1 days from 2015-03-03"),
        "037_S_0002": ("ambiguous", "no date, and rows 3, 4 differ in what they would give")}


def test_centiloids_give_labels_from_a_cutoff_on_and_minus_4_is_one():
    rows = "PTID,CENTILOIDS\n037_S_0001,19.9\n037_S_0002,20\n037_S_0003,-4\n037_S_0004,\n"
    scans = [f"037_S_000{i}" for i in range(1, 5)]
    table = with_others(rows, *scans)
    assert prepare("--label_from", "centiloids", table=table) == 0
    assert rows_of(*scans[:3], columns=["label", "centiloids"]) == [
        ["0", "19.9"], ["1", "20.0"], ["0", "-4.0"]]
    assert left_out() == {scans[3]: ("no Centiloids", "row 5")}
    assert prepare("--overwrite", "--label_from", "centiloids", "--centiloid_cutoff", "12",
                   "--grey_zone", "10", "20") == 0
    assert info().loc[[scans[1], scans[2]], "label"].tolist() == ["1", "0"]
    assert left_out()[scans[0]] == ("grey zone", "row 2")


def test_a_scan_in_the_grey_zone_does_not_fall_back_on_another_row():
    rows = "PTID,SCANDATE,AMYLOID_STATUS,CENTILOIDS\n037_S_0001,2015-03-02,1,25\n037_S_0001,2015-04-02,1,35\n"
    table = with_others(rows, "037_S_0001_2015-03-03", "037S0001_2015-04-01", "037S0001")
    assert prepare("--grey_zone", "10", "30", table=table) == 0
    assert info().loc["037S0001_2015-04-01", "label"] == "1"
    reasons = {scan: reason for scan, (reason, _) in left_out().items()}
    assert reasons == {"037_S_0001_2015-03-03": "grey zone", "037S0001": "ambiguous"}


@pytest.mark.parametrize("missing", ["", "-4", "NA", "nan", "-1"])
def test_a_row_without_status_gives_no_label(missing):
    assert prepare(table=with_others(f"PTID,AMYLOID_STATUS\n037_S_0001,{missing}", "037_S_0001")) == 0
    assert left_out() == {"037_S_0001": ("no label in its row", "row 2")}


def test_tables_of_old_releases_are_read_as_they_are(capsys):
    rows = ("RID,EXAMDATE,SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF,SUMMARYSUVR_WHOLECEREBNORM\n"
            "6046,3/2/15,1,1.4\n"
            "6046,3/9/17,0,1.0")
    table = with_others(rows, "037_S_6046_2017-03-02")
    assert prepare(table=table) == 0
    assert info().loc["037_S_6046_2017-03-02", ["label", "row_date"]].tolist() == ["0", "2017-03-09"]
    shown = capsys.readouterr().out
    assert "EXAMDATE: dates are read with the month first, as ADNI writes; no date here tells" in shown
