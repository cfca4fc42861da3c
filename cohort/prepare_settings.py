"""Settings of `python main.py prepare`."""
import re
from collections.abc import Iterator
from dataclasses import dataclass

from config import Config
from runtime.settings import refuse, same, setting, value_problems


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of `python main.py prepare`.

    Raises ValueError that lists all values which are out of range or do not fit together.
    """

    table: str = setting("",
        "CSV with a row a PET or a scan: ADNI's amyloid table as downloaded, or any with a column of IDs "
        "and one of labels", section="files")
    data_dir: str = setting("data", "folder with whole_MRI and whole_Abeta")
    info_dir: str = setting("data_info", "folder to which data_info.csv and the three lists are written")
    demographics: str = setting("",
        "CSV with age and sex, such as ADNI's PTDEMOG or ADNIMERGE; empty: the columns age and sex of the "
        "table. A column that is not there is taken from preprocess/scans.csv in data_dir, if it has it")
    covariates: tuple[str, ...] = setting((),
        "tables with further columns for data_info.csv: FILE takes all that are known by name, such as "
        "APOE, MMSE, CDR and blood markers, FILE:COLUMN,... only those; COLUMN=NAME gives a name", empty=True)
    covariate_days: int = setting(365, "most days between a scan and a covariate that changes in time", low=0)
    scan_dates: str = setting("",
        "CSV with the columns ID and date, for scans whose ID carries no date; empty: preprocess/scans.csv "
        "in data_dir, if it has them")
    overwrite: bool = setting(False, "replace lists and labels that are there already")

    id_column: str = setting("",
        "column of the table with IDs of scans or subjects; empty: found by its name, such as PTID, RID, ID",
        section="labels")
    date_column: str = setting("",
        "column of the table with dates of the PETs; empty: found by its name, such as SCANDATE, EXAMDATE")
    label_column: str = setting("",
        "column of the table with the labels; empty: found by its name, such as AMYLOID_STATUS, label")
    label_from: str = setting("status",
        "status: the column of labels, decided by ADNI tracer by tracer; centiloids: 1 from "
        "centiloid_cutoff on", choices=("status", "centiloids"))
    centiloid_cutoff: float = setting(20.0,
        "Centiloids from which on a PET is positive, with label_from centiloids; ADNI, florbetapir: 20",
        low=-100.0, high=300.0)
    grey_zone: tuple[float, float] = setting((0.0, 0.0),
        "leave out scans whose Centiloids lie from the first to below the second; equal: none",
        low=-100.0, high=300.0)
    qc_keep: tuple[int, ...] = setting((2,), "values of the column qc_flag that pass; ADNI: 2", low=-9)
    tracer: str = setting("",
        "keep one tracer of the column TRACER, by any of its names, such as FBP; empty: all")
    window_days: int = setting(180, "most days between a scan and its row; amyloid grows over years", low=0)
    require_dates: bool = setting(False,
        "leave out scans without a date where the table has dates, even if its rows leave no doubt")
    num_classes: int = same(Config, "num_classes")

    split_ratios: tuple[float, float, float] = setting((0.8, 0.1, 0.1),
        "shares of subjects in training, validation, test; paper", section="lists", low=1e-6)
    split_seed: int = setting(0, "seed of the lists; same seed, same lists", low=0)
    subject_pattern: str = same(Config, "subject_pattern")

    def __post_init__(self):
        wrong_values = value_problems(self)
        missing = [] if self.table else ["prepare needs --table FILE.csv"]
        misfits = [] if wrong_values else list(self._misfits())              # which take the values for right
        refuse(wrong_values + missing + misfits)

    def _misfits(self) -> Iterator[str]:
        """Yield, as sentences, what does not fit together."""
        if self.label_from == "centiloids" and (self.num_classes != 2 or self.label_column):
            yield ("label_from centiloids gives the labels 0 and 1: it goes with num_classes 2 and without "
                   "label_column")
        if "" in self.covariates:
            yield "covariates has an empty entry; expected FILE or FILE:COLUMN,..."
        low, high = self.grey_zone
        cutoff_inside = low <= self.centiloid_cutoff <= high
        if low > high:
            yield f"grey_zone {self.grey_zone} must begin below its end"
        elif self.has_grey_zone and self.label_from == "centiloids" and not cutoff_inside:
            yield f"grey_zone {self.grey_zone} must hold the centiloid_cutoff {self.centiloid_cutoff}"
        try:
            if re.compile(self.subject_pattern).groups < 1:
                yield f"subject_pattern {self.subject_pattern!r} has no group for the subject"
        except re.error as error:
            yield f"subject_pattern {self.subject_pattern!r} is not a regular expression: {error}"

    @property
    def has_grey_zone(self) -> bool:
        """Whether scans are left out whose Centiloids are neither clearly negative nor positive."""
        return self.grey_zone[0] < self.grey_zone[1]
