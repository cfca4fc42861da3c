"""The power spectrum and the grid of a PET, against volumes whose spectra are known by hand."""
import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.measurement import Measurement, MaskFiles
from evaluation.scores import summarize
from evaluation.spectrum import SPECTRAL, RadialSpectrum, nyquist_share, power
from imaging.grids import Crop
from utils import METRICS

SHAPE, CUBE = (20, 24, 16), (2.0, 2.0, 2.0)
NO_RIM = 0.1                                               # mm, less than a voxel: every voxel counts as 1


def whole_box(shape: tuple = SHAPE, voxel: tuple = CUBE) -> RadialSpectrum:
    """That of a box that is all brain."""
    return RadialSpectrum(np.ones(shape, dtype=bool), voxel, NO_RIM)


def error(x_hat: np.ndarray, x: np.ndarray, brain: np.ndarray, rim: float = NO_RIM) -> float:
    """spectrum_brain."""
    return RadialSpectrum(brain, CUBE, rim).error(x_hat, x)


def wave(axis: int, cycles: int, shape: tuple = SHAPE) -> np.ndarray:
    """A cosine of so many cycles along one axis of the box."""
    place = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(3)])
    return np.broadcast_to(np.cos(2 * np.pi * cycles * place / shape[axis]), shape).copy()


def blobs(seed: int) -> np.ndarray:
    """A random volume in [0, 1]."""
    return np.random.default_rng(seed).random(SHAPE)


def checkerboard(axes: tuple[int, ...]) -> np.ndarray:
    """1 and -1 in turn along these axes."""
    return (-1.0) ** sum(np.indices(SHAPE)[axis] for axis in axes)


@pytest.mark.parametrize("shape", [SHAPE, (7, 8, 9), (8, 7, 6)])
def test_the_power_of_all_frequencies_is_that_of_all_voxels(shape):
    volume = np.random.default_rng(0).random(shape)
    assert power(volume).sum() == pytest.approx(volume.size * (volume ** 2).sum())            # Parseval
    whole = np.abs(np.fft.fftn(volume)) ** 2
    assert power(volume)[2, 3, 0] == pytest.approx(whole[2, 3, 0])
    assert power(volume)[2, 3, 2] == pytest.approx(whole[2, 3, 2] + whole[-2, -3, -2])


@pytest.mark.parametrize(("axis", "cycles", "bin_number"), [(0, 5, 4), (1, 6, 4), (2, 4, 4), (2, 8, 8)])
def test_a_cosine_lies_in_the_bin_of_its_frequency(axis, cycles, bin_number):
    """Voxels of 2 mm: 5 cycles in 40 mm, 6 in 48 and 4 in 32 are all 1 in 8 mm, and a bin is 1 in 32 mm."""
    found = whole_box().of(wave(axis, cycles))
    assert len(found) == 8                                 # to 1 cycle in 4 mm
    assert found[bin_number - 1] == pytest.approx(found.sum())
    assert found.sum() == pytest.approx(wave(axis, cycles).size * (wave(axis, cycles) ** 2).sum())


def test_frequencies_are_physical_where_voxels_are_no_cubes():
    """16 voxels of 4 mm are 64 mm, so 8 cycles there are as 4 in the 32 mm of 16 voxels of 2 mm."""
    shape = (16, 16, 16)
    spectrum = whole_box(shape, (4.0, 2.0, 2.0))
    coarse, fine = spectrum.of(wave(0, 8, shape)), spectrum.of(wave(1, 4, shape))
    assert len(coarse) == 4                                # to 1 cycle in 8 mm, as the coarse axis
    assert coarse[3] == pytest.approx(coarse.sum()) and fine[3] == pytest.approx(fine.sum())
    assert spectrum.of(wave(1, 7, shape)).sum() == pytest.approx(0, abs=1e-6)


def test_white_noise_has_the_same_power_at_every_frequency():
    noise = np.random.default_rng(0).standard_normal((64, 64, 64))
    spectrum, impulse = whole_box(noise.shape), np.zeros(noise.shape)
    impulse[5, 6, 7] = 1                                   # of the same power at every frequency, exactly
    found = spectrum.of(noise) / spectrum.of(impulse)
    np.testing.assert_allclose(found[4:], noise.var() * noise.size, rtol=0.08)


def test_a_pet_of_another_scale_has_that_error_in_every_bin_and_one_of_another_level_none():
    x, brain = blobs(0), blobs(1) > 0.4
    assert error(2 * x, x, brain) == pytest.approx(20 * np.log10(2))
    assert error(x / 2, x, brain) == pytest.approx(20 * np.log10(2))
    assert error(x + 0.3, x, brain) == pytest.approx(0, abs=1e-9)
    outside = x + np.where(brain, 0, 5)
    assert error(outside, x, brain) == pytest.approx(0, abs=1e-9)


def test_the_error_is_the_mean_over_the_bins():
    """One of 8 bins has a hundredth of the power."""
    waves = [wave(2, cycles) for cycles in range(1, 9)]
    x_hat = sum(waves) - 0.9 * waves[3]
    assert whole_box().error(x_hat, sum(waves)) == pytest.approx(20 / 8)


def test_a_pet_without_texture_has_a_large_error_but_a_finite_one():
    flat = np.full(SHAPE, 0.5)
    assert 50 < whole_box().error(flat, blobs(0)) <= 120
    assert np.isnan(whole_box().error(blobs(0), flat))


def test_the_rim_fades_out_from_the_surface_inward_in_mm():
    brain, sides = np.zeros((16, 16, 16), dtype=bool), (1.0, 2.0, 3.0)
    brain[1:15, 1:15, :] = True                            # reaches the faces of the box
    window = RadialSpectrum(brain, sides, rim=6.0).window
    along = [window[:, 8, 8], window[8, :, 8], window[8, 8, :]]
    sines = [np.sin(np.pi / 12 * np.array(mm)) ** 2 for mm in ([0, 1, 2, 3, 4, 5, 6], [0, 2, 4, 6], [3, 6])]
    for found, expected in zip(along, sines, strict=True):
        np.testing.assert_allclose(found[:len(expected)], expected, atol=1e-6)
        np.testing.assert_allclose(found[::-1][:len(expected)], expected, atol=1e-6)


def test_without_a_rim_the_step_at_the_surface_hides_a_lost_texture():
    """Noise of half the size is 6 dB less. Uptake rises toward the surface, as in a PET."""
    places = np.indices((40, 40, 40)) - 19.5
    radius = np.sqrt((places ** 2).sum(0))
    smooth, noise = (radius / 18) ** 2, np.random.default_rng(0).standard_normal(radius.shape)
    lost = {}
    for rim in (NO_RIM, 20.0):
        spectrum = RadialSpectrum(radius < 18, CUBE, rim)
        ratio = spectrum.of(smooth + 0.025 * noise) / spectrum.of(smooth + 0.05 * noise)
        lost[rim] = 10 * np.log10(ratio[10:])              # where the noise is most of the spectrum
    assert (lost[NO_RIM] > -2).all()
    np.testing.assert_allclose(lost[20.0], -20 * np.log10(2), atol=0.8)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_checkerboard_lies_at_nyquist_and_a_wave_does_not(axes):
    assert nyquist_share(checkerboard(axes)) == pytest.approx(1e6)
    # 3 of 4 parts of the power are those of the mean: 1.0 ** 2, and the grid's 1 / 3
    assert nyquist_share(1 + np.sqrt(1 / 3) * checkerboard(axes)) == pytest.approx(0.25e6)
    assert nyquist_share(wave(axes[0], 3)) == pytest.approx(0, abs=1e-6)
    assert nyquist_share(1 + 0.01 * checkerboard(axes)) == pytest.approx(1e6 * 1e-4 / (1 + 1e-4))


def test_the_share_at_nyquist_is_that_of_the_whole_spectrum():
    volume = blobs(0)
    whole = np.abs(np.fft.fftn(volume)) ** 2
    highest = np.zeros(SHAPE, dtype=bool)
    highest[10], highest[:, 12], highest[:, :, 8] = True, True, True
    assert nyquist_share(volume) == pytest.approx(1e6 * whole[highest].sum() / whole.sum())
    assert np.isnan(nyquist_share(np.zeros(SHAPE)))


def test_every_measure_of_a_scan_has_the_spectrum_with_the_sides_of_its_voxels():
    x, x_hat = (blobs(seed).astype(np.float32) for seed in (0, 2))
    volumes, brain = {"mri": torch.from_numpy(x), "pet": torch.from_numpy(x)}, blobs(1) > 0.4
    for sides, used in ((None, (8.0, 8.0, 8.0)), ((4.0, 2.0, 2.0), (4.0, 2.0, 2.0))):
        measurement = Measurement(brain, None, 8.0, MaskFiles("", {}), sides)
        found = measurement.all_measures(torch.from_numpy(x_hat), volumes)
        in_double = RadialSpectrum(brain, used).error(x_hat.astype(float), x.astype(float))
        assert found["spectrum_brain"] == pytest.approx(in_double, rel=1e-4)
        assert found["nyquist"] == pytest.approx(nyquist_share(x_hat.astype(float)), rel=1e-4)
        assert found["nyquist_real"] == pytest.approx(nyquist_share(x.astype(float)), rel=1e-4)
    # not in every validation
    assert not set(SPECTRAL) & measurement.image_scores(torch.from_numpy(x_hat), volumes).keys()


def test_the_measurement_knows_the_sides_of_the_voxels():
    affine = np.diag([4.0, 5.0, 4.0, 1.0])
    affine[:3, 3] = -90, -126, -72
    measurement = Measurement.read(MaskFiles("", {}), affine, Crop((2, 4, 2), (40, 32, 40)))
    assert measurement.sides_mm == (4.0, 5.0, 4.0)
    assert measurement.voxel_mm == pytest.approx(13 / 3)


def test_a_summary_leaves_out_what_an_earlier_version_did_not_measure():
    table = pd.DataFrame([{"method": "a", "ID": name, **dict.fromkeys(METRICS, 0.5)} for name in "xy"])
    assert summarize(table)["metric"].tolist() == list(METRICS)
    table = table.assign(**dict.fromkeys(SPECTRAL, 1.0))
    assert summarize(table)["metric"].tolist() == [*METRICS, *SPECTRAL]
