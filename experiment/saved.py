"""The settings of an experiment that was run before, for tools that use its networks: nothing has to be typed
again."""
import dataclasses
import json
from pathlib import Path
from typing import TypeVar

from config import ALL, Config, with_later_settings
from experiment.networks import CHECKPOINT
from runtime.commandline import build, given, leave
from runtime.settings import why_refused

Settings = TypeVar("Settings")
OF_A_RUN = ("exp", "stages", "resume", "aae_from", "ldm_from", "gpus")


def parse_for_experiment(kind: type[Settings], argv: list[str], prog: str,
                         about: str) -> tuple[Settings, Config]:
    """The settings of a tool, and those of the experiment that its `exp` names, changed where the command
    line says so.

    kind: the tool's dataclass of settings. Exits with code 2 on a wrong word or value, or if there is no such
    experiment.
    """
    own = {field.name for field in dataclasses.fields(kind)}
    of_experiment = [field for field in changeable() if field.name not in own]
    values = given([*dataclasses.fields(kind), *of_experiment], argv, prog, about)
    settings = build(kind, {name: value for name, value in values.items() if name in own})
    changes = {name: value for name, value in values.items() if name not in own}
    if "cortex_mask" in changes and "regions" not in changes:
        changes["regions"] = "auto"                        # what was saved is what auto had settled on
    return settings, build(Config, read_settings(settings.exp) | changes)


def changeable() -> list[dataclasses.Field]:
    """The settings of an experiment that may be others than in its training."""
    return [field for field in dataclasses.fields(Config)
            if not set(ALL) & set(field.metadata["affects"]) and field.name not in OF_A_RUN]


def read_settings(exp: str) -> dict:
    """The settings that an experiment was run with. Exits with code 2 if there is none of that name, or one
    of another version."""
    path = Path("result") / exp / "config.json"
    try:
        saved = with_later_settings(json.loads(path.read_text())["settings"])
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        trained = ", ".join(trained_experiments()) or "none"
        leave(f"{path} is not there or damaged: a trained experiment is needed; trained here: {trained}")
    if why := why_refused(saved):
        leave(f"{path} {why}")
    if settings.keys() != {field.name for field in dataclasses.fields(Config)}:
        leave(f"{path} was written by another version of this project, whose settings were others "
              "(docs/changes.md); train again under another --exp, or use the version that wrote it")
    return settings | {"exp": exp}                         # its folder may have another name by now


def trained_experiments() -> list[str]:
    """Names of the experiments here that have a trained stage 2."""
    return sorted(path.parent.name for path in Path("result").glob(f"*/{CHECKPOINT['ldm']}.pth.tar"))
