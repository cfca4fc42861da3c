"""Names that are the same but for what spreadsheets and file systems change: zeros, case, prefixes,
dashes."""
import re
from collections import defaultdict
from collections.abc import Callable, Iterable


def _without(pattern: str, put: str = "") -> Callable[[str], str]:
    return lambda name: re.sub(pattern, put, name, flags=re.IGNORECASE)


# What may differ between two names -> a name without it; in the order in which all are taken away.
DIFFERENCES = {"the suffix of a file": _without(r"\.(nii(\.gz)?|gz)$"),
               "a number with .0": _without(r"^(\d+)\.0+$", r"\1"),
               "case": str.lower,
               "the prefix sub-": _without(r"^sub[-_]"),
               "leading zeros": _without(r"(?<!\d)0+(?=\d)"),
               "blanks, dashes or underscores": _without(r"[\s_.-]+")}


def _bare(name: str) -> str:
    """A name without anything that may differ."""
    for strip in DIFFERENCES.values():
        name = strip(name)
    return name


class NearNames:
    """Names among which the one that was meant is looked for."""

    def __init__(self, names: Iterable[str]):
        self.names_of: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self.names_of[_bare(name)].append(name)

    def of(self, name: str) -> tuple[str, str] | None:
        """The only name that may be meant by another, and in what they differ; None if there is none, or if
        several may be."""
        found = [other for other in self.names_of.get(_bare(name), ()) if other != name]
        if len(found) != 1:
            return None
        for difference, strip in DIFFERENCES.items():
            if strip(name) == strip(found[0]):
                return found[0], difference
        return found[0], "case, zeros, prefix or punctuation"

    def hint(self, name: str) -> str:
        """The end of a message: the name that may be meant, and in what it differs; empty if none may be."""
        found = self.of(name)
        return f"; did you mean {found[0]}? They differ in {found[1]}" if found else ""
