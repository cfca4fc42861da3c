"""Helpers of all tests: a tiny cohort in MNI space, settings small enough for it, numbers of random cases."""
import threads  # noqa: F401  first: numpy and torch read the number of threads once
import hashlib
import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from evaluation import statistics
from experiment import session

SAVEFIG = Figure.savefig
SHAPE = (22, 27, 22)                                       # the paper's field of view at 8 mm
AFFINE = np.array([[8.0, 0, 0, -86.5], [0, 8, 0, -122.5], [0, 0, 8, -68.5], [0, 0, 0, 1]])
LISTS = {"train": ["s01", "s02", "s03", "s04", "s05", "s06"], "validation": ["s07", "s08"],
         "test": ["s09", "s10"]}

TINY = {
    "image_size": SHAPE, "crop_start": (3, 2, 3), "volume_size": (16, 24, 16), "crop_jitter": 1,
    "num_workers": 0, "device": "cpu", "precision": "fp32",          # alike on every machine
    "aae_channels": (8, 16), "aae_norm_groups": 8, "disc_channels": (8, 8), "aae_epochs": 2, "aae_lr": 1e-3,
    "unet_channels": 8, "unet_mults": (1, 2), "unet_res_blocks": 1, "unet_norm_groups": 4, "ldm_epochs": 2,
    "ldm_lr": 1e-3, "timesteps": 20, "ema_start": 2, "ema_decay": 0.5, "validation_steps": 2,
    "sampling_steps": 3, "samples_per_scan": 2, "regions": "none",
}
LONGEST = ("test_newcomer", "test_ranks", "test_disk", "test_systems", "test_synthesize", "test_main",
           "test_interruption", "test_comparison", "test_preprocess", "test_baselines", "test_benchmark",
           "test_report", "test_pretrained", "test_failures", "test_repairs", "test_budget", "test_disagree")
TINY_SYSTEMS = {  # the compared systems on these volumes
    "pix2pix.downs": 2,
    "pix2pix.width": 4,
    "pix2pix.dropout_blocks": 1,
    "pix2pix.disc_width": 4,
    "pix2pix.disc_layers": 1,
    "tpa_gan.width": 1,
    "tpa_gan.residual_units": 1,
    "tpa_gan.disc_channels": (4, 4, 4),
    "tpa_gan.task_layers": (1, 1),
    "tpa_gan.task_channels": 4,
    "tpa_gan.task_growth": 4,
    "fgan.generator_width": 4,
    "fgan.generator_blocks": 1,
    "fgan.discriminator_width": 4,
    "fgan.classifier_channels": (4, 4, 4),
    "fgan.classifier_pools": 1,
    "fgan.feature_layers": (0, 2),
    "resvit.width": 4,
    "resvit.art_blocks": 2,
    "resvit.transformer_blocks": (1,),
    "resvit.downs": 1,
    "resvit.hidden": 8,
    "resvit.layers": 1,
    "resvit.heads": 2,
    "resvit.mlp": 16,
    "resvit.disc_width": 4,
    "resvit.disc_layers": 1,
    "resvit.slices_per_volume": 4,
    "ddpm.downsample": 1,
    "ddpm.base_channels": 8,
    "ddpm.channel_mults": (1, 2),
    "ddpm.res_blocks": 1,
    "ddpm.norm_groups": 4,
    "ddpm.T": 20,
    "ddpm.sampling_steps": 3,
    "ddpm.validation_steps": 2,
    "ddpm.ema_start": 2,
    "ddpm.ema_decay": 0.5,
}


def pytest_addoption(parser):
    """Add --thorough."""
    parser.addoption("--thorough", action="store_true",
                     help="draw many more random cases of damage and of hostile input")


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that the processes end together: a file is not divided."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_terminal_summary(terminalreporter):
    """Print what tests recorded as "trust": the number of random cases they drew, and what became of them."""
    lines = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                lines += [text for name, text in report.user_properties if name == "trust"]
    if lines:
        terminalreporter.section("trust")
        terminalreporter.write("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="session", autouse=True)
def resamples():
    """Few resamples behind every interval, to save time. Gives the number that a run takes."""
    with pytest.MonkeyPatch.context() as patch:
        of_a_run = statistics.RESAMPLES
        patch.setattr(statistics, "RESAMPLES", 200)
        yield of_a_run


@pytest.fixture
def count(request) -> Callable[[int, int], int]:
    """count(quick, thorough): number of random cases of a test, without and with --thorough."""
    is_thorough = request.config.getoption("--thorough")

    def choose(quick: int, thorough: int) -> int:
        """The number that the command line asks for."""
        return thorough if is_thorough else quick
    return choose


def arguments(settings: dict) -> list[str]:
    """Settings as main.py takes them on its command line."""
    words = []
    for name, value in settings.items():
        words.append(f"--{name}")
        words += [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
    return words


def import_beforehand() -> None:
    """Import what a run imports only when it comes to it, so that processes which are forked from this one
    need not do it again, each for seconds."""
    for name in ("torch._dynamo", "nilearn.datasets", "matplotlib.pyplot", "evaluation.figures"):
        importlib.import_module(name)
    with torch.device("meta"):                             # its first random weights import sympy
        torch.nn.Embedding(1, 1)


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write a NIfTI file in the type of the voxels, and its folder if that is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def turned(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The image with axes that point to `codes`, such as LPS, at the same place in space."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def reorient(path: Path, codes: str) -> None:
    """Store a file's volume as float32 in another orientation, at the same place in space."""
    image = turned(nib.load(path, mmap=False), codes)
    voxels = image.get_fdata(dtype=np.float32)
    path.unlink()
    write_volume(path, voxels, image.affine)


def header_that_claims(shape: tuple[int, int, int], dtype: type) -> nib.Nifti1Header:
    """Header of a NIfTI file that claims voxels of that shape after it, whatever then lies there."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(AFFINE, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header


def write_cohort(root: Path, lists: dict[str, list[str]] = LISTS) -> None:
    """Write MRI and PET of every ID under root/data, lists and labels (alternating) under root/data_info."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    head = (grid ** 2).sum(0) < 0.8
    info = root / "data_info"
    info.mkdir(parents=True, exist_ok=True)
    rows = []
    scan_ids = [scan_id for ids in lists.values() for scan_id in ids]
    for i, scan_id in enumerate(scan_ids):
        rng, label = np.random.default_rng(i), i % 2
        brightness = 0.1 * label * (grid[2] > 0)
        mri = head * (0.5 + 0.2 * np.sin(3 * grid[0] + i) + brightness + 0.05 * rng.random(SHAPE))
        pet = head * (0.3 + 0.3 * label * (grid[1] > 0) + 0.1 * mri + 0.05 * rng.random(SHAPE))
        write_volume(root / "data" / "whole_MRI" / f"{scan_id}.nii.gz", mri.astype(np.float32))
        write_volume(root / "data" / "whole_Abeta" / f"{scan_id}.nii", pet.astype(np.float32))
        rows.append({"ID": scan_id, "label": label})
    pd.DataFrame(rows).to_csv(info / "data_info.csv", index=False)
    for split, ids in lists.items():
        (info / f"{split}.txt").write_text("".join(f"{scan_id}\n" for scan_id in ids))


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory) -> Path:
    """A tiny cohort that tests copy, because writing it takes as long as checking it."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch, cohort_folder) -> Path:
    """A project folder with a tiny cohort in it, as the working directory."""
    shutil.copytree(cohort_folder, tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sketch(figure: Figure, path: Path, **_) -> None:
    """Write what a figure shows, its titles and the numbers of its lines, points and images, as a short text.

    Stands in for Figure.savefig: the figure is built, but laid out and drawn it is not, which takes more than
    half of a tiny run. Two sketches are alike if and only if these are; bars and other texts are left out.
    """
    shown = []
    for axis in figure.axes:
        arrays = [line.get_xydata() for line in axis.lines]
        arrays += [points.get_offsets() for points in axis.collections]
        arrays += [image.get_array() for image in axis.images]
        digests = [hashlib.sha256(np.ma.getdata(array).tobytes()).hexdigest() for array in arrays]
        shown.append(f"{axis.get_title()!r}: {' '.join(digests)}\n")
    Path(path).write_text("".join(shown), encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def sketches(request) -> Iterator[pytest.MonkeyPatch]:
    """Sketches in the place of pictures. A file that looks at pictures says DRAWS = True. One that looks at
    none says DRAWS = False: its training and test stages build none either, which takes a tenth of them."""
    draws = getattr(request.module, "DRAWS", None)
    with pytest.MonkeyPatch.context() as patch:
        if not draws:
            patch.setattr(Figure, "savefig", sketch)
        if draws is False:
            patch.setattr(session, "_draws", draw_nothing)
        yield patch


def draw_nothing(_: str) -> bool:
    """Whether a run draws its losses and PETs: no."""
    return False


@pytest.fixture
def drawn(monkeypatch) -> None:
    """Real pictures for one test of a file that sketches them."""
    monkeypatch.setattr(Figure, "savefig", SAVEFIG)


@pytest.fixture
def sketched(monkeypatch) -> None:
    """Sketches for one test of a file that draws."""
    monkeypatch.setattr(Figure, "savefig", sketch)


@pytest.fixture(autouse=True)
def one_thread():
    """Compute in one thread: tiny volumes are faster so, and two runs are compared bit for bit."""
    torch.set_num_threads(1)
