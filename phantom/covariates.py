"""What is known of a phantom beside its images: blood marker, genotype and cognitive score, and whether its
atrophy has anything to do with its amyloid.

An MRI shows atrophy alone. The blood marker and the genotype follow amyloid, the cognitive score follows
atrophy: a covariate may know what the MRI does not, or only what it shows as well. The strengths are stated
here and are no measurements.
"""
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from phantom.uptake import Subject, standard_load

PTAU217 = (0.60, 0.15)                        # pg/ml, mean and SD over the cohort
LEAST_PTAU217 = 0.05                          # pg/ml, as little as an assay reports
APOE4 = {0: (0.75, 0.22, 0.03), 1: (0.40, 0.45, 0.15)}    # of each label: shares with 0, 1, 2 alleles e4
MMSE, MMSE_ATROPHY = (26.5, 2.5), -0.6        # points, mean and SD; correlation with atrophy
MMSE_RANGE = (0, 30)


class Covariates(NamedTuple):
    """Covariates of one subject, as they stand in data_info.csv."""
    apoe4: int                     # alleles e4, 0 to 2
    ptau217: float                 # plasma p-tau217, pg/ml
    mmse: int                      # points, 0 to 30


def draw_covariates(rng: Generator, subject: Subject, marker: float) -> Covariates:
    """Draw the covariates of one subject.

    marker: correlation of ptau217 with amyloid load over a half-positive cohort, in [0, 0.95]. mmse
    correlates with atrophy by MMSE_ATROPHY before it is rounded and cut at its ends, apoe4 is drawn by label.
    """
    noise = rng.standard_normal(2)
    level = marker * float(standard_load(subject.suvr)) + np.sqrt(1 - marker ** 2) * noise[0]
    score = MMSE_ATROPHY * subject.atrophy + np.sqrt(1 - MMSE_ATROPHY ** 2) * noise[1]
    alleles = int(rng.choice(3, p=APOE4[subject.label]))
    ptau217 = max(PTAU217[0] + PTAU217[1] * level, LEAST_PTAU217)
    mmse = np.clip(round(MMSE[0] + MMSE[1] * score), *MMSE_RANGE)
    return Covariates(alleles, round(float(ptau217), 3), int(mmse))
