"""The command line: from words to settings, and from settings to the shortest command that gives them."""
import argparse
import dataclasses
import difflib
import itertools
import shlex

from config import GROUPS, Config
from presets import PRESETS
from settings import element_type, plain


def command(settings: dict) -> str:
    """The shortest command line that gives these settings (as to_json holds them), but for its stages."""
    def differences(presets: tuple[str, ...]) -> list[str]:
        """The words `--name value` of what the presets do not give."""
        base = {f.name: plain(f.default) for f in dataclasses.fields(Config)}
        base["exp"] = base["exp"] if presets == ("paper",) else "_".join(presets)
        for name in presets:
            base |= {key: plain(value) for key, value in PRESETS[name].items()}
        return [f"--{name} {' '.join(shlex.quote(_word(entry)) for entry in (value if isinstance(value, list) else [value]))}".rstrip()
                for name, value in settings.items() if name in base and name != "stages" and base[name] != value]

    combinations = [presets for count in range(1, len(PRESETS)) for presets in itertools.permutations(PRESETS, count)
                    if presets == ("paper",) or "paper" not in presets]
    best = min(combinations, key=lambda presets: len(differences(presets)))
    return " ".join(["python main.py", *(["--preset", *best] if best != ("paper",) else []), *differences(best)])


def _word(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_bool(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"error: {message}\n")                # without the usage, which fills a screen


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="main.py", allow_abbrev=False, description=(
        "IL-CLDM: synthesize amyloid PET from T1 MRI. Trains both stages on the cohort and writes result/<exp>/. "
        "Running the same command again continues where it stopped."))
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["paper"], help=(
        "sets of settings, later ones win: paper (the default), demo (a digital phantom, small networks, minutes on a CPU), "
        "benchmark (the larger phantom of the study, docs/study.md), "
        "published (every setting as in the published code)"))
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for field in dataclasses.fields(Config):
        kind, count = element_type(field.type)
        default = "the names of the presets" if field.name == "exp" else " ".join(map(str, field.default)) \
            if isinstance(field.default, tuple) else repr(field.default) if field.default == "" else str(field.default)
        groups[field.metadata["group"]].add_argument(
            f"--{field.name}", type=_parse_bool if kind is bool else kind, default=argparse.SUPPRESS,
            nargs="?" if kind is bool else {0: None, None: "*"}.get(count, count), const=True if kind is bool else None,
            choices=field.metadata["choices"],
            metavar=None if field.metadata["choices"] else kind.__name__.upper(),
            help=f"{field.metadata['help']} (default: {default})".replace("%", "%%"))
    return parser


def parse_args(argv: list[str] | None = None) -> Config:
    """The settings of a command line: defaults, then presets, then --field value. Exits with code 2 on a wrong one."""
    parser = _parser()
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [f"--{field.name}" for field in dataclasses.fields(Config)]
        close = difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; python main.py --help lists all settings"
        parser.error(f"unknown setting {unknown[0]}{hint}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()}
    presets = values.pop("preset")
    settings = {} if presets == ["paper"] else {"exp": "_".join(presets)}
    for name in presets:
        settings |= PRESETS[name]
    try:
        return Config(**settings | values)
    except ValueError as error:
        parser.error(str(error))
