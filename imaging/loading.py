"""Volumes and latents on their way to the networks: the cache of decoded crops, the torch dataset and its loaders, the latent cache."""
import hashlib
import math
import mmap
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset import Scan
from imaging.volumes import Crop, read_header, read_volume, save_nifti
from runtime.files import file_status
from runtime.ranks import Share, local_ranks, rank, ranks
from runtime.signals import serve_parent
from utils import InputError, derived_seed

# ---------------------------------------------------------------- the cache of decoded crops

def free_memory() -> float:
    """Bytes of memory that this process may still take on Linux, in a container too; elsewhere 0, not known."""
    rooms = [0.0]
    with suppress(OSError, KeyError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        rooms = [1024.0 * int(fields["MemAvailable"].split()[0])]
    with suppress(OSError, ValueError):                    # "max" without a limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        rooms.append(limit - used)
    return min(rooms)


class VolumeCache:
    """The crops of a cohort's volumes; those of .nii.gz files are decoded on first use and then shared by all processes of the run.

    margin: voxels around the crop that are kept too, for its random shifts. place: 'ram', 'file' (one without a name, in the system's
    folder for temporary files, so that nothing is left behind), 'off', or 'auto', the first of these that has room: half of the
    free memory, then half of the free disk. A plain .nii needs no cache: it is read as fast. An entry belongs to one state of its
    file; after a change of the file it is made again. checksums: path -> checksum of the voxels that were checked; other voxels are
    refused. Raises InputError if the place that is asked for has no room.
    """

    def __init__(self, paths: list[Path], crop: Crop, margin: int = 0, place: str = "auto", checksums: dict[Path, int] | None = None):
        self.crop, self.margin, self.checksums = crop, margin, checksums or {}
        self.verified: dict[Path, int] = {}                # the states of files in which this process has found the checked voxels
        self.rows = {path: row for row, path in enumerate(sorted({path for path in paths if path.suffix == ".gz"}))}
        self.shape = tuple(n + 2 * margin for n in crop.size)
        self.bytes = 4 * len(self.rows) * int(np.prod(self.shape))
        self.place = self._place(place) if self.rows else "off"
        if self.place == "off":
            return
        try:
            memory = self._memory()
        except OSError as error:
            where = "memory" if self.place == "ram" else f"{tempfile.gettempdir()} (TMPDIR names another folder)"
            raise InputError(f"cache {self.place}: no room for {self.bytes / 2 ** 30:.2f} GiB in {where}; use --cache off") from error
        self.volumes = np.frombuffer(memory, np.float32).reshape(-1, *self.shape)
        self.states = np.frombuffer(mmap.mmap(-1, 8 * len(self.rows)), np.int64)             # of the files that the entries were made from

    def _memory(self) -> mmap.mmap:
        """Memory that is shared with the processes that are forked later; in a file, all of whose disk is taken at once."""
        if self.place == "ram":
            return mmap.mmap(-1, self.bytes)
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.bytes)                             # a full disk is an error now, no crash later
            else:
                file.truncate(self.bytes)
            return mmap.mmap(file.fileno(), self.bytes)

    def _place(self, wanted: str) -> str:
        if wanted != "auto":
            return wanted
        needed = self.bytes * local_ranks()    # every rank of this machine has its own
        if needed <= free_memory() / 2:
            return "ram"
        return "file" if needed <= shutil.disk_usage(tempfile.gettempdir()).free / 2 else "off"

    def __reduce__(self):
        return VolumeCache, ([], self.crop, self.margin, "off", self.checksums)              # a process that is not forked cannot share it

    def describe(self) -> str:
        """Where the decoded crops are kept, in a line."""
        size = f"{len(self.rows)} decoded .nii.gz, {self.bytes / 2 ** 30:.2f} GiB"
        return {"ram": f"{size}, kept in memory", "file": f"{size}, kept in a file in {tempfile.gettempdir()}",
                "off": f"{size}, not kept" if self.rows else "plain .nii, read as they are needed"}[self.place]

    def read(self, path: Path) -> np.ndarray:
        """The crop of a volume with its margin, float32, to be copied and not to be changed.

        Raises InputError for a damaged file, and for one whose voxels are not those that were checked.
        """
        row = self.rows.get(path)
        if self.place == "off" or row is None:
            return self._decode(path)
        state = _state(path)
        if self.states[row] != state:
            self.volumes[row] = self._decode(path)
            self.states[row] = state                       # last: another process may be reading
        return self.volumes[row]

    def _decode(self, path: Path) -> np.ndarray:
        state = _state(path)
        voxels, _ = read_volume(path)
        if path in self.checksums and self.verified.get(path) != _state(path):               # it may have changed during the reading
            if zlib.crc32(voxels) != self.checksums[path]:
                raise InputError(f"{path}: its voxels are no longer those that were checked; see that nothing writes into this folder "
                                 "during a run, and run the same command again")
            self.verified[path] = state
        return voxels[Crop(tuple(first - self.margin for first in self.crop.start), self.shape).slices()]


def _state(path: Path) -> int:
    """A number in [0, 2^63) that changes with the file."""
    status = file_status(path)
    return derived_seed(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


# ---------------------------------------------------------------- torch datasets

class VolumeDataset(Dataset):
    """Items {id, label, and each of the modalities ('mri', 'pet') as [1, D, H, W] float32 in [0, 1]}.

    An item is asked for by its index, or by (index, seed): its crop is then shifted by a random integer in {-margin..margin} an axis,
    drawn from the seed and the scan's ID.
    """

    def __init__(self, scans: list[Scan], cache: VolumeCache, modalities: tuple[str, ...]):
        self.scans, self.cache, self.modalities = scans, cache, modalities

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, seed = key if isinstance(key, tuple) else (key, None)
        scan, margin, shift = self.scans[index], self.cache.margin, np.zeros(3, int)
        if seed is not None:
            shift = np.random.default_rng(derived_seed(seed, scan.id)).integers(-margin, margin, size=3, endpoint=True)
        box = Crop((margin,) * 3, self.cache.crop.size).slices(shift)
        volumes = {name: torch.from_numpy(self.cache.read(getattr(scan, name))[box][None].copy()) for name in self.modalities}
        return {"id": scan.id, "label": scan.label, **volumes}


class EpochOrder(Sampler):
    """The items of an epoch in an order drawn from .seed, each as its index, or with the seed if its crop is to be shifted.

    batch: items of a step, a rank; consecutive items make a step of all ranks. Items that do not fill a last step are left out (paper).
    .first: how many are left out because they were seen before an interruption.
    """

    def __init__(self, length: int, batch: int, jitter: bool):
        self.length, self.batch, self.jitter, self.seed, self.first = length, batch, jitter, 0, 0

    @property
    def step_items(self) -> int:
        """Items of a step, of all ranks."""
        return self.batch * ranks()

    def __len__(self) -> int:
        return (self.length - self.first) // self.step_items * self.batch

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed))[self.first:]
        order = order[:len(order) // self.step_items * self.step_items].reshape(-1, ranks(), self.batch)[:, rank()].flatten().tolist()
        return iter([(index, self.seed) if self.jitter else index for index in order])       # with the item, the seed reaches any process


def volume_loader(dataset: VolumeDataset, order: Share | EpochOrder, num_workers: int, pin_memory: bool) -> DataLoader:
    """The batches of a share, or for training the steps of an epoch.

    The processes that read live as long as the loader. pin_memory: for faster copies to a GPU.
    """
    batches = {"batch_sampler": order} if isinstance(order, Share) else {"sampler": order, "batch_size": order.batch}
    context = "fork" if num_workers and sys.platform == "linux" else None                    # what is forked shares the cache
    return DataLoader(dataset, **batches, num_workers=num_workers, pin_memory=pin_memory, persistent_workers=num_workers > 0,
                      multiprocessing_context=context, worker_init_fn=serve_parent, generator=torch.Generator())


# ---------------------------------------------------------------- the latent cache

LATENTS = "latent_Abeta"                                   # folder of all of them in data_dir


class LatentCache:
    """Latents as NIfTI files in data_dir/latent_Abeta/<autoencoder>/<ID>.nii.gz, each bound to what it was made from.

    autoencoder: key of the weights and of the precision that they encode in. checksums: of the voxels of every PET, as they were checked.
    A file's header names the key of autoencoder, crop and checksum; a latent whose key is another, which cannot be read to its end, or
    which is not finite, is not there.
    """

    def __init__(self, data_dir: Path, autoencoder: str, crop: Crop, shape: tuple[int, ...], affine: np.ndarray,
                 checksums: dict[Path, int]):
        self.folder = data_dir / LATENTS / autoencoder
        self.autoencoder, self.crop, self.shape, self.affine, self.checksums = autoencoder, crop, shape, affine, checksums

    def _note(self, scan: Scan) -> str:
        made_from = f"{self.autoencoder} {self.crop} {self.checksums[scan.pet]}".encode()
        return f"latent of {hashlib.blake2b(made_from, digest_size=12).hexdigest()}"

    def save(self, scan: Scan, z_0: Tensor) -> None:
        """Write z_0 [C, d, h, w], channels as the file's fourth dimension, where it lies in space."""
        voxels = z_0.permute(1, 2, 3, 0).numpy()                                             # [d, h, w, C]
        affine = self.crop.affine(self.affine, self.crop.size[0] // self.shape[1])
        save_nifti(self.folder / f"{scan.id}.nii.gz", voxels, affine, self._note(scan))

    def load(self, scan: Scan) -> Tensor | None:
        """z_0 [C, d, h, w], or None if there is none of this autoencoder, crop and PET file."""
        path = self.folder / f"{scan.id}.nii.gz"
        try:
            header = read_header(path)
            if header["descrip"].item() != self._note(scan).encode() or math.prod(header.get_data_shape()) != math.prod(self.shape):
                return None                                # before anything is read that might be large
            voxels, _ = read_volume(path)
        except InputError:
            return None
        z_0 = torch.from_numpy(voxels.reshape(*voxels.shape[:3], -1)).permute(3, 0, 1, 2).contiguous()
        return z_0 if tuple(z_0.shape) == self.shape and bool(z_0.isfinite().all()) else None
