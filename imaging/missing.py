"""Missing voxels: whether NaN lies outside the brain, where programs write it for nothing, or inside."""
import numpy as np
from scipy.ndimage import label

AT_BORDER = 0.1              # share of its surface that NaN around a head or beyond a field of view has there


def nan_inside(voxels: np.ndarray) -> np.ndarray:
    """Mask of the NaN voxels of [X, Y, Z] that lie inside the brain, whatever the grid.

    Tissue is what is neither NaN nor 0. NaN is inside if tissue surrounds it; in slices without tissue
    between slices with; and if it touches tissue, is more than two voxels thick and hardly reaches the border
    of the volume: a part of a brain with 0 around it.
    """
    nan = np.isnan(voxels)
    tissue = ~nan & (voxels != 0)
    parts, count = label(~tissue)
    enclosed = np.ones(count + 1, bool)
    for axis in range(3):
        for face in (0, -1):
            enclosed[np.take(parts, face, axis)] = False
    inside = nan & enclosed[parts]
    for axis in range(3):
        _add_slices(*(np.moveaxis(mask, axis, 0) for mask in (inside, nan, tissue)))
    if np.array_equal(nan, ~tissue):                       # NaN all around: nothing tells it from tissue
        return inside
    return inside | _lost_parts(nan, tissue)


def _add_slices(inside: np.ndarray, nan: np.ndarray, tissue: np.ndarray) -> None:
    """Add to the mask the NaN of slices without tissue, where the nearest slices with tissue have some on
    both sides of it. All [slices, ...]."""
    filled = np.flatnonzero(tissue.any(axis=(1, 2)))
    for before, after in zip(filled[:-1], filled[1:], strict=True):
        gap = slice(before + 1, after)
        if after > before + 1 and (nan[gap] & tissue[before] & tissue[after]).any():
            inside[gap] |= nan[gap]


def _lost_parts(nan: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Mask of the connected NaN that touches tissue, is more than two voxels thick and has less than
    AT_BORDER of its surface at the border of the volume."""
    parts, count = label(nan)
    core = nan
    at_border, surface, touches = np.zeros(count + 1), np.zeros(count + 1), np.zeros(count + 1, bool)
    for axis in range(3):
        core = _and_neighbours(core, axis)
        along, masks = np.moveaxis(parts, axis, 0), [np.moveaxis(mask, axis, 0) for mask in (nan, tissue)]
        for face in (along[0], along[-1]):
            at_border += np.bincount(face.ravel(), minlength=count + 1)
        for here, there in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            surface += np.bincount(along[here][masks[0][here] & ~masks[0][there]], minlength=count + 1)
            touches[along[here][masks[0][here] & masks[1][there]]] = True
    is_thick = np.zeros(count + 1, bool)
    is_thick[parts[core]] = True
    lost = is_thick & touches & (at_border < AT_BORDER * (surface + at_border))
    lost[0] = False                                        # what is not NaN
    return lost[parts]


def _and_neighbours(mask: np.ndarray, axis: int) -> np.ndarray:
    """The mask where both neighbours along an axis belong to it too; what lies beyond the volume does."""
    along = np.moveaxis(mask, axis, 0)
    found = along.copy()
    found[1:] &= along[:-1]
    found[:-1] &= along[1:]
    return np.moveaxis(found, 0, axis)
