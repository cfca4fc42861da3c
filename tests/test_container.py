"""The recipes of the container, read as text, and the steps that both share, run here without a network."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "container"
DOCKERFILE, DEFINITION, STEPS = FOLDER / "Dockerfile", FOLDER / "il_cldm.def", FOLDER / "steps.sh"
WORDS = ("system", "install", "check")                     # of steps.sh, in the order in which they are run


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: name and rest."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def rests(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, wherever it occurs."""
    return [rest for instruction, rest in instructions() if instruction == name]


def sections() -> dict[str, list[str]]:
    """The sections of the definition: name -> lines; '' is its head."""
    found, name = {"": []}, ""
    for line in DEFINITION.read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def copied() -> dict[str, str]:
    """File or folder of the project -> its place in the Dockerfile's image, from the folder of the code."""
    places = {}
    for rest in rests("COPY"):
        *sources, target = rest.split()
        for source in sources:
            is_same = target.rstrip("/") == source.rstrip("/")
            place = source if is_same else f"{target.removeprefix('./')}{Path(source).name}"
            places[source.rstrip("/")] = place.rstrip("/")
    return places


# ---------------------------------------------------------------- the recipes

def test_every_file_that_is_copied_is_there_and_keeps_its_place():
    for source, place in copied().items():
        assert (ROOT / source).exists(), source
        assert source == place
    for line in sections()["files"]:
        source, target = line.split()
        assert (ROOT / source).exists() and target == f"/opt/il_cldm/{source}", line


def test_all_of_the_code_is_copied():
    modules = {path.name for path in ROOT.glob("*.py")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    expected = modules | rooms | {"requirements.txt", "requirements-preprocess.txt", "container/steps.sh",
                                  "LICENSE", "CITATION.cff"}
    assert set(copied()) == expected
    assert {line.split()[0] for line in sections()["files"]} == expected


def test_both_recipes_run_the_same_steps_in_their_order_on_the_same_base():
    in_dockerfile = re.findall(r"sh container/steps\.sh (\w+)", "\n".join(rests("RUN")))
    in_definition = re.findall(r"sh container/steps\.sh (\w+)", "\n".join(sections()["post"]))
    assert in_dockerfile == in_definition == list(WORDS)
    assert "cd /opt/il_cldm" in sections()["post"] and rests("WORKDIR")[0] == "/opt/il_cldm"
    assert sections()[""] == ["Bootstrap: docker", f"From: {rests('FROM')[0]}"]
    for word in WORDS:
        assert f"\n{word})" in STEPS.read_text()


def test_both_recipes_take_one_argument_and_start_the_same_command():
    assert rests("ARG") == ["TORCH_INDEX=default"] == sections()["arguments"]
    assert '"{{ TORCH_INDEX }}"' in sections()["post"][0]
    assert rests("ENTRYPOINT") == ['["python", "/opt/il_cldm/main.py"]']
    assert sections()["runscript"] == ['exec python /opt/il_cldm/main.py "$@"']
    [variables] = rests("ENV")
    assert sections()["environment"] == [f"export {variables}"]


def test_the_image_is_of_a_fixed_python_and_its_user_is_not_root():
    [base] = rests("FROM")
    assert re.fullmatch(r"python:3\.1[12]-slim", base)     # antspyx has no wheels for later ones
    assert not rests("ADD")
    names = [name for name, _ in instructions()]
    assert int(rests("USER")[-1]) > 0
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


@pytest.mark.parametrize("recipe", [DOCKERFILE, DEFINITION, STEPS], ids=lambda path: path.name)
def test_nothing_is_fetched_by_its_address(recipe):
    assert not re.search(r"https?:|ftp:|git\+|curl|wget", recipe.read_text())


def test_packages_come_from_files_that_pin_them():
    files = re.findall(r"-r (\S+)", STEPS.read_text())
    assert files == ["requirements-preprocess.txt"]
    lines = []
    for name in ("requirements-preprocess.txt", "requirements.txt"):
        lines += (ROOT / name).read_text().splitlines()
    assert "-r requirements.txt" in lines
    assert all("==" in line for line in lines if not line.startswith("-r"))


# ---------------------------------------------------------------- the steps

def steps(word: str, **environment: str) -> subprocess.CompletedProcess:
    """A step, run in the folder of the project with the python of this test; no proxy lets it out."""
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["sh", "container/steps.sh", *filter(None, [word])], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | closed | {"PATH": path} | environment)


@pytest.fixture
def told(tmp_path, monkeypatch) -> Path:
    """A file to which a stand-in for python, first in the PATH, writes what it is told."""
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/told"\n')
    stand_in.chmod(0o755)
    return tmp_path / "told"


[TORCH] = re.findall(r"(?m)^torch==.*$", (ROOT / "requirements.txt").read_text())
REST = "-m pip install --no-cache-dir -r requirements-preprocess.txt"


@pytest.mark.parametrize(("index", "expected"), [
    ("", [REST]), ("default", [REST]),
    ("https://index/cpu", [f"-m pip install --no-cache-dir --index-url https://index/cpu {TORCH}", REST])])
def test_torch_comes_from_another_index_only_if_one_is_named(told, index, expected):
    path = f"{told.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    assert steps("install", PATH=path, TORCH_INDEX=index).returncode == 0
    assert told.read_text().splitlines() == expected


@pytest.mark.parametrize("word", ["", "instal"])
def test_an_unknown_step_says_which_there_are(word):
    done = steps(word)
    assert done.returncode == 2 and " | ".join(WORDS) in done.stderr


def test_the_check_passes_here_and_leaves_nothing_behind(tmp_path):
    before = set((ROOT / "data").iterdir())
    done = steps("check", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no problem found" in done.stdout
    assert set((ROOT / "data").iterdir()) == before and not list(tmp_path.glob("tmp.*"))


def test_a_check_that_fails_is_a_build_that_fails(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nexit 2\n")
    stand_in.chmod(0o755)
    assert steps("check", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}").returncode == 2
