"""The report of an experiment: figures for print, and one HTML file that needs no other file."""
import base64
import html
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from dataset import Scan
from evaluation.failure_cases import Case
from evaluation.figures import (
    LABELS,
    SYSTEM_TITLES,
    plot_bland_altman,
    plot_bland_altman_systems,
    plot_calibration,
    plot_curves,
    plot_roc,
    plot_suvr,
)
from evaluation.layout import Markup, display
from evaluation.participants import Flow
from evaluation.results import Run
from evaluation.table_1 import CAPTION, for_reader
from evaluation.tables import Table
from evaluation.volume_figures import plot_cases, plot_volumes
from imaging.grids import Crop
from imaging.volumes import read_in_range
from labels.linear import pool_volume
from runtime.files import make_folder, write_text
from utils import InputError

TEMPLATE = Path(__file__).with_name("report.html.jinja")
VIEWER_VOXELS = 1_000_000                                  # of a volume; larger ones are averaged over blocks
COLOUR_MAPS = {"MRI": "gray", "PET": "inferno", "error": "viridis"}
HTML = Markup("<b>{}</b>", html.escape)
CAPTIONS = {
    "volumes": "The first test subjects of each label: the real PET; the synthetic PET, a mean and so "
               "smoother by nature; one sample, a PET that this person might have, where the test stage has "
               "written one; the absolute error of the synthetic PET. Sagittal, coronal and axial slice; "
               "left of the picture is the subject's left, or the back.",
    "failure_cases": "Failure cases: the two test subjects with the smallest absolute error of the SUVR "
                     "(without regions: of the MAE in the brain), the four around the median and the two "
                     "with the largest; all where there are fewer than eight. One scale of the MRI, of the "
                     "uptake and of the error for all. The numbers are in failure_cases.csv.",
    "roc": "ROC curves on the test list of classifiers fitted on the training list.",
    "calibration": "Calibration of the predicted probability of amyloid positivity on the test list.",
    "suvr": "SUVR of synthetic against real PET on the test list.",
    "bland_altman": "Bland-Altman plot of the SUVR on the test list.",
    "bland_altman_systems": "Bland-Altman plots of the SUVR on the test list, of IL-CLDM and the compared "
                            "systems, on one scale.",
    "curves": "Losses and validation scores of what was trained; the chosen epoch is marked."}


class Subject(NamedTuple):
    """A test subject that is shown. volumes: MRI, real PET and synthetic PET, each [D, H, W] in [0, 1].
    sample: one sample, or None where there is none."""
    scan: Scan
    volumes: dict[str, np.ndarray]
    sample: np.ndarray | None


def read_subjects(scans: list[Scan], folder: Path, samples: Path, crop: Crop) -> list[Subject]:
    """The volumes of the scans, cut to the crop. folder: where their synthetic PETs lie. samples: where one
    sample of each lies, unless an earlier version has tested the networks.

    Raises InputError if a synthetic PET is missing.
    """
    missing = [scan.id for scan in scans if not (folder / f"{scan.id}.nii.gz").is_file()]
    if missing:
        raise InputError(f"{folder} has no synthetic PET of {', '.join(missing)}; run --stages test")
    subjects = []
    for scan in scans:
        files = {"MRI": scan.mri, "real PET": scan.pet, "synthetic PET": folder / f"{scan.id}.nii.gz"}
        volumes = {name: read_in_range(path)[0][crop.slices()] for name, path in files.items()}
        sample = samples / f"{scan.id}.nii.gz"
        one = read_in_range(sample)[0][crop.slices()] if sample.is_file() else None
        subjects.append(Subject(scan, volumes, one))
    return subjects


# ---------------------------------------------------------------- figures

def write_figures(folder: Path, run: Run, subjects: list[Subject], cases: list[Case],
                  where: str) -> dict[str, Path]:
    """Write folder/figures/<name>.png and .pdf, of what the run has. Returns name -> path of the PNG.

    cases: failure cases, if they can be drawn. where: place of their slices.
    """
    figures, notice = folder / "figures", run.metadata["notice"]
    make_folder(figures)
    rows = {}
    for scan, volumes, sample in subjects:
        label = LABELS[scan.label][0] if scan.label in LABELS else f"label {scan.label}"
        rows[f"{scan.id}\n{label}"] = volumes | ({} if sample is None else {"one sample": sample})
    plot_volumes(figures / "volumes", rows, notice)
    drawn = {"volumes"}
    if cases:
        plot_cases(figures / "failure_cases", cases, where, notice)
        drawn.add("failure_cases")
    if run.predictions is not None and run.predictions["label"].nunique() == 2:
        plot_roc(figures / "roc", run.predictions, notice)
        plot_calibration(figures / "calibration", run.predictions, notice)
        drawn |= {"roc", "calibration"}
    pairs = _suvr_pairs(run)
    if "il_cldm" in pairs:
        own = pairs["il_cldm"]
        real, synthetic, label = (own[name].to_numpy() for name in ("real", "synthetic", "label"))
        plot_suvr(figures / "suvr", real, synthetic, label, notice)
        plot_bland_altman(figures / "bland_altman", real, synthetic, label, notice)
        drawn |= {"suvr", "bland_altman"}
    if not pairs.keys().isdisjoint(SYSTEM_TITLES):
        plot_bland_altman_systems(figures / "bland_altman_systems", pairs, notice)
        drawn.add("bland_altman_systems")
    was_trained_here = not run.metadata["settings"]["ldm_from"] or (folder / "loss_curve.csv").exists()
    if was_trained_here:
        plot_curves(folder, figures / "curves", notice)
        drawn.add("curves")
    for name in CAPTIONS:
        if name not in drawn:                              # an earlier run with more data may have left it
            for suffix in (".png", ".pdf"):
                (figures / f"{name}{suffix}").unlink(missing_ok=True)
    return {name: figures / f"{name}.png" for name in CAPTIONS if name in drawn}


def _suvr_pairs(run: Run) -> dict[str, pd.DataFrame]:
    """il_cldm and each compared system -> a row a test subject with SUVRs: ID, label, real, synthetic.
    Methods with fewer than two are left out, so all are if there are no regions."""
    if run.uptake is None:
        return {}
    suvr, pairs = run.uptake.pivot(index=["ID", "label"], columns="method", values="SUVR"), {}
    for method in ("il_cldm", *SYSTEM_TITLES):
        if method in suvr:
            table = suvr[["real", method]].dropna().reset_index().rename(columns={method: "synthetic"})
            if len(table) > 1:
                pairs[method] = table
    return pairs


# ---------------------------------------------------------------- the HTML file

class Participants(NamedTuple):
    """Who is in the lists: the flow of participants, and Table 1 as make_table_1 gives it."""
    flow: Flow
    table: pd.DataFrame


def _viewer_data(subjects: list[Subject], affine: np.ndarray) -> dict:
    """The data that the viewer draws: volumes as bytes, one scale for all PETs, colour maps of 256 levels."""
    from matplotlib import colormaps

    shape = subjects[0].volumes["MRI"].shape
    block = int(np.ceil((np.prod(shape) / VIEWER_VOXELS) ** (1 / 3)))
    top = float(max(subject.volumes["real PET"].max() for subject in subjects))
    shown = []
    for scan, volumes, _ in subjects:
        texts = {}
        for name, volume in volumes.items():
            texts[name] = _encode(volume, 1.0 if name == "MRI" else top, block)
        shown.append({"title": f"{scan.id}, label {scan.label}", "volumes": texts})
    colours = {}
    for name, colour_map in COLOUR_MAPS.items():
        rgb = colormaps[colour_map](np.arange(256))[:, :3] * 255
        colours[name] = rgb.round().astype(int).tolist()
    voxel_mm = nib.affines.voxel_sizes(affine) * block
    return {"shape": [n // block for n in shape], "voxel_mm": voxel_mm.tolist(), "top": top,
            "colours": colours, "subjects": shown}


def _encode(volume: np.ndarray, top: float, block: int) -> str:
    """A volume [D, H, W], averaged over blocks, as deflated bytes in base64: 255 is the value `top`."""
    tensor = torch.from_numpy(np.ascontiguousarray(volume))[None, None]
    small = pool_volume(tensor, block)[0, 0].numpy()
    levels = (small / top * 255).round().clip(0, 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode()


def write_report(path: Path, run: Run, tables: list[Table], figures: dict[str, Path],
                 participants: Participants, methods: str, subjects: list[Subject],
                 affine: np.ndarray) -> None:
    """Write the self-contained report.html.

    figures: as write_figures gives them. methods: as methods_text gives it. affine: [4, 4], of the volumes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = {}
    for table in tables:
        parts = []
        for section in display(table, HTML):
            frame = section.table.drop(columns="made by", errors="ignore")    # always the same command
            parts.append((section.description, _to_html(frame, escape=False)))
        shown[table.name] = {"caption": table.caption, "parts": parts}
    settings = [(name, json.dumps(value)) for name, value in run.metadata["settings"].items()]
    pictures = {name: base64.b64encode(file.read_bytes()).decode() for name, file in figures.items()}
    loader = FileSystemLoader(TEMPLATE.parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    text = environment.get_template(TEMPLATE.name).render(
        name=run.name,
        phantom=run.metadata["phantom"],
        note=run.metadata["note"],
        command=run.metadata["command"],
        flow=participants.flow,
        table_1=_to_html(for_reader(participants.table)),
        about_table_1=CAPTION,
        tables=shown,
        figures=pictures,
        captions=CAPTIONS,
        methods=methods,
        settings=_to_html(pd.DataFrame(settings, columns=["setting", "value"])),
        versions=_to_html(pd.DataFrame(run.metadata["versions"].items(), columns=["package", "version"])),
        viewer=_viewer_data(subjects, affine),
    )
    write_text(path, text)


def _to_html(frame: pd.DataFrame, escape: bool = True) -> str:
    """A table in HTML, which the template must not escape again. escape: whether its texts need it."""
    return frame.to_html(index=False, escape=escape, border=0)
