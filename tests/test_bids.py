"""A BIDS dataset understood by names, sidecars and tables alone: all images here are empty files."""
import json
import os
from datetime import date
from pathlib import Path

import pytest

from cohort.bids import read_dataset
from cohort.bids_files import is_dataset
from cohort.bids_report import Dataset, refuse_inside, refuse_inside_source, say_found, write_found
from cohort.raw_scans import Choices, find_plain, refuse_mixed_levels
from utils import InputError

MNI = "space-MNI152NLin2009cAsym"
AV45 = "trc-18FAV45_pet"


def place_of(root: Path, name: str, suffix: str = ".nii.gz") -> Path:
    """Where the file of a name lies in a dataset; its folders are made."""
    parts = name.split("_")
    session = [parts[1]] if parts[1].startswith("ses-") else []
    folder = root.joinpath(parts[0], *session, "pet" if name.endswith("_pet") else "anat")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}{suffix}"


def tree(root: Path, *names: str, sidecars: dict | None = None) -> Path:
    """A dataset of empty images. sidecars: name -> content of those that have one."""
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text("{}")
    for name in names:
        place_of(root, name).touch()
    for name, content in (sidecars or {}).items():
        place_of(root, name, ".json").write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def taken(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """ID -> names of T1 and PET, without the ID and .nii.gz where they begin and end with them."""
    found = {}
    for scan in dataset.scans:
        names = [path.name.removesuffix(".nii.gz") if path else "" for path in (scan.mri, scan.pet)]
        found[scan.id] = tuple(name.removeprefix(f"{scan.id}_") for name in names)
    return found


def reasons(dataset: Dataset) -> dict[str, str]:
    """ID -> reason why it is left out."""
    return {row["ID"]: row["reason"] for row in dataset.left_out}


# ---------------------------------------------------------------- pairs

PAIRS = {
    "within a session": (
        ("sub-01_ses-1_T1w", "sub-01_ses-1_" + AV45), {"sub-01_ses-1": ("T1w", AV45)}),
    "without sessions": (
        ("sub-01_T1w", "sub-01_" + AV45), {"sub-01": ("T1w", AV45)}),
    "whatever other entities say": (
        ("sub-01_ses-1_acq-mprage_rec-norm_run-01_T1w", "sub-01_ses-1_trc-11CPIB_rec-acdyn_run-2_pet"),
        {"sub-01_ses-1": ("acq-mprage_rec-norm_run-01_T1w", "trc-11CPIB_rec-acdyn_run-2_pet")}),
    "the only ones of a subject": (
        ("sub-01_ses-1_T1w", "sub-01_ses-2_" + AV45), {"sub-01_ses-2": ("sub-01_ses-1_T1w", AV45)}),
    "one T1 of all sessions": (
        ("sub-01_T1w", "sub-01_ses-1_" + AV45, "sub-01_ses-2_" + AV45),
        {"sub-01_ses-1": ("sub-01_T1w", AV45), "sub-01_ses-2": ("sub-01_T1w", AV45)}),
    "other tracers beside it": (
        ("sub-01_ses-1_T1w", "sub-01_ses-1_" + AV45, "sub-01_ses-1_trc-18FFDG_pet",
         "sub-01_ses-1_trc-18FAV1451_pet"),
        {"sub-01_ses-1": ("T1w", AV45)}),
    "MNI space together": (
        (f"sub-01_ses-1_{MNI}_desc-preproc_T1w", "sub-01_ses-1_T1w", f"sub-01_ses-1_trc-18FAV45_{MNI}_pet"),
        {"sub-01_ses-1": (f"{MNI}_desc-preproc_T1w", f"trc-18FAV45_{MNI}_pet")}),
    "native together where the PET is": (
        (f"sub-01_ses-1_{MNI}_desc-preproc_T1w", "sub-01_ses-1_desc-preproc_T1w", "sub-01_ses-1_" + AV45),
        {"sub-01_ses-1": ("desc-preproc_T1w", AV45)}),
    "our own template's space first": (
        ("sub-01_space-MNI152NLin6Asym_T1w", "sub-01_space-MNI152NLin2009aSym_T1w",
         "sub-01_trc-18FAV45_space-MNI152NLin6Asym_pet", "sub-01_trc-18FAV45_space-MNI152NLin2009aSym_pet"),
        {"sub-01": ("space-MNI152NLin2009aSym_T1w", "trc-18FAV45_space-MNI152NLin2009aSym_pet")}),
    "the finest of several grids": (
        (f"sub-01_{MNI}_res-2_desc-preproc_T1w", f"sub-01_{MNI}_res-1_desc-preproc_T1w"),
        {"sub-01": (f"{MNI}_res-1_desc-preproc_T1w", "")}),
    "MNI space where the scanner's has two runs": (
        (f"sub-01_{MNI}_T1w", "sub-01_run-1_T1w", "sub-01_run-2_T1w"), {"sub-01": (f"{MNI}_T1w", "")}),
    "known copies in the scanner's space": (
        ("sub-01_T1w", "sub-01_desc-preproc_T1w", "sub-01_desc-preproc_trc-18FAV45_pet", "sub-01_" + AV45),
        {"sub-01": ("desc-preproc_T1w", "desc-preproc_trc-18FAV45_pet")}),
    "never a synthetic PET of ours": (
        ("sub-01_T1w", "sub-01_" + AV45, "sub-01_trc-18FAV45_desc-ilcldmSynthetic_pet",
         "sub-01_trc-18FAV45_desc-ilcldmSyntheticSD_pet"),
        {"sub-01": ("T1w", AV45)}),
    "T1 MRIs alone where only synthetic PETs of ours are": (
        ("sub-01_T1w", "sub-01_trc-18FAV45_desc-ilcldmSynthetic_pet"), {"sub-01": ("T1w", "")}),
    "T1 MRIs alone where only FDG is": (
        ("sub-01_T1w", "sub-01_trc-18FFDG_pet"), {"sub-01": ("T1w", "")}),
    "T1 MRIs alone where no PET is": (
        ("sub-01_ses-1_T1w", "sub-02_ses-1_T1w"), {"sub-01_ses-1": ("T1w", ""), "sub-02_ses-1": ("T1w", "")}),
}


@pytest.mark.parametrize("names, expected", PAIRS.values(), ids=PAIRS)
def test_t1_and_pet_are_paired(tmp_path, names, expected):
    dataset = read_dataset(tree(tmp_path / "raw", *names), Choices())
    assert taken(dataset) == expected and not dataset.ambiguous


LEFT_OUT = {
    "a T1 alone": (("sub-02_ses-1_T1w",), {"sub-02_ses-1": "no amyloid PET"}),
    "a PET alone": (("sub-02_ses-1_" + AV45,), {"sub-02_ses-1": "no T1"}),
    "another tracer alone": (("sub-02_ses-1_T1w", "sub-02_ses-1_trc-18FFDG_pet"),
                            {"sub-02_ses-1": "no amyloid PET"}),
    "no dates to choose by": (("sub-02_ses-1_T1w", "sub-02_ses-2_T1w", "sub-02_ses-3_" + AV45),
                              {"sub-02_ses-3": "no T1 in its session", "sub-02_ses-1": "no amyloid PET",
                               "sub-02_ses-2": "no amyloid PET"}),
    "different spaces": (("sub-02_ses-1_T1w", f"sub-02_ses-1_trc-18FAV45_{MNI}_pet"),
                         {"sub-02_ses-1": "T1 and PET in different spaces"}),
    "another space": (("sub-02_ses-1_space-MNIPediatricAsym_T1w", "sub-02_ses-1_" + AV45),
                      {"sub-02_ses-1": "T1 and PET in different spaces"}),
    "its own T1 in another space, another session's in this": (
        (f"sub-02_ses-1_{MNI}_T1w", "sub-02_ses-2_T1w", "sub-02_ses-1_" + AV45),
        {"sub-02_ses-1": "T1 and PET in different spaces", "sub-02_ses-2": "no amyloid PET"}),
    "its own T1 in an unused space, another session's in this": (
        ("sub-02_ses-1_space-MNIPediatricAsym_T1w", "sub-02_ses-2_T1w", "sub-02_ses-1_" + AV45),
        {"sub-02_ses-1": "T1 and PET in different spaces", "sub-02_ses-2": "no amyloid PET"}),
    "several T1 runs and FDG": (
        ("sub-02_ses-1_run-1_T1w", "sub-02_ses-1_run-2_T1w", "sub-02_ses-1_trc-18FFDG_pet"),
        {"sub-02_ses-1": "no amyloid PET"}),
    "several T1 runs without PET": (
        ("sub-02_ses-1_run-1_T1w", "sub-02_ses-1_run-2_T1w"), {"sub-02_ses-1": "no amyloid PET"}),
    "several PETs without T1": (
        ("sub-02_ses-1_trc-18FAV45_run-1_pet", "sub-02_ses-1_trc-18FAV45_run-2_pet"),
        {"sub-02_ses-1": "no T1"}),
    "a synthetic PET of ours": (
        ("sub-02_ses-1_T1w", "sub-02_ses-1_trc-18FAV45_desc-ilcldmSynthetic_pet"),
        {"sub-02_ses-1": "no amyloid PET"}),
    "an unknown tracer": (("sub-02_ses-1_T1w", "sub-02_ses-1_trc-XYZ12_pet"),
                          {"sub-02_ses-1": "tracer unknown"}),
    "no tracer": (("sub-02_ses-1_T1w", "sub-02_ses-1_pet"), {"sub-02_ses-1": "tracer unknown"}),
}


@pytest.mark.parametrize("names, expected", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_left_out_has_one_reason_and_others_go_on(tmp_path, names, expected):
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", "sub-01_ses-1_" + AV45, *names)
    dataset = read_dataset(root, Choices())
    assert list(taken(dataset)) == ["sub-01_ses-1"] and not dataset.ambiguous
    assert reasons(dataset) == expected


def test_other_tracers_are_counted_in_the_table(tmp_path):
    names = [f"sub-01_ses-1_trc-{trc}_pet" for trc in ("18FAV45", "18FFDG", "18FAV1451")]
    dataset = read_dataset(tree(tmp_path / "raw", "sub-01_ses-1_T1w", *names), Choices())
    rows = [tuple(line.rsplit(maxsplit=1)) for line in dataset.table().splitlines()]
    assert [(name.strip(), number) for name, number in rows] == [
        ("subjects", "1"), ("sessions", "1"), ("with T1", "1"), ("with amyloid PET", "1"),
        ("PETs with sidecar", "0"), ("taken", "1"), ("with 18FAV45", "1"), ("ignored PET 18FAV1451", "1"),
        ("ignored PET 18FFDG", "1"), ("left out", "0")]


# ---------------------------------------------------------------- choices

SEVERAL = ("sub-01_ses-1_run-01_T1w", "sub-01_ses-1_run-02_T1w", "sub-01_ses-1_trc-18FAV45_rec-acstat_pet",
           "sub-01_ses-1_trc-18FAV45_rec-nacstat_pet")


def test_several_files_are_refused_by_name_with_what_chooses(tmp_path, capsys):
    dataset = read_dataset(tree(tmp_path / "raw", *SEVERAL), Choices())
    with pytest.raises(InputError) as caught:
        say_found(dataset)
    told = str(caught.value)
    for words in (*SEVERAL, "--bids_run N", "--bids_choose rec-acstat"):
        assert words in told


@pytest.mark.parametrize("run, entities, t1, pet", [
    (2, ("rec-acstat",), SEVERAL[1], SEVERAL[2]), (1, ("rec-nacstat",), SEVERAL[0], SEVERAL[3]),
    (0, ("run-02", "rec-acstat"), SEVERAL[1], SEVERAL[2])])
def test_run_and_entities_choose(tmp_path, run, entities, t1, pet):
    [scan] = read_dataset(tree(tmp_path / "raw", *SEVERAL), Choices(run, entities)).scans
    assert (scan.mri.name, scan.pet.name) == (f"{t1}.nii.gz", f"{pet}.nii.gz")


def test_a_run_that_a_visit_lacks_leaves_it_out_for_others_to_go_on(tmp_path):
    names = ("sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-02_run-2_T1w", "sub-02_run-3_T1w")
    dataset = read_dataset(tree(tmp_path / "raw", *names), Choices(run=1))
    assert taken(dataset) == {"sub-01": ("run-1_T1w", "")} and not dataset.ambiguous
    assert reasons(dataset) == {"sub-02": "no run 1"}


def test_two_amyloid_tracers_of_a_visit_are_chosen_by_name(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_trc-18FAV45_pet", "sub-01_trc-11CPIB_pet")
    assert "--bids_choose trc-11CPIB" in read_dataset(root, Choices()).ambiguous[0]
    [scan] = read_dataset(root, Choices(entities=("trc-11CPIB",))).scans
    assert scan.tracer.label == "11CPIB" and scan.tracer.window == (50, 70)


def test_a_dataset_of_unknown_tracers_asks_for_the_tracer(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_pet")
    with pytest.raises(InputError, match="--tracer NAME"):
        say_found(read_dataset(root, Choices()))
    [scan] = read_dataset(root, Choices(tracer="FBB")).scans
    assert scan.tracer.label == "18FFBB"
    [scan] = read_dataset(root, Choices(mri_only=True)).scans
    assert scan.pet is None


DESCS = ("sub-01_T1w", "sub-01_trc-18FAV45_desc-dynamic_pet", "sub-01_trc-18FAV45_desc-static_pet")


@pytest.mark.parametrize("names, wanted", [
    (DESCS, "desc-static"), ((*DESCS[:2], "sub-01_" + AV45), "desc-dynamic"),
    ((*DESCS[:2], "sub-01_trc-18FAV45_desc-preproc_pet"), "desc-preproc"),
    (("sub-01_desc-a_T1w", "sub-01_desc-b_T1w"), "desc-b"),
    ((f"sub-01_{MNI}_desc-a_T1w", f"sub-01_{MNI}_desc-b_T1w"), "desc-a")])
def test_images_of_an_unknown_desc_are_no_copies_and_chosen_by_the_user(tmp_path, names, wanted):
    root = tree(tmp_path / "raw", *names)
    [told] = read_dataset(root, Choices()).ambiguous
    assert all(name in told for name in names if "desc" in name) and "--bids_choose desc-" in told
    dataset = read_dataset(root, Choices(entities=(wanted,)))
    assert wanted in str(taken(dataset)["sub-01"]) and not dataset.remarks


@pytest.mark.parametrize("wanted, found", [((), "res-2_desc-preproc"), (("res-1",), "res-1_T1w")])
def test_choices_come_before_copies_are_merged(tmp_path, wanted, found):
    root = tree(tmp_path / "raw", f"sub-01_{MNI}_res-1_T1w", f"sub-01_{MNI}_res-2_T1w",
                f"sub-01_{MNI}_res-2_desc-preproc_T1w")
    assert found in read_dataset(root, Choices(entities=wanted)).scans[0].mri.name


@pytest.mark.parametrize("space", ["", f"{MNI}_"])
def test_a_remark_says_which_of_several_copies_is_taken(tmp_path, space):
    root = tree(tmp_path / "raw", *(f"sub-0{n}_{space}{name}" for n in (1, 2)
                                    for name in ("T1w", "desc-preproc_T1w")))
    [remark] = read_dataset(root, Choices()).remarks
    assert f"*_{space}desc-preproc_T1w.nii.gz is taken (2 visits)" in remark


def test_synthetic_pets_of_ours_are_counted(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_trc-18FAV45_desc-ilcldmSynthetic_pet")
    assert read_dataset(root, Choices()).ignored == {"synthetic pet of this program": 1}


# ---------------------------------------------------------------- PETs that cannot be used

def broken(root: Path, name: str) -> None:
    """Make an image a link that leads nowhere."""
    path = place_of(root, name)
    path.unlink(missing_ok=True)
    path.symlink_to(root / ".git/annex/objects/gone")


@pytest.mark.parametrize("name, choices, words", [
    ("sub-01_" + AV45, Choices(), "sub-01: broken link"),
    ("sub-01_pet", Choices(), "sub-01: broken link"),
    ("sub-01_trc-18FAV45_space-fsaverage_pet", Choices(), "none of its amyloid PETs can be used"),
])
def test_t1s_are_not_taken_alone_where_pets_cannot_be_used(tmp_path, name, choices, words):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-02_T1w", name)
    if "fsaverage" not in name:
        broken(root, name)
    dataset = read_dataset(root, choices)
    assert not dataset.scans
    with pytest.raises(InputError, match="none of its amyloid PETs can be used; --mri_only") as caught:
        say_found(dataset)
    assert words in str(caught.value) and "sub-02" not in str(caught.value)
    assert list(taken(read_dataset(root, Choices(mri_only=True)))) == ["sub-01", "sub-02"]


def test_t1s_are_not_taken_alone_where_no_pet_has_the_run_or_the_folder_is_broken(tmp_path):
    root = tree(
        tmp_path / "raw", "sub-01_T1w", "sub-01_trc-18FAV45_run-1_pet", "sub-01_trc-18FAV45_run-2_pet"
    )
    dataset = read_dataset(root, Choices(run=3))
    assert not dataset.scans and reasons(dataset) == {"sub-01": "no run 3"}
    root = tree(tmp_path / "other", "sub-01_T1w")
    (root / "sub-01/pet").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="none of its amyloid PETs"):
        say_found(read_dataset(root, Choices()))


def test_a_broken_link_of_another_tracer_is_no_amyloid_pet(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_trc-18FFDG_pet")
    broken(root, "sub-01_trc-18FFDG_pet")
    dataset = read_dataset(root, Choices())
    assert taken(dataset) == {"sub-01": ("T1w", "")} and not dataset.left_out


def test_the_reason_does_not_hang_on_the_path(tmp_path):
    root = tree(tmp_path / "datalad", "sub-01_T1w", "sub-01_" + AV45)
    place_of(root, "sub-02_T1w").mkdir()
    (root / "sub-01/anat/sub-03_T1w.nii.gz").touch()
    assert set(reasons(read_dataset(root, Choices())).values()) == {"file cannot be used"}


@pytest.mark.parametrize("what", ["link", "folder"])
def test_the_pet_of_a_visit_whose_own_t1_is_broken_takes_no_other(tmp_path, what):
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", "sub-01_ses-2_" + AV45)
    if what == "link":
        broken(root, "sub-01_ses-2_T1w")
    else:
        (root / "sub-01/ses-2/anat").symlink_to(tmp_path / "gone")
    dataset = read_dataset(root, Choices())
    assert not dataset.scans and reasons(dataset)["sub-01_ses-2"] == "broken link"


def test_the_pet_of_a_visit_whose_own_t1_lacks_the_run_takes_no_other(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", "sub-01_ses-2_run-1_T1w", "sub-01_ses-2_run-2_T1w",
                "sub-01_ses-2_" + AV45)
    dataset = read_dataset(root, Choices(run=3))
    assert not dataset.scans and reasons(dataset)["sub-01_ses-2"] == "no run 3"


# ---------------------------------------------------------------- dates, ages, sexes

def with_dates(root: Path, days: dict[str, str], column: str = "acq_time") -> None:
    """Write sessions.tsv of sub-01. days: session -> time."""
    rows = [f"ses-{session}\t{day}" for session, day in days.items()]
    (root / "sub-01/sub-01_sessions.tsv").write_text("\n".join([f"session_id\t{column}", *rows]) + "\n")


def test_the_t1_nearest_in_date_is_taken_within_the_window(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-01_ses-3_" + AV45)
    with_dates(root, {"1": "2012-01-01T10:00:00", "2": "2013-01-01", "3": "2013-02-10T00:00:00.5"})
    [scan] = read_dataset(root, Choices()).scans
    assert scan.id == "sub-01_ses-3" and "ses-2" in scan.mri.name and scan.days == 40
    assert scan.scanned == date(2013, 2, 10) and "40 days away" in scan.note
    dataset = read_dataset(root, Choices(window_days=39))
    assert not dataset.scans and reasons(dataset)["sub-01_ses-3"] == "no T1 near its date"


def test_an_interval_within_a_session_is_recorded_with_its_sign(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", "sub-01_ses-1_" + AV45)
    (root / "sub-01/ses-1/sub-01_ses-1_scans.tsv").write_text(
        "filename\tacq_time\nanat/sub-01_ses-1_T1w.nii.gz\t2012-05-20\n"
        f"pet/sub-01_ses-1_{AV45}.nii.gz\t2012-05-01\n")
    [scan] = read_dataset(root, Choices()).scans
    assert scan.days == -19 and scan.scanned == date(2012, 5, 1) and not scan.note
    [scan] = read_dataset(root, Choices(window_days=10)).scans
    assert "19 days apart" in scan.note


@pytest.mark.parametrize("t1_day, note", [("2012-05-11", "T1 without session, 10 days away"), ("n/a", "")])
def test_a_t1_without_session_is_taken_within_the_window(tmp_path, t1_day, note):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_ses-1_" + AV45)
    (root / "sub-01/sub-01_scans.tsv").write_text(
        f"filename\tacq_time\nanat/sub-01_T1w.nii.gz\t{t1_day}\n"
        f"ses-1/pet/sub-01_ses-1_{AV45}.nii.gz\t2012-05-01\n")
    assert read_dataset(root, Choices()).scans[0].note == note
    dataset = read_dataset(root, Choices(window_days=9))
    assert reasons(dataset) == ({"sub-01_ses-1": "no T1 near its date", "sub-01": "no amyloid PET"}
                                if note else {})


def test_a_t1_of_a_session_that_is_near_comes_before_one_without_session_that_is_not(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_ses-1_T1w", "sub-01_ses-2_" + AV45)
    with_dates(root, {"1": "2012-01-01", "2": "2012-02-10"})
    (root / "sub-01/sub-01_scans.tsv").write_text("filename\tacq_time\nanat/sub-01_T1w.nii.gz\t2004-01-01\n")
    [scan] = read_dataset(root, Choices()).scans
    assert scan.note == "T1 of ses-1, 40 days away" and scan.days == 40


def test_shifted_dates_give_intervals_but_are_not_handed_on(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-01_ses-3_" + AV45)
    with_dates(root, {"1": "1890-01-01", "2": "1891-01-01", "3": "1891-01-08"})
    dataset = read_dataset(root, Choices())
    assert dataset.scans[0].days == 7 and dataset.scans[0].scanned is None
    assert any("shifted" in remark for remark in dataset.remarks)


def test_dates_in_other_forms_are_remarked_and_unknown(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", "sub-01_ses-1_" + AV45)
    with_dates(root, {"1": "03/02/2012"})
    dataset = read_dataset(root, Choices())
    assert dataset.scans[0].scanned is None and "03/02/2012" in " ".join(dataset.remarks)


@pytest.mark.parametrize("people, age, sex", [
    ("participant_id\tage\tsex\nsub-01\t71.5\tF\n", 71.5, "F"),
    ("participant_id\tage\tgender\n01\t71\tmale\n", 71, "M"),
    ("participant_id,age,sex\nsub-01,71,female\n", 71, "F"),                 # as a spreadsheet saves it
    ("﻿participant_id;Age;Sex\r\nsub-01;90+;m\r\n", 90, "M"),
    ("participant_id\tage\tsex\nsub-01\tn/a\tn/a\n", None, ""),
    ("participant_id\tage\n", None, ""),
    ("", None, ""),
])
def test_age_and_sex_come_from_participants(tmp_path, people, age, sex):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    (root / "participants.tsv").write_text(people, encoding="utf-8")
    [scan] = read_dataset(root, Choices()).scans
    assert (scan.age, scan.sex) == (age, sex)


def test_the_age_of_participants_is_that_of_the_first_visit(tmp_path):
    root = tree(tmp_path / "raw", *(f"sub-01_ses-{n}_{name}" for n in (1, 2) for name in ("T1w", AV45)))
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t70\n")
    assert [scan.age for scan in read_dataset(root, Choices()).scans] == [None, None]
    with_dates(root, {"1": "2012-01-01", "2": "2014-01-01"})
    assert [scan.age for scan in read_dataset(root, Choices()).scans] == [70.0, 72.0]


def test_what_is_known_is_written_for_prepare_and_earlier_scans_are_kept(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    write_found(tmp_path, read_dataset(root, Choices()).scans, [])
    assert (tmp_path / "scans.csv").read_text() == "ID,tracer\nsub-01,18FAV45\n"
    other = tree(tmp_path / "other", "sub-02_T1w", "sub-02_trc-18FFBB_pet")
    write_found(tmp_path, read_dataset(other, Choices()).scans, [])
    lines = (tmp_path / "scans.csv").read_text().splitlines()
    assert lines == ["ID,tracer", "sub-02,18FFBB", "sub-01,18FAV45"]


def test_a_later_run_keeps_what_it_does_not_know_and_corrects_what_it_does(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45, "sub-02_T1w", "sub-02_" + AV45)
    people = root / "participants.tsv"
    people.write_text("participant_id\tage\tsex\nsub-01\t71.5\t1\nsub-02\t80\tF\n")
    (root / "sub-01/sub-01_scans.tsv").write_text(
        f"filename\tacq_time\npet/sub-01_{AV45}.nii.gz\t2012-05-01\n"
    )
    write_found(tmp_path, read_dataset(root, Choices()).scans, [])
    full = ["ID,date,age,sex,tracer", "sub-01,2012-05-01,71.5,1,18FAV45", "sub-02,,80.0,F,18FAV45"]
    assert (tmp_path / "scans.csv").read_text().splitlines() == full
    people.unlink()
    (root / "sub-01/sub-01_scans.tsv").unlink()
    for choices in (Choices(), Choices(mri_only=True)):
        write_found(tmp_path, read_dataset(root, choices).scans, [])
        assert (tmp_path / "scans.csv").read_text().splitlines() == full
    people.write_text("participant_id\tage\nsub-02\t81\n")
    write_found(tmp_path, read_dataset(root, Choices()).scans, [])
    full[2] = "sub-02,,81.0,F,18FAV45"
    assert (tmp_path / "scans.csv").read_text().splitlines() == full


# ---------------------------------------------------------------- sidecars

def test_sidecars_are_inherited_key_by_key_and_the_nearest_wins(tmp_path):
    name = "sub-01_ses-1_trc-18FAV45_pet"
    root = tree(tmp_path / "raw", "sub-01_ses-1_T1w", name, sidecars={name: {"FrameDuration": [300] * 4}})
    (root / "pet.json").write_text(json.dumps({"InjectionStart": 0, "FrameDuration": [9]}))
    (root / "trc-18FFBB_pet.json").write_text(json.dumps({"InjectionStart": 77}))      # of another tracer
    (root / "T1w.json").write_text(json.dumps({"InjectionStart": 78}))
    (root / "sub-01/ses-1/sub-01_ses-1_pet.json").write_text(
        json.dumps({"FrameTimesStart": [3000, 3300, 3600, 3900]}))
    [scan] = read_dataset(root, Choices()).scans
    assert scan.timing.starts == (3000, 3300, 3600, 3900) and scan.timing.from_injection
    assert scan.timing.durations == (300.0,) * 4


def test_the_more_specific_of_two_sidecars_in_a_folder_wins(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    (root / "pet.json").write_text(json.dumps({"FrameDuration": [60]}))
    (root / "trc-18FAV45_pet.json").write_text(json.dumps({"FrameDuration": [1200]}))
    assert read_dataset(root, Choices()).scans[0].timing.durations == (1200.0,)


@pytest.mark.parametrize("content, words", [
    ("{", "cannot be read as JSON"), ("[1, 2]", "holds no names"), ("", "cannot be read as JSON"),
    ('{"FrameDuration": [NaN]}', "holds nan"), ('{"FrameDuration": ["300"]}', "holds '300'"),
    ("[" * 10_000, "cannot be read as JSON"), (b"\xff\xfe\x00", "cannot be read as JSON"),
])
def test_a_broken_sidecar_is_named_with_its_scan_and_others_go_on(tmp_path, content, words):
    names = ["sub-01_T1w", "sub-01_" + AV45, "sub-02_T1w", "sub-02_" + AV45]
    root = tree(tmp_path / "raw", *names)
    path = place_of(root, "sub-01_" + AV45, ".json")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    broken, whole = read_dataset(root, Choices()).scans
    assert words in broken.timing_fault and broken.timing is None
    assert not whole.timing_fault


@pytest.mark.parametrize("name, label, is_taken", [
    ("AV-45", "18FAV45", True), ("FDG", "", False), ("something new", "", False)])
def test_the_tracer_of_a_sidecar_counts_where_the_name_says_none(tmp_path, name, label, is_taken):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_pet", sidecars={"sub-01_pet": {"TracerName": name}})
    scans = [scan for scan in read_dataset(root, Choices()).scans if scan.pet]
    assert [scan.tracer.label for scan in scans] == ([label] if is_taken else [])


def test_name_and_sidecar_that_contradict_each_other_are_left_out(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45,
                sidecars={"sub-01_" + AV45: {"TracerName": "FDG"}})
    [row] = read_dataset(root, Choices()).left_out
    assert row["reason"] == "tracer unknown" and "its sidecar FDG" in row["found"]


@pytest.mark.parametrize("value", [5, None, ["AV45"], {"a": 1}, ""])
def test_a_tracer_name_that_is_no_text_says_nothing(tmp_path, value):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45,
                sidecars={"sub-01_" + AV45: {"TracerName": value}})
    assert read_dataset(root, Choices()).scans[0].tracer.label == "18FAV45"


# ---------------------------------------------------------------- links and broken names

def test_a_broken_link_is_named_with_datalad_and_others_go_on(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45, "sub-02_T1w", "sub-02_" + AV45)
    for name in ("sub-01_" + AV45, "sub-02_T1w"):
        path = place_of(root, name)
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
    (tmp_path / "sub-02_T1w").unlink()
    dataset = read_dataset(root, Choices())
    assert list(taken(dataset)) == ["sub-01"]
    [row] = dataset.left_out
    assert row["ID"] == "sub-02" and row["reason"] == "broken link" and "datalad get" in row["found"]


def test_links_in_a_circle_and_folders_that_are_links_to_nothing_are_told(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    (root / "sub-02").mkdir()
    (root / "sub-02/anat").symlink_to(root / "sub-02/anat")
    (root / "sub-03").symlink_to(tmp_path / "gone")
    dataset = read_dataset(root, Choices())
    assert list(taken(dataset)) == ["sub-01"] and reasons(dataset).keys() == {"sub-02", "sub-03"}
    assert reasons(dataset)["sub-03"] == "broken link"


def test_names_that_are_not_those_of_their_folder_or_of_bids_are_told(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    (root / "sub-01/anat/sub-02_T1w.nii.gz").touch()
    (root / "sub-01/anat/my scan_T1w.nii.gz").touch()
    (root / "sub-01/anat/sub-01_T2w.nii.gz").touch()                         # not ours: passed over
    (root / "sub-01/anat/.sub-01_T1w.nii.gz").touch()
    dataset = read_dataset(root, Choices())
    assert list(taken(dataset)) == ["sub-01"]
    found = sorted(row["found"].rsplit(": ", 1)[1][:12] for row in dataset.left_out)
    assert found == ["is not a nam", "its name is "]


def test_what_else_lies_in_a_dataset_is_passed_over(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    tree(root / "derivatives", "sub-09_T1w")
    (root / "sub-01/func").mkdir()
    (root / "sub-01/func/sub-01_task-rest_bold.nii.gz").touch()
    (root / "sub-01/anat/sub-01_desc-brain_mask.nii.gz").touch()
    (root / "sub-02").touch()                                                # a file
    dataset = read_dataset(root, Choices())
    assert list(taken(dataset)) == ["sub-01"] and not dataset.left_out


# ---------------------------------------------------------------- derivatives

def test_outputs_of_clinica_are_taken_with_their_names(tmp_path):
    stem = "sub-ADNI011S6303_ses-M000"
    home = tmp_path / "caps/subjects/sub-ADNI011S6303/ses-M000"
    grid = "space-MNI152NLin2009cSym_desc-Crop_res-1x1x1"
    for path in (f"t1_linear/{stem}_{grid}_T1w.nii.gz",
                 f"t1_linear/{stem}_space-MNI152NLin2009cSym_res-1x1x1_T1w.nii.gz",
                 f"pet_linear/{stem}_trc-18FAV45_{grid}_suvr-pons_pet.nii.gz",
                 f"pet_linear/{stem}_trc-18FAV45_{grid}_suvr-cerebellumPons2_pet.nii.gz"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).touch()
    assert is_dataset(tmp_path / "caps")
    [scan] = read_dataset(tmp_path / "caps", Choices()).scans
    assert scan.id == stem and scan.space == "MNI152NLin2009cSym" and scan.mri_mask is None
    assert "desc-Crop" not in scan.mri.name and "suvr-cerebellumPons2" in scan.pet.name


def test_the_brain_mask_of_the_same_space_and_grid_goes_with_an_mri(tmp_path):
    names = [f"sub-01_{MNI}_res-{n}_desc-{what}" for n in (1, 2) for what in ("preproc_T1w", "brain_mask")]
    root = tree(tmp_path / "raw", *names, "sub-01_desc-brain_mask", f"sub-01_{MNI}_res-1_desc-gm_mask")
    [scan] = read_dataset(root, Choices()).scans
    assert scan.mri.name == f"{names[0]}.nii.gz" and scan.mri_mask.name == f"{names[1]}.nii.gz"
    os.remove(scan.mri_mask)
    assert read_dataset(root, Choices()).scans[0].mri_mask.name == f"{names[3]}.nii.gz"      # another grid


@pytest.mark.parametrize("make, is_one", [
    (("dataset_description.json",), True), (("sub-01/",), True), (("subjects/sub-01/",), True), ((), False),
    (("a.nii.gz",), False), (("sub-01/", "a.nii"), False), (("T1/", "sub-01/"), False), (("sub-01",), False)])
def test_a_dataset_is_known_by_its_description_or_its_subjects(tmp_path, make, is_one):
    for name in make:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            (tmp_path / name).touch()
    assert is_dataset(tmp_path) == is_one


# ---------------------------------------------------------------- refused as a whole

def test_steps_of_adnis_preprocessing_are_not_mixed(tmp_path):
    recs = {"01": "coregavg", "02": "coregiso", "03": "coregavg"}
    names = [f"sub-{sub}_{name}" for sub, rec in recs.items()
             for name in ("T1w", f"trc-18FAV45_rec-{rec}_pet")]
    scans = read_dataset(tree(tmp_path / "raw", *names), Choices()).scans
    with pytest.raises(InputError) as caught:
        refuse_mixed_levels(scans, 0.0)
    for words in ("2 of others (sub-01, sub-03)", "1 of rec-coregiso (sub-02)", "--pet_fwhm MM"):
        assert words in str(caught.value)
    assert "smoothed by 8 mm" in refuse_mixed_levels(scans, 8.0)
    assert refuse_mixed_levels([scans[1]], 0.0) == refuse_mixed_levels([scans[0], scans[2]], 0.0) == ""


@pytest.mark.parametrize("place, is_refused", [
    ("raw", True), ("raw/data", True), ("raw/derivatives", True), ("raw/sub-01/x", True),
    ("raw/derivatives/il_cldm", False), ("elsewhere", False), ("raw/../elsewhere", False), ("rawer", False)])
def test_nothing_is_written_into_a_dataset_but_derivatives(tmp_path, place, is_refused):
    root = tree(tmp_path / "raw")
    if is_refused:
        with pytest.raises(InputError, match="lies in the BIDS dataset"):
            refuse_inside(tmp_path / place, root, "data_dir")
    else:
        refuse_inside(tmp_path / place, root, "data_dir")


@pytest.mark.parametrize("source, place, is_refused", [
    ("in", "in/out", True), ("in/sub-01/anat", "in/out", True), ("in/sub-01", "in/sub-01/out", True),
    ("in/sub-01/anat/sub-01_T1w.nii.gz", "in/out", True), ("in/sub-01/anat", "in", True),
    ("in/sourcedata", "in/out", True), ("in/derivatives/prep", "in/out", True),
    ("in/derivatives/prep/sub-01/anat", "in/out", True),
    ("in/derivatives/prep/sub-01/anat", "in/derivatives/prep/out", True),
    ("in/derivatives/prep/sub-01/anat", "in/derivatives/mine", False),
    ("in/sub-01/anat", "in/derivatives/mine", False), ("in/sub-01/anat", "elsewhere", False),
    ("link", "in/out", True), ("link", "elsewhere", False), ("ours/whole_MRI", "ours/out", False),
    ("bare/sub-01/anat", "bare/out", True), ("bare/sub-01/ses-1/anat", "bare/out", True),
    ("bare/sub-01/anat", "elsewhere", False), ("sub-project/raw", "sub-project/data", False)])
def test_nothing_is_written_into_the_dataset_around_a_folder_or_file(tmp_path, source, place, is_refused):
    root = tree(tmp_path / "in", "sub-01_T1w")
    (root / "derivatives").mkdir()
    tree(root / "derivatives/prep", "sub-01_T1w")
    for folder in ("in/sourcedata", "ours/whole_MRI", "bare/sub-01/anat", "bare/sub-01/ses-1/anat"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ours/dataset_description.json").write_text('{"GeneratedBy": [{"Name": "il_cldm"}]}')
    (tmp_path / "link").symlink_to(root / "sub-01/anat")
    if is_refused:
        with pytest.raises(InputError, match="lies in the BIDS dataset"):
            refuse_inside_source(tmp_path / place, tmp_path / source, "data_dir")
    else:
        refuse_inside_source(tmp_path / place, tmp_path / source, "data_dir")


def test_a_dataset_whose_description_is_broken_is_not_written_into_either(tmp_path):
    root = tree(tmp_path / "in", "sub-01_T1w")
    (root / "dataset_description.json").write_text("{")
    with pytest.raises(InputError, match="lies in the BIDS dataset"):
        refuse_inside_source(root / "out", root / "sub-01/anat", "data_dir")


def test_an_empty_dataset_says_what_is_expected(tmp_path):
    with pytest.raises(InputError, match="no scan can be used; expected sub-"):
        say_found(read_dataset(tree(tmp_path / "raw"), Choices()))


def test_a_table_that_cannot_be_read_is_a_remark(tmp_path):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    (root / "participants.tsv").write_bytes(b"\xff\xfe\x01")
    dataset = read_dataset(root, Choices())
    assert len(dataset.scans) == 1 and "participants.tsv" in dataset.remarks[0]


def people(root: Path, text: str, encoding: str = "utf-8") -> tuple[dict, str]:
    """ID -> age and sex in a dataset with these participants, and the remarks in one text."""
    for name in ("sub-01", "sub-02", "sub-03"):
        tree(root, f"{name}_T1w", f"{name}_{AV45}")
    (root / "participants.tsv").write_text(text, encoding=encoding)
    dataset = read_dataset(root, Choices())
    return {scan.id: (scan.age, scan.sex) for scan in dataset.scans}, " | ".join(dataset.remarks)


@pytest.mark.parametrize("note", ['"lone', 'two "lone', '"a" b"', '"whole"', '"', '"with\nline"'])
def test_a_lone_quote_in_a_table_of_tabs_swallows_no_row(tmp_path, note):
    rows = f'participant_id\tnote\tage\tsex\nsub-01\t{note}\t71\tF\nsub-02\tx\t72\tM\nsub-03\t"y\t73\tF\n'
    found, remarks = people(tmp_path / "raw", rows)
    if "\n" in note:                                       # whether a cell or two rows, nobody can say here
        del found["sub-01"]
    expected = {"sub-01": (71, "F"), "sub-02": (72, "M"), "sub-03": (73, "F")}
    assert found == {name: expected[name] for name in found} and len(found) >= 2
    assert "a quote (\") that does not close is read as a plain character in row" in remarks


def test_a_cell_of_two_lines_in_a_table_of_tabs_is_one_cell(tmp_path):
    found, remarks = people(
        tmp_path / "raw", 'participant_id\tnote\tage\nsub-01\t"a\nb"\t71\nsub-02\tc\t72\n'
    )
    assert found == {"sub-01": (71, ""), "sub-02": (72, ""), "sub-03": (None, "")} and not remarks


def test_ages_and_sexes_are_read_as_prepare_reads_them(tmp_path):
    found, remarks = people(tmp_path / "raw", "participant_id\tage\tsex\nsub-01\t071Y\tw\n"
                                              "sub-02\t>89\tFemale\nsub-03\told\tunknown\n")
    assert found == {"sub-01": (71, "W"), "sub-02": (89, "F"), "sub-03": (None, "")}
    assert (
        "the age >89 is read as 89" in remarks and "1 ages (such as old) in tables cannot be read" in remarks
    )


def test_people_in_latin_1_are_read_with_a_remark(tmp_path):
    found, remarks = people(tmp_path / "raw", "participant_id\tage\tsite\nsub-01\t71\tKöln\n", "latin-1")
    assert found["sub-01"] == (71, "") and "participants.tsv: is not in UTF-8" in remarks


def test_a_row_longer_than_its_header_is_told(tmp_path):
    found, remarks = people(tmp_path / "raw", "participant_id\tage\nsub-01\t71\nsub-02\t72\tx\n")
    assert found["sub-01"] == (None, "") and "row 3: more fields than its header has columns" in remarks


@pytest.mark.parametrize("text, expected", [
    ("02-Mar-2015", date(2015, 3, 2)), ("20150302", date(2015, 3, 2)), ("2015/3/2", date(2015, 3, 2)),
    ("2015-03-02T10:00:00Z", date(2015, 3, 2)), ("1890-03-02", date(1890, 3, 2)), ("n/a", None),
    ("03/02/2015", None), ("2015-13-02", None), ("15", None), ("02-Foo-2015", None)])
def test_dates_of_images_are_read_in_forms_that_leave_no_choice(tmp_path, text, expected):
    root = tree(tmp_path / "raw", "sub-01_T1w", "sub-01_" + AV45)
    (root / "sub-01/sub-01_scans.tsv").write_text(
        f"filename\tacq_time\nanat/sub-01_T1w.nii.gz\t{text}\npet/sub-01_{AV45}.nii.gz\t{text}\n")
    dataset = read_dataset(root, Choices())
    told = "2 dates (such as" in " ".join(dataset.remarks)
    assert told == (expected is None and text != "n/a")
    assert dataset.scans[0].days == (None if expected is None else 0)


# ---------------------------------------------------------------- RAW/T1 and RAW/PET with names of BIDS

def plain(folder: Path, t1s: tuple[str, ...], pets: tuple[str, ...]) -> Path:
    """A raw folder of empty files."""
    for home, names in (("T1", t1s), ("PET", pets)):
        (folder / home).mkdir(parents=True)
        for name in names:
            (folder / home / f"{name}.nii.gz").touch()
    return folder


@pytest.mark.parametrize("t1, pet, name", [
    ("sub-01_ses-01_T1w", "sub-01_ses-01_trc-18FAV45_pet", "sub-01_ses-01"),
    ("sub-01_acq-mprage_run-1_T1w", "sub-01_trc-11CPIB_rec-acdyn_pet", "sub-01"),
    ("sub-01_ses-01", "sub-01_ses-01_trc-18FAV45_pet", "sub-01_ses-01"),
    ("sub-01_space-orig_T1w", "sub-01_pet", "sub-01"),
    ("037_S_6046_T1w", "037_S_6046_pet", "037_S_6046"),
    ("a", "a_pet", "a"),
])
def test_plain_folders_are_paired_by_subject_and_session(tmp_path, t1, pet, name):
    [scan], _ = find_plain(plain(tmp_path / "raw", (t1,), (pet,)), Choices())
    assert scan.id == name and scan.pet.name == f"{pet}.nii.gz"


def test_plain_folders_with_several_files_of_a_visit_are_refused_and_chosen_alike(tmp_path):
    raw = plain(tmp_path / "raw", ("sub-01_run-1_T1w", "sub-01_run-2_T1w"),
                ("sub-01_trc-18FAV45_pet", "sub-01_trc-18FFDG_pet"))
    with pytest.raises(InputError, match="both are sub-01.*--bids_run N"):
        find_plain(raw, Choices())
    [scan], remarks = find_plain(raw, Choices(run=2))
    assert scan.mri.name == "sub-01_run-2_T1w.nii.gz" and scan.tracer.label == "18FAV45"
    assert "1 PETs of other tracers" in remarks[0]


def test_plain_folders_read_the_sidecar_beside_a_pet(tmp_path):
    raw = plain(tmp_path / "raw", ("a",), ("a_pet",))
    (raw / "PET/a_pet.json").write_text('{"TracerName": "FBB", "FrameDuration": [300, 300]}')
    [scan], _ = find_plain(raw, Choices())
    assert scan.tracer.label == "18FFBB" and scan.timing.durations == (300.0, 300.0)
    [scan], _ = find_plain(raw, Choices(mri_only=True))
    assert scan.pet is None


@pytest.mark.parametrize("pet, tracer", [
    ("sub-01_pet", "FDG"), ("sub-01_pet", "[18F]AV-1451"), ("sub-01_trc-18FFDG_pet", "FDG"),
    ("sub-01_trc-XYZ_pet", "Fluorodeoxyglucose"), ("sub-01_trc-18FFDG_pet", "something new")])
def test_plain_pets_that_only_a_sidecar_names_no_amyloid_are_ignored_and_counted(tmp_path, pet, tracer):
    raw = plain(tmp_path / "raw", ("sub-01_T1w",), (pet, "sub-01_acq-a_trc-18FFBB_pet"))
    (raw / f"PET/{pet}.json").write_text(json.dumps({"TracerName": tracer}))
    [scan], remarks = find_plain(raw, Choices())
    assert scan.pet.name == "sub-01_acq-a_trc-18FFBB_pet.nii.gz" and scan.tracer.label == "18FFBB"
    assert remarks == [f"1 PETs of other tracers or synthesized here are ignored, such as {pet}.nii.gz"]


def test_a_plain_pet_of_fdg_without_name_of_bids_is_ignored(tmp_path):
    raw = plain(tmp_path / "raw", ("a",), ("a",))
    (raw / "PET/a.json").write_text('{"TracerName": "FDG"}')
    [scan], remarks = find_plain(raw, Choices(tracer="FBB"))
    assert scan.pet is None and "1 PETs of other tracers" in remarks[0]


@pytest.mark.parametrize("label, tracer", [("18FFBB", "FDG"), ("18FFDG", "FBB"), ("11CPIB", "florbetapir")])
def test_plain_pets_whose_name_and_sidecar_contradict_are_named(tmp_path, label, tracer):
    raw = plain(tmp_path / "raw", ("sub-01_T1w",), (f"sub-01_trc-{label}_pet",))
    (raw / f"PET/sub-01_trc-{label}_pet.json").write_text(json.dumps({"TracerName": tracer}))
    for choices in (Choices(), Choices(tracer="FBB")):
        with pytest.raises(InputError, match=f"trc-{label}_pet.nii.gz: its name says {label}, its sidecar "
                                             f"{tracer}"):
            find_plain(raw, choices)


def test_a_plain_pet_of_unknown_tracer_passes(tmp_path):
    raw = plain(tmp_path / "raw", ("a",), ("a_pet",))
    (raw / "PET/a_pet.json").write_text('{"TracerName": "something new"}')
    [scan], remarks = find_plain(raw, Choices())
    assert scan.pet and scan.tracer is None and not remarks


def test_a_synthetic_pet_of_ours_in_a_plain_folder_is_ignored(tmp_path):
    raw = plain(tmp_path / "raw", ("sub-01_T1w",), ("sub-01_trc-18FAV45_desc-ilcldmSynthetic_pet",))
    [scan], remarks = find_plain(raw, Choices())
    assert scan.pet is None and len(remarks) == 1
