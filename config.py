"""Every setting of a run.

Edit a default here, or pass `--field value` to main.py. The defaults are the paper's values, but for the few marked
"published:", without which the method does not work (README, "Differences from the published code").
"""
import dataclasses
import json
import platform
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from misfits import misfits
from settings import BESIDE, plain, setting, value_problems

VERSION = "0.1.0"
STAGES = ("check", "aae", "encode", "ldm", "test", "report", "tables")
EXTRA_STAGES = ("preprocess", "prepare", "controls", "curve", "synthesize")                 # run only where they are asked for
GROUPS = {
    "run": "the run",
    "data": "the cohort",
    "phantom": "the digital phantom",
    "aae": "stage 1, the adversarial autoencoder (AAE)",
    "ldm": "stage 2, the latent diffusion model (LDM)",
    "controls": "regression controls (--stages controls), trained as stage 2 is",
    "sampling": "sampling, after training",
    "scoring": "scores, tables and report of the test list",
    "preprocess": "raw scans (--stages preprocess)",
    "prepare": "lists and labels from tables (--stages prepare)",
    "synthesize": "new scans (--stages synthesize)",
}
_OF_DIFFUSION = ("beta_first", "beta_last", "prediction", "zero_terminal_snr", "min_snr", "time_shift", "image_loss", "cortex_loss",
                 "image_loss_over_time", "label_predictor", "label_in_training", "shuffle_labels", "label_conditioning",
                 "label_dropout", "validation_steps")
REGRESSIONS = {                                            # the controls, and the settings of training that they have no use for
    "latent_regression": (*_OF_DIFFUSION, "regression_channels"),
    "image_regression": (*_OF_DIFFUSION, "timesteps", "latent_scaling", "latent_mean", "image_conditioning", "conditioning",
                         "unet_channels", "unet_res_blocks", "unet_attention_levels"),
}


run, data, phantom, aae, ldm, controls, sampling, scoring, preprocess, prepare, synthesize = (
    partial(setting, group=group) for group in GROUPS)


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Raises ValueError that lists all values which are out of range or do not fit together."""

    # The run
    exp: str = run("paper", "name of the experiment; outputs go to result/<exp>")
    aae_from: str = run("", "name of an experiment whose trained stage 1 is used instead of an own one; empty: its own")
    ldm_from: str = run("", "name of an experiment whose trained stage 2 is used, to sample it otherwise, with its stage 1 unless aae_from "
                            "says whose; empty: its own")
    stages: tuple[str, ...] = run(STAGES, "stages to run, in the paper's order whatever theirs. Not among the default ones: preprocess "
                                          "brings raw scans into the space of the cohort, prepare makes lists and labels from tables, "
                                          "controls trains the regressions that the diffusion is compared with, "
                                          "curve scores the validation list with every sampler, number of calls and number of draws, "
                                          "synthesize makes the PET of new MRIs",
                                  choices=STAGES + EXTRA_STAGES)
    seed: int = run(0, "seed of weights, order, noise and crops; paper: 0", low=0, high=2 ** 32 - 1, free=False)
    resume: str = run("auto", "yes: continue a run, an error if there is none in result/<exp>; no: begin one, an error if there is; "
                              "auto: continue if there is one", choices=("auto", "yes", "no"))
    device: str = run("auto", "auto is the GPU if there is one, else the CPU", choices=("auto", "cpu", "cuda"))
    gpus: int = run(0, "GPUs of this machine to train on, with a process for each; 0: one, or as torchrun was told (README, Several GPUs)",
                    low=0)
    num_workers: int = run(2, "processes that read volumes; 0 reads in the main process", low=0)
    cache: str = run("auto", "where decoded .nii.gz crops are kept during a run: ram, file (in the folder for temporary files), off; auto: "
                             "the first of these with room enough", choices=("auto", "ram", "file", "off"))
    precision: str = run("auto", "bf16: networks compute in bfloat16 (autocast; TF32 for the rest), weights stay float32; fp32: all in "
                                 "float32; auto: bf16 where the device has instructions for it", choices=("auto", "fp32", "bf16"))
    channels_last: str = run("auto", "keep the channels of a voxel together in memory; auto: on a CPU, where training is faster with it "
                                     "(README, Speed)", choices=("auto", "on", "off"))
    recompute: bool = run(False, "recompute activations in the backward pass instead of keeping them: less memory, more time")

    # The cohort
    data_dir: str = data("data", "folder with whole_MRI and whole_Abeta; latent_Abeta is written there", free=True)
    info_dir: str = data("data_info", "folder with data_info.csv, train.txt, validation.txt and test.txt; a phantom's own lie in "
                                      "data_dir/data_info", free=True)
    brain_mask: str = data("", "NIfTI mask of the brain-only scores and the label classifier, any grid of the same space; "
                               "empty: the MNI152 mask that nilearn carries")
    image_size: tuple[int, int, int] = data((181, 217, 181), "voxels of every volume, in RAS order; paper", low=8)
    crop_start: tuple[int, int, int] = data((10, 18, 10), "first voxel of the crop, in RAS order; paper", low=0)
    volume_size: tuple[int, int, int] = data((160, 192, 160), "D H W, voxels after the crop; paper", low=8)
    crop_jitter: int = data(2, "stage 1 shifts the training crop by up to this many voxels an axis; paper: 2", low=0)
    num_classes: int = data(2, "number of labels K; labels are 0 .. K - 1; paper: 2, amyloid negative and positive", low=2)
    subject_pattern: str = data(r"^.*?(\d{3}_?S_?\d{4,5})|^sub-([A-Za-z0-9]+)|"
                                r"^(.+?)[_-](?:ses-\w+|bl|sc|[mvy]\d+|(?:19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d)$",
                                "regular expression whose group is the subject of an ID, so that two visits of a subject "
                                "cannot lie in two lists; an ID that does not match is its own subject", free=True)

    # The digital phantom
    phantom_subjects: tuple[int, int, int] = phantom((0, 0, 0), "simulate a cohort of so many training, validation and test "
                                                                "subjects in data_dir; 0 0 0: use your own", low=0)
    phantom_voxel: int = phantom(1, "voxel size in mm", low=1, high=8)
    phantom_link: float = phantom(0.6, "correlation of atrophy (seen in the MRI) with amyloid load; 0: MRI knows nothing",
                                  low=0.0, high=0.95)
    phantom_seed: int = phantom(0, "seed of the simulated cohort", low=0)

    # Stage 1, the adversarial autoencoder
    aae_channels: tuple[int, ...] = aae((16, 32, 64), "channels at each resolution, each half the one before; paper", low=1)
    latent_channels: int = aae(4, "channels C of the latent; paper: 1", low=1)
    aae_norm_groups: int = aae(16, "groups of every GroupNorm; paper: 16", low=1)
    aae_output_norm: bool = aae(False, "GroupNorm before the last convolution of encoder and decoder; published: true. It "
                                       "hides the absolute level of uptake, and that level is the diagnosis")
    aae_block_norm: bool = aae(False, "GroupNorms in the residual blocks of encoder and decoder; paper: true. Without them no level of "
                                      "uptake has to find its way around them")
    disc_channels: tuple[int, ...] = aae((16, 32, 64, 128), "channels of the discriminator; paper", low=1)
    lambda_rec: float = aae(100.0, "weight of the L1 reconstruction against the adversarial term; paper: 100", low=0.0)
    aae_lr: float = aae(1e-4, "learning rate of Adam; paper: 1e-4", low=1e-8, high=1.0)
    aae_lr_decay: bool = aae(True, "let the learning rates of stage 1 fall to 0 along half a cosine, epoch by epoch; paper: constant")
    aae_betas: tuple[float, float] = aae((0.5, 0.999), "betas of Adam; paper", low=0.0, high=0.99999)
    aae_batch_size: int = aae(2, "volumes a step and process; paper: 2, in one process", low=1)
    aae_accumulation: int = aae(1, "batches whose gradients are added up for one step, which then sees batch size x accumulation", low=1)
    aae_epochs: int = aae(1000, "epochs; paper: 1000; may be raised later", low=1, free=True)

    # Stage 2, the latent diffusion model
    unet_channels: int = ldm(128, "width of the first UNet level; paper: 128", low=1)
    unet_mults: tuple[int, ...] = ldm((1, 2, 2, 4), "width of each UNet level in multiples of the first; paper", low=1)
    unet_res_blocks: int = ldm(2, "residual blocks a level; paper: 2", low=1)
    unet_attention_levels: tuple[int, ...] = ldm((), "levels with attention, 0 the finest; paper: none but the middle", low=0)
    unet_norm_groups: int = ldm(32, "groups of every GroupNorm; paper: 32", low=1)
    time_dim: int = ldm(128, "width of the time and label embedding, even; paper: 128", low=4)
    timesteps: int = ldm(1000, "T, steps of the diffusion; paper: 1000", low=10)
    beta_first: float = ldm(1e-4, "first noise variance; paper: 1e-4", low=1e-8, high=0.5)
    beta_last: float = ldm(0.02, "last noise variance, linear in between; paper: 0.02", low=1e-8, high=0.5)
    zero_terminal_snr: bool = ldm(False, "shrink the schedule until the last step is pure noise (Lin et al. 2024), as sampling begins; "
                                         "needs prediction v or x0 and sampler ddim")
    prediction: str = ldm("v", "what the UNet predicts: the noise, v or z_0; published: eps, where at high noise a small error of the "
                               "noise swamps the overall level of uptake", choices=("eps", "v", "x0"))
    min_snr: float = ldm(0.0, "gamma of the Min-SNR weights of the loss over time (Hang et al. 2023, who take 5); 0: none; paper: none",
                         low=0.0)
    time_shift: float = ldm(10.0, "training draws times t = s u / (1 + (s - 1) u) of T, u uniform (Esser et al. 2024, Eq. 23): above 1 "
                                  "more of them at high noise; paper: 1", low=0.01, high=100.0)
    image_loss: float = ldm(1.0, "weight of the L1 between PET and decoded estimate of z_0, in units of the PET's deviation over the "
                                 "training list (an idea of CoCoLIT, 2025); 0: none; paper: 0", low=0.0)
    cortex_loss: float = ldm(0.0, "weight of the same L1 inside cortex_mask alone; 0: none; paper: none", low=0.0)
    image_loss_over_time: str = ldm("even", "even: image_loss and cortex_loss count alike at all times; signal: by alpha_bar, little at "
                                            "high noise", choices=("even", "signal"))
    conditioning: str = ldm("multiscale", "where the UNet sees the MRI; input: as one channel beside z_t (paper); multiscale: also as "
                                          "features of its own at every resolution", choices=("input", "multiscale"))
    mri_deviations: bool = ldm(False, "networks that see the MRI also see how far each voxel is from the mean MRI of the training list, in "
                                       "deviations of that voxel; paper: no")
    latent_scaling: bool = ldm(True, "shift and scale the latents to mean 0 and deviation 1 over the training list, which the "
                                     "noise schedule assumes; published: false")
    latent_mean: str = ldm("one", "what scaled latents are shifted by; one: a single mean over all voxels and channels; voxel: the mean of "
                                  "each voxel and channel, so that the diffusion is about how subjects differ, not about what they share",
                           choices=("one", "voxel"))
    image_conditioning: bool = ldm(True, "the UNet sees the MRI; false: an ablation, in which only the label's prediction still does")
    label_predictor: str = ldm("ridge", "what predicts the label from the MRI; linear: principal components at 8 mm and logistic "
                                         "regression; ridge: ridge regression at 4 mm on what stands out from its surroundings, both sides "
                                         "averaged; network: small 3D networks, one a fold of the training list. The latter two are "
                                         "calibrated on what a fit left out",
                               choices=("linear", "ridge", "network"))
    label_in_training: str = ldm("true", "label that the UNet is trained with; predicted: the probabilities of predictors that did not see "
                                         "the subject (cross-fitted), as uncertain as those of sampling; suvr: where the SUVR of the "
                                         "subject's own PET lies between the means of the labels, and in sampling where the MRI predicts "
                                         "it; paper: true",
                                 choices=("true", "predicted", "suvr"))
    shuffle_labels: bool = ldm(False, "a control: the labels of the training list change places at random before stage 2")
    label_conditioning: bool = ldm(True, "the UNet sees labels in training; false: an ablation, as with label_dropout 1 and "
                                         "label_at_sampling none")
    label_dropout: float = ldm(0.0, "share of training samples that go without their label, so that sampling without one, or guidance, "
                                    "is not a new input; published: 0", low=0.0, high=1.0)
    ldm_lr: float = ldm(1e-4, "learning rate of AdamW; paper: 1e-4", low=1e-8, high=1.0)
    ldm_lr_decay: bool = ldm(False, "let the learning rate of stage 2 fall to 0 along half a cosine, epoch by epoch; paper: constant")
    ldm_batch_size: int = ldm(2, "subjects a step and process; paper: 2, in one process", low=1)
    ldm_accumulation: int = ldm(1, "batches whose gradients are added up for one step, which then sees batch size x accumulation", low=1)
    ldm_epochs: int = ldm(1000, "epochs; paper: 1000; may be raised later", low=1, free=True)
    ema_decay: float = ldm(0.9999, "decay of the moving average of the weights; paper: 0.9999", low=0.0, high=0.999999)
    ema_start: int = ldm(2000, "steps for which the average is a plain copy; paper: 2000", low=0)
    validation_every: int = ldm(1, "epochs from one validation to the next; paper: 1", low=1)
    validation_steps: int = ldm(2, "DDIM calls a validation scan; published: 999 DDPM calls, for which the preset takes 50: eps says too "
                                   "little of z_0 at the first call", low=1)

    # The regression controls
    regression_channels: int = controls(16, "width of the first level of the UNet that regresses the PET on the MRI; further levels as in "
                                            "unet_mults", low=1)

    # Sampling
    sampler: str = sampling("ddim", "ddim: deterministic, few calls; dpm: DPM-Solver++(2M), the same with fewer; ddpm: ancestral, "
                                    "T - 1 calls; published: ddpm", choices=("ddim", "dpm", "ddpm"))
    sampling_steps: int = sampling(2, "network calls a draw with ddim and dpm; chosen, with the next, from the curve in the README", low=1)
    samples_per_scan: int = sampling(4, "draws a scan, whose mean latent is decoded; published: 1, which carries the variance "
                                        "of one draw", low=1)
    sampling_batch: int = sampling(8, "draws, of one or several scans, that go through the denoiser at once; less takes less memory", low=1)
    save_deviation: bool = sampling(False, "also write the standard deviation of the decoded draws of each scan, <ID>_sd.nii.gz")
    label_at_sampling: str = sampling("mixed", "none: no label (published, an input unseen in its training). The others take the "
                                               "probabilities p that the MRI predicts, never the true label; class: the likeliest label; "
                                               "mixed: p mixes the label embeddings; matched: then once more, with p corrected by "
                                               "what the SUVR of the first synthetic PET lacks (for label_in_training suvr); split: "
                                               "each draw takes one label, in the proportions p; weighted: as many draws with each label, "
                                               "their mean weighted by p",
                                      choices=("none", "class", "mixed", "matched", "split", "weighted"))
    guidance: float = sampling(1.0, "scale of classifier-free guidance by the label (Ho and Salimans 2022): above 1 exaggerates what the "
                                    "label changes, with twice the network calls; 1: none; paper: none", low=0.0, high=20.0)
    shared_noise: bool = sampling(False, "all scans begin from the same noises, so that two scans differ by their MRIs alone")

    # Scores, tables and report of the test list
    cortex_mask: str = scoring("", "NIfTI mask of the cortical target of the SUVR, any grid of the same space; empty: no SUVR, but a "
                                   "phantom brings its own")
    reference_mask: str = scoring("", "NIfTI mask of the reference region of the SUVR, usually the whole cerebellum")
    regions_image: str = scoring("", "NIfTI label image of further regions whose SUVR is measured")
    regions_table: str = scoring("", "CSV of regions_image with the columns index and name")
    centiloid_slope: float = scoring(0.0, "a of CL = a SUVR + b, valid only with its own pipeline, tracer and masks (README); 0: no CL",
                                     low=0.0, high=1000.0)
    centiloid_intercept: float = scoring(0.0, "b of CL = a SUVR + b", low=-1000.0, high=1000.0)
    bootstrap_resamples: int = scoring(2000, "bootstrap draws of subjects behind every 95 % interval", low=100, high=100_000)
    shown_subjects: int = scoring(2, "subjects of each label, first in the test list, in pictures and in the viewer of the report", low=1,
                                  high=8)

    # Raw scans
    raw: str = preprocess("raw", "folder with T1/<ID>.nii[.gz] and, if there are any, PET/<ID>.nii[.gz] of whole heads; or one T1 MRI, "
                                 "or a folder of such files. The volumes go to data_dir")
    registration: str = preprocess("affine", "how a brain is brought to the template; syn: nonlinearly too, which gives it that shape",
                                   choices=("affine", "syn"))
    pet_fwhm: float = preprocess(0.0, "mm, FWHM of a Gaussian that PETs are smoothed with, for cohorts of several scanners", low=0.0,
                                 high=30.0)
    pet_max_suvr: float = preprocess(4.0, "SUVR that is stored as 1, the same for all PETs of a cohort; more is cut off and reported",
                                     low=1.0, high=100.0)

    # Lists and labels from tables
    table: str = prepare("", "CSV with a row a PET, or a scan: ADNI's amyloid table as downloaded, or any with a column of IDs and one of "
                             "labels")
    demographics: str = prepare("", "CSV with age and sex, such as ADNI's PTDEMOG or ADNIMERGE; empty: those columns of the table, if any")
    scan_dates: str = prepare("", "CSV with the columns ID and date of scans whose ID carries no date")
    id_column: str = prepare("", "column of the table with IDs of scans or subjects; empty: found by its name (PTID, RID, ID and others)")
    date_column: str = prepare("", "column of the table with dates of the PETs; empty: found by its name (SCANDATE, EXAMDATE and others)")
    label_column: str = prepare("", "column of the table with the labels; empty: found by its name (AMYLOID_STATUS, label and others)")
    label_from: str = prepare("status", "status: labels are read from their column, where ADNI decides tracer by tracer; centiloids: label "
                                        "1 from centiloid_cutoff on, else 0", choices=("status", "centiloids"))
    centiloid_cutoff: float = prepare(20.0, "Centiloids from which on a PET is positive, with label_from centiloids; ADNI's florbetapir "
                                            "threshold is 20", low=-100.0, high=300.0)
    grey_zone: tuple[float, float] = prepare((0.0, 0.0), "leave out scans with Centiloids from the first to below the second value, such "
                                                         "as 10 30 (AMYPAD); two equal values: none", low=-100.0, high=300.0)
    qc_keep: tuple[int, ...] = prepare((2,), "values of the column qc_flag that pass; ADNI: 2", low=-9)
    tracer: str = prepare("", "keep one tracer, as the table's column TRACER writes it, such as FBP; empty: all")
    window_days: int = prepare(180, "most days between a scan and its row; amyloid grows over years", low=0)
    require_dates: bool = prepare(False, "leave out scans without a date where the table has some, even if the rows leave no doubt")
    split_ratios: tuple[float, float, float] = prepare((0.8, 0.1, 0.1), "shares of the subjects in the training, validation and test list; "
                                                                        "paper: 408, 51 and 51", low=1e-6)
    split_seed: int = prepare(0, "seed of the lists; same seed, same lists", low=0)
    overwrite: bool = prepare(False, "replace what is there already: lists and labels, volumes of --stages preprocess, synthetic PETs")

    # New scans
    mri: str = synthesize("", "T1 MRI, a NIfTI file in MNI space, or a folder of such files")
    out: str = synthesize("", "folder for their synthetic PETs, beside which nothing else of this project lies")
    mri_percentile: float = synthesize(0.0, "percentile of a new MRI's voxels above 0 that becomes intensity 1, if its intensities leave "
                                            "[0, 1]; right only if the cohort's MRIs were scaled so; 0: it is refused", low=0.0, high=100.0)

    def __post_init__(self):
        problems = [problem for field in dataclasses.fields(self) for problem in value_problems(field, getattr(self, field.name))]
        problems = problems or list(misfits(self))
        if problems:
            raise ValueError("\n  ".join([f"{len(problems)} problem(s) in the settings:", *problems]))

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
        """Scans of one batch of synthesis: as many as have all their draws in it."""
        return max(1, self.sampling_batch // self.samples_per_scan)

    @property
    def largest_step(self) -> int:
        """Subjects that one optimizer step of a process sees at most, so that the training list must have as many."""
        return max(self.aae_batch_size * self.aae_accumulation, self.ldm_batch_size * self.ldm_accumulation)

    @property
    def is_phantom(self) -> bool:
        """Whether the cohort is simulated: nothing measured on it says anything about patients."""
        return any(self.phantom_subjects)

    @property
    def share_without_label(self) -> float:
        """Share of training samples that go without their label."""
        return self.label_dropout if self.label_conditioning else 1.0

    @property
    def predicts_label(self) -> bool:
        """Whether sampling conditions on a label predicted from the MRI."""
        return self.label_conditioning and self.label_at_sampling != "none"

    @property
    def matches_suvr(self) -> bool:
        """Whether synthesis draws twice, the second time with what the SUVR of the first PET lacks. Epochs are validated, and the sampling
        curve is drawn, with the first draws alone."""
        return self.predicts_label and self.label_at_sampling == "matched"

    @property
    def deviations_of(self) -> tuple[int, int, int] | None:
        """The size of the MRIs whose deviations from their mean the networks see, or None."""
        return self.volume_size if self.mri_deviations else None

    @property
    def sees_images(self) -> bool:
        """Whether the loss of stage 2 looks at decoded images."""
        return bool(self.image_loss or self.cortex_loss)

    def lent_by(self, stage: str) -> str:
        """The experiment whose trained stage this one uses; empty: it trains its own."""
        return {"aae": self.aae_from or self.ldm_from, "ldm": self.ldm_from}.get(stage, "")

    @property
    def validation_draws(self) -> range:
        """The draws of a scan that validate an epoch: one, or one with each label if they are to be weighted."""
        return range(self.num_classes if self.predicts_label and self.label_at_sampling == "weighted" else 1)

    @property
    def least_of_each_label(self) -> int:
        """How many subjects the training list must have with every label."""
        if not self.label_conditioning or (self.label_at_sampling == "none" and self.label_in_training == "true"):
            return 0                                       # nothing predicts labels
        return 2 if self.label_in_training != "true" or self.label_predictor != "linear" else 1

    @property
    def has_grey_zone(self) -> bool:
        """Whether scans are left out for Centiloids that are neither clearly negative nor clearly positive."""
        return self.grey_zone[0] < self.grey_zone[1]

    @property
    def info_folder(self) -> Path:
        """Folder of lists and labels; a phantom's always lie beside its volumes."""
        return Path(self.data_dir) / "data_info" if self.is_phantom else Path(self.info_dir)

    @property
    def result_dir(self) -> Path:
        """Folder of every output of this experiment."""
        return Path("result") / self.exp

    def fixed_settings(self, stage: str) -> dict:
        """The settings that a checkpoint of the stage ('aae', 'ldm' or a regression control) is bound to, as JSON values."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)
                if f.metadata["group"] in _groups(stage) and not f.metadata["free"] and f.name not in REGRESSIONS.get(stage, ())}

    def free_settings(self, stage: str) -> dict:
        """The settings that may change while the stage is trained, as JSON values: what a run notes when it continues."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)
                if f.metadata["group"] in _groups(stage) and f.metadata["free"] and f.name not in ("exp", "stages", "resume")}

    def to_json(self) -> str:
        """All settings that an experiment's results may depend on, with the versions of what produced them."""
        versions = {name: version(name) for name in ("torch", "numpy", "nibabel", "scipy", "pandas", "scikit-learn", "scikit-image",
                                                     "nilearn", "statsmodels")}
        settings = {name: plain(getattr(self, name)) for name in EXPERIMENT_SETTINGS}
        return json.dumps({"settings": settings,
                           "versions": {"il_cldm": VERSION, "python": platform.python_version(), **versions}}, indent=2) + "\n"


EXPERIMENT_SETTINGS = [f.name for f in dataclasses.fields(Config) if f.metadata["group"] not in BESIDE]


def _groups(stage: str) -> set[str]:
    """The groups of the settings that the training of a stage depends on."""
    return {"run", "data", "phantom"} | ({"ldm", "controls"} if stage in REGRESSIONS else {stage})
