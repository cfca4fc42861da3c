"""Settings that are in range one by one, but do not fit together."""
import re
from pathlib import Path

from settings import BESIDE


def misfits(cfg):
    """Yield, as sentences, what in a Config does not fit together."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cfg.exp):
        yield f"exp {cfg.exp!r} must be a plain folder name of letters, digits, '.', '_' and '-'"
    if cfg.exp in ("tables", "benchmark", "study"):
        yield f"exp {cfg.exp!r} is a folder of result/ that all experiments share; take another name"
    if any(n % cfg.downscale for n in cfg.volume_size):
        yield (f"volume_size {cfg.volume_size} must be divisible by {cfg.downscale}, "
               f"because aae_channels has {len(cfg.aae_channels)} levels")
    elif any(n % 2 ** (len(cfg.unet_mults) - 1) for n in cfg.latent_size):
        yield (f"volume_size {cfg.volume_size} gives latents of {cfg.latent_size}, which must be divisible by "
               f"{2 ** (len(cfg.unet_mults) - 1)}, because unet_mults has {len(cfg.unet_mults)} levels")
    smallest = 2 ** (len(cfg.disc_channels) + 1)
    if min(cfg.volume_size) < smallest:
        yield (f"volume_size {cfg.volume_size} must be at least {smallest} along each axis, "
               f"because disc_channels has {len(cfg.disc_channels)} layers")
    for n, start, size in zip(cfg.image_size, cfg.crop_start, cfg.volume_size, strict=True):
        if start < cfg.crop_jitter or start + size + cfg.crop_jitter > n:
            yield (f"the crop [{start}, {start + size}) with crop_jitter {cfg.crop_jitter} leaves the image_size "
                   f"{cfg.image_size}; change crop_start, volume_size or crop_jitter")
    for name, widths, groups in (("aae_channels", cfg.aae_channels, cfg.aae_norm_groups),
                                 ("unet_channels and its multiples", [cfg.unet_channels * m for m in (1, *cfg.unet_mults)],
                                  cfg.unet_norm_groups)):
        if any(width % groups for width in widths):
            yield f"{name} {tuple(widths)} must be divisible by the {groups} groups of their GroupNorm"
    if any(level >= len(cfg.unet_mults) for level in cfg.unet_attention_levels):
        yield f"unet_attention_levels {cfg.unet_attention_levels} must be below the {len(cfg.unet_mults)} of unet_mults"
    if cfg.time_dim % 2:
        yield f"time_dim {cfg.time_dim} must be even: half sines, half cosines"
    for name in ("sampling_steps", "validation_steps"):
        if getattr(cfg, name) > cfg.timesteps - 1:
            yield f"{name} {getattr(cfg, name)} must be at most timesteps - 1 = {cfg.timesteps - 1}"
    if cfg.ldm_epochs % cfg.validation_every:
        yield (f"ldm_epochs {cfg.ldm_epochs} must be a multiple of validation_every {cfg.validation_every}, "
               "so that the last epoch is validated")
    for one, other in (("cortex_mask", "reference_mask"), ("regions_image", "regions_table")):
        scored = one != "cortex_mask" or not set(cfg.stages) <= set(BESIDE)             # preprocess needs the reference alone
        if scored and bool(getattr(cfg, one)) != bool(getattr(cfg, other)):
            yield f"{one} and {other} go together: give both or none"
    yield from _lever_misfits(cfg)
    if cfg.save_deviation and cfg.samples_per_scan < 2:
        yield "save_deviation needs samples_per_scan of at least 2"
    if cfg.centiloid_intercept and not cfg.centiloid_slope:
        yield f"centiloid_intercept {cfg.centiloid_intercept} needs a centiloid_slope"
    if "synthesize" in cfg.stages and not (cfg.mri and cfg.out):
        yield "the stage synthesize needs --mri FILE_OR_FOLDER and --out FOLDER"
    if "prepare" in cfg.stages:
        yield from _prepare_misfits(cfg)
    yield from _phantom_misfits(cfg)
    try:
        if re.compile(cfg.subject_pattern).groups < 1:
            yield f"subject_pattern {cfg.subject_pattern!r} has no group for the subject"
    except re.error as error:
        yield f"subject_pattern {cfg.subject_pattern!r} is no regular expression: {error}"


def _lever_misfits(cfg):
    """Settings of stage 2 and of sampling that ask for others."""
    if cfg.zero_terminal_snr and (cfg.prediction == "eps" or cfg.sampler != "ddim"):
        yield (f"zero_terminal_snr needs prediction v or x0 and sampler ddim, not {cfg.prediction} and {cfg.sampler}: of pure noise, "
               "the noise says nothing about z_0")
    if cfg.label_at_sampling == "weighted" and cfg.samples_per_scan % cfg.num_classes:
        yield (f"label_at_sampling weighted needs as many draws with each of the {cfg.num_classes} labels, so samples_per_scan "
               f"{cfg.samples_per_scan} must be a multiple of it")
    if cfg.guidance != 1 and not (cfg.predicts_label and 0 < cfg.label_dropout < 1):
        yield (f"guidance {cfg.guidance} needs a denoiser that knows scans with and without label: label_conditioning, label_dropout "
               "between 0 and 1, and a label_at_sampling other than none")
    if cfg.cortex_loss and not (cfg.cortex_mask or cfg.is_phantom):
        yield "cortex_loss needs a cortex_mask"
    if cfg.label_in_training == "suvr":
        if not (cfg.cortex_mask or cfg.is_phantom):
            yield ("label_in_training suvr needs a cortex_mask and a reference_mask; without them take label_in_training true and "
                   "label_at_sampling mixed")
        if (cfg.num_classes, cfg.label_predictor, cfg.label_at_sampling in ("mixed", "matched", "none")) != (2, "ridge", True):
            yield ("label_in_training suvr needs num_classes 2, label_predictor ridge and label_at_sampling mixed, matched or none, not "
                   f"{cfg.num_classes}, {cfg.label_predictor} and {cfg.label_at_sampling}")
    elif cfg.label_at_sampling == "matched":
        yield f"label_at_sampling matched needs label_in_training suvr, not {cfg.label_in_training}"
    for name in ("aae_from", "ldm_from"):
        if getattr(cfg, name) == cfg.exp:
            yield f"{name} {cfg.exp} is this experiment itself; leave it empty"


def _prepare_misfits(cfg):
    if not cfg.table:
        yield "the stage prepare needs --table FILE.csv"
    if cfg.is_phantom:
        yield "the stage prepare is for your own cohort; a phantom brings its lists and labels"
    if cfg.label_from == "centiloids" and (cfg.num_classes != 2 or cfg.label_column):
        yield "label_from centiloids gives the labels 0 and 1: it goes with num_classes 2 and without label_column"
    if cfg.grey_zone[0] > cfg.grey_zone[1]:
        yield f"grey_zone {cfg.grey_zone} must begin below its end"
    elif cfg.has_grey_zone and cfg.label_from == "centiloids" and not cfg.grey_zone[0] <= cfg.centiloid_cutoff <= cfg.grey_zone[1]:
        yield f"grey_zone {cfg.grey_zone} must hold the centiloid_cutoff {cfg.centiloid_cutoff}"


def _phantom_misfits(cfg):
    if not cfg.is_phantom:
        return
    if min(cfg.phantom_subjects) < 2:
        yield f"phantom_subjects {cfg.phantom_subjects} must be at least 2 in each list, or all 0"
    grid = tuple(n // cfg.phantom_voxel for n in (181, 217, 181))
    if cfg.image_size != grid:
        yield f"image_size {cfg.image_size} must be {grid}, the phantom's at phantom_voxel {cfg.phantom_voxel}"
    if Path(cfg.data_dir) == Path("data"):
        yield "data_dir data is the place of your own cohort; give the phantom another, such as --data_dir data/phantom"
