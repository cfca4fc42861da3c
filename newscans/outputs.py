"""The outputs of a new scan: numbers of its synthetic PET, the sidecar that says what it was made from, the
picture and the table."""
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from torch import Tensor

from cohort.derivative import relative, shared_keys
from config import VERSION
from evaluation.covariate_status import PREFIX
from evaluation.status import NEEDS_PET, StatusClassifier, mean_level
from evaluation.uncertainty import COVERAGE
from experiment.experiment import RESEARCH_NOTICE
from imaging.grids import Grid
from imaging.volumes import RINGING, save_synthesis
from newscans.scans import NewScan, describe_grid, made_from
from newscans.trained import Trained
from runtime.files import make_folder, read_text, write_csv, write_text
from runtime.settings import with_present_names
from utils import InputError

KIND = "IL-CLDM synthetic PET"                             # the name that our sidecars give themselves
TABLE = "synthesized.csv"
TITLE = "Synthetic amyloid PET by IL-CLDM"
README = """# Synthetic amyloid PET

Every PET of this dataset is synthetic: a latent diffusion model (IL-CLDM) has computed it from a T1 MRI. None
is a measurement. For research only, not for clinical use.

A PET has `desc-ilcldmSynthetic` in its name, lies on the grid of its MRI and holds values in [0, 1]; only
ratios between its regions carry a meaning. The JSON file beside it says which MRI, networks and settings it
was made with, and the numbers that were read from it. The picture shows the PET over its MRI. The table
`synthesized.csv` has a row for each PET.
"""


# ---------------------------------------------------------------- numbers

def measure(trained: Trained, scan: NewScan, mri: Tensor, x_hat: Tensor, decoded: Tensor,
            label: Tensor | None) -> dict[str, float | str]:
    """Uptake and amyloid status of a synthetic PET x_hat [D, H, W], with their range over its decoded samples
    [m, D, H, W], and the covariates that were used.

    label: the probabilities [K] with which sampling was conditioned, or None.
    """
    row = {}
    if label is not None:
        row = {f"p_label_{k}": float(label[k]) for k in range(1, len(label))}
    # the first is what is written
    read = pd.DataFrame([trained.measurement.status_inputs(x, {"mri": mri}) for x in (x_hat, *decoded)])
    names, known = trained.cfg.covariates, dict(scan.cells)
    if names:
        row["covariates"] = ", ".join(name for name in names if name in known) or "none known"
    for name in list(read):
        if name == "CL" or name.startswith("SUVR"):
            row |= spread(name, read[name].to_numpy())
    if trained.measurement.regions:
        row |= calibrated(trained, row)
    read = read.assign(**{f"{PREFIX}{name}": known.get(name, "") for name in names})
    for name, classifier in trained.classifiers.items():
        score = classifier.score(read)
        if name != "suvr":
            row |= spread(f"p_{name}", score) if name in NEEDS_PET else {f"p_{name}": float(score[0])}
        known = np.isfinite(score[0] + classifier.threshold)
        row[f"positive_{name}"] = int(score[0] >= classifier.threshold) if known else float("nan")
    return row | {"remark": level_remark(trained.classifiers.get("mri"), read["mri"][0])}


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    """The value of what is written and those of its samples, [1 + m]: if there are several, their std,
    smallest and largest."""
    samples = values[1:]
    if len(samples) < 2:
        return {name: float(values[0])}
    return {name: float(values[0]), f"{name}_sd": float(samples.std(ddof=1)),
            f"{name}_samples_min": float(samples.min()), f"{name}_samples_max": float(samples.max())}


def calibrated(trained: Trained, row: dict) -> dict[str, float | str]:
    """From SUVR and SUVR_sd of a scan, the calibrated interval of the former and the probability of status,
    as far as they are known."""
    known, calibration = {"SUVR_interval": f"none: {trained.no_interval}"}, trained.calibration
    suvr, std = np.array([row["SUVR"]]), np.array([row.get("SUVR_sd", 0.0)])
    if not trained.no_interval:
        (low,), (high,) = calibration.interval(suvr, std)
        known = {"SUVR_low": float(low), "SUVR_high": float(high),
                 "SUVR_interval": f"{COVERAGE} %, calibrated on {len(calibration.error)} validation subjects"}
    if calibration and not np.isnan(calibration.slope):
        known["p_calibrated"] = float(calibration.probability(suvr)[0])
    return known


def level_remark(classifier: StatusClassifier | None, mri: np.ndarray) -> str:
    """A warning if an MRI, pooled to [d, h, w], is a tenth brighter or darker than all of the training list:
    was it scaled as they were?"""
    if classifier is None:
        return ""
    level, (low, high) = mean_level(mri[None], classifier.classifier), classifier.level
    if 0.9 * low <= level <= 1.1 * high:
        return ""
    return (f"mean intensity of the MRI inside the brain {level:.3f}, in the training list {low:.3f} to "
            f"{high:.3f}: is it scaled as they are?")


# ---------------------------------------------------------------- files

def write_scan(trained: Trained, scan: NewScan, volume: tuple, x_hat: Tensor, row: dict, source: str,
               out: Path) -> None:
    """Write sidecar, PET and picture of a scan.

    volume: voxels and affine of its MRI and the intensity that became 1, as read_mri gives. source: checksum
    of the MRI's file. The sidecar first: without it nobody knows what a file is; with it, and all files
    there, the scan is done.
    """
    from evaluation.volume_figures import plot_overlay     # here, because it needs matplotlib
    files, note = scan.written(out), f"IL-CLDM, synthetic PET; {RESEARCH_NOTICE}"       # NIfTI holds 79 bytes
    make_folder(files["pet"].parent)
    for path in (*files.values(), *scan.beside(out)):
        path.unlink(missing_ok=True)
    content = describe(trained, scan, volume, row, source, out)
    write_text(files["sidecar"], json.dumps(content, indent=2) + "\n")
    pet = save_synthesis(files["pet"], x_hat.cpu().numpy(), scan.mri, trained.networks.crop, note,
                         trained.grid)
    plot_overlay(files["picture"], volume[0], pet, volume[1], scan.id,
                 f"synthetic PET, no measurement; {trained.notice}")


def describe(trained: Trained, scan: NewScan, volume: tuple, row: dict, source: str, out: Path) -> dict:
    """The content of a scan's sidecar."""
    cfg, (voxels, affine, upper_bound) = trained.cfg, volume
    same = Grid(voxels.shape, affine).same(trained.grid)
    networks = {
        name: {"File": relative(used["file"], out), "Weights": used["weights"]}
        for name, used in trained.networks_used.items()
    }
    versions = {"il_cldm": VERSION,
                **{name: version(name) for name in ("torch", "numpy", "nibabel", "scipy")}}
    return {
        "Kind": KIND,
        "Description": "Synthetic amyloid PET, made from a T1 MRI by a latent diffusion model (IL-CLDM). Not "
                       "a measurement.",
        "Notice": trained.notice,
        "Units": "uptake as the training PETs were stored, in [0, 1]; ratios between regions (SUVR) carry "
                 "the meaning",
        **shared_keys(scan.entities, voxel_sizes(affine), [scan.mri], out),
        "MRI": {"File": relative(scan.mri, out), "SHA256": source, "Grid": describe_grid(scan.mri),
                "Intensity": f"as stored; up to {RINGING:g} outside [0, 1] is clipped" if upper_bound == 1
                else f"divided by {upper_bound:g}, clipped to [0, 1]"},
        "Resampling": "none: the MRI lies on the cohort's grid"
        if same
        else "MRI to the cohort's grid and PET back through the affines: mean, over each new voxel, of "
             "linear interpolation",
        "Networks": networks,
        "Sampling": {"Sampler": cfg.sampler, "NetworkEvaluations": trained.sampler.evaluations,
                     "LatentSamples": cfg.samples_per_scan, "Label": cfg.label_at_sampling, "Seed": cfg.seed,
                     "Device": trained.networks.device.type},
        "Versions": versions,
        "MadeFrom": {**made_from(scan, source), **trained.made_with},
        "Results": {name: None if value != value else value for name, value in row.items()},
    }


def read_sidecar(path: Path) -> dict | None:
    """A sidecar of ours, or None if there is none."""
    try:
        content = json.loads(read_text(path))
        ours = content["Kind"] == KIND and isinstance(content["MadeFrom"], dict)
        return content if ours and content["Results"]["ID"] and content["MRI"]["File"] else None
    except (InputError, ValueError, KeyError, TypeError):
        return None


def write_table(out: Path) -> None:
    """Write synthesized.csv: a row a PET in the dataset, from its sidecar, of earlier runs too."""
    rows = []
    for sidecar in sorted([*out.glob("sub-*/pet/*_pet.json"), *out.glob("sub-*/ses-*/pet/*_pet.json")]):
        content, pet = read_sidecar(sidecar), sidecar.with_suffix(".nii.gz")
        if content and pet.exists():
            sampling = content["Sampling"]
            rows.append(
                content["Results"]
                | {"pet": relative(pet, out), "mri": content["MRI"]["File"],
                   "samples": sampling["LatentSamples"], "NFE": sampling["NetworkEvaluations"],
                   "denoiser": content["MadeFrom"]["networks"]["denoiser"], "notice": content["Notice"]}
            )
    if rows:
        write_csv(out / TABLE, pd.DataFrame(rows))


def differences_of(sidecar: Path, made_from: dict) -> list[str]:
    """What a PET that is there was made from, where it is not this."""
    content = read_sidecar(sidecar)
    if content is None:
        return ["not written by synthesize"]
    there, now = _flat(as_named_now(content["MadeFrom"])), _flat(made_from)
    return [
        f"{name}: {json.dumps(there.get(name))} -> {json.dumps(value)}"
        for name, value in now.items()
        if there.get(name) != value
    ]


def as_named_now(made_from: dict) -> dict:
    """What a PET that is there was made from, with its settings under their present names."""
    settings = made_from.get("settings")
    return made_from | {"settings": with_present_names(settings)} if isinstance(settings, dict) else made_from


def _flat(made_from: dict) -> dict:
    """Nested entries under one name each."""
    flat = {}
    for key, value in made_from.items():
        if isinstance(value, dict):
            flat |= {f"{key} {name}": part for name, part in value.items()}
        else:
            flat[key] = value
    return flat
