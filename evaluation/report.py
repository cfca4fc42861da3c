"""The report of an experiment: print figures, and one HTML file that holds everything and asks for nothing."""
import base64
import json
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe
from markupsafe import escape
from matplotlib import colormaps

from dataset import Cohort, Scan
from evaluation.figures import LABELS, plot_bland_altman, plot_calibration, plot_curves, plot_roc, plot_suvr, plot_volumes
from evaluation.layout import Markup, display
from evaluation.results import Run
from evaluation.tables import Table
from imaging.volumes import Crop, read_volume
from labels.linear import pool_volume
from runtime.files import make_folder, write_text
from utils import InputError

TEMPLATE = Path(__file__).with_name("report.html.jinja")
VIEWER_VOXELS = 1_000_000                                  # of a volume in the viewer at most; larger ones are averaged over blocks
HTML = Markup("<b>{}</b>", lambda text: str(escape(text)))
CAPTIONS = {
    "volumes": "Real PET, synthetic PET and absolute error of the first test subjects of each label; sagittal, coronal "
               "and axial slice; left of the picture is the subject's left, or the back.",
    "roc": "ROC curves on the test list of classifiers fitted on the training list.",
    "calibration": "Calibration of the predicted probability of amyloid positivity on the test list.",
    "suvr": "SUVR of synthetic against real PET on the test list.",
    "bland_altman": "Bland-Altman plot of the SUVR on the test list.",
    "curves": "Losses and validation scores of what was trained; the chosen epoch is marked."}


def write_figures(folder: Path, run: Run, subjects: list[tuple[Scan, dict[str, np.ndarray]]]) -> dict[str, Path]:
    """folder/figures/<name>.png and .pdf, of what the run has: name -> path of the PNG. subjects: as read_subjects gives."""
    figures, notice = folder / "figures", run.metadata["notice"]
    make_folder(figures)
    names = {label: name for label, (name, *_) in LABELS.items()}
    rows = [(f"{scan.id}\n{names.get(scan.label, f'label {scan.label}')}", volumes["real PET"], volumes["synthetic PET"])
            for scan, volumes in subjects]
    plot_volumes(figures / "volumes", rows, notice)
    names = ["volumes"]
    if run.predictions is not None and run.predictions["label"].nunique() == 2:
        plot_roc(figures / "roc", run.predictions, notice)
        plot_calibration(figures / "calibration", run.predictions, notice)
        names += ["roc", "calibration"]
    if run.uptake is not None:
        both = run.uptake.pivot(index=["ID", "label"], columns="method", values="SUVR")[["real", "il_cldm"]].dropna().reset_index()
        if len(both) > 1:
            values = [both[name].to_numpy() for name in ("real", "il_cldm", "label")]
            plot_suvr(figures / "suvr", *values, notice)
            plot_bland_altman(figures / "bland_altman", *values, notice)
            names += ["suvr", "bland_altman"]
    if not run.metadata["settings"]["ldm_from"] or (folder / "loss_curve.csv").exists():       # else nothing was trained here
        plot_curves(folder, figures / "curves", notice)
        names.append("curves")
    for name in CAPTIONS:
        if name not in names:                              # of an earlier run with more data
            for suffix in (".png", ".pdf"):
                (figures / f"{name}{suffix}").unlink(missing_ok=True)
    return {name: figures / f"{name}.png" for name in CAPTIONS if name in names}


def read_subjects(scans: list[Scan], folder: Path, crop: Crop) -> list[tuple[Scan, dict[str, np.ndarray]]]:
    """MRI, real PET and synthetic PET [D, H, W] of the scans; folder: where the synthetic ones lie. Raises InputError if one is missing."""
    missing = [scan.id for scan in scans if not (folder / f"{scan.id}.nii.gz").is_file()]
    if missing:
        raise InputError(f"{folder} has no synthetic PET of {', '.join(missing)}; run --stages test")
    return [(scan, {name: read_volume(path)[0][crop.slices()]
                    for name, path in (("MRI", scan.mri), ("real PET", scan.pet), ("synthetic PET", folder / f"{scan.id}.nii.gz"))})
            for scan in scans]


def cohort_table(cohort: Cohort, demographics: pd.DataFrame | None) -> pd.DataFrame:
    """A row a list: scans, scans a label, and age and sex if they are known."""
    rows, known = [], sorted({scan.label for scan in cohort.train + cohort.validation + cohort.test})
    for split in ("train", "validation", "test"):
        scans = getattr(cohort, split)
        labels = pd.Series([scan.label for scan in scans])
        row = {"list": split, "scans": len(scans)}
        row |= {f"label {label}": int((labels == label).sum()) for label in known}
        if demographics is not None:
            people = demographics.set_index("ID").loc[[scan.id for scan in scans]]
            row["age (years, mean ± SD)"] = f"{people['age'].mean():.1f} ± {people['age'].std():.1f}" if len(people) > 1 else \
                f"{people['age'].iloc[0]:.1f}"
            row["sex"] = ", ".join(f"{count} {sex}" for sex, count in people["sex"].value_counts().sort_index().items())
        rows.append(row)
    return pd.DataFrame(rows)


def _viewer_data(subjects: list[tuple[Scan, dict[str, np.ndarray]]], affine: np.ndarray) -> dict:
    """What the viewer draws: volumes as deflated bytes in base64, one scale for all PETs, colours of 256 levels."""
    [shape] = {volume.shape for _, volumes in subjects for volume in volumes.values()}
    block = int(np.ceil((np.prod(shape) / VIEWER_VOXELS) ** (1 / 3)))
    top = {"MRI": 1.0, "PET": float(max(volumes["real PET"].max() for _, volumes in subjects))}

    def encode(volume: np.ndarray, highest: float) -> str:
        small = pool_volume(torch.from_numpy(np.ascontiguousarray(volume))[None, None], block)[0, 0].numpy()
        levels = (small / highest * 255).round().clip(0, 255).astype(np.uint8)
        return base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode()

    def colours(name: str) -> list[list[int]]:
        return (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(int).tolist()

    return {"shape": [n // block for n in shape], "voxel_mm": (nib.affines.voxel_sizes(affine) * block).tolist(), "top": top["PET"],
            "colours": {"MRI": colours("gray"), "PET": colours("inferno"), "error": colours("viridis")},
            "subjects": [{"title": f"{scan.id}, label {scan.label}",
                          "volumes": {name: encode(volume, top[name[-3:]]) for name, volume in volumes.items()}}
                         for scan, volumes in subjects]}


def write_report(path: Path, run: Run, tables: list[Table], figures: dict[str, Path], cohort: pd.DataFrame,
                 subjects: list[tuple[Scan, dict[str, np.ndarray]]], affine: np.ndarray) -> None:
    """Write the self-contained report.html. affine: of the cohort's volumes."""
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined)

    def html(frame: pd.DataFrame, is_markup: bool = False) -> Safe:
        return Safe(frame.to_html(index=False, escape=not is_markup, border=0))

    sections = {table.name: {"caption": table.caption, "parts": [(about, html(frame.drop(columns="made by", errors="ignore"), True))
                                                             for about, frame, _ in display(table, HTML)]} for table in tables}
    settings = pd.DataFrame([(name, json.dumps(value)) for name, value in run.metadata["settings"].items()], columns=["setting", "value"])
    versions = pd.DataFrame(run.metadata["versions"].items(), columns=["package", "version"])
    pictures = {name: base64.b64encode(file.read_bytes()).decode() for name, file in figures.items()}
    text = environment.get_template(TEMPLATE.name).render(
        name=run.name, phantom=run.metadata["phantom"], note=run.metadata["note"], command=run.metadata["command"], cohort=html(cohort),
        tables=sections, figures=pictures, captions=CAPTIONS, settings=html(settings), versions=html(versions),
        viewer=_viewer_data(subjects, affine))
    write_text(path, text)
