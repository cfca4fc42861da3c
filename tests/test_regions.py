"""Masks through their affines, and the uptake measured in them."""
import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, SHAPE, write_volume
from nibabel.affines import apply_affine
from test_dataset import CROP, reorient

from imaging.regions import Regions, read_labels, read_mask, share_inside
from utils import InputError

# the two MNI conventions that share the shape 181x217x181 at 1 mm, one of them mirrored, and 2 mm voxels stored as LPI
GRIDS = {"RAS from -90": ((181, 217, 181), np.array([[1.0, 0, 0, -90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])),
         "mirrored, a voxel off": ((181, 217, 181), np.array([[-1.0, 0, 0, 90], [0, 1, 0, -125], [0, 0, 1, -71], [0, 0, 0, 1]])),
         "2 mm, axes swapped": ((109, 91, 91), np.array([[0, 2.0, 0, -90], [2, 0, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]))}


def draw_ball(shape, affine, centre, radius) -> np.ndarray:
    """Voxels whose centres lie within radius (mm) of centre (mm)."""
    world = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))
    return (((world - centre) ** 2).sum(-1) < radius ** 2).astype(np.uint8)


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
    world = nib.affines.apply_affine(CROP.affine(AFFINE), np.argwhere(found))
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


def test_a_brain_mask_elsewhere_is_refused(tmp_path):
    write_volume(tmp_path / "mask.nii.gz", np.ones((4, 4, 4), np.uint8), nib.affines.from_matvec(np.eye(3), (900, 0, 0)))
    with pytest.raises(InputError, match="nothing of it lies inside"):
        read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_region_is_the_same_whatever_grid_stores_it(tmp_path, grid):
    """Two balls, left front and right back: the SUVR of a PET that knows left from right, from masks on any grid."""
    centres = {"cortex": (-34, 30, 20), "cerebellum": (30, -62, -30)}
    masks = {}
    for name, centre in centres.items():
        write_volume(tmp_path / f"{name}.nii.gz", draw_ball(*GRIDS[grid], centre, 22), GRIDS[grid][1])
        masks[name] = read_mask(tmp_path / f"{name}.nii.gz", AFFINE, CROP)
        centre_found = apply_affine(CROP.affine(AFFINE), np.argwhere(masks[name])).mean(0)
        np.testing.assert_allclose(centre_found, centre, atol=2.5)
        expected = draw_ball(CROP.size, CROP.affine(AFFINE), centre, 22)
        assert (masks[name] == expected).mean() > 0.998
    x, y, z = np.moveaxis(apply_affine(CROP.affine(AFFINE), np.stack(np.meshgrid(*map(np.arange, CROP.size), indexing="ij"), -1)), -1, 0)
    pet = 0.5 + (0.5 * x + y + 2 * z) / 1000
    by_hand = (0.5 + (0.5 * -34 + 30 + 2 * 20) / 1000) / (0.5 + (0.5 * 30 - 62 - 2 * 30) / 1000)
    assert Regions(masks["cortex"], masks["cerebellum"], {}).measure(pet)["SUVR"] == pytest.approx(by_hand, rel=0.02)


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
    assert Regions(cortex, reference, {}).measure(3 * pet)["SUVR"] == pytest.approx(2)       # one constant for all changes no ratio
    assert np.isnan(Regions(cortex, reference, {}).measure(0 * pet)["SUVR"])


def test_a_mask_with_soft_edges_counts_from_half_its_maximum(tmp_path):
    soft = np.zeros(SHAPE, np.float32)
    soft[8:14, 8:14, 8:14], soft[10:12, 10:12, 10:12] = 0.4, 1.0
    write_volume(tmp_path / "mask.nii.gz", soft, AFFINE)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP), (soft >= 0.5)[CROP.slices()])


def test_nan_around_a_mask_is_outside_it(tmp_path):
    mask = np.full(SHAPE, np.nan, np.float32)
    mask[8:12, 8:12, 8:12] = 1
    write_volume(tmp_path / "mask.nii.gz", mask, AFFINE)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP), (mask == 1)[CROP.slices()])
    assert share_inside(tmp_path / "mask.nii.gz", AFFINE, CROP) == 1


@pytest.mark.parametrize(("values", "expected"), [([0, 5, 12], "holds 3 different integers"), ([0, 0, 0], "no voxel is above 0"),
                                                  ([-1, -1, 0], "no voxel is above 0")])
def test_what_is_no_mask_is_refused_with_the_reason(tmp_path, values, expected):
    write_volume(tmp_path / "mask.nii.gz", np.resize(np.array(values, np.int16), SHAPE), AFFINE)
    with pytest.raises(InputError, match=expected):
        read_mask(tmp_path / "mask.nii.gz", AFFINE, CROP)


def test_the_share_of_a_region_inside_the_crop_is_known(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[0:6, 10, 10] = 1                                  # the crop starts at 3
    write_volume(tmp_path / "mask.nii.gz", mask, AFFINE)
    assert share_inside(tmp_path / "mask.nii.gz", AFFINE, CROP) == 0.5
    reorient(tmp_path / "mask.nii.gz", "LPS")
    assert share_inside(tmp_path / "mask.nii.gz", AFFINE, CROP) == 0.5


def test_named_regions_come_from_a_label_image_with_a_table(tmp_path):
    labels = np.zeros(SHAPE, np.int16)
    labels[5, 5, 5], labels[6, 6, 6:8] = 3, 12
    write_volume(tmp_path / "labels.nii.gz", labels, AFFINE)
    (tmp_path / "table.csv").write_text("index,name,lobe\n12,precuneus,parietal\n3,frontal_pole,frontal\n")
    found = read_labels(tmp_path / "labels.nii.gz", tmp_path / "table.csv", AFFINE, CROP)
    assert {name: mask.sum() for name, mask in found.items()} == {"precuneus": 2, "frontal_pole": 1}
    assert found["frontal_pole"][2, 3, 2]

    (tmp_path / "table.csv").write_text("index,name\n3,a\n3,a\n7,b\nx,c\n12,two words\n")
    with pytest.raises(InputError) as error:
        read_labels(tmp_path / "labels.nii.gz", tmp_path / "table.csv", AFFINE, CROP)
    for part in ("4 problem(s)", "the name a stands twice", "no voxel of region 7 (b)", "row 'x', 'c'", "row '12', 'two words'"):
        assert part in str(error.value)
    (tmp_path / "table.csv").write_text("index,name\n")
    with pytest.raises(InputError, match="holds no region"):
        read_labels(tmp_path / "labels.nii.gz", tmp_path / "table.csv", AFFINE, CROP)
    (tmp_path / "table.csv").write_text("index,name\n3\n" + "9" * 5000 + ",a\n16777217,b\n3," + "a" * 10 ** 6 + "\n")
    with pytest.raises(InputError, match=r"4 problem\(s\)") as error:
        read_labels(tmp_path / "labels.nii.gz", tmp_path / "table.csv", AFFINE, CROP)
    assert len(str(error.value)) < 4 * (300 + len(str(tmp_path)))
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbfindex,name\n3,a\n")                  # as Excel writes it
    assert list(read_labels(tmp_path / "labels.nii.gz", tmp_path / "table.csv", AFFINE, CROP)) == ["a"]
    (tmp_path / "table.csv").write_text("number,name\n3,a\n")
    with pytest.raises(InputError, match="index missing, found number, name"):
        read_labels(tmp_path / "labels.nii.gz", tmp_path / "table.csv", AFFINE, CROP)
