"""A setting: a field of a frozen dataclass with its explanation, its range and what depends on it, and the checks of its value."""
import dataclasses
import typing

UNPUBLISHED = object()                                     # the published method has no such setting, or the same value


def setting(default, explanation: str, *, section: str = "", affects: tuple[str, ...] = (), low=None, high=None,
            choices: tuple[str, ...] | None = None, published=UNPUBLISHED, extendable: bool = False, empty: bool = False):
    """A field of a dataclass of settings.

    section: title of the group of settings that begins with this one, for --help.
    affects: results that are another one if the setting is another one; none for what changes speed or places alone.
    low, high: inclusive range of the value, or of each of its entries. choices: the values that it may have.
    published: its value in the published method, where the default departs from that.
    extendable: may be raised while what it affects is trained. empty: a tuple of any length may have no entry.
    """
    default = tuple(default) if isinstance(default, list) else default                       # an edited default may be a list
    return dataclasses.field(default=default, metadata={
        "help": explanation, "section": section, "affects": affects, "low": low, "high": high, "choices": choices,
        "published": published, "extendable": extendable, "empty": empty})


def same(kind: type, name: str) -> dataclasses.Field:
    """The setting of another dataclass, for one that has it too: same default, explanation and range."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return dataclasses.field(default=field.default, metadata={**field.metadata, "section": ""})


def plain(value):
    """A setting as JSON keeps it, so that a saved one equals a present one."""
    return list(value) if isinstance(value, tuple) else value


def element_type(annotation) -> tuple[type, int | None]:
    """(type of an entry, number of entries); the number is None for a tuple of any length and 0 for a plain value."""
    if typing.get_origin(annotation) is not tuple:
        return annotation, 0
    arguments = typing.get_args(annotation)
    return arguments[0], None if arguments[-1] is Ellipsis else len(arguments)


def value_problems(settings) -> list[str]:
    """What is wrong with the values of a dataclass of settings one by one: type, number of entries, range."""
    return [problem for field in dataclasses.fields(settings) for problem in _problems(field, getattr(settings, field.name))]


def _problems(field: dataclasses.Field, value):
    kind, count = element_type(field.type)
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    if (count != 0) != isinstance(value, tuple) or (count and len(value) != count):
        yield f"{field.name} {value!r} must be {'a tuple of ' + str(count or 'several') if count != 0 else 'one'} {kind.__name__}"
        return
    if count is None and not value and not field.metadata["empty"]:
        yield f"{field.name} must not be empty"
    for entry in value if isinstance(value, tuple) else (value,):
        if type(entry) is not kind and not (kind is float and type(entry) is int):
            yield f"{field.name} {entry!r} must be {'true or false' if kind is bool else f'of type {kind.__name__}'}"
        elif choices and entry not in choices:
            yield f"{field.name} {entry!r} must be one of {', '.join(choices)}"
        elif (low is not None and not entry >= low) or (high is not None and not entry <= high):
            yield f"{field.name} {entry!r} must be {'at least ' + str(low) if high is None else f'between {low} and {high}'}"


def refuse(problems: list[str]) -> None:
    """Raise ValueError with all problems of the settings, if there are any."""
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} problem(s) in the settings:", *problems]))
