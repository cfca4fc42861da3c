"""The cache of decoded crops, the loaders, the latent cache."""
import gzip
import os
import pickle
import tempfile
import zlib
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import AFFINE, SHAPE, write_volume

from dataset import EpochOrder, LatentCache, Scan, VolumeDataset, volume_loader
from imaging import cache as cache_module
from imaging.cache import VolumeCache, free_memory
from imaging.grids import Crop
from imaging.volumes import read_volume
from runtime.ranks import DistributedBatches
from utils import InputError

CROP = Crop((3, 2, 3), (16, 24, 16))


def write_scans(root, n: int = 5) -> list[Scan]:
    """Random volumes, every second one a .nii."""
    scans = []
    for i in range(n):
        path = root / f"s{i}.nii{'' if i % 2 else '.gz'}"
        write_volume(path, np.random.default_rng(i).random(SHAPE).astype(np.float32))
        scans.append(Scan(f"s{i}", i % 2, path, path))
    return scans


def cache_of(scans, margin=1, place="ram") -> VolumeCache:
    return VolumeCache([scan.mri for scan in scans], CROP, margin, place)


@pytest.mark.parametrize("place", ["ram", "file", "off"])
def test_a_crop_is_that_of_its_file_and_is_decoded_once(tmp_path, monkeypatch, place):
    scans, decoded = write_scans(tmp_path), []
    cache = cache_of(scans, place=place)

    def read(path, nan_checked):
        assert not nan_checked                             # without a checksum nothing was checked
        decoded.append(path)
        return read_volume(path)
    monkeypatch.setattr(cache_module, "read_in_range", read)
    for _ in range(3):
        for scan in scans:
            whole, _ = read_volume(scan.mri)
            np.testing.assert_array_equal(cache.read(scan.mri), whole[Crop((2, 1, 2), (18, 26, 18)).slices()])
    assert [decoded.count(scan.mri) for scan in scans] == ([3] * 5 if place == "off" else [1, 3, 1, 3, 1])
    assert {"ram": "memory", "file": tempfile.gettempdir(), "off": "not kept"}[place] in cache.describe()


def test_the_cache_file_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    scans = write_scans(tmp_path)
    cache = cache_of(scans, place="file")
    cache.read(scans[0].mri)
    assert os.listdir(tmp_path / "temporary") == []


def test_a_changed_file_is_decoded_again_and_a_damaged_one_refused(tmp_path):
    scans = write_scans(tmp_path)
    cache, path = cache_of(scans), scans[0].mri
    before = cache.read(path).copy()
    write_volume(path, np.full(SHAPE, 0.25, np.float32))
    assert (cache.read(path) == 0.25).all()
    assert not (before == 0.25).any()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    write_volume(path, np.full(SHAPE, 0.75, np.float32))
    os.utime(path, ns=times)                               # as a copying tool does that keeps times
    assert (cache.read(path) == 0.75).all()
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="truncated or damaged"):
        cache.read(path)


@pytest.mark.parametrize("place", ["ram", "off"])
@pytest.mark.parametrize("index", [0, 1])                  # a .nii.gz and a .nii
def test_voxels_that_were_not_checked_are_refused_until_they_are_back(tmp_path, index, place):
    scans = write_scans(tmp_path)
    path = scans[index].mri
    checked = read_volume(path)[0]
    checksums = {scan.mri: zlib.crc32(read_volume(scan.mri)[0]) for scan in scans}
    cache = VolumeCache([scan.mri for scan in scans], CROP, 0, place, checksums)
    for at in ("first", "later"):
        write_volume(path, np.roll(checked, 1))            # a right volume, but another
        refusal = rf"{path.name}: its voxels are no longer those that were checked.*same command again"
        for _ in range(2):                                 # nor does it pass when asked for again
            with pytest.raises(InputError, match=refusal):
                cache.read(path)
        write_volume(path, checked)
        np.testing.assert_array_equal(cache.read(path), checked[CROP.slices()], err_msg=at)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    write_volume(path, np.roll(checked, 1))
    os.utime(path, ns=times)                               # as a copying tool does that keeps times
    copy = pickle.loads(pickle.dumps(cache))
    for either in (cache, copy):
        with pytest.raises(InputError, match="no longer"):
            either.read(path)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_that_is_replaced_while_it_is_read_is_noticed(tmp_path, monkeypatch, moment):
    """Just before it is read, so that the voxels are wrong, or just after, so that only the next ones are."""
    [scan] = write_scans(tmp_path, 1)
    checked = read_volume(scan.mri)[0]
    cache = VolumeCache([scan.mri], CROP, 0, "off", {scan.mri: zlib.crc32(checked)})
    cache.read(scan.mri)

    def read_and_replace(path, nan_checked):
        found = read_volume(path) if moment == "after" else None
        write_volume(path, np.roll(checked, 1))
        return found or read_volume(path)
    monkeypatch.setattr(cache_module, "read_in_range", read_and_replace)
    if moment == "after":
        np.testing.assert_array_equal(cache.read(scan.mri), checked[CROP.slices()])
        monkeypatch.undo()
    with pytest.raises(InputError, match="no longer"):
        cache.read(scan.mri)


@pytest.mark.parametrize("index", [0, 1])                  # a .nii.gz and a .nii
def test_where_nan_lies_is_judged_by_check_and_not_again_at_every_read(tmp_path, monkeypatch, index):
    path = write_scans(tmp_path)[index].mri
    checked = read_volume(path)[0]
    checked[:3] = 0
    with_nan = np.where(checked == 0, np.nan, checked)
    write_volume(path, with_nan)
    cache = VolumeCache([path], CROP, 0, "off", {path: zlib.crc32(checked)})
    monkeypatch.setattr("imaging.volumes.nan_inside", None)                # would be a fault of the program
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(path), checked[CROP.slices()])
    for lost in (with_nan[::-1], np.full(SHAPE, np.nan)):
        write_volume(path, lost)
        with pytest.raises(InputError, match="no longer those that were checked"):
            cache.read(path)
    monkeypatch.undo()
    with_nan[tuple(n // 2 for n in SHAPE)] = np.nan
    write_volume(path, with_nan)
    with pytest.raises(InputError, match="1 NaN voxels inside"):
        VolumeCache([path], CROP, 0, "off").read(path)


def test_a_file_that_is_gone_or_has_become_a_pipe_is_named(tmp_path):
    scans = write_scans(tmp_path)
    cache = cache_of(scans)
    scans[0].mri.unlink()
    with pytest.raises(InputError, match="s0.nii.gz: cannot be read: No such file"):
        cache.read(scans[0].mri)
    os.mkfifo(scans[0].mri)
    with pytest.raises(InputError, match="s0.nii.gz: cannot be read: it is not a file"):
        cache.read(scans[0].mri)


@pytest.mark.parametrize(("memory", "disk", "place"), [(4, 100, "ram"), (1, 2, "file"), (1, 1, "off")])
def test_auto_takes_the_first_place_with_room(tmp_path, monkeypatch, memory, disk, place):
    scans = write_scans(tmp_path)
    size = cache_of(scans).bytes
    monkeypatch.setattr(cache_module, "free_memory", lambda: memory * size)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk * size))
    assert cache_of(scans, place="auto").place == place


def test_free_memory_is_known_here():
    assert 2 ** 27 < free_memory() < 2 ** 45


def test_a_file_that_the_disk_has_no_room_for_is_refused_with_its_size(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"cache file: no room for 0.00 GiB in .*TMPDIR.*--cache off"):
        cache_of(write_scans(tmp_path), place="file")


def test_processes_share_the_cache_and_a_copy_sent_to_one_reads_the_files(tmp_path):
    scans = write_scans(tmp_path)
    cache = cache_of(scans)
    dataset, batches = VolumeDataset(scans, cache, ("mri",)), DistributedBatches(len(scans), 2, shared=False)
    loader = volume_loader(dataset, batches, 2, False)
    assert [batch["id"] for batch in loader] == [["s0", "s1"], ["s2", "s3"], ["s4"]]
    assert (cache.states != 0).all()                       # filled by the two other processes
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.place == "off"
    np.testing.assert_array_equal(copy.read(scans[0].mri), cache.read(scans[0].mri))


def test_shifted_crops_stay_in_range_and_depend_on_seed_and_id_alone(tmp_path):
    scans = write_scans(tmp_path)
    dataset, whole = VolumeDataset(scans, cache_of(scans), ("pet",)), read_volume(scans[0].pet)[0]
    seen = set()
    for seed in range(60):
        [crop] = dataset[0, seed]["pet"].numpy()
        shifts = [s for s in np.ndindex(3, 3, 3) if np.array_equal(crop, whole[CROP.slices(np.array(s) - 1)])]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert {s[0] for s in seen} == {s[1] for s in seen} == {s[2] for s in seen} == {0, 1, 2}
    again = VolumeDataset(scans[::-1], cache_of(scans), ("pet",))[len(scans) - 1, 59]["pet"].numpy()[0]
    np.testing.assert_array_equal(again, crop)
    np.testing.assert_array_equal(dataset[0]["pet"].numpy()[0], whole[CROP.slices()])


def test_an_epoch_is_the_same_whoever_reads_it(tmp_path):
    scans = write_scans(tmp_path, 7)

    def epochs(workers: int) -> list:
        order = EpochOrder(len(scans), batch=2, jitter=True)
        loader = volume_loader(VolumeDataset(scans, cache_of(scans), ("pet",)), order, workers, False)
        found = []
        for seed in (5, 6, 5):
            order.seed = seed
            found.append([(batch["id"], batch["pet"]) for batch in loader])
        return found
    alone, helped = epochs(0), epochs(2)                   # the two processes live on from epoch to epoch
    for one, other in zip(alone, helped, strict=True):
        assert [ids for ids, _ in one] == [ids for ids, _ in other]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))
    assert [len(epoch) for epoch in alone] == [3, 3, 3]    # the incomplete batch is dropped
    assert len({name for ids, _ in alone[0] for name in ids}) == 6
    assert [ids for ids, _ in alone[0]] == [ids for ids, _ in alone[2]] != [ids for ids, _ in alone[1]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(alone[0], alone[2], strict=True))


@pytest.mark.parametrize("jitter", [True, False])
def test_an_epoch_that_is_continued_has_the_items_that_are_left(jitter):
    """Whatever was seen before: steps and their order are those of the uncut epoch."""
    order = EpochOrder(11, batch=2, jitter=jitter)
    order.seed = 3
    whole = list(order)
    assert len(order) == len(whole) == 10
    indices = [item[0] for item in whole] if jitter else whole
    assert len(set(indices)) == 10 and set(indices) <= set(range(11))
    if jitter:                                             # with each item, the seed of its shift
        assert {item[1] for item in whole} == {3}
    for first in (2, 4, 10):
        order.first = first
        assert list(order) == whole[first:]
        assert len(order) == 10 - first


def test_items_have_the_modalities_that_are_asked_for_as_float32_in_one_channel(tmp_path):
    scans = write_scans(tmp_path, 3)
    for modalities in (("mri",), ("pet",), ("mri", "pet")):
        dataset = VolumeDataset(scans, cache_of(scans), modalities)
        assert len(dataset) == 3
        item = dataset[1]
        assert item.keys() == {"id", "label", *modalities} and (item["id"], item["label"]) == ("s1", 1)
        for name in modalities:
            assert item[name].shape == (1, *CROP.size) and item[name].dtype == torch.float32


def test_an_item_is_a_copy_that_may_be_changed(tmp_path):
    scans = write_scans(tmp_path, 1)
    dataset = VolumeDataset(scans, cache_of(scans), ("pet",))
    before = dataset[0]["pet"].clone()
    dataset[0]["pet"].zero_()
    assert torch.equal(dataset[0]["pet"], before)


def test_a_latent_is_never_used_for_another_autoencoder_crop_or_source(tmp_path):
    pet = tmp_path / "a.nii.gz"
    scan, z_0 = Scan("a", 1, pet, pet), torch.randn(2, 4, 6, 4)
    cache = LatentCache(tmp_path / "latent_Abeta", "key1", CROP, (2, 4, 6, 4), AFFINE, {pet: 1})
    assert cache.load(scan) is None
    cache.folder.mkdir(parents=True)
    cache.save(scan, z_0)
    torch.testing.assert_close(cache.load(scan), z_0)
    path = tmp_path / "latent_Abeta" / "key1" / "a.nii.gz"
    np.testing.assert_allclose(nib.load(path).affine, CROP.affine(AFFINE, 4))

    moved = Crop((2, 2, 3), CROP.size)
    assert (
        LatentCache(tmp_path / "latent_Abeta", "key1", moved, (2, 4, 6, 4), AFFINE, {pet: 1}).load(scan)
        is None
    )
    assert (
        LatentCache(tmp_path / "latent_Abeta", "key2", CROP, (2, 4, 6, 4), AFFINE, {pet: 1}).load(scan)
        is None
    )
    (tmp_path / "latent_Abeta" / "key1").rename(tmp_path / "latent_Abeta" / "key2")
    assert (
        LatentCache(tmp_path / "latent_Abeta", "key2", CROP, (2, 4, 6, 4), AFFINE, {pet: 1}).load(scan)
        is None
    )

    (tmp_path / "latent_Abeta" / "key2").rename(tmp_path / "latent_Abeta" / "key1")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert cache.load(scan) is None
    path.write_bytes(whole)
    assert cache.load(scan) is not None
    for value in (float("nan"), float("inf")):
        spoilt = z_0.clone()
        spoilt[1, 2, 3, 1] = value
        cache.save(scan, spoilt)
        assert cache.load(scan) is None
    content = bytearray(gzip.decompress(whole))
    content[148:228] = b"\xff" * 80                        # the note
    path.write_bytes(gzip.compress(content))
    assert cache.load(scan) is None
    path.unlink()
    path.mkdir()
    assert cache.load(scan) is None
    path.rmdir()
    path.write_bytes(whole)
    assert cache.load(scan) is not None
    another_pet = LatentCache(tmp_path / "latent_Abeta", "key1", CROP, (2, 4, 6, 4), AFFINE, {pet: 2})
    assert another_pet.load(scan) is None
