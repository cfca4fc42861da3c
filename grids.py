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

from anatomy import CORNER, FIELD_OF_VIEW, load_template
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


def of_phantom(voxel_mm: int) -> tuple:
    """Name, voxel size, shape and first voxel of the grid on which a phantom is simulated; that of 1 mm is the paper's."""
    return f"phantom, {voxel_mm} mm", voxel_mm, tuple((FIELD_OF_VIEW // voxel_mm).tolist()), tuple((CORNER + voxel_mm / 2).tolist())


CASES = [*(Stored(*of_phantom(mm), codes) for mm in (1, 2) for codes in ("RAS", "LAS", "PSR")), Stored(*of_phantom(4)),
         *(Stored(*of_phantom(mm), "LPS", "int16") for mm in (1, 2, 4)),
         Stored("FSL, 1 mm", 1, (182, 218, 182), (-91, -126, -72), "LAS"),
         Stored("FSL, 2 mm", 2, (91, 109, 91), (-90, -126, -72), "LAS"),
         Stored("SPM, 1.5 mm", 1.5, (121, 145, 121), (-90, -126, -72), "LAS"),
         Stored("fMRIPrep, 1 mm", 1, (193, 229, 193), (-96, -132, -78)),
         *(Stored(*of_phantom(mm), anew=True) for mm in (2, 4))]


def phantom_mri(voxel_mm: int) -> np.ndarray:
    """The MRI [X, Y, Z], in [0, 1], of one and the same amyloid positive phantom at any voxel size in mm."""
    rng = np.random.default_rng(SEED)
    return simulate(load_template(voxel_mm), rng, draw_subject(rng, 1, 0.6), 0.6)[0]


def write_mri(path: Path, stored: Stored, mri: np.ndarray) -> None:
    """Write the phantom as this way of storing has it. mri: phantom_mri(1), [181, 217, 181]."""
    grid = stored.on_grid()
    voxels = phantom_mri(stored.voxel_mm) if stored.anew else resample(mri, CASES[0].on_grid().affine, grid)
    image = nib.Nifti1Image(voxels, grid.affine)
    image = image.as_reoriented(ornt_transform(io_orientation(grid.affine), axcodes2ornt(stored.codes)))
    image.set_data_dtype(stored.dtype)
    nib.save(image, path)


def measure(trained: Trained, cases: list[Stored], folder: Path) -> pd.DataFrame:
    """A row a case: grid, stored, simulated, r, SUVR (NaN without masks). Scans and PETs are left in the folder.

    Raises InputError if new scans that are stored so would be refused.
    """
    mri, rows, first = phantom_mri(1), [], None
    reference, brain = CASES[0].on_grid(), mri > 0
    for number, stored in enumerate(progress_bar(cases, desc="grids", unit="scan")):
        scan = NewScan("phantom", folder / f"{number}.nii.gz", f"{number}_pet")              # the ID seeds the sampler
        write_mri(scan.mri, stored, mri)
        if problems := voxel_problems([scan], trained.exp.cfg.mri_percentile):
            raise InputError(problems[scan.id])
        synthesize_missing(trained, [scan], {scan.id: sha256(scan.mri)}, problems, folder)
        files = scan.written(folder)
        pet = resample(*read_volume(files["pet"]), reference)[brain]
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
