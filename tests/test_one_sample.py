"""The one sample of each shown test scan: a PET that this person might have, beside the mean, in the
pictures."""
import itertools
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import test_main
import test_synthesize
import torch
from conftest import TINY
from test_synthesize import train

import main
from config import Config
from evaluation import volume_figures
from evaluation.measurement import Measurement
from evaluation.results import MADE_FROM_THEM
from evaluation.scores import SHOWN_SUBJECTS
from experiment import samples
from experiment.networks import LatentSampler
from model import Diffusion, Synthesizer

trained = test_synthesize.trained                          # fixtures
finished = test_main.finished
NOTICE = "digital phantom, not patient data; research only, not for clinical use"


@pytest.fixture(scope="module")
def with_regions(trained) -> Path:
    """A tested experiment whose denoiser was trained with amounts of amyloid."""
    return trained


@pytest.fixture(scope="module")
def without_regions(finished) -> Path:
    """A tested experiment whose denoiser was trained with labels; the SUVR is not measured."""
    return finished


def entered(root: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of a project, as the working directory; without status classifiers, which take most of a test
    stage."""
    shutil.copytree(root, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(main, "fit_status", test_main.no_classifiers)
    return Path("result/a")


def repeat(kind: str, **settings) -> int:
    """Exit code of the test stage of the experiment of one kind, with further settings."""
    if kind == "with_regions":
        return train("test", **settings)
    return test_main.run("--stages", "test", exp="a", **settings)


def volumes(folder: Path) -> dict[str, np.ndarray]:
    """ID -> voxels of the NIfTI files of a folder."""
    return {path.name: nib.load(path).get_fdata() for path in sorted(folder.glob("*.nii.gz"))}


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the results, without log, lock, time and command of the run, amyloid status, and what
    the stage report makes of them."""
    left_out = ("run.log", ".lock", "cost.csv", "config.json", "scores.json", "predictions.csv",
                "validation_list.csv", "status_classifiers.npz", *MADE_FROM_THEM)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in left_out]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


SAMPLE = Synthesizer.sample


def ending_early(self, mri, label, noise, sampler, *_) -> torch.Tensor:
    """Latent samples of two evaluations, the last at 12 of 20."""
    return SAMPLE(self, mri, label, noise, sampler, 2, 12)


@pytest.mark.parametrize("kind", ["with_regions", "without_regions"])
def test_it_is_a_latent_sample_of_its_own_label_and_not_the_mean(kind, request, tmp_path, monkeypatch):
    folder = entered(request.getfixturevalue(kind), tmp_path, monkeypatch)
    samples_of, means = volumes(folder / "one_sample"), volumes(folder / "synthesized")
    assert samples_of and samples_of.keys() <= means.keys() and len(samples_of) <= 2 * SHOWN_SUBJECTS
    for name, voxels in samples_of.items():
        assert voxels.min() >= 0 and voxels.max() <= 1
        assert np.abs(voxels - means[name]).max() > 1e-3
        image, pet = (nib.load(folder / own / name) for own in ("one_sample", "synthesized"))
        assert np.array_equal(image.affine, pet.affine)
        assert b"one sample" in image.header["descrip"].item()
        assert b"not for clinical use" in image.header["descrip"].item()
    label = {"with_regions": "sampled", "without_regions": "mixed"}[kind]
    monkeypatch.setattr(Synthesizer, "sample", ending_early)
    assert repeat(kind, samples_per_scan=1, label_at_sampling=label) == 0    # the mean of one sample
    alone = volumes(folder / "synthesized")
    for name, voxels in samples_of.items():                # to rounding, in batches of another size
        np.testing.assert_allclose(voxels, alone[name], atol=1e-5)


@pytest.mark.parametrize("kind", ["with_regions", "without_regions"])
def test_it_is_the_same_in_every_run_and_changes_nothing_else(kind, request, tmp_path, monkeypatch):
    folder = entered(request.getfixturevalue(kind), tmp_path, monkeypatch)
    before = contents(folder)
    assert "synthesized.png" in before
    assert repeat(kind) == 0
    assert contents(folder) == before
    monkeypatch.setattr(main, "plot_shown_scans", test_main.do_nothing)
    assert repeat(kind) == 0
    without = contents(folder)
    new = {name for name in before if name.startswith("one_sample/")}
    assert before.keys() - without.keys() == new
    assert {name: before[name] for name in before.keys() - new} == without


def test_ddim_ends_with_the_estimate_of_the_last_evaluation():
    diffusion, seen = Diffusion(20, (1e-4, 0.02), "v"), []

    def denoise(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """A prediction of v = 0: the estimate of z_0 is sqrt(alpha_bar_t) z_t."""
        seen.append(int(t[0]))
        return torch.zeros_like(z_t)

    diffusion.ddim(denoise, torch.ones(1, 1, 2, 2, 2), 3, last=11)
    assert seen == [19, 15, 11]
    z_0 = diffusion.ddim(denoise, torch.ones(1, 1, 2, 2, 2), 1)
    np.testing.assert_allclose(z_0, diffusion.alpha_bar[19].sqrt().expand(1, 1, 2, 2, 2))


@pytest.mark.parametrize(("settings", "expected"), [
    ({"sampling_steps": 9}, (2, 12)), ({"sampling_steps": 9, "time_shift": 1.0}, (9, 1)),
    ({"sampling_steps": 9, "sampler": "dpm"}, (9, 1))])
def test_it_ends_early_where_little_was_learned_at_low_noise(settings, expected):
    cfg = Config(**TINY | {"label_at_sampling": "none", "label_in_training": "none"} | settings)
    of_mean = LatentSampler(cfg, None, None, Measurement(None, None, 1.0, None), cfg.sampler,
                            cfg.sampling_steps, range(4))
    one = samples.sampler_of_one(of_mean)
    assert (one.steps, one.last) == expected and list(one.samples) == [0]


def test_networks_of_an_earlier_version_give_one_with_the_label_of_the_mean(trained, tmp_path, monkeypatch,
                                                                           capsys):
    folder = entered(trained, tmp_path, monkeypatch)
    path = folder / "CHECKPOINT_Unet.pth.tar"
    saved = torch.load(path, weights_only=True)
    del saved["metadata"]["label_predictor"]["left_out"]
    path.unlink()
    torch.save(saved, path)
    drawn = []
    monkeypatch.setattr(volume_figures, "plot_synthesized", lambda *arguments: drawn.append(arguments[2]))
    monkeypatch.setattr(Synthesizer, "sample", ending_early)
    assert train("test", samples_per_scan=1) == 0
    assert "have the label of the mean PET: " in capsys.readouterr().out
    assert drawn == [False]
    means = volumes(folder / "synthesized")
    found = volumes(folder / "one_sample")
    assert found
    for name, voxels in found.items():
        np.testing.assert_allclose(voxels, means[name], atol=1e-5)


# ---------------------------------------------------------------- pictures

def three_files(folder: Path) -> tuple[Path, Path, Path]:
    """A real PET, a synthetic one and a sample of different levels, as files."""
    paths = []
    for level, name in ((0.5, "real"), (0.4, "mean"), (0.9, "sample")):
        path = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(np.full((6, 8, 6), level, np.float32), np.eye(4)), path)
        paths.append(path)
    return tuple(paths)


@pytest.mark.parametrize(("is_drawn", "text"), [(True, "one PET that this person might have"),
                                                (False, "with the same label as the mean")])
def test_the_picture_has_three_columns_in_one_scale(tmp_path, monkeypatch, is_drawn, text):
    drawn = []
    monkeypatch.setattr(volume_figures.pyplot(), "close", drawn.append)
    rows = dict.fromkeys([f"phantom09{i}\nlabel 1" for i in range(4)], three_files(tmp_path))
    volume_figures.plot_synthesized(tmp_path / "synthesized", rows, is_drawn, NOTICE)
    [figure] = drawn
    grid = np.array(figure.axes[:12]).reshape(4, 3)
    titles = [axis.get_title() for axis in grid[0]]
    assert titles[0] == "real PET"
    assert titles[1] == "synthetic PET, from the MRI\n(the mean, so smoother by nature)"
    assert titles[2].startswith("one sample") and text in titles[2]
    for line in grid:
        levels = [float(axis.images[0].get_array().max()) for axis in line]
        assert levels == pytest.approx([0.5, 0.4, 0.9])
        assert all(axis.images[0].get_clim() == pytest.approx((0, 0.9)) for axis in line)
    figure.draw_without_rendering()
    texts = [*figure.texts, *(axis.title for axis in grid[0]), *(axis.yaxis.label for axis in grid[:, 0])]
    boxes = [one.get_window_extent() for one in texts]
    boxes = [box for box in boxes if box.width]
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    edges = [{round(axis.get_position().x0, 6) for axis in column} for column in grid.T]
    assert all(len(edge) == 1 for edge in edges)           # columns are aligned


def test_the_figure_of_the_report_has_the_sample_where_there_is_one(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(volume_figures.pyplot(), "close", drawn.append)
    pets = {name: np.full((6, 8, 6), level) for name, level in (
        ("MRI", 0.1), ("real PET", 0.5), ("synthetic PET", 0.4), ("one sample", 0.9))}
    without = {name: voxels for name, voxels in pets.items() if name != "one sample"}
    volume_figures.plot_volumes(tmp_path / "a", {"x": pets, "y": pets}, NOTICE)
    volume_figures.plot_volumes(tmp_path / "b", {"x": pets, "y": without}, NOTICE)
    names = ["real PET", "synthetic PET", "one sample", "absolute error of the synthetic PET"]
    for figure, expected, levels in ((drawn[0], names, [0.5, 0.4, 0.9, 0.1]),
                                     (drawn[1], [names[0], names[1], names[3]], [0.5, 0.4, 0.1])):
        line = figure.axes[:len(expected)]
        assert [axis.get_title() for axis in line] == expected
        assert [float(axis.images[0].get_array().max()) for axis in line] == pytest.approx(levels)


def test_the_picture_is_drawn_from_the_written_sample(trained, tmp_path, monkeypatch):
    folder = entered(trained, tmp_path, monkeypatch)
    shown = []
    monkeypatch.setattr(volume_figures, "plot_synthesized", lambda *arguments: shown.append(arguments))
    assert train("test") == 0
    [(stem, rows, is_drawn, notice)] = shown
    assert is_drawn and stem == folder / "synthesized" and "phantom" in notice
    for title, (real, synthetic, sample) in rows.items():
        name = title.split("\n")[0]
        assert real.name.startswith(name)
        assert (synthetic, sample) == (folder / f"synthesized/{name}.nii.gz",
                                       folder / f"one_sample/{name}.nii.gz")
        assert sample.is_file()
