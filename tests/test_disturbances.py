"""Disturbances of MRIs, each against what can be reckoned by hand."""
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import center_of_mass

from studies.disturbances import (
    Disturbance,
    average_blocks,
    bias_field,
    block_of,
    dilated,
    eroded,
    moved,
    shifted,
    turned,
    with_bias,
    with_gamma,
    with_noise,
    with_thick_slices,
)

N = 24
AT_4_MM = from_matvec(np.diag([4.0, 4, 4]), (-46, -46, -46))    # the centre of N^3 voxels is at 0, 0, 0
ORIGIN = np.zeros(3)


def brain(n: int = N, value: float = 0.5) -> np.ndarray:
    """A ball of one value in a box of 0, [n, n, n] float32."""
    grid = np.indices((n, n, n)) - (n - 1) / 2
    return np.where((grid ** 2).sum(axis=0) < (0.35 * n) ** 2, value, 0).astype(np.float32)


def blob(n: int = N, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """A smooth hill at `centre` in voxels from the middle, [n, n, n] float32."""
    grid = np.indices((n, n, n)) - (n - 1) / 2 - np.reshape(centre, (3, 1, 1, 1))
    return np.exp(-(grid ** 2).sum(axis=0) / (2 * 3.0 ** 2)).astype(np.float32)


def random(seed: int = 0) -> np.random.Generator:
    """Random numbers."""
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- intensities

@pytest.mark.parametrize("change", [
    lambda mri: with_bias(mri, AT_4_MM, random(), percent=0),
    lambda mri: with_noise(mri, AT_4_MM, random(), percent=0),
    lambda mri: with_gamma(mri, AT_4_MM, random(), gamma=1),
    lambda mri: moved(mri, AT_4_MM, turned(ORIGIN, random(), axis="x", degrees=0)),
    lambda mri: moved(mri, AT_4_MM, shifted(ORIGIN, random(), millimetres=0))])
def test_nothing_happens_at_strength_0(change):
    mri = brain() * np.linspace(0.2, 1, N, dtype=np.float32)
    assert change(mri) == pytest.approx(mri, abs=1e-6)


@pytest.mark.parametrize("percent", [20, 40, 100])
def test_a_bias_field_varies_by_its_per_cent_over_the_brain_and_is_smooth(percent):
    inside = brain() > 0
    field = bias_field(inside, percent, random())
    assert field[inside].min() == pytest.approx(1 - percent / 200)
    assert field[inside].max() == pytest.approx(1 + percent / 200)
    steps = [np.abs(np.diff(field, axis=axis)).max() for axis in range(3)]
    assert max(steps) < percent / 100 / 2                  # a field of noise has steps of all its range


def test_the_bias_multiplies_the_mri_and_leaves_the_background():
    mri = brain()
    changed = with_bias(mri, AT_4_MM, random(), percent=20)
    assert (changed[mri > 0].min(), changed[mri > 0].max()) == pytest.approx((0.45, 0.55))
    assert (changed[mri == 0] == 0).all()
    stronger = with_bias(mri, AT_4_MM, random(), percent=40)
    assert stronger - mri == pytest.approx(2 * (changed - mri), abs=1e-6)      # one field, two strengths


@pytest.mark.parametrize(("percent", "std"), [(3, 0.015), (9, 0.045), (20, 0.1)])
def test_noise_has_the_standard_deviation_that_is_stated(percent, std):
    mri = brain(60)
    noise = (with_noise(mri, AT_4_MM, random(), percent=percent) - mri)[mri > 0]
    assert noise.std() == pytest.approx(std, rel=0.02)     # of 0.5, the 95th percentile of this brain
    assert abs(noise.mean()) < 4 * std / np.sqrt(noise.size)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.02


def test_noise_leaves_the_background_and_the_range():
    mri = brain(value=0.98)
    changed = with_noise(mri, AT_4_MM, random(), percent=50)
    assert (changed[mri == 0] == 0).all()
    assert changed.min() >= 0 and changed.max() <= 1


def test_gamma_by_hand():
    mri = np.array([[[0, 0.25, 0.81, 1]]], np.float32)
    assert with_gamma(mri, AT_4_MM, random(), gamma=0.5).ravel() == pytest.approx([0, 0.5, 0.9, 1])
    assert with_gamma(mri, AT_4_MM, random(), gamma=2).ravel() == pytest.approx([0, 0.0625, 0.6561, 1])


def test_what_a_subject_gets_depends_on_seed_kind_and_id_alone():
    weak = Disturbance("noise_3", "", "noise")
    strong, other = Disturbance("noise_9", "", "noise"), Disturbance("bias_20", "", "bias")
    first = weak.random(0, "s1").random(4)
    assert (weak.random(0, "s1").random(4) == first).all()
    assert (strong.random(0, "s1").random(4) == first).all()                   # two strengths of one noise
    for drawn in (weak.random(0, "s2"), weak.random(1, "s1"), other.random(0, "s1")):
        assert (drawn.random(4) != first).all()


# ---------------------------------------------------------------- slices

@pytest.mark.parametrize(
    ("voxel", "thickness", "block"),
    [
        (1, 2, 2),
        (0.5, 2, 4),
        (0.7, 2, 3),
        (1.5, 2, 2),
        (2, 2, 2),
        (4, 2, 2),
        (1, 5, 5),
        (1.2, 5, 4),
        (1, 0, 2),
    ],
)
def test_slices_are_whole_voxels_and_at_least_two(voxel, thickness, block):
    assert block_of(thickness, np.diag([1, 1, voxel, 1])) == block


def test_slices_are_averaged_along_z_and_interpolated_by_hand():
    mri = np.array([1, 2, 3, 4, 5], np.float32)[None, None]
    assert average_blocks(mri, 2).ravel().tolist() == [1.5, 3.5, 5]
    # centres at 0.5, 2.5 and 4
    changed = with_thick_slices(mri, np.eye(4), random(), thickness_mm=2)
    assert changed.ravel() == pytest.approx([1.5, 2, 3, 4, 5])


@pytest.mark.parametrize("n", [4, 5, 7, 1])
def test_thick_slices_change_nothing_across_and_nothing_that_is_constant(n):
    mri = np.repeat(random().random((3, 4, 1), np.float32), n, axis=2)
    assert with_thick_slices(mri, np.eye(4), random(), thickness_mm=3) == pytest.approx(mri)


def test_within_a_slice_all_detail_is_lost():
    mri = random().random((3, 4, 6), np.float32)
    swapped = mri[:, :, [1, 0, 3, 2, 5, 4]]                # the two voxels of each slice change places
    changed = [with_thick_slices(one, np.eye(4), random(), thickness_mm=2) for one in (mri, swapped)]
    assert changed[0] == pytest.approx(changed[1])


# ---------------------------------------------------------------- another brain mask

def cube(n: int, side: int) -> np.ndarray:
    """A cube of random values above 0 in the middle of a box of 0, [n, n, n] float32."""
    mri, first = np.zeros((n, n, n), np.float32), (n - side) // 2
    inside = (slice(first, first + side),) * 3
    mri[inside] = random().uniform(0.2, 1, (side,) * 3)
    return mri


@pytest.mark.parametrize(
    ("voxels", "depth", "left"),
    [
        ((4, 4, 4), 4, (8, 8, 8)),
        ((1, 1, 1), 4, (2, 2, 2)),
        ((8, 8, 8), 4, (8, 8, 8)),
        ((2, 2, 2), 4, (6, 6, 6)),
        ((1, 1, 4), 4, (2, 2, 8)),
        ((3, 3, 3), 4, (8, 8, 8)),
        ((4, 4, 4), 0, (8, 8, 8)),
    ],
)
def test_erosion_takes_the_rim_away(voxels, depth, left):
    mri = cube(16, 10)
    changed = eroded(mri, np.diag([*voxels, 1]), random(), depth_mm=depth)
    extent = [np.ptp(places) + 1 for places in np.nonzero(changed)]
    assert tuple(extent) == left and (changed > 0).sum() == np.prod(left)
    assert (changed[changed > 0] == mri[changed > 0]).all()


def test_dilation_adds_a_rim_of_the_nearest_intensities():
    mri = cube(16, 10)
    changed = dilated(mri, np.diag([4, 4, 4, 1]), random(), depth_mm=4)
    assert (changed[mri > 0] == mri[mri > 0]).all()
    assert (changed > 0).sum() == 10 ** 3 + 6 * 10 ** 2    # a voxel beyond each face, none beyond the edges
    assert (changed[2, 3:13, 3:13] == mri[3, 3:13, 3:13]).all()
    assert (dilated(mri, np.eye(4), random(), depth_mm=2)[1, 3:13, 3:13] == mri[3, 3:13, 3:13]).all()


def test_a_hole_in_the_brain_is_no_rim():
    mri = cube(16, 10)
    mri[7:9, 7:9, 7:9] = 0
    for change in (eroded, dilated):
        changed = change(mri, np.diag([4, 4, 4, 1]), random(), depth_mm=4)
        assert (changed[5:11, 5:11, 5:11] == mri[5:11, 5:11, 5:11]).all()


# ---------------------------------------------------------------- places

@pytest.mark.parametrize("axis", "xyz")
def test_turned_there_and_back_is_near_the_original_inside(axis):
    mri, there = blob(centre=(4, -4, 5)), turned(ORIGIN, random(), axis=axis, degrees=10)
    back = turned(ORIGIN, random(), axis=axis, degrees=-10)
    once = moved(mri, AT_4_MM, there)
    twice = moved(once, AT_4_MM, back)
    assert np.abs(once - mri).max() > 0.1
    assert np.abs(twice - mri)[4:-4, 4:-4, 4:-4].max() < 0.05                   # two linear interpolations
    assert there @ back == pytest.approx(np.eye(4))


@pytest.mark.parametrize(("axis", "to"), [("x", (3, -1, 2)), ("y", (1, 2, -3)), ("z", (-2, 3, 1))])
def test_a_turn_by_90_degrees_by_hand(axis, to):
    """The hill at (3, 2, 1): about z, x goes to y and y to -x, and so on."""
    changed = moved(blob(centre=(3, 2, 1)), AT_4_MM, turned(ORIGIN, random(), axis=axis, degrees=90))
    assert changed == pytest.approx(blob(centre=to), abs=1e-4)


AFFINES = {
    "1 mm": from_matvec(np.eye(3), (-12, -12, -12)), "4 mm": AT_4_MM,
    "anisotropic": from_matvec(np.diag([1.0, 2, 3]), (5, -7, 9)),
    "oblique": from_matvec(turned(ORIGIN, random(), axis="y", degrees=7)[:3, :3] * 2.0, (1, 2, 3))}


@pytest.mark.parametrize("name", AFFINES)
def test_a_shift_moves_the_centre_of_mass_by_its_millimetres(name):
    affine, mri = AFFINES[name], blob(40)
    changed = moved(mri, affine, shifted(ORIGIN, random(), millimetres=5))
    before, after = (apply_affine(affine, center_of_mass(volume)) for volume in (mri, changed))
    assert np.linalg.norm(after - before) == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize("name", AFFINES)
def test_a_turn_moves_the_centre_of_mass_as_reckoned_through_the_affine(name):
    affine = AFFINES[name]
    centre = apply_affine(affine, np.full(3, (N - 1) / 2))
    motion = turned(centre, random(), axis="z", degrees=10)
    assert apply_affine(motion, centre) == pytest.approx(centre)
    mri = blob(centre=(3, 2, 1))
    before = apply_affine(affine, center_of_mass(mri)) - centre
    after = apply_affine(affine, center_of_mass(moved(mri, affine, motion))) - centre
    c, s = np.cos(np.pi / 18), np.sin(np.pi / 18)
    expected = (c * before[0] - s * before[1], s * before[0] + c * before[1], before[2])
    assert after == pytest.approx(expected, abs=0.05)


def test_shifts_of_subjects_have_directions_of_their_own_and_one_length():
    ways = [shifted(ORIGIN, random(i), millimetres=5)[:3, 3] for i in range(50)]
    assert np.linalg.norm(ways, axis=1) == pytest.approx(np.full(50, 5.0))
    assert np.linalg.norm(np.mean(ways, axis=0)) < 2       # 0.7 is expected


@pytest.mark.parametrize("moves_mri", [True, False])
def test_the_pet_of_a_moved_mri_is_brought_back(moves_mri):
    mri = blob(centre=(4, -4, 5))
    turn_x = Disturbance("turned_x", "", "turn", moves_mri=moves_mri,
                         motion=lambda centre, rng: turned(centre, rng, axis="x", degrees=10))
    changed = turn_x.disturb(mri, AT_4_MM, ORIGIN, 0, "s1")
    assert bool(np.abs(changed - mri).max() > 0.1) is moves_mri
    back = turn_x.bring_back(changed, AT_4_MM, ORIGIN, 0, "s1")                 # as if the PET were the MRI
    assert np.abs(back - mri)[4:-4, 4:-4, 4:-4].max() < 0.05
    assert np.abs(back - mri).max() > 1e-3                 # the control pays for its interpolations too


def test_a_pet_whose_mri_stayed_in_place_stays_too():
    pet = blob()
    assert Disturbance("noise_3", "", "noise").bring_back(pet, AT_4_MM, ORIGIN, 0, "s1") is pet


# ---------------------------------------------------------------- odd MRIs

CHANGES = {"bias": lambda mri: with_bias(mri, AT_4_MM, random(), percent=40),
           "noise": lambda mri: with_noise(mri, AT_4_MM, random(), percent=9),
           "gamma": lambda mri: with_gamma(mri, AT_4_MM, random(), gamma=0.7),
           "slices": lambda mri: with_thick_slices(mri, AT_4_MM, random(), thickness_mm=2),
           "eroded": lambda mri: eroded(mri, AT_4_MM, random(), depth_mm=4),
           "dilated": lambda mri: dilated(mri, AT_4_MM, random(), depth_mm=4),
           "turned": lambda mri: moved(mri, AT_4_MM, turned(ORIGIN, random(), axis="x", degrees=10)),
           "shifted": lambda mri: moved(mri, AT_4_MM, shifted(ORIGIN, random(), millimetres=5))}


def odd_mris() -> dict[str, np.ndarray]:
    """MRIs at the edge of what may come."""
    one_voxel = np.zeros((6, 6, 6), np.float32)
    one_voxel[3, 3, 3] = 0.5
    beyond = brain(8)
    beyond[4, 4, 4] = 1 + 5e-6                             # as a scale factor in float32 leaves it
    read_only = brain(8)
    read_only.setflags(write=False)
    return {"nothing but 0": np.zeros((6, 6, 6), np.float32), "one voxel": one_voxel,
            "no background": np.full((6, 6, 6), 0.5, np.float32), "all 1": np.ones((6, 6, 6), np.float32),
            "a rounding above 1": beyond, "no cube": brain(12)[:, 2:9, 1:], "one slice": brain(9)[:, :, 4:5],
            "Fortran order": np.asfortranarray(brain(8)), "read only": read_only,
            "a map of a file": np.asarray(nib.Nifti1Image(brain(8), AT_4_MM).dataobj)}


@pytest.mark.parametrize("kind", odd_mris())
@pytest.mark.parametrize("name", CHANGES)
def test_odd_mris_stay_volumes_in_the_range_and_are_not_changed_in_place(name, kind):
    mri = odd_mris()[kind]
    before = mri.copy()
    changed = CHANGES[name](mri)
    assert changed.shape == mri.shape and changed.dtype == np.float32
    assert np.isfinite(changed).all() and changed.min() >= 0 and changed.max() <= max(1, mri.max()) + 1e-6
    assert (mri == before).all()
    if kind == "nothing but 0":
        assert not changed.any()
