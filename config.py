"""Every setting of an experiment: edit a default here, or pass `--field value` to main.py.

The defaults are this project's own. Where they depart from the published method (Ou et al., IEEE JBHI 2025),
the field says `published=VALUE`; PUBLISHED, near the end, collects them, and --preset published sets them
back, but for the sampler of the validation (docs/published.md: two exceptions). "paper" marks a default that
is the paper's. Of a baseline, `published=VALUE` and "as published" mean the system's own paper or code.
"""
import dataclasses
import json
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runtime.settings import (ADDED, UNPUBLISHED, dotted, merged, plain, read_groups, refuse, setting,
                              value_problems, with_present_names)

VERSION = "0.2.0"
STAGES = ("check", "aae", "encode", "ldm", "test", "report", "tables")
OPTIONAL_STAGES = ("baselines",)                           # run only where they are asked for

# What a setting affects: the four trainings, the choice of stage 2's best epoch, the synthetic PETs, the
# scores, the rows of new scans, and what rows of a table must share to be compared. Checkpoints, latents,
# calibration, sweep and study are bound to these marks.
AAE, LDM = ("aae",), ("ldm",)
REGRESSIONS = ("latent_regression", "labelled_latent_regression", "image_regression",
               "labelled_image_regression")                # controls of the diffusion
SYSTEMS = ("pix2pix", "tpa_gan", "fgan", "resvit", "ddpm")  # published; these five: the paper's comparison
SECOND_ROWS = {"ddpm_mean": "ddpm"}                        # a system's second row in the tables -> system
BASELINES = (*REGRESSIONS, *SYSTEMS)                       # those that are trained
LABELLED = tuple(name for name in REGRESSIONS if name.startswith("labelled_"))  # with the label of stage 2
DENOISER = ("ldm", "latent_regression", "labelled_latent_regression")          # the UNet on latents
ON_IMAGES = tuple(name for name in BASELINES if name not in DENOISER)          # without a first stage
IMAGE_REGRESSIONS = tuple(name for name in ON_IMAGES if name in REGRESSIONS)
SEEING_LABELS = ("tpa_gan", "fgan")                        # of the systems, in training
SCHEDULED = tuple(name for name in SYSTEMS if name != "ddpm")  # phases and rates follow from the epochs
STAGE_2 = ("ldm", *REGRESSIONS)
PET = ("ldm", *BASELINES)                                  # everything that gives a PET
ALL = ("aae", *PET)
COHORT = (*ALL, "comparison")
SAMPLING, SCORES, NEW_SCANS = ("synthesis",), ("scores", "comparison"), ("new_scans",)


# ---------------------------------------------------------------- hyperparameters of baselines
# Defaults are for 160x192x160. published: the value in the system's own paper or code, which no preset sets.

IN_PREDICTION = ("prediction",)                            # may be changed after the training


@dataclass(frozen=True)
class ImageRegressionSettings:
    """The UNet that regresses the PET on the MRI (baselines/image_regression.py)."""

    channels: int = setting(16, "width of the first level; further levels as in unet_mults", low=1)


@dataclass(frozen=True)
class Pix2PixSettings:
    """Pix2Pix in three dimensions (baselines/pix2pix.py)."""

    downs: int = setting(5, "halvings of the generator", low=2, high=10, published=8)
    width: int = setting(32, "channels of the generator's first level", low=1, published=64)
    dropout_blocks: int = setting(2,
        "blocks with dropout, from the one next to the innermost outward", low=0, published=3)
    dropout: float = setting(0.5,
        "share of the features that dropout drops; as published", low=0.0, high=0.99)
    disc_width: int = setting(32, "channels of the discriminator's first layer", low=1, published=64)
    disc_layers: int = setting(3, "halvings of the discriminator; as published", low=1, high=10)
    norm: str = setting("instance",
        "norm of both networks: a batch is one or two volumes", choices=("instance", "batch"),
        published="batch")
    init_std: float = setting(0.02,
        "standard deviation of the normal start of both networks; as published", low=0.0, high=1.0)
    lambda_l1: float = setting(100.0, "weight of L1 against the adversarial term; as published", low=0.0)
    lr: float = setting(2e-4, "learning rate of both Adams; as published", low=1e-8, high=1.0)
    betas: tuple[float, float] = setting((0.5, 0.999),
        "betas of both Adams; as published", low=0.0, high=0.99999)
    constant_share: float = setting(0.5,
        "share of the epochs before the learning rate falls; as published", low=0.0, high=1.0)


@dataclass(frozen=True)
class TPAGANSettings:
    """TPA-GAN (baselines/tpa_gan.py): a generator G, a discriminator D and a frozen classifier T."""

    width: int = setting(8, "width to which all channels of G are proportional; as published", low=1)
    residual_units: int = setting(6, "residual units at G's coarsest grid; as published", low=0)
    shared_kernel: bool = setting(True, "one kernel for all convolutions of the residual units; as published")
    disc_channels: tuple[int, ...] = setting((32, 64, 128, 256, 512),
        "channels of D, one entry a halving of the grid; as published", low=1)
    task_layers: tuple[int, ...] = setting((2, 2, 2, 2),
        "layers of each of T's dense blocks; as published", low=1)
    task_channels: int = setting(16, "channels of T's first convolution; as published", low=1)
    task_growth: int = setting(16, "channels that a dense layer of T adds; as published", low=1)
    task_bottleneck: int = setting(4,
        "channels inside a dense layer, in multiples of task_growth; as published", low=1)
    task_share: float = setting(0.12,
        "share of the epochs for T's own training; published: 40 epochs beside 300 of G", low=0.0, high=1.0)
    rec_share: float = setting(0.13,
        "share of the epochs left in which G learns from the reconstruction alone; published: 40 of 300",
        low=0.0, high=1.0)
    adv_share: float = setting(0.14,
        "share of the epochs left in which G learns from D, and in the rest from T; published: 41 of 300",
        low=0.0, high=1.0)
    adv_weight: float = setting(1.0, "weight of D's verdict in G's loss; as published", low=0.0)
    task_weight: float = setting(1.0, "weight of T's cross-entropy in G's loss; as published", low=0.0)
    ssim_window: int = setting(11, "voxels of SSIM's Gaussian window along both axes; as published", low=1)
    ssim_sigma: float = setting(1.5, "standard deviation of that window in voxels; as published", low=0.01)
    least_term: float = setting(1e-8,
        "value as which a smaller term of the loss counts in the weights: a term of 0 would give an "
        "infinite one", low=1e-30)
    g_lr: float = setting(1e-4, "learning rate of G, constant; as published", low=1e-8, high=1.0)
    d_lr: float = setting(4e-4, "learning rate of D, constant; as published", low=1e-8, high=1.0)
    betas: tuple[float, float] = setting((0.9, 0.999),
        "betas of all three Adams; as published", low=0.0, high=0.99999)
    task_lr: float = setting(1e-3, "learning rate of T at first; as published", low=1e-8, high=1.0)
    task_weight_decay: float = setting(1e-4, "weight decay of T alone; as published", low=0.0)
    task_decays: tuple[float, ...] = setting((21 / 40, 31 / 40),
        "shares of T's epochs after which its learning rate falls; as published", low=0.0, high=1.0,
        empty=True)
    task_decay: float = setting(0.1,
        "factor by which T's learning rate falls each time; as published", low=0.0, high=1.0)


@dataclass(frozen=True)
class FGANSettings:
    """FGAN (baselines/fgan.py): a generator, a discriminator, and DSNet, a classifier of PETs."""

    generator_width: int = setting(16, "channels of the generator at full resolution; as published", low=1)
    generator_blocks: int = setting(3, "residual blocks at a quarter of the resolution; as published", low=0)
    output_norm: bool = setting(False,
        "InstanceNorm before the tanh, which removes the overall level of uptake", published=True)
    discriminator_width: int = setting(32, "channels of the discriminator's first layer; as published", low=1)
    classifier_channels: tuple[int, ...] = setting((16, 32, 64, 64, 64),
        "channels of DSNet, one entry a layer; as published", low=1)
    classifier_pools: int = setting(4,
        "max pools, after the first layers of DSNet, never after its last; as published", low=0)
    second_order: bool = setting(True, "squares beside the features in DSNet's descriptor; as published")
    feature_layers: tuple[int, ...] = setting((0, 1, 2, 3, 4),
        "layers of DSNet in the feature consistency, 0 the first; as published", low=0)
    lambda_feature: float = setting(1.0, "weight of the feature consistency; as published", low=0.0)
    lambda_adv: float = setting(1.0, "weight of the adversarial term; as published", low=0.0)
    lambda_voxel: float = setting(0.0,
        "weight of L1 on the scale [-1, 1], an option of the authors' code; as published", low=0.0)
    lr: float = setting(2e-4,
        "learning rate of generator and discriminator (Adam); as published", low=1e-8, high=1.0)
    betas: tuple[float, float] = setting((0.5, 0.999),
        "betas of generator and discriminator; as published", low=0.0, high=0.99999)
    constant_share: float = setting(100 / 151,
        "share of the epochs before the learning rate falls to 0; as published", low=0.0, high=0.999999)
    classifier_lr: float = setting(0.01,
        "learning rate of DSNet (plain SGD); as published", low=1e-8, high=1.0)
    classifier_share: float = setting(50 / 151,
        "share of the epochs in which DSNet learns; as published", low=1e-6, high=1.0)


@dataclass(frozen=True)
class ResvitSettings:
    """ResViT on axial slices (baselines/resvit.py)."""

    width: int = setting(64,
        "channels of the first encoder layer; ART blocks have 4 times as many; as published", low=1)
    art_blocks: int = setting(9, "ART blocks A1, A2, ...; as published", low=1)
    transformer_blocks: tuple[int, ...] = setting((1, 6),
        "ART blocks with a transformer, 1 the first; as published", low=1)
    downs: int = setting(2, "halvings of the slice before the transformer; as published", low=0, high=6)
    hidden: int = setting(768, "width of the transformer; as published, ViT-B/16", low=1)
    layers: int = setting(12, "layers of the transformer; as published", low=1)
    heads: int = setting(12, "heads of each attention; as published", low=1)
    mlp: int = setting(3072, "width of the layer inside each MLP; as published", low=1)
    dropout: float = setting(0.1,
        "dropout after the embedding and in each MLP; as published", low=0.0, high=0.99)
    disc_width: int = setting(64, "channels of the discriminator's first layer; as published", low=1)
    disc_layers: int = setting(3,
        "convolutions of stride 2 of the discriminator; 3: patches of 70x70, as published", low=1, high=6)
    lambda_l1: float = setting(100.0, "weight of L1 on the scale [-1, 1]; as published", low=0.0)
    lambda_adv: float = setting(1.0, "weight of the adversarial term; as published", low=0.0)
    lr_1: float = setting(2e-4,
        "learning rate of both networks in the first phase; as published", low=1e-8, high=1.0)
    lr_2: float = setting(1e-3,
        "learning rate of both networks in the second phase; as published", low=1e-8, high=1.0)
    betas: tuple[float, float] = setting((0.5, 0.999), "betas of Adam; as published", low=0.0, high=0.99999)
    epochs_1: int = setting(100,
        "share of the epochs without transformers, epochs_1 / (epochs_1 + epochs_2); as published", low=0)
    epochs_2: int = setting(50, "share of the epochs with transformers; as published", low=1)
    warmup_epochs: int = setting(5,
        "epochs of epochs_2 in which lr_2 rises, because the transformer starts from random weights", low=0,
        published=0)
    slices_per_volume: int = setting(32, "slices of each volume in a step", low=1, published=1)
    predict_slices: int = setting(32,
        "slices that are predicted at once; less takes less memory and changes no PET", affects=IN_PREDICTION,
        low=1)


@dataclass(frozen=True)
class DDPMSettings:
    """A diffusion model of the PET volume itself (baselines/ddpm.py)."""

    downsample: int = setting(2,
        "side of the network's voxels, in voxels of the volume; because of memory", low=1, high=8,
        published=1)
    base_channels: int = setting(32, "width of the first UNet level", low=1)
    channel_mults: tuple[int, ...] = setting((1, 2, 4, 8),
        "width of each UNet level in multiples of the first", low=1)
    res_blocks: int = setting(2, "residual blocks a level, one more on the way up", low=1)
    time_dim: int = setting(32, "width of the time embedding, even", low=4)
    norm_groups: int = setting(32, "groups of every GroupNorm", low=1)
    attention_levels: tuple[int, ...] = setting((),
        "levels with attention, 0 the finest; the middle always has it", low=0, empty=True)
    output_norm: bool = setting(False,
        "GroupNorm before the last convolution: it hides the level of uptake", published=True)
    T: int = setting(1000, "steps of the diffusion; as published", low=10)
    beta: tuple[float, float] = setting((1e-4, 0.02),
        "first and last noise variance, linear in between; as published", low=1e-8, high=0.5)
    time_shift: float = setting(1.0,
        "s of the times in training, as the setting time_shift of stage 2; 1: uniform, as published",
        low=0.01, high=100.0)
    lr: float = setting(1e-4, "learning rate of AdamW, constant", low=1e-8, high=1.0, published=2e-4)
    betas: tuple[float, float] = setting((0.9, 0.999), "betas of AdamW", low=0.0, high=0.99999)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0.0)
    ema_decay: float = setting(0.9999,
        "decay of the moving average of the weights; as published", low=0.0, high=0.999999)
    ema_start: int = setting(2000, "steps for which the average is a plain copy", low=0)
    sampler: str = setting("ddim",
        "ddim: few network evaluations; ddpm: ancestral, T - 1", affects=IN_PREDICTION,
        choices=("ddim", "ddpm"), published="ddpm")
    sampling_steps: int = setting(50, "network evaluations a sample with ddim", affects=IN_PREDICTION, low=1)
    samples: int = setting(1,
        "m samples a scan; above 1, a row ddpm_mean has their mean beside that of the first alone",
        affects=IN_PREDICTION, low=1)
    validation_steps: int = setting(10, "network evaluations of the one sample of a validation", low=1)


# ---------------------------------------------------------------- the experiment

@dataclass(frozen=True)
class Config:
    """Every setting of an experiment.

    Raises ValueError that lists all values which are out of range or do not fit together.
    """

    exp: str = setting("default", "name of the experiment; outputs go to result/<exp>", section="the run")
    aae_from: str = setting("",
        "experiment whose trained stage 1 is used instead of an own one; empty: its own")
    ldm_from: str = setting("",
        "experiment whose trained stage 2 is used, to sample it otherwise, with its stage 1 unless aae_from "
        "says whose; empty: its own")
    stages: tuple[str, ...] = setting(STAGES,
        "stages to run, in the paper's order whatever theirs; baselines, what the diffusion is compared "
        "with, only where asked for", choices=STAGES + OPTIONAL_STAGES)
    seed: int = setting(0,
        "seed of weights, order, noise and crops; paper: 0", affects=ALL, low=0, high=2 ** 32 - 1)
    resume: str = setting("auto",
        "yes: continue a run, an error if there is none in result/<exp>; no: begin one, an error if there "
        "is; auto: continue if there is one", choices=("auto", "yes", "no"))
    device: str = setting("auto",
        "auto is the GPU if there is one, else the CPU", choices=("auto", "cpu", "cuda"))
    gpus: int = setting(0,
        "GPUs of this machine to train on, a process for each; 0: one, or as torchrun says (docs/running.md)",
        low=0)
    num_workers: int = setting(2, "processes that read volumes; 0 reads in the main process", low=0)
    cache: str = setting("auto",
        "where decoded .nii.gz crops are kept during a run: ram, file (in the folder for temporary files), "
        "off; auto: the first of these with room enough", choices=("auto", "ram", "file", "off"))
    precision: str = setting("auto",
        "bf16: networks compute in bfloat16 (autocast; TF32 for the rest), weights stay float32; fp32: all "
        "in float32; auto: bf16 where the device has instructions for it", choices=("auto", "fp32", "bf16"),
        published="fp32")
    deterministic: bool = setting(False,
        "on a GPU: only kernels that give the same numbers in every run of a seed, which takes two to three "
        "times as long (docs/speed.md); on a CPU every run does")
    recompute: bool = setting(False,
        "recompute activations in the backward pass instead of keeping them: less memory, more time")

    data_dir: str = setting("data",
        "folder with whole_MRI and whole_Abeta; may be read-only", section="the cohort")
    latent_dir: str = setting("",
        "folder that latents, and what is known of the volumes, are written to; empty: "
        "data_dir/latent_Abeta, or result/latents/<key of data_dir> where data_dir cannot be written to")
    info_dir: str = setting("data_info",
        "folder with data_info.csv, train.txt, validation.txt and test.txt; a phantom's own lie in "
        "data_dir/data_info")
    brain_mask: str = setting("",
        "NIfTI mask of the brain, for scores and for the prediction of the label, any grid of the same "
        "space; empty: the MNI152 mask that nilearn carries", affects=COHORT)
    image_size: tuple[int, int, int] = setting((181, 217, 181),
        "voxels of every volume, in RAS order; paper", affects=ALL, low=8)
    crop_start: tuple[int, int, int] = setting((10, 18, 10),
        "first voxel of the crop, in RAS order; paper", affects=COHORT, low=0)
    volume_size: tuple[int, int, int] = setting((160, 192, 160),
        "D, H, W in voxels, after the crop; paper", affects=COHORT, low=8)
    crop_jitter: int = setting(2,
        "stage 1 and the compared systems shift the training crop by up to this many voxels an axis; paper: "
        "2", affects=(*AAE, *SYSTEMS), low=0)
    covariates: tuple[str, ...] = setting((),
        "columns of data_info.csv beside the MRI, such as age apoe4 ptau217: the label of sampling is "
        "predicted from both (docs/covariates.md); numbers, or two to six words; a value may be missing",
        affects=("scores",), empty=True)
    num_classes: int = setting(2,
        "number of labels K; labels are 0 .. K - 1; paper: 2, amyloid negative and positive", affects=ALL,
        low=2)
    subject_pattern: str = setting(r"^.*?(\d{3}_?S_?\d{4,5})|^sub-([A-Za-z0-9]+)|"
        r"^(.+?)[_-](?:ses-\w+|bl|sc|[mvy]\d+|(?:19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d)$",
        "regular expression whose group is the subject of an ID, so that two visits of a subject cannot lie "
        "in two lists; an ID that does not match is its own subject")

    phantom_subjects: tuple[int, int, int] = setting((0, 0, 0),
        "simulate a cohort of so many training, validation and test subjects in data_dir; 0 0 0: use your "
        "own", section="the digital phantom", affects=COHORT, low=0)
    phantom_voxel: int = setting(1, "voxel size in mm", affects=COHORT, low=1, high=8)
    phantom_link: float = setting(0.6,
        "correlation of atrophy (seen in the MRI) with amyloid load; 0: the MRI knows nothing",
        affects=COHORT, low=0.0, high=0.95)
    phantom_discordant: float = setting(0.0,
        "share of the subjects in whom atrophy has nothing to do with amyloid, so that their MRI misleads",
        affects=("comparison",), low=0.0, high=1.0)
    phantom_marker: float = setting(0.75,
        "correlation of the blood marker ptau217 of data_info.csv with amyloid load", affects=("comparison",),
        low=0.0, high=0.95)
    phantom_sites: int = setting(1,
        "sites, each with its own PET resolution and noise, MRI contrast and bias field, and share of "
        "positive subjects (docs/phantom.md)", affects=("comparison",), low=1, high=6)
    phantom_kind: str = setting("plain",
        "plain; white_matter: white matter brighter than grey, less blur; other_regions: other atrophy, and "
        "amyloid that spares regions; rare: fewer positive subjects (docs/phantom.md)",
        affects=("comparison",), choices=("plain", "white_matter", "other_regions", "rare"))
    phantom_seed: int = setting(0, "seed of the simulated cohort", affects=ALL, low=0)

    aae_channels: tuple[int, ...] = setting((16, 32, 64),
        "channels at each resolution, each half the one before; paper",
        section="stage 1, the adversarial autoencoder (AAE)", affects=AAE, low=1)
    latent_channels: int = setting(4,
        "channels C of the latent: more of the PET survives the autoencoder", affects=(*AAE, *DENOISER),
        low=1, published=1)
    aae_norm_groups: int = setting(16, "groups of every GroupNorm; paper: 16", affects=AAE, low=1)
    aae_norms: tuple[str, ...] = setting((),
        "where encoder and decoder have GroupNorms; blocks: in the residual blocks, no gain, and a step "
        "takes 1.6 times as long; output: before the last convolution, which hides the absolute level of "
        "uptake, and that level is the diagnosis", affects=AAE, choices=("blocks", "output"),
        published=("blocks", "output"), empty=True)
    upsampling: str = setting("blurred",
        "how the decoder doubles the grid; blurred: by a transposed convolution and the filter [1, 2, 1] / 4 "
        "after it; transposed: without the filter, which leaves a checkerboard in every PET", affects=AAE,
        choices=("blurred", "transposed"), published="transposed")
    disc_channels: tuple[int, ...] = setting((16, 32, 64, 128),
        "channels of the discriminator; paper", affects=AAE, low=1)
    lambda_rec: float = setting(100.0,
        "weight of the L1 reconstruction against the adversarial term; paper: 100", affects=AAE, low=0.0)
    aae_lr: float = setting(1e-4, "learning rate of Adam; paper: 1e-4", affects=AAE, low=1e-8, high=1.0)
    aae_lr_decay: bool = setting(True,
        "let the learning rates of stage 1 fall towards 0 along half a cosine, epoch by epoch: the last ones "
        "settle", affects=AAE, published=False)
    aae_betas: tuple[float, float] = setting((0.5, 0.999),
        "betas of Adam; paper", affects=AAE, low=0.0, high=0.99999)
    aae_batch_size: int = setting(2,
        "volumes a step and process; paper: 2, in one process", affects=AAE, low=1)
    aae_epochs: int = setting(1000,
        "epochs; paper: 1000; may be raised later", affects=(*AAE, *ON_IMAGES), low=1, extendable=True)

    unet_channels: int = setting(128,
        "width of the first UNet level; paper: 128", section="stage 2, the latent diffusion model (LDM)",
        affects=DENOISER, low=1)
    unet_mults: tuple[int, ...] = setting((1, 2, 2, 4),
        "width of each UNet level in multiples of the first; paper", affects=STAGE_2, low=1)
    unet_res_blocks: int = setting(2, "residual blocks a level; paper: 2", affects=DENOISER, low=1)
    unet_attention_levels: tuple[int, ...] = setting((),
        "levels with attention, 0 the finest; paper: none but the middle", affects=DENOISER, low=0,
        empty=True)
    unet_norm_groups: int = setting(32, "groups of every GroupNorm; paper: 32", affects=STAGE_2, low=1)
    time_dim: int = setting(128,
        "width of the time and label embedding, even; paper: 128", affects=STAGE_2, low=4)
    timesteps: int = setting(1000, "T, steps of the diffusion; paper: 1000", affects=DENOISER, low=10)
    beta: tuple[float, float] = setting((1e-4, 0.02),
        "first and last noise variance, linear in between; paper", affects=LDM, low=1e-8, high=0.5)
    prediction: str = setting("v",
        "what the UNet predicts: v, or the noise eps, of which a small error at high noise swamps the "
        "overall level of uptake", affects=LDM, choices=("eps", "v"), published="eps")
    time_shift: float = setting(10.0,
        "training draws t / T near s u / (1 + (s - 1) u), u uniform (Esser et al. 2024, Eq. 23): the "
        "level of uptake is decided at high noise", affects=LDM, low=0.01, high=100.0, published=1.0)
    image_loss: float = setting(1.0,
        "weight of the L1 between PET and decoded estimate of z_0, in units of the PET's standard deviation "
        "over the training list (an idea of CoCoLIT, 2025); 0: none",
        affects=(*LDM, "labelled_latent_regression"), low=0.0, published=0.0)
    conditioning: str = setting("multiscale",
        "where the UNet sees the MRI; input: as one channel beside z_t; multiscale: also as features at "
        "every resolution; none: an ablation, in which only the label's prediction does", affects=DENOISER,
        choices=("input", "multiscale", "none"), published="input")
    latent_scaling: bool = setting(True,
        "shift and scale the latents to mean 0 and standard deviation 1 over the training list, which the "
        "noise schedule assumes", affects=DENOISER, published=False)
    label_in_training: str = setting("auto",
        "label that the UNet is trained with; suvr: where the SUVR of the subject's own PET lies between "
        "the means of the labels; true: the label; none: an ablation; auto: suvr if the regions of the SUVR "
        "are given (cortex_mask, or a phantom), or if the SUVR of automatic ones tells the labels of the "
        "training list apart (AUC 0.85), else true, as with more than two labels", affects=(*LDM, *LABELLED),
        choices=("auto", "suvr", "true", "none"), published="true")
    shuffle_labels: bool = setting(False,
        "a null control: the labels of the training list change places at random before stage 2, and before "
        "a system is trained that sees them", affects=(*LDM, *LABELLED, *SEEING_LABELS))
    ldm_lr: float = setting(1e-4,
        "learning rate of AdamW, constant; paper: 1e-4", affects=STAGE_2, low=1e-8, high=1.0)
    ldm_batch_size: int = setting(2,
        "subjects a step and process; paper: 2, in one process", affects=PET, low=1)
    ldm_epochs: int = setting(1000,
        "epochs; paper: 1000; may be raised later", affects=PET, low=1, extendable=True)
    ema_decay: float = setting(0.9999,
        "decay of the moving average of the weights; paper: 0.9999", affects=STAGE_2, low=0.0, high=0.999999)
    ema_start: int = setting(2000,
        "steps for which the average is a plain copy; paper: 2000", affects=STAGE_2, low=0)
    validation_every: int = setting(1, "epochs from one validation to the next; paper: 1", affects=PET, low=1)
    validation_sampler: str = setting("ddim",
        "sampler of the validation; paper: ddpm, 999 network evaluations a subject and epoch, which the "
        "preset leaves to whoever asks (docs/published.md)", affects=LDM,
        choices=("ddim", "dpm", "ddpm"))
    validation_steps: int = setting(2,
        "network evaluations a validation scan with ddim and dpm; the published preset takes 50, because "
        "eps says too little of z_0 at the first", affects=LDM, low=1,
        published=50)                                      # the preset's: the paper validates with ddpm

    baselines: tuple[str, ...] = setting(REGRESSIONS,
        "what is trained to compare with: regressions from the MRI to the PET or its latent (labelled: given "
        "the label of stage 2 too, and on latents its image loss, so that only the diffusion is missing), "
        f"and the systems of the paper's comparison, {', '.join(SYSTEMS)}; all: every one of them",
        section="baselines (--stages baselines)", choices=(*BASELINES, "all"))

    image_regression: ImageRegressionSettings = setting(ImageRegressionSettings(),
        "size of the regressions on images; all else as in stage 2, the epochs of both stages",
        section="baselines image_regression and labelled_image_regression", affects=IMAGE_REGRESSIONS)
    pix2pix: Pix2PixSettings = setting(Pix2PixSettings(),
        "hyperparameters of Pix2Pix; batch size and validation as in stage 2, the epochs of both stages",
        section="compared system Pix2Pix (Isola et al., CVPR 2017)", affects=("pix2pix",))
    tpa_gan: TPAGANSettings = setting(TPAGANSettings(),
        "hyperparameters of TPA-GAN; batch size and validation as in stage 2, the epochs of both stages",
        section="compared system TPA-GAN (Gao et al., IEEE JBHI 2022)", affects=("tpa_gan",))
    fgan: FGANSettings = setting(FGANSettings(),
        "hyperparameters of FGAN; batch size and validation as in stage 2, the epochs of both stages",
        section="compared system FGAN (Pan et al., IEEE TPAMI 2022)", affects=("fgan",))
    resvit: ResvitSettings = setting(ResvitSettings(),
        "hyperparameters of ResViT; batch size and validation as in stage 2, the epochs of both stages",
        section="compared system ResViT (Dalmaz et al., IEEE TMI 2022)", affects=("resvit",))
    ddpm: DDPMSettings = setting(DDPMSettings(),
        "hyperparameters of the DDPM; batch size and validation as in stage 2, the epochs of both stages",
        section="compared system DDPM of PET volumes (Ho et al., NeurIPS 2020)", affects=("ddpm",))

    sampler: str = setting("ddim",
        "ddim: deterministic, few evaluations; dpm: DPM-Solver++(2M), the same with fewer; ddpm: ancestral, "
        "T - 1", section="sampling, after training", affects=SAMPLING, choices=("ddim", "dpm", "ddpm"),
        published="ddpm")
    sampling_steps: int = setting(2,
        "network evaluations a latent sample with ddim and dpm (docs/speed.md says why so few); the "
        "published preset takes 50 where another sampler than ddpm is asked for", affects=SAMPLING, low=1,
        published=50)                                      # the preset's: the paper samples with ddpm, T - 1
    samples_per_scan: int = setting(4,
        "latent samples a scan, whose mean is decoded: one carries its own variance", affects=SAMPLING, low=1,
        published=1)
    sampling_batch: int = setting(8,
        "latent samples, of one or several scans, that go through the denoiser at once; less takes less "
        "memory", low=1)
    label_at_sampling: str = setting("auto",
        "label of a scan in sampling, predicted from its MRI, never the true one; mixed: the predicted "
        "probabilities, or amount of amyloid, mix the label embeddings; matched: then once more, with what "
        "the SUVR of the first synthetic PET lacks; sampled: drawn for each latent sample from what the MRI "
        "leaves open, so that each is a PET that this person might have (docs/samples.md); none: no label; "
        "auto: matched if the label in training is suvr, else mixed", affects=("validation", *SAMPLING),
        choices=("auto", "matched", "mixed", "sampled", "none"), published="none")

    cortex_mask: str = setting("",
        "NIfTI mask of the cortical target of the SUVR, any grid of the same space, or a label image with "
        "numbers, such as aparc.nii.gz:1003,1006-1009; empty: as regions says",
        section="scores, tables and report of the test list", affects=SCORES)
    reference_mask: str = setting("",
        "NIfTI mask of the reference region of the SUVR, usually the whole cerebellum, or numbers, such as "
        "aseg.nii.gz:7,8,46,47", affects=SCORES)
    regions: str = setting("auto",
        "regions of the SUVR without these two; centiloid: the Centiloid project's, of the package amypet "
        "(docs/status.md); mni: plain ones made from the MNI152 template; none: no SUVR; auto: a phantom's "
        "own, else mni", affects=("scores",), choices=("auto", "centiloid", "mni", "none"))
    atlas: tuple[str, ...] = setting((),
        "NIfTI label image of further regions whose SUVR is measured, and the table of their names, CSV or "
        "TSV with the columns index and name, such as atlas.nii.gz atlas.csv", affects=NEW_SCANS, empty=True)
    centiloid: tuple[float, float] = setting((0.0, 0.0),
        "a and b of CL = a SUVR + b, valid only with their own pipeline, tracer and masks (docs/status.md); "
        "0 0: no CL", affects=(*SCORES, *NEW_SCANS), low=-1000.0, high=1000.0)
    subgroups: tuple[str, ...] = setting((),
        "further columns of data_info.csv by whose groups the scores of the test list are split, beside "
        "label, sex, age, site, tracer and diagnosis where they are known", empty=True)

    def __post_init__(self):
        read_groups(self)
        problems = value_problems(self)
        if not problems:
            self._sort_norms()
            self._resolve_baselines()
            self._resolve_labels()
            problems = list(_misfits(self))
        refuse(problems)

    def _sort_norms(self) -> None:
        """Name each place of aae_norms once and in one order, because checkpoints compare them."""
        object.__setattr__(self, "aae_norms", tuple(sorted(set(self.aae_norms))))

    def _resolve_baselines(self) -> None:
        """Put the names of all baselines in the place of all."""
        if "all" in self.baselines:
            object.__setattr__(self, "baselines", BASELINES)

    def _resolve_labels(self) -> None:
        """Put the labels that are meant in the place of auto, so that all that is saved says what was done.
        With automatic regions the cohort decides, later (experiment/automatic.py)."""
        if self.label_in_training == "auto" and not (self.knows_regions and self.num_classes == 2):
            object.__setattr__(self, "label_in_training", "true")
        elif self.label_in_training == "auto" and not self.has_automatic_regions:
            object.__setattr__(self, "label_in_training", "suvr")
        if self.label_at_sampling == "auto" and self.label_in_training != "auto":
            meant = {"suvr": "matched", "true": "mixed", "none": "none"}[self.label_in_training]
            object.__setattr__(self, "label_at_sampling", meant)

    @property
    def downscale(self) -> int:
        """Voxels of the volume per voxel of the latent, along each axis."""
        return 2 ** (len(self.aae_channels) - 1)

    @property
    def latent_size(self) -> tuple[int, ...]:
        """d, h, w in voxels of the latent."""
        return tuple(n // self.downscale for n in self.volume_size)

    @property
    def scans_at_once(self) -> int:
        """Scans of one batch of synthesis: as many as have all their latent samples in it."""
        return max(1, self.sampling_batch // self.samples_per_scan)

    @property
    def is_phantom(self) -> bool:
        """Whether the cohort is simulated: nothing measured on it says anything about patients."""
        return any(self.phantom_subjects)

    @property
    def knows_regions(self) -> bool:
        """Whether an SUVR is to be measured."""
        return bool(self.cortex_mask) or self.regions != "none"

    @property
    def has_automatic_regions(self) -> bool:
        """Whether the regions of the SUVR are neither the user's own nor a phantom's."""
        is_given = bool(self.cortex_mask) or (self.regions == "auto" and self.is_phantom)
        return self.knows_regions and not is_given

    @property
    def predicts_label(self) -> bool:
        """Whether sampling conditions on a label predicted from the MRI."""
        return self.label_at_sampling != "none"

    @property
    def draws_label(self) -> bool:
        """Whether each latent sample has a label of its own, drawn at random."""
        return self.label_at_sampling == "sampled"

    @property
    def matches_suvr(self) -> bool:
        """Whether samples are made twice, the second time with what the SUVR of the first lacks."""
        is_amount = self.label_in_training == "suvr"
        return self.label_at_sampling == "matched" or (self.draws_label and is_amount)

    @property
    def trainable_baselines(self) -> tuple[str, ...]:
        """The baselines of the settings; no labelled one where sampling has no label."""
        return tuple(name for name in self.baselines if self.predicts_label or name not in LABELLED)

    @property
    def baselines_need_stage_1(self) -> bool:
        """Whether any baseline of the settings works on latents, or is given the label of stage 2."""
        return bool({*DENOISER, *LABELLED} & {*self.trainable_baselines})

    @property
    def least_of_each_label(self) -> int:
        """Subjects of each label that training needs: the predictor of the label is cross-fitted."""
        return 2 if self.predicts_label else 0

    @property
    def info_folder(self) -> Path:
        """Folder of lists and labels; a phantom's always lie beside its volumes."""
        return Path(self.data_dir) / "data_info" if self.is_phantom else Path(self.info_dir)

    @property
    def result_dir(self) -> Path:
        """Folder of every output of this experiment."""
        return Path("result") / self.exp

    def epochs_of(self, stage: str) -> int:
        """Epochs of a training. What has no first stage gets those of both: it sees as many volumes as
        IL-CLDM does."""
        if stage == "aae":
            return self.aae_epochs
        return self.ldm_epochs + (self.aae_epochs if stage in ON_IMAGES else 0)

    def pretrained_from(self, stage: str) -> str:
        """The experiment whose trained stage this one uses; empty: it trains its own."""
        return {"aae": self.aae_from or self.ldm_from, "ldm": self.ldm_from}.get(stage, "")

    def settings_of(self, *results: str) -> dict:
        """The settings that any of these results is bound to, as JSON values; those of a compared system by
        their dotted names, such as pix2pix.lambda_l1."""
        bound = {}
        for f in dataclasses.fields(self):
            if set(results) & set(f.metadata["affects"]) and not f.metadata["extendable"]:
                bound |= dotted(f.name, getattr(self, f.name), but=IN_PREDICTION)
        return bound

    def sampling_settings(self) -> dict:
        """The settings that a synthetic PET depends on beside its networks, as JSON values; covariates only
        where there are some."""
        named = {"covariates": plain(self.covariates)} if self.covariates else {}
        return self.settings_of("synthesis") | named

    def noted_settings(self, stage: str) -> dict:
        """Settings that may change while the stage is trained, as JSON values, for a run to note."""
        noted = {}
        for f in dataclasses.fields(self):
            affects, extendable = f.metadata["affects"], f.metadata["extendable"]
            may_change = not affects or (extendable and stage in affects)
            if may_change and f.name not in ("exp", "stages", "resume"):
                noted[f.name] = plain(getattr(self, f.name))
        return noted

    def to_json(self) -> str:
        """All settings, with the versions of what produces the results."""
        packages = ("torch", "numpy", "nibabel", "scipy", "pandas", "scikit-learn", "scikit-image", "nilearn")
        versions = {"il_cldm": VERSION, "python": platform.python_version()}
        for name in packages:
            with suppress(PackageNotFoundError):           # not every run needs the last
                versions[name] = version(name)
        settings = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return json.dumps({"settings": settings, "versions": versions}, indent=2) + "\n"


def with_later_settings(saved: dict) -> dict:
    """Settings as JSON saved them, under their present names, with those that came later as they were before:
    the compared systems, latent_dir, the phantom's discordance, marker, sites and kind, covariates, further
    subgroups, what runtime.settings.ADDED lists, and no SUVR without masks."""
    added = (*SYSTEMS, "latent_dir", "phantom_discordant", "phantom_marker", "phantom_sites", "phantom_kind",
             "covariates", "subgroups")
    defaults = {f.name: plain(f.default) for f in dataclasses.fields(Config) if f.name in added}
    knew_regions = saved.get("cortex_mask") or any(saved.get("phantom_subjects", ()))
    defaults |= ADDED | {"regions": "auto" if knew_regions else "none"}
    return merged(Config, defaults, with_present_names(saved))


# ---------------------------------------------------------------- values that do not fit together

def _misfits(cfg: Config):
    """Yield, as sentences, what in a Config does not fit together."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cfg.exp):
        yield f"exp {cfg.exp!r} must be a plain folder name of letters, digits, '.', '_' and '-'"
    if cfg.exp in ("tables", "benchmark", "study", "latents"):
        yield f"exp {cfg.exp!r} is a folder of result/ that all experiments share; take another name"
    inputs = [Path(cfg.data_dir) / name for name in ("whole_MRI", "whole_Abeta", "truth", "data_info")]
    if cfg.latent_dir and Path(cfg.latent_dir) in (Path(cfg.data_dir), *inputs, Path(cfg.info_dir)):
        yield f"latent_dir {cfg.latent_dir} is a folder of the cohort; give latents a folder of their own"
    for name in ("aae_from", "ldm_from"):
        if getattr(cfg, name) == cfg.exp:
            yield f"{name} {cfg.exp} is this experiment itself; leave it empty"
    try:
        if re.compile(cfg.subject_pattern).groups < 1:
            yield f"subject_pattern {cfg.subject_pattern!r} has no group for the subject"
    except re.error as error:
        yield f"subject_pattern {cfg.subject_pattern!r} is not a regular expression: {error}"
    yield from _size_misfits(cfg)
    yield from _sampling_misfits(cfg)
    yield from _region_misfits(cfg)
    yield from _phantom_misfits(cfg)
    yield from _fgan_misfits(cfg.fgan)
    yield from _resvit_misfits(cfg.resvit)
    yield from _ddpm_misfits(cfg.ddpm)


def _size_misfits(cfg: Config):
    if any(n % cfg.downscale for n in cfg.volume_size):
        yield (f"volume_size {cfg.volume_size} must be divisible by {cfg.downscale}, "
               f"because aae_channels has {len(cfg.aae_channels)} levels")
    elif any(n % 2 ** (len(cfg.unet_mults) - 1) for n in cfg.latent_size):
        yield (f"volume_size {cfg.volume_size} gives latents of {cfg.latent_size}, which must be divisible "
               f"by {2 ** (len(cfg.unet_mults) - 1)}, because unet_mults has {len(cfg.unet_mults)} levels")
    smallest = 2 ** (len(cfg.disc_channels) + 1)
    if min(cfg.volume_size) < smallest:
        yield (f"volume_size {cfg.volume_size} must be at least {smallest} along each axis, "
               f"because disc_channels has {len(cfg.disc_channels)} layers")
    for n, start, size in zip(cfg.image_size, cfg.crop_start, cfg.volume_size, strict=True):
        if start < cfg.crop_jitter or start + size + cfg.crop_jitter > n:
            yield (f"the crop [{start}, {start + size}) with crop_jitter {cfg.crop_jitter} leaves the "
                   f"image_size {cfg.image_size}; change crop_start, volume_size or crop_jitter")
    unet_widths = [cfg.unet_channels * m for m in (1, *cfg.unet_mults)]
    for name, widths, groups in (("aae_channels", cfg.aae_channels, cfg.aae_norm_groups),
                                 ("unet_channels and its multiples", unet_widths, cfg.unet_norm_groups)):
        if any(width % groups for width in widths):
            yield f"{name} {tuple(widths)} must be divisible by the {groups} groups of their GroupNorm"
    if any(level >= len(cfg.unet_mults) for level in cfg.unet_attention_levels):
        yield (f"unet_attention_levels {cfg.unet_attention_levels} must be below the {len(cfg.unet_mults)} "
               "of unet_mults")
    if cfg.time_dim % 2:
        yield f"time_dim {cfg.time_dim} must be even: half sines, half cosines"


def _sampling_misfits(cfg: Config):
    for name in ("sampling_steps", "validation_steps"):
        if getattr(cfg, name) > cfg.timesteps - 1:
            yield f"{name} {getattr(cfg, name)} must be at most timesteps - 1 = {cfg.timesteps - 1}"
    if cfg.ldm_epochs % cfg.validation_every:
        yield (f"ldm_epochs {cfg.ldm_epochs} must be a multiple of validation_every {cfg.validation_every}, "
               "so that the last epoch is validated")
    if cfg.label_in_training == "suvr" and not cfg.knows_regions:
        yield ("label_in_training suvr needs the regions of an SUVR, and regions none gives none; take true, "
               "or another value of regions")
    if cfg.label_in_training == "suvr" and cfg.num_classes != 2:
        yield f"label_in_training suvr needs num_classes 2, not {cfg.num_classes}"
    if cfg.label_at_sampling == "matched" and cfg.label_in_training not in ("suvr", "auto"):
        yield f"label_at_sampling matched needs label_in_training suvr, not {cfg.label_in_training}"
    if cfg.label_in_training == "none" and cfg.predicts_label:
        yield (f"label_at_sampling {cfg.label_at_sampling} needs a UNet that was trained with labels, not "
               "label_in_training none")


def _region_misfits(cfg: Config):
    if bool(cfg.cortex_mask) != bool(cfg.reference_mask):
        yield "cortex_mask and reference_mask go together: give both or none"
    if cfg.atlas and (len(cfg.atlas) != 2 or not all(cfg.atlas)):
        yield (f"atlas {cfg.atlas} must be two files: a NIfTI label image, and the table of its regions, CSV "
               "or TSV with the columns index and name")
    if cfg.cortex_mask and cfg.regions != "auto":
        yield (f"cortex_mask {cfg.cortex_mask} and regions {cfg.regions} both name the regions of the SUVR: "
               "give one of them (--regions auto takes the masks)")
    if cfg.centiloid[0] <= 0 and any(cfg.centiloid):
        yield f"centiloid {cfg.centiloid} needs a slope above 0 as its first number, or 0 0 for none"


def _phantom_misfits(cfg: Config):
    if not cfg.is_phantom:
        return
    if min(cfg.phantom_subjects) < 2 * cfg.phantom_sites:
        each = f", two of each of the {cfg.phantom_sites} sites" if cfg.phantom_sites > 1 else ""
        yield (f"phantom_subjects {cfg.phantom_subjects} must be at least {2 * cfg.phantom_sites} in each "
               f"list{each}, or all 0")
    if cfg.phantom_sites > 1 and cfg.phantom_kind != "plain":
        yield (f"phantom_kind {cfg.phantom_kind} needs phantom_sites 1, not {cfg.phantom_sites}, because "
               "sites have resolutions and prevalences of their own")
    grid = tuple(n // cfg.phantom_voxel for n in (181, 217, 181))
    if cfg.image_size != grid:
        yield (f"image_size {cfg.image_size} must be {grid}, the phantom's at phantom_voxel "
               f"{cfg.phantom_voxel}")
    if Path(cfg.data_dir) == Path("data"):
        yield ("data_dir data is the place of your own cohort; give the phantom another, such as --data_dir "
               "data/phantom")


# What depends on the size of the volumes is refused by the networks, where a system is trained.

def _fgan_misfits(fgan: FGANSettings):
    last = len(fgan.classifier_channels) - 1
    if max(fgan.feature_layers) > last:
        yield (f"fgan.feature_layers {fgan.feature_layers} must be at most {last}, because "
               f"fgan.classifier_channels has {last + 1} layers")
    if fgan.classifier_pools > last:
        yield (f"fgan.classifier_pools {fgan.classifier_pools} must be at most {last}: no max pool follows "
               "the last layer of DSNet")


def _resvit_misfits(resvit: ResvitSettings):
    if resvit.hidden % resvit.heads:
        yield f"resvit.hidden {resvit.hidden} must be divisible by resvit.heads {resvit.heads}"
    if max(resvit.transformer_blocks) > resvit.art_blocks:
        yield (f"resvit.transformer_blocks {resvit.transformer_blocks} must be at most resvit.art_blocks "
               f"{resvit.art_blocks}")


def _ddpm_misfits(ddpm: DDPMSettings):
    widths = [ddpm.base_channels * m for m in (1, *ddpm.channel_mults)]
    if any(width % ddpm.norm_groups for width in widths):
        yield (f"ddpm.base_channels and its multiples {tuple(widths)} must be divisible by the "
               f"{ddpm.norm_groups} groups of their GroupNorm")
    if any(level >= len(ddpm.channel_mults) for level in ddpm.attention_levels):
        yield (f"ddpm.attention_levels {ddpm.attention_levels} must be below the {len(ddpm.channel_mults)} "
               "of ddpm.channel_mults")
    if ddpm.time_dim % 2:
        yield f"ddpm.time_dim {ddpm.time_dim} must be even: half sines, half cosines"
    for name in ("sampling_steps", "validation_steps"):
        if getattr(ddpm, name) > ddpm.T - 1:
            yield f"ddpm.{name} {getattr(ddpm, name)} must be at most ddpm.T - 1 = {ddpm.T - 1}"


# ---------------------------------------------------------------- presets: changes of the defaults above

PUBLISHED = {f.name: f.metadata["published"] for f in dataclasses.fields(Config)
             if f.metadata["published"] is not UNPUBLISHED}

# Small enough for two CPU cores and a few minutes; every choice was made on the validation list.
DEMO = {"data_dir": "data/phantom", "num_workers": 0, "phantom_subjects": (80, 10, 20), "phantom_voxel": 4,
        "image_size": (45, 54, 45), "crop_start": (2, 4, 2), "volume_size": (40, 48, 40), "crop_jitter": 1,
        "aae_channels": (8, 16), "aae_norm_groups": 8, "disc_channels": (8, 16, 32), "aae_lr": 1e-3,
        "aae_epochs": 20, "unet_channels": 16, "unet_mults": (1, 2, 2), "unet_res_blocks": 1,
        "unet_norm_groups": 8, "ldm_lr": 1e-3, "ldm_epochs": 16, "ema_decay": 0.99, "ema_start": 100,
        "validation_every": 4,
        "image_regression": ImageRegressionSettings(channels=8),
        "pix2pix": Pix2PixSettings(downs=3, dropout_blocks=1, disc_layers=1),
        "fgan": FGANSettings(classifier_pools=2),          # TPA-GAN is the same at every size
        "resvit": ResvitSettings(width=16, downs=1, hidden=96, layers=4, heads=4, mlp=384, disc_width=16,
                                 disc_layers=2, slices_per_volume=8, predict_slices=40),
        "ddpm": DDPMSettings(downsample=1, base_channels=16, channel_mults=(1, 2, 2, 4), res_blocks=1,
                             time_dim=128, norm_groups=8, lr=1e-3, ema_decay=0.99, ema_start=100)}

# A phantom cohort large enough to tell repairs of the method apart (docs/study.md); choices as in the demo.
BENCHMARK = DEMO | {"exp": "phantom_benchmark",           # result/benchmark is that of the benchmark of speed
                    "data_dir": "data/benchmark", "phantom_subjects": (160, 60, 80), "phantom_seed": 1000,
                    "ldm_epochs": 12}

# The phantom at 2 mm, with a second downsampling: the latent grid, and with it what works on latents, is the
# demo's. Widths and learning rate: both stages take two cores less than 90 minutes (docs/scores.md).
FINE = DEMO | {"data_dir": "data/fine", "phantom_voxel": 2, "image_size": (90, 108, 90),
               "crop_start": (5, 9, 5), "volume_size": (80, 96, 80), "crop_jitter": 2,
               "aae_channels": (4, 8, 16), "aae_norm_groups": 4, "disc_channels": (8, 16, 32, 64),
               "aae_lr": 5e-4, "baselines": ("latent_regression", "labelled_latent_regression"),
               "pix2pix": Pix2PixSettings(downs=4, dropout_blocks=1, disc_layers=2),
               "fgan": FGANSettings(classifier_pools=3),
               "resvit": dataclasses.replace(DEMO["resvit"], downs=2, disc_layers=3),
               "ddpm": dataclasses.replace(DEMO["ddpm"], downsample=2)}

PRESETS = {"demo": DEMO, "fine": FINE, "benchmark": BENCHMARK, "published": PUBLISHED}
