"""What a setting is: a field of the dataclass with explanation, group and range, and the checks of its value."""
import dataclasses
import typing

BESIDE = ("preprocess", "prepare", "synthesize")           # groups of stages beside an experiment: its results do not depend on them


def setting(default, explanation: str, *, group: str, low=None, high=None, choices=None, free: bool | None = None):
    """A field of Config. low, high: inclusive range of the value or of each of its entries.

    free: may change between the training of a checkpoint and its use (by default in all groups but those of cohort and training).
    """
    free = group not in ("data", "phantom", "aae", "ldm", "controls") if free is None else free
    default = tuple(default) if isinstance(default, list) else default                       # an edited default may be a list
    return dataclasses.field(default=default, metadata={
        "help": explanation, "group": group, "low": low, "high": high, "choices": choices, "free": free})


def plain(value):
    """A setting as JSON keeps it, so that a saved one equals a present one."""
    return list(value) if isinstance(value, tuple) else value


def element_type(annotation) -> tuple[type, int | None]:
    """(type of an entry, number of entries); the number is None for a tuple of any length and 0 for a plain value."""
    if typing.get_origin(annotation) is not tuple:
        return annotation, 0
    arguments = typing.get_args(annotation)
    return arguments[0], None if arguments[-1] is Ellipsis else len(arguments)


def value_problems(field: dataclasses.Field, value):
    """What is wrong with one value by itself: its type, its number of entries, its range."""
    kind, count = element_type(field.type)
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    if (count != 0) != isinstance(value, tuple) or (count and len(value) != count):
        yield f"{field.name} {value!r} must be {'a tuple of ' + str(count or 'several') if count != 0 else 'one'} {kind.__name__}"
        return
    if count is None and not value and field.name != "unet_attention_levels":
        yield f"{field.name} must not be empty"
    for entry in value if isinstance(value, tuple) else (value,):
        if type(entry) is not kind and not (kind is float and type(entry) is int):
            yield f"{field.name} {entry!r} must be of type {kind.__name__}"
        elif choices and entry not in choices:
            yield f"{field.name} {entry!r} must be one of {', '.join(choices)}"
        elif (low is not None and not entry >= low) or (high is not None and not entry <= high):
            yield f"{field.name} {entry!r} must be {'at least ' + str(low) if high is None else f'between {low} and {high}'}"
