"""Settings: fields of a frozen dataclass, each with an explanation, a range and what depends on it, and the
check of their values. The value of a field may be such a dataclass itself, a group of settings: on the
command line and in messages its settings have dotted names, such as pix2pix.lambda_l1."""
import dataclasses
import json
import typing
from collections.abc import Iterable, Iterator

from runtime.logs import readable

UNPUBLISHED = object()  # the published method has no such setting, or the same value
# Names in earlier versions -> now, for who gives an old one; with_present_names turns what was saved.
RENAMED = {"regression_channels": "image_regression.channels", "centiloid_slope": "centiloid",
           "centiloid_intercept": "centiloid", "regions_image": "atlas", "regions_table": "atlas",
           "aae_block_norm": "aae_norms", "aae_output_norm": "aae_norms"}

# Settings of earlier versions that are none any more -> what holds now, for who gives one; one that was saved
# is left out.
GONE = {"shown_subjects": "two subjects of each label are shown",
        "bootstrap_resamples": "all intervals have the same number of resamples",
        "save_std": "synthesize --samples N writes PETs whose standard deviation means something"}

# Settings of earlier versions that changed a training and gained nothing (docs/study.md) -> the value that
# changes nothing. What was saved with it is as it is now, what was made with another one is refused.
REMOVED = {"zero_terminal_snr": False, "min_snr": 0.0, "ldm_lr_decay": False}
REMOVED_CHOICES = {"prediction": "x0"}                     # a value of a present setting, likewise refused
READS_REMOVED = "acd10f2"                                  # the last commit with all of them

# Settings that a training is bound to and that came later: a checkpoint without one was trained with this.
ADDED = {"upsampling": "transposed"}


def with_present_names(saved: dict) -> dict:
    """Settings as JSON or a checkpoint holds them, under their present names, dotted for one that belongs to
    a group now; those that are gone are left out, removed ones only with the value that changes nothing."""
    present = {}
    for name, value in saved.items():
        changed_nothing = name in REMOVED and value == REMOVED[name]
        if name not in GONE and not changed_nothing:
            present[name] = value
    if "regression_channels" in present:
        present["image_regression.channels"] = present.pop("regression_channels")
    if "centiloid_slope" in present:
        present["centiloid"] = [present.pop("centiloid_slope"), present.pop("centiloid_intercept", 0.0)]
    if "regions_image" in present:
        files = [present.pop("regions_image"), present.pop("regions_table", "")]
        present["atlas"] = files if any(files) else []
    if "aae_output_norm" in present:
        norms = {"blocks": present.pop("aae_block_norm", False), "output": present.pop("aae_output_norm")}
        present["aae_norms"] = [place for place, is_there in norms.items() if is_there]
    return present


def why_refused(saved: dict) -> str:
    """What to say of the file whose settings these are, if it was made with a value of a removed setting that
    changed something; else empty."""
    found = [f"{name} {json.dumps(saved[name])}" for name, off in REMOVED.items()
             if saved.get(name, off) != off]
    found += [f"{name} {json.dumps(gone)}" for name, gone in REMOVED_CHOICES.items()
              if saved.get(name) == gone]
    if not found:
        return ""
    return (f"was made with {', '.join(found)}, which gained nothing and is gone (docs/study.md); git "
            f"checkout {READS_REMOVED} gives the version that reads it")


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
    """A setting as JSON saves it, so that a saved value equals a present one; a group is a dict."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def dotted(name: str, value, but: tuple[str, ...] = ()) -> dict:
    """Name -> value of a setting as JSON saves it, or of each setting of a group by its dotted name, without
    those that affect one of `but`."""
    if not dataclasses.is_dataclass(value):
        return {name: plain(value)}
    return {f"{name}.{field.name}": plain(getattr(value, field.name)) for field in dataclasses.fields(value)
            if not set(but) & set(field.metadata["affects"])}


# ---------------------------------------------------------------- groups

def is_group(field: dataclasses.Field) -> bool:
    """Whether the value of the field is a dataclass of settings."""
    return dataclasses.is_dataclass(field.type)


def options(fields: Iterable[dataclasses.Field]) -> list[dataclasses.Field]:
    """The fields, and in the place of a group its settings with their dotted names; the first of them begins
    the section of the group."""
    found = []
    for field in fields:
        found += _options_of_group(field) if is_group(field) else [field]
    return found


def _options_of_group(group: dataclasses.Field) -> list[dataclasses.Field]:
    found, section = [], group.metadata["section"]
    for inner in dataclasses.fields(group.type):
        option = dataclasses.field(default=inner.default, metadata={**inner.metadata, "section": section})
        option.name, option.type, section = f"{group.name}.{inner.name}", inner.type, ""
        found.append(option)
    return found


def merged(kind: type, settings: dict, changes: dict) -> dict:
    """Settings of the dataclass `kind` with the changes. A dotted name changes one setting of a group, any
    other name the whole value."""
    found = dict(settings)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in changes.items():
        group, dot, inner = name.partition(".")
        if dot:
            present = found.get(group, defaults[group])
            found[group] = _as_dict(present) | {inner: value}
        else:
            found[name] = value
    return found


def _as_dict(group) -> dict:
    """Name -> value of the settings of a group, which may be a dict already."""
    if isinstance(group, dict):
        return group
    return {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}


def read_groups(settings) -> None:
    """Put a dataclass in the place of each group that is given as a dict, as JSON has it; what the dict lacks
    is as the default. A dict with an unknown name stays, for value_problems to report."""
    for field in filter(is_group, dataclasses.fields(settings)):
        value = getattr(settings, field.name)
        names = {inner.name for inner in dataclasses.fields(field.type)}
        if isinstance(value, dict) and value.keys() <= names:
            object.__setattr__(settings, field.name, _group_of(field, value))


def _group_of(field: dataclasses.Field, saved: dict):
    """The group with the values of a dict; a list is a tuple."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return dataclasses.replace(field.default, **values)


# ---------------------------------------------------------------- types and values

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
        check = _group_problems if is_group(field) else _field_problems
        problems += check(field, getattr(settings, field.name))
    return problems


def _group_problems(field: dataclasses.Field, value) -> Iterator[str]:
    names = [inner.name for inner in dataclasses.fields(field.type)]
    if isinstance(value, dict):
        for name in value:
            if name not in names:
                yield f"{field.name}.{name} is no setting; {field.name} has {', '.join(names)}"
        value = _group_of(field, {name: entry for name, entry in value.items() if name in names})
    if type(value) is not field.type:
        yield f"{field.name} {value!r} must be of type {field.type.__name__}"
        return
    for name, option in zip(names, _options_of_group(field), strict=True):
        yield from _field_problems(option, getattr(value, name))


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
    elif kind is str and readable(entry) != entry:
        yield (f"{field.name} {readable(entry)} is not a name in UTF-8, which tables and reports need; "
               "rename it, or give a link to it that has a plain name")
    elif REMOVED_CHOICES.get(field.name) == entry:
        yield (f"{field.name} {entry} gained nothing and is gone (docs/study.md); git checkout "
               f"{READS_REMOVED} gives the version that has it")
    elif choices and entry not in choices:
        yield f"{field.name} {entry!r} must be one of {', '.join(choices)}"
    elif (low is not None and not entry >= low) or (high is not None and not entry <= high):  # nan is neither
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        yield f"{field.name} {entry!r} must be {expected}"


def refuse(problems: list[str]) -> None:
    """Raise ValueError with all problems of the settings, if there are any."""
    if problems:
        raise ValueError("\n  ".join([f"{len(problems)} problem(s) in the settings:", *problems]))
