"""What must be so before anything else is imported: a Python that is new enough, the packages, and threads that do not spin."""
import importlib.util
import os
import sys
from pathlib import Path

from runtime.signals import exit_on_signal

PACKAGES = {"torch": "torch", "numpy": "numpy", "nibabel": "nibabel", "pandas": "pandas", "scipy": "scipy", "sklearn": "scikit-learn",
            "skimage": "scikit-image", "statsmodels": "statsmodels", "matplotlib": "matplotlib", "nilearn": "nilearn", "jinja2": "jinja2",
            "tabulate": "tabulate", "tqdm": "tqdm", "filelock": "filelock"}                  # module -> name to install

# Threads that spin without end make a CPU that others share up to 10 times slower; read once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

problems = [] if sys.version_info >= (3, 11) else [f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}"]
missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
if missing:
    problems.append(f"missing packages: {', '.join(missing)}; pip install -r requirements.txt brings them")
if Path(sys.argv[0]).name == "main.py":                    # until the run listens itself, which imports come before that take seconds
    exit_on_signal()
if problems:
    print("error: " + "; ".join(problems), file=sys.stderr)
    sys.exit(2)
