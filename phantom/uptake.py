"""One subject of the digital phantom: its scalars, its anatomy, and the MRI, PET and oracle made of them.

Every subject is a deformed and more or less atrophied copy of the MNI152 2009a tissue maps (anatomy.py). Its
PET shows non-specific uptake in white matter, which everybody has, and cortical amyloid, solved for such that
the measured SUVR is the one drawn. Atrophy is correlated with the amyloid load, so that the MRI says
something about the PET, but not everything. Coordinates are MNI millimetres, x to the right, y to the front,
z up; fractions are tissue per voxel in [0, 1].
"""
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import ndtr, ndtri

from phantom.anatomy import CORNER, FIELD_OF_VIEW, Template, thin
from phantom.kinds import PLAIN
from phantom.sites import SITES, Site

# Means and standard deviations (SD) over subjects. 1.11 is the usual threshold of florbetapir's SUVR.
SUVR_NEGATIVE = (1.05, 0.05)                  # cortical
SUVR_POSITIVE = (1.45, 0.14)
LOAD_ZERO = 1.0                               # SUVR without amyloid
TRUNCATE = 3.0                                # SD; bounds every scalar, and with it the intensities
CSF_UPTAKE = 0.30
PET_SCALE = 4.0                               # SUVR that is stored as 1; without noise no voxel exceeds 3.1
SLOW_FWHM, SLOW_SD = 30.0, 0.04               # mm and fraction: uptake that varies from place to place
NOISE_FWHM = 7.0                              # mm, of the image noise after reconstruction, at every site
NOISE_BOUND = 0.5                             # no voxel gains or loses more than half
SUPPORT = 8.0                                 # mm around the brain; beyond it the blur's tail is cut to 0

DEFORMATION_MM, DEFORMATION_SD = 25.0, 2.0    # mm: width of the smoothing kernel and SD per component
REACH = 12.0                                  # mm, 6 SD of the deformation
EDGE_MM = 20.0                                # mm over which the deformation fades towards the box
ATROPHY_BOUND = 3.0                           # SD where the response levels off: more folds space
BIAS_MM = 40.0                                # mm, width of the kernel of the bias field
MRI_NOISE = 0.02
GREY_T1, GREY_TO_CSF = 0.65, 0.37             # T1 intensity of the template: grey 0.65, CSF 0.28
AGE_MEAN, AGE_SD, AGE_ATROPHY = 72.0, 6.0, 0.4    # years, years; correlation with atrophy
ORACLE_DRAWS = 2000                           # quantiles of the prior over which the oracle is a mean


# ---------------------------------------------------------------- scalars of a subject

class Subject(NamedTuple):
    """Scalars of one subject, drawn before any image."""
    label: int                     # 1 amyloid positive, 0 negative
    suvr: float                    # cortex over cerebellum, as the PET will measure it
    load: float                    # suvr - LOAD_ZERO
    atrophy: float                 # SD over the cohort, larger is more
    age: float                     # years
    sex: str                       # M or F
    white: float                   # uptake of white matter before normalisation


def truncated_normal(u, mean_sd: tuple[float, float]):
    """Quantile u, in (0, 1), of a normal distribution of mean and SD, cut at TRUNCATE SD on both sides."""
    low = ndtr(-TRUNCATE)
    return mean_sd[0] + mean_sd[1] * ndtri(low + u * (1 - 2 * low))


def standard_load(suvr):
    """Amyloid load z of an SUVR, with mean 0 and variance 1 over a cohort that is half positive."""
    density = np.exp(-TRUNCATE ** 2 / 2) / np.sqrt(2 * np.pi)
    shrink = 1 - 2 * TRUNCATE * density / (1 - 2 * ndtr(-TRUNCATE))   # variance of a truncated normal
    mean = (SUVR_NEGATIVE[0] + SUVR_POSITIVE[0]) / 2
    between = (SUVR_POSITIVE[0] - SUVR_NEGATIVE[0]) ** 2 / 4
    return (suvr - mean) / np.sqrt(between + shrink * (SUVR_NEGATIVE[1] ** 2 + SUVR_POSITIVE[1] ** 2) / 2)


def draw_subject(rng: Generator, label: int, link: float,
                 white_uptake: tuple[float, float] = PLAIN.white_uptake) -> Subject:
    """Draw the scalars of one subject.

    label: 0 or 1. link: correlation of atrophy with load over a half-positive cohort, in [0, 0.95]; 0 for a
    discordant subject. white_uptake: mean and SD over subjects. Age follows atrophy alone and sex follows
    nothing, so neither tells more about the label than the MRI does.
    """
    suvr = float(truncated_normal(rng.uniform(), SUVR_POSITIVE if label else SUVR_NEGATIVE))
    atrophy = link * float(standard_load(suvr)) + np.sqrt(1 - link ** 2) * rng.standard_normal()
    age = AGE_MEAN + AGE_SD * (AGE_ATROPHY * atrophy + np.sqrt(1 - AGE_ATROPHY ** 2) * rng.standard_normal())
    sex = "MF"[rng.integers(2)]
    white = float(truncated_normal(rng.uniform(), white_uptake))
    return Subject(label, suvr, suvr - LOAD_ZERO, float(atrophy), round(float(age), 1), sex, white)


# ---------------------------------------------------------------- anatomy of a subject

def smooth_field(rng: Generator, axes: tuple[np.ndarray, ...], kernel_mm: float) -> np.ndarray:
    """White noise on a fixed lattice, smoothed by a Gaussian of SD kernel_mm.

    axes: mm, voxel centres along x, y, z. Returns [X, Y, Z] float32, mean 0 and variance 1 at every point.
    The lattice does not know the voxel size, so that a subject is the same at any. The kernel is separable:
    one axis at a time. einsum rather than a BLAS product, whose threads would fight over the cores with the
    other workers.
    """
    lattice = []
    for corner, size in zip(CORNER, FIELD_OF_VIEW, strict=True):
        lattice.append(np.arange(corner - 3 * kernel_mm, corner + size + 3 * kernel_mm, kernel_mm))
    field = rng.standard_normal([len(points) for points in lattice], dtype=np.float32)
    for points, axis in zip(lattice, axes, strict=True):
        kernel = np.exp(-((axis[:, None] - points) / kernel_mm) ** 2 / 2)
        kernel /= np.sqrt((kernel ** 2).sum(1, keepdims=True))
        field = np.moveaxis(np.einsum("ia,abc->ibc", kernel.astype(np.float32), field), 0, 2)
        field = np.ascontiguousarray(field)       # the axes rotate: after three turns they stand as at first
    return field


def draw_deformation(template: Template, rng: Generator, atrophy: float) -> np.ndarray:
    """Source of each voxel in the template, as voxel indices [3, X, Y, Z] float32.

    It is a random smooth deformation plus the widening of the ventricles by atrophy, in SD.
    """
    voxel_mm, shape = template.voxel_mm, template.brain.shape
    coordinates = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    fade = np.float32(1)
    for axis, size in enumerate(shape):
        to_edge = np.minimum(np.arange(size), np.arange(size)[::-1]) * voxel_mm / EDGE_MM
        along_axis = [-1 if other == axis else 1 for other in range(3)]
        fade = fade * to_edge.clip(0, 1).reshape(along_axis).astype(np.float32)
    for axis in range(3):
        displacement = DEFORMATION_SD * smooth_field(rng, template.axes, DEFORMATION_MM) * fade
        coordinates[axis] -= (displacement + atrophy * template.push[axis]) / voxel_mm
    return coordinates


def simulate_anatomy(template: Template, rng: Generator, atrophy: float) -> dict[str, np.ndarray]:
    """The subject's own maps, name -> [X, Y, Z].

    atrophy: SD. All maps but the last are float32: t1 without noise; the fractions brain, white and csf; grey
    matter as baseline (times its uptake) and as amyloid (times its relative amyloid). support, bool, is where
    the PET may differ from 0.
    """
    response = np.float32(ATROPHY_BOUND * np.tanh(atrophy / ATROPHY_BOUND))
    csf = (template.brain - template.grey - template.white).clip(0)
    grey = thin(template.grey, csf, response * template.thinning)
    lost = template.grey - grey
    sources = {"t1": template.t1 - GREY_TO_CSF * lost, "brain": template.brain, "white": template.white,
               "csf": csf + lost, "baseline": template.baseline * grey, "amyloid": template.amyloid * grey,
               "distance": template.distance}
    inside = template.distance <= SUPPORT + REACH                    # what lies farther out is background
    coordinates = draw_deformation(template, rng, response)[:, inside]    # [3, N]
    maps = {}
    for name, source in sources.items():
        maps[name] = np.zeros_like(source)
        maps[name][inside] = map_coordinates(source, coordinates, order=1, mode="nearest")
    maps["support"] = inside & (maps.pop("distance") <= SUPPORT)
    return maps


# ---------------------------------------------------------------- images of a subject

def render_mri(template: Template, anatomy: dict[str, np.ndarray], rng: Generator,
               site: Site = SITES[0]) -> np.ndarray:
    """T1 with the site's contrast and bias field, and noise, inside the brain, 0 outside.

    Returns [X, Y, Z] float32 in [0, 1].
    """
    t1 = anatomy["t1"] + (site.mri_contrast - 1) * (anatomy["t1"] - GREY_T1)
    bias = 1 + site.mri_bias * smooth_field(rng, template.axes, BIAS_MM)
    noise = MRI_NOISE * rng.standard_normal(bias.shape, dtype=np.float32)
    return np.where(anatomy["brain"] > 0.5, t1 * bias + noise, 0).clip(0, 1)


def draw_noise(template: Template, rng: Generator, site: Site = SITES[0]) -> np.ndarray:
    """Relative PET noise: uptake that varies slowly, and image noise.

    Returns [X, Y, Z] float32, mean 0, within NOISE_BOUND.
    """
    slow = SLOW_SD * smooth_field(rng, template.axes, SLOW_FWHM / 2.355)
    noise = slow + site.pet_noise * smooth_field(rng, template.axes, NOISE_FWHM / 2.355)
    return NOISE_BOUND * np.tanh(noise / NOISE_BOUND)


def blur_components(template: Template, anatomy: dict[str, np.ndarray], site: Site = SITES[0]) -> np.ndarray:
    """White, grey (times its baseline), amyloid and CSF map as the site's scanner sees them.

    Returns [4, X, Y, Z] float32. The PET is linear in these four.
    """
    sigma = site.pet_fwhm / 2.355 / template.voxel_mm
    blurred = []
    for name in ("white", "baseline", "amyloid", "csf"):
        blurred.append(gaussian_filter(anatomy[name], sigma, mode="constant") * anatomy["support"])
    return np.stack(blurred)


def region_means(template: Template, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of components [4, X, Y, Z] in target composite and reference region: two [4] float64."""
    cortex = components[:, template.cortex].mean(1, dtype=np.float64)
    cerebellum = components[:, template.cerebellum].mean(1, dtype=np.float64)
    return cortex, cerebellum


def solve_uptake(cortex: np.ndarray, cerebellum: np.ndarray, white, suvr) -> np.ndarray:
    """Uptake of the four components for which cortex / cerebellum is suvr and cerebellum is 1.

    cortex, cerebellum: [4] from region_means. Returns [4, ...], shaped like white and suvr. The equation is
    linear in the amyloid uptake c: base_cortex + c amyloid_cortex = suvr (base_cerebellum + c
    amyloid_cerebellum), base being the three other components.
    """
    base_cortex = white * cortex[0] + cortex[1] + CSF_UPTAKE * cortex[3]
    base_cerebellum = white * cerebellum[0] + cerebellum[1] + CSF_UPTAKE * cerebellum[3]
    amyloid = (suvr * base_cerebellum - base_cortex) / (cortex[2] - suvr * cerebellum[2])
    level = base_cerebellum + amyloid * cerebellum[2]
    return np.stack(np.broadcast_arrays(white, 1.0, amyloid, CSF_UPTAKE)) / level


def combine(uptake: np.ndarray, components: np.ndarray) -> np.ndarray:
    """PET of uptake [4] and components [4, X, Y, Z]: [X, Y, Z] float32, an SUVR of PET_SCALE stored as 1."""
    pet = np.einsum("k,kxyz->xyz", (uptake / PET_SCALE).astype(np.float32), components)
    assert pet.min() >= 0 and pet.max() <= 1, \
        f"PET in [{pet.min():.3f}, {pet.max():.3f}]: a range outside [0, 1] would need clipping"
    return pet


def expected_uptake(cortex: np.ndarray, cerebellum: np.ndarray, atrophy: float, link: float,
                    discordant: float = 0.0, prevalence: float = 0.5,
                    white_uptake: tuple[float, float] = PLAIN.white_uptake) -> np.ndarray:
    """Mean of solve_uptake given the subject's anatomy and atrophy, [4]: the uptake of the oracle.

    cortex, cerebellum: [4] from region_means. prevalence: share of positive subjects. white_uptake: mean and
    SD over subjects. The mean is over pairs of SUVR and white uptake from the prior, half of them positive,
    on quantiles rather than at random. Each pair weighs as much as its label is frequent, times as much as
    it makes the atrophy likely, p(atrophy | SUVR) = (1 - discordant) N(link z, 1 - link^2) + discordant
    N(0, 1), because nobody knows who is discordant. With link 0 only the label weighs: the prior mean.
    """
    u = (np.arange(ORACLE_DRAWS // 2) + 0.5) / (ORACLE_DRAWS // 2)
    suvr = np.concatenate([truncated_normal(u, SUVR_NEGATIVE), truncated_normal(u, SUVR_POSITIVE)])
    order = np.random.default_rng(0)              # only pairs the quantiles; the same for all subjects
    white = np.concatenate([truncated_normal(order.permutation(u), white_uptake) for _ in range(2)])
    log_weight = -(atrophy - link * standard_load(suvr)) ** 2 / (2 * (1 - link ** 2))
    if discordant:
        linked = np.log1p(-discordant) - np.log(1 - link ** 2) / 2 + log_weight if discordant < 1 else -np.inf
        log_weight = np.logaddexp(linked, np.log(discordant) - atrophy ** 2 / 2 + np.zeros_like(suvr))
    frequency = np.repeat([1 - prevalence, prevalence], ORACLE_DRAWS // 2)
    weight = frequency * np.exp(log_weight - log_weight.max())
    return solve_uptake(cortex, cerebellum, white, suvr) @ (weight / weight.sum())


def simulate(template: Template, rng: Generator, subject: Subject, link: float, discordant: float = 0.0,
             site: Site = SITES[0], white_uptake: tuple[float, float] = PLAIN.white_uptake,
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MRI, PET and oracle of a subject scanned at a site, each [X, Y, Z] float32 in [0, 1], background 0.

    link, discordant, white_uptake: of the cohort, for the oracle, which knows the subject's MRI and site and
    nothing else.

    The oracle is E[PET | deformation, atrophy, site]: no method that sees the MRI can have a lower expected
    squared error. The mean over status, SUVR and white uptake is exact, up to the grid of ORACLE_DRAWS
    quantiles. Neglected is that noise also moves the regional means by which the PET is solved and
    normalised: an effect of second order in their noise (SD 1 to 2 %), hence some 1e-4 of the uptake.
    """
    anatomy = simulate_anatomy(template, rng, subject.atrophy)
    components = blur_components(template, anatomy, site)
    expected = expected_uptake(*region_means(template, components), subject.atrophy, link, discordant,
                               site.prevalence, white_uptake)
    oracle = combine(expected, components)
    components *= 1 + draw_noise(template, rng, site)
    pet = combine(solve_uptake(*region_means(template, components), subject.white, subject.suvr), components)
    return render_mri(template, anatomy, rng, site), pet, oracle
