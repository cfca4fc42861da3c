"""The cohort's reader: inputs that it accepts, inputs that it refuses, and where voxels end up in space."""
import gzip
import os
import re
import zlib

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, LISTS, SHAPE, reorient, write_volume

from config import Config
from dataset import check_cohort
from imaging.cache import VolumeCache
from imaging.grids import Crop
from imaging.volumes import read_volume, save_synthesis
from labels.people import read_demographics
from utils import InputError

PATTERN = Config().subject_pattern
CROP = Crop((3, 2, 3), (16, 24, 16))


def check(root, **changes):
    arguments = {"image_size": SHAPE, "num_classes": 2, "subject_pattern": PATTERN} | changes
    return check_cohort(root / "data", root / "data_info", **arguments)


def problems(root, **changes) -> str:
    with pytest.raises(InputError) as error:
        check(root, **changes)
    return str(error.value)


def test_a_right_cohort_passes_and_the_report_counts_it(root):
    cohort = check(root)
    assert [scan.id for scan in cohort.train] == LISTS["train"]
    assert [scan.label for scan in cohort.test] == [0, 1]
    np.testing.assert_allclose(cohort.affine, AFFINE)
    mri, pet = (
        max(nib.load(path).get_fdata().max() for path in (root / "data" / name).iterdir())
        for name in ("whole_MRI", "whole_Abeta")
    )
    assert cohort.report.splitlines() == [
        "  list         subjects  label 0  label 1",
        "  train               6        3        3",
        "  validation          2        1        1",
        "  test                2        1        1",
        "  grid        22 x 27 x 22 voxels of 8 x 8 x 8 mm, first at (-86.5, -122.5, -68.5) mm",
        "  stored as   RAS in 20 files",
        f"  MRI         intensities from 0.000 to {mri:.3f}",
        f"  PET         intensities from 0.000 to {pet:.3f}"]


def test_the_fingerprint_follows_what_is_in_the_lists_and_not_how_it_is_stored(root):
    """Who, in which order, with which label and voxels, and where in space; not orientation, compression, 4
    microns or other lists."""
    before = check(root)
    mri, pet = root / "data/whole_MRI/s03.nii.gz", root / "data/whole_Abeta/s03.nii"
    assert re.fullmatch("[0-9a-f]{16}", before.fingerprint("train"))
    assert (
        len(
            {
                before.fingerprint(*splits)
                for splits in (["train"], ["validation"], ["train", "test"], ["test", "train"])
            }
        )
        == 4
    )

    reorient(mri, "LPS")
    nib.save(nib.load(pet, mmap=False), pet.with_suffix(".nii.gz"))
    pet.unlink()
    edit("test.txt", "s10\n", "")(root)
    shift_all(root, 0.004)
    same = check(root)
    assert same.fingerprint("train", "validation") == before.fingerprint("train", "validation")
    assert same.fingerprint("test") != before.fingerprint("test")

    seen = {before.fingerprint("train")}
    for i, change in enumerate(
        (edit("train.txt", "s03\ns04\n", "s04\ns03\n"), edit("train.txt", "s06\n", ""),
         edit("data_info.csv", "s03,0", "s03,1"), one_voxel(mri), one_voxel(pet.with_suffix(".nii.gz")),
         shift_all)
    ):
        change(root)
        seen.add(check(root).fingerprint("train"))
        assert len(seen) == i + 2


def one_voxel(path):
    """A change of one voxel by little, which leaves smallest and largest as they are."""
    def change(root):
        image = nib.load(path, mmap=False)
        voxels = image.get_fdata(dtype=np.float32)
        voxels[11, 13, 11] *= 0.999
        nib.save(nib.Nifti1Image(voxels, image.affine), path)
    return change


def shift_all(root, by: float = 1.0) -> None:
    """Move all volumes to the right, in mm."""
    for path in (root / "data").rglob("*.nii*"):
        image = nib.load(path, mmap=False)
        write_volume(path, image.get_fdata(dtype=np.float32),
                     image.affine + np.array([[0, 0, 0, by]] + [[0] * 4] * 3))


def test_byte_order_marks_carriage_returns_and_blank_lines_are_harmless(root):
    before = check(root)
    for name in ("train.txt", "data_info.csv"):
        path = root / "data_info" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert check(root).train == before.train


def test_an_id_keeps_its_leading_zeros_and_a_label_may_be_written_as_1_0(root):
    for path in (root / "data").rglob("s01.nii*"):
        path.rename(path.with_name(path.name.replace("s01", "007")))
    (root / "data_info" / "train.txt").write_text("007\ns02\n")
    table = root / "data_info" / "data_info.csv"
    table.write_text(table.read_text().replace("s01,0", "007,1.0"))
    scan = check(root).train[0]
    assert (scan.id, scan.label) == ("007", 1)


@pytest.mark.parametrize("folders", [(), ("whole_MRI",), ("whole_MRI", "whole_Abeta")])
def test_folders_without_a_volume_say_how_to_place_a_cohort_and_name_the_demo(tmp_path, folders):
    for folder in folders:                                 # as they come with the project
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "README.md").write_text("Place the volumes here.")
    message = problems(tmp_path)
    for part in ("whole_MRI/<ID>.nii", "whole_Abeta", "data_info.csv", "train.txt"):
        assert part in message
    assert message.endswith("To see everything run on a digital phantom first: python main.py --preset demo")


def edit(name, old, new):
    def change(root):
        path = root / "data_info" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return change


def replace_voxels(change_voxels, modality="whole_Abeta", affine=AFFINE):
    def change(root):
        path = next((root / "data" / modality).glob("s03.nii*"))
        write_volume(path, change_voxels(nib.load(path, mmap=False).get_fdata(dtype=np.float32)), affine)
    return change


def truncate(name):
    def change(root):
        path = root / "data" / name
        path.write_bytes(path.read_bytes()[:-200])
    return change


def replace_file(name, make):
    """A change that puts there what make(path) writes, in place of a file of the cohort."""
    def change(root):
        path = root / name
        path.unlink()
        make(path)
    return change


def set_header(name, **fields):
    def change(root):
        path = root / "data" / name
        content = bytearray(path.read_bytes())
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for field, value in fields.items():
            header[field] = value
        content[:348] = header.binaryblock
        path.write_bytes(content)
    return change


def with_nan(voxels):
    voxels[11, 13, 11] = np.nan                            # in the middle of the head
    return voxels


PET = "whole_Abeta/s03.nii"
SHIFTED = AFFINE + np.array([[0, 0, 0, 1]] + [[0] * 4] * 3)
BAD = {
    "missing MRI": (lambda root: (root / "data/whole_MRI/s03.nii.gz").unlink(),
                    ["whole_MRI/s03.nii[.gz]: not there"]),
    "both suffixes": (lambda root: (root / "data/whole_MRI/s03.nii").write_bytes(b""),
                      ["whole_MRI/s03.nii and s03.nii.gz: both"]),
    "truncated gzip": (truncate("whole_MRI/s03.nii.gz"), ["whole_MRI/s03.nii.gz: truncated or damaged"]),
    "truncated nii": (truncate("whole_Abeta/s03.nii"), ["whole_Abeta/s03.nii: truncated or damaged"]),
    "not NIfTI": (lambda root: (root / "data/whole_Abeta/s03.nii").write_text("text"),
                  ["whole_Abeta/s03.nii: cannot be read as NIfTI"]),
    "4D": (replace_voxels(lambda v: np.stack([v, v], -1)), ["s03.nii: has 4 dimensions (22, 27, 22, 2)"]),
    "other shape": (replace_voxels(lambda v: v[1:]), ["s03.nii: has 21x27x22 voxels", "expected 22x27x22"]),
    "pair on two grids": (replace_voxels(lambda v: v, affine=SHIFTED), ["s03: MRI", "are not on one grid"]),
    "damaged at its start": (lambda root: flip(root / "data/whole_MRI/s03.nii.gz", 14),
                             ["whole_MRI/s03.nii.gz: cannot be read as NIfTI"]),
    "colours": (replace_voxels(lambda v: np.zeros(v.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
                ["s03.nii: holds [('R'"]),
    "contradictory sides": (lambda root: mirror_qform(root / "data/whole_Abeta/s03.nii"),
                            ["its sform (axes RAS) and its qform (axes LAS) disagree about directions"]),
    "no affine": (lambda root: strip_affine(root / "data/whole_Abeta/s03.nii"),
                  ["s03.nii: has neither sform nor qform"]),
    "NaN": (replace_voxels(with_nan), ["s03.nii: holds 1 NaN voxels inside the brain"]),
    "infinite": (replace_voxels(lambda v: np.where(v == v.max(), np.inf, v)),
                 ["s03.nii: holds infinite voxels"]),
    "constant": (replace_voxels(np.zeros_like), ["s03.nii: every voxel is 0"]),
    "too bright": (
        replace_voxels(lambda v: 200 * v),
        ["s03.nii: intensities from 0 to", "expected within [0, 1] (0.01 beyond would be clipped), PET "
         "scaled by one constant for all\n"],
    ),
    "negative": (replace_voxels(lambda v: v - 0.1), ["s03.nii: intensities from -0.1"]),
    "no label": (edit("data_info.csv", "s03,0\n", ""), ["data_info.csv: s03 has no rows; expected one row"]),
    "two labels": (edit("data_info.csv", "s03,0\n", "s03,0\ns03,1\n"), ["data_info.csv: s03 has 2 rows"]),
    "doubtful label": (edit("data_info.csv", "s03,0\n", "s03,0.5\n"), ["s03 has the label '0.5'"]),
    "label out of range": (edit("data_info.csv", "s03,0\n", "s03,2\n"),
                           ["s03 has the label '2'; expected one row with a label in 0 .. 1"]),
    "no label column": (edit("data_info.csv", "label", "status"),
                        ["column(s) label missing, found ID, status"]),
    "ID twice in a list": (edit("train.txt", "s03\n", "s03\ns03\n"), ["train.txt: s03 stands 2 times"]),
    "ID in two lists": (
        edit("test.txt", "s09\n", "s03\n"),
        [
            "subject s03 is in more than one list: train.txt as s03, test.txt as s03; keep all its scans in "
            "one\n"
        ],
    ),
    "empty list": (lambda root: (root / "data_info/validation.txt").write_text("\n \n"),
                   ["validation.txt: holds no ID"]),
    "missing list": (lambda root: (root / "data_info/validation.txt").unlink(),
                     ["validation.txt: cannot be read"]),
    "ID that is a path": (
        edit("train.txt", "s03\n", "../data/s03\n"),
        [
            "train.txt: '../data/s03' is not an ID; expected a file name without folder and without .nii or "
            ".nii.gz, of at most 200 letters, digits, '.', '_' and '-'\n"
        ],
    ),
    "ID of a megabyte": (edit("train.txt", "s03\n", "s" * 10**6 + "\n"),
                         ["train.txt: 'sss", "sss... is not an ID", "at most 200"]),
    "ID with a NUL": (edit("train.txt", "s03\n", "s\0\n"), ["train.txt: line 3 holds the control character"]),
    "list that is a pipe": (replace_file("data_info/train.txt", os.mkfifo),
                            ["train.txt: cannot be read: it is not a file but"]),
    "list without end": (lambda root: os.truncate(root / "data_info/train.txt", 2**26 + 1),
                         ["train.txt: has 67108865 bytes"]),
    "table that is a folder": (replace_file("data_info/data_info.csv", os.mkdir),
                               ["data_info.csv: cannot be read: it is not a file but"]),
    "no ID column": (edit("data_info.csv", "ID,label", "name,label"),
                     ["column(s) ID missing, found name, label"]),
    "two label columns": (edit("data_info.csv", "ID,label", "ID,label,label"),
                          ["column(s) label stand twice"]),
    "label of a megabyte": (edit("data_info.csv", "s03,0", "s03," + "1" * 10**6),
                            ["s03 has the label '111", "1...; expected"]),
    "pipe": (replace_file(f"data/{PET}", os.mkfifo),
             ["s03.nii: cannot be read: it is not a file but a folder, a pipe"]),
    "folder": (replace_file(f"data/{PET}", os.mkdir),
               ["s03.nii: cannot be read: it is not a file but a folder, a pipe"]),
    "link to a device": (replace_file(f"data/{PET}", lambda path: path.symlink_to("/dev/zero")),
                         ["s03.nii: cannot be read: it is not a file but", "(a link to /dev/zero)"]),
    "link to nothing": (replace_file(f"data/{PET}", lambda path: path.symlink_to("x")),
                        ["s03.nii: is a link to", "whole_Abeta/x, which is not there; mend the link"]),
    "link to itself": (replace_file(f"data/{PET}", lambda path: path.symlink_to(path.name)),
                       ["s03.nii: is a link that leads in a circle"]),
    "absurd size": (set_header(PET, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
                    ["header claims 30000x30000x30000 voxels"]),
    "size beyond its end": (set_header(PET, dim=[3, 22, 27, 23, 1, 1, 1, 1]),
                            ["bytes 352 to 55000, 52624 found"]),
    "negative size": (set_header(PET, dim=[3, 22, -27, 22, 1, 1, 1, 1]), ["has 3 dimensions (22, -27, 22)"]),
    "no size": (set_header(PET, dim=[3, 22, 0, 22, 1, 1, 1, 1]), ["has 3 dimensions (22, 0, 22)"]),
    "one dimension": (set_header(PET, dim=[1, 22, 27, 22, 1, 1, 1, 1]), ["has 1 dimensions (22,)"]),
    "NaN beside a scale": (set_header(PET, scl_slope=2, scl_inter=np.nan),
                           ["s03.nii: its scale factor scl_slope 2 counts, but its scl_inter nan is no"]),
    "NaN in the affine": (set_header(PET, srow_x=[np.nan, 0, 0, 0]), ["s03.nii: its affine holds nan"]),
    "flat affine": (set_header(PET, srow_x=[0, 8, 0, 0]), ["s03.nii: its affine cannot be inverted"]),
    "impossible qform": (set_header(PET, qform_code=1, quatern_b=9),
                         ["s03.nii: cannot be read as NIfTI: truncated or"]),
    "voxels before their header's end": (set_header(PET, vox_offset=0), ["voxels in the bytes 0 to 52272"]),
    "ID with its suffix": (edit("train.txt", "s03\n", "s03.nii.gz\n"), ["'s03.nii.gz' is not an ID"]),
}


def flip(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def mirror_qform(path) -> None:
    image = nib.load(path, mmap=False)
    image.set_sform(image.affine, 2)
    image.set_qform(image.affine @ np.diag([-1, 1, 1, 1]), 2)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), path)


def strip_affine(path) -> None:
    image = nib.load(path, mmap=False)
    image = nib.Nifti1Image(image.get_fdata(dtype=np.float32), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, path)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_named_with_what_is_wrong(root, case):
    spoil, expected = BAD[case]
    spoil(root)
    message = problems(root)
    for part in expected:
        assert part in message + "\n"
    assert message.startswith("1 problem(s)"), message


def test_all_problems_are_listed_at_once(root):
    for case in ("missing MRI", "empty list"):
        BAD[case][0](root)
    edit("data_info.csv", "s04,1\n", "s04,x\n")(root)
    replace = root / "data/whole_Abeta/s09.nii"
    write_volume(replace, np.full(SHAPE, 3, np.float32))
    message = problems(root)
    for part in ("4 problem(s)", "s03.nii[.gz]: not there", "validation.txt", "'x'", "every voxel is 3"):
        assert part in message


def test_a_problem_of_one_file_hides_none_of_the_next_files(root):
    """One of every kind, in the order of the lists, and each in a subject of its own."""
    data = root / "data"
    (data / "whole_MRI/s01.nii.gz").write_bytes(b"text")
    write_volume(data / "whole_Abeta/s02.nii", np.ones((22, 27, 21), np.float32))
    for name, affine in (("whole_MRI/s03.nii.gz", SHIFTED), ("whole_Abeta/s05.nii", SHIFTED),
                         ("whole_MRI/s05.nii.gz", SHIFTED)):
        write_volume(data / name, nib.load(data / name, mmap=False).get_fdata(dtype=np.float32), affine)
    strip_affine(data / "whole_Abeta/s06.nii")
    for name, change in (("s07", with_nan), ("s08", np.zeros_like), ("s09", lambda v: 3 * v),
                         ("s10", lambda v: -v)):
        write_volume(data / f"whole_Abeta/{name}.nii",
                     change(nib.load(data / f"whole_Abeta/{name}.nii", mmap=False).get_fdata()))
    message = problems(root)
    for part in ("10 problem(s) in the data:\n  ", "s01.nii.gz: cannot be read as NIfTI",
                 "s02.nii: has 22x27x21", "s03: MRI (from (-85.5,", "s05.nii.gz: from (-85.5,",
                 "s05.nii: from (-85.5,", "s06.nii: has neither", "s07.nii: holds 1 NaN",
                 "s08.nii: every voxel", "s09.nii: intensities from 0 to", "s10.nii: intensities from -"):
        assert part in message
    assert len(message.splitlines()) == 11


def test_small_differences_that_tools_leave_are_accepted(root):
    """Affines within 0.1 mm, intensities within 1e-5 of [0, 1], a qform that does not count, and a table with
    spaces and more columns."""
    pet, mri = root / "data/whole_Abeta/s03.nii", root / "data/whole_MRI/s03.nii.gz"
    voxels = nib.load(pet, mmap=False).get_fdata(dtype=np.float32)
    voxels[0, 0, 0], voxels[1, 0, 0] = -0.9e-5, 1 + 0.9e-5
    write_volume(pet, voxels, AFFINE + np.array([[0, 0, 0, 0.09]] + [[0] * 4] * 3))
    mirror_qform(mri)
    image = nib.load(mri, mmap=False)
    image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), mri)
    edit("data_info.csv", "s03,0\n", " s03 , 0 \n")(root)
    edit("train.txt", "s03\n", "  s03\t\n")(root)
    scan = check(root).train[2]
    assert (scan.id, scan.label) == ("s03", 0)


def test_two_affines_that_agree_are_accepted_for_voxels_of_any_size(root):
    affine = AFFINE @ np.diag([-1 / 16, 1 / 16, 1 / 16, 1])
    for path in (root / "data").rglob("*.nii*"):
        image = nib.Nifti1Image(nib.load(path, mmap=False).get_fdata(dtype=np.float32), affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        nib.save(image, path)
    report = check(root).report
    assert "22 x 27 x 22 voxels of 0.5 x 0.5 x 0.5 mm" in report
    assert "LAS in 20 files; all are brought to RAS" in report


def test_far_from_the_origin_a_pair_must_agree_as_near_it(root):
    shift_all(root, 5e4)
    check(root)
    replace_voxels(lambda v: v, affine=AFFINE + np.array([[0, 0, 0, 5e4 + 0.2]] + [[0] * 4] * 3))(root)
    assert "s03: MRI" in problems(root)


def with_extremes(root, low, high) -> np.ndarray:
    """Give a PET of the cohort these extremes of its intensities; returns what was written."""
    pet = root / "data/whole_Abeta/s03.nii"
    voxels = nib.load(pet, mmap=False).get_fdata(dtype=np.float32)
    voxels[0, 0, 0], voxels[1, 0, 0] = low, high
    write_volume(pet, voxels)
    return voxels


@pytest.mark.parametrize(("low", "high"), [(-0.011, 1.0), (0.0, 1.011), (-0.5, 0.9), (-0.011, 1.5)])
def test_intensities_beyond_what_interpolation_leaves_are_refused(root, low, high):
    with_extremes(root, low, high)
    assert f"s03.nii: intensities from {low:g} to {high:g}" in problems(root)


@pytest.mark.parametrize(("low", "high"), [(-1.1e-5, 1.0), (0.0, 1 + 1.2e-5), (-1e-4, 0.9), (-0.009, 1.009)])
def test_what_interpolation_leaves_outside_the_range_is_clipped_with_a_remark(root, low, high):
    """In the check, for its checksum, and in the cache alike."""
    voxels, pet = with_extremes(root, low, high), root / "data/whole_Abeta/s03.nii"
    cohort = check(root)
    assert cohort.report.splitlines()[-1] == (
        "  remark      1 file had intensities up to 0.01 outside [0, 1], as interpolation leaves; clipped to "
        "it: whole_Abeta/s03.nii")
    seen = np.clip(voxels, 0, 1)
    assert cohort.checksums[pet] == zlib.crc32(np.ascontiguousarray(seen))
    for path in (pet, pet.with_suffix(".nii.gz")):
        write_volume(path, voxels)
        whole = Crop((0, 0, 0), SHAPE)
        cache = VolumeCache([path], whole, place="ram", checksums={path: cohort.checksums[pet]})
        np.testing.assert_array_equal(cache.read(path), seen)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 1), (2, 2), (0, 3), (1, 3), (2, 3)])
def test_a_pair_that_is_apart_at_any_corner_is_refused(root, row, column):
    """A shift of 0.2 mm, or a voxel so much larger that it adds up to that at the far end of the volume."""
    affine = AFFINE.copy()
    affine[row, column] += 0.2 if column == 3 else 0.2 / (SHAPE[column] - 1)
    replace_voxels(lambda v: v, affine=affine)(root)
    assert "s03: MRI" in problems(root)


def test_the_grid_that_most_files_share_is_the_right_one_even_if_the_first_files_have_another(root):
    for name in ("s01", "s02"):
        for path in (root / "data").rglob(f"{name}.nii*"):
            write_volume(path, nib.load(path, mmap=False).get_fdata(dtype=np.float32), SHIFTED)
    message = problems(root)
    assert "4 problem(s)" in message
    assert all(f"{name}.nii" in message for name in ("s01", "s02"))
    assert "s03" not in message
    assert "to (81.5, 85.5, 99.5) mm; bring all to one grid" in message


@pytest.mark.parametrize("modality", ["whole_MRI", "whole_Abeta"])
def test_a_cohort_of_one_modality_is_one_with_missing_files(root, modality):
    for path in (root / "data" / modality).iterdir():
        path.unlink()
    assert problems(root).count(f"{modality}/s") == 10


@pytest.mark.parametrize(
    ("one", "other"),
    [("037S6046", "037_S_6046_m12"), ("sub-ADNI037S6046_ses-M00", "037S6046"),
     ("sub-01_ses-M00", "sub-01_ses-M12"), ("p7_bl", "p7_m24"), ("p7_2015-03-02", "p7_20170302"),
     ("037_S6046", "037_S_6046")],
)
def test_two_visits_of_a_subject_in_two_lists_are_refused(root, one, other):
    for old, new in (("s01", one), ("s09", other)):
        for path in list((root / "data").rglob(f"{old}.nii*")):
            path.rename(path.with_name(path.name.replace(old, new)))
        for path in (root / "data_info").iterdir():
            path.write_text(path.read_text().replace(old, new))
    assert f"train.txt as {one}, test.txt as {other}" in problems(root)


def test_subjects_whose_roster_numbers_of_five_digits_begin_alike_are_different_subjects(root):
    for old, new in (("s01", "941_S_10087"), ("s09", "941_S_10088")):
        for path in list((root / "data").rglob(f"{old}.nii*")):
            path.rename(path.with_name(path.name.replace(old, new)))
        for path in (root / "data_info").iterdir():
            path.write_text(path.read_text().replace(old, new))
    assert check(root).test[0].id == "941_S_10088"


def test_other_affines_of_one_shape_are_refused(root):
    for path in (root / "data").rglob("s05.nii*"):
        write_volume(path, nib.load(path, mmap=False).get_fdata(dtype=np.float32), SHIFTED)
    message = problems(root)
    assert "2 problem(s)" in message
    assert (
        "s05.nii: from (-85.5, -122.5, -68.5) to (82.5, 85.5, 99.5) mm, most of the cohort from (-86.5, "
        "-122.5, -68.5)"
        in message
    )


def test_a_training_list_that_fills_no_batch_or_lacks_a_label_is_refused(root):
    (root / "data_info" / "train.txt").write_text("s01\ns03\n")
    message = problems(root, smallest_training_list=3, least_of_each_label=2)
    path = root / "data_info" / "train.txt"
    assert message.splitlines()[1:] == [
        f"  {path}: 2 usable subjects do not fill the 3 of one step (batch size x processes)",
        f"  {path}: not all of the 2 labels occur at least 2 times, so none can be left out to see how well "
        "the MRI predicts it; --label_at_sampling none goes without a prediction",
    ]
    path.write_text("s01\ns02\ns03\n")
    assert "not all of the 2 labels occur at least 2 times" in problems(root, smallest_training_list=3,
                                                                        least_of_each_label=2)
    assert len(check(root, smallest_training_list=3).train) == 3
    path.write_text("s01\ns02\ns03\ns04\n")
    assert len(check(root, smallest_training_list=4, least_of_each_label=2).train) == 4
    path.write_text("s01\n")
    assert len(check(root).train) == 1                     # neither is asked for


def test_an_id_in_which_the_pattern_finds_no_name_is_a_subject_of_its_own(root):
    assert len(check(root, subject_pattern=r"^(\d+)?").train) == 6


def test_ids_that_differ_in_their_underscores_are_different_subjects(root):
    for old, new in (("s01", "1_11"), ("s09", "11_1")):
        for path in list((root / "data").rglob(f"{old}.nii*")):
            path.rename(path.with_name(path.name.replace(old, new)))
        for path in (root / "data_info").iterdir():
            path.write_text(path.read_text().replace(old, new))
    assert check(root).test[0].id == "11_1"


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PIR"])
def test_other_storage_orientations_give_the_same_voxels(root, codes):
    path = root / "data" / "whole_Abeta" / "s03.nii"
    before, affine = read_volume(path)
    reorient(path, codes)
    assert nib.aff2axcodes(nib.load(path).affine) == tuple(codes)
    assert not np.array_equal(nib.load(path, mmap=False).get_fdata().shape, SHAPE) or codes != "PIR"
    after, affine_after = read_volume(path)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_allclose(affine_after, affine)
    assert f"stored as   RAS in 19 files, {codes} in 1 files; all are brought to RAS" in check(root).report


def test_scale_factors_of_integer_files_are_applied(tmp_path):
    voxels = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii.gz")
    found, _ = read_volume(tmp_path / "a.nii.gz")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, voxels, atol=2e-5)


def test_a_flipped_bit_in_a_gz_is_noticed(root):
    path = root / "data" / "whole_MRI" / "s03.nii.gz"
    content = bytearray(path.read_bytes())
    for position in np.random.default_rng(0).integers(200, len(content), 20):
        damaged = content.copy()
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_volume(path)


def test_a_folder_of_links_may_be_a_link_and_so_may_a_file_to_one_in_its_folder(root):
    (root / "data").rename(root / "elsewhere")
    (root / "data").mkdir()
    for folder in ("whole_MRI", "whole_Abeta"):
        (root / "data" / folder).symlink_to(root / "elsewhere" / folder)
    path = root / "elsewhere" / "whole_Abeta" / "s03.nii"
    path.rename(path.with_name("old.nii"))
    path.symlink_to("old.nii")
    assert check(root).train[2].id == "s03"


def test_bytes_after_the_voxels_are_read_but_no_more_than_padding(tmp_path):
    path, voxels = tmp_path / "a.nii.gz", np.random.default_rng(0).random(SHAPE).astype(np.float32)
    write_volume(path, voxels)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content + bytes(2 ** 20)))
    np.testing.assert_array_equal(read_volume(path)[0], voxels)
    path.write_bytes(gzip.compress(content + bytes(2 ** 20 + 1)))
    with pytest.raises(InputError, match="unpacks to more than 1048576 bytes behind its voxels"):
        read_volume(path)


def test_age_and_sex_are_read_or_their_lack_is_said(root):
    scans, path = check(root).test, root / "data_info" / "data_info.csv"
    assert read_demographics(root / "data_info", [scan.id for scan in scans]) == (None,
                                                            f"{path} has no column age and no column sex")
    path.write_text("ID,label,Age,SEX\ns09,0,71.5,f\ns10,1,80, M\ns01,0,3000,M\n")
    table, problem = read_demographics(root / "data_info", [scan.id for scan in scans])
    assert (table.to_dict("list"), problem) == (
        {"ID": ["s09", "s10"], "age": [71.5, 80.0], "sex": ["F", "M"]},
        "",
    )
    path.write_text("ID,label,Age,SEX\ns09,0,71.5,f\n")  # s10 was taken out after the check
    assert (
        "1 scans have no sex or no age from 1 to 120 years (s10)"
        in read_demographics(root / "data_info", [scan.id for scan in scans])[1]
    )


@pytest.mark.parametrize(
    ("age", "sex", "right"),
    [("1", "F", True), ("120", "m", True), ("0.9", "F", False), ("120.1", "F", False), ("", "F", False),
     ("old", "F", False), ("70", "", False), ("70", "-4", False), ("70", "-1", False), ("70", "na", False),
     ("70", "NaN", False)],
)
def test_an_age_or_a_sex_that_is_none_is_not_used(root, age, sex, right):
    scans, path = check(root).test, root / "data_info" / "data_info.csv"
    # the first of two counts
    path.write_text(f" label,sex , AGE,ID,age\n1,F,70,s09,999\n1,{sex},{age}, s10 ,999\n0,X,1,s10,999\n")
    table, problem = read_demographics(root / "data_info", [scan.id for scan in scans])
    assert (table is not None, problem == "") == (right, right)
    if right:
        assert table.to_dict("list") == {"ID": ["s09", "s10"], "age": [70.0, float(age)],
                                         "sex": ["F", sex.upper()]}
    else:
        assert problem == f"{path}: 1 scans have no sex or no age from 1 to 120 years (s10)"


def test_of_many_scans_without_an_age_five_are_named(root):
    scans, path = check(root).train, root / "data_info" / "data_info.csv"
    path.write_text("ID,age,sex\n")
    assert read_demographics(root / "data_info", [scan.id for scan in scans]) == (
        None, f"{path}: 6 scans have no sex or no age from 1 to 120 years (s01, s02, s03, s04, s05)")
    path.write_text("ID,age\ns01,70\n")
    assert read_demographics(root / "data_info", [scan.id for scan in scans]) == (
        None,
        f"{path} has no column sex",
    )
    path.write_text("name,age,sex\ns01,70,F\n")
    with pytest.raises(InputError, match="column\\(s\\) ID missing"):
        read_demographics(root / "data_info", [scan.id for scan in scans])


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PIR"])
def test_a_synthesis_overlays_its_mri(root, codes):
    """What is put in at a place in the world is found there again, on the MRI's own grid with its own
    codes."""
    mri = root / "data" / "whole_MRI" / "s01.nii.gz"
    reorient(mri, codes)
    image = nib.load(mri, mmap=False)
    image.set_sform(image.affine, code=4)
    image.set_qform(image.affine, code=1)
    nib.save(image, mri)
    x_hat = np.zeros(CROP.size, np.float32)
    x_hat[2, 5, 11] = 0.7
    save_synthesis(root / "out.nii.gz", x_hat, mri, CROP, "note")
    out = nib.load(root / "out.nii.gz")
    assert out.shape == image.shape
    np.testing.assert_allclose(out.affine, image.affine)
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (4, 1)
    assert out.get_data_dtype() == np.float32
    voxel = np.argwhere(out.get_fdata() > 0)
    assert len(voxel) == 1
    world = nib.affines.apply_affine(out.affine, voxel[0])
    np.testing.assert_allclose(world, nib.affines.apply_affine(AFFINE, np.add(CROP.start, (2, 5, 11))))
    np.testing.assert_allclose(out.get_fdata().max(), 0.7, rtol=1e-6)


def test_the_latent_affine_places_a_latent_voxel_in_the_middle_of_its_block():
    affine = CROP.affine(AFFINE, downscale=4)
    corners = [np.add(CROP.start, (4, 8, 0)), np.add(CROP.start, (7, 11, 3))]
    middle = np.mean([nib.affines.apply_affine(AFFINE, corner) for corner in corners], axis=0)
    np.testing.assert_allclose(nib.affines.apply_affine(affine, (1, 2, 0)), middle)


def test_nifti_2_is_read(root):
    path = root / "data" / "whole_MRI" / "s03.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti2Image(image.get_fdata(dtype=np.float32), image.affine), path)
    np.testing.assert_array_equal(read_volume(path)[0], image.get_fdata(dtype=np.float32))
    assert check(root).train


# ---------------------------------------------------------------- the tracer of the training list

@pytest.mark.parametrize(("tracers", "expected"), [
    ({}, "FBP"), ({"s09": "FBB"}, "FBP"), ({"s01": " FBP "}, "FBP"), ({"s01": "FBB"}, ""), ({"s06": ""}, "")])
def test_the_tracer_is_known_if_all_of_the_training_list_have_one(root, tracers, expected):
    """s01 to s06 are the training list, s09 is of the test list; scans that are not named have FBP."""
    path = root / "data_info/data_info.csv"
    header, *rows = path.read_text().splitlines()
    rows = [f"{row},{tracers.get(row.split(',')[0], 'FBP')}" for row in rows]
    path.write_text("\n".join([f"{header},tracer", *rows]))
    assert check(root).tracer == expected


def test_without_a_column_of_tracers_none_is_known(root):
    assert check(root).tracer == ""
