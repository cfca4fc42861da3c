"""The covariates of new scans, from a table: `synthesize --table FILE`."""
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dataset import parse_id
from labels.cells import is_unknown
from labels.ridge import LabelPredictor
from newscans.scans import NewScan
from runtime.files import brief
from runtime.logs import say
from runtime.near_names import NearNames
from runtime.tables import listed, read_table, simplified
from utils import InputError

ID_COLUMNS = ("ID", "participant_id", "subject")           # the first that is there; the second is BIDS's


def with_covariates(scans: list[NewScan], table: str, predictor: LabelPredictor | None,
                    subject_pattern: str) -> list[NewScan]:
    """The scans with the covariates that the predictor of the label sees; says which of them are not known.

    table: a CSV or TSV with a row a scan or subject, or ''. subject_pattern: setting of that name.
    Raises InputError with all problems of the table.
    """
    names = predictor.covariates if predictor else ()
    if not names:
        if table:
            why = ("predicts its label from the MRI alone (no --covariates in its training)" if predictor
                   else "samples without a label (--label_at_sampling none)")
            raise InputError(f"{table}: this experiment {why}, so no covariate can be used; leave --table "
                             "out")
        return scans
    if not table:
        say("synth", f"the label is predicted from the MRI and {', '.join(names)}; without --table all of "
                     "these count as missing, and the training list's means take their places")
        return scans
    cells = _read(Path(table), names, {scan.id for scan in scans}, re.compile(subject_pattern))
    rows = [[cells.get(scan.id, {}).get(name, "") for name in names] for scan in scans]
    people = pd.DataFrame(rows, columns=list(names))
    try:
        predictor.coder.encode(people)
    except InputError as error:
        raise InputError(f"{table}: {error}") from error
    there = predictor.coder.without_codes(people).to_dict("records")
    known = [replace(scan, cells=tuple((name, text) for name, text in row.items() if text))
             for scan, row in zip(scans, there, strict=True)]
    for name in names:
        without = [scan.id for scan in known if not dict(scan.cells).get(name)]
        if without:
            say("synth", f"covariate {name}: not known of {len(without)} of {len(known)} scans "
                         f"({listed(without, '')}); the training list's mean takes its place")
    return known


def people_of(scans: list[NewScan], names: Iterable[str]) -> pd.DataFrame | None:
    """Covariates of these names as text, a row a scan, indexed by ID; None if there are no names."""
    names = list(names)
    if not names:
        return None
    rows = [[dict(scan.cells).get(name, "") for name in names] for scan in scans]
    return pd.DataFrame(rows, columns=names, index=[scan.id for scan in scans])


def _read(path: Path, names: tuple[str, ...], ids: set[str],
          pattern: re.Pattern) -> dict[str, dict[str, str]]:
    """ID -> covariate -> cell of the scans that have a row: of their own ID, or else of their subject."""
    table = read_table(path)
    headings = {simplified(name): name for name in reversed(list(table.columns))}
    id_column = next((headings[simplified(name)] for name in ID_COLUMNS if simplified(name) in headings),
                     None)
    if id_column is None:
        raise InputError(f"{path}: no column of IDs; expected one of {', '.join(ID_COLUMNS)}, found "
                         f"{brief(', '.join(table.columns))}")
    there = {name: headings[simplified(name)] for name in names if simplified(name) in headings}
    if not there:
        raise InputError(f"{path}: none of the columns {', '.join(names)} is there; found "
                         f"{brief(', '.join(table.columns))}")
    table = table.loc[:, ~table.columns.duplicated()]
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in table.to_dict("records"):
        known = {name: row[heading] for name, heading in there.items() if not is_unknown(row[heading])}
        if known not in rows[row[id_column]]:
            rows[row[id_column]].append(known)
    cells, problems = {}, []
    for scan in sorted(ids):
        found = _rows_of(scan, rows, pattern)
        if len(found) > 1:
            problems.append(f"{scan}: {len(found)} rows that differ; keep that of its visit")
        elif found:
            cells[scan] = found[0]
    if problems:
        raise InputError("\n  ".join([f"{path}: {len(problems)} problem(s):", *problems]))
    if not cells:
        raise InputError(f"{path}: no row belongs to any of the {len(ids)} MRIs ({listed(sorted(ids), '')}); "
                         f"its IDs are {listed(list(rows), '')}")
    return cells


def _rows_of(scan: str, rows: dict[str, list[dict[str, str]]], pattern: re.Pattern) -> list[dict[str, str]]:
    """The rows of a scan: of its ID, of one that differs in case, zeros or prefix alone, or of its
    subject."""
    if scan in rows:
        return rows[scan]
    if near := NearNames(rows).of(scan):
        return rows[near[0]]
    subject = parse_id(scan, pattern)[0]
    return [row for name, found in rows.items() if parse_id(name, pattern)[0] == subject for row in found]
