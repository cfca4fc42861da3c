"""The digital phantom cohort on disk: simulated T1 MRI and amyloid PET with a known truth.

The cohort is laid out as a user's own (data/README.md), plus truth/: the two regions, a table of the scalars,
and the oracle of the validation and test list. How one subject is drawn and rendered stands in uptake.py.
"""
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from filelock import FileLock

from phantom.anatomy import Template, load_template
from phantom.covariates import Covariates, draw_covariates
from phantom.kinds import KINDS, PLAIN
from phantom.sites import LEAST_OF_A_SITE, SITES, Member, assign
from phantom.uptake import Subject, draw_subject, simulate
from runtime.files import sync
from runtime.logs import progress_bar, say
from runtime.signals import abandoned_on_error, serve_parent

VERSION = 1                                   # raise it with every change that alters a voxel
NOTE = "digital phantom, not patient data"
SPLITS = ("train", "validation", "test")
MAX_WORKERS = 16                              # at 1 mm a worker holds 1 to 2 GiB


class Simulation(NamedTuple):
    """What a cohort is simulated with, as the settings phantom_<name> of config.py.

    subjects: numbers for train, validation, test. voxel: mm, 1 (the paper's grid, 181x217x181) to 10. link:
    correlation of atrophy with amyloid load, in [0, 0.95]. discordant: share of the subjects in whom they
    have nothing to do with each other. marker: correlation of the blood marker with the load, in [0, 0.95].
    sites: 1 to 6, the first of phantom/sites.py. kind: a name of phantom/kinds.py.
    """
    subjects: tuple[int, int, int]
    voxel: int
    link: float
    seed: int
    discordant: float = 0.0
    marker: float = 0.75
    sites: int = 1
    kind: str = PLAIN.name

    def as_saved(self) -> dict:
        """The content of phantom.json, by which a later run recognises the cohort."""
        named = {f"phantom_{name}": value for name, value in self._asdict().items()}
        return {"version": VERSION, **named, "phantom_subjects": list(self.subjects)}


def build_phantom(root: Path, subjects: tuple[int, int, int], voxel_mm: int, link: float, seed: int,
                  discordant: float = 0.0, marker: float = 0.75, sites: int = 1,
                  kind: str = PLAIN.name) -> None:
    """Simulate the cohort under root, unless it is already there with these very settings.

    The arguments are those of Simulation. The cohort grows in a folder beside root, which takes its name at
    the end: a killed run leaves no half cohort, and a second run that wants it waits. The same settings give
    the same voxels, whatever the number of workers. Raises ValueError if root holds something else, or a
    setting is out of range.
    """
    simulation = Simulation(subjects, voxel_mm, float(link), seed, float(discordant), float(marker), sites,
                            kind)
    check_settings(simulation)
    root = Path(root).resolve()
    if already_built(root, simulation.as_saved()):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if not already_built(root, simulation.as_saved()):
            build(root, simulation)


def build(root: Path, simulation: Simulation) -> None:
    """Simulate the cohort beside root and give it that name."""
    counts, voxel_mm = " + ".join(map(str, simulation.subjects)), simulation.voxel
    say("check", f"building a digital phantom cohort of {counts} subjects at {voxel_mm} mm in {root}")
    growing = root.with_name(root.name + ".phantom_unfinished")
    shutil.rmtree(growing, ignore_errors=True)
    for folder in ("whole_MRI", "whole_Abeta", "data_info", "truth/oracle"):
        (growing / folder).mkdir(parents=True)

    kind = KINDS[simulation.kind]
    template = load_template(voxel_mm, kind)
    numbers = dict(zip(SPLITS, simulation.subjects, strict=True))
    cohort = assign(numbers, simulation.seed, simulation.sites, kind.site)
    tasks = [(growing, index, member, simulation) for index, member in enumerate(cohort, start=1)]
    number = min(os.cpu_count() or 1, len(tasks), MAX_WORKERS)
    workers = ProcessPoolExecutor(number, initializer=set_template, initargs=(template,))
    with abandoned_on_error(workers) as pool:
        done = pool.map(write_subject, tasks)
        drawn = list(progress_bar(done, total=len(tasks), desc="phantom", unit="subject"))

    save(growing / "truth" / "cortex.nii.gz", template.cortex.astype(np.uint8), template.affine)
    save(growing / "truth" / "cerebellum.nii.gz", template.cerebellum.astype(np.uint8), template.affine)
    write_tables(growing, cohort, drawn)
    (growing / "phantom.json").write_text(json.dumps(simulation.as_saved() | {"note": NOTE}, indent=2) + "\n")
    for path in growing.rglob("*"):
        sync(path)
    if root.exists():
        root.rmdir()                              # empty, or already_built would have refused it
    growing.rename(root)


# ---------------------------------------------------------------- before anything is simulated

def check_settings(simulation: Simulation) -> None:
    """Raise ValueError that lists every setting which is out of range."""
    subjects, voxel_mm, link, seed, discordant, marker, sites, kind = simulation
    problems = []
    if len(subjects) != len(SPLITS) or min(subjects) < 0 or sum(subjects) == 0:
        problems.append(f"subjects {subjects}: expected numbers for {', '.join(SPLITS)}, none negative, "
                        "at least one subject")
    if voxel_mm not in range(1, 11):
        problems.append(f"voxel_mm {voxel_mm}: expected an integer from 1 to 10: beyond, no cortex is left")
    for name, value in (("link", link), ("marker", marker)):
        if not 0 <= value <= 0.95:
            problems.append(f"{name} {value}: expected a correlation in [0, 0.95]")
    if not 0 <= discordant <= 1:
        problems.append(f"discordant {discordant}: expected a share in [0, 1]")
    if seed < 0:
        problems.append(f"seed {seed}: expected 0 or more")
    if sites not in range(1, len(SITES) + 1):
        problems.append(f"sites {sites}: expected an integer from 1 to {len(SITES)}")
    elif sites > 1 and min((n for n in subjects if n), default=0) < LEAST_OF_A_SITE * sites:
        problems.append(f"subjects {subjects}: expected at least {LEAST_OF_A_SITE * sites} in each list, "
                        f"{LEAST_OF_A_SITE} of each of the {sites} sites")
    if kind not in KINDS:
        problems.append(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    elif kind != PLAIN.name and sites != 1:
        problems.append(f"kind {kind} and sites {sites}: expected one site, because sites have resolutions "
                        "and prevalences of their own")
    if problems:
        raise ValueError("the phantom cannot be built:\n  " + "\n  ".join(problems))


def already_built(root: Path, settings: dict) -> bool:
    """Whether root holds the cohort with these settings.

    Raises ValueError if it holds anything else: no data is ever overwritten.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / "phantom.json").is_file():
        raise ValueError(f"{root} is not empty and holds no phantom; it is left untouched. Pass another "
                         "--data_dir for the phantom")
    try:
        saved = {"phantom_kind": PLAIN.name}     # of a phantom that was built before there were kinds
        saved |= json.loads((root / "phantom.json").read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{root / 'phantom.json'} is damaged; delete {root}, and the phantom is built again"
                         ) from error
    differences = []
    for key, value in settings.items():
        if saved.get(key) != value:
            differences.append(f"{key}: {saved.get(key)} -> {value}")
    if differences:
        raise ValueError(f"{root} holds a phantom with other settings (there -> asked):\n  "
                         + "\n  ".join(differences) + "\nPass another --data_dir, or delete that folder")
    return True


# ---------------------------------------------------------------- files

_template: Template | None = None                 # one copy a worker, not one a task


def set_template(template: Template) -> None:
    """Start a worker: keep the template that all its subjects share."""
    global _template
    serve_parent()
    _template = template


class Drawn(NamedTuple):
    """The scalars of one simulated subject."""
    subject: Subject
    covariates: Covariates
    discordant: bool


def write_subject(task: tuple[Path, int, Member, Simulation]) -> Drawn:
    """Simulate one subject and write its volumes, in a worker.

    task: folder, index, who it is, settings. The index seeds the subject, so that neither the order nor
    the number of workers matters; what lies beside the images has a stream of its own, so that it changes no
    voxel of those whose atrophy is linked.
    """
    root, index, (name, split, label, site), simulation = task
    rng, rng_beside = (np.random.default_rng([simulation.seed, index, *stream]) for stream in ((), (1,)))
    discordant = bool(rng_beside.uniform() < simulation.discordant)
    white_uptake = KINDS[simulation.kind].white_uptake
    subject = draw_subject(rng, label, 0.0 if discordant else simulation.link, white_uptake)
    covariates = draw_covariates(rng_beside, subject, simulation.marker)
    mri, pet, oracle = simulate(_template, rng, subject, simulation.link, simulation.discordant, site,
                                white_uptake)
    save(root / "whole_MRI" / f"{name}.nii.gz", mri, _template.affine)
    save(root / "whole_Abeta" / f"{name}.nii.gz", pet, _template.affine)
    if split != "train":
        save(root / "truth" / "oracle" / f"{name}.nii.gz", oracle, _template.affine)
    return Drawn(subject, covariates, discordant)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI volume in the array's own type. Code 4 says that the coordinates are MNI's."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_tables(root: Path, cohort: list[Member], drawn: list[Drawn]) -> None:
    """Write data_info/, which training reads, and truth/truth.csv, which it must not read.

    drawn: the scalars of the members of the cohort, in their order.
    """
    table = pd.DataFrame([one.subject for one in drawn]).join(pd.DataFrame([one.covariates for one in drawn]))
    table.insert(0, "ID", [member.id for member in cohort])
    table["site"] = [member.site.name for member in cohort]
    table["discordant"] = [int(one.discordant) for one in drawn]
    info = table[["ID", "label", "age", "sex", *Covariates._fields, "site"]]
    info.to_csv(root / "data_info" / "data_info.csv", index=False)
    truth = table[["ID", "label", "suvr", "load", "atrophy", "discordant"]]
    truth.to_csv(root / "truth" / "truth.csv", index=False)
    for split in SPLITS:
        names = [member.id for member in cohort if member.split == split]
        (root / "data_info" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
