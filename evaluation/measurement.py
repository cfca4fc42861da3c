"""The measurement of a PET: image scores against the real one, what status and uptake are read from, and the
masks behind them."""
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from torch import Tensor

from evaluation.spectrum import RadialSpectrum, nyquist_share
from imaging.grids import Crop
from imaging.regions import ABOUT, COVERED, MaskSource, Regions, read_labels, read_mask, share_inside
from labels.linear import pool_volume, pool_width
from utils import InputError, score_volume


@dataclass(frozen=True)
class MaskFiles:
    """Where the masks lie, as the settings name them; empty paths for what is not given.

    regions: setting -> source (imaging/regions.py:read_mask), of the SUVR's cortex_mask and reference_mask,
    or none. atlas: label image of further regions and its table, or nothing. centiloid: slope and intercept,
    or None. kind: of the regions, as the setting `regions` names them, "own" for the user's, "phantom" for a
    phantom's, "none".
    """
    brain_mask: str
    regions: dict[str, MaskSource]
    atlas: tuple[str, ...] = ()
    centiloid: tuple[float, float] | None = None
    kind: str = "none"

    def about_regions(self) -> str:
        """In which regions the SUVR is measured, for a note; empty if in none."""
        if self.kind == "own":
            return f"{self.regions['cortex_mask']} over {self.regions['reference_mask']}"
        return "the phantom's own regions" if self.kind == "phantom" else ABOUT.get(self.kind, "")

    def named(self, setting: str) -> str:
        """A region of the SUVR by its setting, with its file or its origin."""
        return f"{setting} {f'of {ABOUT[self.kind]}' if self.kind in ABOUT else self.regions[setting]}"


@dataclass(frozen=True)
class Measurement:
    """Masks on the crop, and what is measured through them.

    brain: [D, H, W] bool. regions: of the SUVR, or None. voxel_mm: mean size of a voxel. files: where the
    masks come from. sides_mm: of a voxel along each axis; None: all are voxel_mm.
    """
    brain: np.ndarray
    regions: Regions | None
    voxel_mm: float
    files: MaskFiles
    sides_mm: tuple[float, float, float] | None = None

    @classmethod
    def read(cls, files: MaskFiles, affine: np.ndarray, crop: Crop) -> "Measurement":
        """The masks, resampled through their affines onto the crop of volumes with this affine [4, 4].

        Raises InputError with the problems of all files.
        """
        problems: list[str] = []

        def attempt(reader, *arguments):
            """The mask, or None with its problem noted."""
            try:
                return reader(*arguments)
            except InputError as error:
                problems.append(str(error))
                return None

        brain = attempt(read_mask, Path(files.brain_mask) if files.brain_mask else None, affine, crop)
        masks = []
        for name, source in files.regions.items():
            what = files.named(name) if files.kind in ABOUT else name        # of an image, not of a file
            masks.append(attempt(read_mask, source, affine, crop, what))
        named = {}
        if files.atlas:
            image, table = files.atlas
            named = attempt(read_labels, Path(image), Path(table), affine, crop)
        sides_mm = tuple(voxel_sizes(affine).tolist())
        voxel_mm = float(np.mean(sides_mm))
        if not masks and (files.atlas or files.centiloid):
            problems.append("atlas and centiloid need the regions of the SUVR: give "
                            "cortex_mask and reference_mask, or another value of regions than none")
        if masks and all(mask is not None for mask in masks) and np.array_equal(*masks):
            problems.append("cortex_mask and reference_mask are the same region, so every SUVR would be 1")
        pool = pool_width(voxel_mm)
        shares = [] if brain is None else pool_volume(torch.from_numpy(brain).float()[None, None], pool)
        if brain is not None and not (shares >= 0.5).any():
            problems.append(f"brain_mask {files.brain_mask}: too small or thin, no block of {pool}^3 voxels "
                            "lies half inside")
        if problems:
            raise InputError("\n".join(problems))
        regions = Regions(*masks, named, files.centiloid) if masks else None
        return cls(brain, regions, voxel_mm, files, sides_mm)

    @property
    def pool(self) -> int:
        """Voxels, along an axis, that become one of about 8 mm for the status classifiers."""
        return pool_width(self.voxel_mm)

    def image_scores(self, x_hat: Tensor, volumes: dict[str, Tensor]) -> dict[str, float]:
        """A measure for evaluate: PSNR, SSIM and MAE of x_hat [D, H, W] against volumes["pet"]."""
        return score_volume(x_hat, volumes["pet"], self.brain)

    def status_inputs(self, pet: Tensor, volumes: dict[str, Tensor]) -> dict:
        """A measure for evaluate: what status is read from, of a synthetic or real PET [D, H, W]. mri, pet:
        pooled to about 8 mm, arrays [d, h, w]; and what uptake gives."""
        pooled_mri = pool_volume(volumes["mri"][None, None], self.pool)[0, 0].numpy()
        pooled_pet = pool_volume(pet[None, None], self.pool)[0, 0].numpy()
        return {"mri": pooled_mri, "pet": pooled_pet, **self.uptake(pet)}

    def all_measures(self, x_hat: Tensor, volumes: dict[str, Tensor]) -> dict:
        """A measure for evaluate: image_scores, spectral_scores and status_inputs together."""
        return (self.image_scores(x_hat, volumes) | self.spectral_scores(x_hat, volumes)
                | self.status_inputs(x_hat, volumes))

    def spectral_scores(self, x_hat: Tensor, volumes: dict[str, Tensor]) -> dict[str, float]:
        """A measure for evaluate: the texture of x_hat [D, H, W] against that of volumes["pet"]
        (evaluation/spectrum.py:SPECTRAL)."""
        x_hat, x = x_hat.cpu().numpy(), volumes["pet"].cpu().numpy()
        return {"spectrum_brain": self.spectrum.error(x_hat, x), "nyquist": nyquist_share(x_hat),
                "nyquist_real": nyquist_share(x)}

    @cached_property
    def spectrum(self) -> RadialSpectrum:
        """The power spectrum inside the brain; made once, because it takes a second."""
        return RadialSpectrum(self.brain, self.sides_mm or (self.voxel_mm,) * 3)

    def uptake(self, x_hat: Tensor) -> dict[str, float]:
        """SUVR, CL if asked for and SUVR_<name> of further regions, of a PET [D, H, W]; empty without
        regions."""
        return self.regions.measure(x_hat.cpu().numpy()) if self.regions else {}

    def suvr(self, pets: Tensor) -> Tensor:
        """The composite SUVR alone of PETs [n, 1, D, H, W]: [n] float64, NaN where the reference holds no
        uptake."""
        composite = Regions(self.regions.cortex, self.regions.reference, {})    # named ones would cost time
        return torch.tensor([composite.measure(pet)["SUVR"] for pet in pets[:, 0].cpu().numpy()],
                            dtype=torch.float64)

    def region_key(self) -> str:
        """Identifies the two masks of the SUVR; nothing without regions."""
        keys = self.mask_keys()
        return f"{keys['cortex']} {keys['reference']}" if self.regions else ""

    def mask_keys(self) -> dict[str, str]:
        """8 hexadecimal digits that identify each mask on the crop."""
        masks = {"brain": self.brain}
        if self.regions:
            masks |= {"cortex": self.regions.cortex, "reference": self.regions.reference}
        return {name: hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=4).hexdigest()
                for name, mask in masks.items()}

    def key(self) -> str:
        """16 hexadecimal digits that identify all that is measured."""
        digest = hashlib.blake2b(repr((self.mask_keys(), self.files.centiloid)).encode(), digest_size=8)
        for name, mask in (self.regions.named if self.regions else {}).items():
            digest.update(name.encode() + np.packbits(mask).tobytes())
        return digest.hexdigest()

    def remarks(self, affine: np.ndarray, crop: Crop) -> list[str]:
        """What a reader of the SUVR must know: that there is none, or that a region reaches beyond the
        crop."""
        if not self.files.regions:
            return [
                "no SUVR: give --cortex_mask FILE and --reference_mask FILE, NIfTI masks on any grid of the "
                "cohort's space; in MNI space --regions mni (docs/status.md)"
            ]
        remarks = []
        for name, source in self.files.regions.items():
            share = share_inside(source, affine, crop)
            if share < COVERED:
                remarks.append(f"{self.files.named(name)}: {1 - share:.0%} of it lies outside the crop and "
                               "is left out, in real and synthetic PET")
        return remarks
