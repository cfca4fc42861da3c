"""Raw scans: the files of a visit, the choice where a visit has several, and the layout RAW/T1, RAW/PET."""
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from cohort.bids_files import read_json
from cohort.bids_names import OURS, parse_name
from cohort.frames import Timing, read_timing
from cohort.tracers import Tracer, find_tracer
from dataset import ID_PATTERN
from imaging.nifti_files import is_volume_name, stem_of
from runtime.files import brief
from utils import InputError

UNIFORM = ("coregiso", "coregstd")                         # ADNI's steps 4 and 3 of PET preprocessing
LISTED = 20                                                # files that a message names


@dataclass(frozen=True)
class RawScan:
    """The files of one subject's visit, and what is known of them.

    mri_mask: of the brain, beside an MRI in MNI space. space: of the MRI and the PET, such as
    MNI152NLin2009cAsym; empty: as the scanner has it. rec: reconstruction of the PET as BIDS names it.
    timing: of its frames; timing_fault: why a sidecar does not say them. days: from the T1 to the PET.
    note: a remark on how T1 and PET were paired.
    """
    id: str
    mri: Path
    pet: Path | None
    tracer: Tracer | None = None
    rec: str = ""
    timing: Timing | None = None
    timing_fault: str = ""
    days: int | None = None
    space: str = ""
    mri_mask: Path | None = None
    scanned: date | None = None
    age: float | None = None
    sex: str = ""
    note: str = ""


@dataclass(frozen=True)
class Choices:
    """What the user says of scans among which nothing else decides.

    run: number of the run that is taken of several. entities: such as rec-acstat, that decide likewise.
    tracer: of PETs that do not say theirs. window_days: most days from a T1 to its PET. mri_only: T1 MRIs
    without PETs.
    """
    run: int = 0
    entities: tuple[str, ...] = ()
    tracer: str = ""
    window_days: int = 180
    mri_only: bool = False


class Ambiguous(Exception):
    """Several files could be the one of a visit; the message names them."""


class NoRun(Exception):
    """A visit has several runs, but not the one that was asked for; the message names them."""


def prefer(files: list, wanted: Iterable[str]) -> list:
    """The files that have the entities wanted, such as rec-acstat, one after the other; one that no file has
    decides nothing."""
    for words in wanted:
        key, _, value = words.partition("-")
        files = [file for file in files if file.entities.get(key) == value] or files
    return files


def choose_one(files: list, choices: Choices):
    """The one file of several that have `path` and `entities`.

    Raises Ambiguous if nothing decides, NoRun if there are runs, but not the one asked for.
    """
    left = prefer(files, choices.entities)
    if choices.run and len(left) > 1:
        runs = [file for file in left if file.entities.get("run", "").lstrip("0") == str(choices.run)]
        if not runs and any("run" in file.entities for file in left):
            raise NoRun(", ".join(file.path.name for file in left))
        left = runs or left
    if len(left) == 1:
        return left[0]
    differing = sorted({key for file in left for key in file.entities
                        if len({other.entities.get(key) for other in left}) > 1})
    advice = []
    if "run" in differing:
        advice.append("--bids_run N")
    other = next((key for key in differing if key != "run"), "")
    if other:
        value = next(file.entities[other] for file in left if other in file.entities)
        advice.append(f"--bids_choose {other}-{value}")
    names = ", ".join(file.path.name for file in left)
    raise Ambiguous(f"{names}: take one by {' or '.join(advice) or 'moving the others away'}")


# ---------------------------------------------------------------- tracers and frames

def tracer_of(label: str, sidecar: dict, asked: str) -> tuple[Tracer | None, str]:
    """The tracer by the label of a file's name or by its sidecar's TracerName, and why it is not known.

    asked: the name that the user gives to those that are not known.
    """
    if why := contradiction(label, sidecar):
        return None, why
    texts = _tracer_texts(label, sidecar)
    found = [tracer for tracer in map(find_tracer, texts) if tracer]
    if found:
        return found[0], ""
    if asked:
        return find_tracer(asked) or Tracer(asked, True), ""
    said = f"{' and '.join(brief(text) for text in texts)} is not known here" if texts else "nothing says it"
    return None, f"{said}; --tracer NAME names the tracer of such PETs"


def contradiction(label: str, sidecar: dict) -> str:
    """What name and sidecar of a PET say where they name different tracers; '' if they do not."""
    found = [tracer for tracer in map(find_tracer, _tracer_texts(label, sidecar)) if tracer]
    if len({tracer.label if tracer.is_amyloid else "" for tracer in found}) > 1:
        return f"its name says {label}, its sidecar {sidecar['TracerName']}"
    return ""


def _tracer_texts(label: str, sidecar: dict) -> list[str]:
    texts = (label, sidecar.get("TracerName"))
    return [text for text in texts if isinstance(text, str) and text.strip()]


def timing_of(sidecar: dict, fault: str) -> tuple[Timing | None, str]:
    """The times of the frames in a sidecar, and why they cannot be used. fault: of the sidecar itself."""
    try:
        return read_timing(sidecar), fault
    except ValueError as error:
        return None, "; ".join(filter(None, (fault, str(error))))


def refuse_mixed_levels(scans: list[RawScan], fwhm: float) -> str:
    """A remark on PETs of several resolutions that --pet_fwhm smooths. Raises InputError if it does not.

    ADNI's step 4 (coregiso) is smoothed to one resolution, step 3 (coregstd) resampled and scaled.
    """
    levels: dict[str, list[str]] = defaultdict(list)
    for scan in scans:
        if scan.pet:
            levels[f"rec-{scan.rec}" if scan.rec in UNIFORM else "others"].append(scan.id)
    if len(levels) < 2:
        return ""
    counts = "; ".join(f"{len(ids)} of {level} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
                       for level, ids in sorted(levels.items()))
    if fwhm > 0:
        return f"PETs of several steps of preprocessing, all smoothed by {fwhm:g} mm on top: {counts}"
    raise InputError(f"PETs of several steps of preprocessing, whose resolutions differ: {counts}. Take one "
                     "by --bids_choose rec-..., or smooth all by --pet_fwhm MM, more than they differ "
                     "by (8 mm is ADNI's step 4)")


# ---------------------------------------------------------------- RAW/T1 and RAW/PET

@dataclass(frozen=True)
class PlainFile:
    """A file of the plain layout, with the entities of its name if that is one of BIDS.

    tracer: of a PET, None if it is not known. sidecar: the content of that beside a PET, and fault: why it
    cannot be used.
    """
    path: Path
    entities: dict[str, str]
    tracer: Tracer | None = None
    sidecar: dict = field(default_factory=dict)
    fault: str = ""


def find_plain(raw: Path, choices: Choices) -> tuple[list[RawScan], list[str]]:
    """The scans of RAW/T1 and RAW/PET, of a folder of T1 MRIs, or of one, and remarks.

    Raises InputError that lists all wrong names.
    """
    home, problems, remarks = raw / "T1" if (raw / "T1").is_dir() else raw, [], []
    mri_files = _by_id([raw] if raw.is_file() else home.iterdir(), "T1w", problems)
    pet_files = {}
    if (raw / "PET").is_dir() and not choices.mri_only:
        pet_files = _amyloid(_by_id((raw / "PET").iterdir(), "pet", problems), choices, problems, remarks)
    mris, pets = (_one_each(files, choices, problems) for files in (mri_files, pet_files))
    if not mri_files:
        problems.append(f"{home}: holds no .nii or .nii.gz")
    for name, [file, *_] in pet_files.items():
        if name not in mri_files:
            problems.append(f"{file.path}: has no T1 MRI {home / name}.nii[.gz]")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) in the raw scans:", *problems]))
    return [_plain_scan(name, file, pets.get(name)) for name, file in mris.items()], remarks


def _by_id(paths: Iterable[Path], suffix: str, problems: list[str]) -> dict[str, list[PlainFile]]:
    """ID -> NIfTI files, in the order of the IDs.

    A name of BIDS is known by subject and session, whatever else it says; any other is the ID without the
    suffix. problems: the list to which problems are added.
    """
    found: dict[str, list[PlainFile]] = {}
    for path in sorted(paths):
        if not is_volume_name(path.name):
            continue
        stem = stem_of(path.name)
        name, entities = stem.removesuffix(f"_{suffix}"), {}
        try:
            entities, own_suffix = parse_name(stem)
            if own_suffix in ("", suffix):
                name = "_".join(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities)
        except ValueError:
            pass
        if not ID_PATTERN.fullmatch(name):
            problems.append(f"{path}: {brief(repr(name))} is not an ID; expected at most 200 letters, "
                            "digits, '.', '_' and '-'")
        else:
            found.setdefault(name, []).append(PlainFile(path, entities))
    return dict(sorted(found.items()))


def _amyloid(found: dict[str, list[PlainFile]], choices: Choices, problems: list[str], remarks: list[str]
             ) -> dict[str, list[PlainFile]]:
    """The PETs with their sidecars, without those of other tracers or synthesized here, which a remark
    counts.

    One whose name and sidecar name different tracers is a problem; one that nothing names passes.
    """
    kept, others = {}, []
    for name, files in found.items():
        for file in files:
            label, (content, fault) = file.entities.get("trc", ""), _sidecar_of(file.path)
            if why := contradiction(label, content):
                problems.append(f"{file.path}: {why}; correct the one that is wrong")
                continue
            tracer, _ = tracer_of(label, content, choices.tracer)
            is_ours = file.entities.get("desc", "").startswith(OURS)
            if is_ours or (tracer and not tracer.is_amyloid):
                others.append(file.path.name)
            else:
                kept.setdefault(name, []).append(replace(file, tracer=tracer, sidecar=content, fault=fault))
    if others:
        remarks.append(f"{len(others)} PETs of other tracers or synthesized here are ignored, such as "
                       f"{others[0]}")
    return kept


def _sidecar_of(pet: Path) -> tuple[dict, str]:
    """The content of the sidecar beside a PET, and why it cannot be used."""
    path = pet.with_name(f"{stem_of(pet.name)}.json")
    content, fault = read_json(path) if path.is_file() else ({}, "")
    return content, f"{path.name}: {fault}" if fault else ""


def _one_each(found: dict[str, list[PlainFile]], choices: Choices, problems: list[str]
              ) -> dict[str, PlainFile]:
    """ID -> the one file of it; several are a problem unless the user's choices decide."""
    chosen = {}
    for name, files in found.items():
        try:
            chosen[name] = choose_one(files, choices)
        except NoRun as error:
            problems.append(f"{files[0].path.parent}: {name} has no run {choices.run}: {error}")
        except Ambiguous as error:
            number = "both" if len(files) == 2 else "all"
            problems.append(f"{files[0].path.parent}: {number} are {name}: {error}")
    return chosen


def _plain_scan(name: str, mri: PlainFile, pet: PlainFile | None) -> RawScan:
    """A scan with what its PET's name and the sidecar beside it say."""
    if pet is None:
        return RawScan(name, mri.path, None)
    timing, fault = timing_of(pet.sidecar, pet.fault)
    return RawScan(name, mri.path, pet.path, pet.tracer, pet.entities.get("rec", ""), timing, fault)
