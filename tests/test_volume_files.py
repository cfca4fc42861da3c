"""Files of volumes as people have them: links, wrong names, other formats, odd headers, NaN, ringing. Every
door has the same outcome."""
import bz2
import gzip
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import AFFINE, LISTS, SHAPE, TINY, arguments, write_volume
from nibabel.eulerangles import euler2mat
from preparing import prepare
from scipy.ndimage import binary_dilation
from test_dataset import check, problems

import main
from cohort.raw_scans import Choices, RawScan, find_plain
from cohort.subject import Recipe, read_pet, read_scan
from dataset import LatentCache, Scan
from imaging.grids import Crop
from imaging.headers import read_header
from imaging.missing import nan_inside
from imaging.nifti_files import VolumeFolder, digest_of, is_volume_name, stem_of
from imaging.regions import read_mask
from imaging.remarks import Remarks
from imaging.volumes import read_in_range, read_volume, read_voxels
from newscans.scans import find_scans, header_problem, read_mri, sha256
from phantom.anatomy import load_template
from utils import InputError

BOX = Crop((0, 0, 0), SHAPE)
SCAN = "whole_Abeta/s03.nii"


def volume() -> np.ndarray:
    """A ball of intensities above 0 in [0, 1], 0 around it; float32 [X, Y, Z]."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    bright = 0.2 + 0.7 * np.random.default_rng(0).random(SHAPE)
    return np.where((grid ** 2).sum(0) < 0.7, bright, 0).astype(np.float32)


def right(path: Path) -> Path:
    """Write the volume under a name of NIfTI."""
    write_volume(path, volume())
    return path


def through_all_doors(path: Path) -> dict[str, np.ndarray | str]:
    """What check, synthesize, preprocess and masks make of a file: voxels, or the message."""
    doors = {
        "check": lambda: read_in_range(path)[0],
        "synthesize": lambda: read_mri(path, 0.0)[0],
        "preprocess": lambda: read_scan(path, Remarks()).volumes[0],
        "mask": lambda: read_mask(path, AFFINE, BOX),
    }
    found = {}
    for door, read in doors.items():
        try:
            found[door] = read()
        except InputError as error:
            found[door] = str(error)
    return found


@pytest.fixture
def no_ants(monkeypatch):
    """Images of ANTs as plain arrays: this is about what is read."""
    class Image:
        """The voxels of an image."""

        def __init__(self, voxels):
            self.voxels = voxels

        def numpy(self):
            """The voxels."""
            return self.voxels
    monkeypatch.setattr("cohort.registration.to_ants", lambda voxels, _: Image(voxels))


def assert_read(path: Path, expected: np.ndarray) -> None:
    """Every door reads these voxels."""
    found = through_all_doors(path)
    for door in ("check", "synthesize", "preprocess"):
        np.testing.assert_array_equal(found[door], expected, door)
    np.testing.assert_array_equal(found["mask"], expected >= 0.5 * expected.max())


def assert_refused(path: Path, expected: str) -> None:
    """Every door refuses the file in the same words."""
    for door, found in through_all_doors(path).items():
        assert isinstance(found, str) and expected in found, (door, found)


# ---------------------------------------------------------------- by another name, or another form of NIfTI

def gz(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def as_pair(path: Path, packed: str = "") -> Path:
    image = nib.load(path, mmap=False)
    pair = path.with_name(f"a.img{packed}")
    nib.save(nib.Nifti1Pair(image.get_fdata(dtype=np.float32), image.affine), pair)
    return pair


def nifti_2_pair(path: Path) -> Path:
    nib.save(nib.Nifti2Pair(volume(), AFFINE), path.with_name("a.img"))
    return path.with_name("a.img")


def big_endian(path: Path) -> None:
    nib.save(nib.Nifti1Image(volume(), AFFINE, nib.Nifti1Header(endianness=">")), path)


def named(name: str, packings: int = 0):
    def make(path: Path) -> Path:
        for _ in range(packings):
            gz(path)
        return path.rename(path.with_name(name))
    return make


def upper_pair(path: Path) -> Path:
    as_pair(path)
    path.with_name("a.hdr").rename(path.with_name("a.HDR"))
    return path.with_name("a.img").rename(path.with_name("a.IMG"))


def in_members(path: Path) -> Path:
    """Gzipped in two members, as some parallel packers do."""
    content = path.read_bytes()
    path.with_name("a.nii.gz").write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    return path.with_name("a.nii.gz")


READ = {
    "plain, named .nii.gz": named("a.nii.gz"), "gzipped, named .nii": named("a.nii", 1),
    "gzipped twice": named("a.nii.gz", 2), "gzipped twice, named .nii": named("a.nii", 2),
    ".NII.GZ": named("a.NII.GZ", 1), ".Nii.gz": named("a.Nii.gz", 1), ".NII": named("a.NII"),
    "two members": in_members, ".img of a pair": as_pair,
    ".hdr of a pair": lambda path: as_pair(path).with_name("a.hdr"),
    ".img.gz of a pair": lambda path: as_pair(path, ".gz"), ".IMG of a pair": upper_pair,
    "pair of NIfTI-2": nifti_2_pair, "big-endian": big_endian,
}


@pytest.mark.parametrize("case", READ)
def test_what_is_nifti_is_read_whatever_its_name(tmp_path, no_ants, case):
    assert_read(READ[case](right(tmp_path / "a.nii")) or tmp_path / "a.nii", volume())


def analyze(path: Path) -> None:
    image = nib.AnalyzeImage(volume(), AFFINE)
    nib.save(image, path.with_name("a.img"))


FOREIGN = {
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1\n",
                    "is a Git LFS pointer, its content is not here; run `git lfs pull`"),
    "pointer of git-annex": (b"/annex/objects/MD5E-s12--abc.nii.gz\n", "run `datalad get`"),
    "link that became a text": (b"../.git/annex/objects/aa/bb/MD5E-s1--a.nii.gz", "run `datalad get`"),
    "login page": (b"\n<!DOCTYPE html><title>Sign in</title>", "is a web page, perhaps of a login"),
    "page without doctype": (b"\xef\xbb\xbf<HTML><body>", "is a web page"),
    "error of a server": (b'{"error": "forbidden"}', "is text, beginning '{\"error\": \"forbidden\"}'"),
    "empty": (b"", "is empty (0 bytes)"), "gzipped nothing": (gzip.compress(b""), "is empty (0 bytes)"),
    "DICOM": (bytes(128) + b"DICM" + bytes(500), "is DICOM; convert its series with dcm2niix"),
    "MGH": (np.array([1, 4, 4, 4, 1, 3, 0], ">i4").tobytes() + bytes(600), "convert it with mri_convert"),
    "MGZ": (gzip.compress(np.array([1, 4, 4, 4, 1, 0, 0], ">i4").tobytes() + bytes(600)), "is MGH"),
    "MINC 1": (b"CDF\x01" + bytes(600), "is MINC 1"),
    "MINC 2": (b"\x89HDF\r\n\x1a\n" + bytes(600), "as MINC 2"),
    "Analyze in one file": (bytes(nib.AnalyzeHeader().binaryblock) + bytes(200), "is Analyze 7.5"),
    "Analyze, big-endian": (bytes(nib.AnalyzeHeader(endianness=">").binaryblock), "is Analyze 7.5"),
    "bzip2": (bz2.compress(bytes(1000)), "unpack it with bunzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "unpack it with unzstd"),
    "zip": (b"PK\x03\x04" + bytes(100), "unpack it with unzip"), "NRRD": (b"NRRD0004\n", "is NRRD"),
    "gzipped thrice": (gzip.compress(gzip.compress(gzip.compress(bytes(100)))), "more than twice"),
    "bomb of two gzips": (gzip.compress(gzip.compress(bytes(2 ** 10)) + bytes(2 ** 23)), "far larger inside"),
    "zeros": (bytes(600), "truncated or damaged (it does not start with a NIfTI header)"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_nifti_is_named_with_what_to_do(tmp_path, no_ants, case, suffix):
    content, expected = FOREIGN[case]
    (tmp_path / f"a{suffix}").write_bytes(content)
    assert_refused(tmp_path / f"a{suffix}", expected)


def test_a_pair_is_whole_or_says_what_is_missing(tmp_path, no_ants):
    image = as_pair(right(tmp_path / "a.nii"))
    before = sha256(image)
    assert digest_of(image.with_suffix(".hdr"), "sha256") == before
    content = image.read_bytes()
    image.write_bytes(content[:-1])
    assert_refused(image, "truncated or damaged")
    image.write_bytes(FOREIGN["LFS pointer"][0])
    assert_refused(image, "git lfs pull")
    image.write_bytes(content)
    header = bytearray(image.with_suffix(".hdr").read_bytes())
    header[148:150] = b"ab"                                # the note
    image.with_suffix(".hdr").write_bytes(header)
    assert sha256(image) != before                         # of both files
    image.with_suffix(".hdr").unlink()
    assert_refused(image, "a.hdr is not there; a volume of this name is a pair of .hdr and .img")
    analyze(image)
    assert_refused(image, "is Analyze 7.5")
    (tmp_path / "a.hdr.gz").write_bytes(b"")
    assert_refused(image, "a.hdr and a.hdr.gz: both are there")


def test_names_of_volumes():
    names = {"a.nii": "a", "a.nii.gz": "a", "A.NII.GZ": "A", "b.1.Nii": "b.1", "a.img": "a", "a.IMG.gz": "a"}
    assert {name: stem_of(name) for name in names} == names
    assert all(map(is_volume_name, names))
    for name in (".a.nii", "._a.nii.gz", "a.hdr", "a.nii.bz2", "a.nii.gz.part", "nii", "a.mgz", "a.json"):
        assert not is_volume_name(name)


# ---------------------------------------------------------------- found by their ID

def renamed(name: str):
    def change(path: Path) -> None:
        path.rename(path.with_name(name))
    return change


@pytest.mark.parametrize("name", ["s03.NII.GZ", "s03.Nii", "s03.nii.gz", "s03.img"])
def test_an_id_is_found_under_any_name_of_a_volume_by_every_door(root, name):
    path = root / "data" / SCAN
    other = path.with_name(name)
    if name == "s03.img":
        image = nib.load(path, mmap=False)
        nib.save(nib.Nifti1Pair(image.get_fdata(dtype=np.float32), image.affine), other)
        path.unlink()
    else:
        path.rename(other)                                 # its content stays plain
    assert check(root).train[2].pet == other
    (root / "raw").symlink_to(path.parent)
    assert "s03" in [scan.id for scan in find_scans(root / "raw")]
    raw, _ = find_plain(root / "raw", Choices())
    assert len(raw) == 10 and name in [scan.mri.name for scan in raw]
    for file in (root / "data_info").iterdir():
        file.unlink()
    rows = "".join(f"{scan},{i % 2}\n" for i, scan in enumerate(sum(LISTS.values(), [])))
    assert prepare(table=f"ID,label\n{rows}") == 0
    assert len(check(root).train) == 8


@pytest.mark.parametrize(("change", "expected"), [
    (renamed("S03.nii"), "s03.nii[.gz]: not there; did you mean S03? They differ in case"),
    (renamed("s-03.nii.gz"), "not there; did you mean s-03? They differ in blanks, dashes or underscores"),
    (renamed("s03.nii.bz2"), "not there; s03.nii.bz2 is: unpack it with bunzip2"),
    (renamed("s03.nii.zst"), "not there; s03.nii.zst is: unpack it with unzstd"),
    (renamed("s03.mgz"), "not there; s03.mgz is: convert it with mri_convert"),
    (renamed("s03.hdr"), "not there; s03.hdr is: its voxels, a file .img, are missing"),
    (renamed("other.nii"), "s03.nii[.gz]: not there\n"),
    (lambda path: shutil.copy(path, path.with_name("s03.NII.gz")), "s03.NII.gz and s03.nii: both are there"),
    (lambda path: path.with_name("s03.img").touch(), "s03.img and s03.nii: both are there; keep one"),
])
def test_an_id_that_is_not_found_is_told_what_lies_there_instead(root, change, expected):
    change(root / "data" / SCAN)
    assert expected in problems(root) + "\n"


# ---------------------------------------------------------------- links

def into_a_store(root: Path, link) -> None:
    """Move every volume of the cohort into a store, and link to it."""
    for path in sorted((root / "data").rglob("*.nii*")):
        store = root / "store" / path.parent.name / path.name
        store.parent.mkdir(parents=True, exist_ok=True)
        path.rename(store)
        link(path, store)


def absolute(path: Path, store: Path) -> None:
    path.symlink_to(store)


def relative(path: Path, store: Path) -> None:
    path.symlink_to(os.path.relpath(store, path.parent))


def by_another_link(path: Path, store: Path) -> None:
    between = store.with_name(f"link_{store.name}")
    between.symlink_to(store.name)
    relative(path, between)


def as_annex(path: Path, store: Path) -> None:
    """As git-annex has it: the object by its key, whose name is not the ID."""
    objects = path.parents[1] / ".git/annex/objects" / path.parent.name
    key = objects / f"MD5E-s1--{path.name}" / f"MD5E-s1--{path.name}"
    key.parent.mkdir(parents=True)
    store.rename(key)
    relative(path, key)


def object_without_suffix(path: Path, store: Path) -> None:
    """As data lakes have it: what is inside is told by the first bytes alone."""
    blob = store.parent / f"{path.parent.name}{path.name.split('.')[0]}"
    store.rename(blob)
    absolute(path, blob)


@pytest.mark.parametrize("link", [absolute, relative, by_another_link, as_annex, object_without_suffix])
def test_a_cohort_of_links_is_read_wherever_they_lead(root, link):
    expected = check(root)
    into_a_store(root, link)
    found = check(root)
    assert found.fingerprint("train", "test") == expected.fingerprint("train", "test")
    assert found.report == expected.report
    raw, _ = find_plain(root / "data/whole_MRI", Choices())
    assert len(find_scans(root / "data/whole_MRI")) == len(raw) == 10


def test_folders_may_be_links_to_links(root):
    (root / "data").rename(root / "lake")
    (root / "mount").symlink_to("lake")
    (root / "data").mkdir()
    for folder in ("whole_MRI", "whole_Abeta"):
        (root / "data" / folder).symlink_to(root / "mount" / folder)
    assert check(root).train


BROKEN = {
    "nothing": (lambda path: path.symlink_to("gone/a.nii"), "gone/a.nii, which is not there; mend the link"),
    "nothing by another link": (lambda path: (path.with_name("x").symlink_to("gone"), path.symlink_to("x")),
                                "gone, which is not there"),
    "annex": (lambda path: path.symlink_to("../.git/annex/objects/a/b/MD5E-s1--c.nii/MD5E-s1--c.nii"),
              "its content is not here; run `datalad get "),
    "itself": (lambda path: path.symlink_to(path.name), "is a link that leads in a circle"),
    "circle": (lambda path: (path.with_name("x").symlink_to(path.name), path.symlink_to("x")),
               "is a link that leads in a circle"),
    "folder": (lambda path: path.symlink_to("."), "it is not a file but a folder"),
    "pipe": (lambda path: (os.mkfifo(path.with_name("p")), path.symlink_to("p")), "(a link to "),
    "device": (lambda path: path.symlink_to("/dev/zero"), "(a link to /dev/zero)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_link_that_leads_to_no_file_is_refused_with_its_reason(root, no_ants, case):
    """By check, prepare and every reader alike."""
    path, (make, expected) = root / "data" / SCAN, BROKEN[case]
    path.unlink()
    make(path)
    message = problems(root)
    assert message.startswith("1 problem(s)") and expected in message
    for door in (read_volume, read_header, read_voxels, sha256):
        with pytest.raises(InputError) as error:
            door(path)
        assert expected in str(error.value)
    assert expected in header_problem(path)
    with pytest.raises(InputError) as error:
        read_mask(path, AFFINE, BOX)
    assert expected in str(error.value)
    with pytest.raises(InputError) as error:
        VolumeFolder(path.parent).find("s03")
    assert expected in str(error.value)


def test_prepare_names_the_true_reason_if_no_file_can_be_used(root, capsys):
    into_a_store(root, lambda path, _: path.symlink_to("../.git/annex/objects/a/MD5E-s1--c.nii"))
    assert prepare("--overwrite", table="ID,label\ns01,0\n") == 2
    message = capsys.readouterr().err
    assert "s01: file cannot be used" in message and "run `datalad get data/whole_MRI/s01.nii.gz`" in message
    assert "same name" not in message


def test_prepare_takes_links(root):
    into_a_store(root, relative)
    rows = "".join(f"{scan},{i % 2}\n" for i, scan in enumerate(sum(LISTS.values(), [])))
    assert prepare("--overwrite", table=f"ID,label\n{rows}") == 0


def test_a_folder_that_is_a_broken_link_is_named(root, capsys):
    (root / "data/whole_MRI").rename(root / "data/old")
    (root / "data/whole_MRI").symlink_to("gone")
    assert "data/whole_MRI: is a link to" in problems(root)
    assert prepare("--overwrite", table="ID,label\ns01,0\n") == 2
    assert "data/whole_MRI: is a link to" in capsys.readouterr().err


def test_an_id_with_a_way_out_is_refused_though_links_are_read(root):
    into_a_store(root, relative)
    (root / "data_info/train.txt").write_text("../store/s01\ns02\n")
    assert "'../store/s01' is not an ID" in problems(root)


def test_nothing_is_written_through_a_link(tmp_path):
    """A latent takes the place of a link that lies there, and leaves the file that this leads to."""
    store, z_0 = right(tmp_path / "store.nii.gz"), torch.rand(2, 4, 6, 4)
    before = store.read_bytes()
    latents = LatentCache(tmp_path, "key", Crop((3, 2, 3), (16, 24, 16)), (2, 4, 6, 4), AFFINE, {store: 1})
    latents.folder.mkdir(parents=True)
    (latents.folder / "a.nii.gz").symlink_to(store)
    latents.save(Scan("a", 0, store, store), z_0)
    assert store.read_bytes() == before
    assert not (latents.folder / "a.nii.gz").is_symlink()
    torch.testing.assert_close(latents.load(Scan("a", 0, store, store)), z_0)


# ---------------------------------------------------------------- dimensions and NaN

@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1, 1)])
def test_dimensions_of_one_after_the_third_are_dropped(tmp_path, no_ants, more):
    write_volume(tmp_path / "a.nii.gz", volume().reshape(*SHAPE, *more))
    assert read_header(tmp_path / "a.nii.gz").get_data_shape() == SHAPE
    assert_read(tmp_path / "a.nii.gz", volume())


@pytest.mark.parametrize(("shape", "kept"), [
    ((4, 5, 6, 2, 1), (4, 5, 6, 2)), ((4, 5, 6, 1, 3), (4, 5, 6, 1, 3)), ((4, 5, 1, 1), (4, 5, 1)),
    ((1, 4, 5, 6), (1, 4, 5, 6))])
def test_other_dimensions_stay(tmp_path, shape, kept):
    voxels = np.random.default_rng(0).random(shape)
    write_volume(tmp_path / "a.nii", voxels)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii")[0], voxels.reshape(kept).astype(np.float32))


def background(voxels):
    voxels[voxels == 0] = np.nan


def one_corner(voxels):
    voxels[:3, :3, :3] = np.nan


def pocket_in_the_background(voxels):
    """Joined to the face by zeros alone."""
    voxels[1, 1, 1] = np.nan


def rim(voxels):
    """What a division by an image that is 0 there leaves."""
    head = voxels > 0
    grown = head.copy()
    for axis in range(3):
        grown |= np.roll(head, 1, axis) | np.roll(head, -1, axis)
    voxels[grown & ~head] = np.nan


def last_slices(voxels):
    """The field of view ends inside the head."""
    voxels[:, :, 15:] = np.nan


OUTSIDE = [background, one_corner, pocket_in_the_background, rim, last_slices]


@pytest.mark.parametrize("spoil", OUTSIDE)
def test_nan_outside_the_brain_is_0_with_a_remark(tmp_path, no_ants, spoil):
    voxels = volume()
    spoil(voxels)
    write_volume(tmp_path / "a.nii.gz", voxels)
    assert_read(tmp_path / "a.nii.gz", np.nan_to_num(voxels))
    remarks = Remarks()
    read_volume(tmp_path / "a.nii.gz", remarks)
    assert remarks.lines() == [f"1 file had NaN outside the brain, read as 0: {tmp_path.name}/a.nii.gz"]


def one_voxel(voxels):
    voxels[11, 13, 11] = np.nan


def hole(voxels):
    """A hole of zeros with NaN in it has no way out."""
    voxels[9:13, 11:15, 9:13] = 0
    voxels[10, 12, 10] = np.nan


def missing_slice(voxels):
    voxels[:, :, 11] = np.nan


def both(voxels):
    background(voxels)
    one_voxel(voxels)


@pytest.mark.parametrize(("spoil", "count"), [
    (one_voxel, 1), (hole, 1), (missing_slice, SHAPE[0] * SHAPE[1]), (both, 1)])
def test_nan_inside_the_brain_is_refused(tmp_path, spoil, count):
    voxels = volume()
    spoil(voxels)
    assert nan_inside(voxels).sum() == count
    write_volume(tmp_path / "a.nii", voxels)
    for read in (read_volume, read_in_range, lambda path: read_mri(path, 99.5),
                 lambda path: read_scan(path, Remarks())):
        with pytest.raises(InputError, match=f"holds {count} NaN voxels inside the brain"):
            read(tmp_path / "a.nii")


def test_each_frame_is_looked_at_for_nan_by_itself(tmp_path):
    frames = np.stack([volume(), volume()], -1)
    frames[0, 0, 0, 1] = np.nan
    write_volume(tmp_path / "a.nii", frames)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii")[0], np.nan_to_num(frames))
    frames[11, 13, 11, 0] = np.nan
    write_volume(tmp_path / "a.nii", frames)
    with pytest.raises(InputError, match="1 NaN voxels inside"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("rest", [np.nan, 0])
def test_a_frame_of_nothing_but_nan_is_refused_unless_it_is_left_out(tmp_path, rest):
    frames = np.stack([volume(), volume(), volume()], -1)
    frames[..., 1] = np.nan
    frames[5, 5, 5, 1] = rest
    write_volume(tmp_path / "a.nii", frames)
    for wanted in (None, [0, 1], [1, 2]):
        with pytest.raises(InputError, match=r"nothing but NaN in frame 2 of the file, counted from 1"):
            read_scan(tmp_path / "a.nii", Remarks(), wanted)
    found = read_scan(tmp_path / "a.nii", Remarks(), [0, 2]).volumes
    np.testing.assert_array_equal(found, [volume(), volume()])
    recipe = Recipe(tmp_path, 2, "syn", 0.0, 3.0, None, False)
    raw = RawScan("a", tmp_path / "b.nii", tmp_path / "a.nii")
    with pytest.raises(InputError, match="nothing but NaN in frame 2"):
        read_pet(raw, recipe, Remarks())
    assert len(read_pet(raw, replace(recipe, frames=(3, 3)), Remarks()).volumes) == 1


# ---------------------------------------------------------------- NaN in larger heads

@pytest.fixture(scope="module", params=["sphere", "phantom"])
def head(request) -> np.ndarray:
    """A brain with 0 around it, [X, Y, Z] float32."""
    if request.param == "phantom":
        return np.where(load_template(2).brain, 0.6, 0).astype(np.float32)
    grid = np.indices((60, 70, 60)) - np.array([30, 35, 30]).reshape(3, 1, 1, 1)
    return np.where((grid ** 2).sum(0) < 25 ** 2, 0.6, 0).astype(np.float32)


def slices_of_the_brain(head, nan):
    for axis in range(3):
        cut = np.moveaxis(nan, axis, 0)
        middle = len(cut) // 2
        cut[middle:middle + 3] = np.moveaxis(head, axis, 0)[middle:middle + 3] > 0


def slices_but_a_zero(head, nan):
    nan[:, :, 30:32] = True
    nan[0, 0, 30:32] = False


def left_half(head, nan):
    nan |= head > 0
    nan[head.shape[0] // 2:] = False


def all_but_one(head, nan):
    nan |= head > 0
    nan[tuple(n // 2 for n in nan.shape)] = False


def front(head, nan):
    nan |= head > 0
    nan[:, :-head.shape[1] // 3] = False


@pytest.mark.parametrize("spoil", [slices_of_the_brain, slices_but_a_zero, left_half, all_but_one, front])
def test_a_part_of_a_brain_that_is_nan_with_0_around_it_is_refused(tmp_path, head, spoil):
    nan = np.zeros(head.shape, bool)
    spoil(head, nan)
    write_volume(tmp_path / "a.nii", np.where(nan, np.nan, head))
    with pytest.raises(InputError, match=f"holds {nan.sum()} NaN voxels inside the brain"):
        read_volume(tmp_path / "a.nii")


def around(head, nan):
    nan |= head == 0


def oblique_edge(head, nan):
    """A tilted field of view that cuts off the top."""
    x, y, z = np.indices(head.shape)
    nan |= z + 0.2 * x + 0.1 * y > head.shape[2] * 0.75 + 0.3 * head.shape[0] / 2


def end_slices(head, nan):
    nan[:, :, :20] = True


def corners(head, nan):
    nan[:12, :12] = nan[-12:, -12:] = True


def thin_rim(head, nan):
    nan |= binary_dilation(head > 0) & (head == 0)


@pytest.mark.parametrize("spoil", [around, oblique_edge, end_slices, corners, thin_rim])
def test_nan_around_a_brain_or_beyond_the_field_of_view_is_read(tmp_path, head, spoil):
    nan = np.zeros(head.shape, bool)
    spoil(head, nan)
    write_volume(tmp_path / "a.nii", np.where(nan, np.nan, head))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii")[0], np.where(nan, 0, head))


def test_in_a_mask_nan_is_outside_even_if_the_region_surrounds_it(tmp_path):
    mask = (volume() > 0).astype(np.float32)
    hole(mask)
    write_volume(tmp_path / "a.nii", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.nii", AFFINE, BOX), mask == 1)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (11, 13, 11)])
def test_infinite_voxels_are_refused_at_every_door(tmp_path, no_ants, value, place):
    voxels = volume()
    background(voxels)
    voxels[place] = value
    write_volume(tmp_path / "a.nii", voxels)
    assert_refused(tmp_path / "a.nii", "holds infinite voxels")


# ---------------------------------------------------------------- sform and qform, intensities

def two_forms(path: Path, qform: np.ndarray, codes: tuple[int, int] = (4, 1)) -> Path:
    """Write the volume with the common sform and another qform."""
    image = nib.Nifti1Image(volume(), AFFINE)
    image.set_sform(AFFINE, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


def turned_by(degrees: float, axis: int = 2) -> np.ndarray:
    """The common affine, turned about an axis through the origin."""
    angles = [0.0, 0.0, 0.0]
    angles[axis] = np.radians(degrees)                     # euler2mat: about z, y, x
    turn = np.eye(4)
    turn[:3, :3] = euler2mat(*angles[::-1])
    return turn @ AFFINE


@pytest.mark.parametrize(("qform", "codes"), [
    (turned_by(180), "LPS"), (np.diag([-1.0, 1, 1, 1]) @ AFFINE, "LAS"), (turned_by(180, 0), "RPI"),
    (turned_by(90), "ALS"), (turned_by(50, 0), None), (np.diag([1.0, 1, -1, 1]) @ AFFINE, "RAI")])
def test_forms_that_point_an_axis_elsewhere_are_refused_with_both(tmp_path, no_ants, qform, codes):
    path = two_forms(tmp_path / "a.nii", qform)
    codes = codes or "".join(nib.aff2axcodes(qform))
    assert_refused(path, f"its sform (axes RAS) and its qform (axes {codes}) disagree about directions, by ")
    assert_refused(path, "fslorient -copysform2qform FILE if the sform is right")


@pytest.mark.parametrize(("qform", "remarked"), [
    (turned_by(0.1), False), (turned_by(3), True), (turned_by(44, 0), True),
    (AFFINE + np.array([[0, 0, 0, 0.9]] + [[0] * 4] * 3), False),
    (AFFINE + np.array([[0, 0, 0, 1.1]] + [[0] * 4] * 3), True)])
def test_forms_that_exchange_no_direction_are_read_by_the_sform(tmp_path, no_ants, qform, remarked):
    path, remarks = two_forms(tmp_path / "a.nii", qform), Remarks()
    assert_read(path, volume())
    np.testing.assert_allclose(read_volume(path, remarks)[1], AFFINE)
    assert len(remarks.lines()) == remarked
    assert all("1 file had an sform and a qform more than 1 mm apart" in line for line in remarks.lines())


@pytest.mark.parametrize("codes", [(0, 1), (1, 0)])
def test_a_form_without_a_code_does_not_count(tmp_path, codes):
    path = two_forms(tmp_path / "a.nii", turned_by(180), codes)
    found = nib.aff2axcodes(nib.load(path).affine)
    assert found == (("L", "P", "S") if codes[1] else ("R", "A", "S"))
    read_volume(path)


@pytest.mark.parametrize("low", [-0.9e-5, -1e-4, -0.0099])
def test_ringing_is_clipped_for_check_and_synthesize_and_kept_for_raw_scans(tmp_path, no_ants, low):
    voxels = volume()
    voxels[voxels == 0] = low
    write_volume(tmp_path / "a.nii", voxels)
    found = through_all_doors(tmp_path / "a.nii")
    expected = voxels if low > -1e-5 else voxels.clip(0, 1)
    np.testing.assert_array_equal(found["check"], expected)
    np.testing.assert_array_equal(found["synthesize"], expected)
    np.testing.assert_array_equal(found["preprocess"], voxels)


def test_remarks_are_said_once_a_kind_with_a_number_and_examples(root):
    for path in sorted((root / "data/whole_MRI").iterdir())[:5]:
        voxels = nib.load(path, mmap=False).get_fdata(dtype=np.float32)
        background(voxels)
        write_volume(path, voxels)
    two_forms(root / "data" / SCAN, turned_by(5))
    remarks = [line for line in check(root).report.splitlines() if "remark" in line]
    assert remarks == [
        "  remark      5 files had NaN outside the brain, read as 0: whole_MRI/s01.nii.gz, "
        "whole_MRI/s02.nii.gz, whole_MRI/s03.nii.gz, ...",
        "  remark      1 file had an sform and a qform more than 1 mm apart, though alike in their "
        "directions; the sform counts: whole_Abeta/s03.nii"]


def test_the_command_reads_a_cohort_of_links_with_other_names_and_nan(root, capsys):
    into_a_store(root, relative)
    [pet] = (root / "data/whole_Abeta").glob("s04*")
    pet.unlink()
    voxels = volume()[..., None]
    background(voxels)
    write_volume(root / "store/whole_Abeta/s04.nii.gz", voxels)
    (root / "data/whole_Abeta/s04.NII").symlink_to(root / "store/whole_Abeta/s04.nii.gz")
    assert main.main(["--stages", "check", *arguments(TINY)]) == 0
    assert "1 file had NaN outside the brain, read as 0: whole_Abeta/s04.NII" in capsys.readouterr().out
