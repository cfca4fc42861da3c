"""README and docs: what they name is there, and their commands are commands."""
import importlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import config
from config import PRESETS, PUBLISHED, Config
from docs import settings
from docs.run_commands import find_commands
from runtime.commandline import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FROZEN = ("study_first.md",)                               # whose commands run at the commit that it names
COMMANDS = find_commands()


def test_the_page_of_settings_is_what_the_code_says():
    assert (ROOT / "docs/settings.md").read_text() == settings.page(), (
        "python -m docs.settings writes it again"
    )


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", page.read_text())        # without code
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text())
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_code_that_the_pages_name_is_there():
    """`file.py:name` or `file.py:Class.method`."""
    found = 0
    for page in PAGES:
        for file, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", page.read_text()):
            if page.name in FROZEN or page.name == "mutants.md":
                continue
            thing = importlib.import_module(file.removesuffix(".py").replace("/", "."))
            for part in name.split("."):
                thing = getattr(thing, part)
            found += 1
    assert found >= 8


def test_code_that_the_sources_name_is_there():
    """`file.py:name` in docstrings and comments, where a reader jumps to from main.py."""
    found = 0
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]:
        if path.parent in (ROOT / "docs", ROOT / "tests"):
            continue
        for file, name in re.findall(r"([\w/]+\.py):([A-Za-z_][\w.]*\w)", path.read_text()):
            thing = importlib.import_module(file.removesuffix(".py").replace("/", "."))
            for part in name.split("."):
                assert hasattr(thing, part), f"{path.relative_to(ROOT)}: {file}:{name}"
                thing = getattr(thing, part)
            found += 1
    assert found >= 15


def test_files_that_the_pages_name_are_there():
    for page in PAGES:
        if page.name in (*FROZEN, "changes.md", "mutants.md"):
            continue
        for file in re.findall(r"`((?:\w+/)*\w+\.py)`", page.read_text()):
            assert (ROOT / file).exists(), f"{page.name}: {file}"


def test_the_baseline_that_the_page_adds_learns(monkeypatch):
    """The file that docs/comparison.md shows, word for word."""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/comparison.md").read_text(), flags=re.DOTALL)
    assert len(code.splitlines()) <= 40
    torch.manual_seed(0)
    monkeypatch.setattr(config, "ConvolutionSettings", SimpleNamespace, raising=False)
    names = {}
    exec(code, names)
    system = names["Convolution"](SimpleNamespace(kernel=3, lr=0.05), torch.device("cpu"))
    system.begin_epoch(1, 1)
    mri = torch.rand(2, 1, 6, 6, 6)
    batch = {"id": ["a", "b"], "label": torch.tensor([0, 1]), "mri": mri, "pet": 0.8 - 0.5 * mri}
    losses = [system.step(batch, number)["mse"] for number in range(1, 101)]
    assert losses[-1] < 0.05 * losses[0]
    assert (system.methods()["convolution"].predict(mri) - batch["pet"]).abs().mean() < 0.1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text[:70])
def test_every_command_is_one(command):
    """Its settings exist and its values are allowed; what it does is tried by docs/run_commands.py."""
    for part in re.split(r"&&|\|\|", command.text):
        words = shlex.split(part)
        if words[:2] != ["python", "main.py"]:
            continue
        rest = words[2:]
        if rest and not rest[0].startswith("-"):
            assert rest[0] in importlib.import_module("main").TOOLS, command.text
            continue
        if "--help" not in rest:
            parse(Config, rest, "main.py", "", PRESETS)


def test_a_command_with_a_placeholder_is_marked_as_needing_something():
    """NAME or NEW is for the reader to fill in, and docs/run_commands.py cannot run it."""
    for command in COMMANDS:
        to_fill_in = [word for word in shlex.split(command.text) if re.fullmatch(r"[A-Z]{3,}", word)]
        assert not to_fill_in or command.mark.startswith("needs"), f"{command.page}: {command.text}"


@pytest.mark.parametrize("page", ["README.md", "docs/published.md"])
def test_the_page_lists_every_setting_in_which_the_default_departs_from_the_paper(page):
    """Row by row, with the published value in the second column and the default in the third."""
    rows, default = {}, Config()
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) >= 4 and (found := re.match(r"`(\w+)`", cells[0])):
            rows.setdefault(found[1], cells[1:3])          # the first table of the page that has it
    rows["validation_steps"] = rows["validation_sampler"]  # one row
    rows["sampling_steps"] = rows["sampler"]
    for name, published in PUBLISHED.items():
        for value, cell in zip((published, getattr(default, name)), rows[name], strict=True):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            text = text.lower() if isinstance(value, bool) else text
            text = " ".join(value) or "none" if isinstance(value, tuple) else text
            assert re.search(rf"(?<![\w.]){re.escape(text)}(?![\w.])", cell), f"{name}: {text}, not {cell}"


def test_both_losses_of_the_readme_have_the_weights_of_the_defaults():
    text, cfg = (ROOT / "README.md").read_text(), Config()
    assert f"lambda_rec = {cfg.lambda_rec:g}" in text
    assert f"image_loss = {cfg.image_loss:g}" in text
    assert f"time_shift = {cfg.time_shift:g}" in text


def test_the_crop_of_the_readme_is_that_of_the_default():
    cfg = Config()
    box = ", ".join(f"{start}:{start + n}" for start, n in zip(cfg.crop_start, cfg.volume_size, strict=True))
    size = " x ".join(map(str, cfg.volume_size))
    assert f"[{box}]: {size} voxels" in (ROOT / "README.md").read_text()


def test_the_network_evaluations_of_the_readme_are_those_of_the_default():
    text, cfg = (ROOT / "README.md").read_text(), Config()
    evaluations = cfg.sampling_steps * cfg.samples_per_scan
    assert f"{evaluations} network evaluations (NFE)" in text and f"so {2 * evaluations} NFE" in text
