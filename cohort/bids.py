"""A BIDS dataset as scans: one T1 MRI and one amyloid PET a visit, and what is left out, with the reason.

A PET goes with the T1 of its session, else with the T1 of the nearest date. Files in MNI space go together.
"""
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cohort.bids_files import BidsFile, Listing, Sidecars, list_dataset
from cohort.bids_report import Dataset, Visit, scan_id
from cohort.bids_tables import SHIFTED, Visits
from cohort.raw_scans import Ambiguous, Choices, NoRun, RawScan, choose_one, timing_of, tracer_of
from cohort.tracers import Tracer
from dataset import ID_PATTERN

NATIVE = ("", "T1w", "orig", "scanner", "anat", "individual")              # of space-: the scanner's own
# The spaces of MNI152, the one of our own template first.
MNI = ("MNI152NLin2009aSym", "MNI152NLin2009cSym", "MNI152NLin2009cAsym", "MNI152NLin2009aAsym",
       "MNI152NLin2009bSym", "MNI152NLin2009bAsym", "MNI152NLin6Asym", "MNI152NLin6Sym", "MNI152Lin",
       "MNI152")
VARIANTS = ("space", "res", "desc", "suvr", "den")         # entities in which copies of one image differ
DESC = ("preproc", "", "Crop")                             # of an image, the best first


@dataclass(frozen=True)
class Pet:
    """An amyloid PET with what is known of it."""
    image: BidsFile
    tracer: Tracer
    sidecar: dict
    fault: str                                             # of the sidecar

    @property
    def path(self) -> Path:
        """The file."""
        return self.image.path

    @property
    def entities(self) -> dict[str, str]:
        """The entities of its name."""
        return self.image.entities


def read_dataset(root: Path, choices: Choices) -> Dataset:
    """Understand a dataset by its names, sidecars and tables; no volume is opened."""
    listing = list_dataset(root)
    dataset, visits = Dataset(root), Visits(listing)
    dataset.remarks += visits.remarks
    for name, fault in listing.faults:
        dataset.leave_out(name, "broken link" if "datalad" in fault else "file cannot be used", fault)
    mris = _collect(listing.images, "T1w", dataset)
    pets = {} if choices.mri_only else _collect_pets(listing, Sidecars(listing), choices, dataset)
    dataset.counts = {"subjects": len({visit[0] for visit in listing.visits}),
                      "sessions": len(listing.visits), "with T1": len({v for v, _ in mris})}
    if not choices.mri_only:
        with_sidecar = sum(bool(pet.sidecar) for files in pets.values() for pet in files)
        dataset.counts |= {"with amyloid PET": len({v for v, _ in pets}), "PETs with sidecar": with_sidecar}
    masks = [image for image in listing.images if image.suffix == "mask" and not image.fault]
    Pairing(dataset, _chosen(mris, choices, dataset), _chosen(pets, choices, dataset), masks, visits,
            choices.window_days).fill()
    return dataset


# ---------------------------------------------------------------- the files of each visit

def _collect(images: Iterable[BidsFile], suffix: str, dataset: Dataset) -> dict[tuple[Visit, str], list]:
    """(visit, space) -> the images of a suffix that can be used; the others are left out."""
    found = defaultdict(list)
    for image in images:
        if image.suffix != suffix:
            continue
        space = image.entities.get("space", "")
        space = "" if space in NATIVE else space
        if image.fault:
            reason = "broken link" if "datalad" in image.fault else "file cannot be used"
            dataset.leave_out(image.visit, reason, f"{image.path.name}: {image.fault}")
        elif space and not space.startswith("MNI152"):
            dataset.ignored[f"{suffix} in space-{space}"] += 1
        else:
            found[image.visit, space].append(image)
    return found


def _collect_pets(listing: Listing, sidecars: Sidecars, choices: Choices, dataset: Dataset
                  ) -> dict[tuple[Visit, str], list[Pet]]:
    """(visit, space) -> the amyloid PETs; others are counted, unknown ones are left out."""
    found = defaultdict(list)
    for key, images in _collect(listing.images, "pet", dataset).items():
        for image in images:
            content, fault = sidecars.of(image)
            tracer, why = tracer_of(image.entities.get("trc", ""), content, choices.tracer)
            if tracer is None:
                why = f"{why} ({fault})" if fault else why
                dataset.leave_out(key[0], "tracer unknown", f"{image.path.name}: {why}")
            elif not tracer.is_amyloid:
                dataset.ignored[f"PET {tracer.label}"] += 1
            else:
                found[key].append(Pet(image, tracer, content, fault))
    return found


def _chosen(found: dict[tuple[Visit, str], list], choices: Choices, dataset: Dataset) -> dict[Visit, dict]:
    """Visit -> space -> the one image; what is ambiguous is noted."""
    chosen: dict[Visit, dict] = defaultdict(dict)
    several = Counter()
    for (visit, space), files in sorted(found.items()):
        try:
            one = choose_one(_without_copies(files), choices)
            chosen[visit][space] = one
            if len(files) > 1 and space:
                several[one.path.name.removeprefix(scan_id(visit))] += 1
        except NoRun as error:
            dataset.leave_out(visit, f"no run {choices.run}", str(error))
        except Ambiguous as error:
            dataset.ambiguous.append(f"{scan_id(visit)}: {error}")
    for name, count in several.items():
        dataset.remarks.append(f"of several copies in MNI space, *{name} is taken ({count} visits)")
    return chosen


def _without_copies(files: list) -> list:
    """The files without copies of one image on other grids or otherwise processed: the best one of each."""
    best: dict[tuple, list] = defaultdict(list)
    for file in files:
        same = tuple(sorted(item for item in file.entities.items() if item[0] not in VARIANTS))
        best[same].append(file)
    return [min(copies, key=_rank) for copies in best.values()]


def _rank(file) -> tuple:
    """Order of copies: preprocessed before as it is, uncropped before cropped, near to 1 mm, by name."""
    desc, res = file.entities.get("desc", ""), file.entities.get("res", "")
    number = re.match(r"0*(\d+)", res)
    return (DESC.index(desc) if desc in DESC else len(DESC), int(number[1]) if number else 1, file.path.name)


def _space_rank(space: str) -> tuple:
    """Order of spaces: ours first, then others of MNI152, the scanner's last."""
    return (not space, MNI.index(space) if space in MNI else len(MNI), space)


# ---------------------------------------------------------------- pairs

class Unpaired(Exception):
    """A PET has no T1; arguments: the reason, and what was found."""


class Pairing:
    """T1 MRIs and PETs of a dataset, brought together."""

    def __init__(self, dataset: Dataset, mris: dict[Visit, dict[str, BidsFile]],
                 pets: dict[Visit, dict[str, Pet]], masks: list[BidsFile], visits: Visits, window_days: int):
        """mris, pets: visit -> space -> file. masks: of any kind. window_days: most days from T1 to PET."""
        self.dataset, self.mris, self.pets, self.visits = dataset, mris, pets, visits
        self.window_days = window_days
        self.masks: dict[Visit, list[BidsFile]] = defaultdict(list)
        for mask in masks:
            if mask.entities.get("desc") == "brain":
                self.masks[mask.visit].append(mask)
        self.dates: dict[str, dict[Visit, date | None]] = defaultdict(dict)  # subject -> its visits -> date
        for visit in sorted({*mris, *pets}):
            images = [*mris.get(visit, {}).values(), *(pet.image for pet in pets.get(visit, {}).values())]
            known = [day for day in map(visits.date_of, images) if day]
            self.dates[visit[0]][visit] = min(known, default=None)

    def fill(self) -> None:
        """Fill the scans of the dataset, and what is left out of it."""
        used, named = set(), {row["ID"] for row in self.dataset.left_out}
        for visit, by_space in sorted(self.pets.items()):
            try:
                mri, pet, note = self._pair(visit, by_space)
            except Unpaired as error:
                if scan_id(visit) not in named:            # else the cause is told already
                    self.dataset.leave_out(visit, *error.args)
                continue
            used.add(mri.visit)
            self._add(visit, mri, pet, note)
        for visit, by_space in sorted(self.mris.items()):
            if not self.pets:
                self._add(visit, by_space[min(by_space, key=_space_rank)], None, "")
            elif visit not in used and visit not in self.pets and scan_id(visit) not in named:
                self.dataset.leave_out(visit, "no amyloid PET", "a T1 MRI alone; --mri_only takes such")
        tracers = sorted({scan.tracer.label for scan in self.dataset.scans if scan.pet})
        if len(tracers) > 1:
            self.dataset.remarks.append(f"several tracers ({', '.join(tracers)}): each PET is divided by its "
                                        "own reference region, but SUVRs of different tracers do not compare")
        shifted = [scan for days in self.dates.values() for scan, day in days.items() if _is_shifted(day)]
        if shifted:
            self.dataset.remarks.append(f"dates of {len(shifted)} visits lie before {SHIFTED + 1}, shifted "
                                        "as BIDS asks: they give intervals, but are not handed to prepare")

    def _pair(self, visit: Visit, by_space: dict[str, Pet]) -> tuple[BidsFile, Pet, str]:
        """T1 and PET of a visit in one space, and a note on how they were paired.

        Raises Unpaired of the reason why there is no pair, and what was found.
        """
        spaces = sorted(by_space, key=_space_rank)
        for space in spaces:                               # fMRIPrep has one T1 for all sessions of a subject
            for place in (visit, (visit[0], "")):
                if space in self.mris.get(place, {}):
                    return self.mris[place][space], by_space[space], ""
        others = {other: by for other, by in self.mris.items() if other[0] == visit[0]}
        for space in spaces:
            here = {other: by[space] for other, by in others.items() if space in by}
            if here:
                return self._nearest(visit, by_space[space], here)
        if others:
            there = sorted({space or "the scanner's" for by in others.values() for space in by})
            raise Unpaired("T1 and PET in different spaces", f"the PET in {' and '.join(spaces)}, the T1 in "
                                                                f"{' and '.join(there)}")
        raise Unpaired("no T1", "a PET alone")

    def _nearest(self, visit: Visit, pet: Pet, here: dict[Visit, BidsFile]) -> tuple[BidsFile, Pet, str]:
        """The T1 of another session of the subject that goes with a PET. here: visit -> T1."""
        when = self.visits.date_of(pet.image)
        distances = []
        for other, mri in sorted(here.items()):
            if when and (day := self.visits.date_of(mri)):
                distances.append((abs((day - when).days), other))
        if distances:
            days, other = min(distances)
            if days <= self.window_days:
                return here[other], pet, f"T1 of ses-{other[1]}, {days} days away"
            raise Unpaired("no T1 near its date", f"the nearest, {scan_id(other)}, is {days} days away; "
                                                     f"window_days is {self.window_days}")
        pets = [other for other in self.pets if other[0] == visit[0]]
        if len(here) == len(pets) == 1:                    # nothing else can be meant
            other = next(iter(here))
            return here[other], pet, f"T1 of ses-{other[1]}, the only one; days between unknown"
        raise Unpaired("no T1 in its session", f"{len(here)} in other sessions, but no dates (acq_time in "
                                                  "*_scans.tsv or *_sessions.tsv) to choose by")

    def _add(self, visit: Visit, mri: BidsFile, pet: Pet | None, note: str) -> None:
        """Add a visit to the scans of the dataset, with all that is known of it."""
        if not ID_PATTERN.fullmatch(scan_id(visit)):
            self.dataset.leave_out(visit, "name is no ID", "expected letters, digits, '.', '_' and '-'")
            return
        mri_date = self.visits.date_of(mri)
        when = self.visits.date_of(pet.image) if pet else mri_date
        days = (when - mri_date).days if pet and when and mri_date else None
        if days is not None and abs(days) > self.window_days:
            note = f"T1 and PET of one session are {abs(days)} days apart"
        space = mri.entities.get("space", "")
        space = "" if space in NATIVE else space
        timing, fault = timing_of(pet.sidecar, pet.fault) if pet else (None, "")
        self.dataset.scans.append(RawScan(
            scan_id(visit), mri.path, pet.path if pet else None, pet.tracer if pet else None,
            pet.entities.get("rec", "") if pet else "", timing, fault, days, space,
            self._mask(mri) if space else None, None if _is_shifted(when) else when,
            self.visits.age_at(visit, when, self.dates[visit[0]]), self.visits.sexes.get(visit[0], ""), note))

    def _mask(self, mri: BidsFile) -> Path | None:
        """The brain mask beside an MRI in MNI space, on its grid if there is one."""
        fitting = []
        for mask in self.masks[mri.visit]:
            own = {item for item in mask.entities.items() if item[0] not in ("desc", "res", "den")}
            if own <= mri.entities.items() and mask.entities.get("space") == mri.entities["space"]:
                fitting.append((mask.entities.get("res") != mri.entities.get("res"), mask.path))
        return min(fitting)[1] if fitting else None


def _is_shifted(day: date | None) -> bool:
    return day is not None and day.year <= SHIFTED
