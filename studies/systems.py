"""The systems of the paper's comparison, ready to be timed: a training step and a scan of each, like the
parts of the method in studies/parts.py, and what is known of each without measuring it."""
import dataclasses
from functools import partial

import torch
import torch.nn as nn
from torch import Tensor

from baselines.baseline import Baseline
from baselines.tpa_gan import phase_ends
from config import SYSTEMS, Config
from experiment.networks import build_baseline
from studies.parts import Part, Setup

STEP, SCAN = "training step", "one scan"
EPOCHS = 100                                               # of a made-up training, which has every phase
FEW_STEPS = 2                                              # network evaluations of a DDPM's timed scan


def chosen(cfg: Config) -> list[str]:
    """Names of the systems that are measured: those that the setting baselines names, or all."""
    return [name for name in SYSTEMS if name in cfg.baselines] or list(SYSTEMS)


# ---------------------------------------------------------------- the parts
# Each is a function Setup -> (action that is timed, units of work that it does).

def training_step(name: str, setup: Setup) -> Part:
    """One step of a system, with all its updates, on a batch of ldm_batch_size, in its costliest phase."""
    cfg, n = setup.cfg, setup.cfg.ldm_batch_size
    system = _build(name, cfg, setup.device)
    for network in system.networks.values():
        network.train()
    system.begin_epoch(costliest_epoch(name, cfg), EPOCHS)
    batch = {"id": [f"s{i}" for i in range(n)], "label": torch.arange(n) % cfg.num_classes}
    for modality in system.modalities:
        batch[modality] = setup.volumes(n).cpu()

    def step() -> dict[str, float]:
        """The terms of the step."""
        return system.step(batch, 1, setup.cast)
    return step, 1


def scan(name: str, setup: Setup) -> Part:
    """The PET of one scan by a system; of one that takes many network evaluations a shortened one."""
    system = _build(name, shortened(setup.cfg), setup.device)
    system.begin_epoch(EPOCHS, EPOCHS)                     # as it is after its training
    for network in system.networks.values():
        network.eval().requires_grad_(False)
    mri = setup.volumes(1).cpu()

    def synthesize() -> Tensor:
        """The PET of the scan, [1, 1, D, H, W]."""
        return system.predict(mri, setup.cast, ["s"])
    return synthesize, 1


def part_name(name: str, part: str) -> str:
    """The part of a system among all that can be timed, such as 'pix2pix, one scan'."""
    return f"{name}, {part}"


PARTS = {}
for _name in SYSTEMS:
    PARTS[part_name(_name, STEP)] = partial(training_step, _name)
    PARTS[part_name(_name, SCAN)] = partial(scan, _name)


def costliest_epoch(name: str, cfg: Config) -> int:
    """An epoch of EPOCHS in which a step of the system costs most: the first, in which FGAN's classifier
    learns, but TPA-GAN's first with its discriminator, and ResViT's last, with transformers."""
    if name == "tpa_gan":
        return phase_ends(cfg.tpa_gan, EPOCHS)[1] + 1
    return EPOCHS if name == "resvit" else 1


def shortened(cfg: Config) -> Config:
    """The settings with a DDPM that takes one sample of at most FEW_STEPS of DDIM."""
    steps = min(FEW_STEPS, cfg.ddpm.sampling_steps) if cfg.ddpm.sampler == "ddim" else FEW_STEPS
    return dataclasses.replace(cfg, ddpm=dataclasses.replace(cfg.ddpm, sampler="ddim", samples=1,
                                                             sampling_steps=steps))


def _build(name: str, cfg: Config, device: torch.device) -> Baseline:
    """The system, untrained."""
    return build_baseline(name, cfg, device, aae=None)     # which only baselines on latents need


# ---------------------------------------------------------------- what is known without measuring

def metadata_of(name: str, part: str, cfg: Config) -> dict:
    """Columns of a row of the table: parameters, batch size, network evaluations of a scan, and by what the
    seconds that are measured are multiplied.

    parameters: of a training step those of all networks, without moving averages; of a scan those of the
    network that synthesizes.
    """
    system = _build(name, cfg, torch.device("cpu"))
    if part == STEP:
        networks = [network for which, network in system.networks.items() if which != "ema"]
        return {"parameters": parameters_of(networks), "batch_size": cfg.ldm_batch_size,
                "network_evaluations": None, "multiplied_by": 1.0}
    timed = _build(name, shortened(cfg), torch.device("cpu")).evaluations
    return {"parameters": parameters_of([next(iter(system.networks.values()))]), "batch_size": 1,
            "network_evaluations": system.evaluations, "multiplied_by": system.evaluations / timed}


def parameters_of(networks: list[nn.Module]) -> int:
    """Number of all weights of networks."""
    return sum(weight.numel() for network in networks for weight in network.parameters())


def remark_on(row: dict) -> str:
    """What the printed line of a row adds: of which evaluations a scan is made, and what was multiplied."""
    if row["part"] == STEP:
        return f"   batch {row['batch_size']}"
    evaluations = f"{row['network_evaluations']} network evaluation{'s' * (row['network_evaluations'] > 1)}"
    if row["system"] == "resvit":
        return f"   {evaluations}, one a slice"
    if row["multiplied_by"] == 1:
        return f"   {evaluations}"
    timed = round(row["network_evaluations"] / row["multiplied_by"])
    return (f"   {evaluations}: {row['measured_seconds']:.4f} s measured with {timed}, times "
            f"{row['multiplied_by']:g}")
