"""Tables and lists as spreadsheets, R and a study's own tools write them: read alike by check and prepare,
with a remark on what was interpreted, or refused with the cause."""
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import LISTS, SHAPE
from preparing import info, left_out, place, prepare, refused

from config import Config
from dataset import Cohort, check_cohort
from labels.cells import ages_remark, labels_remark, read_age, read_label, read_sex
from labels.people import read_demographics
from runtime.logs import logging_run
from runtime.near_names import NearNames
from runtime.tables import read_list, read_table
from utils import InputError

SCANS = [scan for scans in LISTS.values() for scan in scans]
LABELS = {scan: i % 2 for i, scan in enumerate(SCANS)}     # as write_cohort alternates them
AGES = {scan: 61.5 + i for i, scan in enumerate(SCANS)}


def table(separator: str = ",", head: str = "ID,label,age,sex", end: str = "\n", label=str, age=str, name=str,
          more: str = "") -> str:
    """A table of the tiny cohort. label, age, name: how a cell writes it. more: the end of each line."""
    lines = [head.replace(",", separator) + more]
    for i, scan in enumerate(SCANS):
        cells = [name(scan), label(LABELS[scan]), age(AGES[scan]), "FM"[i % 2]]
        lines.append(separator.join(cells) + more)
    return end.join(lines) + end


def comma(number: float) -> str:
    return str(number).replace(".", ",")


# What a file holds -> what is said of it, none where nothing was interpreted.
READ = {
    "plain": (table().encode(), None),
    "semicolons and decimal commas": (
        table(";", age=comma).encode(),
        "separated by semicolons; decimal commas are read as points in column age",
    ),
    "semicolons": (table(";").encode(), "its columns are separated by semicolons"),
    "tabs": (table("\t").encode(), "its columns are separated by tabs"),
    "tabs and decimal commas": (
        table("\t", age=comma).encode(),
        "decimal commas are read as points in column age",
    ),
    "bars": (table("|").encode(), "its columns are separated by bars"),
    "blanks": (table(" ").encode(), "its columns are separated by blanks"),
    "several blanks": (table("   ").encode(), "its columns are separated by blanks"),
    "UTF-16, tabs": (table("\t").encode("utf-16"), "is in UTF-16; its columns are separated by tabs"),
    "UTF-16, big end first": (b"\xfe\xff" + table().encode("utf-16-be"), "is in UTF-16"),
    "UTF-16 without a mark": (table().encode("utf-16-le"), "is in UTF-16"),
    "UTF-32": (table().encode("utf-32"), "is in UTF-32"),
    "UTF-8 with a mark": (table().encode("utf-8-sig"), None),
    "Windows-1252": (
        table(head="ID,label,age,sex,müde", more=",").encode("cp1252"),
        "is not in UTF-8 and read as Windows-1252 (Latin-1)",
    ),
    "Latin-1 with a control letter": (
        table(head="ID,label,age,sex,m\x81de", more=",").encode("latin-1"),
        "is not in UTF-8",
    ),
    "sep= first": (b"sep=,\n" + table().encode(), "its first line, sep=,, is read as the separator"),
    "sep=; first, quoted": (b'"sep=;"\r\n' + table(";", end="\r\n").encode(), "is read as the separator"),
    "sep= tab": (b"SEP=\t\n" + table("\t").encode(), "is read as the separator"),
    "blanks in the header": (table(head=" ID ,label ,age ,\xa0sex").encode(), None),
    "blanks in cells": (
        table(label=lambda label: f" {label}\t", name=lambda name: f"\xa0{name} ").encode(),
        None,
    ),
    "quoted header": (table(head='"ID","label","age","sex"').encode(), None),
    "everything quoted, blank after comma": (
        "".join('"' + line.replace(",", '", "') + '"\n' for line in table().splitlines()).encode(),
        None,
    ),
    "other case in the header": (
        table(head="id,LABEL,Age,SEX").encode(),
        "its column id is read as ID; its column LABEL is read as label",
    ),
    "CR line ends": (table(end="\r").encode(), None),
    "CRLF line ends, blank lines": (table(end="\r\n\r\n").encode(), None),
    "blank lines before the header": (b"\n\n" + table().encode(), None),
    "no end of the last line": (table().rstrip().encode(), None),
    "end of file of DOS": (table().encode() + b"\x1a", None),
    "empty columns": (table(more=",,,").encode(), None),
    "empty columns of rows alone": (table(more=",,,").replace("sex,,,", "sex").encode(), None),
    "empty rows at the end": (table().encode() + b",,,\n,,,\n", None),
    "row names of R with an empty heading": (
        "".join(f'"{i or ""}",{line}\n' for i, line in enumerate(table().splitlines())).encode(),
        None,
    ),
    "0.00 and 1.00": (table(label="{}.00".format).encode(), None),
    "0. and 1.": (table(label="{}.".format).encode(), None),
    "00 and 01": (table(label="0{}".format).encode(), None),
    "0,0 and 1,0": (
        table(";", label="{},0".format).encode(),
        "decimal commas are read as points in column label",
    ),
    "negative and positive": (
        table(label=["negative", "Positive"].__getitem__).encode(),
        "Positive is read as the label 1, negative is read as the label 0",
    ),
    "neg and pos": (table(label=["NEG", "POS"].__getitem__).encode(), "NEG is read as the label 0"),
    "A- and A+": (table(label=["A-", "A+"].__getitem__).encode(), "A+ is read as the label 1"),
    "A and a true minus sign": (table(label=["A−", "A+"].__getitem__).encode(), "A− is read as the label 0"),
    "amyloid negative": (
        table(label=["Amyloid Negative", "amyloid_positive"].__getitem__).encode(),
        "amyloid_positive is read as the label 1",
    ),
    "false and true": (table(label=["FALSE", "TRUE"].__getitem__).encode(), "TRUE is read as the label 1"),
    "no and yes": (table(label=["No", "Yes"].__getitem__).encode(), "Yes is read as the label 1"),
    "words and numbers": (table(label=["0", "yes"].__getitem__).encode(), "yes is read as the label 1"),
    "years with their unit": (table(age="{} years".format).encode(), None),
}


def check(root: Path) -> Cohort:
    with logging_run():
        return check_cohort(root / "data", root / "data_info", SHAPE, 2, Config().subject_pattern)


def problems(root: Path) -> str:
    with pytest.raises(InputError) as error:
        check(root)
    return str(error.value)


# ---------------------------------------------------------------- what is read

@pytest.mark.parametrize("name", READ)
def test_check_reads_it_and_says_how(root, capsys, name):
    content, remark = READ[name]
    (root / "data_info" / "data_info.csv").write_bytes(content)
    cohort = check(root)
    scans = cohort.train + cohort.validation + cohort.test
    assert {scan.id: scan.label for scan in scans} == LABELS
    ages, problem = read_demographics(root / "data_info", [scan.id for scan in scans])
    assert problem == "" and dict(zip(ages["ID"], ages["age"], strict=True)) == AGES
    assert ages["sex"].tolist() == ["F", "M"] * 5
    lines = [line for line in capsys.readouterr().out.splitlines() if "data_info.csv" in line]
    assert (remark in " ".join(lines)) if remark else not lines


@pytest.mark.parametrize("name", READ)
def test_prepare_reads_it_and_says_how(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    content, remark = READ[name]
    place(*SCANS)
    Path("table.csv").write_bytes(content)
    assert prepare() == 0
    found = info()
    assert found["label"].to_dict() == {scan: str(label) for scan, label in LABELS.items()}
    assert found["age"].astype(float).to_dict() == AGES
    assert found["sex"].to_dict() == {scan: "FM"[label] for scan, label in LABELS.items()}
    if remark and "read as ID" not in remark:              # prepare finds columns by any of their names
        shown = capsys.readouterr().out
        for part in remark.split("; "):
            assert part in shown


@pytest.mark.parametrize("content", [
    b"s01\r\ns02\r\n", b"s01\rs02\r", "s01\ns02".encode("utf-16"), b"ID\ns01\ns02\n", b'"ID"\n"s01"\n"s02"\n',
    b"s01,,\ns02;\n", b" s01\t\n\xc2\xa0s02 \n\n", b"\xef\xbb\xbfid\ns01\ns02\n", b"s01\ns02\n\x1a"])
def test_a_list_is_read_however_it_was_saved(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content)
    assert read_list(tmp_path / "train.txt") == ["s01", "s02"]


def test_a_scan_named_id_alone_in_its_list_is_no_heading(tmp_path):
    (tmp_path / "test.txt").write_text("ID\n")
    assert read_list(tmp_path / "test.txt") == ["ID"]


def test_demographics_and_dates_go_through_the_same_reader(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place(*SCANS)
    Path("people.csv").write_bytes(table(";", head="ID,x,age,sex", age=comma).encode("utf-16"))
    Path("dates.csv").write_bytes(b"ID\tdate\r" + "".join(f"{s}\t2.3.2015\r" for s in SCANS).encode())
    labels = "sep=;\n" + "".join(f"{line}\n" for line in ["ID;label", *(f"{s};{LABELS[s]}" for s in SCANS)])
    assert prepare("--demographics", "people.csv", "--scan_dates", "dates.csv", table=labels) == 0
    assert info()["age"].astype(float).to_dict() == AGES and set(info()["scan_date"]) == {"2015-02-03"}
    shown = capsys.readouterr().out
    for part in (
        "demographics people.csv: is in UTF-16",
        "decimal commas are read as points in column age",
        "scan_dates dates.csv: its columns are separated by tabs",
        "table table.csv: its first line",
    ):
        assert part in shown


def test_the_table_of_an_atlas_of_bids_with_tabs_is_read(tmp_path):
    (tmp_path / "dseg.tsv").write_text("Index\tName\tcolor\n1\tcortex\t#ffffff\n2\twhole_cerebellum\tn/a\n")
    found = read_table(tmp_path / "dseg.tsv", "index", "name")
    assert found[["index", "name"]].to_numpy().tolist() == [["1", "cortex"], ["2", "whole_cerebellum"]]


def test_rows_keep_the_numbers_of_a_spreadsheet_behind_blank_and_quoted_lines(tmp_path):
    (tmp_path / "a.csv").write_text('ID,label\na,1\n\n,\n"b\nc",0\nd,1\n')
    found = read_table(tmp_path / "a.csv", "ID")
    assert (found["ID"].tolist(), [index + 2 for index in found.index]) == (["a", "b\nc", "d"], [2, 5, 6])


def test_decimal_commas_stay_where_commas_separate_and_in_what_is_no_number(tmp_path):
    (tmp_path / "a.csv").write_text('ID,note\na,"1,5"\n')
    assert read_table(tmp_path / "a.csv", "ID")["note"].tolist() == ["1,5"]
    (tmp_path / "a.csv").write_text("ID;note\na;1,5\nb;1,2,3\nc;x,5\nd;71,5+\ne;>89,5\nf;-0,25\n")
    assert read_table(tmp_path / "a.csv", "ID")["note"].tolist() == ["1.5", "1,2,3", "x,5", "71.5+", ">89.5",
                                                                     "-0.25"]


def table_of(tmp_path, text: str) -> tuple[pd.DataFrame, list[str]]:
    (tmp_path / "t.csv").write_text(text)
    remarks = []
    return read_table(tmp_path / "t.csv", "ID", remarks=remarks), remarks


def test_what_may_be_thousands_is_left_unless_another_number_shows_decimal_commas(tmp_path):
    table, remarks = table_of(tmp_path, "ID;volume\na;1,234\nb;12,500\n")
    assert list(table["volume"]) == ["1,234", "12,500"]
    assert any("thousands, or decimals" in remark for remark in remarks)
    table, _ = table_of(tmp_path, "ID;volume;age\na;1,234;71,5\nb;1,100;68,0\n")
    assert list(table["volume"]) == ["1.234", "1.100"]
    table, _ = table_of(tmp_path, "ID;SUVR\na;1,234\nb;0,987\n")
    assert list(table["SUVR"]) == ["1.234", "0.987"]


def test_ids_keep_their_commas(tmp_path):
    table, _ = table_of(tmp_path, "ID;age\n1,2;71,5\n")
    assert list(table["ID"]) == ["1,2"] and list(table["age"]) == ["71.5"]


@pytest.mark.parametrize(("text", "words"), [
    ("ID,age,label,\nA,71,0,1\nB,68,5,0\n", "decimal comma"),
    ("ID,label,\nA,0,late\nB,1,\n", "give it a name, or empty it"),
    ('ID,label,note\nA,1,"scanner 3T\nB,0,x\nC,1,late"\nD,0,y\n', "closes rows later"),
])
def test_values_without_a_heading_and_rows_inside_a_cell_are_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        table_of(tmp_path, text)


def test_a_cell_may_hold_lines_and_the_first_column_names_of_rows(tmp_path):
    table, _ = table_of(tmp_path, 'ID,label,note\nA,1,"first line\nsecond line"\nB,0,y\n')
    assert list(table["ID"]) == ["A", "B"]
    table, _ = table_of(tmp_path, ',ID,label\n1,A,0\n2,B,1\n')
    assert list(table["ID"]) == ["A", "B"]


def test_text_with_other_separators_in_its_cells_does_not_mislead(tmp_path):
    rows = "".join(f's{i:02d},1,"seen; read; sent; kept","a\tb\tc"\n' for i in range(9))
    (tmp_path / "a.csv").write_text("ID,label,note,other\n" + rows)
    assert read_table(tmp_path / "a.csv", "ID")["label"].tolist() == ["1"] * 9
    (tmp_path / "a.csv").write_text("ID;label;Name, first\n" + "".join(f"s{i};1;A, B\n" for i in range(9)))
    assert read_table(tmp_path / "a.csv", "ID")["Name, first"].tolist() == ["A, B"] * 9


# ---------------------------------------------------------------- cells

@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1.0", 1),
        ("1.00", 1),
        ("1,0", 1),
        ("01", 1),
        ("1.", 1),
        ("Pos", 1),
        ("aβ+", 1),
        ("Abeta-", 0),
        ("a–", 0),
        ("amyloid-positive", 1),
        ("AMYLOID_NEG", 0),
        ("no", 0),
        ("True", 1),
    ],
)
def test_a_label(text, expected):
    assert read_label(text, 2) == expected


@pytest.mark.parametrize("text", ["2", "-1", "0.5", "1.01", "1e0", "nan", "+", "maybe", "positiv", "١", "1 0",
                                  "not negative"])
def test_no_label(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        read_label(text, 2)


def test_words_are_labels_only_where_there_are_two():
    assert read_label("2", 3) == 2
    with pytest.raises(ValueError, match="yes"):
        read_label("yes", 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90+", 90),
        (">89", 89),
        (">=90", 90),
        ("≥ 90", 90),
        ("90 +", 90),
        ("89 or older", 89),
        ("90 and over", 90),
        ("71", 71),
        ("71.5", 71.5),
        ("71.", 71),
        ("071Y", 71),
        ("71 years", 71),
        ("71 y/o", 71),
        ("1", 1),
        ("120", 120),
    ],
)
def test_an_age(text, expected):
    assert read_age(text) == expected


@pytest.mark.parametrize("text", ["old", "0.9", "121", "<50", "60-65", "7_1", "1e2", "034M", "nan", "71,5",
                                  "7 1"])
def test_no_age(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        read_age(text)


def test_remarks_name_each_spelling_once_and_nothing_that_is_plain():
    assert ages_remark(["71", "90+", ">89", "90+"]) == "the age 90+ is read as 90, the age >89 is read as 89"
    assert labels_remark(["0", "1.0", "?"]) == ages_remark(["71 years", ""]) == ""


@pytest.mark.parametrize(
    ("text", "expected"), [("f", "F"), ("Male", "M"), ("FEMALE", "F"), ("1", "1"), ("x", "X")]
)
def test_a_sex(text, expected):
    assert read_sex(text) == expected


@pytest.mark.parametrize(
    "missing", ["", "NA", "n/a", "NaN", "None", ".", "#N/A", "<NA>", "null", "unknown", "-", "-4"]
)
def test_a_missing_age_is_unknown_to_check_and_prepare(root, missing, capsys):
    text = table(age=lambda age: missing if age == AGES["s03"] else "90+")
    (root / "data_info" / "data_info.csv").write_text(text)
    ages, why = read_demographics(root / "data_info", [scan.id for scan in check(root).train])
    assert ages is None and "1 scans have no sex or no age from 1 to 120 years (s03)" in why
    assert "data_info.csv: the age 90+ is read as 90" in capsys.readouterr().out
    assert prepare("--overwrite", table=text) == 0
    assert info()["age"].to_dict() == {scan: "" if scan == "s03" else "90.0" for scan in SCANS}
    assert "age unknown: s03" in capsys.readouterr().out


def test_a_row_that_cannot_be_read_costs_its_scan_alone(root, capsys):
    text = table().replace("s02,1", "s02,maybe").replace("63.5", "old")
    assert prepare("--overwrite", table=text) == 0
    assert left_out() == {"s02": ("label cannot be read", "row 3")}
    assert info().loc["s03", "age"] == "" and len(info()) == 9
    shown = capsys.readouterr().out
    assert (
        "column label: row 3 ('maybe') cannot be read and counts as missing; expected a label in 0" in shown
    )
    assert "column age: row 4 ('old') cannot be read" in shown


def test_a_row_whose_date_cannot_be_read_costs_the_scans_of_its_subject(root):
    rows = "".join(f"{scan},{LABELS[scan]},2015-01-0{1 + i % 9}\n" for i, scan in enumerate(SCANS))
    assert prepare("--overwrite", table=f"ID,label,date\n{rows}s04,1,soon\n") == 0
    assert left_out() == {"s04": ("date of its row cannot be read", "row 12")}


def test_an_unreadable_label_agrees_with_no_other_of_its_subject(root):
    assert prepare("--overwrite", table=table().replace("s02,1,62.5,M\n", "s02,1,,\ns02,?,,\n")) == 0
    assert left_out()["s02"] == (
        "ambiguous",
        "no dates in the table, and rows 3, 4 differ in what they would give",
    )


# ---------------------------------------------------------------- what is refused, with its cause

REFUSED = {
    "xlsx": (b"PK\x03\x04" + bytes(200), ["is a workbook (.xlsx, .ods)", "save it as CSV"]),
    "xls": (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(200), ["is an old Excel workbook (.xls)"]),
    "XML workbook": (b'<?xml version="1.0"?>\n<Workbook/>', ["is XML, as a workbook may be"]),
    "web page": (b"\n<!DOCTYPE html><html>", ["is a web page", "needs a login"]),
    "web page without a type": (b"<HTML><body>", ["is a web page"]),
    "SPSS": (b"$FL2@(#) IBM SPSS STATISTICS", ["is a file of SPSS (.sav)", "Save as > CSV"]),
    "Stata": (b"<stata_dta><header>", ["is a file of Stata (.dta)", "export delimited"]),
    "old Stata": (b"\x72\x02\x01\x00" + bytes(99), ["is a file of Stata (.dta)"]),
    "RData": (b"RDX3\nX\n" + bytes(9), ["is a file of R (.RData)", "row.names = FALSE"]),
    "packed RData": (b"\x1f\x8b\x08" + bytes(9), ["is compressed (gzip), as .RData and .rds"]),
    "SAS": (bytes(12) + b"\xc2\xea\x81\x60" + bytes(9), ["is a file of SAS (.sas7bdat)"]),
    "Parquet": (b"PAR1\x15\x04" + bytes(9), ["is a Parquet file"]),
    "PDF": (b"%PDF-1.7", ["is a PDF"]),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", ["a pointer of Git LFS", "git lfs pull"]),
    "binary": (b"ID,label\n\x00\x01\x02", ["line 2 holds the control character", "damaged, or no text"]),
    "empty": (b"\n\n", ["cannot be read as a table: it is empty"]),
    "open quote": (
        table().replace("s03,0", '"s03,0').encode(),
        ['a quote (") opens in row 4 and does not close'],
    ),
    "decimal commas": (
        table(age=comma).encode(),
        ["more fields than its header has columns (5, not 4)", "is a decimal comma in a number?"],
    ),
    "row names of R": (
        "".join(f"{i}{',' if i else ''}{line}\n" for i, line in enumerate(table().splitlines()))
        .replace("0ID", "ID")
        .encode(),
        ["more fields than its header", "row.names = FALSE"],
    ),
    "comma in a cell": (
        table().replace("s03,0", "s03,0,seen, twice").encode(),
        ["row 4: more fields than its header has columns (6, not 4)", "needs quotes"],
    ),
    "title above the header": (
        b"My cohort,,,\n" + table().encode(),
        ["is row 2 the header? Delete the rows above"],
    ),
    "no header": (
        "".join(table().splitlines(keepends=True)[1:]).encode(),
        ["the first row must hold the names of the columns"],
    ),
    "near names": (table(head="IDs,labels,age,sex").encode(), ["rename IDs to ID, labels to label"]),
    "two spellings": (table(head="ID,label,Label,label ").encode(), ["column(s) label stand twice"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_check_refuses_it_with_the_cause(root, name):
    content, expected = REFUSED[name]
    (root / "data_info" / "data_info.csv").write_bytes(content)
    message = problems(root)
    for part in ("1 problem(s) in the data", "data_info.csv: ", *expected):
        assert part in message


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in (
    "title above the header", "no header", "near names", "two spellings")])
def test_prepare_refuses_it_with_the_same_cause(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    place(*SCANS)
    Path("table.csv").write_bytes(REFUSED[name][0])
    message = refused(capsys)
    for part in ("table table.csv: ", *REFUSED[name][1]):
        assert part in message


# ---------------------------------------------------------------- IDs that are almost the same

@pytest.mark.parametrize(("name", "other", "difference"), [
    ("0001", "1", "leading zeros"), ("s01", "S01", "case"), ("sub-s01", "s01", "the prefix sub-"),
    ("s01", "s01.nii.gz", "the suffix of a file"), ("s_01", "s-01", "blanks, dashes or underscores"),
    ("037_S_6046", "037S6046", "blanks, dashes or underscores"), ("0012", "12.0", "case, zeros, prefix"),
    ("12", "12.0", "a number with .0"), ("sub-0001", "SUB_1", "case, zeros, prefix or punctuation"),
    ("s01", "s 01", "blanks")])
def test_a_near_name_is_found_and_the_difference_named(name, other, difference):
    for one, two in ((name, other), (other, name)):
        hint = NearNames([two, "other", "another"]).hint(one)
        assert hint.startswith(f"; did you mean {two}? They differ in {difference}")


@pytest.mark.parametrize("others", [["s02", "s10"], ["S01", "sub-s01"], ["s01"], []])
def test_no_name_is_suggested_if_none_or_several_are_near_or_they_are_the_same(others):
    assert NearNames(others).hint("s01") == ""


def test_check_suggests_the_row_and_the_file_that_were_meant(root):
    path = root / "data_info" / "data_info.csv"
    path.write_text(path.read_text().replace("s01,", "S1,"))
    file = root / "data" / "whole_MRI" / "s02.nii.gz"
    file.rename(file.with_name("sub-s02.nii.gz"))
    message = problems(root)
    assert "s01 has no rows" in message and "did you mean S1? They differ in case, zeros" in message
    assert "s02.nii[.gz]: not there; did you mean sub-s02? They differ in the prefix sub-" in message


def test_check_names_a_lack_of_a_label_as_such(root):
    path = root / "data_info" / "data_info.csv"
    path.write_text(path.read_text().replace("s03,0", "s03,n/a"))
    assert "s03 has no label ('n/a'); expected one row with a label in 0 .. 1" in problems(root)


def test_prepare_suggests_the_id_whose_zeros_a_spreadsheet_took(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place(*(f"{i:04d}" for i in range(1, 9)))
    message = refused(capsys, table="ID,label\n" + "".join(f"{i},{i % 2}\n" for i in range(1, 9)))
    assert (
        "0001: not in the table (no row of its ID or subject; did you mean 1? They differ in leading"
        in message
    )


def test_prepare_says_which_subjects_of_a_second_table_are_near_misses(root, capsys):
    Path("people.csv").write_text("ID,age,sex\n" + "".join(f"{s.upper()},70,F\n" for s in SCANS))
    assert prepare("--overwrite", "--demographics", "people.csv", table=table()) == 0
    assert ("demographics people.csv: 10 of its 10 subjects have no scan here, such as S01; is it s01? They "
            "differ in case") in capsys.readouterr().out


def test_prepare_suggests_the_pet_that_an_mri_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place(*SCANS)
    place("sub-x1", folders=["whole_MRI"])
    place("x1", folders=["whole_Abeta"])
    assert prepare(table=table()) == 0
    reason, found = left_out()["x1"]
    assert reason == "no MRI"
    assert found.endswith("x1.nii[.gz]: not there; did you mean sub-x1? They differ in the prefix sub-")
