"""The Centiloid project's regions (Klunk et al. 2015), read as files of the package amypet, which is never
imported: its cortical target and its whole cerebellum, 1 mm, MNI152 space of SPM."""
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nibabel as nib
import numpy as np

from imaging.volumes import read_volume
from utils import InputError

PACKAGE, TESTED = "amypet", "1.6.0"
INSTALL = f"pip install --no-deps {PACKAGE}=={TESTED}"
FOLDER = Path("data") / "CL_masks"
# Setting -> file in the package, and its volume in ml as the project distributes it.
FILES = {"cortex_mask": ("voi_ctx_1mm.nii", 233.9), "reference_mask": ("voi_WhlCbl_1mm.nii", 117.6)}
TOLERANCE_ML = 0.5                           # a copy of the files has no other volume; this is for rounding


def centiloid_regions() -> dict[str, nib.Nifti1Image]:
    """cortex_mask and reference_mask (whole cerebellum) as images of 0 and 1.

    Raises InputError, with the command that installs it, if the package is not there, and if its files are
    not there or have other volumes than the project's.
    """
    folder, problems, images = _package_folder() / FOLDER, [], {}
    for setting, (name, expected_ml) in FILES.items():
        try:
            image, volume_ml = _read_region(folder / name)
        except InputError as error:
            problems.append(str(error))
            continue
        if abs(volume_ml - expected_ml) > TOLERANCE_ML:
            problems.append(f"{folder / name}: has {volume_ml:.1f} ml; expected {expected_ml} ml, as the "
                            "Centiloid project distributes it")
        images[setting] = image
    if problems:
        raise InputError("\n  ".join([
            f"regions centiloid: {len(problems)} file(s) of {_described()} cannot be used; {INSTALL} --force-"
            "reinstall installs the version that was tested", *problems]))
    return images


def _package_folder() -> Path:
    """Where the package is installed, found without running any of its code."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise InputError(f"regions centiloid needs the package {PACKAGE}, which carries the Centiloid "
                         f"project's masks: {INSTALL}   (--no-deps: only its files are read; "
                         "docs/status.md states its terms). Or take --regions mni, or masks of your own")
    return Path(places[0])


def _described() -> str:
    """Name and version of the package."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return PACKAGE


def _read_region(path: Path) -> tuple[nib.Nifti1Image, float]:
    """A mask as an image of 0 and 1, and its volume in ml."""
    voxels, affine = read_volume(path)
    mask = voxels >= 0.5 * max(float(np.nanmax(voxels)), 1e-6)
    volume_ml = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    return nib.Nifti1Image(mask.astype(np.uint8), affine), float(volume_ml)
