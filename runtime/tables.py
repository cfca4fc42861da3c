"""Tables and lists of others, as spreadsheets and statistics programs write them: one reader for all, which
says in a line what it took for what."""
import csv
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from runtime.files import MAX_TEXT, brief, read_bytes
from runtime.logs import say
from utils import InputError

csv.field_size_limit(MAX_TEXT)                             # a cell may be as long as a file
LISTED = 5                                                 # rows or names that a message shows
SNIFFED = 50                                               # lines by which the separator is found
END = "\x01"                                               # a last row that no text can hold
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "blanks"}
BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
        b"\xef\xbb\xbf": "utf-8-sig"}                      # the longer ones first
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")          # in no text; a page break may be
DECIMAL_COMMA = re.compile(r"([<>=≥]{0,2} ?[-+]?\d+),(\d+(?:[eE][-+]?\d+)?\+?)")
THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
ID_COLUMNS = ("ID", "PTID", "RID", "SCANID", "SUBJECT", "SUBJECTID", "PARTICIPANTID")

SAVE_AS_CSV = "open it and save it as CSV (comma separated, UTF-8)"
FROM_R = "in R: write.csv(table, \"table.csv\", row.names = FALSE)"
OTHER_KINDS = (                                            # first bytes, what they are, what to do
    (b"PK\x03\x04", "a workbook (.xlsx, .ods) or another zip archive", SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", SAVE_AS_CSV),
    (b"<?xml", "XML, as a workbook may be", SAVE_AS_CSV),
    (b"{\\rtf", "a text document (RTF)", SAVE_AS_CSV),
    (b"%PDF", "a PDF", "get the table itself as CSV"),
    (b"<!doctype html", "a web page", "the download needs a login, or the file holds a table as HTML: "
                                      + SAVE_AS_CSV),
    (b"<html", "a web page", f"the download needs a login, or the file holds a table as HTML: {SAVE_AS_CSV}"),
    (b"$fl2@(#)", "a file of SPSS (.sav)", "in SPSS: File > Save as > CSV"),
    (b"$fl3@(#)", "a file of SPSS (.zsav)", "in SPSS: File > Save as > CSV"),
    (b"<stata_dta>", "a file of Stata (.dta)", "in Stata: export delimited table.csv, nolabel"),
    *((bytes((release, order)), "a file of Stata (.dta)", "in Stata: export delimited table.csv, nolabel")
      for release in (0x71, 0x72, 0x73) for order in (1, 2)),
    (b"rdx2\n", "a file of R (.RData)", FROM_R), (b"rdx3\n", "a file of R (.RData)", FROM_R),
    (b"\x1f\x8b", "compressed (gzip), as .RData and .rds of R are too", f"unpack it, or {FROM_R}"),
    (b"bzh91ay", "compressed (bzip2)", f"unpack it, or {FROM_R}"),
    (b"\xfd7zxz", "compressed (xz)", f"unpack it, or {FROM_R}"),
    (b"par1\x15", "a Parquet file", "save it as CSV"),
    (bytes(12) + b"\xc2\xea\x81\x60", "a file of SAS (.sas7bdat)", "in SAS: proc export with dbms=csv"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "run git lfs pull"),
)


def listed(items: Sequence, what: str = "row") -> str:
    """Numbers of rows, or names, for a message: the first few of them, and how many more there are.

    what: noun before them, in the plural where there are several; empty: none.
    """
    text = ", ".join(str(item) for item in items[:LISTED])
    if len(items) > LISTED:
        text += f" and {len(items) - LISTED} more"
    if not what:
        return text
    return f"{what}s {text}" if len(items) > 1 else f"{what} {text}"


def simplified(name: str) -> str:
    """A column's name without case, blanks and punctuation, in which the releases of a table differ."""
    return re.sub(r"[^A-Z0-9]", "", name.upper())


# ---------------------------------------------------------------- the text of a file

def decoded(path: Path, remarks: list[str]) -> str:
    """Text of a file in any usual encoding, with plain line ends.

    remarks: the list to which an encoding other than UTF-8 is added. Raises InputError that names the kind of
    the file if it is no text.
    """
    content = read_bytes(path)
    _refuse_other_kinds(path, content)
    encoding = next((name for bom, name in BOMS.items() if content.startswith(bom)), _without_bom(content))
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text in {encoding.upper()}: {brief(error)}") from error
    text = text.rstrip("\x1a")                             # the end of a text in DOS
    if found := CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(f"{path}: line {line} holds the control character {found[0]!r}, which no text does; "
                         "the file is damaged, or no text")
    if encoding in ("cp1252", "latin-1"):
        remarks.append("is not in UTF-8 and read as Windows-1252 (Latin-1)")
    elif not encoding.startswith("utf-8"):
        remarks.append(f"is in {encoding[:6].upper()}")     # whichever end comes first
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_other_kinds(path: Path, content: bytes) -> None:
    start = content[:64].lstrip().lower() if content[:1] != b"\0" else content[:64]
    for magic, kind, remedy in OTHER_KINDS:
        if start.startswith(magic.lower()):
            raise InputError(f"{path}: is {kind}, expected text; {remedy}")


def _without_bom(content: bytes) -> str:
    """Encoding of a text without byte order mark."""
    start = content[:200]
    half = len(start) // 2
    even, odd = start[::2], start[1::2]
    for encoding, high, low in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if half and high.count(0) > 0.7 * half and not low.count(0):
            return encoding
    for encoding in ("utf-8", "cp1252"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"                                       # which takes any byte


# ---------------------------------------------------------------- lists

def read_list(path: Path, remarks: list[str] | None = None) -> list[str]:
    """The names of a file with one a line, without a heading ID, quotes, and the separators of empty columns.

    remarks: the list to which is added how it was read; without it, that is said. Raises InputError as
    decoded does.
    """
    found: list[str] = []
    names = []
    for line in decoded(path, found).split("\n"):
        name = line.strip().rstrip(",;\t ")
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = name[1:-1].strip()
        if name:
            names.append(name)
    if len(names) > 1 and names[0].upper() == "ID":
        found.append("its first line, ID, is read as a heading")
        del names[0]
    _tell(path, found, remarks)
    return names


def _tell(path: Path, found: list[str], remarks: list[str] | None) -> None:
    """Add how a file was read to the remarks, or say it."""
    if remarks is not None:
        remarks += found
    elif found:
        say("check", f"{path}: {'; '.join(found)}")


# ---------------------------------------------------------------- tables

def read_table(path: Path, *columns: str, remarks: list[str] | None = None) -> pd.DataFrame:
    """A table as text without blanks around its cells, empty where a row is short, without empty rows and
    columns. Index n is row n + 2 of a spreadsheet.

    Columns may be separated by commas, semicolons, tabs, bars or blanks; decimal commas become points where
    they cannot separate. columns: that must be there, once; their names may differ in case, blanks and
    punctuation. remarks: the list to which is added how the table was read; without it, that is said.
    Raises InputError if one of the columns is missing or occurs twice, if rows are longer than the header, or
    if the file is no such table.
    """
    found: list[str] = []
    separator, rows = _split(path, decoded(path, found), found)
    while rows and not any(rows[0][1]):
        del rows[0]
    if not rows:
        raise InputError(f"{path}: cannot be read as a table: it is empty")
    (_, header), *body = rows
    body = [(number, row) for number, row in body if any(row)]
    _refuse_swallowed_rows(path, header, body, separator)
    _refuse_long_rows(path, header, body, separator)
    if separator != ",":
        _read_decimal_commas(header, body, found)
    cells = [row[:len(header)] + [""] * (len(header) - len(row)) for _, row in body]
    table = pd.DataFrame(cells, columns=header, index=[number - 2 for number, _ in body], dtype=object)
    if "" in header:                                       # pandas takes long to select, most have no such
        filled = [name != "" or bool((table.iloc[:, i] != "").any()) for i, name in enumerate(header)]
        _refuse_nameless(path, header, filled, body, separator)
        table = table.loc[:, filled]
    _name_columns(path, table, columns, found)
    _tell(path, found, remarks)
    return table


def _split(path: Path, text: str, remarks: list[str]) -> tuple[str, list[tuple[int, list[str]]]]:
    """The separator of a text's columns, and its rows: number in a spreadsheet, and cells without blanks
    around them."""
    declared = re.match(r'"?sep=([,;\t| ])"?[,;\t ]*(?:\n|$)', text, re.IGNORECASE)
    if declared:                                           # Excel reads this line and does not show it
        text = text[declared.end():]
        remarks.append(f"its first line, {declared[0].strip()}, is read as the separator of the columns")
    separator = declared[1] if declared else _separator(text)
    if separator != "," and not declared:
        remarks.append(f"its columns are separated by {SEPARATORS[separator]}")
    rows, opened = [], 1
    try:
        for row in csv.reader(io.StringIO(f"{text}\n{END}"), delimiter=separator, skipinitialspace=True):
            opened = len(rows) + 1
            rows.append((opened, [_bare(cell) for cell in row]))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a table: row {len(rows) + 1}: {brief(error)}") from error
    is_open = rows.pop()[1] != [END]
    spans_lines = any("\n" in cell and "\t" in cell for _, row in rows for cell in row)
    if separator == "\t" and (is_open or spans_lines):
        return separator, _rows_of_lines(text, remarks)
    if is_open:
        raise InputError(f'{path}: cannot be read as a table: a quote (") opens in row {opened} and does not '
                         "close")
    return separator, rows


def _rows_of_lines(text: str, remarks: list[str]) -> list[tuple[int, list[str]]]:
    """Rows of a text with tabs in which a quote is not closed in its cell: it would swallow the rows below.
    Each line is a row, and in lines with such a quote all quotes are plain characters."""
    rows, lone = [], []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            [cells] = csv.reader([line], delimiter="\t", skipinitialspace=True, strict=True) if line else [[]]
        except csv.Error:
            cells = line.split("\t")
            lone.append(number)
        rows.append((number, [_bare(cell) for cell in cells]))
    remarks.append(f'a quote (") that does not close is read as a plain character in {listed(lone)}')
    return rows


def _bare(cell: str) -> str:
    """A cell without blanks around it, those without width too."""
    bare = cell.strip()
    return bare if bare.isascii() else bare.strip("\u200b\ufeff").strip()


def _separator(text: str) -> str:
    """The separator with which most of the first rows have as many fields as the header; of equal ones the
    one that makes most columns, then the first. Blanks separate if nothing else does."""
    lines = text.lstrip("\n").split("\n", SNIFFED)[:SNIFFED]
    best, choice = (0.0, 0), ""
    for separator in ",;\t|":
        counts = _numbers_of_fields(lines, separator)
        if counts and counts[0] > 1:
            alike = counts.count(counts[0]) / len(counts)
            if (alike, counts[0]) > best:
                best, choice = (alike, counts[0]), separator
    if choice:
        return choice
    header, *body = _numbers_of_fields(lines, " ") or [0]
    has_columns = len(set(body)) == 1 and body[0] > 1 and header in (body[0], body[0] - 1)
    return " " if has_columns else ","


def _numbers_of_fields(lines: list[str], separator: str) -> list[int]:
    """Number of fields of each line that is not empty, the header's first."""
    try:
        rows = list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
    except csv.Error:
        return []
    return [len(row) for row in rows if any(cell.strip() for cell in row)]


def _refuse_long_rows(path: Path, header: list[str], body: list[tuple[int, list[str]]],
                      separator: str) -> None:
    """Cut empty cells at the end of each row, and raise InputError for rows that are still longer than the
    header."""
    long = []
    for number, row in body:
        while row and not row[-1]:
            row.pop()
        if len(row) > len(header):
            long.append((number, row))
    if not long:
        return
    if [row[0] for _, row in long] == [str(i + 1) for i in range(len(body))]:
        cause = ("is a name missing in the header? R writes the names of rows without one: write.csv(..., "
                 "row.names = FALSE)")
    elif separator == "," and any(_has_split_number(row) for _, row in long):
        cause = "is a decimal comma in a number? Separate the columns by semicolons, or write a point"
    else:
        cause = "a cell that holds the separator of the columns needs quotes"
    raise InputError(f"{path}: {listed([number for number, _ in long])}: more fields than its header has "
                     f"columns ({len(long[0][1])}, not {len(header)}); {cause}")


def _refuse_nameless(path: Path, header: list[str], filled: list[bool], body: list[tuple[int, list[str]]],
                     separator: str) -> None:
    """Raise InputError for values in a column without a name, but for the first, which may hold names of
    rows: a decimal comma that separates shifts all that follow. Where most names are missing, the row is no
    header but a title, of which the columns that are missed will tell."""
    nameless = [i + 1 for i, name in enumerate(header) if i and not name and filled[i]]
    if nameless and len(nameless) < len([name for name in header if name]):
        cause = "give it a name, or empty it"
        if separator == "," and any(_has_split_number(row) for _, row in body):
            cause = "is a decimal comma in a number? Separate the columns by semicolons, or write a point"
        raise InputError(f"{path}: {listed(nameless, 'column')} of the table: values without a name in the "
                         f"header; {cause}")


def _refuse_swallowed_rows(path: Path, header: list[str], body: list[tuple[int, list[str]]],
                           separator: str) -> None:
    """Raise InputError for a cell that holds whole rows: a quote opened by mistake, and the next one closed
    it."""
    for number, row in body:
        for cell in row:
            if "\n" in cell and any(line.count(separator) >= len(header) - 1 > 0
                                    for line in cell.split("\n")[1:]):
                raise InputError(f'{path}: row {number}: a quote (") opens in {brief(repr(cell[:40]))} and '
                                 "closes rows later; remove it, or write it twice inside a quoted cell")


def _has_split_number(row: list[str]) -> bool:
    """Whether two whole numbers follow each other."""
    return any(one.isdigit() and other.isdigit() for one, other in zip(row[1:], row[2:], strict=False))


def _read_decimal_commas(header: list[str], body: list[tuple[int, list[str]]], remarks: list[str]) -> None:
    """Put decimal points in the place of decimal commas, in place, but for a column of IDs.

    1,234 may be thousands. It is a decimal number if any number of the table can be nothing else, such as
    71,5; otherwise such cells stay as they are, which is a remark.
    """
    ids = {i for i, name in enumerate(header) if simplified(name) in ID_COLUMNS}
    found = [(row, i, match) for _, row in body for i, cell in enumerate(row)
             if "," in cell and i not in ids and (match := DECIMAL_COMMA.fullmatch(cell))]
    columns = [header[i] if i < len(header) else "" for i in sorted({i for _, i, _ in found})]
    if found and all(THOUSANDS.fullmatch(row[i]) for row, i, _ in found):
        remarks.append(f"numbers such as {found[0][0][found[0][1]]} in {listed(columns, 'column')} are left "
                       "as they are: thousands, or decimals?")
    elif found:
        for row, i, match in found:
            row[i] = f"{match[1]}.{match[2]}"
        remarks.append(f"decimal commas are read as points in {listed(columns, 'column')}")


def _name_columns(path: Path, table: pd.DataFrame, columns: Sequence[str], remarks: list[str]) -> None:
    """Give the columns that must be there these very names, in place. Raises InputError if one is missing or
    stands twice."""
    headings = list(table.columns)
    missing, twice = [], []
    for name in columns:
        places = [i for i, heading in enumerate(headings) if heading == name]
        if not places:
            places = [i for i, heading in enumerate(headings) if simplified(heading) == simplified(name)]
            if len(places) == 1:
                remarks.append(f"its column {headings[places[0]]} is read as {name}")
                headings[places[0]] = name
        if not places:
            missing.append(name)
        if len(places) > 1:
            twice.append(name)
    if missing:
        raise InputError(f"{path}: column(s) {', '.join(sorted(missing))} missing, found "
                         f"{brief(', '.join(headings))}{_hint(missing, headings, table)}")
    if twice:
        raise InputError(f"{path}: column(s) {', '.join(twice)} stand twice; keep one")
    table.columns = headings


def _hint(missing: list[str], headings: list[str], table: pd.DataFrame) -> str:
    """The cause of missing columns, as far as the table shows it."""
    for number, row in zip(table.index[:10], table.to_numpy().tolist(), strict=False):
        if {simplified(name) for name in missing} <= {simplified(cell) for cell in row}:
            return f"; is row {number + 2} the header? Delete the rows above it"
    close = {}
    for name in missing:
        for match in difflib.get_close_matches(simplified(name), map(simplified, headings), n=1, cutoff=0.7):
            close[name] = next(heading for heading in headings if simplified(heading) == match)
    if close:
        return "; rename " + ", ".join(f"{heading} to {name}" for name, heading in close.items())
    if any(re.fullmatch(r"[-+]?[0-9.]+", heading) for heading in headings):
        return "; the first row must hold the names of the columns"
    return ""
