"""PET tracers by their many names: which of them show amyloid, and when after injection they are read."""
import re
from dataclasses import dataclass

# BIDS label of an amyloid tracer -> its other names, without isotope, case and punctuation.
AMYLOID = {
    "11CPIB": ("PIB", "PITTSBURGHCOMPOUNDB"),
    "18FAV45": ("AV45", "FBP", "FLORBETAPIR", "AMYVID"),
    "18FFBB": ("FBB", "FLORBETABEN", "NEURACEQ", "BAY949172", "AV1"),
    "18FFMM": ("FMM", "FLUTEMETAMOL", "VIZAMYL", "GE067"),
    "18FNAV4694": ("NAV4694", "NAV", "AZD4694", "FLUTAFURANOL"),
}
# Glucose, tau, synapses, dopamine and inflammation: never taken for amyloid.
OTHERS = ("FDG", "FLUORODEOXYGLUCOSE", "AV1451", "FLORTAUCIPIR", "FTP", "TAUVID", "T807", "MK6240",
          "FLORQUINITAU", "PI2620", "RO948", "GTP1", "THK5317", "THK5351", "PBB3", "PMPBB3", "APN1607",
          "FLORZOLOTAU", "JNJ067", "UCBJ", "SYNVEST1", "FDOPA", "FPCIT", "RACLOPRIDE", "PK11195", "PBR28",
          "DPA714", "WAY100635", "DASB", "H2O", "15OH2O", "15OWATER")
WINDOWS = {"11CPIB": (50.0, 70.0), "18FAV45": (50.0, 70.0), "18FFBB": (90.0, 110.0), "18FFMM": (90.0, 110.0),
           "18FNAV4694": (50.0, 70.0)}                     # minutes after injection, as trials read them
ISOTOPE = r"(?:18F|F18|11C|C11)"
LONG_NAME = 6                                              # letters by which a name is found inside a text


@dataclass(frozen=True)
class Tracer:
    """A tracer: its BIDS label, or its name as it was given, and whether it shows amyloid."""
    label: str
    is_amyloid: bool

    @property
    def window(self) -> tuple[float, float] | None:
        """Minutes after injection in which it is read; None if they are not known here."""
        return WINDOWS.get(self.label)


def find_tracer(text: str) -> Tracer | None:
    """The tracer of a name such as 18FAV45, [18F]Florbetapir or FBP; None if it is not known here."""
    plain = re.sub(r"[^A-Z0-9]", "", text.upper())
    bare = re.sub(rf"^{ISOTOPE}|{ISOTOPE}$", "", plain)
    for label, names in AMYLOID.items():
        if bare in names or _holds_long_name(plain, names):
            return Tracer(label, True)
    if bare in OTHERS or _holds_long_name(plain, OTHERS):
        return Tracer(text, False)
    return None


def tracer_label(name: str) -> str:
    """The label of the entity trc for an amyloid tracer, as a table names it; '' for any other name."""
    tracer = find_tracer(name)
    return tracer.label if tracer and tracer.is_amyloid else ""


def tracer_key(name: str) -> str:
    """What is the same for all names of a tracer: the label of an amyloid tracer, else the name in
    capitals."""
    return tracer_label(name) or name.upper()


def _holds_long_name(plain: str, names: tuple[str, ...]) -> bool:
    """Whether one of the names is a word long enough to stand inside a text, as in 'Amyvid (florbetapir)'."""
    return any(name in plain for name in names if len(name) >= LONG_NAME and name.isalpha())
