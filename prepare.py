"""Lists and labels of a cohort, from ADNI's tables or any CSV."""
from config import Config


def prepare_cohort(cfg: Config) -> None:
    """Write data_info.csv and the lists of the three splits."""
