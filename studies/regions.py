"""How near the regions that a run can make or find by itself come to each other (docs/status.md).

    python main.py study regions [--subjects 80] [--voxel 4]

Volume and Dice overlap of `--regions mni` and `--regions centiloid` (if amypet is installed) at 1 mm, and on
phantoms their SUVR beside that in the phantom's own regions. Writes result/study/regions.csv and regions.md.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from cohort.quality import correlation, dice
from imaging.grids import Crop
from imaging.headers import read_header
from imaging.regions import AUTOMATIC, Regions, automatic_regions, read_mask
from imaging.volumes import read_volume
from phantom.anatomy import FIELD_OF_VIEW, grid_affine
from phantom.cohort import build_phantom
from runtime.files import make_folder, write_csv, write_text
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from studies.running import FOLDER
from utils import InputError

SETTINGS = ("cortex_mask", "reference_mask")
TITLES = {"kind": "regions", "cortex_mask_ml": "cortex, ml", "reference_mask_ml": "cerebellum, ml",
          "cortex_mask_dice": "Dice with the Centiloid cortex", "reference_mask_dice": "with its cerebellum",
          "n": "phantoms", "r": "r of the SUVR with the phantom's own"}


def main(argv: list[str]) -> int:
    """Compare the regions. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="main.py study regions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=80, help="phantoms, at least 6")
    parser.add_argument("--voxel", type=int, default=4, choices=(1, 2, 4, 8), help="their voxels in mm")
    arguments = parser.parse_args(argv)
    if arguments.subjects < 6:
        parser.error("--subjects must be at least 6")
    return exit_code(lambda: compare(arguments.subjects, arguments.voxel))


def compare(subjects: int, voxel_mm: int) -> None:
    """Write the table of all regions that can be had."""
    images = {}
    for kind in AUTOMATIC:
        try:
            images[kind] = automatic_regions(kind)
        except InputError as error:
            say("study", f"left out: {error}")
    root = Path("data") / f"regions_{voxel_mm}mm_{subjects}"
    build_phantom(root, (subjects - 4, 2, 2), voxel_mm, 0.6, 0)
    uptake = phantom_uptake(root, images)
    table = pd.DataFrame([describe(kind, images, uptake) for kind in images]).rename(columns=TITLES)
    make_folder(FOLDER)
    write_csv(FOLDER / "regions.csv", table)
    write_text(FOLDER / "regions.md", table.to_markdown(index=False, floatfmt=".3f") + "\n")
    say("study", f"wrote {FOLDER}/regions.csv and regions.md")


def phantom_uptake(root: Path, images: dict[str, dict]) -> pd.DataFrame:
    """SUVR of every phantom in its own regions (column phantom) and in those of each kind."""
    paths = sorted((root / "whole_Abeta").glob("*.nii.gz"))
    header = read_header(paths[0])
    box = Crop((0, 0, 0), header.get_data_shape())
    sources = {"phantom": {"cortex_mask": root / "truth" / "cortex.nii.gz",
                           "reference_mask": root / "truth" / "cerebellum.nii.gz"}, **images}
    regions = {}
    for kind, source in sources.items():
        masks = [read_mask(source[name], header.get_best_affine(), box, name) for name in SETTINGS]
        regions[kind] = Regions(*masks, {})
    rows = []
    for path in progress_bar(paths, desc="SUVR", unit="phantom"):
        pet = read_volume(path)[0]
        rows.append({kind: own.measure(pet)["SUVR"] for kind, own in regions.items()})
    return pd.DataFrame(rows)


def describe(kind: str, images: dict[str, dict], uptake: pd.DataFrame) -> dict:
    """The row of one kind: volumes and overlap at 1 mm, and the line of its SUVR over that in the phantom's
    own regions."""
    row: dict = {"kind": kind}
    for name in SETTINGS:
        mask = at_1_mm(images[kind][name])
        row[f"{name}_ml"] = mask.sum() / 1000
        if "centiloid" in images:
            row[f"{name}_dice"] = dice(mask, at_1_mm(images["centiloid"][name]))
    slope, intercept = np.polyfit(uptake["phantom"], uptake[kind], 1)
    r = correlation(uptake["phantom"].to_numpy(), uptake[kind].to_numpy())
    return row | {"n": len(uptake), "r": r, "slope": slope, "intercept": intercept}


def at_1_mm(image) -> np.ndarray:
    """A region on the cohort's grid at 1 mm, [X, Y, Z] bool."""
    return read_mask(image, grid_affine(1), Crop((0, 0, 0), tuple(FIELD_OF_VIEW.tolist())))
