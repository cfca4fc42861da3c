"""NIfTI headers at the bounds of what is accepted, what stands in the files that are written, and the crop."""
import gzip
import tracemalloc
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, SHAPE, header_that_claims, write_volume
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from imaging.volumes import Crop, read_header, read_volume, save_nifti, save_synthesis
from utils import InputError

CROP = Crop((3, 2, 3), (16, 24, 16))


def test_a_crop_cuts_its_box_and_a_shift_moves_it():
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)             # [X, Y, Z, 3], every voxel its own index
    for shift in ((0, 0, 0), (1, -2, 3)):
        box = place[CROP.slices(shift)]
        assert box.shape[:3] == CROP.size
        assert tuple(box[0, 0, 0]) == tuple(np.add(CROP.start, shift))
    np.testing.assert_array_equal(place[CROP.slices()], place[CROP.slices((0, 0, 0))])
    with pytest.raises(ValueError, match="shorter"):
        CROP.slices((1, 2))


def test_the_affine_of_a_crop_places_its_voxels_where_the_volume_has_them():
    world = nib.affines.apply_affine(CROP.affine(AFFINE), (1, 2, 5))
    np.testing.assert_allclose(world, nib.affines.apply_affine(AFFINE, np.add(CROP.start, (1, 2, 5))))


def test_what_is_written_says_its_unit_and_its_note_and_is_read_back(tmp_path):
    voxels = np.random.default_rng(0).random(SHAPE)
    save_nifti(tmp_path / "a.nii.gz", voxels, AFFINE, "synthetic")
    found, affine = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found, voxels.astype(np.float32))
    np.testing.assert_allclose(affine, AFFINE)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header.get_xyzt_units()[0] == "mm"
    assert header["descrip"] == b"synthetic"
    save_nifti(tmp_path / "b.nii.gz", voxels, AFFINE)
    assert nib.load(tmp_path / "b.nii.gz").header["descrip"] == b""
    save_nifti(tmp_path / "c.nii.gz", voxels, AFFINE, "0123456789" * 9)
    assert nib.load(tmp_path / "c.nii.gz").header["descrip"] == (b"0123456789" * 8)[:79]      # the field of 80 ends with a NUL


@pytest.mark.parametrize("codes", [(4, 1), (2, 0), (0, 1)])
def test_a_synthesis_has_the_voxel_sizes_of_its_mri_whichever_affine_that_has(tmp_path, codes):
    """Programs take the voxel sizes from pixdim, the affine from sform or qform."""
    voxels, affine = np.zeros(SHAPE, np.float32), AFFINE @ np.diag([-1, 0.5, 0.25, 1])
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine if codes[0] else None, codes[0])
    image.set_qform(affine if codes[1] else None, codes[1])
    nib.save(image, tmp_path / "mri.nii.gz")
    save_synthesis(tmp_path / "out.nii.gz", np.ones(CROP.size, np.float32), tmp_path / "mri.nii.gz", CROP, "from s01")
    header, given = nib.load(tmp_path / "out.nii.gz").header, nib.load(tmp_path / "mri.nii.gz").header
    np.testing.assert_allclose(header.get_zooms(), (8, 4, 2))
    np.testing.assert_allclose(header.get_best_affine(), affine)
    assert [int(header[name]) for name in ("sform_code", "qform_code")] == list(codes)
    np.testing.assert_allclose(header.get_best_affine(), given.get_best_affine())
    assert header["descrip"] == b"from s01"
    assert header.get_xyzt_units()[0] == "mm"


# ---------------------------------------------------------------- headers

def changed(path, **fields) -> None:
    """Change fields of the header, and nothing else, of an unpacked NIfTI-1 file."""
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.binaryblock + bytes(content[348:]))


@pytest.fixture
def nii(tmp_path):
    path = tmp_path / "a.nii"
    write_volume(path, np.random.default_rng(0).random(SHAPE).astype(np.float32))
    return path


def problem(path) -> str:
    """What the message says of the file, without its name; empty if there is none."""
    try:
        read_header(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


@pytest.mark.parametrize(("name", "position"), [("sform", (0, 0)), ("sform", (2, 1)), ("sform", (1, 3)), ("qform", (0, 3)),
                                                ("qform", (2, 3))])
def test_numbers_of_an_affine_are_below_a_kilometre(nii, name, position):
    """1e6 mm in any place and with either sign is damage, 0.999e6 is not."""
    for value, right in ((0.999e6, True), (-0.999e6, True), (1e6, False), (-1e6, False), (np.nan, False), (np.inf, False)):
        if name == "sform":
            affine = AFFINE.copy()
            affine[position] = value
            changed(nii, srow_x=affine[0], srow_y=affine[1], srow_z=affine[2])
        else:
            changed(nii, sform_code=0, qform_code=1, **{f"qoffset_{'xyz'[position[0]]}": value})
        assert problem(nii) == ("" if right else f"its affine holds {abs(value):g}; expected less than 1e+06 mm")


@pytest.mark.parametrize(("codes", "bad", "expected"), [
    ((1, 1), "sform", "its affine"), ((1, 1), "qform", "its qform"), ((0, 1), "sform", ""), ((1, 0), "qform", ""),
    ((0, 1), "qform", "its affine")])
def test_only_an_affine_that_counts_must_be_right(nii, codes, bad, expected):
    changed(nii, sform_code=codes[0], qform_code=codes[1])
    changed(nii, **({"srow_x": [0, 0, 0, 0]} if bad == "sform" else {"qoffset_x": 2e6}))
    what = "cannot be inverted" if bad == "sform" else "holds 2e+06; expected less than 1e+06 mm"
    assert problem(nii) == (f"{expected} {what}" if expected else "")


def test_quaternions_that_do_not_count_may_be_impossible(nii):
    changed(nii, sform_code=1, qform_code=0, quatern_b=9)
    assert problem(nii) == ""
    changed(nii, qform_code=1)
    assert problem(nii).startswith("cannot be read as NIfTI: truncated or damaged (")


def test_what_does_not_start_with_a_header_is_said_to_be_no_nifti(nii):
    nii.write_bytes(bytes(600))
    assert problem(nii) == "cannot be read as NIfTI: truncated or damaged (it does not start with a NIfTI header); copy it again"


@pytest.mark.parametrize(("shape", "right"), [((1, 1, 1), True), ((3, 1, 2), True), ((3, 2), False), ((3, 0, 2), False)])
def test_a_volume_has_three_dimensions_of_one_voxel_or_more(nii, shape, right):
    changed(nii, dim=[len(shape), *shape, *[1] * (7 - len(shape))])
    assert problem(nii) == ("" if right else f"has {len(shape)} dimensions {shape}; expected 3 or more, of one voxel or more")


def test_axes_that_are_all_but_parallel_are_refused(nii):
    """Their determinant of 0.1 is no small one, but no direction in space belongs to the second."""
    changed(nii, srow_x=[1e5, 1e5, 0, 0], srow_y=[0, 1e-11, 0, 0], srow_z=[0, 0, 1e5, 0])
    assert problem(nii) == "its affine cannot be inverted"


@pytest.mark.parametrize(("size", "right"), [(0.0101, True), (0.0099, False), (-0.0101, True)])
def test_voxels_have_a_volume(nii, size, right):
    """A millionth of a cubic millimetre, mirrored or not."""
    changed(nii, srow_x=[size, 0, 0, 0], srow_y=[0, 0.01, 0, 0], srow_z=[0, 0, 0.01, 0])
    assert problem(nii) == ("" if right else "its affine cannot be inverted")


@pytest.mark.parametrize(("dtype", "right"), [(np.uint8, True), (np.int16, True), (np.float64, True), (np.complex64, False)])
def test_voxels_are_one_number_each(tmp_path, dtype, right):
    write_volume(tmp_path / "a.nii", np.ones(SHAPE, dtype))
    assert problem(tmp_path / "a.nii") == ("" if right else "holds complex64 voxels; expected one number a voxel")


@pytest.mark.parametrize(("slope", "inter"), [(np.nan, 0), (np.inf, 0), (1, np.nan), (1, -np.inf)])
def test_scale_factors_are_numbers(nii, slope, inter):
    changed(nii, scl_slope=slope, scl_inter=inter)
    assert problem(nii) == f"its scale factors scl_slope {float(slope)} and scl_inter {float(inter)} are no numbers"


def test_a_header_may_claim_what_the_file_holds_and_no_byte_more(nii):
    content, end = nii.read_bytes(), nii.stat().st_size
    assert problem(nii) == ""
    nii.write_bytes(content[:-1])
    assert problem(nii) == f"truncated or damaged (its header claims voxels in the bytes 352 to {end}, {end - 1} found); copy it again"
    nii.write_bytes(content)
    changed(nii, dim=[3, 22, 27, 21, 1, 1, 1, 1], vox_offset=352 + 22 * 27 * 4)           # behind a gap
    assert problem(nii) == ""
    for offset, right in ((0, False), (347, False), (348, True)):                         # nibabel sees to it, but not for this magic
        changed(nii, vox_offset=offset, magic=b"ni1")
        assert problem(nii) == ("" if right else f"truncated or damaged (its header claims voxels in the bytes {offset} to "
                                                 f"{offset + 22 * 27 * 21 * 4}, {end} found); copy it again")


def test_a_packed_header_may_claim_what_deflate_can_unpack_to_and_no_more(tmp_path):
    """At most 1032 bytes for each of the file."""
    path, header = tmp_path / "a.nii.gz", nib.Nifti1Header()

    def pack(shape: tuple[int, int, int]) -> int:
        header.set_data_shape(shape)
        header.set_data_dtype(np.float64)
        header.set_sform(AFFINE, 1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        content = header.binaryblock + bytes(4)
        path.write_bytes(gzip.compress(content, 0))        # stored as it is, so that the file is as long for every shape
        path.write_bytes(gzip.compress(content + bytes(path.stat().st_size % 2), 0))
        return path.stat().st_size
    most = 1032 * pack((1, 1, 1))
    fits = (2, (most - 352) // 16, 1)
    assert 352 + 8 * np.prod(fits) == most
    assert pack(fits) * 1032 == most
    assert problem(path) == ""
    pack((2, fits[1] + 1, 1))
    assert problem(path) == (f"truncated or damaged (its header claims voxels in the bytes 352 to {most + 16}, at most {most} found); "
                             "copy it again")


@pytest.mark.parametrize("read", [read_header, read_volume])
def test_what_unpacks_to_much_more_than_its_voxels_takes_little_memory(nii, read):
    """64 MiB behind the voxels: a header is read without them, and a volume is refused when more than padding has come."""
    path, content = nii.with_suffix(".nii.gz"), nii.read_bytes()
    path.write_bytes(gzip.compress(content + bytes(2 ** 26), 1))
    tracemalloc.start()
    try:
        with nullcontext() if read is read_header else pytest.raises(InputError, match="unpacks to more than 1048576 bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2 ** 23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("shape", "right"), [((2 ** 10, 2 ** 10, 2 ** 9), True), ((2 ** 10, 2 ** 10, 2 ** 9 + 1), False)])
def test_no_more_voxels_are_claimed_than_a_volume_can_have(tmp_path, shape, right):
    """2^29, in a file that would hold them: it is sparse."""
    path = tmp_path / "a.nii"
    with path.open("wb") as file:
        file.write(header_that_claims(shape, np.uint8).binaryblock)
        file.truncate(352 + 2 ** 30)
    refused = "truncated or damaged (its header claims 1024x1024x513 voxels, more than 536870912); copy it again"
    assert problem(path) == ("" if right else refused)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_contiguous_float32_in_ras_wherever_it_was_stored(tmp_path, codes, suffix):
    voxels = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    change = ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes))
    write_volume(tmp_path / f"a{suffix}", nib.orientations.apply_orientation(voxels, change), AFFINE @ inv_ornt_aff(change, SHAPE))
    found, affine = read_volume(tmp_path / f"a{suffix}")
    assert (found.dtype, found.flags.c_contiguous, found.flags.writeable) == (np.float32, True, True)
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(affine, AFFINE)
