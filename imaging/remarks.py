"""Remarks on files that were read otherwise than they are stored: said once a kind, however many files."""
from collections import defaultdict
from pathlib import Path

NAMED = 3                                                  # files that a remark names


class Remarks:
    """Collects what was changed as files were read. Threads may share one; it can be sent between processes.

    files: kind -> the files. A kind continues the words "3 files", such as "had NaN, read as 0".
    """

    def __init__(self):
        self.files: dict[str, set[Path]] = defaultdict(set)

    def add(self, kind: str, path: Path) -> None:
        """Note a file, once however often it is read."""
        self.files[kind].add(path)

    def update(self, other: "Remarks") -> None:
        """Take over the remarks of another reader."""
        for kind, paths in other.files.items():
            self.files[kind] |= paths

    def lines(self) -> list[str]:
        """A line a kind, with the number of its files and the first of their names."""
        lines = []
        for kind, paths in sorted(self.files.items()):
            names = [f"{path.parent.name}/{path.name}" for path in sorted(paths)]
            shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
            lines.append(f"{len(names)} file{'s' if len(names) > 1 else ''} {kind}: {shown}")
        return lines
