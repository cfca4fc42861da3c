"""Mutation testing by a sample: small changes to the code, a few in every room, each of which some test
should notice.

    python tests/mutants.py --seed 0 --count 40      prints what became of each; docs/mutants.md has the
    results

The changes are those of mutmut's operators, such as `<=` for `<`. Each is made in a copy of the tree, in
which the tests run that import the changed module, directly first and then through others, until one fails.
"""
import argparse
import ast
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutmut.mutation.file_mutation import create_mutations, deep_replace

ROOT = Path(__file__).parents[1]
ROOMS = ("phantom", "cohort", "imaging", "labels", "baselines", "evaluation", "experiment", "newscans",
         "runtime", "studies")
TOP = ("main.py", "config.py", "dataset.py", "model.py", "utils.py")
# a changed message is noticed by eyes, not by tests
WORDS_ONLY = re.compile(r"[\"']XX|XX[\"']|upper|lower|[\"'][A-Z ,.:;{}]+[\"']")


class Mutant(NamedTuple):
    """One change: the file, the first changed line, before and after, and the whole changed text."""
    file: str
    line: int
    before: str
    after: str
    text: str


def mutants_of(file: str, rng: random.Random, count: int) -> list[Mutant]:
    """Up to `count` changes of a file, drawn at random, without those that change words of a message
    alone."""
    code = (ROOT / file).read_text(encoding="utf-8")
    module, mutations, *_ = create_mutations(file, code)
    found = []
    for mutation in rng.sample(mutations, len(mutations)):
        if len(found) == count:
            break
        text = deep_replace(module, mutation.original_node, mutation.mutated_node).code
        changed = [
            (number, one, other)
            for number, (one, other) in enumerate(zip(code.splitlines(), text.splitlines(), strict=False),
                                                  start=1)
            if one != other
        ]
        if not changed or mutation.contained_by_top_level_function is None:
            continue
        line, before, after = changed[0]
        if WORDS_ONLY.search(after) and not WORDS_ONLY.search(before):
            continue
        found.append(Mutant(file, line, before.strip(), after.strip(), text))
    return found


def sample(seed: int, count: int) -> list[Mutant]:
    """`count` changes, as evenly spread over the rooms as can be, over the files of a room by their size."""
    rng, groups = random.Random(seed), {"the root": list(TOP)}
    for room in ROOMS:
        groups[room] = sorted(
            str(path.relative_to(ROOT)) for path in (ROOT / room).glob("*.py") if path.name != "__init__.py"
        )
    shares = [count // len(groups) + (index < count % len(groups)) for index in range(len(groups))]
    drawn = []
    for files, share in zip(groups.values(), shares, strict=True):
        sizes = [len((ROOT / file).read_text()) for file in files]
        picked = rng.choices(files, sizes, k=share)
        for file in sorted(set(picked)):
            drawn += mutants_of(file, rng, picked.count(file))
    return drawn


def tests_of(file: str) -> list[str]:
    """The test files that import a module themselves, then those that import what imports it."""
    modules = {
        str(path.relative_to(ROOT)): _imports(path)
        for path in [*ROOT.glob("*.py"), *(p for r in ROOMS for p in (ROOT / r).glob("*.py"))]
    }
    tests = {f"tests/{path.name}": _imports(path) for path in (ROOT / "tests").glob("test_*.py")}
    reached, ordered = {_name(file)}, []
    for _ in range(12):
        ordered += sorted(
            (test for test, imported in tests.items() if imported & reached and test not in ordered),
            key=_cost,
        )
        reached |= {_name(other) for other, imported in modules.items() if imported & reached}
    return ordered


def _cost(test: str) -> int:
    return (ROOT / test).stat().st_size * (10 if "main.main" in (ROOT / test).read_text() else 1)


def _name(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def noticed_by(mutant: Mutant, most: int) -> str:
    """The first of up to `most` test files that fails on a copy with the change; nothing if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy,
                        ignore=shutil.ignore_patterns(".git", "data", "result", "__pycache__", "mutants"))
        (copy / mutant.file).write_text(mutant.text, encoding="utf-8")
        for test in tests_of(mutant.file)[:most]:
            command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-x", "-p", "no:cacheprovider",
                       test]
            try:
                code = subprocess.run(command, cwd=copy, capture_output=True, timeout=900,
                                      check=False).returncode
            except subprocess.TimeoutExpired:
                return f"{test} (no end)"
            if code == 1 or code == 2:
                return test
    return ""


def main() -> None:
    """Try a sample and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--most", type=int, default=12,
                        help="test files to try before a change counts as not noticed")
    arguments = parser.parse_args()
    mutants, started = sample(arguments.seed, arguments.count), time.monotonic()
    caught = 0
    print("| where | before | after | noticed by |\n|---|---|---|---|", flush=True)
    with ThreadPoolExecutor(arguments.workers) as pool:
        for mutant, test in zip(mutants, pool.map(lambda one: noticed_by(one, arguments.most), mutants),
                                strict=True):
            caught += bool(test)
            cells = [f"`{text}`".replace("|", "\\|") for text in (mutant.before[:70], mutant.after[:70])]
            print(
                f"| {mutant.file}:{mutant.line} | {cells[0]} | {cells[1]} | "
                f"{test.removeprefix('tests/') or '**nothing**'} |",
                flush=True,
            )
    print(f"\n{caught} of {len(mutants)} noticed, seed {arguments.seed}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
