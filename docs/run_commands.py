"""Every command of README and docs, run one after the other in the folder where this is started, best a fresh
clone.

    python docs/run_commands.py            the short ones; what fails is listed at the end, with exit code 1
    python docs/run_commands.py --long     those too that are marked <!-- long -->
    python docs/run_commands.py --list     runs nothing

Blocks marked <!-- needs: ... --> need what is not at hand, such as your own data, GPUs or SLURM, and are only
listed.
"""
import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FIRST = ("README.md", "docs/data.md")                      # whose results later pages take for granted
FROZEN = ("docs/study_first.md",)                          # whose commands run at the commit that it names
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*?) -->\n)?```bash\n(?P<commands>.*?)```", re.DOTALL)


class Command(NamedTuple):
    """A command, the page that it stands on, and the mark of its block: 'long', 'needs: ...' or nothing."""
    page: str
    text: str
    mark: str


def find_commands() -> list[Command]:
    """All commands of README and docs in order; a line that ends with a backslash goes on in the next."""
    others = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
    pages = [*FIRST, *(page for page in others if page not in (*FIRST, *FROZEN))]
    commands = []
    for page in pages:
        for block in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
            joined = block["commands"].replace("\\\n", " ")
            for line in joined.splitlines():
                text = line.split("  #")[0].strip()        # a comment after two spaces explains
                if text and not text.startswith("#"):
                    commands.append(Command(page, text, block["mark"] or ""))
    return commands


def main() -> int:
    """Run the commands. Returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    failed, done = [], set()
    for command in find_commands():
        too_long = command.mark == "long" and not arguments.long
        skipped = too_long or command.mark.startswith("needs") or command.text in done
        if arguments.list or skipped:
            mark = f"   ({command.mark})" if command.mark else ""
            print(f"{'-' if skipped else ' '} {command.page}: {command.text}{mark}")
            continue
        done.add(command.text)
        print(f"> {command.page}: {command.text}", flush=True)
        started = time.monotonic()
        code = subprocess.run(["bash", "-c", command.text], check=False).returncode
        print(f"  {time.monotonic() - started:.0f} s, exit code {code}", flush=True)
        if code:
            failed.append(command)
    for command in failed:
        print(f"failed: {command.page}: {command.text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
