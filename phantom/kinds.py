"""Kinds of the digital phantom: other truths than the one on which the choices of the default were made.

The values are stated here and measured nowhere. A method that is better on one kind alone has learned that
kind.
"""
from typing import NamedTuple

from phantom.sites import SITES, Site


class Kind(NamedTuple):
    """A truth about uptake, scanner, atrophy and prevalence."""
    name: str
    white_uptake: tuple[float, float]    # mean and SD over subjects; the cerebellar mean is 1 afterwards
    pet_fwhm: float                      # mm, the PET scanner's resolution
    amyloid: dict[str, float]            # region of anatomy.landmarks -> its amyloid; 1 in all other cortex
    atrophied: tuple[str, ...]           # regions of the cortex that thin; none: all of it
    prevalence: float                    # share of amyloid positive subjects

    @property
    def site(self) -> Site:
        """The place where all subjects of this kind are scanned."""
        return SITES[0]._replace(pet_fwhm=self.pet_fwhm, prevalence=self.prevalence)


AMYLOID = {"occipital": 0.55, "sensorimotor": 0.55, "medial_temporal": 0.4, "ventricles": 0.0,
           "striatum": 0.6, "thalamus": 0.3, "brainstem": 0.0, "cerebellum": 0.0}
SPARED = dict.fromkeys(["temporal", *AMYLOID], 0.0)
WHITE = (1.55, 0.10)

PLAIN = Kind("plain", WHITE, SITES[0].pet_fwhm, AMYLOID, (), SITES[0].prevalence)
KINDS = {kind.name: kind for kind in (
    PLAIN,
    PLAIN._replace(name="white_matter", white_uptake=(2.20, 0.10), pet_fwhm=4.5),
    PLAIN._replace(name="other_regions", amyloid=SPARED, atrophied=("temporal", "medial_temporal")),
    PLAIN._replace(name="rare", prevalence=0.30),
)}
