"""The command line of a dataclass of settings: presets, --field value for each field, --group.field value for
each setting of a group, and one message with all problems."""
import argparse
import dataclasses
import difflib
from collections.abc import Iterable
from functools import partial
from typing import NoReturn, TypeVar

from runtime.settings import GONE, READS_REMOVED, REMOVED, RENAMED, element_type, merged, options

Settings = TypeVar("Settings")
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse(kind: type[Settings], argv: list[str], prog: str, about: str,
          presets: dict[str, dict] | None = None) -> Settings:
    """The settings that a command line gives: defaults, then presets (later ones win), then --field value.

    kind: a dataclass whose fields are made by settings.setting. An experiment is named after its presets.
    Exits with code 2 and a message if a word or a value is wrong.
    """
    values = given(dataclasses.fields(kind), argv, prog, about, presets)
    names = values.pop("preset", [])
    settings = {"exp": "_".join(names)} if names else {}
    for name in names:
        settings = merged(kind, settings, presets[name])
    return build(kind, merged(kind, settings, values))


def build(kind: type[Settings], values: dict) -> Settings:
    """The dataclass with these values, whose names may be dotted. Exits with code 2 and all of their
    problems."""
    try:
        return kind(**merged(kind, {}, values))
    except ValueError as error:
        leave(str(error))


def given(fields: Iterable[dataclasses.Field], argv: list[str], prog: str, about: str,
          presets: dict[str, dict] | None = None) -> dict:
    """The values that a command line gives, name -> value, dotted for a setting of a group; the names of
    presets are under "preset". Exits with code 2 on a wrong word."""
    fields = options(fields)
    usage = f"{prog} {'[--preset NAME ...] ' if presets else ''}[--setting value ...]"
    parser = _Parser(prog=prog, usage=usage, allow_abbrev=False, description=about)
    known = [f"--{field.name}" for field in fields]
    if presets:
        known.append("--preset")
        parser.add_argument("--preset", nargs="+", choices=presets, default=argparse.SUPPRESS,
                            help=f"sets of settings, later ones win: {', '.join(presets)}; none: the "
                                 "defaults of config.py")
    group = parser
    for field in fields:
        if field.metadata["section"]:
            group = parser.add_argument_group(field.metadata["section"])
        _add_argument(group, field)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_words(unknown, known, prog)
    values = {}
    for name, value in vars(found).items():
        values[name] = tuple(value) if isinstance(value, list) and name != "preset" else value
    return values


def _add_argument(group, field: dataclasses.Field) -> None:
    """Add an option for the field. Values are checked by the dataclass, which reports all problems at
    once."""
    kind, count = element_type(field.type)
    if isinstance(field.default, tuple):
        default = " ".join(map(str, field.default))
    else:
        default = repr(field.default) if field.default == "" else str(field.default)
    nargs, const = ("*" if count != 0 else None), None
    if kind is bool:
        nargs, const = "?", True  # --field alone means true
    group.add_argument(f"--{field.name}", type=partial(_convert, kind), default=argparse.SUPPRESS,
                       nargs=nargs, const=const,
                       metavar="|".join(field.metadata["choices"] or ()) or kind.__name__.upper(),
                       help=f"{field.metadata['help']} (default: {default})".replace("%", "%%"))


def _convert(kind: type, text: str):
    """The value that a word means, or the word itself if it is not of this type."""
    if kind is bool:
        return BOOLEANS.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _refuse_words(words: list[str], known: list[str], prog: str) -> NoReturn:
    """Exit with every word that is not a setting, and the setting that was probably meant."""
    messages = []
    for word in words:
        if word.startswith("--"):
            name = word.split("=")[0]
            messages.append(f"unknown setting {name}{_suggestion(name, known)}")
    if not messages:
        messages = [f"{words[0]!r} belongs to no setting"]
    leave("\n  ".join([*messages, f"python {prog} --help lists all settings"]))


def _suggestion(name: str, known: list[str]) -> str:
    """The setting that was probably meant, or all settings of the group that the name begins with."""
    old = name.removeprefix("--")
    if old in GONE:
        return f", which is gone: {GONE[old]} (docs/changes.md)"
    if old in REMOVED:
        return (f", which gained nothing and is gone (docs/study.md); git checkout {READS_REMOVED} gives the "
                "version that has it")
    renamed = f"--{RENAMED.get(old)}"
    if renamed in known:
        return f", which is {renamed} now (docs/changes.md)"
    group, _, inner = name.partition(".")
    members = [other.removeprefix(f"{group}.") for other in known if other.startswith(f"{group}.")]
    if not members:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        return f"; did you mean {close[0]}?" if close else ""
    close = difflib.get_close_matches(inner, members, n=1)
    return f"; did you mean {group}.{close[0]}?" if close else f"; {group}. has {', '.join(members)}"


def refuse_tool(word: str, tools: Iterable[str]) -> NoReturn:
    """Exit because the first word names none of the tools, with the one that was probably meant."""
    close = difflib.get_close_matches(word, list(tools), n=1)
    meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(tools)}"
    leave(f"{word!r} is no command of main.py; {meant}\n  python main.py --help lists all settings")


def leave(message: str) -> NoReturn:
    """End the program because of wrong settings: the message alone, exit code 2."""
    argparse.ArgumentParser().exit(2, f"error: {message}\n")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with the message, without the usage, which fills a screen."""
        leave(message)
