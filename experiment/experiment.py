"""An experiment: a checked cohort, the settings, the device, and what every stage makes of them."""
import hashlib
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from torch import Tensor
from torch.utils.data import DataLoader

from config import BASELINES, Config
from dataset import Cohort, Scan
from diffusion import LatentScale
from evaluation.metrics import score_volume
from evaluation.results import load_run
from experiment.networks import CHECKPOINT, Networks, build_aae, build_discriminator, build_image_regression, build_unet, checkpoint_name
from imaging.loading import LATENTS, EpochOrder, LatentCache, VolumeCache, VolumeDataset, volume_loader
from imaging.regions import COVERED, Regions, read_labels, read_mask, share_inside
from labels.linear import pool_volume, pool_width
from model import AAE
from runtime.checkpoints import check_settings, load_checkpoint, tensor_bytes
from runtime.ranks import Share, ranks
from utils import InputError, weights_key

PHANTOM_NOTICE = "digital phantom, not patient data"
RESEARCH_NOTICE = "research only, not for clinical use"


class Experiment(Networks):
    """A checked cohort, the settings, the device and the networks: what every stage needs."""

    def __init__(self, cfg: Config, cohort: Cohort, device: torch.device, command: str = ""):
        super().__init__(cfg, device)
        self.cohort, self.trained, self.command = cohort, {}, command
        scans = cohort.train + cohort.validation + cohort.test
        self.cache = VolumeCache([path for scan in scans for path in (scan.mri, scan.pet)], self.crop, cfg.crop_jitter, cfg.cache,
                                 cohort.checksums)
        self.voxel_mm = float(np.mean(voxel_sizes(cohort.affine)))
        self.pool = pool_width(self.voxel_mm)
        self.is_phantom = (Path(cfg.data_dir) / "phantom.json").exists()
        truth = Path(cfg.data_dir) / "truth"
        self.region_masks = {"cortex_mask": Path(cfg.cortex_mask or truth / "cortex.nii.gz"),
                             "reference_mask": Path(cfg.reference_mask or truth / "cerebellum.nii.gz")} \
            if cfg.cortex_mask or self.is_phantom else {}
        self.brain, self.regions = self._read_masks()
        self.notice = f"{PHANTOM_NOTICE}; {RESEARCH_NOTICE}" if self.is_phantom else RESEARCH_NOTICE

    def _read_masks(self) -> tuple[np.ndarray, Regions | None]:
        """The brain mask, and the regions of the uptake if there are any. Raises InputError with the problems of all files."""
        cfg, grid, problems = self.cfg, (self.cohort.affine, self.crop), []

        def attempt(read, *arguments):
            """What read gives, or None with its problem noted."""
            try:
                return read(*arguments)
            except InputError as error:
                problems.append(str(error))

        brain = attempt(read_mask, Path(cfg.brain_mask) if cfg.brain_mask else None, *grid)
        masks = [attempt(read_mask, path, *grid, name) for name, path in self.region_masks.items()]
        named = attempt(read_labels, Path(cfg.regions_image), Path(cfg.regions_table), *grid) if cfg.regions_image else {}
        if not masks and (cfg.regions_image or cfg.centiloid_slope):
            problems.append("regions_image and centiloid_slope need the SUVR's own regions: give cortex_mask and reference_mask")
        if masks and all(mask is not None for mask in masks) and np.array_equal(*masks):
            problems.append("cortex_mask and reference_mask are the same region, so every SUVR would be 1")
        if brain is not None and not (pool_volume(torch.from_numpy(brain).float()[None, None], self.pool) >= 0.5).any():
            problems.append(f"brain_mask {cfg.brain_mask}: too small or thin, no block of {self.pool}^3 voxels lies half inside")
        if problems:
            raise InputError("\n".join(problems))
        centiloid = (cfg.centiloid_slope, cfg.centiloid_intercept) if cfg.centiloid_slope else None
        return brain, Regions(*masks, named, centiloid) if masks else None

    def region_remarks(self) -> list[str]:
        """What a reader of the SUVR must know: that there is none, or that a region reaches beyond the crop."""
        if not self.region_masks:
            return ["no SUVR: give --cortex_mask FILE and --reference_mask FILE, NIfTI masks on any grid of the cohort's space (README)"]
        shares = {name: share_inside(path, self.cohort.affine, self.crop) for name, path in self.region_masks.items()}
        return [f"{name} {self.region_masks[name]}: {1 - share:.0%} of it lies outside the crop and is left out, in real and synthetic PET"
                for name, share in shares.items() if share < COVERED]

    def image_scores(self, x_hat: Tensor, volumes: dict[str, Tensor]) -> dict[str, float]:
        """A measure for evaluate: PSNR, SSIM and MAE of x_hat [D, H, W] against the PET."""
        return score_volume(x_hat, volumes["pet"], self.brain)

    def readable(self, x_hat: Tensor, volumes: dict[str, Tensor]) -> dict:
        """A measure for evaluate: what status and uptake are read from, the pooled MRI and PET [d, h, w], SUVR and more if known."""
        mri, pet = (pool_volume(v[None, None], self.pool)[0, 0].numpy() for v in (volumes["mri"], x_hat))
        return {"mri": mri, "pet": pet, **(self.regions.measure(x_hat.cpu().numpy()) if self.regions else {})}

    def scores_note(self, n: int) -> str:
        """What every score of this experiment has to be read with."""
        mask = self.cfg.brain_mask or "MNI152 mask of nilearn"
        return (f"{n} subjects ({self.notice}); box of {'x'.join(map(str, self.cfg.volume_size))} voxels, brain: {mask}; data range 1, "
                f"SSIM window 7, seed {self.cfg.seed}")

    def identity(self) -> dict[str, str | dict]:
        """What results must share to be compared: digests of the test list, of the lists of training, and of the masks on the crop."""
        masks = {"brain": self.brain} | ({"cortex": self.regions.cortex, "reference": self.regions.reference} if self.regions else {})
        return {"cohort": self.cohort.fingerprint("test"), "training": self.cohort.fingerprint("train", "validation"),
                "masks": {name: hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=4).hexdigest() for name, mask in masks.items()}}

    def settings(self, stage: str) -> dict:
        """What a checkpoint of the stage is bound to: its settings, and the lists and labels that training sees."""
        return self.cfg.settings_of(stage) | {"training and validation list": self.cohort.fingerprint("train", "validation")}

    def free_settings(self, stage: str) -> dict:
        """What may change while the stage is trained, as it comes out on this machine: it may change how numbers are rounded, and the
        number of processes how many subjects a step sees."""
        return self.cfg.noted_settings(stage) | {"device": self.device.type, "precision": self.precision, "torch": str(torch.__version__),
                                              "processes": ranks()}

    def refuse_conflicts(self) -> None:
        """Raise InputError, before anything is written, if the stages and the checkpoints in the result folder do not go together.

        Notes in .trained how many epochs the last checkpoints have.
        """
        cfg = self.cfg
        first = next((stage for stage in ("aae", "encode", "ldm", "baselines", "curve", "test", "report") if stage in cfg.stages), None)
        for stage in CHECKPOINT:
            if cfg.pretrained_from(stage) and not self.best_path(stage).exists():
                raise InputError(f"{self.best_path(stage)} is not there; train --exp {cfg.pretrained_from(stage)} first")
        if first in ("encode", "ldm", "baselines", "curve", "test") and not self.best_path("aae").exists():
            raise InputError(f"{self.best_path('aae')} is not there; run --stages aae first")
        if first in ("curve", "test") and not self.best_path("ldm").exists():
            raise InputError(f"{self.best_path('ldm')} is not there; run --stages encode ldm first")
        if first == "report" and load_run(cfg.result_dir).metadata["cohort"] != self.cohort.fingerprint("test"):
            raise InputError(f"{cfg.result_dir}: its scores are those of another test list; run --stages test report")
        for stage in (*CHECKPOINT, *(BASELINES if "baselines" in cfg.stages else ())):
            settings = self.settings(stage)
            if stage in ("ldm", "latent_regression") and "aae" in cfg.stages:                # its autoencoder must stay what it is
                settings["aae_epochs"] = cfg.aae_epochs
            best, last = self.best_path(stage), self.last_path(stage)
            if last.exists():
                saved = load_checkpoint(last)
                check_settings(last, saved, settings)
                self.trained[stage] = saved["epoch"]
            if best.exists() and not (last.exists() and best.samefile(last)):
                check_settings(best, load_checkpoint(best), settings)
        self._refuse_resume()

    def _refuse_resume(self) -> None:
        """Raise InputError if the first training of this run is to continue and cannot, or is to begin and there is one already."""
        stage = next(iter(self._trainings()), None)
        if stage is None:
            return
        last = self.last_path(stage)
        if self.cfg.resume == "yes" and stage not in self.trained:
            raise InputError(f"{last} is not there, so nothing can be continued; check --exp, or begin with --resume auto")
        if self.cfg.resume == "no" and stage in self.trained:
            raise InputError(f"{last} is there, but --resume no begins anew; give another --exp, or move {self.cfg.result_dir} away")

    def _trainings(self) -> list[str]:
        """What this run trains, in order."""
        own = [stage for stage in CHECKPOINT if stage in self.cfg.stages and not self.cfg.pretrained_from(stage)]
        return own + list(BASELINES if "baselines" in self.cfg.stages else ())

    def checkpoint_room(self) -> int:
        """Bytes that the trainings of this run may take on the disk in addition to what is there."""
        meta, room = torch.device("meta"), 0
        with meta:
            networks = {"aae": [build_aae(self.cfg, meta), build_discriminator(self.cfg, meta)], "ldm": [build_unet(self.cfg, meta)],
                        "latent_regression": [build_unet(self.cfg, meta)], "image_regression": [build_image_regression(self.cfg, meta)]}
        for stage in self._trainings():
            if self.trained.get(stage, 0) < (self.cfg.aae_epochs if stage == "aae" else self.cfg.ldm_epochs):
                there = {path.stat().st_ino for path in self.cfg.result_dir.glob(f"{checkpoint_name(stage)}*.pth.tar")}
                copies = 3 if stage == "aae" else 4        # weights and two moments of Adam; the moving average
                room += (3 - len(there)) * copies * sum(tensor_bytes(module.state_dict()) for module in networks[stage])
        return room

    def batches(self, scans: list[Scan], *modalities: str, batch: int = 0, divided: bool = False) -> DataLoader:
        """The scans in order, with their centre crop, `batch` of them at once: by default as many as in a step of stage 1.

        divided: each rank gets every so-manieth batch, instead of all.
        """
        share = Share(len(scans), batch or self.cfg.aae_batch_size, divided)
        return volume_loader(VolumeDataset(scans, self.cache, modalities), share, self.cfg.num_workers, self.device.type == "cuda")

    def training_batches(self, stage: str, *modalities: str, jitter: bool = False) -> DataLoader:
        """The training list in the order that follows from .sampler.seed, a batch a step, the crops shifted if asked for."""
        dataset = VolumeDataset(self.cohort.train, self.cache, modalities)
        order = EpochOrder(len(dataset), getattr(self.cfg, f"{stage}_batch_size"), jitter)
        return volume_loader(dataset, order, self.cfg.num_workers, self.device.type == "cuda")

    @property
    def latents(self) -> Path:
        """The folder of all latents of this cohort."""
        return Path(self.cfg.data_dir) / LATENTS

    def latent_cache(self, aae: AAE) -> LatentCache:
        """Where the latents of this autoencoder, precision and crop are kept."""
        cfg, key = self.cfg, weights_key(aae) + ("" if self.dtype == torch.float32 else f"-{self.precision}")
        return LatentCache(Path(cfg.data_dir), key, self.crop, (cfg.latent_channels, *cfg.latent_size), self.cohort.affine,
                           self.cohort.checksums)

    def load_latents(self, aae: AAE) -> dict[str, Tensor]:
        """ID -> z_0 [C, d, h, w] of training and validation list. Raises InputError if some are missing."""
        cache = self.latent_cache(aae)
        latents = {scan.id: cache.load(scan) for scan in self.cohort.train + self.cohort.validation}
        missing = [name for name, z_0 in latents.items() if z_0 is None]
        if missing:
            raise InputError(f"{cache.folder} lacks the latents of {len(missing)} subjects ({', '.join(missing[:5])} ...) made from the "
                             "present PET files; run --stages encode")
        return latents

    def latent_scale(self, latents: dict[str, Tensor]) -> LatentScale:
        """What brings latents [C, d, h, w] to mean 0 and standard deviation 1 over the training list, if the settings want that."""
        if not self.cfg.latent_scaling:
            return LatentScale()
        values = torch.stack([latents[scan.id] for scan in self.cohort.train]).double()
        mean = values.mean()
        return LatentScale(mean.float().item(), (values - mean).square().mean().sqrt().item())

    def synthesized(self, scan: Scan) -> Path:
        """Where the synthetic PET of a test scan lies."""
        return self.cfg.result_dir / "synthesized" / f"{scan.id}.nii.gz"

    def shown_scans(self) -> list[Scan]:
        """The test scans of the pictures: the first few of each label, positive ones first."""
        return [scan for label in range(self.cfg.num_classes - 1, -1, -1)
                for scan in [s for s in self.cohort.test if s.label == label][:self.cfg.shown_subjects]]
