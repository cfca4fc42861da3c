"""Tables as they are read: CSV with every number, Markdown, LaTeX and HTML text."""
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.tables import CAPTIONS, Table
from runtime.files import make_folder, write_csv, write_text

LEVEL = 0.05                                               # of significance, after Holm's correction
DIGITS = {"PSNR": 2, "PSNR_brain": 2, "MAE": 4, "MAE_brain": 4, "p": 3, "p_holm": 3}


def describe_section(section: str) -> str:
    """The cohort, crop and masks of a section in a line."""
    s = json.loads(section)
    data = "digital phantom, not patient data" if s["phantom"] else "cohort"
    if s["data_dir"]:
        data += f" in {s['data_dir']} with the lists of {s['info_dir']}"
    else:
        data += f" ({'+'.join(map(str, s['phantom_subjects']))} subjects, {s['phantom_voxel']} mm, link {s['phantom_link']:g})"
    regions = f"; cortex: {s['cortex_mask']}, reference: {s['reference_mask']}" if s["cortex_mask"] else \
        "; cortex and cerebellum: the phantom's own" if s["phantom"] else ""
    centiloid = f"; CL = {s['centiloid_slope']:g} SUVR {s['centiloid_intercept']:+g}" if s["centiloid_slope"] else ""
    split = f"test (of {len(s['lists'])} cohorts)" if len(s["lists"]) > 1 else "test"
    key = hashlib.blake2b(section.encode(), digest_size=2).hexdigest()                       # two sections never read alike
    box = f"{'x'.join(map(str, s['volume_size']))} voxels from {' '.join(map(str, s['crop_start']))}"
    return (f"{data}; split: {split}; box of {box}; brain: "
            f"{s['brain_mask'] or 'MNI152 mask of nilearn'}{regions}{centiloid}; data range 1; SSIM window 7, uniform [{key}]")


def to_csv(table: Table) -> pd.DataFrame:
    """A row a method or experiment with every number, and the commands that make it."""
    if table.name == "comparisons":
        return table.tidy.assign(section=table.tidy["section"].map(describe_section)).rename(columns={"section": "data"})
    rows = []
    for (section, experiment, *key), row in table.tidy.groupby(["section", "experiment", *table.keys], sort=False):
        first = row.iloc[0]
        values = {f"{r['metric']}{suffix}": r[column] for r in row.to_dict("records")
                  for column, suffix in (("value", ""), ("spread", "_sd"), ("low", "_low"), ("high", "_high"), ("p_holm", "_p_holm"))}
        rows.append({"data": describe_section(section), "experiment": experiment, **dict(zip(table.keys, key, strict=True)),
                     "n": first["n"], "seeds": first["seeds"], **values, "made_by": " ; ".join(first["made_by"])})
    frame = pd.DataFrame(rows)
    fixed = {"data", "experiment", *table.keys, "n", "seeds", "made_by", *table.tidy["metric"]}
    return frame[[name for name in frame.columns if name in fixed or frame[name].notna().any()]]


@dataclass(frozen=True)
class Markup:
    """How a format writes bold and protects its special characters."""
    bold: str
    escape: Callable[[str], str]


def _escape_tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
               "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$\dagger$", "<": r"$<$", ">": r"$>$",
               "|": r"\textbar{}"}
    return "".join(special.get(character, character) for character in text).replace("--", "-{}-")   # no dash in a command


MARKDOWN = Markup("**{}**", lambda text: text.replace("|", r"\|"))
TEX = Markup(r"\textbf{{{}}}", _escape_tex)


def _number(metric: str, value: float) -> str:
    if metric == "p" and value < 0.001:
        return "< 0.001"
    return "not defined" if not np.isfinite(value) else f"{value:.{DIGITS.get(metric, 3)}f}"


def _cell(record: dict, markup: Markup) -> str:
    number, metric = _number(record["metric"], record["value"]), record["metric"]
    bold = markup.bold.format(markup.escape(number)) if record["best"] else markup.escape(number)
    spread = f" ± {_number(metric, record['spread'])}" if np.isfinite(record["spread"]) else ""
    limits = f" [{_number(metric, record['low'])}, {_number(metric, record['high'])}]" if np.isfinite(record["low"]) else ""
    return bold + markup.escape(spread + limits + (" †" if record["p_holm"] < LEVEL else ""))


def display(table: Table, markup: Markup) -> Iterable[tuple[str, pd.DataFrame, list[str]]]:
    """Section by section: its description, the table as text, and the commands whose numbers stand in its column `made by`."""
    for section, tidy in table.tidy.groupby("section", sort=False):
        if table.name == "comparisons":
            frame = tidy.drop(columns="section").rename(columns={"p_holm": "p (Holm)"}).map(
                lambda value: markup.escape(_number("p", value) if isinstance(value, float) else str(value)))
            yield describe_section(section), frame, []
            continue
        commands = list(dict.fromkeys(command for made_by in tidy["made_by"] for command in made_by))
        rows = []
        for (experiment, *key), row in tidy.groupby(["experiment", *table.keys], sort=False):
            made_by = ", ".join(str(commands.index(command) + 1) for command in row["made_by"].iloc[0])
            texts = {"experiment": experiment, **dict(zip(table.keys, key, strict=True)), "n": str(row["n"].iloc[0]),
                     "seeds": str(row["seeds"].iloc[0])}
            rows.append({markup.escape(name): markup.escape(text) for name, text in texts.items()}
                        | {markup.escape(record["metric"]): _cell(record, markup) for record in row.to_dict("records")}
                        | {"made by": made_by})
        yield describe_section(section), pd.DataFrame(rows), commands


def _markdown(table: Table) -> str:
    lines = [f"# {table.name.replace('_', ' ').capitalize()}", "", table.caption]
    for section, frame, commands in display(table, MARKDOWN):
        lines += ["", f"## {section}", "", frame.to_markdown(index=False, disable_numparse=True)]
        lines += ["", "Made by:", "", *(f"{i}. `{command}`" for i, command in enumerate(commands, 1))] if commands else []
    return "\n".join(lines) + "\n"


def _latex(table: Table) -> str:
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for section, frame, commands in display(table, TEX):
        body = frame.rename(columns=lambda name: name if "\\" in name else _escape_tex(name)).to_latex(index=False, escape=False)
        made_by = "".join(f" ({i}) \\texttt{{{_escape_tex(command)}}}" for i, command in enumerate(commands, 1))
        made_by = f"\n\\smallskip\\footnotesize Made by:{made_by}\n" if made_by else ""
        parts.append("\\begin{table*}\n\\centering\n\\caption{" + _escape_tex(f"{table.caption} {section}.") + "}\n"
                     f"\\resizebox{{\\textwidth}}{{!}}{{%\n{body}}}\n{made_by}\\end{{table*}}")
    return "\n\n".join(parts) + "\n"


def write_tables(folder: Path, tables: list[Table]) -> list[Path]:
    """Every table as .csv, .md and .tex; tables of an earlier time that are no longer made go."""
    make_folder(folder)
    for name in CAPTIONS:
        if name not in {table.name for table in tables}:
            for suffix in (".csv", ".md", ".tex"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    for table in tables:
        write_csv(folder / f"{table.name}.csv", to_csv(table))
        for suffix, text in ((".md", _markdown(table)), (".tex", _latex(table))):
            write_text(folder / f"{table.name}{suffix}", text)
    return [folder / f"{table.name}.csv" for table in tables]
