"""The environment of a run, checked before anything else is imported: Python, packages, threads, and signals
during the imports."""
import importlib.util
import os
import sys
from pathlib import Path

from runtime.signals import exit_on_signal

# Module -> package that pip installs. Training and testing on NIfTI files need these.
PACKAGES = {"torch": "torch", "numpy": "numpy", "nibabel": "nibabel", "pandas": "pandas", "scipy": "scipy",
            "sklearn": "scikit-learn", "skimage": "scikit-image", "tqdm": "tqdm", "filelock": "filelock"}

# Module -> package, what needs it, and the file that lists it. They are imported where they are used:
# failures.explain tells a user whose run comes there without them.
OPTIONAL = {"matplotlib": ("matplotlib", "figures and the report", "requirements.txt"),
            "jinja2": ("jinja2", "the report and tables for LaTeX", "requirements.txt"),
            "tabulate": ("tabulate", "tables in Markdown", "requirements.txt"),
            "nilearn": ("nilearn", "the MNI152 template, masks and regions", "requirements.txt"),
            "ants": ("antspyx", "registration (main.py preprocess)", "requirements-preprocess.txt")}


def find_problems() -> list[str]:
    """What keeps the program from running: an old Python, missing packages."""
    problems = []
    if sys.version_info < (3, 11):  # noqa: UP036  whatever pyproject says, an old one may run this
        problems.append(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        problems.append(f"missing packages: {', '.join(missing)}; pip install -r requirements.txt brings "
                        "them")
    return problems


# Threads that wait in a busy loop slow a CPU that others share up to 10 times; torch reads this once, when it
# is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

if Path(sys.argv[0]).name == "main.py":  # its imports take seconds, and signals are handled only after them
    exit_on_signal()
if found := find_problems():
    print("error: " + "; ".join(found), file=sys.stderr)
    sys.exit(2)
