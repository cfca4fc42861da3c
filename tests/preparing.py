"""Helpers for tests of main.py prepare: scans and tables in the working directory, the command, its files."""
from pathlib import Path

import pandas as pd

import main
from dataset import SPLITS

SUBJECTS = [f"{100 + i % 7:03d}_S_{4000 + i}" for i in range(12)]


def place(*scans: str, folders=("whole_MRI", "whole_Abeta")) -> None:
    """Write files of these IDs, empty: prepare reads none."""
    for folder in folders:
        (Path("data") / folder).mkdir(parents=True, exist_ok=True)
        for scan in scans:
            (Path("data") / folder / f"{scan}.nii.gz").touch()


def prepare(*argv: str, table: str | pd.DataFrame = "table.csv") -> int:
    """Exit code of the command with a table, which is a file, the text of one, or a data frame."""
    if isinstance(table, pd.DataFrame):
        table = table.to_csv(index=False)
    if "\n" in table:
        Path("table.csv").write_text(table)
        table = "table.csv"
    return main.main(["prepare", "--table", table, *argv])


def refused(capsys, *argv: str, table="table.csv") -> str:
    """The message of a run that ends as wrong input and leaves everything on the disk as it was."""
    if isinstance(table, str) and "\n" in table:
        Path("table.csv").write_text(table)
        table = "table.csv"
    before = contents()
    assert prepare(*argv, table=table) == 2
    assert contents() == before
    return capsys.readouterr().err


def contents() -> dict[Path, bytes | None]:
    """Every path under the working directory, with the bytes of files."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def info() -> pd.DataFrame:
    """data_info.csv by ID, as text."""
    return pd.read_csv("data_info/data_info.csv", dtype=str, keep_default_na=False).set_index("ID")


def rows_of(*scans: str, columns: list[str]) -> list[list[str]]:
    """These columns of data_info.csv for these scans."""
    return info().loc[list(scans), columns].to_numpy().tolist()


def left_out() -> dict[str, tuple[str, str]]:
    """left_out.csv: ID -> reason and what was found."""
    table = pd.read_csv("data_info/left_out.csv").set_index("ID")
    return {scan: tuple(row) for scan, row in zip(table.index, table.to_numpy(), strict=True)}


def lists() -> dict[str, list[str]]:
    """The IDs of each list."""
    return {split: Path(f"data_info/{split}.txt").read_text().split() for split in SPLITS}


def with_others(rows: str, *scans: str) -> str:
    """A table with these rows, and scans placed with ten further subjects, which fill the lists."""
    header, *own = rows.strip().splitlines()
    names = header.split(",")
    others = [f"199_S_{8000 + i}" for i in range(10)]
    place(*scans, *others)
    for i, ptid in enumerate(others):
        label = str(i % 2)
        values = {"PTID": ptid, "RID": str(8000 + i), "ID": ptid, "SCANDATE": "2015-06-01",
                  "EXAMDATE": "2015-06-01", "qc_flag": "2", "TRACER": "FBP", "AMYLOID_STATUS": label,
                  "label": label, "CENTILOIDS": str(90 * (i % 2)),
                  "SUMMARYSUVR_WHOLECEREBNORM_1.11CUTOFF": label}
        own.append(",".join(values.get(name, "") for name in names))
    return "\n".join([header, *own]) + "\n"
