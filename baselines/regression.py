"""The regression controls of the diffusion: one call of a network makes a PET of the MRI, without noise and without label.

Whatever the diffusion's synthetic PET is better at than these, diffusion adds; the rest any regression on the MRI gives. Optimizer,
batches, epochs, moving average and the choice of the best epoch are those of stage 2.
"""
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from diffusion import LatentScale
from evaluation.metrics import describe, evaluate
from experiment.experiment import Experiment
from experiment.networks import build_image_regression, build_unet, checkpoint_name
from model import AAE, UNet
from runtime.checkpoints import StageRun, check_settings, load_checkpoint, restore
from runtime.logs import say
from runtime.ranks import from_rank_0
from runtime.training import set_rate, train_epoch, update
from utils import EMA, InputError, derived_seed, seed_everything, weights_key

# ---------------------------------------------------------------- what is regressed

class LatentRegression:
    """The denoiser's network, from the MRI to the latent z_0 in one call: z_t is 0 and t is T - 1 for everyone.

    .metadata: shift and scale of the latents, as of stage 2. .z_0: ID -> the shifted and scaled latent [C, d, h, w], for training.
    """

    name, modalities = "latent_regression", ("mri",)

    def __init__(self, exp: Experiment, aae: AAE):
        self.exp, self.aae, self.metadata, self.z_0 = exp, aae, {}, {}

    def build(self) -> UNet:
        return build_unet(self.exp.cfg, self.exp.device)

    def bound_to(self) -> dict:
        """What else than its settings a checkpoint belongs to."""
        return {"autoencoder": weights_key(self.aae)}

    def load_targets(self, facts: dict) -> None:
        """Read the latents of training and validation list. facts: those of a checkpoint, if there is one."""
        latents = self.exp.load_latents(self.aae)
        self.metadata = facts or from_rank_0(lambda: self.exp.latent_scale(latents).metadata())
        self.z_0 = {name: LatentScale.of(self.metadata).apply(z) for name, z in latents.items()}

    def target(self, batch: dict) -> Tensor:
        """What the network is to give for the batch, [B, C, d, h, w]."""
        return torch.stack([self.z_0[name] for name in batch["id"]])

    def call(self, network: nn.Module, mri: Tensor) -> Tensor:
        """mri [B, 1, D, H, W] -> the shifted and scaled latent [B, C, d, h, w]."""
        cfg = self.exp.cfg
        z_t = mri.new_zeros(len(mri), cfg.latent_channels, *cfg.latent_size)
        return network(z_t, mri, *at_step(cfg.timesteps - 1, mri, cfg.num_classes))

    def to_pet(self, output: Tensor) -> Tensor:
        """The network's output as a PET [B, 1, D, H, W], not clamped."""
        return self.aae.decoder(LatentScale.of(self.metadata).undo(output.float()))


class ImageRegression:
    """A plain 3D UNet from the MRI to the PET, without latents."""

    name, modalities = "image_regression", ("mri", "pet")

    def __init__(self, exp: Experiment):
        self.exp, self.metadata = exp, {}

    def build(self) -> UNet:
        return build_image_regression(self.exp.cfg, self.exp.device)

    def bound_to(self) -> dict:
        """Nothing else than its settings: it knows no autoencoder."""
        return {}

    def load_targets(self, facts: dict) -> None:
        """The batches bring their PETs along."""

    def target(self, batch: dict) -> Tensor:
        """What the network is to give for the batch, [B, 1, D, H, W]."""
        return batch["pet"]

    def call(self, network: nn.Module, mri: Tensor) -> Tensor:
        """mri [B, 1, D, H, W] -> PET of that shape, not clamped."""
        return network(mri[:, :0], mri, *at_step(0, mri, self.exp.cfg.num_classes))

    def to_pet(self, output: Tensor) -> Tensor:
        return output


Regression = LatentRegression | ImageRegression


def regressions(exp: Experiment, aae: AAE) -> list[Regression]:
    """The controls, in the order of config.BASELINES."""
    return [LatentRegression(exp, aae), ImageRegression(exp)]


def at_step(t: int, mri: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The same t for everyone [B], and no label [B, K]: weights of 0."""
    return torch.full((len(mri),), t, device=mri.device), mri.new_zeros(len(mri), num_classes)


def predict_by(control: Regression, network: UNet) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: MRI -> PET, by one call of the network."""
    def predict(batch: dict) -> Tensor:
        with control.exp.cast():
            return control.to_pet(control.call(network, batch["mri"].to(control.exp.device))).float().clamp(0, 1)
    return predict


# ---------------------------------------------------------------- training

def begin_regression(control: Regression) -> tuple[StageRun, EMA]:
    """The run of a control, from its last checkpoint if there is one, and the moving average. Raises InputError if that does not fit."""
    exp, cfg, name = control.exp, control.exp.cfg, control.name
    seed_everything(cfg.seed, name)
    network = control.build()
    ema = EMA(network, cfg.ema_decay, cfg.ema_start)
    opt = torch.optim.AdamW(network.parameters(), cfg.ldm_lr, fused=True)
    bound_to = control.bound_to()
    if bound_to:                                           # to an autoencoder, which must not be trained on behind it
        bound_to["aae_epochs"] = cfg.aae_epochs
    return StageRun(cfg.result_dir, name, checkpoint_name(name), {"unet": network, "ema": ema.module, "opt": opt},
                    exp.settings(name) | bound_to, exp.free_settings(name)), ema


def train_regression(control: Regression, run: StageRun, ema: EMA, subjects: DataLoader) -> None:
    """The epochs that are left; the moving average is validated, kept and used."""
    exp, cfg, name = control.exp, control.exp.cfg, control.name
    control.load_targets(run.metadata)
    run.metadata = control.metadata
    network, opt = run.parts["unet"], run.parts["opt"]
    validation = exp.batches(exp.cohort.validation, "mri", "pet", divided=True)

    def step(batch: dict) -> dict[str, float]:
        """Update network and moving average on a batch: its loss."""
        mri, target = (tensor.to(exp.device, non_blocking=True) for tensor in (batch["mri"], control.target(batch)))
        losses = regression_step(network, opt, control.call, mri, target, exp.cast)
        run.step += 1
        ema.update(network, run.step)
        return losses

    with run.saved_when_stopped():
        for epoch in run.epochs_left(cfg.ldm_epochs):
            set_rate([opt], cfg.ldm_lr, epoch, cfg.ldm_epochs, cfg.ldm_lr_decay)
            losses, waiting = train_epoch(subjects, step, derived_seed(cfg.seed, name, epoch), f"{name} epoch {epoch}", run.progress, [network])
            scores = evaluate(predict_by(control, ema.module), validation, exp.image_scores, f"{name} epoch {epoch}, validation") \
                if epoch % cfg.validation_every == 0 else None
            run.finish_epoch(epoch, losses, scores)
            validated = "" if scores is None else f"  validation {describe(scores)}"
            say(name, f"epoch {epoch}/{cfg.ldm_epochs}  mse {losses['mse']:.4f}  waiting for data {waiting:.1%}{validated}")


def regression_step(network: nn.Module, opt: Optimizer, call: Callable[[nn.Module, Tensor], Tensor], mri: Tensor, target: Tensor,
                    cast: Callable = nullcontext) -> dict[str, float]:
    """Update the network on one batch: call(network, mri) is to be the target."""
    with cast():
        loss = F.mse_loss(call(network, mri).float(), target)
    losses = {"mse": loss.item()}
    update(opt, loss, losses)
    return losses


# ---------------------------------------------------------------- trained

def trained_regressions(exp: Experiment, aae: AAE, epochs: int) -> dict[str, Callable[[dict], Tensor]]:
    """A predict function for evaluate of every control that is trained and fits this experiment; of another it says why not.

    epochs: those of stage 2, for a remark where a control has others.
    """
    predicts = {}
    for control in regressions(exp, aae):
        best, last = exp.best_path(control.name), exp.last_path(control.name)
        if not (best.exists() or last.exists()):
            continue
        try:
            network = _best_network(control)
            trained = load_checkpoint(last if last.exists() else best)["epoch"]
        except InputError as error:
            say("test", f"{control.name} is left out: {' '.join(line.strip() for line in str(error).splitlines())}")
            continue
        if trained != epochs:
            say("test", f"{control.name} is trained for {trained} epochs, stage 2 for {epochs}; --stages baselines goes on")
        predicts[control.name] = predict_by(control, network)
    return predicts


def _best_network(control: Regression) -> UNet:
    """The moving average of the best epoch, frozen; sets control.metadata. Raises InputError if it is not of this experiment."""
    exp, path = control.exp, control.exp.best_path(control.name)
    saved = load_checkpoint(path)
    check_settings(path, saved, exp.settings(control.name) | control.bound_to())
    if isinstance(control, LatentRegression) and not {"latent_mean", "latent_std"} <= saved["metadata"].keys():
        raise InputError(f"{path} does not say how its latents were scaled")
    control.metadata, network = saved["metadata"], control.build().eval().requires_grad_(False)
    restore(network, saved["state"].get("ema"), path)
    return network
