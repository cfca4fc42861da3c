"""Where the volumes of a subject lie in the BIDS dataset, as its record keeps it: another tracer or space is
another name, and the file of the old name must go."""
import json
import os
from pathlib import Path

Places = dict[str, list[str]]                              # 'mri', 'pet' -> paths from the data_dir on


def recorded_places(record: Path) -> Places:
    """The places that a record names; none if it is an older one, or cannot be read."""
    try:
        places = json.loads(record.read_text())["places"]
        return {str(kind): [str(path) for path in paths] for kind, paths in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def both(old: Places, new: Places) -> Places:
    """All places of two records, each once."""
    return {kind: list(dict.fromkeys(old.get(kind, []) + new.get(kind, []))) for kind in {**old, **new}}


def remove_old(data_dir: Path, old: Places, new: Places) -> None:
    """Remove files of a subject that lie where none belongs any more, with their sidecars. Volumes that `new`
    does not name at all stay."""
    for kind, paths in new.items():
        kept = {path.lower() for path in paths}            # some disks ignore case
        for path in old.get(kind, []):
            place = Path(os.path.normpath(data_dir / path))
            if path.lower() not in kept and place.is_relative_to(os.path.normpath(data_dir)):
                place.unlink(missing_ok=True)
                place.with_name(place.name.replace(".nii.gz", ".json")).unlink(missing_ok=True)
