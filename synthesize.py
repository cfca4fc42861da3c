"""New scans: the synthetic PET of MRIs that have neither PET nor label."""
from config import Config


def synthesize_scans(cfg: Config) -> None:
    """Synthesize the PET of cfg.mri into cfg.out."""
