"""Raw scans, brought into the space and the range of the cohort by ANTs."""
from config import Config


def preprocess_scans(cfg: Config) -> None:
    """Preprocess the scans of the raw folder."""
