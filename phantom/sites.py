"""Sites of the digital phantom: scanners that differ, and who is scanned there.

The values are stated here and measured nowhere. The first site is the phantom of one site. The seed decides
who is scanned where, at any voxel size, and nothing else.
"""
from typing import NamedTuple

import numpy as np


class Site(NamedTuple):
    """A place with a PET scanner, an MRI scanner and patients of its own."""
    name: str                      # column site of data_info.csv
    pet_fwhm: float                # mm, the PET scanner's resolution
    pet_noise: float               # fraction, SD of the image noise after reconstruction
    mri_contrast: float            # spread of the T1 intensities around grey matter's, 1 as in the template
    mri_bias: float                # fraction, SD of the bias field: 95 % of it lies within twice as much
    prevalence: float              # share of amyloid positive subjects


SITES = (
    Site("site1", 7.0, 0.040, 1.00, 0.025, 0.50),
    Site("site2", 4.0, 0.060, 1.15, 0.015, 0.30),
    Site("site3", 8.0, 0.030, 0.85, 0.050, 0.70),
    Site("site4", 5.5, 0.050, 0.95, 0.035, 0.40),
    Site("site5", 6.0, 0.045, 1.10, 0.020, 0.65),
    Site("site6", 4.8, 0.055, 0.90, 0.045, 0.35),
)
LEAST_OF_A_SITE = 2                # subjects of each site in a list, one of each label


def share_out(number: int, before: int, places: tuple[Site, ...],
              halves_up: bool) -> list[tuple[Site, int]]:
    """Site and label of the subjects of a list, in no meaningful order.

    The sites take turns, from the one whose turn it is after the subjects of the lists `before`, so that they
    have as many subjects as each other. Their positive subjects are as many as prevalence says, to the
    nearest whole number, and where a site has two or more, there are both labels. halves_up: whether a half
    is rounded up.
    """
    counts = np.bincount(np.arange(before, before + number) % len(places), minlength=len(places))
    members = []
    for site, count in zip(places, counts.tolist(), strict=True):
        positives = (round(100 * site.prevalence) * count + 49 + halves_up) // 100
        if count > 1:
            positives = min(max(positives, 1), count - 1)
        members += [(site, int(i < positives)) for i in range(count)]
    return members


class Member(NamedTuple):
    """Who is in the cohort, before anything is drawn of them."""
    id: str
    split: str
    label: int
    site: Site


def assign(splits: dict[str, int], seed: int, sites: int = 1, first: Site = SITES[0]) -> list[Member]:
    """The members of the cohort. splits: name of each list -> its number of subjects. first: the first site.

    Half of each list is positive at that first site of SITES, an odd number rounded up, down, up. The order
    is drawn, so that the ID tells nothing.
    """
    places = (first, *SITES[1:sites])
    rng = np.random.default_rng([seed, 0])
    members: list[Member] = []
    for i, (split, number) in enumerate(splits.items()):
        shared_out = share_out(number, len(members), places, halves_up=i % 2 == 0)
        for place in rng.permutation(number):
            site, label = shared_out[place]
            members.append(Member(f"phantom{len(members) + 1:03d}", split, label, site))
    return members
