"""The page of all settings, from the dataclasses themselves: `python -m docs.settings` writes
docs/settings.md."""
import dataclasses
from pathlib import Path

from cohort.prepare import PrepareSettings
from cohort.preprocess import PreprocessSettings
from config import Config
from newscans.synthesize import SynthesisSettings
from runtime.settings import UNPUBLISHED
from studies.sweep import SweepSettings

PAGE = Path(__file__).with_suffix(".md")
TOOLS = {"python main.py": Config, "python main.py synthesize": SynthesisSettings,
         "python main.py sweep": SweepSettings, "python main.py prepare": PrepareSettings,
         "python main.py preprocess": PreprocessSettings}


def page() -> str:
    """The text of the page."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m docs.settings` from the code; a test compares. Edit a default in "
        "`config.py`, or pass",
        "`--field value`. `synthesize` and `sweep` also take the settings of the experiment that its "
        "training is not",
        "bound to, such as `--samples_per_scan`.",
    ]
    for command, kind in TOOLS.items():
        lines += ["", f"## `{command}`"]
        for field in dataclasses.fields(kind):
            if field.metadata["section"]:
                lines += [
                    "",
                    f"### {field.metadata['section'][0].upper()}{field.metadata['section'][1:]}",
                    "",
                    "| setting | default | published | |",
                    "|---|---|---|---|",
                ]
            lines.append(_row(field))
    return "\n".join(lines) + "\n"


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
