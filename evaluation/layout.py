"""The layout of the tables: CSV with every number, and Markdown, LaTeX and HTML as a reader sees them."""
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from evaluation import external_table
from evaluation.tables import CAPTIONS, Table
from imaging.regions import ABOUT
from runtime.files import make_folder, write_csv, write_text

LEVEL = 0.05                                               # of significance, after Holm's correction
DIGITS = {"PSNR": 2, "PSNR_brain": 2, "MAE": 4, "MAE_brain": 4, "spectrum_brain": 2,
          "nyquist": 1, "nyquist_real": 1}                 # 3 of all others
SUFFIXES = {"value": "", "spread": "_sd", "low": "_low", "high": "_high", "p": "_p",
            "p_holm": "_p_holm"}                           # in the CSV
TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{",
       "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$\dagger$",
       "<": r"$<$", ">": r"$>$", "|": r"\textbar{}"}


def describe_section(section: str) -> str:
    """The cohort, crop and masks of a section in a line. section: as a Group holds it."""
    of = json.loads(section)
    data = "digital phantom, not patient data" if of["phantom"] else "cohort"
    if of["data_dir"]:
        data += f" in {of['data_dir']} with the lists of {of['info_dir']}"
    else:
        subjects = "+".join(str(count) for count in of["phantom_subjects"])
        data += f" ({subjects} subjects, {of['phantom_voxel']} mm, link {of['phantom_link']:g})"
    split = "test" if len(of["lists"]) == 1 else f"test (of {len(of['lists'])} cohorts)"
    split = of.get("split", split)                         # of external cohorts
    size = "x".join(str(n) for n in of["volume_size"])
    start = " ".join(str(n) for n in of["crop_start"])
    brain = of["brain_mask"] or "MNI152 mask of nilearn"
    regions = ""
    if of["cortex_mask"]:
        regions = f"; cortex: {of['cortex_mask']}, reference: {of['reference_mask']}"
    elif "regions" in of:
        regions = f"; cortex and cerebellum: {ABOUT[of['regions']]}"
    elif of["phantom"]:
        regions = "; cortex and cerebellum: the phantom's own"
    slope, intercept = of["centiloid"]
    if slope:
        regions += f"; CL = {slope:g} SUVR {intercept:+g}"
    key = hashlib.blake2b(section.encode(), digest_size=2).hexdigest()        # two sections never read alike
    return (f"{data}; split: {split}; box of {size} voxels from {start}; brain: {brain}{regions}; "
            f"data range 1; SSIM window 7, uniform [{key}]")


# ---------------------------------------------------------------- CSV

def to_csv(table: Table) -> pd.DataFrame:
    """A row a method and experiment with every number, and the commands that make it."""
    if table.name == "comparisons":
        described = table.tidy.assign(section=table.tidy["section"].map(describe_section))
        return described.rename(columns={"section": "data"})
    rows = []
    columns = ["section", "experiment", *table.keys]
    for _, metrics in table.tidy.groupby(columns, sort=False):
        first = metrics.iloc[0]
        row = {"data": describe_section(first["section"])}
        row |= {name: first[name] for name in ("experiment", *table.keys, "n", "seeds")}
        for record in metrics.to_dict("records"):
            for column, suffix in SUFFIXES.items():
                if column in record:
                    row[record["metric"] + suffix] = record[column]
        row["made_by"] = " ; ".join(first["made_by"])
        rows.append(row)
    frame = pd.DataFrame(rows)
    always = {"data", "experiment", *table.keys, "n", "seeds", "made_by", *table.tidy["metric"]}
    return frame[[name for name in frame if name in always or frame[name].notna().any()]]


# ---------------------------------------------------------------- text

@dataclass(frozen=True)
class Markup:
    """Bold type and the protection of special characters in a format. bold: a template for one text."""
    bold: str
    escape: Callable[[str], str]


def escape_tex(text: str) -> str:
    """Text for LaTeX, in which no character has its special meaning."""
    escaped = "".join(TEX.get(character, character) for character in text)
    return escaped.replace("--", "-{}-")                   # the hyphens of an option, not a dash


def escape_markdown(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", r"\|")


MARKDOWN = Markup("**{}**", escape_markdown)
LATEX = Markup(r"\textbf{{{}}}", escape_tex)


class Section(NamedTuple):
    """The rows of a table that can be compared: description, table of text, and commands.

    The numbers of its commands, counted from 1, stand in the table's column `made by`.
    """
    description: str
    table: pd.DataFrame
    commands: list[str]


def display(table: Table, markup: Markup) -> list[Section]:
    """The sections of a table in a format."""
    sections = []
    for section, tidy in table.tidy.groupby("section", sort=False):
        commands = []
        if table.name == "comparisons":
            text = _comparison_text(tidy, markup)
        else:
            commands = list(dict.fromkeys(tidy["made_by"].explode()))
            rows = tidy.groupby(["experiment", *table.keys], sort=False)
            text = pd.DataFrame([_row_text(row, table.keys, commands, markup) for _, row in rows])
            text["made by"] = text.pop("made by")          # the last, whatever the first row lacks
            text = text.fillna("not measured")             # by the version that scored the row
        sections.append(Section(describe_section(section), text, commands))
    return sections


def _comparison_text(tidy: pd.DataFrame, markup: Markup) -> pd.DataFrame:
    rows = []
    for record in tidy.to_dict("records"):
        low, high = (
            _number(record["metric"], record[name]) for name in ("difference_low", "difference_high")
        )
        texts = {name: str(record[name]) for name in ("table", "metric", "a", "b", "n")}
        texts["difference"] = f"{_number(record['metric'], record['difference'])} [{low}, {high}]"
        texts["rank-biserial"] = _number("", record["rank_biserial"])
        texts |= {"p": _p_value(record["p"]), "p (Holm)": _p_value(record["p_holm"])}
        rows.append({name: markup.escape(text) for name, text in texts.items()})
    return pd.DataFrame(rows)


def _row_text(row: pd.DataFrame, keys: tuple[str, ...], commands: list[str],
              markup: Markup) -> dict[str, str]:
    """A row of a table as text, by column. row: its records, one a metric."""
    first, texts = row.iloc[0], {}
    for name in ("experiment", *keys, "n", "seeds"):
        texts[markup.escape(name)] = markup.escape(str(first[name]))
    for record in row.to_dict("records"):
        texts[markup.escape(record["metric"])] = _cell(record, markup)
    texts["made by"] = ", ".join(str(commands.index(command) + 1) for command in first["made_by"])
    return texts


def _cell(record: dict, markup: Markup) -> str:
    """A value with its spread and interval; bold if best, with a dagger if its difference is significant."""
    metric = record["metric"]
    value, rest = markup.escape(_number(metric, record["value"])), ""
    if record["best"]:
        value = markup.bold.format(value)
    if np.isfinite(record["spread"]):
        rest += f" ± {_number(metric, record['spread'])}"
    if np.isfinite(record["low"]):
        rest += f" [{_number(metric, record['low'])}, {_number(metric, record['high'])}]"
    if record["p_holm"] < LEVEL:
        rest += " †"
    return value + markup.escape(rest)


def _number(metric: str, value: float) -> str:
    return f"{value:.{DIGITS.get(metric, 3)}f}" if np.isfinite(value) else "not defined"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else _number("p", p)


def _markdown(table: Table) -> str:
    lines = [f"# {table.name.replace('_', ' ').capitalize()}", "", table.caption]
    for section in display(table, MARKDOWN):
        text = section.table.to_markdown(index=False, disable_numparse=True)
        lines += ["", f"## {section.description}", "", text]
        if section.commands:
            lines += ["", "Made by:", ""]
            lines += [f"{i}. `{command}`" for i, command in enumerate(section.commands, 1)]
    return "\n".join(lines) + "\n"


def _latex(table: Table) -> str:
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for section in display(table, LATEX):
        body = section.table.to_latex(index=False, escape=False)              # its texts are escaped already
        made_by = ""
        for i, command in enumerate(section.commands, 1):
            made_by += f" ({i}) \\texttt{{{escape_tex(command)}}}"
        if made_by:
            made_by = f"\n\\smallskip\\footnotesize Made by:{made_by}\n"
        caption = escape_tex(f"{table.caption} {section.description}.")
        parts.append("\\begin{table*}\n\\centering\n\\caption{" + caption + "}\n"
                     f"\\resizebox{{\\textwidth}}{{!}}{{%\n{body}}}\n{made_by}\\end{{table*}}")
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- files

def write_tables(folder: Path, tables: list[Table]) -> list[Path]:
    """Write every table as .csv, .md and .tex; earlier ones that are no longer made go. Returns the CSVs."""
    make_folder(folder)
    made = {table.name for table in tables}
    for name in (*CAPTIONS, external_table.NAME):
        if name not in made:
            for suffix in (".csv", ".md", ".tex"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    for table in tables:
        write_csv(folder / f"{table.name}.csv", to_csv(table))
        write_text(folder / f"{table.name}.md", _markdown(table))
        write_text(folder / f"{table.name}.tex", _latex(table))
    return [folder / f"{table.name}.csv" for table in tables]
