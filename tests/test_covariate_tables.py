"""Covariates of prepare, from made-up tables in ADNI's form and from tables of one's own."""
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, arguments, write_cohort
from made_up import amyloid_table, covariate_tables
from preparing import SUBJECTS, info, lists, place, prepare, refused, with_others

import main
from cohort.covariate_cells import read_e4
from cohort.covariate_columns import split_choice
from cohort.covariate_kinds import Kind
from cohort.covariates import ABSENT, DIFFER, FAR, UNDECIDED, pick_value
from cohort.labelling import COLUMNS
from cohort.prepare_settings import PrepareSettings
from dataset import SPLITS
from docs.run_commands import find_commands
from runtime.commandline import parse

ME = "037_S_6046"
LABELS = f"PTID,SCANDATE,AMYLOID_STATUS\n{ME},2015-03-02,1"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(text: str, *argv: str, choice: str = "", labels: str = LABELS) -> dict:
    """The row of data_info.csv of a scan of 2015-03-02 with a table of covariates."""
    Path("more.csv").write_text(text)
    table = with_others(labels, ME)
    assert prepare("--covariates", f"more.csv{choice}", *argv, "--overwrite", table=table) == 0
    return info().loc[ME].to_dict()


def problem(capsys, text: str, choice: str = "", *more: str) -> str:
    """The message by which a table of covariates is refused."""
    Path("more.csv").write_text(text)
    return refused(capsys, "--covariates", f"more.csv{choice}", *more, table=with_others(LABELS, ME))


def column(heading: str, *cells: str) -> str:
    """A table with a row for each cell: the first of the scan that is looked at, the others of others."""
    ids = [ME, *(f"199_S_{8000 + i}" for i in range(len(cells) - 1))]
    quoted = [f'"{cell}"' for cell in cells]
    return f"PTID,{heading}\n" + "".join(f"{one},{cell}\n" for one, cell in zip(ids, quoted, strict=True))


# ---------------------------------------------------------------- ADNI's tables

def test_tables_in_adnis_form_fill_columns_that_the_check_reads_over(project, capsys):
    write_cohort(project, {"train": SUBJECTS})
    for path in (project / "data_info").iterdir():
        path.unlink()
    tables = covariate_tables(SUBJECTS, seed=3)
    for name, table in tables.items():
        table.to_csv(name, index=False)
    assert prepare("--covariates", *tables, table=amyloid_table(SUBJECTS, seed=1)) == 0
    said, rows = capsys.readouterr().out, info()
    assert list(rows.columns)[0] == "label" and list(rows.columns)[-8:] == [
        "apoe4", "mmse", "cdr", "cdrsb", "ptau217", "abeta42", "abeta40", "abeta42_40"]
    genotypes = tables["APOERES.csv"].set_index("PTID")["GENOTYPE"]
    assert rows["apoe4"].to_dict() == {ptid: str(genotypes[ptid].count("4")) for ptid in SUBJECTS}
    assert "apoe4 from GENOTYPE of APOERES.csv, as the number of e4 alleles: known of 12 of 12 scans" in said
    assert "ptau217 from pT217_F of UPENN_PLASMA_FUJIREBIO_QUANTERIX.csv, nearest within 365 days: k" in said
    cohort = pd.read_csv("data_info/cohort.csv").set_index("list")
    for split, ids in lists().items():
        assert cohort.loc[split, "apoe4 known"] == len(ids)
        assert cohort.loc[split, "ptau217 known"] == (rows.loc[ids, "ptau217"] != "").sum()
    assert "ptau217 known" in said
    assert main.main(["--stages", "check", *arguments(TINY)]) == 0


def test_without_covariates_nothing_is_added_and_with_them_the_lists_stay(capsys):
    place(*SUBJECTS)
    table = amyloid_table(SUBJECTS, seed=1)
    assert prepare(table=table) == 0
    before, columns = {split: Path(f"data_info/{split}.txt").read_text() for split in SPLITS}, info()
    assert "known" not in Path("data_info/cohort.csv").read_text()
    Path("more.csv").write_text(column("mmse", "30"))
    assert prepare("--overwrite", "--covariates", "more.csv", table=table) == 0
    assert {split: Path(f"data_info/{split}.txt").read_text() for split in SPLITS} == before
    pd.testing.assert_frame_equal(info().drop(columns="mmse"), columns)


ADNI = {                                                   # heading and row of each release -> what is read
    "APOERES, old": ("RID,VISCODE,APTESTDT,APGEN1,APGEN2", "6046,sc,2011-01-01,3,4", {"apoe4": "1"}),
    "APOERES, old, e2": ("RID,APGEN1,APGEN2", "6046,2,2.0", {"apoe4": "0"}),
    "APOERES, old, one unknown": ("RID,APGEN1,APGEN2", "6046,3,-4", {"apoe4": ""}),
    "APOERES, new": ("PHASE,PTID,RID,VISCODE,GENOTYPE,APTESTDT,ID", f"ADNI3,{ME},6046,sc,4/4,2011-01-01,17",
                     {"apoe4": "2"}),
    "MMSE": ("PTID,RID,VISCODE,VISDATE,MMSCORE,ID,USERDATE", f"{ME},6046,m12,2015-02-01,27,9,2020-01-01",
             {"mmse": "27"}),
    "CDR": ("PTID,VISDATE,CDMEMORY,CDGLOBAL,CDRSB", f"{ME},2015-04-01,0.5,0.5,1.5",
            {"cdr": "0.5", "cdrsb": "1.5"}),
    "PTDEMOG": ("PTID,VISDATE,PTGENDER,PTDOB,PTEDUCAT", f"{ME},2009-01-01,2,03/1945,16",
                {"education": "16", "sex": "F", "age": "70.0"}),
    "ADNIMERGE": ("RID,PTID,EXAMDATE,AGE,PTGENDER,PTEDUCAT,APOE4,ABETA,TAU,PTAU,CDRSB,ADAS13,MMSE,MOCA,DX,"
                  "EXAMDATE_bl,MMSE_bl",
                  f"6046,{ME},2015-03-20,66,Male,18,1,>1700,<80,<8,0.5,9,29,25,MCI,2011-03-02,30",
                  {"age": "70.0", "sex": "M", "education": "18", "apoe4": "1", "csf_abeta42": "1700",
                   "csf_tau": "80", "csf_ptau": "8", "cdrsb": "0.5", "adas13": "9", "mmse": "29",
                   "moca": "25", "diagnosis": "MCI"}),
    "UPENN plasma": ("PTID,RID,VISCODE2,EXAMDATE,Primary,pT217_F,AB42_F,AB40_F,AB42_AB40_F,pT217_AB42_F,"
                     "NfL_Q,GFAP_Q",
                     f"{ME},6046,m12,2015-02-11,x,0.231,25,300,0.0833,0.00924,18.2,101.5",
                     {"ptau217": "0.231", "abeta42": "25", "abeta40": "300", "abeta42_40": "0.0833",
                      "ptau217_abeta42": "0.00924", "nfl": "18.2", "gfap": "101.5"}),
    "C2N plasma": ("RID,EXAMDATE,pT217_C2N,npT217_C2N,AB42_C2N,AB40_C2N,AB42_AB40_C2N,APS2_C2N",
                   "6046,2015-02-11,3.2,60,40,400,0.1,55",
                   {"ptau217": "3.2", "abeta42": "40", "abeta40": "400", "abeta42_40": "0.1"}),
    "UPENNPLASMA": ("RID,VISCODE,AB40,AB42", "6046,bl,200,30", {"abeta42": "30", "abeta40": "200",
                                                               "abeta42_40": "0.15"}),
    "Elecsys": ("PTID,VISCODE2,EXAMDATE,BATCH,ABETA40,ABETA42,TAU,PTAU,COMMENT",
                f"{ME},bl,2015-03-02,b,10000,500,250,22.5,",
                {"csf_abeta42": "500", "csf_abeta40": "10000", "csf_abeta42_40": "0.05", "csf_tau": "250",
                 "csf_ptau": "22.5"}),
    "UGOT": ("RID,VISCODE2,EXAMDATE,PLASMAPTAU181", "6046,bl,2015-03-02,17.1", {"ptau181": "17.1"}),
    "own names": ("ID,apoe4,mmse,ptau217,abeta42,Abeta40", "037S6046,1,28,0.4,25,250",
                  {"apoe4": "1", "mmse": "28", "ptau217": "0.4", "abeta42": "25", "abeta40": "250",
                   "abeta42_40": "0.1"}),
}


@pytest.mark.parametrize("name", ADNI)
def test_known_columns_are_found_by_name(name):
    heading, row, expected = ADNI[name]
    read = found(f"{heading}\n{row}\n")
    assert {key: read.get(key) for key in expected} == expected
    assert read.keys() - set(COLUMNS) == expected.keys() - set(COLUMNS)


# ---------------------------------------------------------------- which row

DATED = "PTID,VISDATE,MMSCORE\n"


@pytest.mark.parametrize(("rows", "expected", "said"), [
    ("2014-01-02,20 2015-01-02,25 2016-01-02,29", "25", ""),
    ("2014-01-02,20 2015-01-02,-1 2015-06-02,29", "29", "-1 (1 row) counts as missing"),
    ("2014-03-02,20", "20", ""),                           # 365 days
    ("2014-03-01,20", "", "none that near: 037_S_6046"),
    ("2015-02-28,21 2015-03-04,23", "21", ""),             # two days before and after: the earlier
    ("2015-03-01,21 2015-03-01,21", "21", ""),
    ("2015-03-01,21 2015-03-01,23", "", "rows that contradict each other: 037_S_6046"),
    ("2014-03-02,20 2015-03-01,21 2015-03-01,23", "", "rows that contradict each other: 037_S_6046"),
    (",20", "20", ""),                                     # no row has a date
    (",20 ,20", "20", ""),
    (",20 ,21", "", "several values and no date that decides: 037_S_6046"),
    (",20 2015-03-01,21", "21", ""),
    ("soon,20 2015-03-01,21 2015-03-01,21", "21", "'soon') cannot be read"),
    ("02/28/2015,21 03/14/2015,23", "21", "month first"),
    ("28.02.2015,21 14.03.2015,23", "21", "day first")])
def test_the_nearest_row_within_the_window_counts(capsys, rows, expected, said):
    assert found(DATED + "".join(f"{ME},{row}\n" for row in rows.split()))["mmse"] == expected
    assert said in capsys.readouterr().out


def test_the_window_is_a_setting():
    rows = DATED + f"{ME},2015-02-20,21\n"
    assert found(rows, "--covariate_days", "10")["mmse"] == "21"
    assert found(rows, "--covariate_days", "9")["mmse"] == ""


@pytest.mark.parametrize(("rows", "expected"), [
    ("2011-01-02,20", "20"), ("2011-01-02,20 2014-01-02,20", "20"), ("2011-01-02,20 2014-01-02,21", "")])
def test_without_the_date_of_the_scan_all_rows_must_agree(capsys, rows, expected):
    text = DATED + "".join(f"{ME},{row}\n" for row in rows.split())
    assert found(text, labels=f"PTID,AMYLOID_STATUS\n{ME},1")["mmse"] == expected
    said = "1 of them without the date of the scan, from rows that agree"
    assert (said if expected else "no date that decides: 037") in capsys.readouterr().out


def test_what_lasts_has_no_window_and_a_genotype_no_date(capsys):
    text = "PTID,VISDATE,PTEDUCAT,GENOTYPE\n"
    row = found(text + f"{ME},2005-01-01,16,3/4\n{ME},2006-01-01,18,4/3\n")
    assert (row["education"], row["apoe4"]) == ("18", "1")
    assert found(text + f"{ME},2005-01-01,16,3/4\n{ME},2006-01-01,16,4/4\n")["apoe4"] == ""
    assert "known of 0 of 11 scans; rows that contradict each other: 037_S_6046" in capsys.readouterr().out


def test_two_visits_of_a_subject_get_the_values_of_their_dates():
    scans = [f"{ME}_2015-03-02", f"{ME}_2017-03-02"]
    labels = f"PTID,SCANDATE,AMYLOID_STATUS\n{ME},2015-03-02,0\n{ME},2017-03-02,1"
    Path("more.csv").write_text(DATED + f"{ME},2015-04-01,28\n{ME},2017-01-01,24\n")
    assert prepare("--covariates", "more.csv", table=with_others(labels, *scans)) == 0
    assert info().loc[scans, "mmse"].tolist() == ["28", "24"]


def test_a_row_of_one_scan_is_not_anothers():
    scans = [f"{ME}_a", f"{ME}_b"]
    Path("more.csv").write_text(f"ID,mmse\n{ME}_a,28\n")
    labels = f"ID,label\n{ME}_a,0\n{ME}_b,1"
    assert prepare("--covariates", "more.csv", table=with_others(labels, *scans)) == 0
    assert info().loc[scans, "mmse"].tolist() == ["28", ""]


@pytest.mark.parametrize(("rows", "when", "expected"), [
    ([], date(2015, 1, 1), (None, ABSENT)),
    ([(date(2015, 1, 3), 1.0), (date(2014, 12, 30), 2.0)], date(2015, 1, 1), (2.0, "")),
    ([(date(2016, 1, 3), 1.0)], date(2015, 1, 1), (None, FAR)),
    ([(None, 1.0), (None, 2.0)], date(2015, 1, 1), (None, UNDECIDED)),
    ([(date(2015, 1, 3), 1.0), (date(2015, 1, 3), 2.0)], None, (None, UNDECIDED)),
    ([(date(2015, 1, 3), "b"), (date(2015, 1, 3), "a")], date(2015, 1, 1), (None, DIFFER))])
def test_one_value_is_picked_or_the_reason_is_given(rows, when, expected):
    assert pick_value(Kind("x"), rows, when, 365) == expected


# ---------------------------------------------------------------- cells

GENOTYPES = {"3/4": 1, "4/4": 2, "2/3": 0, "34": 1, "33": 0, "44.0": 2, "e3/e4": 1, "E4E4": 2, "ε3/ε4": 1,
             "ɛ4ɛ4": 2, "APOE 3/4": 1, "3|4": 1, "3-4": 1, "3_4": 1, "3, 4": 1, "3 4": 1, "3 / 4": 1,
             "epsilon3/epsilon4": 1, "4-Mar": 1, "04-Apr": 2, "Mar-03": 0, "3-feb": 0, "0": 0,
             "1": 1, "2": 2, "2.0": 2, "1,0": 1}


@pytest.mark.parametrize("text", GENOTYPES)
def test_a_genotype_is_read_as_its_number_of_e4_alleles(text):
    assert read_e4(text) == GENOTYPES[text]


@pytest.mark.parametrize("text", ["5/4", "3/5", "3", "4", "1/2", "3/4/4", "12-Mar", "4-Foo", "carrier", "-4",
                                  "9", "340", "2015-03-04", ""])
def test_what_is_no_genotype_is_not_read_as_one(text):
    with pytest.raises(ValueError):
        read_e4(text)


CELLS = {                                                  # heading, cells -> the first value, what is said
    "number": ("ptau217", ["0.231", "0.4"], "0.231", ""),
    "plain zero of a score": ("cdr", ["0", "0.5"], "0", ""),
    "bound below": ("ptau217", ["<0.2", "0.4"], "0.2", "ptau217: <0.2 (1 row) counts as the number that is"),
    "bound above": ("ABETA42", [">1700", "900"], "1700", "column ABETA42: >1700 (1 row) counts as"),
    "bound with a blank": ("ABETA42", ["> 1700", "900"], "1700", "> 1700 (1 row)"),
    "bound or equal": ("ABETA42", ["≥1700", "<=200"], "1700", "<=200 (1 row), ≥1700 (1 row)"),
    "two bounds": ("TAU", [">1300", ">1300", "<80"], "1300", "<80 (1 row), >1300 (2 rows)"),
    "decimal comma": ("ptau217", ["0,23", "0,4"], "0.23", "ptau217: decimal commas are read as points"),
    "bound with a comma": ("ptau217", ["<0,2", "0,4"], "0.2", "<0.2 (1 row)"),
    "comma and three digits beside others": ("nfl", ["12,345", "11,5"], "12.345", "decimal commas"),
    "zero and three digits": ("ptau217", ["0,231", "0,411"], "0.231", "decimal commas"),
    "comma and unit": ("ptau217", ["0,23 pg/ml", "0,4 pg/ml"], "0.23", "the unit pg/ml is left away"),
    "unit": ("ptau217", ["0.23 pg/mL", "0.4"], "0.23", "the unit pg/ml is left away"),
    "micro sign": ("crp:", ["0.2 µg/L", "0.4 μg/L"], "0.2", "the unit μg/l is left away"),
    "exponent": ("ptau217", ["2.5e-1", "0.4"], "0.25", ""),
    "score of 30": ("MMSE", ["26/30", "30 / 30"], "26", ""),
    "code -4": ("ptau217", ["-4", "0.4"], "", "-4 (1 row) counts as missing"),
    "code -4.000": ("ptau217", ["-4.000", "0.4"], "", "-4.000 (1 row) counts as missing"),
    "code -1": ("MMSE", ["-1", "29"], "", "-1 (1 row) counts as missing"),
    "code -9": ("education", ["-9", "12", "-9"], "", "-9 (2 rows) counts as missing"),
    "code with a true minus sign": ("MMSE", ["−4", "29"], "", "-4 (1 row) counts as missing"),
    "code 999": ("ptau217", ["999", "0.4", "0.5"], "", "999 (1 row) counts as missing"),
    "99 is a number where others are near": ("crp:", ["99", "80", "70"], "99", ""),
    "negative code beside own numbers": ("crp:", ["-9", "3", "4"], "", "-9 (1 row) counts as missing"),
    "z scores": ("memory:", ["-1", "-0.3", "1.2"], "-1", "-1 (1 row) counts as a value, because others"),
    "z scores with a code": ("memory:", ["-99", "-0.3", "1.2"], "", "-99 (1 row) counts as missing"),
    "below the limit, without a number": ("ptau217", ["<LLOQ", "0.4"], "", "<LLOQ (1 row) counts as missing"),
    "BLQ": ("ptau217", ["BLQ", "0.4"], "", "BLQ (1 row) counts as missing"),
    "word": ("ptau217", ["hemolyzed", "0.4", "0.5"], "", "row"),
    "score out of range": ("MMSE", ["31", "29", "28"], "", "2 ('31') cannot be read and counts as missing"),
    "marker of zero": ("gfap", ["0", "80", "90"], "", "2 ('0') cannot be read"),
    "not a number": ("ptau217", ["nan", "0.4"], "", ""),
    "infinite": ("ptau217", ["1e999", "0.4", "0.5"], "", "cannot be read"),
    "words of one's own": ("smoker:", ["never", "ever", "n/a"], "never", ""),
    "words in other case": ("smoker:", ["Never", "never", "never", "ever"], "never", "Never differs only"),
    "words with a code": ("smoker:", ["-4", "ever"], "", "-4 (1 row) counts as missing"),
    "field strengths": ("scanner:", ["3T", "1.5T"], "3", "the unit t is left away"),
    "six visits": ("visit:", ["1st", "2nd", "3rd"], "1st", ""),
    "date of a spreadsheet": ("GENOTYPE", ["4-Mar", "3/3"], "1", "4-Mar is read as a genotype that a"),
    "genotype of code -9": ("GENOTYPE", ["-9", "3/3"], "", "-9 (1 row) counts as missing"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_read_and_what_was_interpreted_is_said(capsys, name):
    heading, cells, expected, said = CELLS[name]
    heading, own, _ = heading.partition(":")
    row = found(column(heading, *cells), choice=own and f":{heading}")
    assert row[list(row)[-1]] == expected
    assert said in capsys.readouterr().out


REFUSED = {                                                # table, choice -> what the message says
    "no such file": (None, "", "covariates missing.csv: cannot be read"),
    "no subject": ("x,mmse\n1,29\n", "", "no column for the id"),
    "nothing known": (column("height", "180"), "", "no column that is known by its name, such as GENOTYPE, "
                      "MMSCORE or pT217_F, found PTID, height; choose by more.csv:COLUMN"),
    "no such column": (column("MMSCORE", "29"), ":MMSCOR", "no column for the MMSCOR; expected MMSCOR, found "
                       "PTID, MMSCORE; did you mean MMSCORE?"),
    "known name that is not there": (column("MMSCORE", "29"), ":apoe4", "no column for the apoe4"),
    "column twice": (column("mmse,MMSE", "29\",\"29"), "", "more than one column for mmse: mmse, MMSE"),
    "own column of data_info.csv": (column("label", "1"), ":label", "data_info.csv has its own column label; "
                                    "give another name by label=NAME"),
    "age": (column("AGE", "70"), ":AGE", "column age; give another name by AGE=NAME; --demographics takes"),
    "bad name": (column("score", "1"), ":score=my score", "'my score' cannot be a column of data_info.csv"),
    "heading without letters": (column("217", "1"), ":217", "'217' cannot be a column"),
    "name twice but for case": (column("a,b", "1\",\"2"), ":a=x,b=X", "'b=X': X stands twice"),
    "name like one of data_info.csv": (column("a", "1"), ":a=Row_Date", "its own column Row_Date"),
    "no column": (column("a", "1"), ":=x", "'=x' names no column; expected COLUMN or COLUMN=NAME"),
    "name twice": (column("a,b", "1\",\"2"), ":a=x,b=x", "'b=x': x stands twice"),
    "many words": (column("town", *"abcdefg"), ":town", "column town: 7 different values, such as 'a', 'b', "
                   "'c'; expected numbers, or at most 6 words"),
    "another column": (column("mmse", "good", "bad"), "", "column mmse: rows 2 ('good'), 3 ('bad'); expected "
                       "a score from 0 to 30"),
    "carriers": (column("APOE4", "carrier", "non-carrier"), "", "expected a genotype such as 3/4, or a num"),
    "units in cells": (column("ptau217", "0.2 pg/mL", "200 fg/mL"), "", "column ptau217: 2 units, as in rows "
                       "2 ('0.2 pg/mL'), 3 ('200 fg/mL'); bring all to one"),
    "factor of 1000": (column("pT217_F", "0.2", "0.3", "0.25", "310", "0.4"), "", "column pT217_F: some "
                       "numbers are about 0.275 and others about 310: units that differ by a factor of 1000? "
                       "The fewer ones are in row 5; bring all to one, or empty those cells"),
    "factor of 1000, few low": (column("GFAP_Q", "90", "0.1", "110", "120"), "", "fewer ones are in row 3"),
    "ratio": (column("AB42_F,AB40_F", "30\",\"0.3", "28\",\"0.28"), "", "AB42_F are greater than AB40_F"),
    "thousands": (column("nfl", "1,234", "1,345"), "", "nfl: rows 2 ('1,234'), 3 ('1,345'); expected a"),
    "both orders of a date": (DATED + f"{ME},25/03/2015,1\n{ME},03/25/2015,1\n", "", "has the day first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_used_is_refused(capsys, name):
    text, choice, expected = REFUSED[name]
    if text is None:
        message = refused(capsys, "--covariates", "missing.csv", table=with_others(LABELS, ME))
    else:
        message = problem(capsys, text, choice)
    assert expected in message


def test_a_column_of_ones_own_may_spread_as_far_as_it_likes_and_that_is_said(capsys):
    assert found(column("wmh", "0.01", "8", "9", "11"), choice=":wmh")["wmh"] == "0.01"
    assert "column wmh: some numbers are about 0.01 and others about 9: units" in capsys.readouterr().out


def test_a_skewed_marker_is_not_taken_for_two_units():
    cells = [f"{4 * 1.2 ** i:.3g}" for i in range(10)] + ["400"]
    assert found(column("NfL_Q", *cells))["nfl"] == "4"


def test_rows_of_subjects_without_a_scan_here_do_not_matter(capsys):
    others = "002_S_0001,310\n002_S_0002,<0.1\n002_S_0003,bad\n002_S_0004,-4\n"
    assert found(column("pT217_F", "0.2", "0.3", "0.25") + others)["ptau217"] == "0.2"
    said = capsys.readouterr().out
    assert "<0.1" not in said and "bad" not in said and "-4" not in said
    assert "4 of its 7 subjects have no scan here" in said


# ---------------------------------------------------------------- several columns and tables

def test_columns_are_chosen_and_named():
    text = f"PTID,EXAMDATE,GFAP_Q,GFAP_F,MMSCORE,p-tau (new)\n{ME},2015-03-02,101,55,28,0.7\n"
    row = found(text, choice=":gfap_f=gfap, mmse=score,ptau new")
    assert (row["gfap"], row["score"], row["p_tau_new"]) == ("55", "28", "0.7")
    assert "mmse" not in row


def test_the_other_column_of_a_marker_is_named(capsys):
    assert found(f"PTID,GFAP_Q,GFAP_F\n{ME},101,55\n")["gfap"] == "101"
    assert "gfap is taken from GFAP_Q; more.csv:GFAP_F takes GFAP_F" in capsys.readouterr().out


def test_a_second_table_fills_what_the_first_lacks(capsys):
    Path("second.csv").write_text(f"PTID,MMSE\n{ME},21\n199_S_8000,22\n")
    Path("more.csv").write_text(column("MMSCORE", "28"))
    assert prepare("--covariates", "more.csv", "second.csv", table=with_others(LABELS, ME)) == 0
    assert info().loc[[ME, "199_S_8000", "199_S_8001"], "mmse"].tolist() == ["28", "22", ""]
    said = capsys.readouterr().out
    assert "mmse from MMSCORE of more.csv, then MMSE of second.csv, without dates: known of 2 of 11" in said


def test_tables_that_give_two_genotypes_give_none(capsys):
    Path("second.csv").write_text(f"PTID,GENOTYPE\n{ME},3/3\n199_S_8000,3/4\n")
    Path("more.csv").write_text(column("APOE4", "1"))
    assert prepare("--covariates", "more.csv", "second.csv", table=with_others(LABELS, ME)) == 0
    assert info().loc[[ME, "199_S_8000"], "apoe4"].tolist() == ["", "1"]
    assert "rows that contradict each other: 037_S_6046" in capsys.readouterr().out


@pytest.mark.parametrize(("heading", "cells", "expected"), [
    ("pT217_C2N", "3.1", "are of two assays, whose values cannot be compared"),
    ("pT217_F", "310", "have the medians 0.3 and 310: units that differ by a factor of 1000? Bring both"),
    ("pT217_F", "0.00031", "have the medians 0.3 and 0.00031")])
def test_tables_of_two_assays_or_two_units_are_refused(capsys, heading, cells, expected):
    Path("second.csv").write_text(f"PTID,{heading}\n199_S_8000,{cells}\n199_S_8001,{cells}\n")
    message = problem(capsys, column("pT217_F", "0.3"), "", "second.csv")
    assert f"covariates ptau217: pT217_F of more.csv and {heading} of second.csv {expected}" in message


def test_an_empty_entry_is_refused(capsys):
    with pytest.raises(SystemExit):
        prepare("--covariates", "a.csv", "")
    assert "covariates has an empty entry; expected FILE or FILE:COLUMN" in capsys.readouterr().err


def test_a_column_that_is_the_same_in_all_scans_is_said_to_be_so(capsys):
    assert found(column("cdr", "0", "0", "0"))["cdr"] == "0"
    said = capsys.readouterr().out
    assert "cdr of more.csv, without dates: known of 3 of 11 scans" in said
    assert "cdr is 0 in all scans that have it, and tells nothing" in said
    found(column("cdr", "0"))
    assert "tells nothing" not in capsys.readouterr().out


def test_names_that_differ_only_in_case_are_refused(capsys):
    Path("second.csv").write_text(f"PTID,score\n{ME},3\n")
    message = problem(capsys, column("MMSCORE", "29"), "", "second.csv:score=MMSE")
    assert "covariates MMSE, score of second.csv: differs from mmse in case or _ alone" in message


def test_a_diagnosis_may_have_more_words_than_a_column_that_is_not_known():
    words = ["NL", "MCI", "Dementia", "NL to MCI", "MCI to NL", "MCI to Dementia", "Dementia to MCI"]
    assert found(column("DX", *words))["diagnosis"] == "NL"


def test_words_and_numbers_are_not_one_column(capsys):
    Path("second.csv").write_text("PTID,smoker\n199_S_8000,never\n199_S_8001,ever\n")
    message = problem(capsys, column("smoker", "0", "1"), ":smoker", "second.csv:smoker")
    assert "smoker of more.csv and smoker of second.csv are numbers in one and words in the other" in message


def test_two_assays_have_two_names():
    Path("second.csv").write_text(f"PTID,pT217_C2N\n{ME},3.1\n")
    assert found(column("pT217_F", "0.3"), "second.csv:pT217_C2N=ptau217_c2n")["ptau217"] == "0.3"
    assert info().loc[ME, "ptau217_c2n"] == "3.1"


def test_all_problems_of_all_tables_come_together(capsys):
    Path("second.csv").write_text("PTID,height\na,1\n")
    message = problem(capsys, column("mmse", "good"), "", "second.csv", "third.csv")
    for part in ("3 problem(s)", "column mmse: row 2 ('good')", "covariates second.csv: no column that",
                 "covariates third.csv: cannot be read"):
        assert part in message


def test_age_and_sex_of_other_tables_come_first(capsys):
    Path("people.csv").write_text(f"PTID,AGE\n{ME},71\n")
    row = found(f"PTID,AGE,PTGENDER,MMSE\n{ME},66,1,29\n", "--demographics", "people.csv")
    assert (row["age"], row["sex"], row["mmse"]) == ("71.0", "M", "29")
    assert "sex from more.csv, where other tables have none" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "expected"), [
    ("a.csv", ("a.csv", [])), ("a.csv:b", ("a.csv", ["b"])), ("a.csv:b, c=d", ("a.csv", ["b", "c=d"])),
    ("a.csv:", ("a.csv", [])), ("x:y.csv:b", ("x:y.csv", ["b"])), ("x:z/a.csv", ("x:z/a.csv", [])),
    ("C:\\a.csv", ("C:\\a.csv", [])), ("there:b", ("there:b", [])),
    ("there.csv:tau (pg/mL)", ("there.csv", ["tau (pg/mL)"])), ("there.csv:a:b=c", ("there.csv", ["a:b=c"])),
    ("../x/a.csv:b", ("../x/a.csv", ["b"])), (":b", (":b", [])), ("", ("", [])),
    ("a.csv:" + ",".join(["long"] * 99), ("a.csv", ["long"] * 99))])
def test_a_file_and_its_columns_are_told_apart(text, expected):
    Path("there:b").touch()
    Path("there.csv").touch()
    assert split_choice(text) == expected


def test_the_commands_of_the_pages_are_settings_of_prepare():
    words = [command.text.split() for command in find_commands()]
    words = [found[3:] for found in words if found[1:3] == ["main.py", "prepare"] and "--help" not in found]
    assert any(parse(PrepareSettings, found, "", "").covariates for found in words)
