"""The cache of decoded crops: a .nii.gz is unpacked once a run, and all processes that read share it."""
import mmap
import os
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from imaging.volumes import Crop, read_volume
from runtime.files import file_status
from runtime.ranks import local_world_size
from utils import InputError, derived_seed


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
        needed = self.bytes * local_world_size()    # every rank of this machine has its own
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
