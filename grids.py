"""How much a synthetic PET depends on how its MRI is stored: one unseen phantom, simulated at 1 mm, on the grids that people use.

    python grids.py --preset demo        any settings of main.py; of a trained experiment

Writes result/grids/<exp>.csv, a row a file: which grid, stored how, the correlation of its PET with that of the first file inside the
brain, both brought to the 1 mm grid, and the SUVR. The noise of the sampler is the same for all.
"""
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from anatomy import load_template
from commandline import parse_args
from failures import explain
from files import make_folder, write_csv
from logs import LOG, logging_run, progress_bar, say
from newscans import NewScan, sha256
from phantom import NOTE, draw_subject, simulate
from synthesize import Trained, load_trained, read_sidecar, synthesize_missing, voxel_problems
from utils import InputError
from volumes import Grid, read_volume, resample

SEED = 77                                                  # of the phantom, which is in no cohort


class Stored(NamedTuple):
    """One way to store an MRI: on a grid of cubic voxels, in RAS order, with axes that point to `codes`."""
    grid: str
    voxel_mm: float
    shape: tuple[int, int, int]
    first: tuple[float, float, float]                      # mm, centre of the first voxel
    codes: str = "RAS"
    dtype: str = "float32"                                 # int16 has a scale factor
    anew: bool = False                                     # simulated on this grid, with partial volumes and noise of its own

    def on_grid(self) -> Grid:
        """The grid, axes in RAS order."""
        affine = np.diag([self.voxel_mm] * 3 + [1.0])
        affine[:3, 3] = self.first
        return Grid(self.shape, affine)


PAPER = ("paper, 1 mm", 1, (181, 217, 181), (-90, -126, -72))
HALF = ("paper, halved", 2, (90, 108, 90), (-89.5, -125.5, -71.5))
QUARTER = ("paper, quartered", 4, (45, 54, 45), (-88.5, -124.5, -70.5))
CASES = [*(Stored(*PAPER, codes) for codes in ("RAS", "LAS", "PSR")), Stored(*PAPER, "LPS", "int16"),
         *(Stored(*HALF, codes) for codes in ("RAS", "LAS", "PSR")), Stored(*HALF, "LPS", "int16"),
         Stored(*QUARTER), Stored(*QUARTER, "LPS", "int16"),
         Stored("FSL, 1 mm", 1, (182, 218, 182), (-91, -126, -72), "LAS"),
         Stored("FSL, 2 mm", 2, (91, 109, 91), (-90, -126, -72), "LAS"),
         Stored("SPM, 1.5 mm", 1.5, (121, 145, 121), (-90, -126, -72), "LAS"),
         Stored("fMRIPrep, 1 mm", 1, (193, 229, 193), (-96, -132, -78)),
         Stored(*HALF, anew=True), Stored(*QUARTER, anew=True)]


def phantom_mri(voxel_mm: int) -> np.ndarray:
    """The MRI [X, Y, Z] of one and the same amyloid positive phantom at any voxel size."""
    rng = np.random.default_rng(SEED)
    return simulate(load_template(voxel_mm), rng, draw_subject(rng, 1, 0.6), 0.6)[0]


def write_mri(path: Path, stored: Stored, mri: np.ndarray) -> None:
    """The phantom's MRI, at 1 mm on the paper's grid, as this way of storing has it."""
    grid, paper = stored.on_grid(), CASES[0].on_grid()
    voxels = phantom_mri(int(stored.voxel_mm)) if stored.anew else mri if grid.same(paper) else resample(mri, paper.affine, grid)
    image = nib.Nifti1Image(voxels, grid.affine)
    image = image.as_reoriented(ornt_transform(io_orientation(grid.affine), axcodes2ornt(stored.codes)))
    image.set_data_dtype(stored.dtype)
    nib.save(image, path)


def measure(trained: Trained, cases: list[Stored], folder: Path) -> pd.DataFrame:
    """A row a case; scans and PETs lie in the folder while this runs."""
    mri, rows, first = phantom_mri(1), [], None
    paper, brain = CASES[0].on_grid(), mri > 0
    for number, stored in enumerate(progress_bar(cases, desc="grids", unit="scan")):
        scan = NewScan("phantom", folder / f"{number}.nii.gz", f"{number}_pet")              # the ID seeds the sampler
        write_mri(scan.mri, stored, mri)
        problems = voxel_problems([scan], trained.exp.cfg.mri_percentile)
        synthesize_missing(trained, [scan] if not problems else [], {scan.id: sha256(scan.mri)}, problems, folder)
        if problems:
            raise InputError(next(iter(problems.values())))
        files = scan.written(folder)
        pet = resample(*read_volume(files["pet"]), paper)[brain]
        first = pet if first is None else first
        rows.append({"grid": stored.grid, "stored": f"{stored.codes}, {stored.dtype}", "simulated": "anew" if stored.anew else "",
                     "r": np.corrcoef(first, pet)[0, 1], "SUVR": read_sidecar(files["sidecar"])["Results"].get("SUVR", np.nan)})
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None, cases: list[Stored] = CASES) -> int:
    """Write and print the table. Returns the exit code, as main.py's."""
    cfg = parse_args(argv)
    path = Path("result") / "grids" / f"{cfg.exp}.csv"
    with logging_run():
        try:
            trained = load_trained(cfg)
            say("grids", f"one unseen phantom in {len(cases)} files, {trained.notice}; writes {path}")
            make_folder(path.parent)
            with TemporaryDirectory() as folder:
                table = measure(trained, cases, Path(folder))
            write_csv(path, table)
            LOG.info("%s\n%s", table.to_string(index=False, float_format="{:.4f}".format), NOTE)
        except BaseException as error:
            if (known := explain(error)) is None:
                raise
            LOG.error("%s", known[1])
            return known[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
