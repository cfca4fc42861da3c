"""A BIDS dataset as scans: one T1 MRI and one amyloid PET a visit, and what is left out, with the reason."""
import re
from collections import Counter, defaultdict
from pathlib import Path

from cohort.bids_files import BidsFile, Fault, Listing, Sidecars, list_dataset
from cohort.bids_names import OURS
from cohort.bids_pairs import Pairing, Pet, Undecided, space_of
from cohort.bids_report import Dataset, Visit, scan_id
from cohort.bids_tables import Visits
from cohort.raw_scans import Ambiguous, Choices, NoRun, choose_one, prefer, tracer_of

VARIANTS = ("space", "res", "suvr", "den")                 # entities in which copies of one image differ
DESC = ("preproc", "", "suvr", "SUVR", "Crop")             # in which they differ too, the best first


def read_dataset(root: Path, choices: Choices) -> Dataset:
    """Understand a dataset by its names, sidecars and tables; no volume is opened."""
    listing = list_dataset(root)
    dataset, visits = Dataset(root), Visits(listing)
    dataset.remarks += visits.remarks
    for fault in listing.faults:
        dataset.leave_out(fault.id, fault.reason, fault.found)
    t1s = _of_suffix(listing, "T1w", dataset)
    mris = _by_space(_whole(t1s, dataset), "T1w", dataset)
    pets = {} if choices.mri_only else _by_space(_amyloid(listing, choices, dataset), "pet", dataset)
    dataset.counts = {"subjects": len({visit[0] for visit in listing.visits}),
                      "sessions": len(listing.visits), "with T1": len({v for v, _ in mris})}
    if not choices.mri_only:
        with_sidecar = sum(bool(pet.sidecar) for files in pets.values() for pet in files)
        dataset.counts |= {"with amyloid PET": len({v for v, _ in pets}), "PETs with sidecar": with_sidecar}
    masks = [image for image in listing.images if image.suffix == "mask" and not image.fault]
    Pairing(dataset, _chosen(mris, choices, dataset), _chosen(pets, choices, dataset),
            _spaces_of_t1s(t1s, listing.faults), masks, visits, choices.window_days).fill()
    return dataset


# ---------------------------------------------------------------- the files of each visit

def _of_suffix(listing: Listing, suffix: str, dataset: Dataset) -> list[BidsFile]:
    """The images of a suffix; those that this program has synthesized are counted."""
    found = []
    for image in listing.images:
        if image.suffix == suffix:
            if image.entities.get("desc", "").startswith(OURS):
                dataset.ignored[f"synthetic {suffix} of this program"] += 1
            else:
                found.append(image)
    return found


def _whole(images: list[BidsFile], dataset: Dataset) -> list[BidsFile]:
    """The images that can be used; the others are left out."""
    for image in images:
        if image.fault:
            dataset.leave_out(image.visit, image.fault.reason, image.fault.found)
    return [image for image in images if not image.fault]


def _amyloid(listing: Listing, choices: Choices, dataset: Dataset) -> list[Pet]:
    """The amyloid PETs that can be used; others are counted, broken and unknown ones are left out."""
    sidecars, pets = Sidecars(listing), []
    dataset.has_pets = any(_is_of(fault, ("pet",), "_pet.") for fault in listing.faults)
    for image in _of_suffix(listing, "pet", dataset):
        content, fault = sidecars.of(image)
        tracer, why = tracer_of(image.entities.get("trc", ""), content, choices.tracer)
        if tracer and not tracer.is_amyloid:
            dataset.ignored[f"PET {tracer.label}"] += 1
            continue
        dataset.has_pets = True
        if image.fault:
            dataset.leave_out(image.visit, image.fault.reason, image.fault.found)
        elif tracer is None:
            why = f"{why} ({fault})" if fault else why
            dataset.leave_out(image.visit, "tracer unknown", f"{image.path.name}: {why}")
        else:
            pets.append(Pet(image, tracer, content, fault))
    return pets


def _by_space(files: list, suffix: str, dataset: Dataset) -> dict[tuple[Visit, str], list]:
    """(visit, space) -> files in MNI space and the scanner's; those in other spaces are counted."""
    found = defaultdict(list)
    for file in files:
        space = space_of(file)
        if space and not space.startswith("MNI152"):
            dataset.ignored[f"{suffix} in space-{space}"] += 1
        else:
            found[file.visit, space].append(file)
    return found


def _spaces_of_t1s(images: list[BidsFile], faults: list[Fault]) -> dict[str, set[str]]:
    """ID of a visit -> the spaces of all its T1 MRIs, even of those that cannot be used; none is known of a
    folder that cannot be read."""
    spaces = defaultdict(set)
    for image in images:
        spaces[scan_id(image.visit)].add(space_of(image))
    for fault in faults:
        if _is_of(fault, ("anat", "t1_linear"), "_T1w."):
            spaces[fault.id] |= set()
    return spaces


def _is_of(fault: Fault, folders: tuple[str, ...], part: str) -> bool:
    """Whether a fault is of a folder whose name begins like these, or of a file with this part of a name."""
    return fault.path.name.startswith(folders) or part in fault.path.name


def _chosen(found: dict[tuple[Visit, str], list], choices: Choices, dataset: Dataset) -> dict[Visit, dict]:
    """Visit -> space -> the one image, or why none can be chosen."""
    chosen: dict[Visit, dict] = defaultdict(dict)
    several = Counter()
    for (visit, space), files in sorted(found.items(), key=_key):
        copies = _copies(prefer(files, choices.entities))
        try:
            one = choose_one([same[0] for same in copies], choices)
        except NoRun as error:
            one = Undecided(files[0], f"no run {choices.run}", str(error))
        except Ambiguous as error:
            one = Undecided(files[0], "", str(error))
        chosen[visit][space] = one
        if any(same[0] is one and len(same) > 1 for same in copies):
            several[one.path.name.removeprefix(scan_id(visit))] += 1
    for name, count in several.items():
        dataset.remarks.append(f"of several copies of an image, *{name} is taken ({count} visits)")
    return chosen


def _key(item: tuple) -> tuple:
    return item[0]


def _copies(files: list) -> list[list]:
    """The files grouped as copies of one image on other grids or otherwise processed, the best of each first.

    A desc- that is not known here is no copy: it may be a dynamic scan beside a static one.
    """
    groups: dict[tuple, list] = defaultdict(list)
    for file in files:
        same = [item for item in sorted(file.entities.items()) if item[0] not in VARIANTS
                and not (item[0] == "desc" and item[1] in DESC)]
        groups[tuple(same)].append(file)
    return [sorted(copies, key=_rank) for copies in groups.values()]


def _rank(file) -> tuple:
    """Order of copies: preprocessed before as it is, uncropped before cropped, near to 1 mm, by name."""
    desc, res = file.entities.get("desc", ""), file.entities.get("res", "")
    number = re.match(r"0*(\d+)", res)
    return (DESC.index(desc) if desc in DESC else len(DESC), int(number[1]) if number else 1, file.path.name)
