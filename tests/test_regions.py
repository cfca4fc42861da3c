"""Masks and label images on any grid, and the uptake measured inside them."""
import numpy as np
import pytest
from conftest import AFFINE, SHAPE, TINY, reorient, write_volume
from nibabel.affines import apply_affine, from_matvec

from imaging.grids import Crop
from imaging.regions import Regions, read_labels, read_mask, share_inside
from utils import InputError

CROP = Crop(TINY["crop_start"], TINY["volume_size"])
AT_1_MM, AT_2_MM = (181, 217, 181), (109, 91, 91)
# Shape and affine: the two MNI conventions that share a shape at 1 mm, one of them mirrored, and 2 mm as ARS.
GRIDS = {
    "RAS from -90": (AT_1_MM, from_matvec(np.eye(3), (-90, -126, -72))),
    "mirrored, a voxel off": (AT_1_MM, from_matvec(np.diag([-1, 1, 1]), (90, -125, -71))),
    "2 mm, axes swapped": (AT_2_MM, from_matvec([[0, 2, 0], [2, 0, 0], [0, 0, 2]], (-90, -126, -72))),
}


def places(shape, affine) -> np.ndarray:
    """Centre of every voxel in mm, [X, Y, Z, 3]."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def draw_ball(shape, affine, centre, radius) -> np.ndarray:
    """Voxels whose centres lie within radius (mm) of centre (mm)."""
    return (((places(shape, affine) - centre) ** 2).sum(-1) < radius ** 2).astype(np.uint8)


def test_brain_mask_goes_through_the_affine(tmp_path):
    """A mask marks the same place in the world, whatever grid and orientation it is stored in."""
    brain = read_mask(None, AFFINE, CROP)
    volume_ml = brain.sum() * 8 ** 3 / 1000
    assert 1500 < volume_ml < 2300                         # the MNI152 brain has about 1.9 litres
    fine = np.zeros((100, 100, 100), np.uint8)
    fine[20:40, 30:50, 60:90] = 1                          # centres at x 11..30, y 0..19, z 20..49 mm
    mirrored = np.array([[-1.0, 0, 0, 50], [0, 1, 0, -30], [0, 0, 1, -40], [0, 0, 0, 1]])
    write_volume(tmp_path / "mask.nii.gz", fine, mirrored)
    found = read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP)
    world = apply_affine(CROP.affine(AFFINE), np.argwhere(found))
    assert len(world) > 8
    assert (world.min(0) >= [10.5, -0.5, 19.5]).all()
    assert (world.max(0) <= [30.5, 19.5, 49.5]).all()


def test_a_brain_mask_that_is_damaged_or_4d_is_refused(tmp_path):
    path = tmp_path / "mask.nii.gz"
    write_volume(path, np.ones((4, 4, 4, 2), np.uint8))
    with pytest.raises(InputError, match="has 4 dimensions"):
        read_mask(path, AFFINE, CROP)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_mask(path, AFFINE, CROP)


@pytest.mark.parametrize("side", [-900, 900])
def test_a_brain_mask_elsewhere_is_refused(tmp_path, side):
    elsewhere = from_matvec(np.eye(3), (side, 0, 0))
    write_volume(tmp_path / "mask.nii.gz", np.ones((4, 4, 4), np.uint8), elsewhere)
    with pytest.raises(InputError, match="nothing of it lies inside"):
        read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_region_is_the_same_whatever_grid_stores_it(tmp_path, grid):
    """Two balls, left front and right back: the SUVR of a PET that differs between left and right."""
    centres = {"cortex": np.array([-34, 30, 20]), "cerebellum": np.array([30, -62, -30])}
    masks = {}
    for name, centre in centres.items():
        write_volume(tmp_path / f"{name}.nii.gz", draw_ball(*GRIDS[grid], centre, 22), GRIDS[grid][1])
        masks[name] = read_mask(tmp_path / f"{name}.nii.gz", AFFINE, CROP)
        centre_found = apply_affine(CROP.affine(AFFINE), np.argwhere(masks[name])).mean(0)
        np.testing.assert_allclose(centre_found, centre, atol=2.5)
        expected = draw_ball(CROP.size, CROP.affine(AFFINE), centre, 22)
        assert (masks[name] == expected).mean() > 0.998
    slope = np.array([0.5, 1, 2]) / 1000
    pet = 0.5 + places(CROP.size, CROP.affine(AFFINE)) @ slope
    by_hand = (0.5 + centres["cortex"] @ slope) / (0.5 + centres["cerebellum"] @ slope)
    suvr = Regions(masks["cortex"], masks["cerebellum"], {}).measure(pet)["SUVR"]
    assert suvr == pytest.approx(by_hand, rel=0.02)


def test_uptake_by_hand():
    pet = np.zeros((2, 2, 3), np.float32)
    pet[0, 0] = [0.2, 0.4, 0.6]
    pet[1, 1] = [0.1, 0.3, 0.5]
    cortex, reference, other = (np.zeros(pet.shape, bool) for _ in range(3))
    cortex[0, 0], reference[1, 1, :2], other[1, 1, 2] = True, True, True
    found = Regions(cortex, reference, {"pons": other}, (188.22, -189.16)).measure(pet)
    assert list(found) == ["SUVR", "CL", "SUVR_pons"]
    assert found["SUVR"] == pytest.approx(0.4 / 0.2)
    assert found["CL"] == pytest.approx(188.22 * 2 - 189.16)
    assert found["SUVR_pons"] == pytest.approx(0.5 / 0.2)
    bare = Regions(cortex, reference, {})
    assert bare.measure(3 * pet)["SUVR"] == pytest.approx(2)         # one factor for all changes no ratio
    assert list(bare.measure(pet)) == ["SUVR"]


@pytest.mark.parametrize("level", [0.0, -0.1, np.nan])
def test_without_uptake_in_the_reference_region_nothing_is_measured(level):
    pet, cortex = np.ones((2, 2, 2), np.float32), np.ones((2, 2, 2), bool)
    reference = np.zeros((2, 2, 2), bool)
    pet[0], reference[0] = level, True
    found = Regions(cortex, reference, {"pons": cortex}, (100.0, -100.0)).measure(pet)
    assert list(found) == ["SUVR", "CL", "SUVR_pons"]
    assert np.isnan(list(found.values())).all()


def test_regions_of_one_uptake_have_an_suvr_of_1_whatever_their_shape_and_the_level():
    rng = np.random.default_rng(0)
    cortex, reference, other = rng.random((3, 5, 6, 7)) < 0.3
    for level in (0.01, 0.7):
        found = Regions(cortex, reference, {"other": other}).measure(np.full((5, 6, 7), level, np.float32))
        assert found == pytest.approx({"SUVR": 1, "SUVR_other": 1})


def test_a_mask_with_soft_edges_counts_from_half_its_maximum(tmp_path):
    soft = np.zeros(SHAPE, np.float32)
    soft[8:14, 8:14, 8:14], soft[10:12, 10:12, 10:12] = 0.4, 1.0
    write_volume(tmp_path / "mask.nii.gz", soft, AFFINE)
    found = read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP)
    np.testing.assert_array_equal(found, (soft >= 0.5)[CROP.slices()])


def test_nan_around_a_mask_is_outside_it(tmp_path):
    mask = np.full(SHAPE, np.nan, np.float32)
    mask[8:12, 8:12, 8:12] = 1
    write_volume(tmp_path / "mask.nii.gz", mask, AFFINE)
    found = read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP)
    np.testing.assert_array_equal(found, (mask == 1)[CROP.slices()])
    assert share_inside(tmp_path / "mask.nii.gz", AFFINE, CROP) == 1


@pytest.mark.parametrize(("values", "expected"), [
    ([0, 5, 12], "holds 3 different integers"), ([0, 0, 0], "no voxel is above 0"),
    ([-1, -1, 0], "no voxel is above 0")])
def test_a_file_that_is_not_a_mask_is_refused_with_the_reason(tmp_path, values, expected):
    write_volume(tmp_path / "mask.nii.gz", np.resize(np.array(values, np.int16), SHAPE), AFFINE)
    with pytest.raises(InputError, match=expected):
        read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP)


def test_a_mask_that_is_not_there_is_named_with_its_setting(tmp_path):
    for path in (tmp_path / "none.nii.gz", tmp_path / ("a" * 5000)):
        with pytest.raises(InputError, match=r"^cortex_mask .*: not there$"):
            read_mask(path, AFFINE, CROP, "cortex_mask")


def test_the_share_of_a_region_inside_the_crop_is_known(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[0:6, 10, 10] = 1                                  # the crop starts at 3
    write_volume(tmp_path / "mask.nii.gz", mask, AFFINE)
    assert share_inside(tmp_path / "mask.nii.gz", AFFINE, CROP) == 0.5
    reorient(tmp_path / "mask.nii.gz", "LPS")
    assert share_inside(tmp_path / "mask.nii.gz", AFFINE, CROP) == 0.5


@pytest.fixture
def labels(tmp_path):
    """A function that reads the regions of a label image from the content of a table."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[5, 5, 5], voxels[6, 6, 6:8] = 3, 12
    write_volume(tmp_path / "labels.nii.gz", voxels, AFFINE)

    def read(table: bytes) -> dict[str, np.ndarray]:
        """The regions of the label image that a table names."""
        (tmp_path / "table.csv").write_bytes(table)
        return read_labels(tmp_path / "labels.nii.gz", tmp_path / "table.csv", AFFINE, CROP)
    return read


def test_named_regions_come_from_a_label_image_with_a_table(labels):
    found = labels(b"index,name,lobe\n12,precuneus,parietal\n3,frontal_pole,frontal\n")
    assert {name: mask.sum() for name, mask in found.items()} == {"precuneus": 2, "frontal_pole": 1}
    assert list(found) == ["precuneus", "frontal_pole"]    # in the order of the table
    assert found["frontal_pole"][2, 3, 2]
    assert list(labels(b"\xef\xbb\xbfindex,name\n3,a\n")) == ["a"]         # as Excel writes it


def test_a_label_image_that_is_stored_otherwise_holds_the_same_regions(tmp_path, labels):
    table = b"index,name\n12,a\n3,b\n"
    expected = labels(table)
    reorient(tmp_path / "labels.nii.gz", "PIL")
    found = labels(table)
    assert list(found) == list(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)


def test_all_problems_of_regions_are_named_at_once(tmp_path, labels):
    with pytest.raises(InputError) as error:
        labels(b"index,name\n3,a\n3,a\n7,b\nx,c\n12,two words\n")
    for part in ("4 problem(s)", "the name a stands twice", "no voxel of region 7 (b)", "row 'x', 'c'",
                 "row '12', 'two words'"):
        assert part in str(error.value)
    with pytest.raises(InputError, match="holds no region"):
        labels(b"index,name\n")
    with pytest.raises(InputError, match="atlas table .*table.csv.*index missing, found number, name"):
        labels(b"number,name\n3,a\n")


def test_an_atlas_whose_files_are_not_there_or_change_places_says_which_was_looked_for(tmp_path, labels):
    labels(b"index,name\n3,a\n")
    image, table = tmp_path / "labels.nii.gz", tmp_path / "table.csv"
    for files, problem in (((tmp_path / "no.nii", table), f"atlas image {tmp_path / 'no.nii'}: not there"),
                           ((image, tmp_path / "no.csv"), f"atlas table {tmp_path / 'no.csv'}: "),
                           ((table, image), f"atlas table {image}: ")):
        with pytest.raises(InputError) as error:
            read_labels(*files, AFFINE, CROP)
        assert str(error.value).startswith(problem)


def test_a_hostile_table_of_regions_makes_no_long_message(tmp_path, labels):
    rows = ["index,name", "3", "9" * 5000 + ",a", "16777217,b", "3," + "a" * 10 ** 6]
    with pytest.raises(InputError, match=r"4 problem\(s\)") as error:
        labels("\n".join([*rows, ""]).encode())
    assert len(str(error.value)) < 4 * (300 + len(str(tmp_path)))
