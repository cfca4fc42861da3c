"""The results of an experiment on external cohorts: result/<exp>/external/<name>/, with an index as the test
stage writes it."""
import dataclasses
import json
from pathlib import Path

from evaluation.results import EXTERNAL, INDEX, Run, load_run, remedy
from runtime.logs import readable
from utils import InputError


def load_externals(folder: Path, frozen: dict[str, str]) -> tuple[list[Run], dict[str, str]]:
    """The external cohorts of an experiment with that folder, each as a Run of the experiment's name, and of
    those that cannot be used the name and why.

    frozen: digests of the thresholds and the calibration that the experiment has now.
    """
    runs, left_out = [], {}
    for index in sorted(folder.glob(f"{EXTERNAL}/*/{INDEX}")):
        name = f"{readable(folder.name)}/{EXTERNAL}/{readable(index.parent.name)}"
        try:
            run = load_run(index.parent)
            if run.metadata["external"]["frozen"] != frozen:
                raise InputError("was scored with other networks, thresholds or calibration than the "
                                 f"experiment has now; {remedy(index.parent)}")
            runs.append(dataclasses.replace(run, name=folder.name))
        except (InputError, OSError, KeyError, TypeError) as error:
            left_out[name] = f"its results cannot be used: {readable(str(error))}"
    return runs, left_out


def refuse_other_results(folder: Path, data_dir: Path) -> None:
    """Raise InputError if the folder holds results of an external cohort that lies elsewhere, by the path as
    it was given and as it is: the whole project may have been moved."""
    try:
        origin = json.loads((folder / INDEX).read_text())["external"]
        places = {origin["data_dir"], origin["place"]}
    except (OSError, ValueError, KeyError, TypeError):
        return                                             # none, or damaged ones, which are made again
    if places.isdisjoint({str(data_dir), str(data_dir.resolve())}):
        raise InputError(f"{folder} holds the results of the external cohort in {origin['place']}, not of "
                         f"{data_dir}; give this one another name by --name")
