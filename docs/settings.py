"""The page of all settings, from the dataclasses themselves: `python -m docs.settings` writes
docs/settings.md. A group of settings, such as pix2pix, has a section of its own."""
import dataclasses
from pathlib import Path

from cohort.calibrate import CalibrateSettings
from cohort.prepare_settings import PrepareSettings
from cohort.preprocess import PreprocessSettings
from config import Config
from newscans.external import ExternalSettings
from newscans.synthesize import SynthesisSettings
from runtime.settings import UNPUBLISHED, is_group, options
from studies.robustness import RobustnessSettings
from studies.samples import SamplesSettings
from studies.sweep import SweepSettings

PAGE = Path(__file__).with_suffix(".md")
TOOLS = {"python main.py": Config, "python main.py synthesize": SynthesisSettings,
         "python main.py external": ExternalSettings, "python main.py sweep": SweepSettings,
         "python main.py study robustness": RobustnessSettings,
         "python main.py study samples": SamplesSettings, "python main.py prepare": PrepareSettings,
         "python main.py preprocess": PreprocessSettings, "python main.py calibrate": CalibrateSettings}


def page() -> str:
    """The text of the page."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m docs.settings` from the code; a test compares. Edit a default in "
        "`config.py`, or pass",
        "`--field value`. `synthesize`, `external`, `sweep`, `study robustness` and `study samples` also "
        "take the settings of the experiment that its",
        "training is not bound to, such as `--samples_per_scan`. A dotted name is a setting of a compared "
        "system: `--pix2pix.lambda_l1 50`",
        "changes the training of Pix2Pix alone. Published is then the value in the system's own paper or "
        "code, which no",
        "preset sets.",
    ]
    for command, kind in TOOLS.items():
        lines += ["", f"## `{command}`"]
        for field in dataclasses.fields(kind):
            if field.metadata["section"]:
                lines += _beginning(field)
            lines += [_row(option) for option in options([field])]
    return "\n".join(lines) + "\n"


def _beginning(field: dataclasses.Field) -> list[str]:
    """Heading of the section that begins with the field, explanation if it is a group, head of the table."""
    section = field.metadata["section"]
    lines = ["", f"### {section[0].upper()}{section[1:]}", ""]
    if is_group(field):
        explanation = field.metadata["help"]
        lines += [f"{explanation[0].upper()}{explanation[1:]}.", ""]
    return [*lines, "| setting | default | published | |", "|---|---|---|---|"]


def _row(field: dataclasses.Field) -> str:
    published = field.metadata["published"]
    published = "" if published is UNPUBLISHED else f"`{_text(published)}`"
    explanation = field.metadata["help"].replace("|", "\\|")
    return f"| `{field.name}` | {_code(field.default)} | {published} | {explanation} |"


def _text(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _code(value) -> str:
    text = _text(value).replace("|", "\\|")
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
