"""The mean anatomy of the digital phantom on the cohort's grid: tissues, amyloid, atrophy, SUVR regions.

It is derived from the MNI152 2009a maps that nilearn carries and from landmarks in MNI millimetres, x to the
right, y to the front, z up. Fractions are tissue per voxel in [0, 1].
"""
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.optimize import brentq
from scipy.special import expit

from phantom.kinds import AMYLOID, PLAIN, Kind

CORNER = np.array([-90.5, -126.5, -72.5])     # mm, outer corner of the first voxel
FIELD_OF_VIEW = np.array([181, 217, 181])     # mm; paper: so many voxels, the first at (-90, -126, -72)
REFERENCE_FLOOR = -60.0                       # mm; the paper's crop begins at z = -62.5
GREY_UPTAKE, CEREBELLAR_UPTAKE = 0.77, 0.95   # without amyloid; any SUVR from 0.9 upward is in reach
CORTEX_LOSS = 0.10                            # of the volume of the cortex that thins, per SD of atrophy
VENTRICLE_PUSH, PUSH_MM = 2.0, 10.0           # mm per SD of atrophy; mm over which it fades

# Height z of the tentorium, which parts cerebellum and cerebrum, from the template's T1: rows y, columns |x|.
TENTORIUM_Y = (-100, -86, -78, -68, -58, -48, -40, -30)
TENTORIUM_X = (0, 10, 20, 30, 40, 50, 75)
TENTORIUM_Z = np.array([[-22, -22, -22, -22, -22, -22, -22],
                        [-19, -20, -21, -21, -22, -22, -22],
                        [-16, -17, -19, -20, -22, -22, -22],
                        [-8, -13, -16, -18, -20, -21, -22],
                        [2, -6, -13, -18, -22, -24, -26],
                        [0, -8, -15, -21, -26, -29, -31],
                        [-6, -12, -19, -25, -29, -31, -33],
                        [-14, -18, -24, -29, -32, -34, -36]], dtype=float)


@dataclass(frozen=True)
class Template:
    """The mean anatomy on the cohort's grid: maps [X, Y, Z] float32, masks bool, push [3, X, Y, Z]."""
    voxel_mm: int
    axes: tuple[np.ndarray, ...]   # mm, voxel centres along x, y, z
    t1: np.ndarray                 # intensity in [0, 1]
    brain: np.ndarray              # fraction
    grey: np.ndarray               # fraction
    white: np.ndarray              # fraction
    baseline: np.ndarray           # uptake of a grey voxel without amyloid
    amyloid: np.ndarray            # amyloid of a grey voxel relative to the composite, in [0, 1]
    thinning: np.ndarray           # shift of the log odds of grey against CSF per SD of atrophy
    push: np.ndarray               # mm per SD of atrophy, outward from the lateral ventricles
    distance: np.ndarray           # mm to the nearest brain voxel
    cortex: np.ndarray             # mask of the target composite
    cerebellum: np.ndarray         # mask of the reference region

    @property
    def affine(self) -> np.ndarray:
        """[4, 4], voxel index to MNI millimetres, RAS."""
        return grid_affine(self.voxel_mm)


def grid_affine(voxel_mm: int) -> np.ndarray:
    """The affine [4, 4] of the cohort's grid at a voxel size: voxel index to MNI millimetres, RAS."""
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = CORNER + voxel_mm / 2
    return affine


def block_mean(image: nib.Nifti1Image, voxel_mm: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Mean of a 1 mm image (times mask, of its own grid) over each voxel of the cohort's grid.

    Returns [X, Y, Z] float32. The two grids share their voxel faces, hence the mean over the voxel is exact
    and needs no interpolation.
    """
    start = np.linalg.solve(image.affine, np.append(CORNER + 0.5, 1))[:3]
    assert np.allclose(image.affine[:3, :3], np.eye(3)), "the template is not the 1 mm RAS one"
    assert np.allclose(start, start.round()), "the template's voxel faces are not those of the cohort's grid"
    shape = FIELD_OF_VIEW // voxel_mm
    box = tuple(slice(a, a + n * voxel_mm) for a, n in zip(start.round().astype(int), shape, strict=True))
    array = np.asarray(image.dataobj, dtype=np.float32)
    array = (array if mask is None else array * mask)[box]
    blocks = array.reshape(shape[0], voxel_mm, shape[1], voxel_mm, shape[2], voxel_mm)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def ellipsoid(x, y, z, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """Roughly the signed distance in mm to an ellipsoid's surface, positive inside. x is |x|."""
    squares = [((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radii, strict=True)]
    radius = np.sqrt(sum(squares))
    return (1 - radius) * np.mean(radii)


def smallest(*distances) -> np.ndarray:
    """Signed distance to the intersection of regions: the smallest of theirs, elementwise, broadcast."""
    result = distances[0]
    for distance in distances[1:]:
        result = np.minimum(result, distance)
    return result


def landmarks(axes: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Signed distances in mm, positive inside, of the regions that are not target cortex.

    axes: mm, voxel centres along x, y, z. Returns name -> [X, Y, Z], or a shape that broadcasts to it.
    Borders were read off the MNI152 T1: good to a few millimetres, as the PET's resolution asks, and no
    atlas.
    """
    x, y, z = (a.astype(np.float32) for a in np.meshgrid(*axes, indexing="ij", sparse=True))
    x = np.abs(x)
    plane = np.stack(np.broadcast_arrays(y.clip(-100, -30), x.clip(0, 75)), axis=-1)
    roof = RegularGridInterpolator((TENTORIUM_Y, TENTORIUM_X), TENTORIUM_Z)(plane)      # [X, Y, 1]
    midline_front = -40 - 8 * ((-20 - z) / 20).clip(0, 1)             # behind pons, fourth ventricle, medulla
    front = -33 + (midline_front + 33) * expit((15 - x) / 2)          # to the side, behind the peduncle
    central = -33 + 0.009 * x ** 2                                    # y of the central sulcus
    sylvian = sylvian_fissure(y)
    parieto_occipital = -66 - 0.4 * (z - 10).clip(0)                  # y of the sulcus, seen from the side
    return {
        "roof": z - roof,                                             # above the tentorium
        "occipital": parieto_occipital - y,
        "central_gap": np.abs(y - central) - 16,                      # outside both gyri beside the sulcus
        "behind_centre": central - y,
        "sensorimotor": smallest(15 - np.abs(y - central), z - (48 - 0.65 * x)),
        "medial_temporal": ellipsoid(x, y, z, (26, -18, -18), (16, 26, 16)),
        "temporal": smallest(x - 18, sylvian - z, y + 62, 25 - y, z - roof),
        "insula": ellipsoid(x, y, z, (37, 2, 4), (8, 24, 16)),
        "ventricles": ellipsoid(x, y, z, (14, -10, 13), (22, 42, 19)),    # their walls look grey in the maps
        "striatum": ellipsoid(x, y, z, (20, 6, 4), (14, 22, 18)),
        "thalamus": ellipsoid(x, y, z, (10, -18, 6), (13, 15, 12)),
        "brainstem": smallest(17 - x, -10 - y, y + 50, -8 - z),
        "cerebellum": smallest(roof - 1 - z, front - y),
    }


def sylvian_fissure(y):
    """Height z of the Sylvian fissure at y, both in mm."""
    return (-4 - 0.55 * y).clip(None, 20)


def composite(axes: tuple[np.ndarray, ...], near: dict[str, np.ndarray]) -> np.ndarray:
    """The target composite, [X, Y, Z] bool: frontal, cingulate, precuneus, lateral parietal and temporal.

    axes: mm, voxel centres along x, y, z. near: from landmarks. Margins of some millimetres keep the
    neighbours' signal out.
    """
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    x = np.abs(x)
    gap, behind, occipital = near["central_gap"], near["behind_centre"], near["occipital"]
    above_temporal_pole = np.maximum(z - 6, y - 25)                  # the pole: behind y = 25, below z = 6
    sylvian = sylvian_fissure(y)
    regions = (
        smallest(gap, -behind, above_temporal_pole),                  # frontal
        smallest(10 - x, z - 14, 44 - z, y + 60),                     # cingulate
        smallest(18 - x, -44 - y, z - 20, -4 - occipital),            # precuneus
        smallest(x - 18, gap, behind, z - 24, -4 - occipital),        # lateral parietal
        smallest(x - 43, sylvian - z, y + 62, 12 - y, near["roof"] - 8, z + 28),   # lateral temporal
    )
    inside = np.zeros([len(a) for a in axes], dtype=bool)
    for region in regions:
        inside |= region > 0
    for name in ("sensorimotor", "medial_temporal", "insula", "ventricles", "striatum", "thalamus",
                 "brainstem", "cerebellum"):
        inside &= near[name] < -2
    return inside


def amyloid_pattern(near: dict[str, np.ndarray], levels: dict[str, float] = AMYLOID) -> np.ndarray:
    """Amyloid of grey matter relative to the composite, with borders some 4 mm wide.

    near: from landmarks. levels: region -> its amyloid; where two overlap, the later one counts. Returns
    [X, Y, Z] float32 in [0, 1].
    """
    pattern = np.float32(1)
    for name, level in levels.items():
        pattern = pattern + expit(near[name] / 2) * (level - pattern)
    return pattern.astype(np.float32)


def ventricle_push(ventricles: np.ndarray, voxel_mm: int) -> np.ndarray:
    """Displacement per SD of atrophy that widens the ventricles: down the slope of their blurred map.

    ventricles: [X, Y, Z], fraction. Returns [3, X, Y, Z] float32 in mm.
    """
    slope = np.stack(np.gradient(gaussian_filter(ventricles, PUSH_MM / voxel_mm)))
    return (-VENTRICLE_PUSH * slope / np.sqrt((slope ** 2).sum(0)).max()).astype(np.float32)


def thin(grey: np.ndarray, csf: np.ndarray, shift) -> np.ndarray:
    """Grey fraction after atrophy: the log odds of grey against CSF fall by shift.

    Voxels without CSF, deep in the ribbon, keep theirs.
    """
    kept = grey * np.exp(-shift)
    return (grey + csf) * kept / np.maximum(kept + csf, 1e-6)


def thinning_rate(grey: np.ndarray, csf: np.ndarray, cortical: np.ndarray) -> float:
    """Shift of the log odds for which 1 SD of atrophy costs CORTEX_LOSS of the cortical volume.

    grey, csf: fractions. cortical: weight in [0, 1]. All [X, Y, Z]. Solved on the cohort's own grid, because
    partial volume depends on the voxel.
    """
    lost = CORTEX_LOSS * float((grey * cortical).sum())
    mixed = (grey > 0) & (csf > 0)                                    # elsewhere thin changes nothing
    grey, csf, cortical = grey[mixed], csf[mixed], cortical[mixed]

    def excess_loss(rate: float) -> float:
        """Cortical volume that this rate costs beyond what it should, in voxels."""
        return float(((grey - thin(grey, csf, rate * cortical)) * cortical).sum()) - lost

    return brentq(excess_loss, 0, 10, xtol=1e-4)


def cortical_weight(near: dict[str, np.ndarray], atrophied: tuple[str, ...] = ()) -> np.ndarray:
    """Where grey matter thins, [X, Y, Z] float32 in [0, 1], with borders some 4 mm wide.

    near: from landmarks. atrophied: regions of the cortex; none: all of it.
    """
    deep = np.maximum.reduce([near[name] for name in ("striatum", "thalamus", "brainstem", "cerebellum")])
    weight = expit(-deep / 2).astype(np.float32)
    if atrophied:
        inside = np.maximum.reduce([near[name] for name in atrophied])
        weight = weight * expit(inside / 2).astype(np.float32)
    return weight


def load_template(voxel_mm: int, kind: Kind = PLAIN) -> Template:
    """The template of a kind of phantom at a voxel size in mm, from the maps that nilearn carries.

    Reads files of the installed package and downloads nothing.
    """
    from nilearn import datasets  # here, because it is slow to import and only the parent process needs it

    mask = datasets.load_mni152_brain_mask(resolution=1)
    inside = np.asarray(mask.dataobj) > 0
    brain = block_mean(mask, voxel_mm)
    t1 = block_mean(datasets.load_mni152_template(resolution=1), voxel_mm, inside)
    grey = block_mean(datasets.load_mni152_gm_template(resolution=1), voxel_mm, inside)
    white = block_mean(datasets.load_mni152_wm_template(resolution=1), voxel_mm, inside)
    csf = (brain - grey - white).clip(0)
    shape = FIELD_OF_VIEW // voxel_mm
    axes = tuple(corner + voxel_mm * (np.arange(n) + 0.5) for corner, n in zip(CORNER, shape, strict=True))

    near = landmarks(axes)
    cortical = cortical_weight(near, kind.atrophied)
    baseline = GREY_UPTAKE + (CEREBELLAR_UPTAKE - GREY_UPTAKE) * expit(near["cerebellum"] / 2)
    ventricles = csf * expit(near["ventricles"] / 2).astype(np.float32)
    return Template(
        voxel_mm, axes, t1, brain, grey, white,
        baseline=baseline.astype(np.float32),
        amyloid=amyloid_pattern(near, kind.amyloid),
        thinning=cortical * np.float32(thinning_rate(grey, csf, cortical)),
        push=ventricle_push(ventricles, voxel_mm),
        distance=distance_transform_edt(brain < 0.5, sampling=voxel_mm).astype(np.float32),
        cortex=composite(axes, near) & (grey > 0.4),
        cerebellum=(near["cerebellum"] > 1) & (grey + white > 0.7) & (axes[2] > REFERENCE_FLOOR))
