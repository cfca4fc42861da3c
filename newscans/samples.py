"""Samples of a new scan: PETs that this person might have, beside the written mean, with their amounts of
amyloid."""
import dataclasses
import json
from pathlib import Path

import pandas as pd
from torch import Tensor

from cohort.derivative import relative
from experiment.experiment import RESEARCH_NOTICE
from experiment.samples import sampler_of_samples
from imaging.volumes import save_synthesis
from labels.draws import Draws
from newscans.outputs import KIND
from newscans.scans import NewScan
from newscans.trained import Trained
from runtime.files import read_text, write_csv, write_text
from utils import InputError

SAMPLE_KIND = f"sample of an {KIND}"
SAMPLE_TABLE = "samples.csv"
OF_THE_MEAN = ("Notice", "Units", "SkullStripped", "Resolution", "Sources", "SpatialReference", "MRI")


def with_samples(trained: Trained, number: int) -> Trained:
    """The trained experiment with a sampler of `number` samples a scan; itself for 0. Raises InputError if
    they cannot be drawn."""
    if not number:
        return trained
    sampler = sampler_of_samples(trained.sampler, number, trained.cfg.sampling_steps)
    return dataclasses.replace(trained, extra_sampler=sampler)


def write_samples(trained: Trained, batch: dict, out: Path) -> None:
    """Sample and write the samples of a batch of scans whose mean PETs are written."""
    sampler = trained.extra_sampler
    draws = sampler.draws(batch) if sampler.drawn else None
    z_0 = sampler(batch, draws)                                                           # [B, N, C, d, h, w]
    for i, scan in enumerate(batch["scans"]):
        content = json.loads(read_text(scan.written(out)["sidecar"]))
        for k, z in enumerate(z_0[i]):
            pet = sampler.synthesizer.decode(z[None])[0, 0]                                  # [D, H, W]
            row = {"ID": scan.id, "sample": k + 1, **_drawn(trained, draws, i, k), **_uptake(trained, pet)}
            _write_sample(trained, scan, pet, row, content, out)


def _drawn(trained: Trained, draws: Draws | None, scan: int, k: int) -> dict[str, float]:
    """What was drawn for a sample of a batch's scan: SUVR or label, and the chance of as much or more."""
    if draws is None:
        return {}
    value, or_more = draws.value[scan, k].item(), draws.or_more[scan, k].item()
    if trained.extra_sampler.predictor.levels is None:
        return {"drawn_label": int(value), "p_or_more": or_more}
    negative, positive = trained.extra_sampler.predictor.levels.tolist()
    return {"drawn_SUVR": negative + (positive - negative) * value, "p_or_more": or_more}


def _uptake(trained: Trained, pet: Tensor) -> dict[str, float | None]:
    """Uptake of a sample's PET [D, H, W]; None for what is not defined."""
    return {name: None if value != value else value
            for name, value in trained.measurement.uptake(pet).items()}


def _write_sample(trained: Trained, scan: NewScan, pet: Tensor, row: dict, content: dict,
                  out: Path) -> None:
    """Write the sidecar and the PET [D, H, W] of a sample. content: of the sidecar of the mean PET."""
    files = scan.sample(out, row["sample"])
    about = describe_sample(trained, content, scan.written(out)["pet"], row)
    write_text(files["sidecar"], json.dumps(about, indent=2) + "\n")
    note = f"sample of a synthetic PET; {RESEARCH_NOTICE}"            # NIfTI holds 79 bytes
    save_synthesis(files["pet"], pet.cpu().numpy(), scan.mri, trained.networks.crop, note, trained.grid)


def describe_sample(trained: Trained, content: dict, pet: Path, row: dict) -> dict:
    """The content of the sidecar of a sample, from that of its mean PET. row: its numbers."""
    sampler = trained.extra_sampler
    if "drawn_SUVR" in row:
        drawn = ("Its amount of amyloid was drawn at random from what the MRI leaves open (drawn_SUVR; "
                 "p_or_more is the chance to draw as much or more), then its picture from a diffusion model "
                 "(IL-CLDM).")
    elif "drawn_label" in row:
        drawn = ("Its label was drawn by the probabilities that are predicted from the MRI (drawn_label; "
                 "p_or_more is the chance to draw this label or a higher one), then its picture from a "
                 "diffusion model (IL-CLDM).")
    else:
        drawn = ("It was drawn by a diffusion model (IL-CLDM) that has one label for all samples of a scan: "
                 "they differ by its noise alone, which is less than what the MRI leaves open.")
    sampling = content["Sampling"] | {
        "NetworkEvaluations": sampler.evaluations // len(sampler.samples), "LatentSamples": 1,
        "Label": "sampled" if sampler.drawn else trained.cfg.label_at_sampling}
    taken = {name: content[name] for name in OF_THE_MEAN if name in content}
    return {"Kind": SAMPLE_KIND,
            "Description": f"One of {len(sampler.samples)} synthetic amyloid PETs that this person might "
                           f"have. {drawn} Not a measurement, and not the best guess, which is the mean PET "
                           "beside it.",
            "SampleOf": pet.name, **taken, "Sampling": sampling,
            "Denoiser": content["MadeFrom"]["networks"]["denoiser"], "Results": row}


def write_sample_table(out: Path) -> None:
    """Write samples.csv: a row a sample in the dataset, from its sidecar, of earlier runs too."""
    rows = []
    for sidecar in sorted([*out.glob("sub-*/pet/*_pet.json"), *out.glob("sub-*/ses-*/pet/*_pet.json")]):
        content, pet = _read_sample(sidecar), sidecar.with_suffix(".nii.gz")
        if content and pet.exists():
            rows.append(content["Results"] | {
                "pet": relative(pet, out), "sample_of": content["SampleOf"], "mri": content["MRI"]["File"],
                "NFE": content["Sampling"]["NetworkEvaluations"], "denoiser": content["Denoiser"],
                "notice": content["Notice"]})
    if rows:
        write_csv(out / SAMPLE_TABLE, pd.DataFrame(rows))
    else:
        (out / SAMPLE_TABLE).unlink(missing_ok=True)       # of samples whose mean PET was replaced


def _read_sample(path: Path) -> dict | None:
    """The sidecar of a sample of ours, or None."""
    try:
        content = json.loads(read_text(path))
        return content if content["Kind"] == SAMPLE_KIND and content["Results"]["ID"] else None
    except (InputError, ValueError, KeyError, TypeError):
        return None
