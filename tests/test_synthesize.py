"""New scans: the PET of an MRI alone, on the MRI's own grid; what is refused, left out, continued and never
overwritten."""
import gzip
import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import AFFINE, SHAPE, TINY, arguments, turned, write_volume

import main
from evaluation import volume_figures
from imaging.grids import Grid, resample
from imaging.volumes import RANGE_TOLERANCE, read_volume
from model import UNet
from newscans import outputs, synthesize
from newscans import scans as newscans
from newscans.scans import complete_names, find_scans, output_name, place_problem
from phantom.anatomy import load_template
from phantom.cohort import draw_subject, simulate
from utils import InputError, NotFiniteError

PLOT_OVERLAY = volume_figures.plot_overlay
DRAWS = False                                              # but the overlays of new scans
PHANTOM = {"data_dir": "data/phantom", "phantom_subjects": (6, 2, 2), "phantom_voxel": 8, "regions": "auto"}
PET = "sub-{0}/pet/sub-{0}_space-MNI152NLin2009aSym_res-{1}mm_desc-ilcldmSynthetic_pet.nii.gz"
NEW = "new/scan.nii.gz"


def run(*argv: str) -> int:
    """Exit code of main.py with these words."""
    try:
        return main.main(list(argv))
    except SystemExit as stop:
        return stop.code


def train(*stages: str, **settings) -> int:
    """Exit code of these stages of the phantom's experiment `a`."""
    return run(*arguments(TINY | PHANTOM | {"exp": "a"} | settings), "--stages", *stages)


def synthesize_new(mri: str = NEW, out: str = "out", exp: str = "a", **settings) -> int:
    """Exit code of a synthesis with the experiment's own settings, but for those that are given."""
    return run("synthesize", *arguments({"exp": exp, "mri": mri, "out": out} | settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A project folder with a tiny experiment that was trained and tested on a phantom, and a new MRI of
    another one at 2 mm."""
    root = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert train("check", "aae", "encode", "ldm", "test") == 0
    finally:
        os.chdir(before)
    template, rng = load_template(2), np.random.default_rng(77)
    mri, _, _ = simulate(template, rng, draw_subject(rng, 1, 0.6), 0.6)
    write_volume(root / NEW, mri, template.affine)
    return root


@pytest.fixture
def project(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the working directory; pictures, which take half of a synthesis, are empty
    files."""
    shutil.copytree(trained, tmp_path / "project", ignore=shutil.ignore_patterns("latent_Abeta"))
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(volume_figures, "plot_overlay", touch)
    return tmp_path / "project"


def touch(path: Path, *_) -> None:
    """Stand in for a picture."""
    path.touch()


@pytest.fixture(scope="module")
def new_mri(trained) -> nib.Nifti1Image:
    """The new MRI at 2 mm."""
    return nib.load(trained / NEW)


def stored(path: Path, image: nib.Nifti1Image, codes: str, sform: int, qform: int, integer: bool) -> Path:
    """Write the image in another orientation, with header codes of its own, as float32 or as int16 with a
    scale factor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = turned(image, codes)
    voxels, affine = image.get_fdata(), image.affine
    voxels = np.rint(4095 * voxels).astype(np.int16) if integer else voxels.astype(np.float32)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, path)
    if integer:                                            # nibabel would choose scale factors itself
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[112:120] = struct.pack("<ff", 1 / 4095, 0)
        path.write_bytes(gzip.compress(bytes(content)))
    return path


def pet_path(folder: Path | str, name: str = "scan", mm: int = 2) -> Path:
    """The PET that was written into a folder, for an MRI of that name with voxels of mm."""
    return Path(folder) / PET.format(name, mm)


def pet_of(folder: Path | str, name: str = "scan", mm: int = 2) -> np.ndarray:
    """The voxels of a PET that was written into a folder."""
    return nib.load(pet_path(folder, name, mm)).get_fdata()


def sidecar_path(folder: Path | str) -> Path:
    """The sidecar of the PET of the new MRI in a folder."""
    return Path(str(pet_path(folder)).replace(".nii.gz", ".json"))


def sidecar_of(folder: str) -> dict:
    """The content of the sidecar in a folder."""
    return json.loads(sidecar_path(folder).read_text())


def in_world(path: Path, grid: Grid) -> np.ndarray:
    """The volume of a file on a grid of the same space."""
    voxels, affine = read_volume(path)
    return resample(voxels, affine, grid)


# ---------------------------------------------------------------- resampling

def test_a_volume_on_a_coarser_grid_of_the_same_faces_is_the_mean_of_its_voxels():
    fine = np.random.default_rng(0).random((12, 8, 4), dtype=np.float32)
    grid = Grid((3, 2, 1), np.array([[4.0, 0, 0, 1.5], [0, 4, 0, 1.5], [0, 0, 4, 1.5], [0, 0, 0, 1]]))
    means = fine.reshape(3, 4, 2, 4, 1, 4).mean((1, 3, 5))
    np.testing.assert_allclose(resample(fine, np.eye(4), grid), means, atol=1e-6)


def places(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Where the voxels of a grid lie in space, [3, X, Y, Z]."""
    return np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]


def test_resampling_through_any_affine_keeps_what_is_linear_in_space():
    slope = np.array([0.3, -0.2, 0.5])
    source = np.array([[0, -1.5, 0, 40], [1.2, 0, 0, -30], [0.1, 0, 2, -40], [0, 0, 0, 1.0]])
    voxels = np.tensordot(slope, places((40, 50, 40), source), 1).astype(np.float32)
    for scale in (0.7, 1.0, 3.3):
        affine = np.array([[scale, 0.1, 0, 3], [0, scale, 0.2, -2], [0, 0, scale, 1], [0, 0, 0, 1]])
        grid = Grid((5, 6, 4), affine)
        expected = np.tensordot(slope, places(grid.shape, affine), 1)
        np.testing.assert_allclose(resample(voxels, source, grid), expected, atol=1e-4)


def test_a_shift_by_whole_voxels_moves_them_unchanged_and_fills_with_0():
    voxels = np.random.default_rng(2).random((6, 7, 8), dtype=np.float32)
    grid = Grid((6, 7, 8), np.array([[1.0, 0, 0, 2], [0, 1, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1]]))
    moved = resample(voxels, np.eye(4), grid)
    np.testing.assert_array_equal(moved[:4, 1:], voxels[2:, :-1])
    assert (moved[4:] == 0).all() and (moved[:, 0] == 0).all()


# ---------------------------------------------------------------- the PET of an MRI

def test_on_the_cohorts_grid_it_is_the_file_of_the_test_stage_voxel_for_voxel(project):
    names = (project / "data/phantom/data_info/test.txt").read_text().split()
    for name in names:
        (project / "scans").mkdir(exist_ok=True)
        shutil.copy(project / f"data/phantom/whole_MRI/{name}.nii.gz", project / "scans")
    assert synthesize_new("scans") == 0
    assert synthesize_new(f"scans/{names[1]}.nii.gz", "alone") == 0
    for name in names:
        expected = nib.load(project / f"result/a/synthesized/{name}.nii.gz")
        found = nib.load(pet_path("out", name, 8))
        np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())
        assert found.header["sform_code"] == expected.header["sform_code"] == 4
    alone = pet_of("alone", names[1], 8)
    np.testing.assert_allclose(alone, pet_of("out", names[1], 8), atol=1e-5)
    table = pd.read_csv(project / "out/synthesized.csv").set_index("ID")
    uptake = pd.read_csv(project / "result/a/uptake.csv")
    suvr = uptake[uptake["method"] == "il_cldm"].set_index("ID")["SUVR"]
    np.testing.assert_allclose(table.loc[names, "SUVR"], suvr[names], rtol=1e-6)
    predictions = pd.read_csv(project / "result/a/predictions.csv").set_index("ID")
    for name, method in (("pet", "il_cldm"), ("mri_pet", "il_cldm"), ("mri", "none"), ("suvr", "il_cldm")):
        is_asked = (predictions["classifier"] == name) & (predictions["method"] == method)
        expected, found = predictions[is_asked].loc[names], table.loc[names]
        if name != "suvr":
            np.testing.assert_allclose(found[f"p_{name}"], expected["score"], rtol=1e-5)
        np.testing.assert_array_equal(found[f"positive_{name}"], expected["positive"])


def test_any_storage_of_one_mri_gives_one_pet_in_world_space_laid_exactly_over_it(project, new_mri):
    voxels, affine = new_mri.get_fdata(dtype=np.float32), new_mri.affine
    fine = affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    one_mm = nib.Nifti1Image(voxels.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine)
    larger = np.array([[2.0, 0, 0, -95.5], [0, 2, 0, -131.5], [0, 0, 2, -77.5], [0, 0, 0, 1]])
    grid = Grid((97, 115, 97), larger)
    wide = nib.Nifti1Image(resample(voxels, affine, grid), grid.affine)
    cases = {"2RAS": (new_mri, "RAS", 4, 1, False), "2LAS": (new_mri, "LAS", 4, 0, True),
             "2LPS": (new_mri, "LPS", 0, 2, False), "1PSL": (one_mm, "PSL", 2, 2, True),
             "wide": (wide, "LAS", 1, 0, False)}
    brain, world = voxels > 0, Grid(voxels.shape, affine)
    pets = {}
    for name, (image, *storage) in cases.items():
        mri = stored(project / name / "scan.nii.gz", image, *storage)
        assert synthesize_new(str(mri), f"out_{name}") == 0
        written = pet_path(f"out_{name}", mm=1 if name == "1PSL" else 2)
        pet = nib.load(written)
        source = nib.load(mri)
        assert pet.shape == source.shape and pet.get_data_dtype() == np.float32
        np.testing.assert_array_equal(pet.affine, source.affine)
        assert all(pet.header[code] == source.header[code] for code in ("sform_code", "qform_code"))
        assert 0 <= pet.get_fdata().min() < pet.get_fdata().max() <= 1
        pets[name] = in_world(written, world)
    for name, pet in pets.items():
        assert np.corrcoef(pet[brain], pets["2RAS"][brain])[0, 1] >= 0.999, name
        difference = np.abs(pet[brain] - pets["2RAS"][brain]).max()
        assert difference <= 0.05 * pets["2RAS"].max(), name


def test_a_grid_of_the_cohorts_shape_but_elsewhere_is_not_taken_for_the_cohorts(project):
    name = (project / "data/phantom/data_info/test.txt").read_text().split()[0]
    image = nib.load(project / f"data/phantom/whole_MRI/{name}.nii.gz")
    moved = image.affine.copy()
    moved[0, 3] -= 8  # one voxel to the left, and its content one to the right
    voxels = np.roll(image.get_fdata(dtype=np.float32), 1, axis=0)
    write_volume(project / f"moved/{name}.nii.gz", voxels, moved)
    assert synthesize_new(f"data/phantom/whole_MRI/{name}.nii.gz") == 0
    assert synthesize_new(f"moved/{name}.nii.gz", "out2") == 0
    one, other = (pet_of(folder, name, 8) for folder in ("out", "out2"))
    np.testing.assert_allclose(other[1:], one[:-1], atol=1e-5)


def test_the_pet_is_0_outside_the_crop(project, new_mri):
    assert synthesize_new() == 0
    pet = nib.load(pet_path("out"))
    corner, size = np.array(TINY["crop_start"]), np.array(TINY["volume_size"])
    low, high = (AFFINE[:3, 3] + 8 * (edge - 0.5) for edge in (corner, corner + size))
    centres = nib.affines.apply_affine(pet.affine, np.indices(pet.shape).reshape(3, -1).T)
    # half a voxel of the cohort is interpolated
    outside = ((centres < low - 4) | (centres > high + 4)).any(1)
    assert outside.any() and (pet.get_fdata().reshape(-1)[outside] == 0).all()


CHECKPOINTS = ["CHECKPOINT_AAE.pth.tar", "CHECKPOINT_Unet.pth.tar"]


def count_reads(monkeypatch) -> list[str]:
    """The names of the checkpoints that are read from now on, one entry a time."""
    names, load = [], torch.load

    def counted(path, **others):
        names.append(Path(path).name)
        return load(path, **others)
    monkeypatch.setattr(torch, "load", counted)
    return names


def test_every_checkpoint_is_read_once(project, monkeypatch):
    names = count_reads(monkeypatch)
    assert synthesize_new() == 0
    assert sorted(names) == CHECKPOINTS


def test_a_sidecar_says_what_the_pet_was_made_from(project, drawn, monkeypatch):
    monkeypatch.setattr(volume_figures, "plot_overlay", PLOT_OVERLAY)
    assert synthesize_new() == 0
    sidecar = sidecar_of("out")
    assert sidecar["MRI"]["SHA256"] == hashlib.sha256((project / NEW).read_bytes()).hexdigest()
    assert (project / "out" / sidecar["MRI"]["File"]).samefile(project / NEW)
    assert "Sources" not in sidecar                        # the MRI lies in no dataset
    assert sidecar["Notice"] == "trained on a digital phantom, research only, not for clinical use"
    assert sidecar["Sampling"] == {"Sampler": "ddim", "NetworkEvaluations": 12, "LatentSamples": 2,
                                   "Label": "matched", "Seed": 0, "Device": "cpu"}
    used = sidecar["MadeFrom"]["settings"]
    assert (used["sampling_steps"], used["label_at_sampling"], used["seed"]) == (3, "matched", 0)
    assert all((project / "out" / network["File"]).is_file() for network in sidecar["Networks"].values())
    assert str(project) not in json.dumps(sidecar)
    stem = pet_path("out").name.removesuffix(".nii.gz")
    assert {path.name for path in (project / "out").iterdir()} == {
        ".bidsignore", ".lock", "README.md", "dataset_description.json", "sub-scan", "synthesized.csv"}
    assert {path.name for path in pet_path("out").parent.iterdir()} == {
        f"{stem}.nii.gz", f"{stem}.json", f"{stem}.png"}
    assert sidecar_path("out").with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize(("settings", "expected"), [
    ({"samples_per_scan": 4, "sampling_steps": 2}, 16),    # twice, because they are matched
    ({"samples_per_scan": 4, "sampling_steps": 2, "label_at_sampling": "mixed"}, 8),
    ({"samples_per_scan": 1, "sampler": "ddpm", "label_at_sampling": "none"}, 19)])
def test_network_evaluations_are_those_that_were_made(project, monkeypatch, capsys, settings, expected):
    made, denoise = [], UNet.denoise

    def count(unet, z_t, *others):
        made.append(len(z_t))
        return denoise(unet, z_t, *others)
    monkeypatch.setattr(UNet, "denoise", count)
    assert synthesize_new(**settings) == 0
    assert sum(made) == expected
    assert f"{expected} network evaluations a scan" in capsys.readouterr().out
    sidecar = sidecar_of("out")
    assert sidecar["Sampling"]["NetworkEvaluations"] == expected
    assert pd.read_csv(project / "out/synthesized.csv")["NFE"].tolist() == [expected]


def test_the_range_is_that_of_the_samples_decoded_one_by_one(project):
    assert synthesize_new(label_at_sampling="mixed") == 0  # matched samples depend on all of them
    assert synthesize_new(out="one", samples_per_scan=1, label_at_sampling="mixed") == 0
    row, one = (pd.read_csv(project / folder / "synthesized.csv").loc[0] for folder in ("out", "one"))
    for name in ("SUVR", "p_pet", "p_mri_pet"):
        low, high = row[f"{name}_samples_min"], row[f"{name}_samples_max"]
        assert low <= high
        assert min(abs(one[name] - low), abs(one[name] - high)) < 1e-5  # the first of the two
        assert row[f"{name}_sd"] == pytest.approx((high - low) / np.sqrt(2), rel=1e-6)
        assert f"{name}_sd" not in one


def test_why_there_is_no_interval_stands_in_the_table(project, capsys):
    assert synthesize_new() == 0
    assert synthesize_new(out="other", samples_per_scan=1) == 0
    rows = [pd.read_csv(project / folder / "synthesized.csv").loc[0] for folder in ("out", "other")]
    assert not [row for row in rows if "SUVR_low" in row]
    few, uncalibrated = (row["SUVR_interval"] for row in rows)
    assert few == "none: it needs 9 validation subjects with an SUVR, there are 2"
    assert uncalibrated.startswith("none: calibrated for others")
    assert "samples_per_scan: 2 -> 1" in uncalibrated
    assert uncalibrated.removeprefix("none: ") in capsys.readouterr().out


# ---------------------------------------------------------------- status classifiers and masks

def test_without_classifiers_or_masks_their_columns_are_absent_and_the_run_says_so(project, capsys):
    (project / "result/a/status_classifiers.npz").unlink()
    shutil.rmtree(project / "data")
    assert synthesize_new() == 2                           # no SUVR can be matched
    assert "label_at_sampling matched needs the regions of the SUVR" in capsys.readouterr().err
    assert synthesize_new(label_at_sampling="mixed") == 0
    said = capsys.readouterr().out
    assert "no SUVR" in said and "--stages test fits them" in said
    assert pd.read_csv(project / "out/synthesized.csv").columns.tolist() == [
        "ID", "p_label_1", "remark", "pet", "mri", "samples", "NFE", "denoiser", "notice"]


def test_classifiers_of_other_masks_are_not_used(project, capsys):
    mask = np.zeros(SHAPE, np.uint8)
    mask[6:16, 6:20, 6:16] = 1
    write_volume(project / "brain.nii.gz", mask)
    write_volume(project / "cortex.nii.gz", mask[::-1].copy())
    settings = {"cortex_mask": "cortex.nii.gz", "reference_mask": "data/phantom/truth/cerebellum.nii.gz",
                "label_at_sampling": "mixed"}
    assert synthesize_new(**settings) == 0
    assert "read by suvr: these classifiers are of other networks or masks" in capsys.readouterr().out
    table = pd.read_csv(project / "out/synthesized.csv")
    assert "positive_suvr" not in table and {"SUVR", "p_pet"} <= set(table)


def test_damaged_classifiers_are_refused(project, capsys):
    path = project / "result/a/status_classifiers.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert synthesize_new() == 2
    assert "status_classifiers.npz: damaged" in capsys.readouterr().err


def test_an_mri_of_another_brightness_than_the_training_list_is_remarked_on(project, new_mri, capsys):
    write_volume(project / "dark.nii.gz", new_mri.get_fdata(dtype=np.float32) / 2, new_mri.affine)
    assert synthesize_new("dark.nii.gz") == 0
    assert "dark: mean intensity of the MRI inside the brain" in capsys.readouterr().out
    assert "is it scaled as they are?" in pd.read_csv(project / "out/synthesized.csv")["remark"][0]


def test_without_a_label_in_sampling_none_is_predicted(project):
    assert synthesize_new(label_at_sampling="none") == 0
    assert "p_label_1" not in pd.read_csv(project / "out/synthesized.csv")


# ---------------------------------------------------------------- a folder

def test_a_folder_goes_on_after_bad_files_and_names_them_at_the_end(project, new_mri, capsys):
    voxels, affine = new_mri.get_fdata(dtype=np.float32), new_mri.affine
    folder = project / "new"
    write_volume(folder / "four.nii.gz", np.stack([voxels[::8, ::8, ::8]] * 2, -1), affine)
    nowhere = nib.Nifti1Image(voxels, None)
    nowhere.header["sform_code"] = nowhere.header["qform_code"] = 0
    nib.save(nowhere, folder / "nowhere.nii.gz")
    (folder / "cut.nii.gz").write_bytes((project / NEW).read_bytes()[:5000])
    bad = {"nan": np.where(voxels > 0.9, np.nan, voxels), "flat": np.zeros_like(voxels),
           "scanner": 3000 * voxels}
    for name, content in bad.items():
        write_volume(folder / f"{name}.nii.gz", content.astype(np.float32), affine)
    write_volume(folder / "moved.nii.gz", voxels, affine + np.array([[0, 0, 0, 25], *np.zeros((3, 4))]))
    (folder / "._scan.nii.gz").write_bytes(b"what a Mac leaves behind")
    (folder / "notes.txt").write_text("not a scan")
    (folder / "text.nii").write_text("neither is this")
    assert synthesize_new("new") == 2
    error = capsys.readouterr().err
    assert "8 of 9 MRIs were not synthesized, the others are in out" in error
    for name, words in {"four": "has 4 dimensions", "nowhere": "neither sform nor qform",
                        "cut": "truncated or damaged", "nan": "NaN", "text": "cannot be read as NIfTI",
                        "flat": "every voxel is 0",
                        "scanner": "expected within [0, 1]", "moved": "not in MNI space"}.items():
        assert any(f"{name}.nii" in line and words in line for line in error.splitlines()), name
    assert newscans.PREPARES in error and "--mri_percentile" in error
    assert pd.read_csv(project / "out/synthesized.csv")["ID"].tolist() == ["scan"]
    assert pet_path("out").is_file()


def test_nothing_is_written_if_no_mri_can_be_used(project, new_mri, capsys):
    voxels = new_mri.get_fdata(dtype=np.float32)
    write_volume(project / "bad/a.nii.gz", np.stack([voxels, voxels], -1), new_mri.affine)
    write_volume(project / "bad2/b.nii.gz", new_mri.get_fdata(dtype=np.float32) * 100, new_mri.affine)
    for folder in ("bad", "bad2"):
        assert synthesize_new(folder) == 2
        assert "error: " in capsys.readouterr().err
    assert not (project / "out").exists()


def written_at(out: Path) -> dict[Path, int]:
    """When each file of the scans in a folder was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("sub-*") if path.is_file()}


def test_a_second_run_makes_what_is_missing_and_nothing_else(project, new_mri, monkeypatch, capsys):
    assert synthesize_new("new") == 0
    before = written_at(project / "out")
    write_volume(project / "new/more.nii.gz", new_mri.get_fdata(dtype=np.float32), new_mri.affine)
    sidecar_path("out").with_suffix(".png").unlink()
    assert synthesize_new("new") == 0
    assert "2 of 2 MRIs are to be synthesized (0 are there already)" in capsys.readouterr().out
    assert pd.read_csv(project / "out/synthesized.csv")["ID"].tolist() == ["more", "scan"]
    after = written_at(project / "out")
    assert before.keys() < after.keys()
    monkeypatch.setattr(synthesize, "_read_batch", None)
    assert synthesize_new("new") == 0
    assert written_at(project / "out") == after
    assert "0 of 2 MRIs are to be synthesized (2 are there already)" in capsys.readouterr().out


def test_a_pet_made_in_another_way_or_by_another_hand_is_replaced_only_when_asked(project, capsys):
    assert synthesize_new() == 0
    first = pet_path("out").read_bytes()
    assert synthesize_new(samples_per_scan=1) == 2
    assert "settings samples_per_scan: 2 -> 1" in capsys.readouterr().err
    assert pet_path("out").read_bytes() == first
    sidecar_path("out").write_text("{}")
    assert synthesize_new() == 2
    assert "not written by synthesize" in capsys.readouterr().err
    assert synthesize_new("new", "out", samples_per_scan=1, overwrite="true") == 0
    assert pet_path("out").read_bytes() != first
    assert pd.read_csv(project / "out/synthesized.csv")["samples"].tolist() == [1]


def test_a_pet_of_an_earlier_version_is_recognized_by_the_names_that_its_settings_had(project, capsys):
    assert synthesize_new() == 0
    sidecar = sidecar_of("out")
    slope, intercept = sidecar["MadeFrom"]["settings"].pop("centiloid")
    assert sidecar["MadeFrom"]["settings"].pop("atlas") == []
    sidecar["MadeFrom"]["settings"] |= {"centiloid_slope": slope, "centiloid_intercept": intercept,
                                        "regions_image": "", "regions_table": ""}
    sidecar_path("out").write_text(json.dumps(sidecar))
    assert synthesize_new() == 0
    assert "0 of 1 MRIs are to be synthesized" in capsys.readouterr().out


def test_an_experiment_of_an_earlier_version_is_used_as_it_was_trained(project):
    affine = nib.load(project / "data/phantom/whole_MRI/phantom001.nii.gz").affine
    write_volume(project / "labels.nii.gz", np.full(SHAPE, 4, np.uint8), affine)
    (project / "names.csv").write_text("index,name\n4,everywhere\n")
    path, norms = project / "result/a/config.json", {"aae_output_norm": False, "aae_block_norm": False}
    saved = json.loads(path.read_text())
    assert saved["settings"].pop("atlas") == saved["settings"].pop("aae_norms") == []
    saved["settings"] |= norms | {"regions_image": "labels.nii.gz", "regions_table": "names.csv",
                                  "bootstrap_resamples": 500, "save_std": True}
    path.write_text(json.dumps(saved))
    path = project / "result/a/CHECKPOINT_AAE.pth.tar"
    saved = torch.load(path, weights_only=True)
    assert saved["settings"].pop("aae_norms") == []
    saved["settings"] |= norms
    torch.save(saved, path)
    assert synthesize_new() == 0
    assert "SUVR_everywhere" in pd.read_csv(project / "out/synthesized.csv")


def test_a_pet_of_an_earlier_version_stays_and_its_std_goes_when_it_is_replaced(project):
    assert synthesize_new() == 0
    content = sidecar_of("out")
    content["MadeFrom"]["settings"]["save_std"] = True
    sidecar_path("out").write_text(json.dumps(content))
    stem = str(pet_path("out")).removesuffix("_pet.nii.gz")
    std = [Path(f"{stem}SD_pet{suffix}") for suffix in (".nii.gz", ".json")]
    for path in std:
        path.touch()
    written = pet_path("out").stat().st_mtime_ns
    assert synthesize_new() == 0
    assert pet_path("out").stat().st_mtime_ns == written and all(path.exists() for path in std)
    assert synthesize_new(sampling_steps=2, overwrite="true") == 0
    assert pet_path("out").exists() and not any(path.exists() for path in std)


def test_a_replacement_that_was_interrupted_is_made_by_the_next_run(project, monkeypatch):
    def disk_is_full(*_):
        raise OSError(28, "No space left on device")
    assert synthesize_new() == 0
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "save_synthesis", disk_is_full)
        assert synthesize_new(samples_per_scan=1, overwrite="true") == 5
    # no old PET beside a sidecar that speaks of the new one
    assert not list((project / "out").rglob("*.nii.gz"))
    assert synthesize_new(samples_per_scan=1) == 0
    assert synthesize_new(out="fresh", samples_per_scan=1) == 0
    out, fresh = project / "out", project / "fresh"
    written = {path.relative_to(fresh) for path in fresh.rglob("*")}
    assert written == {path.relative_to(out) for path in out.rglob("*")}
    for path in written:
        if path.name.endswith(".nii.gz"):
            one, other = (nib.load(folder / path).get_fdata() for folder in (fresh, out))
            np.testing.assert_array_equal(one, other)


def test_rows_of_earlier_runs_stay_in_the_table(project):
    assert synthesize_new() == 0
    shutil.copy(project / NEW, project / "sub-02_ses-1_run-3_desc-brain_T1w.nii.gz")
    assert synthesize_new("sub-02_ses-1_run-3_desc-brain_T1w.nii.gz") == 0
    assert pd.read_csv(project / "out/synthesized.csv")["pet"].tolist() == [
        f"sub-02/ses-1/pet/sub-02_ses-1_run-3_{IN_MNI.replace('Sym_', 'Sym_res-2mm_')}_pet.nii.gz",
        PET.format("scan", 2)]


def test_the_good_ones_are_in_the_table_even_if_the_networks_fail_later(project, monkeypatch):
    shutil.copy(project / NEW, project / "new/second.nii.gz")
    original = synthesize._synthesize_batch

    def fail(trained, batch, sources, out):
        original(trained, batch | {"scans": batch["scans"][:1]}, sources, out)
        raise NotFiniteError("the latents sampled by ddim for second are not finite")
    monkeypatch.setattr(synthesize, "_synthesize_batch", fail)
    assert synthesize_new("new") == 3
    assert pd.read_csv(project / "out/synthesized.csv")["ID"].tolist() == ["scan"]


def test_a_file_that_changes_after_the_check_is_left_out(project, monkeypatch, capsys):
    shutil.copy(project / NEW, project / "new/second.nii.gz")
    original = synthesize._voxel_problems

    def touch_after(scans, percentile, remarks):
        problems = original(scans, percentile, remarks)
        image = nib.load("new/second.nii.gz")
        voxels = image.get_fdata(dtype=np.float32) * np.float32(0.99)
        write_volume(Path("new/second.nii.gz"), voxels, image.affine)
        return problems
    monkeypatch.setattr(synthesize, "_voxel_problems", touch_after)
    assert synthesize_new("new") == 2
    assert "second.nii.gz: has changed since it was checked" in capsys.readouterr().err
    assert pd.read_csv(project / "out/synthesized.csv")["ID"].tolist() == ["scan"]


# ---------------------------------------------------------------- intensities

def test_nan_ringing_a_fourth_dimension_a_link_and_a_wrong_suffix_change_no_pet(project, new_mri, capsys):
    voxels = new_mri.get_fdata(dtype=np.float32)
    odd = np.where(voxels == 0, np.float32(-0.005), voxels)
    odd[:2] = np.nan
    write_volume(project / "lake/object.nii", odd[..., None], new_mri.affine)
    (project / "odd").mkdir()
    (project / "odd/scan.NII.gz").symlink_to("../lake/object.nii")
    write_volume(project / "even/scan.nii.gz", voxels, new_mri.affine)
    assert synthesize_new("odd") == synthesize_new("even", "out2") == 0
    np.testing.assert_array_equal(pet_of("out"), pet_of("out2"))
    shown = capsys.readouterr().out
    for remark in ("1 file had NaN outside the brain, read as 0: odd/scan.NII.gz",
                   "1 file had intensities up to 0.01 outside [0, 1], as interpolation leaves"):
        assert shown.count(remark) == 1


def test_other_intensities_are_scaled_by_a_percentile_only_when_asked(project, new_mri):
    voxels = new_mri.get_fdata(dtype=np.float32)
    integers = np.rint(voxels * 3000).astype(np.int16)
    write_volume(project / "int/scan.nii.gz", integers, new_mri.affine)
    ceiling = np.percentile(integers[integers > 0], 99.5)
    assert synthesize_new("int") == 2
    assert synthesize_new("int", mri_percentile=99.5) == 0
    scaled = (integers / ceiling).clip(0, 1).astype(np.float32)
    write_volume(project / "float/scan.nii.gz", scaled, new_mri.affine)
    assert synthesize_new("float", "out2") == 0
    one, other = (pet_of(folder) for folder in ("out", "out2"))
    np.testing.assert_allclose(one, other, atol=1e-6)
    sidecar = sidecar_of("out")
    assert sidecar["MRI"]["Intensity"] == f"divided by {ceiling:g}, clipped to [0, 1]"


def test_integers_times_a_scale_factor_may_end_a_rounding_above_1(tmp_path, new_mri):
    voxels = new_mri.get_fdata(dtype=np.float32)
    write_volume(tmp_path / "a.nii", voxels / voxels.max() * (1 + RANGE_TOLERANCE / 2), new_mri.affine)
    assert newscans.read_mri(tmp_path / "a.nii", 0.0)[2] == 1


# ---------------------------------------------------------------- MNI space

def rotation(axis: int, degrees: float) -> np.ndarray:
    """A turn about the middle of the brain, [4, 4]."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = (k for k in range(3) if k != axis)
    turn, centre = np.eye(4), np.eye(4)
    turn[[i, j, i, j], [i, j, j, i]] = cos, cos, -sin, sin
    centre[:3, 3] = 0, -18, 20
    return centre @ turn @ np.linalg.inv(centre)


def shift(*mm: float) -> np.ndarray:
    """A move by so many millimetres along each axis, [4, 4]."""
    moved = np.eye(4)
    moved[:3, 3] = mm
    return moved


@pytest.mark.parametrize("voxel_mm", [4, 8])
def test_phantoms_of_any_seed_are_found_in_mni_space_with_a_margin(voxel_mm, monkeypatch):
    monkeypatch.setattr(newscans, "OVERLAP", newscans.OVERLAP + 0.05)
    monkeypatch.setattr(newscans, "LIKENESS", newscans.LIKENESS + 0.1)
    template = load_template(voxel_mm)
    for seed in range(4):
        rng = np.random.default_rng([seed, 5])
        mri, _, _ = simulate(template, rng, draw_subject(rng, seed % 2, 0.6), 0.6)
        assert place_problem(mri, template.affine) == ""


SHIFTS = [shift(20, 0, 0), shift(0, -20, 0), shift(0, 20, 0), shift(0, 0, 20), shift(0, 0, -20),
          shift(400, 0, 0)]
ROTATIONS = [rotation(axis, degrees) for axis in range(3) for degrees in (-20, 20, 30, 90)]
SIZES = [np.diag([0.85, 0.85, 0.85, 1]), np.diag([1.2, 1.2, 1.2, 1])]


@pytest.mark.parametrize("move", SHIFTS + ROTATIONS + SIZES)
def test_a_brain_elsewhere_is_told_from_one_in_mni_space(new_mri, move):
    problem = place_problem(new_mri.get_fdata(dtype=np.float32), move @ new_mri.affine)
    assert "not in MNI space" in problem or "whole head" in problem
    assert newscans.PREPARES in problem


def test_a_whole_head_is_named_as_one(new_mri):
    from scipy.ndimage import binary_dilation

    voxels = np.pad(new_mri.get_fdata(dtype=np.float32), 10)
    affine = new_mri.affine @ shift(-10, -10, -10)
    skull, skin = (binary_dilation(voxels > 0, iterations=n) for n in (3, 8))
    assert "whole head" in place_problem(np.where(skin & ~skull, np.float32(0.7), voxels), affine)


def test_a_mirrored_brain_cannot_be_told(new_mri):
    assert place_problem(new_mri.get_fdata(dtype=np.float32), np.diag([-1.0, 1, 1, 1]) @ new_mri.affine) == ""


# ---------------------------------------------------------------- names and places

IN_MNI = "space-MNI152NLin2009aSym_desc-ilcldmSynthetic"


@pytest.mark.parametrize(("stem", "name"), [
    ("phantom001", f"sub-phantom001_{IN_MNI}_pet"), ("037_S_6046", f"sub-037S6046_{IN_MNI}_pet"),
    ("sub-01_T1w", f"sub-01_{IN_MNI}_pet"), ("sub-01", f"sub-01_{IN_MNI}_pet"),
    ("sub-01_ses-m12_space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w",
     "sub-01_ses-m12_space-MNI152NLin2009cAsym_res-2_desc-ilcldmSynthetic_pet"),
    ("sub-01_run-2_rec-norm_T1w", f"sub-01_rec-norm_run-2_{IN_MNI}_pet"),
    ("sub-01_acq-x_ce-g+1_T1w", f"sub-01_{IN_MNI}AcqxCeg1_pet"),
    ("sub-01_trc-18FAV45_pet", f"sub-01_{IN_MNI}_pet"),
    ("ein Scan (2)", f"sub-einScan2_{IN_MNI}_pet"), ("sub-01_T1w_brain", f"sub-01T1wbrain_{IN_MNI}_pet")])
def test_names_follow_bids_and_keep_the_mris_entities(stem, name):
    assert output_name(stem) == name


@pytest.mark.parametrize(("tracer", "stem", "name"), [
    ("18FAV45", "sub-01_T1w", "sub-01_trc-18FAV45_space-MNI152NLin2009aSym_res-8mm_desc-ilcldmSynthetic_pet"),
    ("", "sub-01_T1w", "sub-01_space-MNI152NLin2009aSym_res-8mm_desc-ilcldmSynthetic_pet"),
    ("", "sub-01_res-high_T1w", "sub-01_space-MNI152NLin2009aSym_res-high_desc-ilcldmSynthetic_pet")])
def test_tracer_and_voxel_size_stand_in_the_name_but_a_res_of_the_mri_stays(tmp_path, tracer, stem, name):
    write_volume(tmp_path / f"{stem}.nii", np.zeros(SHAPE, np.float32))
    [scan] = complete_names(find_scans(tmp_path), tracer)
    assert scan.name == name


def test_names_that_clash_or_name_nothing_are_refused_at_once(tmp_path):
    for name in ("a_1.nii.gz", "a1.nii", "A-1.nii", "().nii", "b" * 210 + ".nii"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        find_scans(tmp_path)
    assert "A-1.nii, a1.nii, a_1.nii.gz would all be written as sub-A1_space" in str(error.value)
    assert "().nii has no letter" in str(error.value) and "too long a name" in str(error.value)


@pytest.mark.parametrize(("mri", "words"), [
    ("nowhere", "nowhere: cannot be read: No such file"), ("empty", "empty: holds no MRI"),
    ("data/phantom/data_info/test.txt", "is no MRI")])
def test_what_is_no_mri_is_refused(project, capsys, mri, words):
    (project / "empty").mkdir()
    (project / "empty" / Path(PET.format("x", 2)).name).write_bytes(b"a PET of this stage")
    assert synthesize_new(mri) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("out", ["new", "data/phantom", "data/phantom/whole_MRI/x", "result/b", "result"])
def test_results_do_not_go_where_inputs_lie(project, capsys, out):
    assert synthesize_new(out=out) == 2
    assert "give a folder of its own" in capsys.readouterr().err
    assert not list(project.rglob("*ilcldm*"))


@pytest.mark.parametrize(("words", "missing"), [
    (["--mri", "x"], "synthesize needs --exp, --out"),
    (["--exp", "a", "--out", "x"], "synthesize needs --mri"),
    ([], "synthesize needs --exp, --mri, --out")])
def test_what_is_needed_is_asked_for(capsys, words, missing):
    assert run("synthesize", *words) == 2
    assert missing in capsys.readouterr().err


# ---------------------------------------------------------------- the experiment and its settings

def test_nothing_but_experiment_mri_and_place_is_given(project):
    assert run("synthesize", "--exp", "a", "--mri", NEW, "--out", "out") == 0
    sampling = sidecar_of("out")["Sampling"]
    assert (sampling["Sampler"], sampling["LatentSamples"]) == ("ddim", TINY["samples_per_scan"])


def test_changed_settings_of_the_sampling_are_taken(project):
    assert synthesize_new() == 0
    changes = {"sampler": "dpm", "sampling_steps": 4, "samples_per_scan": 1, "label_at_sampling": "mixed"}
    assert synthesize_new(out="changed", **changes) == 0
    sampling = sidecar_of("changed")["Sampling"]
    assert sampling == {"Sampler": "dpm", "NetworkEvaluations": 4, "LatentSamples": 1, "Label": "mixed",
                        "Seed": 0, "Device": "cpu"}
    one, other = (pet_of(folder) for folder in ("out", "changed"))
    assert not np.array_equal(one, other)
    saved = json.loads((project / "result/a/config.json").read_text())["settings"]
    # the experiment stays as it is
    assert (saved["sampler"], saved["label_at_sampling"]) == ("ddim", "matched")


@pytest.mark.parametrize(("setting", "value"), [("seed", "3"), ("unet_channels", "8"), ("volume_size", "16"),
                                                ("preset", "demo")])
def test_a_setting_that_the_training_is_bound_to_is_unknown(project, capsys, setting, value):
    assert synthesize_new(**{setting: value}) == 2
    error = capsys.readouterr().err
    assert f"unknown setting --{setting}" in error
    assert "python main.py synthesize --help lists all settings" in error
    assert not (project / "out").exists()


def test_a_misspelt_setting_is_answered_with_the_right_one(project, capsys):
    assert synthesize_new(sampling_step=3) == 2
    assert "unknown setting --sampling_step; did you mean --sampling_steps?" in capsys.readouterr().err


def test_settings_that_do_not_fit_the_experiment_are_refused(project, capsys):
    assert synthesize_new(sampling_steps=20) == 2
    assert "sampling_steps 20 must be at most timesteps - 1 = 19" in capsys.readouterr().err


@pytest.mark.parametrize("exp", ["b", "../result/b", "untrained"])
def test_without_a_trained_experiment_the_trained_ones_are_named(project, capsys, exp):
    (project / "result/untrained").mkdir()
    assert synthesize_new(exp=exp) == 2
    error = capsys.readouterr().err
    assert f"result/{exp}/config.json is not there" in error and "trained here: a" in error


def test_an_experiment_that_was_begun_but_not_trained_is_refused(project, capsys):
    without = shutil.ignore_patterns("CHECKPOINT_Unet*")
    shutil.copytree(project / "result/a", project / "result/begun", ignore=without)
    assert synthesize_new(exp="begun") == 2
    error = capsys.readouterr().err
    assert "result/begun/CHECKPOINT_Unet.pth.tar is not there" in error and "trained here: a" in error


def test_an_experiment_may_be_renamed(project):
    assert synthesize_new() == 0
    (project / "result/a").rename(project / "result/renamed")
    assert synthesize_new(exp="renamed", out="other") == 0
    one, other = (pet_of(folder) for folder in ("out", "other"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_settings_of_another_version_are_refused_in_a_sentence(project, capsys, change):
    path = project / "result/a/config.json"
    saved = json.loads(path.read_text())
    if change == "one more":
        saved["settings"]["guidance"] = 2.0
    else:
        del saved["settings"]["time_shift"]
    path.write_text(json.dumps(saved))
    assert synthesize_new() == 2
    error = capsys.readouterr().err
    assert "result/a/config.json was written by another version of this project" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"settings": 3}', b"\xff"])
def test_damaged_settings_are_refused(project, capsys, content):
    (project / "result/a/config.json").write_bytes(content)
    assert synthesize_new() == 2
    assert "result/a/config.json is not there or damaged" in capsys.readouterr().err


def test_checkpoints_of_other_settings_than_those_beside_them_are_refused(project, capsys):
    path = project / "result/a/config.json"
    saved = json.loads(path.read_text())
    saved["settings"]["seed"] = 3
    path.write_text(json.dumps(saved))
    assert synthesize_new() == 2
    assert "seed: 0 -> 3" in capsys.readouterr().err


@pytest.mark.parametrize(("lost", "words"), [
    ("affine", "does not say on which grid"), ("latent_mean", "how its latents were scaled"),
    (None, "was written by another version of this project")])
def test_a_checkpoint_that_says_too_little_is_refused(project, capsys, lost, words):
    path = project / "result/a/CHECKPOINT_Unet.pth.tar"
    saved = torch.load(path, weights_only=True)
    if lost:
        del saved["metadata"][lost]
    else:
        del saved["format"]
    path.unlink()                                          # a second name of the last checkpoint
    torch.save(saved, path)
    assert synthesize_new() == 2
    assert words in capsys.readouterr().err


def test_a_second_run_into_the_same_folder_is_refused(project, capsys):
    from runtime.files import FolderLock

    (project / "out").mkdir()
    with FolderLock(project / "out"):
        assert synthesize_new() == 7
    assert "another run works here" in capsys.readouterr().err


def test_one_mri_whose_name_is_not_utf_8_costs_itself_alone(project, capsys):
    shutil.copy(project / NEW, project / "new" / os.fsdecode(b"M\xfcller.nii.gz"))
    assert synthesize_new("new") == 2
    assert "1 of 2 MRIs were not synthesized" in (message := capsys.readouterr().err)
    assert "new/M\\xfcller.nii.gz: its name is not UTF-8; rename the file" in message
    assert pd.read_csv(project / "out/synthesized.csv")["ID"].tolist() == ["scan"]


def test_a_spoilt_experiment_beside_the_trained_one_stops_nothing(project):
    (project / "result" / "spoilt").mkdir()
    for name in ("config.json", "scores.json", "ldm.pth.tar"):
        (project / "result" / "spoilt" / name).write_bytes(b"\xff{")
    (project / "result" / os.fsdecode(b"\xfc")).mkdir()
    assert synthesize_new() == 0


def test_the_folder_of_latents_is_no_place_for_new_scans(project, capsys):
    assert synthesize_new(out="latents/new", latent_dir="latents") == 2
    assert "out latents/new: MRIs, a cohort or experiments lie there" in capsys.readouterr().err
