"""New MRIs: finding them, checking that they can be used, and bringing them onto the grid of the cohort."""
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from skimage.transform import downscale_local_mean

from cohort.bids import read_dataset
from cohort.bids_files import is_dataset
from cohort.bids_names import join_name, parse_name
from cohort.bids_report import say_found
from cohort.derivative import derived_entities, home_of, resolution
from cohort.raw_scans import Choices
from imaging.grids import Crop, Grid, block_affine, resample
from imaging.headers import read_header
from imaging.nifti_files import digest_of, is_volume_name, stem_of
from imaging.regions import read_mask
from imaging.remarks import Remarks
from imaging.volumes import RANGE_TOLERANCE, RINGING, read_in_range
from runtime.files import brief, file_status
from runtime.logs import say
from utils import InputError

PREPARES = "python main.py preprocess --raw RAW --data_dir NEW"      # RAW: a whole head -> NEW/whole_MRI
OURS = "_desc-ilcldm"        # in the names of written files, so that none is ever taken for an MRI
DESC = "ilcldmSynthetic"     # begins as OURS does, by which files of earlier versions are known too
LONGEST_NAME = 200           # characters; file systems allow 255, suffixes and partial files need some

# A brain is looked for at 4 mm, in a box of MNI space that is larger than any head.
BOX = Grid((60, 70, 62), np.array([[4.0, 0, 0, -118], [0, 4, 0, -154], [0, 0, 4, -118], [0, 0, 0, 1]]))
BACKGROUND = 0.05            # share of the 99th percentile of the voxels above 0; tissue is brighter
OVERLAP = 0.85               # least Dice of tissue and MNI brain; the documentation of new scans says why
LIKENESS = 0.55              # least correlation with the MNI T1 inside that brain; likewise
WHOLE_HEAD = 1.4             # tissue of more than so many MNI brains is that of a whole head


@dataclass(frozen=True)
class NewScan:
    """An MRI that has neither PET nor label.

    id: name of its file without suffix, of a BIDS dataset subject and session. mri: the file. name: of the
    files written for it, without suffix, a BIDS name. mask: of its brain, which is cut out; None: the MRI is
    a brain. cells: name and text of the covariates that are known.
    """
    id: str
    mri: Path
    name: str
    mask: Path | None = None
    cells: tuple[tuple[str, str], ...] = ()

    @property
    def entities(self) -> dict[str, str]:
        """The entities of the files that are written for it."""
        return parse_name(self.name)[0]

    def written(self, out: Path) -> dict[str, Path]:
        """Paths of all files that are written for it into the dataset `out`."""
        home = home_of(out, self.entities, "pet")
        return {"sidecar": home / f"{self.name}.json", "pet": home / f"{self.name}.nii.gz",
                "picture": home / f"{self.name}.png"}

    def sample(self, out: Path, number: int) -> dict[str, Path]:
        """Paths of the files of its sample of this number, from 1, in the dataset `out`."""
        stem = home_of(out, self.entities, "pet") / f"{self.name.removesuffix('_pet')}Sample{number:02d}_pet"
        return {"sidecar": stem.with_name(f"{stem.name}.json"), "pet": stem.with_name(f"{stem.name}.nii.gz")}

    def beside(self, out: Path) -> list[Path]:
        """The files in the dataset `out` that belong to its PET: all its samples, and the standard deviation
        of an earlier version."""
        pattern = rf"{re.escape(self.name.removesuffix('_pet'))}(Sample\d+|SD)_pet\.(json|nii\.gz)"
        home = home_of(out, self.entities, "pet")
        return [path for path in sorted(home.glob("*_pet.*")) if re.fullmatch(pattern, path.name)]


# ---------------------------------------------------------------- files

def find_scans(mri: Path, choices: Choices | None = None) -> list[NewScan]:
    """Find the MRI, or those of a folder or of a BIDS dataset, in the order of their names.

    choices: among the files of a visit of a dataset.
    Hidden files, folders inside the folder, and files written by this stage are left out.
    Raises InputError if there is none, or if names clash, name nothing or are too long.
    """
    if is_dataset(mri):
        return find_in_dataset(mri, choices or Choices(mri_only=True))
    if mri.is_dir():
        paths = sorted(path for path in mri.iterdir() if _may_be_mri(path))
        if not paths:
            raise InputError(f"{mri}: holds no MRI; expected files *.nii or *.nii.gz in the folder itself")
    else:
        file_status(mri)
        if not _may_be_mri(mri):
            raise InputError(f"{mri}: is no MRI; expected a file .nii or .nii.gz that this stage has not "
                             "written")
        paths = [mri]
    scans = []
    for path in paths:
        stem = stem_of(path.name)
        scans.append(NewScan(stem, path, output_name(stem)))
    if problems := _name_problems(scans):
        raise InputError("\n  ".join([f"{len(problems)} problem(s) with the names in {mri}:", *problems]))
    return scans


def find_in_dataset(root: Path, choices: Choices) -> list[NewScan]:
    """The T1 MRIs in MNI space of a BIDS derivative, with their brain masks; says what is left out.

    Raises InputError if there is none, as in a raw dataset, or if a visit has several that may be meant.
    """
    dataset = read_dataset(root, choices)
    say_found(dataset, "synth")
    scans, others = [], []
    for raw in dataset.scans:
        if raw.space:
            scans.append(NewScan(raw.id, raw.mri, output_name(stem_of(raw.mri.name)), raw.mri_mask))
        else:
            others.append(raw.mri.name)
    if not scans:
        raise InputError(f"{root}: a raw BIDS dataset; its {len(others)} T1 MRIs are as the scanner has "
                         "them, but must be in MNI space and skull-stripped. "
                         f"python main.py preprocess --raw {root} --mri_only --data_dir NEW makes such; then "
                         "--mri NEW/whole_MRI. Outputs of fMRIPrep in space-MNI152* are taken as they are")
    if others:
        say("synth", f"{len(others)} T1 MRIs outside MNI space are left out, such as {others[0]}")
    return scans


def _may_be_mri(path: Path) -> bool:
    """Whether a file is NIfTI by its name and not written by this stage."""
    return is_volume_name(path.name) and OURS not in path.name


def _name_problems(scans: list[NewScan]) -> list[str]:
    """Describe every problem with the names of the files that would be written."""
    problems = []
    by_name: dict[str, list[NewScan]] = {}
    for scan in scans:
        by_name.setdefault(scan.name.lower(), []).append(scan)       # some file systems ignore case
    for alike in by_name.values():
        if len(alike) > 1:
            files = ", ".join(scan.mri.name for scan in alike)
            problems.append(f"{files} would all be written as {alike[0].name}.nii.gz; rename all but one")
    for scan in scans:
        if scan.name.startswith("sub-_"):
            problems.append(f"{scan.mri.name} has no letter or digit to be named by; rename it")
        if len(scan.name) > LONGEST_NAME:
            problems.append(f"{brief(scan.mri.name)} has too long a name; rename it")
    return problems


def output_name(stem: str) -> str:
    """Name of a PET after BIDS, without suffix, from the MRI's name without suffix.

    It keeps the MRI's entities if there are some; else the MRI's letters and digits name the subject.
    """
    entities = derived_entities(stem, "pet", DESC)
    entities.pop("trc", "")                                # of the MRI's file, which has no tracer
    return join_name(entities, "pet")


def complete_names(scans: list[NewScan], tracer: str) -> list[NewScan]:
    """The scans with the tracer of the networks in their names, unless it is '', and the voxel size of the
    MRI, unless its name gives a res.

    Raises InputError if names now clash or are too long.
    """
    named = []
    for scan in scans:
        res, _ = resolution(voxel_sizes(Grid.of(read_header(scan.mri)).affine))
        entities = {"res": res} | scan.entities
        if tracer:
            entities["trc"] = tracer
        named.append(replace(scan, name=join_name(entities, "pet")))
    if problems := _name_problems(named):
        raise InputError("\n  ".join([f"{len(problems)} problem(s) with the names of the MRIs:", *problems]))
    return named


def refuse_place(out: Path, taken: Iterable[Path], taken_below: Iterable[Path]) -> None:
    """Raise InputError if `out` is one of the folders `taken`, or is or lies in one of `taken_below`."""
    place = out.resolve()
    is_taken = place in [folder.resolve() for folder in taken]
    if is_taken or any(place.is_relative_to(folder.resolve()) for folder in taken_below):
        raise InputError(f"out {out}: MRIs, a cohort or experiments lie there; give a folder of its own")


def made_from(scan: NewScan, source: str) -> dict[str, str]:
    """Checksums of the files of a scan and its covariates, for its sidecar. source: checksum of its MRI."""
    mask = {"mask": sha256(scan.mask)} if scan.mask else {}
    return {"mri": source} | mask | {f"covariate {name}": cell for name, cell in scan.cells}


def sha256(path: Path) -> str:
    """Checksum of a volume's file, in hexadecimal digits as sha256sum prints it; of a pair, of both files."""
    return digest_of(path, "sha256")


def describe_grid(path: Path) -> str:
    """Describe shape, orientation and voxel sizes of a NIfTI file. Raises InputError if it cannot be read."""
    header = read_header(path)
    affine = header.get_best_affine()
    shape = "x".join(str(n) for n in header.get_data_shape())
    codes = "".join(nib.aff2axcodes(affine))
    sizes = " x ".join(f"{size:g}" for size in voxel_sizes(affine))
    return f"{shape} {codes}, voxels of {sizes} mm"


# ---------------------------------------------------------------- headers and voxels

def header_problem(path: Path) -> str:
    """Describe why a file cannot be used, by its header and with its name; empty if it may be used."""
    try:
        header = read_header(path)
    except InputError as error:
        return str(error)
    shape = header.get_data_shape()
    if len(shape) != 3:
        return f"{path}: has {len(shape)} dimensions {shape}; expected one 3D volume"
    return ""


def read_mri(path: Path, percentile: float, mask: Path | None = None,
             remarks: Remarks | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Read voxels [X, Y, Z] in [0, 1], affine [4, 4], axes in RAS order, and the intensity that became 1.

    mask: of the brain, in the same space on any grid; what lies outside becomes 0.
    percentile: in [0, 100]; if any voxel lies outside [0, 1], this percentile of the voxels above 0 becomes
    1; 0: such an MRI is refused. Intensities that interpolation left slightly outside are clipped instead, as
    those of a cohort. remarks: to which it is added what was changed on reading.
    Raises InputError with the reason why an MRI cannot be used.
    """
    voxels, affine = read_in_range(path, remarks)
    if mask:
        brain = read_mask(mask, affine, Crop((0, 0, 0), voxels.shape), "brain mask")
        voxels = np.where(brain, voxels, np.float32(0))
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise InputError(f"{path}: every voxel is {low:g}")
    if low >= -RANGE_TOLERANCE and 0 < high <= 1 + RANGE_TOLERANCE:
        return voxels, affine, 1.0
    if not percentile or high <= 0:
        raise InputError(f"{path}: intensities from {low:g} to {high:g}; expected within [0, 1] ({RINGING:g} "
                         "beyond would be clipped), background 0, scaled as the cohort's MRIs were. "
                         f"{PREPARES} does so; --mri_percentile 99.5 divides by that percentile of the brain "
                         "instead")
    upper_bound = float(np.percentile(voxels[voxels > 0], percentile))
    return (voxels / np.float32(upper_bound)).clip(0, 1), affine, upper_bound


# ---------------------------------------------------------------- MNI space

@cache
def mni_brain() -> tuple[np.ndarray, np.ndarray]:
    """Brain mask (bool) and T1 of the MNI152 template that nilearn carries, both on BOX."""
    from nilearn import datasets  # here, because importing it takes seconds

    mask = datasets.load_mni152_brain_mask(resolution=1)
    t1 = datasets.load_mni152_template(resolution=1)
    mask_on_box = onto_box(mask.get_fdata(dtype=np.float32), mask.affine)
    return mask_on_box >= 0.5, onto_box(t1.get_fdata(dtype=np.float32), t1.affine)


def onto_box(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Bring a volume [X, Y, Z] with affine [4, 4] onto BOX.

    It is averaged first, over blocks that are not larger than a voxel of BOX: fast, and precise enough.
    """
    widths = np.maximum(1, (voxel_sizes(BOX.affine) / voxel_sizes(affine) + 0.01).astype(int))
    means = downscale_local_mean(voxels, tuple(widths))
    return resample(means, affine @ block_affine(widths, np.zeros(3)), BOX)


def place_problem(voxels: np.ndarray, affine: np.ndarray) -> str:
    """Describe why a volume is not a skull-stripped T1 of a brain in MNI space; empty if it may be one.

    voxels: [X, Y, Z] in [0, 1]. affine: [4, 4]. The message says what prepares such a volume.
    A mirrored brain looks like a brain, and a turn of 10 degrees or a shift of 5 mm is not always noticed.
    """
    mask, t1 = mni_brain()
    tissue = voxels > BACKGROUND * np.percentile(voxels[voxels > 0], 99)
    here = onto_box(tissue.astype(np.float32), affine) >= 0.5
    overlap = 2 * (here & mask).sum() / (here.sum() + mask.sum())
    inside = onto_box(voxels, affine)[mask]
    likeness = np.corrcoef(inside, t1[mask])[0, 1] if np.ptp(inside) > 0 else 0.0
    if overlap >= OVERLAP and likeness >= LIKENESS:
        return ""
    outside = (here & ~mask).sum() / max(here.sum(), 1)
    brains = tissue.sum() * _voxel_volume(affine) / (mask.sum() * _voxel_volume(BOX.affine))
    if brains > WHOLE_HEAD:
        what = "seems to show a whole head, not a brain without its skull"
    else:
        what = "is not in MNI space, or no T1 of a brain"
    return (f"{what} (Dice with the MNI brain {overlap:.2f}, expected {OVERLAP} or more; {outside:.0%} of "
            f"its tissue lies outside that brain; correlation with the MNI T1 {likeness:.2f}, expected "
            f"{LIKENESS} or more). From the scan as it was acquired, RAW, {PREPARES} makes "
            "NEW/whole_MRI/<ID>.nii.gz, which can be used")


def _voxel_volume(affine: np.ndarray) -> float:
    """Volume of a voxel in cubic millimetres."""
    return abs(np.linalg.det(affine[:3, :3]))


def onto_crop(voxels: np.ndarray, affine: np.ndarray, grid: Grid, crop: Crop) -> np.ndarray:
    """Cut the crop [D, H, W], which the networks see, from an MRI [X, Y, Z] with affine [4, 4].

    grid: of the cohort. The MRI is resampled only if it lies on another grid.
    """
    if Grid(voxels.shape, affine).same(grid):
        return voxels[crop.slices()]
    return resample(voxels, affine, Grid(crop.size, crop.affine(grid.affine)))
