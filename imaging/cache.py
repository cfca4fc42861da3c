"""The cache of unpacked crops: a .nii.gz is unpacked once a run, and all processes that read share it."""
import mmap
import os
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from imaging.content import is_gzipped
from imaging.grids import Crop
from imaging.nifti_files import parts_of
from imaging.volumes import read_in_range
from runtime.files import file_status
from runtime.ranks import local_world_size
from utils import InputError, derived_seed


def free_memory() -> float:
    """Bytes of memory that this process may still take, in a container too; 0 where not known (not Linux)."""
    rooms = [0.0]
    with suppress(OSError, KeyError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        rooms = [1024.0 * int(fields["MemAvailable"].split()[0])]
    with suppress(OSError, ValueError):                    # "max" without a limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        rooms.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(rooms)


def check_temporary_folder() -> None:
    """Raise InputError if there is no folder for temporary files, which cache 'file' needs."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"can it be written to?")
    except OSError as error:
        raise InputError(f"cache file: no folder for temporary files can be written to ({error.strerror}); "
                         "TMPDIR names one, or use --cache ram or off") from error


class VolumeCache:
    """The crops of a cohort's volumes; those of gzipped files are unpacked on first use, and then shared by
    all processes of the run.

    A plain .nii needs no cache: it is read as fast. An entry belongs to one state of its file; after a change
    of the file it is made again.
    margin: voxels around the crop that are kept too, for its random shifts.
    place: 'ram', 'file' (one without a name, in the system's folder for temporary files, so that nothing is
    left there), 'off', or 'auto', the first of these that has room: half of the free memory, then half of the
    free disk.
    checksums: path -> checksum of the voxels that were checked; other voxels are refused.
    Raises InputError if the place that is asked for has no room.
    """

    def __init__(self, paths: list[Path], crop: Crop, margin: int = 0, place: str = "auto",
                 checksums: dict[Path, int] | None = None):
        self.crop, self.margin, self.checksums = crop, margin, checksums or {}
        self.verified: dict[Path, int] = {}        # state of a file in which the checked voxels were found
        packed = sorted({path for path in paths if is_gzipped(path)})
        self.rows = {path: row for row, path in enumerate(packed)}
        self.shape = tuple(n + 2 * margin for n in crop.size)
        self.bytes = 4 * len(self.rows) * int(np.prod(self.shape))
        self.place = self._place(place) if self.rows else "off"
        if self.place == "off":
            return
        try:
            memory = self._memory()
        except OSError as error:
            where = "memory" if self.place == "ram" else "the temporary folder (TMPDIR names another)"
            raise InputError(f"cache {self.place}: no room for {self.bytes / 2 ** 30:.2f} GiB in {where}; "
                             "use --cache off") from error
        self.volumes = np.frombuffer(memory, np.float32).reshape(-1, *self.shape)
        states = mmap.mmap(-1, 8 * len(self.rows))
        self.states = np.frombuffer(states, np.int64)      # of the files that the entries were made from

    def _memory(self) -> mmap.mmap:
        """Memory that is shared with the processes that are forked later; of a file, all of its disk is taken
        at once."""
        if self.place == "ram":
            return mmap.mmap(-1, self.bytes)
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.bytes)           # a full disk is an error now
            else:
                file.truncate(self.bytes)
            return mmap.mmap(file.fileno(), self.bytes)

    def _place(self, wanted: str) -> str:
        """The place that is asked for, or for 'auto' the first with room."""
        if wanted != "auto":
            return wanted
        needed = self.bytes * local_world_size()           # every rank of this machine has its own
        if needed <= free_memory() / 2:
            return "ram"
        with suppress(OSError):                            # there may be no folder for temporary files
            if needed <= shutil.disk_usage(tempfile.gettempdir()).free / 2:
                return "file"
        return "off"

    def __reduce__(self):
        """A pickled copy reads the files: a process that is not forked cannot share the memory."""
        return VolumeCache, ([], self.crop, self.margin, "off", self.checksums)

    def describe(self) -> str:
        """Where the decoded crops are kept, in a line."""
        if not self.rows:
            return "plain .nii, read as they are needed"
        kept = {"ram": "kept in memory", "off": "not kept",
                "file": f"kept in a file in {tempfile.gettempdir()}"}
        return f"{len(self.rows)} decoded .nii.gz, {self.bytes / 2 ** 30:.2f} GiB, {kept[self.place]}"

    def read(self, path: Path) -> np.ndarray:
        """The crop of a volume with its margin, float32, to be copied and not to be changed.

        Raises InputError for a damaged file, and for one whose voxels are not those that were checked.
        """
        row = self.rows.get(path)
        if self.place == "off" or row is None:
            return self._read_crop(path)
        state = _state(path)
        if self.states[row] != state:
            self.volumes[row] = self._read_crop(path)
            self.states[row] = state                       # last: another process may be reading
        return self.volumes[row]

    def _read_crop(self, path: Path) -> np.ndarray:
        """Read a file, compare its voxels with those that were checked, and cut out the crop with margin."""
        state = _state(path)
        # as it was checked; a checksum shows that these are the voxels that were checked
        voxels, _ = read_in_range(path, nan_checked=path in self.checksums)
        is_new = self.verified.get(path) != _state(path)   # it may have changed while it was read
        if path in self.checksums and is_new:
            if zlib.crc32(voxels) != self.checksums[path]:
                raise InputError(f"{path}: its voxels are no longer those that were checked; see that "
                                 "nothing writes into this folder during a run, and run the same command "
                                 "again")
            self.verified[path] = state
        start = tuple(first - self.margin for first in self.crop.start)
        return voxels[Crop(start, self.shape).slices()]


def _state(path: Path) -> int:
    """A number in [0, 2^63) that changes with the file."""
    parts = []
    for part in parts_of(path):
        status = file_status(part)
        parts += [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return derived_seed(*parts)
