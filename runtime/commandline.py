"""The command line of a dataclass of settings: --field value for each of its fields, presets, and messages of one line."""
import argparse
import dataclasses
import difflib
from collections.abc import Iterable
from functools import partial
from typing import NoReturn, TypeVar

from runtime.settings import element_type

Settings = TypeVar("Settings")


def parse(kind: type[Settings], argv: list[str], prog: str, about: str, presets: dict[str, dict] | None = None) -> Settings:
    """The settings of a command line: defaults, then presets (the later ones win), then --field value.

    kind: a dataclass whose fields are made by settings.setting. An experiment is named after its presets. Exits with code 2 on a wrong word
    or value.
    """
    values = given(dataclasses.fields(kind), argv, prog, about, presets)
    names = values.pop("preset", [])
    settings = {"exp": "_".join(names)} if names else {}
    for name in names:
        settings |= presets[name]
    return build(kind, settings | values)


def build(kind: type[Settings], values: dict) -> Settings:
    """The settings of these values. Exits with code 2 and all of their problems."""
    try:
        return kind(**values)
    except ValueError as error:
        leave(str(error))


def given(fields: Iterable[dataclasses.Field], argv: list[str], prog: str, about: str, presets: dict[str, dict] | None = None) -> dict:
    """What a command line gives of these fields, name -> value, and under "preset" the names of its presets. Exits with code 2 on a wrong
    word."""
    fields = list(fields)
    usage = f"{prog} {'[--preset NAME ...] ' if presets else ''}[--setting value ...]"
    parser = _Parser(prog=prog, usage=usage, allow_abbrev=False, description=about)
    if presets:
        parser.add_argument("--preset", nargs="+", choices=presets, default=argparse.SUPPRESS,
                            help=f"sets of settings, later ones win: {', '.join(presets)}; none: the defaults of config.py")
    group = parser
    for field in fields:
        if field.metadata["section"]:
            group = parser.add_argument_group(field.metadata["section"])
        _add_argument(group, field)
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_words(unknown, [*(["--preset"] if presets else []), *(f"--{field.name}" for field in fields)], prog)
    return {name: tuple(value) if isinstance(value, list) and name != "preset" else value for name, value in vars(values).items()}


def _add_argument(group, field: dataclasses.Field) -> None:
    """An option for the field. What is wrong with its value is left to the checks of the dataclass, which name all problems at once."""
    kind, count = element_type(field.type)
    if isinstance(field.default, tuple):
        default = " ".join(map(str, field.default))
    else:
        default = repr(field.default) if field.default == "" else str(field.default)
    words = "|".join(field.metadata["choices"] or ()) or kind.__name__.upper()
    group.add_argument(
        f"--{field.name}", type=partial(_convert, kind), default=argparse.SUPPRESS, metavar=words,
        nargs="*" if count != 0 else "?" if kind is bool else None, const=True if kind is bool else None,
        help=f"{field.metadata['help']} (default: {default})".replace("%", "%%"))


def _convert(kind: type, text: str):
    """The value that a word means, or the word itself where it means none of this kind."""
    if kind is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _refuse_words(words: list[str], known: list[str], prog: str) -> NoReturn:
    """Name every word that is no setting, with the setting that was probably meant."""
    messages = []
    for name in [word.split("=")[0] for word in words if word.startswith("--")]:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        messages.append(f"unknown setting {name}{f'; did you mean {close[0]}?' if close else ''}")
    if not messages:
        messages = [f"{words[0]!r} belongs to no setting"]
    leave("\n  ".join([*messages, f"python {prog} --help lists all settings"]))


def leave(message: str) -> NoReturn:
    """End the program as for wrong settings: the message alone, exit code 2."""
    argparse.ArgumentParser().exit(2, f"error: {message}\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Without the usage, which fills a screen."""
        leave(message)
