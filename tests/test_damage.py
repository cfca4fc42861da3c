"""Flipped bits and missing ends: a damaged file is refused, or gives the very voxels of the undamaged one."""
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import AFFINE, SHAPE, write_volume
from test_dataset import CROP
from torch import nn
from torch.utils._pytree import tree_flatten

from dataset import LatentCache, Scan
from imaging.volumes import read_volume
from runtime.checkpoints import StageRun, load_checkpoint
from utils import InputError

GZIP_HEADER, GZIP_TRAILER = range(10), range(-8, 0)        # the latter holds checksum and length


def flips(content: bytes, positions: Iterable[int], bits: Iterable[int]) -> Iterable[bytes]:
    """Copies of the content, each with one bit flipped."""
    for position, bit in zip(positions, bits, strict=True):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        yield bytes(damaged)


def random_flips(content: bytes, n: int) -> Iterable[bytes]:
    rng = np.random.default_rng(0)
    return flips(content, rng.integers(0, len(content), n), rng.integers(0, 8, n))


def flips_of_all_bits(content: bytes, positions: Iterable[int]) -> Iterable[bytes]:
    return flips(content, [position for position in positions for _ in range(8)],
                 [*range(8)] * len(positions))


def truncations(content: bytes, n: int) -> Iterable[bytes]:
    """n different beginnings of the content; among them all but its last byte, and nothing."""
    lengths = np.random.default_rng(1).choice(np.arange(1, len(content) - 1), n - 2, replace=False)
    return [content[:length] for length in (0, len(content) - 1, *lengths)]


def outcomes(path: Path, damaged: Iterable[bytes], read: Callable[[], str]) -> Counter:
    """How often read() said what of the file with each of the damaged contents; the right one is put back."""
    right, found = path.read_bytes(), Counter()
    for content in damaged:
        path.write_bytes(content)
        found[read()] += 1
    path.write_bytes(right)
    assert read() == "the same"
    return found


@pytest.fixture(params=["volume", "latent"])
def packed(request, tmp_path) -> tuple[Path, Callable[[], str]]:
    """A .nii.gz of a volume or of a latent, and what reading it comes to: 'refused', 'the same' or
    'wrong'."""
    pet = tmp_path / "a.nii.gz"
    write_volume(pet, np.random.default_rng(0).random(SHAPE).astype(np.float32))
    voxels, affine = read_volume(pet)
    scan, z_0 = Scan("a", 0, pet, pet), torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(0))
    latents = LatentCache(tmp_path / "latent_Abeta", "key", CROP, tuple(z_0.shape), AFFINE, {pet: 1})
    latents.folder.mkdir(parents=True)
    latents.save(scan, z_0)

    def read_latent() -> str:
        found = latents.load(scan)
        return "refused" if found is None else "the same" if torch.equal(found, z_0) else "wrong"

    def read() -> str:
        try:
            found, found_affine = read_volume(pet)
        except InputError:
            return "refused"
        return (
            "the same" if np.array_equal(found, voxels) and np.array_equal(found_affine, affine) else "wrong"
        )
    return (pet, read) if request.param == "volume" else (latents.folder / "a.nii.gz", read_latent)


def test_a_flipped_bit_in_a_gz_is_refused_or_changes_nothing(packed, count, record_property, request):
    path, read = packed
    n = count(40, 200)
    found = outcomes(path, random_flips(path.read_bytes(), n), read)
    assert set(found) <= {"refused", "the same"}
    assert found["refused"] > 0.9 * n
    record_property("trust", f"{request.node.callspec.id} .nii.gz: {n} flipped bits, {found['refused']} "
                             f"refused, {found['the same']} without effect, {found['wrong']} wrong")


def test_a_flipped_bit_in_the_frame_of_a_gz_is_refused_or_changes_nothing(packed, record_property, request):
    """The frame: flags, time and system before the data, which mostly change nothing, and checksum and length
    after it."""
    path, read = packed
    content = path.read_bytes()
    header = outcomes(path, flips_of_all_bits(content, GZIP_HEADER), read)
    trailer = outcomes(path, flips_of_all_bits(content, GZIP_TRAILER), read)
    assert set(header) == {"refused", "the same"}
    assert trailer == {"refused": 64}
    record_property("trust", f"{request.node.callspec.id} .nii.gz: all {header.total() + trailer.total()} "
                             f"bits of its frame, {header['refused'] + trailer['refused']} refused, "
                             f"{header['the same']} without effect, 0 wrong")


def test_a_truncated_gz_is_refused(packed, count, record_property, request):
    path, read = packed
    n = count(15, 50)
    assert outcomes(path, truncations(path.read_bytes(), n), read) == {"refused": n}
    record_property("trust", f"{request.node.callspec.id} .nii.gz: {n} truncations, {n} refused")


def test_a_truncated_nii_is_refused_with_its_size(tmp_path, count, record_property):
    path, n = tmp_path / "a.nii", count(15, 50)
    write_volume(path, np.random.default_rng(0).random(SHAPE).astype(np.float32))
    whole = path.read_bytes()
    for content in truncations(whole, n):
        path.write_bytes(content)
        reason = "truncated or damaged" if len(content) > 3 else "is empty|is text|truncated"
        with pytest.raises(InputError, match=reason) as error:
            read_volume(path)
        assert len(content) < 540 or f"in the bytes 352 to {len(whole)}, {len(content)} found" in str(
            error.value
        )
    record_property("trust", f"volume .nii: {n} truncations, {n} refused")


@pytest.fixture
def checkpoint(tmp_path) -> tuple[Path, Callable[[], str]]:
    """A checkpoint of a network and its optimizer, and what reading it comes to."""
    network = nn.Linear(40, 40)
    opt = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 40)).sum().backward()
    opt.step()
    run = StageRun(tmp_path, "aae", "C", {"m": network, "opt": opt}, {"lr": 1}, {})
    run.finish_epoch(1, {"rec": 0.5}, None)
    right = load_checkpoint(run.last_path)

    def read() -> str:
        try:
            found = load_checkpoint(run.last_path)
        except InputError:
            return "refused"
        (leaves, structure), (right_leaves, right_structure) = tree_flatten(found), tree_flatten(right)
        same = structure == right_structure and all(
            torch.equal(one, other) if torch.is_tensor(one) else one == other
            for one, other in zip(leaves, right_leaves, strict=True)
        )
        return "the same" if same else "wrong"
    return run.last_path, read


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(checkpoint, count, record_property):
    path, read = checkpoint
    n = count(60, 1000)
    found = outcomes(path, random_flips(path.read_bytes(), n), read)
    assert set(found) <= {"refused", "the same"}
    assert found["refused"] > 0.7 * n  # in so small a file the frame of the archive takes much of it
    record_property("trust", f"checkpoint: {n} flipped bits, {found['refused']} refused, {found['the same']} "
                             "without effect, 0 wrong")


def test_a_truncated_checkpoint_is_refused(checkpoint, count, record_property):
    path, read = checkpoint
    n = count(15, 50)
    assert outcomes(path, truncations(path.read_bytes(), n), read) == {"refused": n}
    record_property("trust", f"checkpoint: {n} truncations, {n} refused")
