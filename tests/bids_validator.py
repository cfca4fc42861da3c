"""The official BIDS validator, which the package bids-validator-deno brings; it reads no network."""
import json
import subprocess
import sys
from pathlib import Path


def validate(dataset: Path) -> dict[str, list[tuple[str, str]]]:
    """The issues of a dataset, 'error' or 'warning' -> code with the key that it names, and file."""
    command = [str(Path(sys.executable).parent / "bids-validator-deno"), str(dataset), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(done.stdout)
    found = {"error": [], "warning": []}
    for issue in report["issues"]["issues"]:
        code = " ".join(filter(None, (issue["code"], issue.get("subCode"))))
        found[issue["severity"]].append((code, issue.get("location", "")))
    assert report["summary"]["totalFiles"], done.stderr
    return found
