"""The page of samples: PETs that two test subjects might have, beside the real one and the written mean."""
from pathlib import Path

import numpy as np
from numpy import ndarray

from dataset import Scan
from experiment.experiment import Experiment
from experiment.networks import LatentSampler

SHOWN = 6                                                  # samples of a subject
LEVEL_MM = 20                                              # z of the slice, which meets the ventricles


def draw_page(path: Path, exp: Experiment, samplers: dict[str, LatentSampler]) -> None:
    """Draw real PET, written mean and SHOWN of the drawn samples of the first test subject with the highest
    label and of the first with label 0, an axial slice each."""
    from evaluation.volume_figures import plot_samples            # here, because it needs matplotlib

    affine = exp.crop.affine(exp.cohort.affine)
    level = int(np.clip(round((LEVEL_MM - affine[2, 3]) / affine[2, 2]), 0, exp.crop.size[2] - 1))
    rows = {f"{scan.id}\nlabel {scan.label}": shown_slices(exp, samplers, scan, level)
            for scan in subjects_of_page(exp.cohort.test)}
    where = f"axial slices at z = {affine[2, 2] * level + affine[2, 3]:.0f} mm"
    plot_samples(path, rows, where, exp.notice)


def subjects_of_page(scans: list[Scan]) -> list[Scan]:
    """The first scan of the highest label and the first of the lowest."""
    labels = [scan.label for scan in scans]
    return [scans[labels.index(label)] for label in dict.fromkeys((max(labels), min(labels)))]


def shown_slices(exp: Experiment, samplers: dict[str, LatentSampler], scan: Scan,
                 level: int) -> list[tuple[str, ndarray]]:
    """(text, axial slice [D, H]) of the real PET, the written mean, and of samples from the least amyloid to
    the most, evenly spaced among the ordered ones."""
    [batch] = exp.batches([scan], "mri", "pet", batch=1)
    sampler, written = samplers["sampled"], samplers["written"].synthesize(batch)
    draws = sampler.draws(batch)
    pets = sampler.synthesizer.decode(sampler(batch, draws)[0])                              # [m, 1, D, H, W]
    suvr = exp.measurement.suvr(pets).tolist()
    shown = []
    for title, pet in (("real PET", batch["pet"]), ("written mean", written)):
        shown.append((f"{title}\nSUVR {exp.measurement.suvr(pet)[0]:.2f}", pet[0, 0]))
    order = np.argsort(suvr, kind="stable")
    for k in order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)]:
        share = draws.or_more[0, k].item()
        shown.append((f"sample, SUVR {suvr[k]:.2f}\n{share:.0%}: so much\nor more", pets[k, 0]))
    return [(text, volume[:, :, level].cpu().numpy()) for text, volume in shown]
