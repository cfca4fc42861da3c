"""The digital phantom cohort: simulated T1 MRI and amyloid PET with a known truth, for anyone without patient data.

Every subject is a deformed and more or less atrophied copy of the MNI152 2009a tissue maps that nilearn carries. Its PET shows
non-specific uptake in white matter, which everybody has, and cortical amyloid, solved for such that the measured SUVR is the one drawn.
Atrophy is correlated with the amyloid load, so that the MRI says something about the PET, but not all. Coordinates are MNI millimetres,
x to the right, y to the front, z up; fractions are tissue per voxel in [0, 1].
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
from numpy.random import Generator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import ndtr, ndtri

from phantom.anatomy import CORNER, FIELD_OF_VIEW, Template, load_template, thin
from runtime.files import sync
from runtime.logs import progress_bar, say
from runtime.signals import abandoned_on_error, serve_parent

VERSION = 1                                   # raise it with every change that alters a voxel
NOTE = "digital phantom, not patient data"
SPLITS = ("train", "validation", "test")
MAX_WORKERS = 16                              # at 1 mm a worker holds 1 to 2 GiB

SUVR_NEGATIVE = (1.05, 0.05)                  # mean and SD of the cortical SUVR; 1.11 is the usual threshold of florbetapir
SUVR_POSITIVE = (1.45, 0.14)
LOAD_ZERO = 1.0                               # SUVR without amyloid
TRUNCATE = 3.0                                # SD; bounds every draw, so that intensities have a ceiling
WHITE_UPTAKE = (1.55, 0.10)                   # mean and SD over subjects; cerebellar mean is 1 after normalisation
CSF_UPTAKE = 0.30
PET_SCALE = 4.0                               # SUVR that is stored as 1; without noise no voxel exceeds 3.1
PET_FWHM = 7.0                                # mm, the scanner's resolution
SLOW_FWHM, SLOW_SD = 30.0, 0.04               # mm and fraction: uptake that varies from place to place
NOISE_FWHM, NOISE_SD = 7.0, 0.04              # mm and fraction: image noise after reconstruction
NOISE_BOUND = 0.5                             # no voxel gains or loses more than half
SUPPORT = 8.0                                 # mm around the brain; beyond it the blur's tail is cut to an exact 0

DEFORMATION_MM, DEFORMATION_SD = 25.0, 2.0    # mm: width of the smoothing kernel and SD per component
REACH = 12.0                                  # mm, 6 SD of the deformation
EDGE_MM = 20.0                                # mm over which the deformation fades towards the box
ATROPHY_BOUND = 3.0                           # SD at which the anatomy's response levels off: beyond it the push would fold space
BIAS_MM, BIAS_SD = 40.0, 0.025                # mm, fraction: 95 % of the bias field lies within 5 %
MRI_NOISE = 0.02
GREY_TO_CSF = 0.37                            # T1 intensity, 0.65 against 0.28 in the template
AGE_MEAN, AGE_SD, AGE_ATROPHY = 72.0, 6.0, 0.4
ORACLE_DRAWS = 2000


# ---------------------------------------------------------------- scalars of a subject

class Subject(NamedTuple):
    """What is drawn of a subject before any image."""
    label: int                     # 1 amyloid positive, 0 negative
    suvr: float                    # cortex over cerebellum, as the PET will measure it
    load: float                    # suvr - LOAD_ZERO
    atrophy: float                 # SD over the cohort, larger is more
    age: float                     # years
    sex: str                       # M or F
    white: float                   # uptake of white matter before normalisation


def truncated_normal(u, mean_sd: tuple[float, float]):
    """Quantile u, in (0, 1), of the normal distribution with this mean and SD, cut at TRUNCATE SD on both sides."""
    low = ndtr(-TRUNCATE)
    return mean_sd[0] + mean_sd[1] * ndtri(low + u * (1 - 2 * low))


def standard_load(suvr):
    """Amyloid load in SD of a cohort that is half positive: SUVR -> z, mean 0 and variance 1 over such a cohort."""
    density = np.exp(-TRUNCATE ** 2 / 2) / np.sqrt(2 * np.pi)
    shrink = 1 - 2 * TRUNCATE * density / (1 - 2 * ndtr(-TRUNCATE))          # variance of a truncated standard normal
    mean = (SUVR_NEGATIVE[0] + SUVR_POSITIVE[0]) / 2
    between = (SUVR_POSITIVE[0] - SUVR_NEGATIVE[0]) ** 2 / 4
    return (suvr - mean) / np.sqrt(between + shrink * (SUVR_NEGATIVE[1] ** 2 + SUVR_POSITIVE[1] ** 2) / 2)


def draw_subject(rng: Generator, label: int, link: float) -> Subject:
    """Draw the scalars of one subject. label: 0 or 1. link: correlation of atrophy with load over a half-positive cohort, in [0, 0.95].

    Age follows atrophy alone and sex follows nothing, so neither tells more about the label than the MRI does.
    """
    suvr = float(truncated_normal(rng.uniform(), SUVR_POSITIVE if label else SUVR_NEGATIVE))
    atrophy = link * float(standard_load(suvr)) + np.sqrt(1 - link ** 2) * rng.standard_normal()
    age = AGE_MEAN + AGE_SD * (AGE_ATROPHY * atrophy + np.sqrt(1 - AGE_ATROPHY ** 2) * rng.standard_normal())
    sex = "MF"[rng.integers(2)]
    white = float(truncated_normal(rng.uniform(), WHITE_UPTAKE))
    return Subject(label, suvr, suvr - LOAD_ZERO, float(atrophy), round(float(age), 1), sex, white)


def assign(subjects: tuple[int, int, int], seed: int) -> list[tuple[str, str, int]]:
    """(ID, split, label) of every subject. subjects: numbers for train, validation, test.

    Half of each split is positive, an odd number rounded up, down, up. Labels are shuffled, so that the ID tells nothing.
    """
    rng = np.random.default_rng([seed, 0])
    rows = []
    for i, (split, number) in enumerate(zip(SPLITS, subjects, strict=True)):
        positives = (number + 1 - i % 2) // 2
        for label in rng.permutation(np.arange(number) < positives):
            rows.append((f"phantom{len(rows) + 1:03d}", split, int(label)))
    return rows


# ---------------------------------------------------------------- images of a subject

def smooth_field(rng: Generator, axes: tuple[np.ndarray, ...], kernel_mm: float) -> np.ndarray:
    """White noise on a fixed lattice, smoothed by a Gaussian of SD kernel_mm: [X, Y, Z] float32, mean 0, variance 1 at every point.

    The lattice does not know the voxel size, so that a subject is the same at any. The kernel is separable: one axis at a time. einsum
    rather than a BLAS product, whose threads would fight over the cores with the other workers.
    """
    lattice = [np.arange(a - 3 * kernel_mm, a + size + 3 * kernel_mm, kernel_mm) for a, size in zip(CORNER, FIELD_OF_VIEW, strict=True)]
    field = rng.standard_normal([len(points) for points in lattice], dtype=np.float32)
    for points, axis in zip(lattice, axes, strict=True):
        kernel = np.exp(-((axis[:, None] - points) / kernel_mm) ** 2 / 2)
        kernel /= np.sqrt((kernel ** 2).sum(1, keepdims=True))
        field = np.moveaxis(np.einsum("ia,abc->ibc", kernel.astype(np.float32), field), 0, 2)
        field = np.ascontiguousarray(field)                                  # the axes rotate: after three turns they stand as at first
    return field


def draw_deformation(template: Template, rng: Generator, atrophy: float) -> np.ndarray:
    """Where each voxel comes from, as voxel indices [3, X, Y, Z]: a random smooth deformation plus the widening of the ventricles."""
    v, shape = template.voxel_mm, template.brain.shape
    coordinates = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    fade = np.float32(1)
    for axis, size in enumerate(shape):
        to_edge = np.minimum(np.arange(size), np.arange(size)[::-1]) * v / EDGE_MM
        fade = fade * to_edge.clip(0, 1).reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    for axis in range(3):
        displacement = DEFORMATION_SD * smooth_field(rng, template.axes, DEFORMATION_MM) * fade
        coordinates[axis] -= (displacement + atrophy * template.push[axis]) / v
    return coordinates


def simulate_anatomy(template: Template, rng: Generator, atrophy: float) -> dict[str, np.ndarray]:
    """The subject's maps, each [X, Y, Z]: t1 without noise, the fractions brain, white and csf, grey as baseline (times its uptake) and
    as amyloid (times its relative amyloid), all float32, and support, bool, where PET may differ from 0. atrophy: SD.
    """
    response = np.float32(ATROPHY_BOUND * np.tanh(atrophy / ATROPHY_BOUND))
    csf = (template.brain - template.grey - template.white).clip(0)
    grey = thin(template.grey, csf, response * template.thinning)
    lost = template.grey - grey
    sources = {"t1": template.t1 - GREY_TO_CSF * lost, "brain": template.brain, "white": template.white, "csf": csf + lost,
               "baseline": template.baseline * grey, "amyloid": template.amyloid * grey, "distance": template.distance}
    inside = template.distance <= SUPPORT + REACH                              # what lies farther out is background
    coordinates = draw_deformation(template, rng, response)[:, inside]       # [3, N]
    maps = {}
    for name, source in sources.items():
        maps[name] = np.zeros_like(source)
        maps[name][inside] = map_coordinates(source, coordinates, order=1, mode="nearest")
    maps["support"] = inside & (maps.pop("distance") <= SUPPORT)
    return maps


def render_mri(template: Template, anatomy: dict[str, np.ndarray], rng: Generator) -> np.ndarray:
    """T1 with bias field and noise inside the brain, 0 outside: [X, Y, Z] float32 in [0, 1]."""
    bias = 1 + BIAS_SD * smooth_field(rng, template.axes, BIAS_MM)
    noise = MRI_NOISE * rng.standard_normal(bias.shape, dtype=np.float32)
    return np.where(anatomy["brain"] > 0.5, anatomy["t1"] * bias + noise, 0).clip(0, 1)


def draw_noise(template: Template, rng: Generator) -> np.ndarray:
    """Relative PET noise, [X, Y, Z] float32, mean 0, within NOISE_BOUND: uptake that varies slowly, and image noise."""
    noise = SLOW_SD * smooth_field(rng, template.axes, SLOW_FWHM / 2.355) + NOISE_SD * smooth_field(rng, template.axes, NOISE_FWHM / 2.355)
    return NOISE_BOUND * np.tanh(noise / NOISE_BOUND)


def blur_components(template: Template, anatomy: dict[str, np.ndarray]) -> np.ndarray:
    """White, grey (times its baseline), amyloid and CSF map as the scanner sees them, [4, X, Y, Z] float32. PET is linear in these."""
    sigma = PET_FWHM / 2.355 / template.voxel_mm
    names = ("white", "baseline", "amyloid", "csf")
    return np.stack([gaussian_filter(anatomy[name], sigma, mode="constant") * anatomy["support"] for name in names])


def region_means(template: Template, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of each component [4, X, Y, Z] in the target composite and in the reference region: two [4] float64."""
    return components[:, template.cortex].mean(1, dtype=np.float64), components[:, template.cerebellum].mean(1, dtype=np.float64)


def solve_uptake(cortex: np.ndarray, cerebellum: np.ndarray, white, suvr) -> np.ndarray:
    """Uptake of the four components for which cortex / cerebellum is suvr and cerebellum is 1: [4, ...], shaped like white and suvr.

    cortex, cerebellum: [4] from region_means. The equation is linear in the amyloid uptake c:
    base_cortex + c amyloid_cortex = suvr (base_cerebellum + c amyloid_cerebellum), base being the three other components.
    """
    base_cortex = white * cortex[0] + cortex[1] + CSF_UPTAKE * cortex[3]
    base_cerebellum = white * cerebellum[0] + cerebellum[1] + CSF_UPTAKE * cerebellum[3]
    amyloid = (suvr * base_cerebellum - base_cortex) / (cortex[2] - suvr * cerebellum[2])
    level = base_cerebellum + amyloid * cerebellum[2]
    return np.stack(np.broadcast_arrays(white, 1.0, amyloid, CSF_UPTAKE)) / level


def combine(uptake: np.ndarray, components: np.ndarray) -> np.ndarray:
    """PET in [0, 1], [X, Y, Z] float32: uptake [4] times components [4, X, Y, Z], an SUVR of PET_SCALE stored as 1."""
    pet = np.einsum("k,kxyz->xyz", (uptake / PET_SCALE).astype(np.float32), components)
    assert pet.min() >= 0 and pet.max() <= 1, f"PET in [{pet.min():.3f}, {pet.max():.3f}]: a range outside [0, 1] would need clipping"
    return pet


def expected_uptake(cortex: np.ndarray, cerebellum: np.ndarray, atrophy: float, link: float) -> np.ndarray:
    """Mean over draws of solve_uptake given the subject's anatomy and atrophy, [4]. cortex, cerebellum: [4] from region_means.

    Draws of (SUVR, white uptake) from the prior, half of them positive, on quantiles rather than at random; each weighs as much as it
    makes the atrophy likely, p(atrophy | SUVR) = N(link z, 1 - link^2). With link 0 all weigh the same: the prior mean.
    """
    u = (np.arange(ORACLE_DRAWS // 2) + 0.5) / (ORACLE_DRAWS // 2)
    suvr = np.concatenate([truncated_normal(u, SUVR_NEGATIVE), truncated_normal(u, SUVR_POSITIVE)])
    order = np.random.default_rng(0)                                         # only pairs the quantiles; the same for all subjects
    white = np.concatenate([truncated_normal(order.permutation(u), WHITE_UPTAKE) for _ in range(2)])
    log_weight = -(atrophy - link * standard_load(suvr)) ** 2 / (2 * (1 - link ** 2))
    weight = np.exp(log_weight - log_weight.max())
    return solve_uptake(cortex, cerebellum, white, suvr) @ (weight / weight.sum())


def simulate(template: Template, rng: Generator, subject: Subject, link: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MRI, PET and oracle of a subject, each [X, Y, Z] float32 in [0, 1], background 0.

    The oracle is E[PET | deformation, atrophy]: no method that sees the MRI can have a lower expected squared error. Exact is the mean
    over status, SUVR and white uptake, up to the grid of ORACLE_DRAWS quantiles. Neglected is that noise also moves the regional means
    by which PET is solved and normalised: an effect of second order in their noise (SD 1 to 2 %), hence some 1e-4 of the uptake.
    """
    anatomy = simulate_anatomy(template, rng, subject.atrophy)
    components = blur_components(template, anatomy)
    oracle = combine(expected_uptake(*region_means(template, components), subject.atrophy, link), components)
    components *= 1 + draw_noise(template, rng)
    pet = combine(solve_uptake(*region_means(template, components), subject.white, subject.suvr), components)
    return render_mri(template, anatomy, rng), pet, oracle


# ---------------------------------------------------------------- the cohort on disk

def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI volume in the array's own type. Code 4 says that the coordinates are MNI's."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


_template: Template | None = None   # one copy a worker, not one a task


def set_template(template: Template) -> None:
    """Start a worker: keep the template that all its subjects share."""
    global _template
    serve_parent()
    _template = template


def write_subject(task: tuple[Path, int, str, str, int, float, int]) -> Subject:
    """Simulate one subject and write its volumes, in a worker. The index seeds it: neither the order nor the number of workers matters."""
    root, index, name, split, label, link, seed = task
    rng = np.random.default_rng([seed, index])
    subject = draw_subject(rng, label, link)
    mri, pet, oracle = simulate(_template, rng, subject, link)
    save(root / "whole_MRI" / f"{name}.nii.gz", mri, _template.affine)
    save(root / "whole_Abeta" / f"{name}.nii.gz", pet, _template.affine)
    if split != "train":
        save(root / "truth" / "oracle" / f"{name}.nii.gz", oracle, _template.affine)
    return subject


def check_settings(subjects: tuple[int, int, int], voxel_mm: int, link: float, seed: int) -> None:
    """ValueError with every setting that is out of range."""
    problems = []
    if len(subjects) != len(SPLITS) or min(subjects) < 0 or sum(subjects) == 0:
        problems.append(f"subjects {subjects}: expected numbers for {', '.join(SPLITS)}, none negative, at least one subject")
    if voxel_mm not in range(1, 11):
        problems.append(f"voxel_mm {voxel_mm}: expected an integer from 1 to 10, beyond that no cortex is left")
    if not 0 <= link <= 0.95:
        problems.append(f"link {link}: expected a correlation in [0, 0.95]")
    if seed < 0:
        problems.append(f"seed {seed}: expected 0 or more")
    if problems:
        raise ValueError("the phantom cannot be built:\n  " + "\n  ".join(problems))


def already_built(root: Path, settings: dict) -> bool:
    """Whether root holds the cohort with these settings. ValueError if it holds anything else: no data is ever overwritten."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / "phantom.json").is_file():
        raise ValueError(f"{root} is not empty and holds no phantom; it is left untouched. Pass another --data_dir for the phantom")
    try:
        there = dict(json.loads((root / "phantom.json").read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{root / 'phantom.json'} is damaged; delete {root}, and the phantom is built again") from error
    differences = [f"{key}: {there.get(key)} -> {asked}" for key, asked in settings.items() if there.get(key) != asked]
    if differences:
        raise ValueError(f"{root} holds a phantom with other settings (there -> asked):\n  " + "\n  ".join(differences)
                         + "\nPass another --data_dir, or delete that folder")
    return True


def write_tables(root: Path, cohort: list[tuple[str, str, int]], drawn: list[Subject]) -> None:
    """Write data_info, which training reads, and truth/truth.csv, which it must not read."""
    table = pd.DataFrame(drawn)
    table.insert(0, "ID", [name for name, _, _ in cohort])
    table[["ID", "label", "age", "sex"]].to_csv(root / "data_info" / "data_info.csv", index=False)
    table[["ID", "label", "suvr", "load", "atrophy"]].to_csv(root / "truth" / "truth.csv", index=False)
    for split in SPLITS:
        names = [name for name, where, _ in cohort if where == split]
        (root / "data_info" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def build_phantom(root: Path, subjects: tuple[int, int, int], voxel_mm: int, link: float, seed: int) -> None:
    """Simulate the cohort under root, unless it is already there with these very settings.

    subjects: numbers for train, validation, test. voxel_mm: 1 (the paper's grid, 181x217x181) to 10. link: correlation of atrophy with
    amyloid load, in [0, 0.95]. The cohort grows in a folder beside root, which takes its name at the end: a killed run leaves no half
    cohort, and a second run that wants it waits. The same settings give the same voxels, whatever the number of workers. ValueError if
    root holds something else, or a setting is out of range.
    """
    check_settings(subjects, voxel_mm, link, seed)
    root = Path(root).resolve()
    settings = {"version": VERSION, "phantom_subjects": list(subjects), "phantom_voxel": voxel_mm,     # named as on the command line
                "phantom_link": float(link), "phantom_seed": seed}
    if already_built(root, settings):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if not already_built(root, settings):
            build(root, settings, subjects, voxel_mm, link, seed)


def build(root: Path, settings: dict, subjects: tuple[int, int, int], voxel_mm: int, link: float, seed: int) -> None:
    """Simulate the cohort beside root and give it that name; arguments as in build_phantom."""
    say("check", f"building a digital phantom cohort of {' + '.join(map(str, subjects))} subjects at {voxel_mm} mm in {root}")
    growing = root.with_name(root.name + ".phantom_unfinished")
    shutil.rmtree(growing, ignore_errors=True)
    for folder in ("whole_MRI", "whole_Abeta", "data_info", "truth/oracle"):
        (growing / folder).mkdir(parents=True)

    template = load_template(voxel_mm)
    cohort = assign(subjects, seed)
    tasks = [(growing, index, *row, link, seed) for index, row in enumerate(cohort, start=1)]
    workers = min(os.cpu_count() or 1, len(tasks), MAX_WORKERS)
    with abandoned_on_error(ProcessPoolExecutor(workers, initializer=set_template, initargs=(template,))) as pool:
        drawn = list(progress_bar(pool.map(write_subject, tasks), total=len(tasks), desc="phantom", unit="subject"))

    save(growing / "truth" / "cortex.nii.gz", template.cortex.astype(np.uint8), template.affine)
    save(growing / "truth" / "cerebellum.nii.gz", template.cerebellum.astype(np.uint8), template.affine)
    write_tables(growing, cohort, drawn)
    (growing / "phantom.json").write_text(json.dumps(settings | {"note": NOTE}, indent=2) + "\n")
    for path in growing.rglob("*"):
        sync(path)
    if root.exists():
        root.rmdir()                                                         # empty, or already_built would have refused it
    growing.rename(root)
