"""New MRIs: the files that are found and written, what headers and voxels must be, the cohort's grid."""
import hashlib

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, SHAPE, TINY, turned, write_volume
from nibabel.affines import apply_affine, from_matvec

from imaging.grids import Crop, Grid, resample
from imaging.volumes import RANGE_TOLERANCE, read_volume
from newscans.scans import (
    BOX,
    NewScan,
    describe_grid,
    find_scans,
    header_problem,
    mni_brain,
    onto_box,
    onto_crop,
    output_name,
    place_problem,
    read_mri,
    refuse_place,
    sha256,
)
from utils import InputError

CROP, COHORT = Crop(TINY["crop_start"], TINY["volume_size"]), Grid(SHAPE, AFFINE)


def places(shape, affine) -> np.ndarray:
    """Centre of every voxel in mm, [X, Y, Z, 3]."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


# ---------------------------------------------------------------- files

def test_scans_are_found_in_the_order_of_their_names_whatever_else_lies_there(tmp_path):
    for name in ("b.nii", "a.nii.gz", ".hidden.nii", "notes.txt", "c.nii.gz.part"):
        (tmp_path / name).write_bytes(b"")
    write_volume(tmp_path / "below" / "d.nii", np.zeros(SHAPE, np.uint8))
    scans = find_scans(tmp_path)
    assert [scan.id for scan in scans] == ["a", "b"]
    assert [scan.mri for scan in scans] == [tmp_path / "a.nii.gz", tmp_path / "b.nii"]
    assert [scan.name for scan in scans] == [output_name("a"), output_name("b")]
    assert find_scans(tmp_path / "b.nii") == scans[1:]


@pytest.mark.parametrize("stem", ["scan", "sub-01_T1w", "sub-01_ses-2_desc-brain_T1w", "037_S_6046"])
def test_files_that_are_written_are_never_taken_for_new_scans(tmp_path, stem):
    """Results may lie in the folder of the MRIs of a later run."""
    mri = tmp_path / f"{stem}.nii.gz"
    mri.write_bytes(b"")
    (scan,) = find_scans(mri)
    written = scan.written(tmp_path)
    assert len(set(written.values())) == len(written) == 3
    for path in written.values():
        (tmp_path / path.name).write_bytes(b"")
    (tmp_path / "sub-01_space-MNI152_desc-ilcldm_pet.nii.gz").write_bytes(b"of an earlier version")
    assert find_scans(tmp_path) == [scan]
    with pytest.raises(InputError, match="is no MRI"):
        find_scans(tmp_path / written["pet"].name)
    bids_name = written["pet"].name.removesuffix(".nii.gz")
    assert written["sidecar"].name == f"{bids_name}.json"


def test_no_two_scans_share_a_file(tmp_path):
    files = []
    for stem in ("a", "b", "sub-01_ses-1", "sub-01_ses-2", "sub-01_ses-1_space-native"):
        files += NewScan(stem, tmp_path / stem, output_name(stem)).written(tmp_path).values()
    assert len(set(files)) == len(files)


def test_results_get_a_folder_of_their_own(tmp_path):
    mris, cohort = tmp_path / "mris", tmp_path / "cohort"
    for out in (mris, cohort, cohort / "deep" / "below", tmp_path / "other" / ".." / "mris"):
        with pytest.raises(InputError, match="give a folder of its own"):
            refuse_place(out, [mris], [cohort])
    for out in (mris / "below", tmp_path, tmp_path / "cohort2", tmp_path / "out"):
        refuse_place(out, [mris], [cohort])
    cohort.mkdir()
    (tmp_path / "link").symlink_to(cohort)
    with pytest.raises(InputError, match="link"):
        refuse_place(tmp_path / "link" / "out", [mris], [cohort])


def test_the_checksum_is_that_of_the_content(tmp_path):
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_the_description_of_a_grid_is_that_of_the_stored_file(tmp_path, codes):
    image = turned(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), from_matvec(np.diag([1, 1.5, 2]))), codes)
    nib.save(image, tmp_path / "a.nii")
    shape = "x".join(str(n) for n in image.shape)
    sizes = " x ".join(f"{size:g}" for size in image.header.get_zooms())
    assert describe_grid(tmp_path / "a.nii") == f"{shape} {codes}, voxels of {sizes} mm"


# ---------------------------------------------------------------- headers and voxels

def test_a_header_may_be_used_or_the_file_is_named_with_the_reason(tmp_path):
    path = tmp_path / "a.nii"
    write_volume(path, np.zeros(SHAPE, np.float32))
    assert header_problem(path) == ""
    write_volume(path, np.zeros((4, 4, 4, 2), np.float32))
    assert header_problem(path) == f"{path}: has 4 dimensions (4, 4, 4, 2); expected one 3D volume"
    path.write_bytes(path.read_bytes()[:400])
    assert header_problem(path).startswith(f"{path}: truncated or damaged")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), None), path)
    assert header_problem(path).startswith(f"{path}: has neither sform nor qform")
    assert header_problem(tmp_path / "b.nii").startswith(f"{tmp_path / 'b.nii'}: cannot be read")


@pytest.mark.parametrize("percentile", [0.0, 50.0, 99.5])
def test_intensities_within_the_range_are_left_as_they_are(tmp_path, percentile):
    voxels = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    voxels.flat[:2] = -RANGE_TOLERANCE / 2, 1 + RANGE_TOLERANCE / 2  # as scale factors are rounded
    write_volume(tmp_path / "a.nii", voxels)
    found, affine, upper_bound = read_mri(tmp_path / "a.nii", percentile)
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(affine, AFFINE)
    assert upper_bound == 1


@pytest.mark.parametrize("percentile", [50.0, 99.5, 100.0])
def test_other_intensities_are_divided_by_their_percentile_whatever_their_unit(tmp_path, percentile):
    voxels = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    voxels[:4] = 0                                         # background does not count
    expected = np.percentile(voxels[voxels > 0], percentile)
    for unit in (40, 3000):
        write_volume(tmp_path / "a.nii", unit * voxels)
        with pytest.raises(InputError, match="expected within"):
            read_mri(tmp_path / "a.nii", 0.0)
        found, _, upper_bound = read_mri(tmp_path / "a.nii", percentile)
        assert upper_bound == pytest.approx(unit * expected)
        np.testing.assert_allclose(found, (voxels / expected).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize(("low", "high", "message"), [
    (0, np.nan, "every voxel is NaN or 0"), (0.5, np.nan, "inside the brain"),
    (np.nan, np.nan, "every voxel is NaN"), (0, np.inf, "infinite"), (np.nan, -np.inf, "infinite"),
    (-0.005, 0, "every voxel is 0"), (0.5, 0.5, "every voxel is 0.5"),
    (-3, -1, "intensities from -3 to -1"), (-3, 0, "intensities from -3 to 0")])
def test_voxels_that_are_not_an_image_are_refused_even_with_a_percentile(tmp_path, low, high, message):
    voxels = np.full(SHAPE, low, np.float32)
    voxels[3:9] = high
    write_volume(tmp_path / "a.nii", voxels)
    with pytest.raises(InputError, match=message):
        read_mri(tmp_path / "a.nii", 99.5)


# ---------------------------------------------------------------- MNI space and the cohort's grid

def test_the_mni_brain_has_its_volume_and_lies_where_it_is_documented():
    mask, t1 = mni_brain()
    assert mask.shape == t1.shape == BOX.shape
    assert 1.7e6 < mask.sum() * 4 ** 3 < 2.1e6             # cubic mm; the MNI152 brain has about 1.9 litres
    brain = places(BOX.shape, BOX.affine)[mask]
    assert abs(np.median(brain[:, 0])) < 4                 # left and right alike
    assert (brain.min(0) > (-80, -115, -75)).all() and (brain.max(0) < (80, 80, 90)).all()
    assert t1[mask].mean() > 2 * t1[~mask].mean()
    assert place_problem(np.where(mask, t1, 0), BOX.affine) == ""


@pytest.mark.parametrize("voxel_mm", [0.8, 1.0, 2.5, 4.0, 8.0])
def test_a_volume_of_any_voxel_size_lies_in_the_box_where_it_was(voxel_mm):
    """An ellipsoid keeps its volume and its centre to a small part of a voxel of the box."""
    shape = tuple(np.ceil(np.array([90, 100, 80]) / voxel_mm).astype(int))
    affine = from_matvec(np.diag([voxel_mm] * 3), (-50, -60, -20))
    world = places(shape, affine)
    ball = ((((world - (-4, -12, 17)) / (35, 30, 25)) ** 2).sum(-1) < 1).astype(np.float32)
    found = onto_box(ball, affine)
    assert found.shape == BOX.shape
    assert found.sum() * 4 ** 3 == pytest.approx(ball.sum() * voxel_mm ** 3, rel=0.01)
    centre = (found[..., None] * places(BOX.shape, BOX.affine)).sum((0, 1, 2)) / found.sum()
    np.testing.assert_allclose(centre, world[ball > 0].mean(0), atol=0.2)


def test_on_the_cohorts_grid_the_crop_is_cut_without_resampling():
    voxels = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    rounded = AFFINE.copy()
    rounded[:3] += 0.001 * np.random.default_rng(1).uniform(-1, 1, (3, 4))     # less than 0.1 mm away
    for affine in (AFFINE, rounded):
        np.testing.assert_array_equal(onto_crop(voxels, affine, COHORT, CROP), voxels[CROP.slices()])


@pytest.mark.parametrize(("voxel_mm", "first"), [
    ((4.0, 4, 4), (-88.5, -124.5, -70.5)), ((3.0, 2.5, 5), (-93, -130, -80)),
    ((8.0, 8, 8), (-94.5, -122.5, -68.5))])                # the last: a voxel beside the cohort's grid
def test_on_another_grid_the_crop_shows_the_same_places(voxel_mm, first):
    """A volume that is linear in space has the same values there."""
    affine = from_matvec(np.diag(voxel_mm), first)
    shape = tuple(np.ceil(np.array([190, 230, 200]) / voxel_mm).astype(int))
    slope = np.array([0.002, -0.001, 0.0015])
    voxels = (0.5 + places(shape, affine) @ slope).astype(np.float32)
    found = onto_crop(voxels, affine, COHORT, CROP)
    np.testing.assert_allclose(found, 0.5 + places(CROP.size, CROP.affine(AFFINE)) @ slope, atol=1e-5)


@pytest.mark.parametrize("codes", ["LAS", "PSR"])
def test_the_crop_of_a_file_does_not_depend_on_its_orientation(tmp_path, codes):
    fine = Grid((90, 110, 90), from_matvec(np.diag([2.0, 2, 2]), (-90, -126, -72)))
    voxels = resample(np.random.default_rng(0).random(SHAPE, dtype=np.float32), AFFINE, fine)
    image = nib.Nifti1Image(voxels, fine.affine)
    nib.save(turned(image, codes), tmp_path / "a.nii")
    found = onto_crop(*read_volume(tmp_path / "a.nii"), COHORT, CROP)
    np.testing.assert_array_equal(found, onto_crop(voxels, fine.affine, COHORT, CROP))
