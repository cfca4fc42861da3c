"""Crop, grid and resampling; NIfTI headers at the bounds of what is accepted; the files that are written."""
import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, SHAPE, TINY, header_that_claims, turned, write_volume
from nibabel.affines import apply_affine

from imaging.grids import Crop, Grid, block_affine, resample
from imaging.headers import orientation_problem, read_header
from imaging.remarks import Remarks
from imaging.volumes import read_volume, save_nifti, save_synthesis
from utils import InputError

CROP = Crop(TINY["crop_start"], TINY["volume_size"])


def indices(shape: tuple[int, ...]) -> np.ndarray:
    """Index of every voxel, [X, Y, Z, 3]."""
    return np.moveaxis(np.indices(shape), 0, -1)


def centre_of_mass(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Mean place in mm, [3], weighted by the voxels [X, Y, Z]."""
    return (voxels[..., None] * apply_affine(affine, indices(voxels.shape))).sum((0, 1, 2)) / voxels.sum()


# ---------------------------------------------------------------- crop and grid

def test_a_crop_cuts_its_box_and_a_shift_moves_it():
    place = indices(SHAPE)
    for shift in ((0, 0, 0), (1, -2, 3)):
        box = place[CROP.slices(shift)]
        assert box.shape[:3] == CROP.size
        assert tuple(box[0, 0, 0]) == tuple(np.add(CROP.start, shift))
    np.testing.assert_array_equal(place[CROP.slices()], place[CROP.slices((0, 0, 0))])
    with pytest.raises(ValueError, match="shorter"):
        CROP.slices((1, 2))


def test_the_affine_of_a_crop_places_its_voxels_where_the_volume_has_them():
    world = apply_affine(CROP.affine(AFFINE), (1, 2, 5))
    np.testing.assert_allclose(world, apply_affine(AFFINE, np.add(CROP.start, (1, 2, 5))))


@pytest.mark.parametrize("downscale", [1, 2, 4, 8])
def test_a_latent_voxel_lies_at_the_mean_of_the_voxels_that_it_covers(downscale):
    affine = CROP.affine(AFFINE, downscale)
    d, h, w = (n // downscale for n in CROP.size)
    voxels = apply_affine(AFFINE, indices(SHAPE)[CROP.slices()])     # [D, H, W, 3], mm
    means = voxels.reshape(d, downscale, h, downscale, w, downscale, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(apply_affine(affine, indices((d, h, w))), means, atol=1e-9)


def test_a_block_lies_at_the_mean_of_its_voxels():
    affine = block_affine(np.array([4, 1, 3]), np.array([2, 5, 0]))
    voxels = indices((20, 20, 20))[14:18, 11:12, 6:9]      # of block 3, 6, 2
    np.testing.assert_allclose(apply_affine(affine, (3, 6, 2)), voxels.mean((0, 1, 2)))


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PSR", "ILA"])
def test_the_grid_of_a_header_is_that_of_the_volume_that_is_read(tmp_path, codes):
    image = turned(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), codes)
    nib.save(image, tmp_path / "a.nii")
    grid = Grid.of(read_header(tmp_path / "a.nii"))
    voxels, affine = read_volume(tmp_path / "a.nii")
    assert grid.shape == voxels.shape == SHAPE
    np.testing.assert_allclose(grid.affine, affine)
    assert grid.same(Grid(SHAPE, AFFINE))


def test_the_corners_of_a_grid_span_all_of_its_voxels():
    rotated = AFFINE @ nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, -0.3))
    grid = Grid(SHAPE, rotated)
    voxels, corners = apply_affine(rotated, indices(SHAPE)).reshape(-1, 3), grid.corners()
    assert corners.shape == (8, 3)
    np.testing.assert_allclose(corners.min(0), voxels.min(0))
    np.testing.assert_allclose(corners.max(0), voxels.max(0))
    np.testing.assert_allclose(corners[0], apply_affine(rotated, (0, 0, 0)))
    np.testing.assert_allclose(corners[-1], apply_affine(rotated, np.subtract(SHAPE, 1)))


def test_grids_are_the_same_if_no_corner_is_farther_off_than_a_tenth_of_a_millimetre():
    grid, moved, stretched = Grid(SHAPE, AFFINE), AFFINE.copy(), AFFINE.copy()
    assert grid.same(Grid(SHAPE, AFFINE.astype(np.float32).astype(float)))
    assert not grid.same(Grid((22, 27, 21), AFFINE))
    assert not grid.same(Grid(SHAPE, AFFINE @ np.diag([-1, 1, 1, 1])))
    for offset, expected in ((0.09, True), (0.11, False), (-0.11, False)):
        moved[1, 3] = AFFINE[1, 3] + offset
        stretched[1, 1] = AFFINE[1, 1] + offset / (SHAPE[1] - 1)     # the far end moves by it
        for other in (Grid(SHAPE, moved), Grid(SHAPE, stretched)):
            assert grid.same(other) == other.same(grid) == expected


# ---------------------------------------------------------------- resampling

def test_resampling_onto_its_own_grid_changes_nothing():
    voxels = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    np.testing.assert_allclose(resample(voxels, AFFINE, Grid(SHAPE, AFFINE)), voxels, atol=1e-6)


@pytest.mark.parametrize("voxel_mm", [3.0, 8.0, 13.0, 20.0])
def test_resampling_keeps_the_sum_over_space_and_the_centre_of_mass(voxel_mm):
    """Whatever the size of the new voxels: nothing is skipped or moves by a tenth of a new voxel."""
    voxels = np.zeros(SHAPE, np.float32)
    voxels[8:14, 10:17, 8:14] = np.random.default_rng(1).random((6, 7, 6))
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = (-97, -133, -81)
    grid = Grid(tuple(np.ceil(240 / np.full(3, voxel_mm)).astype(int)), affine)
    found = resample(voxels, AFFINE, grid)
    assert found.dtype == np.float32
    assert found.sum() * voxel_mm ** 3 == pytest.approx(voxels.sum() * 8 ** 3, rel=0.02)
    expected = centre_of_mass(voxels, AFFINE)
    np.testing.assert_allclose(centre_of_mass(found, affine), expected, atol=0.1 * voxel_mm)


# ---------------------------------------------------------------- files that are written

def test_a_written_file_holds_its_unit_and_its_note_and_is_read_back(tmp_path):
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
    note = nib.load(tmp_path / "c.nii.gz").header["descrip"]
    assert note == (b"0123456789" * 8)[:79]                # the field of 80 ends with a NUL


def test_with_a_header_its_affines_and_codes_are_written(tmp_path):
    like = nib.Nifti1Header()
    like.set_sform(AFFINE @ np.diag([-1, 1, 1, 1]), 2)
    like.set_qform(AFFINE, 3)
    save_nifti(tmp_path / "a.nii.gz", np.zeros(SHAPE), np.eye(4), like=like)
    header = nib.load(tmp_path / "a.nii.gz").header
    np.testing.assert_allclose(header.get_sform(), like.get_sform(), atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), like.get_qform(), atol=1e-5)
    assert [int(header[name]) for name in ("sform_code", "qform_code")] == [2, 3]


@pytest.mark.parametrize("codes", [(4, 1), (2, 0), (0, 1)])
def test_a_synthesis_has_the_voxel_sizes_of_its_mri_whichever_affine_that_has(tmp_path, codes):
    """Programs take the voxel sizes from pixdim, the affine from sform or qform."""
    voxels, affine = np.zeros(SHAPE, np.float32), AFFINE @ np.diag([-1, 0.5, 0.25, 1])
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine if codes[0] else None, codes[0])
    image.set_qform(affine if codes[1] else None, codes[1])
    nib.save(image, tmp_path / "mri.nii.gz")
    x_hat = np.ones(CROP.size, np.float32)
    save_synthesis(tmp_path / "out.nii.gz", x_hat, tmp_path / "mri.nii.gz", CROP, "from s01")
    header, given = nib.load(tmp_path / "out.nii.gz").header, nib.load(tmp_path / "mri.nii.gz").header
    np.testing.assert_allclose(header.get_zooms(), (8, 4, 2))
    np.testing.assert_allclose(header.get_best_affine(), affine)
    assert [int(header[name]) for name in ("sform_code", "qform_code")] == list(codes)
    np.testing.assert_allclose(header.get_best_affine(), given.get_best_affine())
    assert header["descrip"] == b"from s01"
    assert header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("voxel_mm", [4, 10])
def test_a_synthesis_on_another_grid_than_its_mri_lies_at_the_same_place(tmp_path, codes, voxel_mm):
    """A volume that is linear in space inside the crop stays so in the file; outside there is 0."""
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = (-93, -120, -71)
    mri = turned(nib.Nifti1Image(np.zeros((24, 28, 20), np.float32), affine), codes)
    nib.save(mri, tmp_path / "mri.nii.gz")
    slope = np.array([0.3, -0.2, 0.5])
    x_hat = 500 + apply_affine(CROP.affine(AFFINE), indices(CROP.size)) @ slope
    path, cohort = tmp_path / "out.nii.gz", Grid(SHAPE, AFFINE)
    returned = save_synthesis(path, x_hat, tmp_path / "mri.nii.gz", CROP, "", cohort)
    assert nib.load(path).shape == mri.shape
    np.testing.assert_allclose(nib.load(path).affine, mri.affine)
    voxels, found = read_volume(path)
    np.testing.assert_array_equal(voxels, returned)        # both with axes in RAS order
    world = apply_affine(found, indices(voxels.shape))
    place = apply_affine(np.linalg.inv(CROP.affine(AFFINE)), world)  # in voxels of the crop
    margin = 1 + voxel_mm / 8
    inside = ((place >= margin) & (place <= np.subtract(CROP.size, 1 + margin))).all(-1)
    outside = ((place < -margin) | (place > np.add(CROP.size, margin - 1))).any(-1)
    assert inside.any() and outside.any()
    np.testing.assert_allclose(voxels[inside], 500 + world[inside] @ slope, rtol=1e-5)
    assert (voxels[outside] == 0).all()


# ---------------------------------------------------------------- headers

def change_header(path, **fields) -> None:
    """Change fields of the header, and nothing else, of an unpacked NIfTI-1 file."""
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.binaryblock + bytes(content[348:]))


@pytest.fixture
def nii(tmp_path):
    """An unpacked NIfTI file of random voxels."""
    path = tmp_path / "a.nii"
    write_volume(path, np.random.default_rng(0).random(SHAPE).astype(np.float32))
    return path


def problem(path) -> str:
    """The message about the header of a file, without the file's name; empty if it is right."""
    try:
        read_header(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


@pytest.mark.parametrize(("name", "position"), [
    ("sform", (0, 0)), ("sform", (2, 1)), ("sform", (1, 3)), ("qform", (0, 3)), ("qform", (2, 3))])
def test_numbers_of_an_affine_are_below_a_kilometre(nii, name, position):
    """1e6 mm in any place and with either sign is damage, 0.999e6 is not."""
    cases = ((0.999e6, True), (-0.999e6, True), (1e6, False), (-1e6, False), (np.nan, False), (np.inf, False))
    for value, right in cases:
        if name == "sform":
            affine = AFFINE.copy()
            affine[position] = value
            change_header(nii, srow_x=affine[0], srow_y=affine[1], srow_z=affine[2])
        else:
            change_header(nii, sform_code=0, qform_code=1, **{f"qoffset_{'xyz'[position[0]]}": value})
        refused = f"its affine holds {abs(value):g}; expected less than 1e+06 mm"
        assert problem(nii) == ("" if right else refused)


@pytest.mark.parametrize(("codes", "bad", "expected"), [
    ((1, 1), "sform", "its affine"), ((1, 1), "qform", "its qform"), ((0, 1), "sform", ""),
    ((1, 0), "qform", ""), ((0, 1), "qform", "its affine")])
def test_only_an_affine_that_counts_must_be_right(nii, codes, bad, expected):
    change_header(nii, sform_code=codes[0], qform_code=codes[1])
    change_header(nii, **({"srow_x": [0, 0, 0, 0]} if bad == "sform" else {"qoffset_x": 2e6}))
    what = "cannot be inverted" if bad == "sform" else "holds 2e+06; expected less than 1e+06 mm"
    assert problem(nii) == (f"{expected} {what}" if expected else "")


def test_quaternions_that_do_not_count_may_be_impossible(nii):
    change_header(nii, sform_code=1, qform_code=0, quatern_b=9)
    assert problem(nii) == ""
    change_header(nii, qform_code=1)
    assert problem(nii).startswith("cannot be read as NIfTI: truncated or damaged (")


@pytest.mark.parametrize(("codes", "mirrored", "expected"), [
    ((0, 0), False, "has neither sform nor qform"), ((1, 0), True, ""), ((0, 1), True, ""),
    ((2, 4), False, ""),
    ((2, 4), True, "its sform (axes LAS) and its qform (axes RAS) disagree about directions")])
def test_a_file_must_say_which_side_is_left_and_not_say_both(codes, mirrored, expected):
    """Only affines whose code is not 0 count."""
    header = nib.Nifti1Header()
    header.set_sform(AFFINE @ np.diag([-1 if mirrored else 1, 1, 1, 1]), codes[0])
    header.set_qform(AFFINE, codes[1])
    assert orientation_problem(header).split(",")[0].split(";")[0] == expected


def test_a_file_that_does_not_start_with_a_header_is_not_taken_for_nifti(nii):
    nii.write_bytes(bytes(600))
    assert problem(nii) == \
        "cannot be read as NIfTI: truncated or damaged (it does not start with a NIfTI header); copy it again"


@pytest.mark.parametrize(("shape", "right"), [
    ((1, 1, 1), True), ((3, 1, 2), True), ((3, 2), False), ((3, 0, 2), False)])
def test_a_volume_has_three_dimensions_of_one_voxel_or_more(nii, shape, right):
    change_header(nii, dim=[len(shape), *shape, *[1] * (7 - len(shape))])
    refused = f"has {len(shape)} dimensions {shape}; expected 3 or more, of one voxel or more"
    assert problem(nii) == ("" if right else refused)


def test_axes_that_are_nearly_parallel_are_refused(nii):
    """Their determinant of 0.1 is not small, but no direction in space belongs to the second."""
    change_header(nii, srow_x=[1e5, 1e5, 0, 0], srow_y=[0, 1e-11, 0, 0], srow_z=[0, 0, 1e5, 0])
    assert problem(nii) == "its affine cannot be inverted"


@pytest.mark.parametrize(("size", "right"), [(0.0101, True), (0.0099, False), (-0.0101, True)])
def test_voxels_have_a_volume(nii, size, right):
    """A millionth of a cubic millimetre, mirrored or not."""
    change_header(nii, srow_x=[size, 0, 0, 0], srow_y=[0, 0.01, 0, 0], srow_z=[0, 0, 0.01, 0])
    assert problem(nii) == ("" if right else "its affine cannot be inverted")


@pytest.mark.parametrize(("dtype", "right"), [
    (np.uint8, True), (np.int16, True), (np.float64, True), (np.complex64, False)])
def test_voxels_are_one_number_each(tmp_path, dtype, right):
    write_volume(tmp_path / "a.nii", np.ones(SHAPE, dtype))
    refused = "holds complex64 voxels; expected one number a voxel"
    assert problem(tmp_path / "a.nii") == ("" if right else refused)


@pytest.mark.parametrize(("slope", "inter"), [
    (0, 3), (np.nan, 0), (np.nan, np.nan), (-np.inf, 7), (0, np.nan), (1, np.nan), (1, -np.inf)])
def test_scale_factors_that_are_no_numbers_scale_nothing(nii, slope, inter):
    """As nibabel has it, where it reads the file at all: it refuses a slope of 1 without an intercept."""
    expected = nib.load(nii, mmap=False).get_fdata(dtype=np.float32)
    change_header(nii, scl_slope=slope, scl_inter=inter)
    if slope != 1:
        np.testing.assert_array_equal(nib.load(nii, mmap=False).get_fdata(dtype=np.float32), expected)
    remarks = Remarks()
    np.testing.assert_array_equal(read_volume(nii, remarks)[0], expected)
    assert bool(remarks.lines()) == (not np.isfinite([slope, inter]).all())


@pytest.mark.parametrize(("slope", "inter"), [(2, np.nan), (-1, np.inf)])
def test_a_scale_factor_without_its_intercept_is_refused(nii, slope, inter):
    """Programs differ in what they take it for: nibabel refuses it, the C library adds 0."""
    change_header(nii, scl_slope=slope, scl_inter=inter)
    refused = (f"its scale factor scl_slope {slope} counts, but its scl_inter {float(inter)} is no number; "
               "write the right ones")
    assert problem(nii) == refused


def test_a_header_may_claim_what_the_file_holds_and_no_byte_more(nii):
    content, end = nii.read_bytes(), nii.stat().st_size
    assert problem(nii) == ""
    nii.write_bytes(content[:-1])
    assert problem(nii) == ("truncated or damaged (its header claims voxels in the bytes "
                            f"352 to {end}, {end - 1} found); copy it again")
    nii.write_bytes(content)
    change_header(nii, dim=[3, 22, 27, 21, 1, 1, 1, 1], vox_offset=352 + 22 * 27 * 4)  # after a gap
    assert problem(nii) == ""
    for offset, right in ((0, False), (347, False), (348, True)):
        change_header(nii, vox_offset=offset, magic=b"ni1")          # nibabel itself checks n+1
        refused = ("truncated or damaged (its header claims voxels in the bytes "
                   f"{offset} to {offset + 22 * 27 * 21 * 4}, {end} found); copy it again")
        assert problem(nii) == ("" if right else refused)


def test_a_packed_header_may_claim_what_deflate_can_unpack_to_and_no_more(tmp_path):
    """At most 1032 bytes for each of the file."""
    path = tmp_path / "a.nii.gz"

    def pack(shape: tuple[int, int, int]) -> int:
        """Write a header that claims float64 voxels of that shape; returns the size of the file."""
        content = header_that_claims(shape, np.float64).binaryblock + bytes(4)
        path.write_bytes(gzip.compress(content, 0))        # level 0: the file is as long for every shape
        path.write_bytes(gzip.compress(content + bytes(path.stat().st_size % 2), 0))
        return path.stat().st_size
    most = 1032 * pack((1, 1, 1))
    fits = (2, (most - 352) // 16, 1)
    assert 352 + 8 * np.prod(fits) == most
    assert pack(fits) * 1032 == most
    assert problem(path) == ""
    pack((2, fits[1] + 1, 1))
    assert problem(path) == ("truncated or damaged (its header claims voxels in the bytes "
                             f"352 to {most + 16}, at most {most} found); copy it again")


@pytest.mark.parametrize("read", [read_header, read_volume])
def test_a_file_that_unpacks_to_much_more_than_its_voxels_takes_little_memory(nii, read):
    """64 MiB after the voxels: a header is read without them, a volume is refused after more than padding."""
    path, content = nii.with_suffix(".nii.gz"), nii.read_bytes()
    path.write_bytes(gzip.compress(content + bytes(2 ** 26), 1))
    tracemalloc.start()
    try:
        if read is read_header:
            read(path)
        else:
            with pytest.raises(InputError, match="unpacks to more than 1048576 bytes"):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 2 ** 23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("shape", "right"), [
    ((2 ** 10, 2 ** 10, 2 ** 9), True), ((2 ** 10, 2 ** 10, 2 ** 9 + 1), False)])
def test_no_more_voxels_are_claimed_than_a_volume_can_have(tmp_path, shape, right):
    """2^29, in a file that would hold them: it is sparse."""
    path = tmp_path / "a.nii"
    with path.open("wb") as file:
        file.write(header_that_claims(shape, np.uint8).binaryblock)
        file.truncate(352 + 2 ** 30)
    refused = ("truncated or damaged (its header claims 1024x1024x513 voxels, more than 536870912); "
               "copy it again")
    assert problem(path) == ("" if right else refused)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_contiguous_float32_in_ras_wherever_it_was_stored(tmp_path, codes, suffix):
    voxels = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    nib.save(turned(nib.Nifti1Image(voxels, AFFINE), codes), tmp_path / f"a{suffix}")
    found, affine = read_volume(tmp_path / f"a{suffix}")
    assert (found.dtype, found.flags.c_contiguous, found.flags.writeable) == (np.float32, True, True)
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(affine, AFFINE)
