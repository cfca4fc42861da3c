"""Samples: PETs that a person might have, beside the mean that is written; and one of each shown test scan,
for the pictures."""
from experiment.experiment import PHANTOM_NOTICE, Experiment
from experiment.networks import LatentSampler
from imaging.volumes import save_synthesis
from runtime.files import make_folder
from runtime.logs import say
from utils import InputError

# For the texture of a PET, where the denoiser learned little at low noise; docs/samples.md says why.
STEPS, LAST = 2, 0.6                                       # network evaluations, the last at this share of T


def sampler_of_samples(of_mean: LatentSampler, number: int, steps: int, last: int = 1) -> LatentSampler:
    """The sampler of so many samples a scan. of_mean: that of the written mean PET. steps, last: of DDIM.

    Each sample has an amount of amyloid of its own, drawn from what the MRI leaves open, where the denoiser
    was trained with amounts; else the label that the settings give. Raises InputError if its predictor is of
    an earlier version, which cannot draw, or of other regions.
    """
    predictor, measurement = of_mean.predictor, of_mean.measurement
    is_amount = predictor is not None and predictor.levels is not None
    is_matched = is_amount and measurement.regions is not None
    return LatentSampler(of_mean.cfg, of_mean.synthesizer, predictor, measurement, of_mean.sampler, steps,
                         range(number), is_matched, of_mean.people,
                         is_amount or of_mean.cfg.draws_label, last)


def sampler_of_one(of_mean: LatentSampler) -> LatentSampler:
    """The sampler of one sample a scan, with the texture of a PET. Where no amount can be drawn, which it
    says, the sample has the label of the mean PET."""
    cfg, steps, last = of_mean.cfg, of_mean.steps, 1
    if of_mean.sampler == "ddim" and cfg.time_shift > 1:
        steps, last = STEPS, round(LAST * cfg.timesteps)
    try:
        return sampler_of_samples(of_mean, 1, steps, last)
    except InputError as error:
        say("test", f"the samples of the picture have the label of the mean PET: {error}")
        return LatentSampler(cfg, of_mean.synthesizer, of_mean.predictor, of_mean.measurement,
                             of_mean.sampler, steps, range(1), of_mean.matched, of_mean.people, last=last)


def write_shown_samples(exp: Experiment, sampler: LatentSampler) -> None:
    """Write the one sample of each shown test scan on the grid of its MRI."""
    scans = {scan.id: scan for scan in exp.shown_scans()}
    make_folder(exp.one_sample_folder)
    what = PHANTOM_NOTICE if exp.is_phantom else "synthetic PET"            # NIfTI holds 79 bytes
    for batch in exp.batches(list(scans.values()), "mri", batch=exp.cfg.sampling_batch):
        pets = sampler.synthesize(batch)                   # the mean of one sample is that sample
        for name, pet in zip(batch["id"], pets[:, 0].cpu().numpy(), strict=True):
            save_synthesis(exp.one_sample(scans[name]), pet, scans[name].mri, exp.crop,
                           f"one sample; {what}; not for clinical use")
