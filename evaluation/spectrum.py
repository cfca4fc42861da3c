"""Texture of a synthetic PET: its power spectrum against that of the real one, and the checkerboard that
upsampling leaves.

PSNR and SSIM hardly see either: a mean of many PETs is too smooth, and a checkerboard of single voxels too
faint.
"""
import numpy as np
from scipy.fft import fftfreq, rfftfreq, rfftn
from scipy.ndimage import distance_transform_edt

# spectrum_brain: mean over bins of frequency of |10 log10 (synthetic / real power)| inside the brain, in dB.
# nyquist: share of the box's power at the highest frequency of an axis, in millionths; nyquist_real: of the
# real PET.
SPECTRAL = ("spectrum_brain", "nyquist", "nyquist_real")
RIM = 20.0                                                 # mm; of the brain, in which volumes fade out
LEAST = 1e-12                                              # of the real power; a bin with less counts as that


def power(volume: np.ndarray) -> np.ndarray:
    """Power of every frequency of a volume [D, H, W], as rfftn orders them: [D, H, W // 2 + 1]. What rfftn
    leaves out, because it is the same, counts with its twin."""
    found = rfftn(volume)
    found = found.real ** 2 + found.imag ** 2
    found[:, :, 1:(volume.shape[2] + 1) // 2] *= 2
    return found


def nyquist_share(volume: np.ndarray) -> float:
    """Share of the power of a volume [D, H, W] at the highest frequency of any axis, where a checkerboard of
    single voxels lies, in millionths; NaN of a volume of zeros."""
    found = power(volume)
    total = found.sum(dtype=np.float64)
    if total == 0:
        return float("nan")
    d, h, w = (n // 2 for n in volume.shape)
    highest = found[d].sum(dtype=np.float64)
    found[d] = 0                                           # counted, and not again with the next axis
    highest += found[:, h].sum(dtype=np.float64)
    found[:, h] = 0
    highest += found[:, :, w].sum(dtype=np.float64)
    return float(1e6 * highest / total)


class RadialSpectrum:
    """The power of volumes inside the brain, by the length of the frequency.

    brain: [D, H, W] bool. voxel: its sides in mm. rim: mm from the brain's surface inward over which a volume
    fades out, along sin^2: else the step at the surface, which all PETs share, hides what lies within.
    Bin k = 1, 2, ... is centred on k / (shortest side of the box in mm) cycles per mm. The last one is the
    last that is not above the highest frequency of every axis.
    """

    def __init__(self, brain: np.ndarray, voxel: tuple[float, float, float], rim: float = RIM):
        depth = distance_transform_edt(np.pad(brain, 1), sampling=voxel)[1:-1, 1:-1, 1:-1]               # mm
        self.window = np.sin(np.pi / 2 * np.minimum(depth / rim, 1)).astype(np.float32) ** 2
        self.bins, self.last = _bins(brain.shape, voxel)

    def of(self, volume: np.ndarray) -> np.ndarray:
        """Power of a volume [D, H, W] less its mean, from low to high frequencies: [bins]."""
        mean = (volume * self.window).sum() / self.window.sum()
        found = power((volume - mean) * self.window)
        return np.bincount(self.bins, found.ravel(), minlength=self.last + 2)[1:self.last + 1]

    def error(self, x_hat: np.ndarray, x: np.ndarray) -> float:
        """Mean over the bins of |10 log10 (power of x_hat / power of x)| in dB, both [D, H, W]; NaN where x
        is the same everywhere in the brain. A bin with less than LEAST of x's power counts as that."""
        real = self.of(x)
        if not real.any():
            return float("nan")
        least = LEAST * real.sum()
        ratio = np.maximum(self.of(x_hat), least) / np.maximum(real, least)
        return float(np.abs(10 * np.log10(ratio)).mean())


def _bins(shape: tuple[int, int, int], voxel: tuple[float, float, float]) -> tuple[np.ndarray, int]:
    """The bin of every frequency of rfftn, [D * H * (W // 2 + 1)], and the number of the last bin of a
    RadialSpectrum; what lies above has the number after it."""
    sides = [n * side for n, side in zip(shape, voxel, strict=True)]                    # of the box, in mm
    step = 1 / min(sides)                                                               # cycles per mm
    highest = min(n // 2 / side for n, side in zip(shape, sides, strict=True))
    last = int(highest / step + 1e-9)                      # 1e-9: for rounding
    axes = [fftfreq(shape[0], voxel[0]), fftfreq(shape[1], voxel[1]), rfftfreq(shape[2], voxel[2])]
    d, h, w = np.meshgrid(*axes, indexing="ij", sparse=True)
    length = np.sqrt(d ** 2 + h ** 2 + w ** 2)
    return np.minimum(length / step + 0.5 + 1e-9, last + 1).astype(np.intp).ravel(), last
