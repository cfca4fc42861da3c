"""The cohort: lists and labels, the check of all of it, and its volumes and latents as torch datasets."""
import hashlib
import math
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from imaging.cache import VolumeCache
from imaging.grids import SAME_PLACE_MM, Crop, Grid
from imaging.headers import read_header
from imaging.nifti_files import VolumeFolder
from imaging.remarks import Remarks
from imaging.volumes import RANGE_TOLERANCE, RINGING, read_in_range, read_voxels, save_nifti
from labels.cells import (ages_remark, expected_labels, is_missing, labels_remark, read_label)
from labels.people import covariate_problems, missing_columns, places_of, read_tracer
from runtime.files import brief
from runtime.logs import progress_bar, say
from runtime.near_names import NearNames
from runtime.ranks import DistributedBatches, rank, world_size
from runtime.signals import abandoned_on_error, serve_parent
from runtime.tables import read_list, read_table
from utils import InputError, derived_seed

SPLITS = ("train", "validation", "test")
# file systems take names of 255 bytes
ID_PATTERN = re.compile(r"(?!.*\.(?i:nii(\.gz)?)$)[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
FOLDERS = ("whole_MRI", "whole_Abeta")                     # of a cohort's volumes


@dataclass(frozen=True)
class Scan:
    """One subject's visit: its ID, its amyloid label in 0 .. K - 1, and its two files."""
    id: str
    label: int
    mri: Path
    pet: Path


def parse_id(scan_id: str, pattern: re.Pattern) -> tuple[str, str]:
    """Subject of an ID, and what else the ID says: visit, session, date; '' where it names the subject alone.

    pattern: setting subject_pattern; an ID that does not match is its own subject. ADNI's 037_S_6046,
    037S6046 and sub-ADNI037S6046 are one subject.
    """
    match = pattern.search(scan_id)
    group = next((i for i, found in enumerate(match.groups(), start=1) if found), 0) if match else 0
    if not group:
        return scan_id, ""
    before = re.sub(r"^(sub-)?(adni[_-]?)?$", "", scan_id[:match.start(group)], flags=re.IGNORECASE)
    return re.sub(r"^(\d{3})_?S_?(\d{4,5})$", r"\1S\2", match[group]), before + scan_id[match.end(group):]


# ---------------------------------------------------------------- lists and labels

class CohortReader:
    """Reads a cohort's lists, labels and file names, and collects every problem on the way instead of
    stopping at one."""

    def __init__(self, data_dir: Path, info_dir: Path, num_classes: int, subject_pattern: str):
        self.data_dir, self.info_dir, self.num_classes = data_dir, info_dir, num_classes
        self.subject_pattern = re.compile(subject_pattern)
        self.volumes = {folder: VolumeFolder(data_dir / folder) for folder in FOLDERS}
        self.problems: list[str] = []
        self.near_rows = NearNames(())                     # IDs of data_info.csv

    def read(self) -> dict[str, list[Scan]]:
        """The scans of each list in its order. Look at .problems before using them."""
        labels = self._labels()
        ids = {split: self._ids(split) for split in SPLITS}
        self._overlaps(ids)
        scans = {split: [self._scan(scan_id, labels) for scan_id in ids[split]] for split in SPLITS}
        return {split: [scan for scan in found if scan] for split, found in scans.items()}

    def read_together(self, lists: tuple[str, ...]) -> tuple[list[str], list[Scan]]:
        """The IDs of some lists one after the other, each once, without a list of every row of data_info.csv;
        and their scans. Look at .problems before using these."""
        labels, ids = self._labels(), []
        for split in lists:
            ids += self._ids(split)
        if not lists and labels is not None:
            ids = self._usable(self.info_dir / "data_info.csv", labels)
        ids = list(dict.fromkeys(ids))
        scans = [self._scan(scan_id, labels) for scan_id in ids]
        return ids, [scan for scan in scans if scan]

    def _labels(self) -> dict[str, list[str]] | None:
        try:
            table = read_table(self.info_dir / "data_info.csv", "ID", "label")
        except InputError as error:
            self.problems.append(str(error))
            return None
        labels: dict[str, list[str]] = {}
        for scan_id, label in zip(table["ID"], table["label"], strict=True):
            labels.setdefault(scan_id, []).append(label)
        self.near_rows = NearNames(labels)
        remarks = [labels_remark(table["label"])] if self.num_classes == 2 else []
        remarks += [ages_remark(table.iloc[:, i]) for i in places_of(table, "age")]
        for remark in filter(None, remarks):
            say("check", f"{self.info_dir / 'data_info.csv'}: {remark}")
        return labels

    def _ids(self, split: str) -> list[str]:
        path = self.info_dir / f"{split}.txt"
        try:
            lines = read_list(path)
        except InputError as error:
            self.problems.append(str(error))
            return []
        counts = Counter(lines)
        usable = self._usable(path, counts)
        self.problems += [f"{path}: {scan_id} stands {counts[scan_id]} times in this list"
                          for scan_id in usable if counts[scan_id] > 1]
        return usable

    def _usable(self, path: Path, ids: Iterable[str]) -> list[str]:
        """Those of a file's IDs, of which there must be one, that can be the name of a volume."""
        ids = list(ids)
        if not ids:
            self.problems.append(f"{path}: holds no ID")
        for scan_id in ids:
            if not ID_PATTERN.fullmatch(scan_id):
                self.problems.append(f"{path}: {brief(repr(scan_id))} is not an ID; expected a file name "
                                     "without folder and without .nii or .nii.gz, of at most 200 letters, "
                                     "digits, '.', '_' and '-'")
        return [scan_id for scan_id in ids if ID_PATTERN.fullmatch(scan_id)]

    def _overlaps(self, ids: dict[str, list[str]]) -> None:
        lists: dict[str, dict[str, str]] = {}
        for split, members in ids.items():
            for scan_id in members:
                lists.setdefault(parse_id(scan_id, self.subject_pattern)[0], {}).setdefault(split, scan_id)
        for subject, places in lists.items():
            if len(places) > 1:
                where = ", ".join(f"{split}.txt as {scan_id}" for split, scan_id in places.items())
                self.problems.append(f"{self.info_dir}: subject {subject} is in more than one list: {where}; "
                                     "keep all its scans in one")

    def _scan(self, scan_id: str, labels: dict[str, list[str]] | None) -> Scan | None:
        label, mri, pet = (self._label(scan_id, labels), self._file("whole_MRI", scan_id),
                           self._file("whole_Abeta", scan_id))
        return None if label is None or mri is None or pet is None else Scan(scan_id, label, mri, pet)

    def _label(self, scan_id: str, labels: dict[str, list[str]] | None) -> int | None:
        if labels is None:                                 # already reported, once
            return None
        path, found = self.info_dir / "data_info.csv", labels.get(scan_id, [])
        hint = ""
        if len(found) == 1:
            try:
                return read_label(found[0], self.num_classes)
            except ValueError:
                what = f"has the label {brief(repr(found[0]))}"
                if is_missing(found[0]):
                    what = f"has no label ({found[0]!r})"
        else:
            what = f"has {len(found) or 'no'} rows"
            hint = "" if found else self.near_rows.hint(scan_id)
        self.problems.append(f"{path}: {scan_id} {what}; expected one row with "
                             f"{expected_labels(self.num_classes)}{hint}")
        return None

    def _file(self, folder: str, scan_id: str) -> Path | None:
        try:
            return self.volumes[folder].find(scan_id)
        except InputError as error:
            self.problems.append(str(error))
            return None


# ---------------------------------------------------------------- the check of a whole cohort

@dataclass(frozen=True)
class Cohort:
    """A checked cohort: the scans of each split, the RAS affine [4, 4] that all volumes share, a checksum of
    the voxels of every file (whatever their storage), a report of one screen, and the tracer of the training
    list, '' if it is not known to be one."""
    train: list[Scan]
    validation: list[Scan]
    test: list[Scan]
    affine: np.ndarray
    checksums: dict[Path, int]
    report: str
    tracer: str = ""

    @property
    def scans(self) -> list[Scan]:
        """The scans of all lists."""
        return self.train + self.validation + self.test

    def fingerprint(self, *splits: str) -> str:
        """16 hexadecimal digits that identify these lists: who is in them, with which label and which
        voxels."""
        lists = []                                         # in their order, which training follows
        for split in splits:
            lists.append([(scan.id, scan.label, self.checksums[scan.mri], self.checksums[scan.pet])
                          for scan in getattr(self, split)])
        return hashlib.blake2b(repr((lists, self.affine.round(2).tolist())).encode(),
                               digest_size=8).hexdigest()


def check_cohort(data_dir: Path, info_dir: Path, image_size: tuple[int, ...], num_classes: int,
                 subject_pattern: str, smallest_training_list: int = 1, least_of_each_label: int = 0,
                 covariates: tuple[str, ...] = (), subgroups: tuple[str, ...] = ()) -> Cohort:
    """Read and check the whole cohort once: headers first, then every voxel, in parallel.

    image_size: voxels of every volume in RAS order. Intensities must lie in [0, 1]. least_of_each_label:
    subjects that the training list must have with every label, so that labels can be predicted from the MRI.
    covariates: columns of data_info.csv from which they are predicted as well.
    subgroups: columns of it that must be there.
    Raises InputError that lists every problem found: file, what was found, what is expected.
    """
    reader = CohortReader(data_dir, info_dir, num_classes, subject_pattern)
    if not any(folder.by_stem for folder in reader.volumes.values()):
        raise InputError(f"{data_dir} holds no cohort. Place the volumes as "
                         f"{data_dir}/whole_MRI/<ID>.nii[.gz] and {data_dir}/whole_Abeta/<ID>.nii[.gz],\nthe "
                         f"labels in {info_dir}/data_info.csv (columns ID,label) and one ID a line in "
                         f"{info_dir}/train.txt, validation.txt and test.txt.\nTo see everything run on a "
                         "digital phantom first: python main.py --preset demo")
    splits = reader.read()
    problems = reader.problems
    if splits["train"] and len(splits["train"]) < smallest_training_list:
        problems.append(f"{info_dir / 'train.txt'}: {len(splits['train'])} usable subjects do not fill the "
                        f"{smallest_training_list} of one step (batch size x processes)")
    problems += missing_columns(info_dir, "subgroups", subgroups)
    there = [scan.label for scan in splits["train"]]
    if there and min(map(there.count, range(num_classes))) < least_of_each_label:
        problems.append(f"{info_dir / 'train.txt'}: not all of the {num_classes} labels occur at least "
                        f"{least_of_each_label} times, so none can be left out to see how well the MRI "
                        "predicts it; --label_at_sampling none goes without a prediction")

    labels = {split: {scan.id: scan.label for scan in scans} for split, scans in splits.items()}
    problems += covariate_problems(info_dir, labels, covariates)
    volumes = _check_volumes(splits, image_size, problems)
    return Cohort(**splits, **volumes, tracer=read_tracer(info_dir, [scan.id for scan in splits["train"]]))


def check_external(reader: CohortReader, scans: list[Scan], grid: Grid) -> Cohort:
    """Check scans of an external cohort, all of whose volumes must lie on the grid of the networks. They are
    the test list of the Cohort.

    reader: that gave the scans; what others found stands in its .problems too. Raises InputError that lists
    every problem found.
    """
    volumes = _check_volumes({"external": scans}, grid.shape, reader.problems, grid.affine)
    return Cohort(train=[], validation=[], test=scans, **volumes)


def _check_volumes(splits: dict[str, list[Scan]], image_size: tuple[int, ...], problems: list[str],
                   affine: np.ndarray | None = None) -> dict:
    """Affine, checksums and report of a Cohort with these lists. affine: that all volumes must have, unless
    any will do that they share.

    Raises InputError with the problems that were found before and those of the volumes.
    """
    scans = [scan for found in splits.values() for scan in found]
    grids, stored = _check_headers(scans, image_size, problems, affine)
    remarks = Remarks()
    ranges = _check_voxels([path for scan in scans for path in (scan.mri, scan.pet) if path in grids],
                           problems, remarks)
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) in the data:", *problems]))
    affine = grids[scans[0].mri] if affine is None else affine
    return {"affine": affine, "checksums": {path: checksum for path, (_, _, checksum) in ranges.items()},
            "report": _report(splits, affine, image_size, stored, ranges, scans, remarks)}


def _check_headers(scans: list[Scan], image_size: tuple[int, ...], problems: list[str],
                   affine: np.ndarray | None) -> tuple[dict[Path, np.ndarray], Counter]:
    """RAS affine of every file whose header is right, and how often each orientation is stored. affine: as
    _check_volumes takes it."""
    grids, stored = {}, Counter()
    for path in (path for scan in scans for path in (scan.mri, scan.pet)):
        try:
            header = read_header(path)
        except InputError as error:
            problems.append(str(error))
            continue
        shape = header.get_data_shape()
        if len(shape) != 3:
            problems.append(f"{path}: has {len(shape)} dimensions {shape}; expected one 3D volume "
                            f"{image_size}")
        else:
            grid = Grid.of(header)
            if grid.shape != tuple(image_size):
                problems.append(f"{path}: has {'x'.join(map(str, grid.shape))} voxels (RAS); expected "
                                f"{'x'.join(map(str, image_size))} (setting image_size)")
                continue
            grids[path] = grid.affine
            stored["".join(nib.orientations.aff2axcodes(header.get_best_affine()))] += 1
    _check_affines(scans, grids, image_size, problems, affine)
    return grids, stored


def _check_affines(scans: list[Scan], grids: dict[Path, np.ndarray], image_size: tuple[int, ...],
                   problems: list[str], expected: np.ndarray | None) -> None:
    """All volumes must lie on the grid that is expected, or else that most of them share; a pair that differs
    in itself is named as a pair."""
    if not grids:
        return
    others, common = "the networks were trained on", expected
    if expected is None:
        others, common = "most of the cohort", _common_affine(grids)

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return Grid(image_size, a).same(Grid(image_size, b))

    def origin(affine: np.ndarray) -> str:
        first, last = Grid(image_size, affine).corners()[[0, -1]]
        return f"from ({', '.join(f'{c:g}' for c in first)}) to ({', '.join(f'{c:g}' for c in last)}) mm"

    for scan in scans:
        mri, pet = grids.get(scan.mri), grids.get(scan.pet)
        if mri is not None and pet is not None and not same(mri, pet):
            problems.append(f"{scan.id}: MRI ({origin(mri)}) and PET ({origin(pet)}) are not on one grid; "
                            "resample one onto the other")
            continue
        for path, affine in ((scan.mri, mri), (scan.pet, pet)):
            if affine is not None and not same(affine, common):
                problems.append(f"{path}: {origin(affine)}, {others} {origin(common)}; bring all to one grid")


def _common_affine(grids: dict[Path, np.ndarray]) -> np.ndarray:
    """The affine that most of the files share."""
    keys = {path: tuple(np.round(affine / SAME_PLACE_MM).astype(int).ravel())
            for path, affine in grids.items()}
    common_key = Counter(keys.values()).most_common(1)[0][0]
    return next(affine for path, affine in grids.items() if keys[path] == common_key)


def _check_voxels(paths: list[Path], problems: list[str],
                  remarks: Remarks) -> dict[Path, tuple[float, float, int]]:
    """Smallest and largest intensity of every file, and the checksum of its voxels, as the networks see them.
    """
    def extremes(path: Path) -> tuple[float, float, int] | str:
        """What stands in the result for a file, or its problem."""
        try:
            voxels, _ = read_in_range(path, remarks)
        except InputError as error:
            return str(error)
        return float(voxels.min()), float(voxels.max()), zlib.crc32(voxels)

    ranges = {}
    with abandoned_on_error(ThreadPoolExecutor(os.cpu_count())) as pool:
        read = progress_bar(pool.map(extremes, paths), total=len(paths), desc="check", unit="file")
        for path, found in zip(paths, read, strict=True):
            if isinstance(found, str):
                problems.append(found)
            elif found[0] == found[1]:
                problems.append(f"{path}: every voxel is {found[0]:g}")
            elif found[0] < -RANGE_TOLERANCE or found[1] > 1 + RANGE_TOLERANCE:
                problems.append(f"{path}: intensities from {found[0]:g} to {found[1]:g}; expected within [0, "
                                f"1] ({RINGING:g} beyond would be clipped), PET scaled by one constant for "
                                "all")
            ranges[path] = found
    return ranges


def _report(splits, affine, image_size, stored, ranges, scans, remarks) -> str:
    labels = sorted({scan.label for scan in scans})
    lines = [f"  {'list':12}{'subjects':>9}" + "".join(f"{'label ' + str(label):>9}" for label in labels)]
    for split in splits:
        counts = Counter(scan.label for scan in splits[split])
        of_labels = "".join(f"{counts[label]:9}" for label in labels)
        lines.append(f"  {split:12}{len(splits[split]):9}{of_labels}")
    voxel = " x ".join(f"{size:g}" for size in nib.affines.voxel_sizes(affine))
    lines.append(f"  grid        {' x '.join(map(str, image_size))} voxels of {voxel} mm, first at "
                 f"({', '.join(f'{c:g}' for c in affine[:3, 3])}) mm")
    lines.append("  stored as   " + ", ".join(f"{code} in {count} files" for code, count in stored.items())
                 + ("" if set(stored) == {"RAS"} else "; all are brought to RAS"))
    for name, paths in (("MRI", [scan.mri for scan in scans]), ("PET", [scan.pet for scan in scans])):
        low, high = min(ranges[path][0] for path in paths), max(ranges[path][1] for path in paths)
        lines.append(f"  {name}         intensities from {low:.3f} to {high:.3f}")
    lines += [f"  remark      {line}" for line in remarks.lines()]
    return "\n".join(lines)


# ---------------------------------------------------------------- volumes for the networks

class VolumeDataset(Dataset):
    """Items {id, label, and each of the modalities ('mri', 'pet') as [1, D, H, W] float32 in [0, 1]}.

    An item is asked for by its index, or by (index, seed): its crop is then shifted by a random integer in
    {-margin..margin} an axis, drawn from the seed and the scan's ID.
    """

    def __init__(self, scans: list[Scan], cache: VolumeCache, modalities: tuple[str, ...]):
        self.scans, self.cache, self.modalities = scans, cache, modalities

    def __len__(self) -> int:
        """How many scans there are."""
        return len(self.scans)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """The item of an index, or of (index, seed)."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        scan, margin, shift = self.scans[index], self.cache.margin, np.zeros(3, int)
        if seed is not None:
            shift = np.random.default_rng(derived_seed(seed, scan.id)).integers(-margin, margin, size=3,
                                                                                endpoint=True)
        box = Crop((margin,) * 3, self.cache.crop.size).slices(shift)
        volumes = {name: torch.from_numpy(self.cache.read(getattr(scan, name))[box][None].copy())
                   for name in self.modalities}
        return {"id": scan.id, "label": scan.label, **volumes}


class EpochOrder(Sampler):
    """The items of an epoch in an order drawn from .seed, each as its index, or with the seed if its crop is
    to be shifted.

    batch: items of a step, a rank; consecutive items make a step of all ranks. Items that do not fill a last
    step are left out (paper). .first: how many are left out because they were seen before an interruption.
    """

    def __init__(self, length: int, batch: int, jitter: bool):
        self.length, self.batch, self.jitter, self.seed, self.first = length, batch, jitter, 0, 0

    @property
    def step_items(self) -> int:
        """Items of a step, of all ranks."""
        return self.batch * world_size()

    def __len__(self) -> int:
        """Items of this rank that are left of the epoch."""
        return (self.length - self.first) // self.step_items * self.batch

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        """The items of this rank in their order."""
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed))[self.first:]
        whole_steps = order[:len(order) // self.step_items * self.step_items]
        own = whole_steps.reshape(-1, world_size(), self.batch)[:, rank()].flatten().tolist()
        if not self.jitter:
            return iter(own)
        return iter([(index, self.seed) for index in own])     # with the item, the seed reaches any process


def volume_loader(dataset: VolumeDataset, order: DistributedBatches | EpochOrder, num_workers: int,
                  pin_memory: bool) -> DataLoader:
    """The batches of a share, or for training the steps of an epoch.

    The processes that read live as long as the loader. pin_memory: for faster copies to a GPU.
    """
    if isinstance(order, DistributedBatches):
        batches = {"batch_sampler": order}
    else:
        batches = {"sampler": order, "batch_size": order.batch}
    context = "fork" if num_workers and sys.platform == "linux" else None  # what is forked shares the cache
    return DataLoader(dataset, **batches, num_workers=num_workers, pin_memory=pin_memory,
                      persistent_workers=num_workers > 0, multiprocessing_context=context,
                      worker_init_fn=serve_parent, generator=torch.Generator())


# ---------------------------------------------------------------- the latent cache

LATENTS = "latent_Abeta"                                   # folder of all of them in a data_dir of one's own
LATENT_FORMAT = 2                                 # raise it when what a latent file holds changes its meaning


class LatentCache:
    """Latents E(x) as NIfTI files <home>/<autoencoder>/<ID>.nii.gz, each bound to what it was made from.
    model.py:LatentSpace.scale makes z_0 of them.

    home: folder of the latents of all autoencoders. autoencoder: key of the weights and of the precision that
    they encode in. checksums: of the voxels of every PET, as they were checked. A file's header names the key
    of autoencoder, crop and checksum; a latent whose key is another, which cannot be read to its end, or
    which is not finite, is not there.
    """

    def __init__(self, home: Path, autoencoder: str, crop: Crop, shape: tuple[int, ...],
                 affine: np.ndarray, checksums: dict[Path, int]):
        self.folder = home / autoencoder
        self.autoencoder, self.crop, self.shape, self.affine, self.checksums = (autoencoder, crop, shape,
                                                                                affine, checksums)

    def _note(self, scan: Scan) -> str:
        made_from = f"{self.autoencoder} {self.crop} {self.checksums[scan.pet]}".encode()
        return f"latent {LATENT_FORMAT} of {hashlib.blake2b(made_from, digest_size=12).hexdigest()}"

    def save(self, scan: Scan, latent: Tensor) -> None:
        """Write E(x) [C, d, h, w], not scaled yet, channels as the file's fourth dimension, where it lies in
        space."""
        voxels = latent.permute(1, 2, 3, 0).numpy()                                          # [d, h, w, C]
        affine = self.crop.affine(self.affine, self.crop.size[0] // self.shape[1])
        save_nifti(self.folder / f"{scan.id}.nii.gz", voxels, affine, self._note(scan))

    def load(self, scan: Scan) -> Tensor | None:
        """E(x) [C, d, h, w], or None if there is none of this autoencoder, crop and PET file."""
        path = self.folder / f"{scan.id}.nii.gz"
        try:
            header = read_header(path)
            is_own = header["descrip"].item() == self._note(scan).encode()
            if not is_own or math.prod(header.get_data_shape()) != math.prod(self.shape):
                return None                                # before anything is read that might be large
            voxels, _ = read_voxels(path)                  # NaN is no latent
        except InputError:
            return None
        latent = torch.from_numpy(voxels.reshape(*voxels.shape[:3], -1)).permute(3, 0, 1, 2).contiguous()
        is_whole = tuple(latent.shape) == self.shape and bool(latent.isfinite().all())
        return latent if is_whole else None
