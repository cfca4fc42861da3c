"""Settings: fields of a frozen dataclass, each with an explanation, a range and what depends on it, and the
check of their values."""
import dataclasses
import typing
from collections.abc import Iterator

UNPUBLISHED = object()  # the published method has no such setting, or the same value


def setting(default, explanation: str, *, section: str = "", affects: tuple[str, ...] = (), low=None,
            high=None, choices: tuple[str, ...] | None = None, published=UNPUBLISHED,
            extendable: bool = False, empty: bool = False):
    """A field of a dataclass of settings.

    section: title of the group of settings that begins with this one, for --help.
    affects: results that depend on the setting; none if it changes only speed or places.
    low, high: inclusive range of the value, or of each of its entries. choices: the values that are allowed.
    published: its value in the published method, where the default differs.
    extendable: may be raised while what it affects is trained. empty: a tuple of any length may have no
    entry.
    """
    default = tuple(default) if isinstance(default, list) else default  # an edited default may be a list
    return dataclasses.field(default=default, metadata={
        "help": explanation, "section": section, "affects": affects, "low": low, "high": high,
        "choices": choices, "published": published, "extendable": extendable, "empty": empty})


def same(kind: type, name: str) -> dataclasses.Field:
    """A copy of a setting of another dataclass, with the same default, explanation and range."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return dataclasses.field(default=field.default, metadata={**field.metadata, "section": ""})


def plain(value):
    """A setting as JSON saves it, so that a saved value equals a present one."""
    return list(value) if isinstance(value, tuple) else value


def element_type(annotation) -> tuple[type, int | None]:
    """(type of an entry, number of entries); the number is None for a tuple of any length and 0 for a plain
    value."""
    if typing.get_origin(annotation) is not tuple:
        return annotation, 0
    arguments = typing.get_args(annotation)
    return arguments[0], None if arguments[-1] is Ellipsis else len(arguments)


def value_problems(settings) -> list[str]:
    """Problems of the values of a dataclass of settings one by one: type, number of entries, range."""
    problems = []
    for field in dataclasses.fields(settings):
        problems += _field_problems(field, getattr(settings, field.name))
    return problems


def _field_problems(field: dataclasses.Field, value) -> Iterator[str]:
    kind, count = element_type(field.type)
    is_tuple = count != 0
    if is_tuple != isinstance(value, tuple) or (count and len(value) != count):
        expected = f"a tuple of {count or 'several'}" if is_tuple else "one"
        yield f"{field.name} {value!r} must be {expected} {kind.__name__}"
        return
    if count is None and not value and not field.metadata["empty"]:
        yield f"{field.name} must not be empty"
    for entry in value if is_tuple else (value,):
        yield from _entry_problems(field, kind, entry)


def _entry_problems(field: dataclasses.Field, kind: type, entry) -> Iterator[str]:
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    is_of_type = type(entry) is kind or (kind is float and type(entry) is int)
    if not is_of_type:
        expected = "true or false" if kind is bool else f"of type {kind.__name__}"
        yield f"{field.name} {entry!r} must be {expected}"
    elif choices and entry not in choices:
        yield f"{field.name} {entry!r} must be one of {', '.join(choices)}"
    elif (low is not None and not entry >= low) or (high is not None and not entry <= high):  # nan is neither
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        yield f"{field.name} {entry!r} must be {expected}"


def refuse(problems: list[str]) -> None:
    """Raise ValueError with all problems of the settings, if there are any."""
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} problem(s) in the settings:", *problems]))
