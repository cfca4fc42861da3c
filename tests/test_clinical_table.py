"""Made-up tables as they were downloaded: dates, columns, age and sex, and the words of refusals."""
from pathlib import Path

import pandas as pd
import pytest
from made_up import amyloid_table
from preparing import SUBJECTS, info, place, prepare, refused, with_others

POSITIVE_2015 = "PTID,SCANDATE,AMYLOID_STATUS\n037_S_6046,2015-03-02,1\n"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- dates

@pytest.mark.parametrize("form", ["%Y-%m-%d", "%m/%d/%Y", "%m/%d/%y", "%d-%b-%Y", "%Y%m%d", "%d%b%Y",
                                  "%Y-%m-%d 00:00:00", "%Y/%m/%d"])
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
    (("03/04/2015", "13/05/2015"), "2015-04-03", "day first, as in 13/05/2015"),
    (("3.4.2015", "25.5.2015"), "2015-04-03", "day first")])
def test_the_order_of_day_and_month_is_that_of_the_whole_column(capsys, dates, expected, remark):
    table = f"ID,date,label\na1,{dates[0]},0\na2,{dates[1]},1\n"
    others = [f"b{i}" for i in range(10)]                  # which fill the lists
    place("a1", "a2", *others)
    table += "".join(f"{scan},2015-01-02,{i % 2}\n" for i, scan in enumerate(others))
    assert prepare(table=table) == 0
    assert info().loc["a1", "row_date"] == expected
    assert remark in capsys.readouterr().out


def test_a_column_with_days_first_and_months_first_is_refused(capsys):
    place("a1", "a2", "a3")
    message = refused(capsys, table="ID,date,label\na1,25/03/2015,0\na2,03/25/2015,1\na3,,1\n")
    assert message.startswith("error: 1 problem(s):")
    assert ("table table.csv: column date: 25/03/2015 (2) has the day first, 03/25/2015 (3) the month; "
            "bring all to one form") in message


@pytest.mark.parametrize("date", ["2015-13-02", "2015-02-30", "02/30/2015", "March 2015", "2015", "42065",
                                  "30-Foo-2015", "2999-01-01", "3-2-15", "20151302", "0215-03-02",
                                  "2015-3-2-1", "2015-03/02"])
def test_what_is_no_date_is_refused_with_its_row(capsys, date):
    place("a1", "a2", "a3")
    message = refused(capsys, table=f"ID,date,label\na1,2015-01-02,0\na2,{date},1\na3,,1\n")
    expected = "expected a date such as 2015-03-02, 20150302"
    assert f"table table.csv: column date: row 3 ('{date}'); {expected}" in message


def test_contradictory_dates_in_the_ids_are_refused(capsys):
    scans = ["037_S_6046_25-03-2015", "037_S_6046_03-25-2015"]
    message = refused(capsys, table=with_others(POSITIVE_2015, *scans))
    assert "dates in the IDs of the scans: 25-03-2015" in message


# ---------------------------------------------------------------- columns

BAD_TABLES = {
    "no such file": (None, ["table missing.csv: cannot be read: No such file"]),
    "empty": ("\n", ["table table.csv: cannot be read as a table"]),
    "header only": ("ID,label\n", ["table table.csv: holds no row"]),
    "no label": ("PTID,SCANDATE,status\na1,2015-03-02,1\n",
                 ["no column for the label; expected AMYLOID_STATUS or label",
                  "found PTID, SCANDATE, status"]),
    "renamed label": ("PTID,AMYLOID_STATS\na1,1\n",
                      ["did you mean AMYLOID_STATS? Then --label_column AMYLOID_STATS"]),
    "renamed ID": ("PTIDS,label\na1,1\n",
                   ["no column for the id; expected PTID or RID",
                    "did you mean PTIDS? Then --id_column PTIDS"]),
    "two IDs": ("PTID,label,ptid\na1,1,a1\n",
                ["more than one column for the id: PTID (column 1), ptid (column 3); keep one or choose"]),
    "label twice": ("ID,label,label\na1,1,1\n",
                    ["more than one column for the label: label (column 2), label (column 3); keep one"]),
    "two kinds of label": ("ID,label,AMYLOID_STATUS\na1,1,1\n",
                           ["AMYLOID_STATUS (column 3), label (column 2)", "--label_column"]),
    "two dates": ("ID,label,SCANDATE,EXAMDATE\na1,1,,\n",
                  ["more than one column for the date: SCANDATE (column 3), EXAMDATE (column 4)"]),
    "SUVR as label": ("ID,label\na1,1.23\na2,0\na3,2\n",
                      ["column label: rows 2 ('1.23'), 4 ('2'); expected a label in 0 .. 1 or a word",
                       "; a SUVR is none"]),
    "many wrong": ("ID,label\n" + "a1,x\n" * 9,
                   ["rows 2 ('x'), 3 ('x'), 4 ('x'), 5 ('x'), 6 ('x') and 4 more; expected"]),
    "row behind blank ones": ("ID,label\n\n\n,\na1,x\n", ["row 5 ('x')"]),
    "one column": ("PTID\na1\n", ["no column for the label", "found PTID\n"]),
    "shifted": ("ID,label\n1,a1,1\n2,a2,1\n", ["rows 2, 3: more fields than its header has columns"]),
    "bad Centiloids": ("ID,label,CENTILOIDS\na1,1,high\na2,1,inf\n",
                       ["column CENTILOIDS: rows 2 ('high'), 3 ('inf'); expected a number"]),
    "bad quality": ("ID,label,QC_FLAG\na1,1,pass\n", ["column QC_FLAG: row 2 ('pass'); expected a number"]),
    "bad age": ("ID,label,age\na1,1,230\na2,1,old\n",
                ["column age: rows 2 ('230'), 3 ('old'); expected an age from 1 to 120"]),
    "bad births": ("ID,label,PTDOB\na1,1,25/03/1945\na2,1,03/25/1945\n",
                   ["column PTDOB: 25/03/1945 (2) has the day first"]),
    "bad year of birth": ("ID,label,PTDOBYY\na1,1,45\na2,1,?\n",
                          ["column PTDOBYY: rows 2 ('45'), 3 ('?'); expected a year such as"]),
    "bad month of birth": ("ID,label,PTDOBYY,PTDOBMM\na1,1,1945,13\n",
                           ["column PTDOBMM: row 2 ('13'); expected a month"]),
    "bad sex": ("ID,label,PTGENDER\na1,1,3\na2,1,2\na3,1,-4\n",
                ["column PTGENDER: row 2 ('3'); expected 1 or Male, 2 or Female"]),
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
    message = refused(capsys, "--demographics", "people.csv", "--scan_dates", "dates.csv",
                      "--date_column", "SCANDAT", "--tracer", "FBP", table="ID,SCANDATE\na1,2015-03-02\n")
    for part in ("error: 7 problem(s):", "data_info: train.txt there already",
                 "no ID has both an MRI (1 files in whole_MRI) and a PET (1 in whole_Abeta)",
                 "a1: no PET", "b1: no MRI",
                 "table table.csv: no column for the label", "table table.csv: no column for the tracer",
                 "date_column 'SCANDAT' is not there, found ID, SCANDATE; did you mean SCANDATE?",
                 "demographics people.csv: no column for age or sex",
                 "scan_dates dates.csv: no column for the date"):
        assert part in message


def test_columns_may_be_chosen(capsys):
    place(*SUBJECTS)
    rows = "".join(f"{i},{scan},0,{(i + 1) % 2},2015-03-02,x\n" for i, scan in enumerate(SUBJECTS))
    table = "ID,scan,label,visual,day,SCANDATE\n" + rows
    chosen = ["--id_column", "scan", "--label_column", "Visual", "--date_column", "day"]
    assert prepare(*chosen, table=table) == 0
    assert info().loc[SUBJECTS[0], ["label", "row_date"]].tolist() == ["1", "2015-03-02"]
    assert "id from scan, label from visual, date from day" in capsys.readouterr().out


def test_rows_without_an_id_are_passed_over_and_named(capsys):
    assert prepare(table=with_others("ID,label\n,1\nNA,0\n037_S_0001,1", "037_S_0001")) == 0
    assert "rows 2, 3 without ID passed over" in capsys.readouterr().out


def test_a_tracer_that_the_table_does_not_have_is_refused(capsys):
    place(*SUBJECTS)
    table = amyloid_table(SUBJECTS, seed=1)
    table.to_csv("table.csv", index=False)
    message = refused(capsys, "--tracer", "FPB")
    assert "column TRACER: no row has the tracer FPB; there are FBB, FBP" in message


# ---------------------------------------------------------------- age and sex

@pytest.mark.parametrize(("people", "expected"), [
    ("PTID,PTDOB,PTGENDER\n037_S_6046,03/02/1945,1\n", ("70.0", "M")),
    ("RID,PTDOB,PTGENDER\n6046,03/1945,2\n", ("70.0", "F")),
    ("PTID,PTDOB,PTGENDER\n037_S_6046,1945,Female\n", ("69.7", "F")),
    ("PTID,PTDOB,PTGENDER\n037_S_6046,3/2/45,-4\n", ("70.0", "")),
    ("ID,RID,PTDOBYY,PTDOBMM,PTGENDER\n9,6046,1945,3,2\n", ("70.0", "F")),
    ("RID,PTDOBYY,PTGENDER\n6046,1945,2\n6046,-4,2\n", ("69.7", "F")),
    ("PTID,VISCODE,EXAMDATE,EXAMDATE_bl,AGE,PTGENDER\n037_S_6046,bl,2011-03-02,2011-03-02,66,Male\n"
     "037_S_6046,m48,2015-03-02,2011-03-02,66,Male\n", ("70.0", "M")),
    ("Subject,Sex,Age,Acq Date\n037_S_6046,F,66,3/2/2011\n037_S_6046,F,69,3/2/2014\n", ("70.0", "F")),
    ("Subject,Sex,Age\n037_S_6046,1,66\n037_S_6046,1,66\n", ("66.0", "1")),
    ("ID,gender,age\n037S6046,female,66\n", ("66.0", "F"))])
def test_age_at_the_scan_and_sex_come_from_a_second_table(people, expected):
    Path("people.csv").write_text(people)
    assert prepare("--demographics", "people.csv", table=with_others(POSITIVE_2015, "037_S_6046")) == 0
    assert tuple(info().loc["037_S_6046", ["age", "sex"]]) == expected


@pytest.mark.parametrize("people", [
    "PTID,PTDOB,PTGENDER\n037_S_6046,03/1945,1\n037_S_6046,04/1945,2\n",
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
