"""T1 MRIs and amyloid PETs of a BIDS dataset brought together, visit by visit.

A PET goes with the T1 of its session, else with the T1 of the nearest date. Files in MNI space go together.
"""
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cohort.bids_files import BidsFile
from cohort.bids_report import Dataset, Visit, scan_id
from cohort.bids_tables import SHIFTED, Visits
from cohort.raw_scans import RawScan, timing_of
from cohort.tracers import Tracer
from dataset import ID_PATTERN

NATIVE = ("", "T1w", "orig", "scanner", "anat", "individual")              # of space-: the scanner's own
# The spaces of MNI152, the one of our own template first.
MNI = ("MNI152NLin2009aSym", "MNI152NLin2009cSym", "MNI152NLin2009cAsym", "MNI152NLin2009aAsym",
       "MNI152NLin2009bSym", "MNI152NLin2009bAsym", "MNI152NLin6Asym", "MNI152NLin6Sym", "MNI152Lin",
       "MNI152")


@dataclass(frozen=True)
class Pet:
    """An amyloid PET with what is known of it."""
    image: BidsFile
    tracer: Tracer
    sidecar: dict
    sidecar_fault: str

    @property
    def visit(self) -> Visit:
        """Subject and session."""
        return self.image.visit

    @property
    def path(self) -> Path:
        """The file."""
        return self.image.path

    @property
    def entities(self) -> dict[str, str]:
        """The entities of its name."""
        return self.image.entities


@dataclass(frozen=True)
class Undecided:
    """Files of a visit in a space of which none can be chosen: one of them, the reason, '' if the user must
    choose, and what was found."""
    image: BidsFile | Pet
    reason: str
    found: str


def space_of(file: BidsFile | Pet) -> str:
    """The space of an image, '' for the scanner's own."""
    space = file.entities.get("space", "")
    return "" if space in NATIVE else space


def _image(file: BidsFile | Pet | Undecided) -> BidsFile:
    while not isinstance(file, BidsFile):
        file = file.image
    return file


def _space_rank(space: str) -> tuple:
    """Order of spaces: ours first, then others of MNI152, the scanner's last."""
    return (not space, MNI.index(space) if space in MNI else len(MNI), space)


# ---------------------------------------------------------------- pairs

class Unpaired(Exception):
    """A PET has no T1; arguments: the reason, and what was found."""


class Pairing:
    """T1 MRIs and PETs of a dataset, brought together."""

    def __init__(self, dataset: Dataset, mris: dict[Visit, dict[str, BidsFile | Undecided]],
                 pets: dict[Visit, dict[str, Pet | Undecided]], t1_spaces: dict[str, set[str]],
                 masks: list[BidsFile], visits: Visits, window_days: int):
        """mris, pets: visit -> space -> file. t1_spaces: ID of a visit -> spaces of all its T1 MRIs, of those
        that cannot be used too. masks: of any kind. window_days: most days from T1 to PET."""
        self.dataset, self.mris, self.pets, self.visits = dataset, mris, pets, visits
        self.t1_spaces, self.window_days = t1_spaces, window_days
        self.masks: dict[Visit, list[BidsFile]] = defaultdict(list)
        for mask in masks:
            if mask.entities.get("desc") == "brain":
                self.masks[mask.visit].append(mask)
        self.dates: dict[str, dict[Visit, date | None]] = defaultdict(dict)  # subject -> its visits -> date
        for visit in sorted({*mris, *pets}):
            files = [*mris.get(visit, {}).values(), *pets.get(visit, {}).values()]
            known = [day for day in map(self._date, files) if day]
            self.dates[visit[0]][visit] = min(known, default=None)

    def fill(self) -> None:
        """Fill the scans of the dataset, and what is left out of it.

        T1 MRIs are taken alone only where the dataset has no amyloid PET, whether it can be used or not.
        """
        used, named = set(), {row["ID"] for row in self.dataset.left_out}
        for visit, by_space in sorted(self.pets.items()):
            try:
                mri, pet, note = self._pair(visit, by_space)
            except Unpaired as error:
                self._leave_out(visit, *error.args, named)
                continue
            if self._are_chosen(visit, [mri, pet], named):
                used.add(mri.visit)
                self._add(visit, mri, pet, note)
        for visit, by_space in sorted(self.mris.items()):
            if not self.dataset.has_pets:
                mri = by_space[min(by_space, key=_space_rank)]
                if self._are_chosen(visit, [mri], set()):
                    self._add(visit, mri, None, "")
            elif visit not in used and visit not in self.pets and scan_id(visit) not in named:
                self.dataset.leave_out(visit, "no amyloid PET", "a T1 MRI alone; --mri_only takes such")
        self._remark()

    def _are_chosen(self, visit: Visit, files: list[BidsFile | Pet | Undecided], named: set[str]) -> bool:
        """Whether the files that a visit wants are chosen; it is told of those that are not."""
        undecided = [file for file in files if isinstance(file, Undecided)]
        for file in undecided:
            of = scan_id(_image(file).visit)
            self._leave_out(visit, file.reason, file.found if file.reason else f"{of}: {file.found}", named)
        return not undecided

    def _leave_out(self, visit: Visit, reason: str, found: str, named: set[str]) -> None:
        """Tell why a visit is left out, unless its cause is told already. reason: '' if the user must choose.
        named: IDs of which a cause is told."""
        if not reason:
            if found not in self.dataset.ambiguous:        # else of another PET with the same T1
                self.dataset.ambiguous.append(found)
        elif scan_id(visit) not in named:
            self.dataset.leave_out(visit, reason, found)

    def _remark(self) -> None:
        """Remark on tracers and dates of the scans as a whole."""
        tracers = sorted({scan.tracer.label for scan in self.dataset.scans if scan.pet})
        if len(tracers) > 1:
            self.dataset.remarks.append(f"several tracers ({', '.join(tracers)}): each PET is divided by its "
                                        "own reference region, but SUVRs of different tracers do not compare")
        shifted = [scan for days in self.dates.values() for scan, day in days.items() if _is_shifted(day)]
        if shifted:
            self.dataset.remarks.append(f"dates of {len(shifted)} visits lie before {SHIFTED + 1}, shifted "
                                        "as BIDS asks: they give intervals, but are not handed to prepare")

    def _pair(self, visit: Visit, by_space: dict) -> tuple:
        """T1 and PET of a visit in one space, each decided or not, and a note on how they were paired.

        Raises Unpaired of the reason why there is no pair, and what was found.
        """
        spaces = sorted(by_space, key=_space_rank)
        for space in spaces:
            pet = by_space[space]
            if space in self.mris.get(visit, {}):
                return self.mris[visit][space], pet, ""
            mri = self.mris.get((visit[0], ""), {}).get(space)   # fMRIPrep has one T1 for all sessions
            days = self._days(mri, pet) if mri else None
            if mri and (days is None or abs(days) <= self.window_days):
                return mri, pet, "" if days is None else f"T1 without session, {abs(days)} days away"
        if scan_id(visit) in self.t1_spaces:               # that of another session is not meant
            self._refuse_own(spaces, self.t1_spaces[scan_id(visit)])
        others = {other: by for other, by in self.mris.items() if other[0] == visit[0]}
        for space in spaces:
            here = {other: by[space] for other, by in others.items() if space in by}
            if here:
                return self._nearest(visit, by_space[space], here)
        if others:
            self._refuse_own(spaces, {space for by in others.values() for space in by})
        raise Unpaired("no T1", "a PET alone")

    def _refuse_own(self, spaces: list[str], there: set[str]) -> None:
        """Raise Unpaired for T1 MRIs that are there, but not for a PET. spaces: of it; there: of the T1s."""
        if not there or there & set(spaces):
            raise Unpaired("T1 cannot be used", "the T1 MRI of the PET's own session cannot be read")
        names = [" and ".join(space or "the scanner's" for space in sorted(some)) for some in (spaces, there)]
        raise Unpaired("T1 and PET in different spaces", f"the PET in {names[0]}, the T1 in {names[1]}")

    def _nearest(self, visit: Visit, pet: Pet | Undecided, here: dict) -> tuple:
        """The T1 of another session of the subject that goes with a PET. here: visit -> T1."""
        days = {other: abs(between) for other, mri in sorted(here.items())
                if (between := self._days(mri, pet)) is not None}
        if days:
            other = min(days, key=days.get)
            if days[other] <= self.window_days:
                return here[other], pet, f"{_t1_of(other)}, {days[other]} days away"
            raise Unpaired("no T1 near its date", f"the nearest, {scan_id(other)}, is {days[other]} days "
                                                  f"away; window_days is {self.window_days}")
        pets = [other for other in self.pets if other[0] == visit[0]]
        if len(here) == len(pets) == 1:                    # nothing else can be meant
            other = next(iter(here))
            return here[other], pet, f"{_t1_of(other)}, the only one; days between unknown"
        raise Unpaired("no T1 in its session", f"{len(here)} in other sessions, but no dates (acq_time in "
                                                  "*_scans.tsv or *_sessions.tsv) to choose by")

    def _date(self, file: BidsFile | Pet | Undecided) -> date | None:
        return self.visits.date_of(_image(file))

    def _days(self, mri: BidsFile | Undecided, pet: Pet | Undecided) -> int | None:
        """Days from a T1 to a PET, None if a date is unknown."""
        first, second = self._date(mri), self._date(pet)
        return (second - first).days if first and second else None

    def _add(self, visit: Visit, mri: BidsFile, pet: Pet | None, note: str) -> None:
        """Add a visit to the scans of the dataset, with all that is known of it."""
        if not ID_PATTERN.fullmatch(scan_id(visit)):
            self.dataset.leave_out(visit, "name is no ID", "expected letters, digits, '.', '_' and '-'")
            return
        when = self._date(pet or mri)
        days = self._days(mri, pet) if pet else None
        if days is not None and abs(days) > self.window_days:  # others are not paired then
            note = f"T1 and PET of one session are {abs(days)} days apart"
        space = space_of(mri)
        timing, fault = timing_of(pet.sidecar, pet.sidecar_fault) if pet else (None, "")
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


def _t1_of(visit: Visit) -> str:
    return f"T1 of ses-{visit[1]}" if visit[1] else "T1 without session"
