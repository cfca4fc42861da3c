"""Places of voxels in space: the crop, the grid, and bringing a volume from one grid onto another."""
from collections.abc import Iterable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import inv_ornt_aff, io_orientation
from scipy.ndimage import affine_transform

SAME_PLACE_MM = 0.1          # of the box's corners; registration tools write affines in float32


@dataclass(frozen=True)
class Crop:
    """The box of a volume that the networks see, in voxels of the RAS-oriented volume."""
    start: tuple[int, int, int]
    size: tuple[int, int, int]

    def slices(self, shift: Iterable[int] = (0, 0, 0)) -> tuple[slice, ...]:
        """Index of the box, moved by `shift` voxels. Raises ValueError unless `shift` has three entries."""
        return tuple(slice(a + d, a + d + n) for a, n, d in zip(self.start, self.size, shift, strict=True))

    def affine(self, affine: np.ndarray, downscale: int = 1) -> np.ndarray:
        """Affine [4, 4] of the box, or of its latent, from the affine [4, 4] of the whole RAS volume.

        A latent voxel covers downscale^3 voxels and lies at their centre.
        """
        return affine @ block_affine(np.full(3, downscale), np.array(self.start))


@dataclass(frozen=True)
class Grid:
    """The places of a volume's voxels: its shape and its affine [4, 4], axes in RAS order."""
    shape: tuple[int, ...]
    affine: np.ndarray

    @classmethod
    def of(cls, header: nib.Nifti1Header) -> "Grid":
        """Grid of a file of three dimensions after its axes are brought to RAS."""
        shape, affine = header.get_data_shape(), header.get_best_affine()
        ornt = io_orientation(affine)
        ras_shape = np.array(shape)[np.argsort(ornt[:, 0])]
        return cls(tuple(ras_shape.tolist()), affine @ inv_ornt_aff(ornt, shape))

    def corners(self) -> np.ndarray:
        """Centres of the eight outermost voxels in mm, [8, 3], from voxel 0, 0, 0 to the one opposite."""
        first_and_last = [(0, n - 1) for n in self.shape]
        return apply_affine(self.affine, np.stack(np.meshgrid(*first_and_last), axis=-1).reshape(-1, 3))

    def same(self, other: "Grid") -> bool:
        """Whether two grids are one, apart from rounding in their affines."""
        if self.shape != other.shape:
            return False
        return np.allclose(self.corners(), other.corners(), rtol=0, atol=SAME_PLACE_MM)


def block_affine(block: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Affine [4, 4] from indices of blocks of voxels to indices of voxels, of centre to centre.

    block: [3], voxels of a block along each axis. first: [3], first voxel of the first block.
    """
    affine = np.diag(np.append(block, 1.0))
    affine[:3, 3] = first + (block - 1) / 2                # the centre of a block
    return affine


def resample(voxels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Bring a volume [X, Y, Z] with affine [4, 4] onto another grid, float32; 0 where it does not reach.

    Each new voxel is the mean of linear interpolations at points inside it, which stand as close as the old
    voxels. Between grids that share their voxel faces this is exactly the mean of the old voxels that lie in
    the new one, and no detail of a fine volume is skipped.
    """
    step = np.linalg.inv(affine) @ grid.affine             # index of a new voxel -> index in the old volume
    widths = np.linalg.norm(step[:3, :3], axis=0)          # of a new voxel along its own axes, in old voxels
    points = np.maximum(1, np.ceil(widths - 0.01)).astype(int)  # inside a new voxel along each axis
    fine = step @ np.linalg.inv(block_affine(points, np.zeros(3)))
    nx, ny, nz = grid.shape
    slab_shape = (points[0], ny * points[1], nz * points[2])
    resampled = np.empty(grid.shape, np.float32)
    for x in range(nx):                                    # all points at once may not fit into memory
        offset = fine[:3, 3] + x * points[0] * fine[:3, 0]
        slab = affine_transform(voxels, fine[:3, :3], offset, slab_shape, np.float32, order=1,
                                mode="grid-constant")
        resampled[x] = slab.reshape(points[0], ny, points[1], nz, points[2]).mean(axis=(0, 2, 4))
    return resampled
