"""An external cohort: read and checked like a cohort, on the grid of the networks, and shown to be of other
people than those that the experiment was trained and calibrated on."""
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from config import Config
from dataset import SPLITS, Cohort, CohortReader, Scan, check_external, parse_id
from experiment.experiment import is_phantom, latents_folder, survey_path
from experiment.survey import Survey, load_survey
from labels.people import find_column, read_people
from labels.ridge import LabelPredictor
from newscans.trained import Trained
from runtime.logs import say
from runtime.tables import read_list
from utils import InputError

SAME_PICTURE = 1e-3            # largest difference of the blocks of one volume in [0, 1], stored twice


@dataclass(frozen=True)
class TrainingLists:
    """What is known of the people that an experiment was trained and calibrated on.

    ids: ID -> its list, training or validation; empty if nothing is known. survey: of both lists, or None.
    why_not: why that is None, or nothing.
    """
    ids: dict[str, str]
    survey: Survey | None
    why_not: str = ""


@dataclass(frozen=True)
class ExternalCohort:
    """A checked external cohort. cohort: its scans, as a test list. people: as labels.people.read_people
    gives. is_phantom: whether it is a simulated one. taken: which scans these are, in words."""
    data_dir: Path
    info_dir: Path
    cohort: Cohort
    people: pd.DataFrame
    is_phantom: bool
    taken: str

    @property
    def scans(self) -> list[Scan]:
        """The scans in order."""
        return self.cohort.test


# ---------------------------------------------------------------- the training cohort, if it is at hand

def find_training_lists(cfg: Config, trained: Trained) -> TrainingLists:
    """The training lists from the survey that lies beside the latents; without it their IDs, from the lists
    of the settings, if these are there."""
    path = survey_path(latents_folder(cfg), cfg, trained.trained_on, trained.measurement)
    survey = load_survey(path)
    if survey is not None:
        n = len(survey.mri)                                # the training list comes first
        ids = {name: "training" if i < n else "validation" for i, name in enumerate(survey.table["ID"])}
        return TrainingLists(ids, survey)
    ids = {}
    for split, name in (("train", "training"), ("validation", "validation")):
        try:
            ids |= dict.fromkeys(read_list(cfg.info_folder / f"{split}.txt", remarks=[]), name)
        except InputError:
            continue
    return TrainingLists(ids, None, f"{path} is not there; --stages test of the experiment makes it, where "
                                    "its training cohort is at hand")


# ---------------------------------------------------------------- reading and checking

def info_folder(data_dir: Path, info_dir: str) -> Path:
    """Folder of labels and lists: the one that is given, else data_info inside data_dir, else data_dir itself
    if data_info.csv lies there."""
    if info_dir:
        return Path(info_dir)
    inside = data_dir / "data_info"
    return data_dir if (data_dir / "data_info.csv").is_file() and not inside.is_dir() else inside


def choose_lists(info_dir: Path, lists: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The lists to take, none for every row of data_info.csv, and that in words. By default test.txt if it is
    there."""
    there = [split for split in SPLITS if (info_dir / f"{split}.txt").exists()]
    if lists:
        return lists, f"the lists {', '.join(lists)}"
    if "test" not in there:
        return (), f"every row of {info_dir / 'data_info.csv'}, as there is no test.txt"
    others = [split for split in there if split != "test"]
    if not others:
        return ("test",), "the list test"
    return ("test",), (f"the list test alone; {' and '.join(others)} of {info_dir} are as unseen and would "
                       f"be taken too by --lists {' '.join(there)}")


def read_external(data_dir: Path, info_dir: Path, lists: tuple[str, ...], trained: Trained,
                  known: TrainingLists, namesakes: bool) -> ExternalCohort:
    """Read and check the external cohort.

    lists: as choose_lists takes them. namesakes: whether subjects may have the ID of a training subject.
    Raises InputError that lists every problem found.
    """
    cfg = trained.cfg
    reader = CohortReader(data_dir, info_dir, cfg.num_classes, cfg.subject_pattern)
    if not all(folder.by_stem for folder in reader.volumes.values()):
        empty = [name for name, folder in reader.volumes.items() if not folder.by_stem]
        raise InputError(f"{data_dir} holds no cohort: no volume in {' and '.join(empty)}; expected "
                         "whole_MRI/<ID>.nii[.gz] and whole_Abeta/<ID>.nii[.gz] there, prepared as those of "
                         f"the training were (data/README.md), and labels in {info_dir}/data_info.csv")
    chosen, taken = choose_lists(info_dir, lists)
    (ids, scans), phantom = reader.read_together(chosen), is_phantom(str(data_dir))
    alike = named_alike(ids, known.ids, cfg.subject_pattern)
    # phantoms number their subjects alike, and the people of another one are others
    others = phantom and is_phantom(cfg.data_dir) and data_dir.resolve() != Path(cfg.data_dir).resolve()
    if alike and (namesakes or others):
        why = "phantoms number their subjects alike" if others else "--namesakes says so"
        say("check", f"{len(alike)} of {len(ids)} subjects have the ID of a training or validation subject, "
                     f"and are taken for other people ({why})")
    else:
        reader.problems += alike
    if known.ids == {}:
        say("check", "whether somebody of the training or validation list is among them cannot be checked: "
                     f"neither the lists in {cfg.info_folder} nor the survey are there")
    cohort = check_external(reader, scans, trained.grid)
    return ExternalCohort(data_dir, info_dir, cohort, read_people(info_dir, [scan.id for scan in scans]),
                          phantom, taken)


# ---------------------------------------------------------------- overlap with the training

def named_alike(ids: list[str], known: dict[str, str], subject_pattern: str) -> list[str]:
    """A problem for each ID whose subject is in a list of the training. known: ID -> its list."""
    pattern, subjects = re.compile(subject_pattern), {}
    for name in known:
        subjects.setdefault(parse_id(name, pattern)[0], name)
    problems = []
    for scan_id in ids:
        name = subjects.get(parse_id(scan_id, pattern)[0])
        if name:
            problems.append(f"{scan_id}: is in the {known[name]} list of the experiment as {name}")
    if problems:
        problems[-1] += ("; leave such subjects out, or, if these are other people, as where two cohorts "
                         "number theirs alike, say so by --namesakes true")
    return problems


def refuse_known_pictures(read: pd.DataFrame, known: TrainingLists) -> None:
    """Raise InputError that lists every scan whose MRI or PET is one of the training or validation list,
    whatever its ID and the type in which it is stored. Says so if that cannot be known.

    read: a row a scan, as Measurement.status_inputs gives of its PET.
    """
    if known.survey is None:
        say("check", "whether a volume of the training or validation list is among them cannot be checked: "
                     f"{known.why_not}")
        return
    table, problems = known.survey.table, []
    for column, what in (("mri", "MRI"), ("pet", "PET")):
        seen = np.stack(table[column].to_list()).reshape(len(table), -1)
        for name, volume in zip(read["ID"], read[column], strict=True):
            difference = np.abs(seen - volume.reshape(-1)).max(axis=1)
            nearest = int(difference.argmin())
            if difference[nearest] < SAME_PICTURE:
                twin = table["ID"].iloc[nearest]
                problems.append(f"{name}: its {what} is that of {twin} in the {known.ids[twin]} list of the "
                                "experiment")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} volume(s) were seen in the training or calibration; "
                                      "leave these scans out:", *problems]))


# ---------------------------------------------------------------- covariates

def covariates_of(external: ExternalCohort, predictor: LabelPredictor | None) -> pd.DataFrame | None:
    """The covariates that the predictor of the label sees, a row a scan, indexed by ID, as text, '' where
    missing; None if it sees none. Says which are missing and what is done about it.

    Raises InputError with all values that the training list has nothing like.
    """
    names, path = predictor.covariates if predictor else (), external.info_dir / "data_info.csv"
    if not names:
        return None
    columns = {name: find_column(external.people.columns, name) for name in names}
    missing = [name for name, column in columns.items() if column is None]
    if missing:
        say("check", f"{path} has no column {', '.join(missing)}: the training list's mean takes its place "
                     "for everybody")
    cells = pd.DataFrame(
        {name: external.people[column] if column else "" for name, column in columns.items()}
    )
    cells.index = pd.Index([scan.id for scan in external.scans])
    try:
        predictor.coder.encode(cells)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    cells = predictor.coder.without_codes(cells)
    for name in names:
        without = int((cells[name] == "").sum())
        if without and name not in missing:
            say("check", f"{without} of {len(cells)} subjects have no {name}: the training list's mean takes "
                         "its place")
    return cells
