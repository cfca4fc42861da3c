"""Lists and labels from made-up tables: the whole command, what is refused in which words, and the lists."""
import io
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, arguments, write_cohort
from made_up import amyloid_table
from preparing import SUBJECTS, info, lists, place, prepare, refused

import main
from config import Config
from dataset import SPLITS, check_cohort
from labels.people import read_demographics


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- the whole command

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
    cohort = check_cohort(Path("data"), Path("data_info"), TINY["image_size"], 2, Config().subject_pattern)
    table, problem = read_demographics(Path("data_info"), [scan.id for scan in cohort.scans])
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
    """The lists, the labels, and the table of the cohort."""
    return lists(), info()["label"].to_dict(), Path("data_info/cohort.csv").read_text()


def test_all_scans_of_a_subject_are_in_one_list_and_ratios_and_labels_are_kept():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(150):                                   # visits may differ in label and spelling
        site, number = f"{i % 11:03d}", 2000 + i
        names = [f"{site}_S_{number}_m12", f"{site}S{number}", f"sub-ADNI{site}S{number}_ses-M024"]
        rows += [(name, int(rng.random() < 0.4)) for name in names[:int(rng.integers(1, 4))]]
    place(*(name for name, _ in rows))
    assert prepare("--split_ratios", "60", "20", "20", table=pd.DataFrame(rows, columns=["ID", "label"])) == 0
    members = {split: {info()["subject"][scan] for scan in ids} for split, ids in lists().items()}
    assert sum(map(len, lists().values())) == len(rows)
    assert [len(members[split]) for split in SPLITS] == [90, 30, 30]
    assert len(set.union(*members.values())) == 150
    kinds = info().groupby("subject")["label"].agg(lambda labels: "+".join(sorted(set(labels))))
    for kind, count in kinds.value_counts().items():
        for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
            assert abs((kinds[list(members[split])] == kind).sum() - share * count) < 1


def test_the_cohort_table_counts_what_is_in_the_lists(capsys):
    place(*SUBJECTS)
    ages = pd.DataFrame({"PTID": SUBJECTS, "AGE": np.arange(60, 72), "PTGENDER": 1 + np.arange(12) % 2})
    ages.to_csv("people.csv", index=False)
    assert prepare("--demographics", "people.csv", table=amyloid_table(SUBJECTS, seed=1)) == 0
    cohort, known = pd.read_csv("data_info/cohort.csv").set_index("list"), info()
    for split, ids in lists().items():
        part = known.loc[ids]
        negative = (part["label"] == "0").sum()
        men, women = (part["sex"] == "M").sum(), (part["sex"] == "F").sum()
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
    names = "data_info.csv, train.txt, validation.txt, test.txt, cohort.csv, left_out.csv"
    assert f"data_info: {names} there already; --overwrite" in message
    assert prepare("--overwrite") == 0
    assert "old" not in {Path("data_info", name).read_text() for name in ("train.txt", "cohort.csv")}
    assert Path("data_info/README.md").read_text() == "mine"
    assert not list(Path("data_info").glob(".*"))
    assert prepare("--info_dir", "other") == 0
    assert Path("other/train.txt").read_text() == Path("data_info/train.txt").read_text()


# ---------------------------------------------------------------- what cannot work

@pytest.mark.parametrize(("argv", "expected"), [
    ([], "prepare needs --table FILE.csv"),
    (["--table", "a.csv", "--preset", "demo"], "unknown setting --preset"),
    (["--table", "a.csv", "--grey_zone", "30", "10"], "grey_zone (30.0, 10.0) must begin below its end"),
    (["--table", "a.csv", "--label_from", "centiloids", "--grey_zone", "30", "40"],
     "must hold the centiloid_cutoff 20.0"),
    (["--table", "a.csv", "--label_from", "centiloids", "--label_column", "x"], "without label_column"),
    (["--table", "a.csv", "--split_ratios", "1", "0", "0"], "split_ratios 0.0 must be at least"),
    (["--table", "a.csv", "--subject_pattern", "("], "subject_pattern '(' is not a regular expression"),
    (["--table", "a.csv", "--subject_pattern", "s1"], "subject_pattern 's1' has no group for the subject")])
def test_settings_that_do_not_go_together_are_refused(capsys, argv, expected):
    with pytest.raises(SystemExit) as stop:
        main.main(["prepare", *argv])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_all_wrong_settings_are_told_at_once(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["prepare", "--window_days", "-1", "--label_from", "suvr"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    for part in ("error: 3 problem(s)", "window_days -1", "label_from 'suvr'", "prepare needs --table"):
        assert part in message
    with pytest.raises(SystemExit):
        main.main(["prepare", "--grey_zone", "30", "10", "--subject_pattern", "(",
                   "--label_from", "centiloids", "--label_column", "x"])
    message = capsys.readouterr().err
    for part in ("error: 4 problem(s)", "grey_zone", "subject_pattern", "label_from", "needs --table"):
        assert part in message


def test_too_few_subjects_are_refused_with_examples_of_what_was_left_out(capsys):
    place("a1", "a2", "a3")
    message = refused(capsys, table="ID,label\na1,0\na2,1\n")
    assert "too few subjects for 3 lists get a label; left out, for example:\n  a3: not in" in message


def test_a_training_list_that_lacks_a_label_is_refused(capsys):
    scans = [f"a{i}" for i in range(1, 6)]
    place(*scans)
    message = refused(capsys, table="ID,label\n" + "".join(f"{scan},1\n" for scan in scans))
    assert "not all of the 2 labels occur in the training list, but only 1;" in message
    one_negative = "ID,label\n" + "".join(f"{scan},{int(scan != 'a1')}\n" for scan in scans)
    message = refused(capsys, "--split_ratios", "0.2", "0.4", "0.4", table=one_negative)
    assert "take the lists from more scans, or give it a larger share by --split_ratios" in message
    assert prepare(table=one_negative) == 0                # with a larger share, as the message says


def test_a_list_that_does_not_fill_a_step_is_refused_by_the_check(project, capsys):
    scans = ["a1", "a2", "a3", "a4"]
    write_cohort(project, {"train": scans})
    for path in (project / "data_info").iterdir():
        path.unlink()
    assert prepare(table="ID,label\n" + "".join(f"{scan},{i % 2}\n" for i, scan in enumerate(scans))) == 0
    assert [len(names) for names in lists().values()] == [2, 1, 1]
    capsys.readouterr()
    assert main.main(["--stages", "check", *arguments(TINY), "--ldm_batch_size", "3"]) == 2
    assert "2 usable subjects do not fill the 3 of one step" in capsys.readouterr().err


def test_folders_without_scans_are_refused(capsys):
    message = refused(capsys, table="ID,label\na1,0\n")
    assert "data/whole_MRI: not there; expected the volumes <ID>.nii" in message
    place()
    assert "no ID has both an MRI (0 files in whole_MRI)" in refused(capsys, table="ID,label\na1,0\n")


def test_a_folder_in_the_place_of_a_list_is_refused(capsys):
    place(*SUBJECTS)
    Path("data_info/test.txt").mkdir(parents=True)
    amyloid_table(SUBJECTS, seed=1).to_csv("table.csv", index=False)
    assert "data_info/test.txt: is a folder; move it away" in refused(capsys, "--overwrite")


def test_a_table_of_other_subjects_says_so_and_changes_nothing(capsys):
    place("a1", "a2", "a3")
    assert prepare() == 2                                  # there is no such file
    amyloid_table(SUBJECTS, seed=1).to_csv("table.csv", index=False)
    capsys.readouterr()
    assert prepare() == 2
    shown = capsys.readouterr()
    assert "12 of its 12 subjects have no scan here" in shown.out
    assert "3 not in the table: a1, a2, a3" in shown.out
    assert "too few subjects for 3 lists get a label" in shown.err
    assert not Path("data_info").exists()


def test_made_up_tables_are_of_the_asked_subjects_and_repeat_themselves():
    table = amyloid_table(SUBJECTS, seed=5)
    assert set(table["PTID"]) == set(SUBJECTS)
    pd.testing.assert_frame_equal(table, amyloid_table(SUBJECTS, seed=5))
    assert pd.read_csv(io.StringIO(table.to_csv(index=False)))["AMYLOID_STATUS"].nunique() == 2


# ---------------------------------------------------------------- what is not known

# Columns beside ID and label, by the number of a scan -> columns of which something is said to be unknown.
UNKNOWN = {
    "one age": ({"age": lambda i: "n/a" if i == 3 else f"{60 + i}"}, {"age": 1}),
    "every other age": ({"age": lambda i: "" if i % 2 else f"{60 + i}"}, {"age": 12}),
    "one age known": ({"age": lambda i: "71" if i == 3 else "NA"}, {"age": 23}),
    "one age, all others alike": ({"age": lambda i: "." if i == 3 else "70"}, {"age": 1}),
    "all ages": ({"age": lambda i: "unknown"}, {"age": 24}),
    "two ages": ({"age": lambda i: ["60", "80"][i % 3 == 0]}, {}),
    "one sex, one unknown": ({"sex": lambda i: "n/a" if i == 3 else "F"}, {"sex": 1}),
    "all sexes": ({"sex": lambda i: "-4"}, {"sex": 24}),
    "some of each": (
        {
            "age": lambda i: "" if i % 5 == 0 else f"{60 + i}",
            "sex": lambda i: ["F", "M", ""][i % 3],
            "site": lambda i: ["A", "B", "n/a"][i % 3],
            "tracer": lambda i: ["FBP", ""][i % 4 == 0],
        },
        {"age": 5, "sex": 8, "site": 8, "tracer": 6},
    ),
    "one site, some unknown": ({"site": lambda i: ["A", ""][i % 3 == 0]}, {"site": 8}),
    "one tracer, some unknown": ({"TRACER": lambda i: ["FBP", "null"][i % 3 == 0]}, {"tracer": 8}),
    "no site anywhere": ({"site": lambda i: ""}, {}),
    "nothing else": ({}, {}),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_said_counted_and_shared_out_as_a_level_of_its_own(capsys, name):
    columns, unknown = UNKNOWN[name]
    scans = [f"c{i:02d}" for i in range(24)]
    place(*scans)
    lines = [",".join(["ID", "label", *columns])]
    for i, scan in enumerate(scans):
        lines.append(",".join([scan, str(i // 12), *(of(i) for of in columns.values())]))
    assert prepare("--split_ratios", "0.5", "0.25", "0.25", table="\n".join(lines) + "\n") == 0
    shown, found = capsys.readouterr().out, info()
    cohort = pd.read_csv("data_info/cohort.csv").set_index("list")
    for column, number in unknown.items():
        assert f"{column} unknown: c" in shown
        assert (found[column] == "").sum() == number
        if number < len(scans):
            assert cohort.loc["all", f"{column} unknown"] == number
        for split, ids in lists().items():
            share = len(ids) / len(scans) * number
            assert abs((found.loc[ids, column] == "").sum() - share) <= 1.5, (split, column)
    assert [column for column in ("age", "sex", "site", "tracer") if f"{column} unknown: " in shown] == list(
        unknown
    )


# ---------------------------------------------------------------- what preprocess found

SCANS = [f"c{i:02d}" for i in range(24)]


def found_by_preprocess(columns: str, of=lambda i: "", count: int = 24) -> None:
    """scans.csv with a row for each of the first scans."""
    Path("data/preprocess").mkdir(parents=True, exist_ok=True)
    rows = [f"{scan},{of(i)}" for i, scan in enumerate(SCANS[:count])]
    Path("data/preprocess/scans.csv").write_text("\n".join([f"ID,{columns}", *rows]) + "\n")


def labels_with(columns: str = "", of=lambda i: "") -> str:
    """A table of labels with these columns."""
    header = ",".join(filter(None, ("ID,label", columns)))
    rows = [",".join(filter(None, (f"{scan},{i // 12}", of(i)))) for i, scan in enumerate(SCANS)]
    return "\n".join([header, *rows]) + "\n"


SPLIT = ("--split_ratios", "0.5", "0.25", "0.25")


def test_scans_csv_takes_no_column_that_the_table_has(capsys):
    place(*SCANS)
    found_by_preprocess("age,sex", lambda i: "40,F", count=5)
    assert prepare(*SPLIT, table=labels_with("age,sex", lambda i: f"{60 + i},{'MF'[i % 2]}")) == 0
    assert info().loc["c02", ["age", "sex"]].tolist() == ["62.0", "M"]
    assert (info()["age"] != "").all() and "which preprocess wrote" not in capsys.readouterr().out


@pytest.mark.parametrize("own, found", [("age", "sex"), ("sex", "age")])
def test_scans_csv_fills_the_column_that_the_table_lacks(capsys, own, found):
    place(*SCANS)
    values = {"age": "61", "sex": "M"}
    found_by_preprocess("age,sex", lambda i: "40,F")
    assert prepare(*SPLIT, table=labels_with(own, lambda i: values[own])) == 0
    expected = {"age": "40.0", "sex": "F"} | {own: {"age": "61.0", "sex": "M"}[own]}
    assert info().loc["c07", ["age", "sex"]].to_dict() == expected
    assert f"{found} from data/preprocess/scans.csv" in capsys.readouterr().out


def test_demographics_come_before_scans_csv_and_it_before_nothing(capsys):
    place(*SCANS)
    found_by_preprocess("age,sex", lambda i: "40,F")
    Path("people.csv").write_text("ID,age\n" + "".join(f"{scan},66\n" for scan in SCANS))
    assert prepare(*SPLIT, "--demographics", "people.csv", table=labels_with()) == 0
    assert info().loc["c07", ["age", "sex"]].tolist() == ["66.0", "F"]


def test_a_tracer_has_one_name_whether_the_table_or_scans_csv_says_it(capsys):
    place(*SCANS)
    found_by_preprocess("tracer", lambda i: "18FAV45" if i % 3 else "18FFBB")
    names = {0: "FBP", 1: "", 2: "Florbetapir", 3: "AV45", 4: "FBP", 5: ""}
    assert prepare(*SPLIT, table=labels_with("TRACER", lambda i: names[i % 6] or " ")) == 0
    said = capsys.readouterr().out
    assert set(info()["tracer"]) == {"FBP"} and "tracer unknown" not in said
    assert "the tracers FBP, AV45, FLORBETAPIR are one and written as FBP" in said
    assert "tracer from data/preprocess/scans.csv" in said
    assert "AV45" not in Path("data_info/cohort.csv").read_text()


def test_a_tracer_that_only_scans_csv_knows_has_its_label_and_unused_ones_are_not_told(capsys):
    place(*SCANS)
    found_by_preprocess("tracer", lambda i: "18FFBB")
    assert prepare(*SPLIT, table=labels_with("TRACER", lambda i: "FBP" if i else " ")) == 0
    assert info()["tracer"].value_counts().to_dict() == {"FBP": 23, "18FFBB": 1}
    assert prepare(*SPLIT, "--overwrite", table=labels_with("TRACER", lambda i: "FBP")) == 0
    assert capsys.readouterr().out.count("tracer from data/preprocess/scans.csv") == 1


@pytest.mark.parametrize("asked", ["FBP", "av45", "18FAV45", "florbetapir"])
def test_a_tracer_is_kept_by_any_of_its_names(asked):
    place(*SCANS)
    table = labels_with("TRACER", lambda i: ["FBP", "FBB"][i % 4 == 0])
    assert prepare("--split_ratios", "0.5", "0.25", "0.25", "--tracer", asked, table=table) == 0
    assert info()["tracer"].tolist() == ["FBP"] * 18
