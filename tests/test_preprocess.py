"""Raw scans to the cohort's space: a phantom head in any position, what is refused, what is done once."""
import importlib.util
import json
import os
import shutil
from pathlib import Path

import matplotlib.image as mpimg
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from bids_validator import validate
from conftest import arguments, write_volume
from matplotlib.colors import to_rgb
from nibabel.affines import apply_affine
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

import main
from cohort import preprocess, quality, registration, subject
from config import Config
from imaging.volumes import read_volume
from phantom.anatomy import grid_affine, load_template
from phantom.uptake import Subject, simulate
from runtime.files import FolderLock

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="antspyx is not installed")

VOXEL, MARGIN = 6, 14                                      # mm; voxels of air and neck around the grid
DRAWS = True
SIZE = (30, 36, 30)                                        # of the cohort's grid at VOXEL


def pose(degrees: tuple, shift: tuple, scale=(1, 1, 1)) -> np.ndarray:
    """MNI to scanner mm: scaled and turned about the middle of the brain, then shifted."""
    middle, matrix = np.array([0, -18, 12]), np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scale)
    matrix[:3, 3] = middle + shift - matrix[:3, :3] @ middle
    return matrix


def widened(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume of the cohort's grid with air around it, and its affine."""
    affine = grid_affine(VOXEL)
    affine[:3, 3] -= MARGIN * VOXEL
    return np.pad(volume, MARGIN), affine


def head_around(mri: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A brain with fluid, skull, scalp and neck around it, on the widened grid."""
    mri, affine = widened(mri)
    inside = binary_dilation(np.pad(brain, MARGIN))
    distance = VOXEL * distance_transform_edt(~inside)
    axes = [affine[a, 3] + VOXEL * np.arange(n) for a, n in enumerate(mri.shape)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    neck = ((x / 55) ** 2 + ((y + 35) / 60) ** 2 < 1) & (z < -50) & (z > -120)
    head = np.where(np.pad(brain, MARGIN), mri, 0.15 * inside)
    head = np.where((distance > 6) & (distance <= 16) & (z > -60), 0.8, head)
    return gaussian_filter(np.where(neck & (distance > 4), 0.5, head), 0.4)


def write_scan(path: Path, volume: np.ndarray, affine: np.ndarray, moved: np.ndarray, codes: str = "RAS",
               shape=(34, 40, 42)) -> None:
    """Resample into a scanner that sees everything moved, around its isocentre, in an orientation.

    moved: [4, 4], or [frames, 4, 4] for a motion a frame. codes: of the orientation.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scanner = np.diag([VOXEL] * 3 + [1.0])
    isocentre = apply_affine(moved if moved.ndim == 2 else moved[0], (0, -18, -10))
    scanner[:3, 3] = isocentre - VOXEL * np.array(shape) / 2
    index = np.indices(shape).reshape(3, -1).T

    def seen(motion: np.ndarray) -> np.ndarray:
        """The volume as the scanner sees it after a motion."""
        source = apply_affine(np.linalg.inv(motion @ affine) @ scanner, index)
        return map_coordinates(volume, source.T, order=1).reshape(shape).astype(np.float32)

    voxels = seen(moved) if moved.ndim == 2 else np.stack([seen(motion) for motion in moved], axis=-1)
    image = nib.Nifti1Image(voxels * 700, scanner)
    image.set_sform(scanner, 1)
    ras, stored = nib.orientations.io_orientation(scanner), nib.orientations.axcodes2ornt(codes)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(ras, stored)), path)


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """MRI, PET, brain and the two regions of a phantom on the cohort's grid."""
    template = load_template(VOXEL)
    subject = Subject(label=1, suvr=1.5, load=0.5, atrophy=0.0, age=70.0, sex="F", white=1.55)
    mri, pet, _ = simulate(template, np.random.default_rng(3), subject, link=0.6)
    return {"mri": mri, "pet": pet, "brain": mri > 0, "cortex": template.cortex,
            "cerebellum": template.cerebellum}


POSE = pose((14, -6, 8), (10, 45, -25), (0.93, 0.9, 0.95))
BETWEEN = pose((-5, 7, 4), (8, -6, 9))                     # PET against T1, both in the scanner
MOTION = pose((0, 0, 0), (0, 6, 0))                        # of the second of two frames


@pytest.fixture(scope="module")
def raw(tmp_path_factory, truth) -> Path:
    """Two heads, one with a PET of two frames, one in another orientation and place; and a cut-off file."""
    folder = tmp_path_factory.mktemp("raw")
    head = head_around(truth["mri"], truth["brain"])
    affine = widened(truth["pet"])[1]
    write_scan(folder / "T1" / "a_T1w.nii.gz", head, affine, POSE)
    write_scan(folder / "PET" / "a_pet.nii.gz", widened(truth["pet"])[0], affine,
               np.stack([BETWEEN @ POSE, MOTION @ BETWEEN @ POSE]), "LPS")
    write_scan(folder / "b.nii", head, affine, pose((-12, 5, -15), (-60, 0, 50), (0.9, 0.95, 0.9)), "PIR")
    (folder / "T1" / "c.nii.gz").write_bytes((folder / "T1" / "a_T1w.nii.gz").read_bytes()[:20_000])
    write_volume(folder / "cerebellum.nii.gz", truth["cerebellum"].astype(np.uint8), grid_affine(VOXEL))
    return folder


def run(raw: Path, data: Path, **settings) -> int:
    """Exit code of the command with settings of this grid, in one process."""
    usual = {"raw": raw, "data_dir": data, "num_workers": 0, "image_size": SIZE}
    return main.main(["preprocess", *arguments(usual | settings)])


def rows(data: Path) -> pd.DataFrame:
    """measures.csv by ID."""
    return pd.read_csv(data / "preprocess" / "measures.csv", index_col="ID", keep_default_na=False)


def voxels(data: Path, folder: str, name: str) -> np.ndarray:
    """The voxels of a volume of the cohort, RAS."""
    return read_volume(data / folder / f"{name}.nii.gz")[0]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks."""
    return 2 * (one & other).sum() / (one.sum() + other.sum())


# ---------------------------------------------------------------- heads in any position

@pytest.fixture(scope="module")
def done(raw, tmp_path_factory) -> tuple[Path, int]:
    """The folder to which the head with a PET and the broken file went, and the exit code."""
    data = tmp_path_factory.mktemp("data")
    return data, run(raw, data, reference_mask=raw / "cerebellum.nii.gz")


def test_a_head_comes_to_lie_on_the_phantoms_grid(done, truth):
    mri, affine = read_volume(done[0] / "whole_MRI" / "a.nii.gz")
    assert mri.shape == truth["mri"].shape and np.array_equal(affine, load_template(VOXEL).affine)
    assert mri.min() == 0 and mri.max() == 1
    upright = np.corrcoef(mri.ravel(), truth["mri"].ravel())[0, 1]
    mirrored = np.corrcoef(mri.ravel(), truth["mri"][::-1].ravel())[0, 1]
    assert upright > 0.95 and mirrored < upright - 0.01
    assert dice(mri > 0, truth["brain"]) > 0.95


def test_the_pet_lies_on_its_mri_and_keeps_its_ratios(done, truth):
    data, _ = done
    pet, brain = voxels(data, "whole_Abeta", "a"), voxels(data, "whole_MRI", "a") > 0
    assert np.corrcoef(pet[brain], truth["pet"][brain])[0, 1] > 0.93
    assert (pet[~brain] == 0).all()

    def suvr(volume: np.ndarray) -> float:
        """Cortex over cerebellum."""
        return volume[truth["cortex"]].mean() / volume[truth["cerebellum"]].mean()

    assert suvr(pet) == pytest.approx(suvr(truth["pet"]), rel=0.02)
    reference = pet[truth["cerebellum"] & brain]
    assert 4 * reference.mean() == pytest.approx(1, rel=1e-3)                # an SUVR of 4 is stored as 1


def test_motion_between_frames_is_undone_and_reported(done):
    data, _ = done
    assert float(rows(data).loc["a", "pet_motion_mm"]) == pytest.approx(6, abs=0.8)
    assert int(float(rows(data).loc["a", "pet_frames"])) == 2
    assert "pet_motion_mm" in rows(data).loc["a", "remark"]


def test_a_damaged_file_does_not_keep_the_others_from_being_done(done, raw, capsys):
    data, code = done
    assert code == 2
    problem = rows(data).loc["c", "problem"]
    assert "truncated or damaged" in problem and str(raw / "T1" / "c.nii.gz") in problem
    assert rows(data).loc["a", "problem"] == ""
    assert not list(data.rglob("c.*"))
    assert not list(data.rglob(".partial*"))


def test_measures_tell_a_registered_scan_from_a_shifted_one(done):
    data, _ = done
    mri = voxels(data, "whole_MRI", "a")
    template, mask = (registration.load_template(VOXEL, what).numpy() for what in ("template", "brain_mask"))
    good = quality.compare_with_template(mri, mri > 0, template, mask > 0)
    shifted = np.roll(mri, 3, axis=1)
    bad = quality.compare_with_template(shifted, shifted > 0, template, mask > 0)
    assert not quality.remarks(good) and len(quality.remarks(bad)) == 2
    pet = voxels(data, "whole_Abeta", "a")
    in_place = quality.compare_with_mri(pet, mri, mri > 0)["pet_likeness"]
    moved = quality.compare_with_mri(np.roll(pet, 2, axis=0), mri, mri > 0)["pet_likeness"]
    assert in_place > moved + 0.01


def test_every_subject_has_a_page_with_the_outlines(done):
    page = mpimg.imread(done[0] / "preprocess" / "a.png")[..., :3]
    assert page.shape[0] > page.shape[1] == 1100
    coloured = np.ptp(page, axis=-1) > 0.3                 # the scans are grey
    distances = [np.abs(page - to_rgb(colour)).sum(-1) for colour, _ in quality.OUTLINES.values()]
    nearest = np.argmin(distances, axis=0)
    for half in (slice(0, len(page) // 2), slice(len(page) // 2, None)):     # the T1 above, the PET below
        assert (np.bincount(nearest[half][coloured[half]], minlength=3) > 300).all()


def contents(data: Path) -> dict[Path, bytes]:
    """All files of a folder but measures.csv."""
    files = [path for path in data.rglob("*") if path.is_file() and path.name != "measures.csv"]
    return {path: path.read_bytes() for path in files}


def test_what_is_done_is_not_done_again(done, raw, monkeypatch):
    data, _ = done
    before = contents(data)
    monkeypatch.setattr(registration, "register_head", lambda *_: pytest.fail("done again"))
    assert run(raw, data, reference_mask=raw / "cerebellum.nii.gz") == 2
    assert before and contents(data) == before
    assert float(rows(data).loc["a", "overlap"]) > 0.9


def test_one_mri_alone_needs_no_mask_and_takes_the_templates_shape_nonlinearly(done, raw, truth, tmp_path):
    assert run(raw / "b.nii", tmp_path, registration="syn") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".bidsignore", "README.md", "dataset_description.json", "preprocess", "sub-b", "whole_MRI"]
    assert dice(voxels(tmp_path, "whole_MRI", "b") > 0, truth["brain"]) > 0.94
    linearly = float(rows(done[0]).loc["a", "correlation"])                  # the same head
    assert rows(tmp_path).loc["b", "correlation"] > 0.03 + linearly


# ---------------------------------------------------------------- without registration: volumes on the grid

def identity(folder: Path) -> list[str]:
    """Transforms that move nothing, written to the folder."""
    import ants

    path = str(folder / "identity.mat")
    ants.write_transform(ants.create_ants_transform(transform_type="AffineTransform", dimension=3), path)
    return [path]


def head_in_place(image, voxel_mm, nonlinear, folder) -> registration.Head:
    """A head that lies on the grid already, without skull, as register_head returns one."""
    return registration.Head(image, registration.like(image, image.numpy() > 0), identity(folder))


def align_in_place(fixed, mask, moving, centre, scale, kinds, folder) -> list[str]:
    """The transforms of an image that lies in place already, as align returns them."""
    return identity(folder)


@pytest.fixture
def near(tmp_path, truth, monkeypatch) -> Path:
    """A raw folder of one subject in MNI space, and a registration that finds this at once."""
    monkeypatch.setattr(registration, "register_head", head_in_place)
    monkeypatch.setattr(registration, "align", align_in_place)
    monkeypatch.setattr(subject, "draw_page", lambda *_: None)
    raw = tmp_path / "raw"
    write_volume(raw / "T1" / "s.nii.gz", 900 * truth["mri"], grid_affine(VOXEL))
    write_volume(raw / "PET" / "s.nii.gz", 5000 * truth["pet"], grid_affine(VOXEL))
    write_volume(raw / "cerebellum.nii", truth["cerebellum"].astype(np.uint8), grid_affine(VOXEL))
    monkeypatch.chdir(tmp_path)
    return raw


def quick(raw: Path, **settings) -> int:
    """Exit code of the command with a reference region, into data/."""
    return run(raw, Path("data"), **{"reference_mask": raw / "cerebellum.nii"} | settings)


def test_all_pets_are_divided_by_one_constant(near, truth):
    assert quick(near, pet_max_suvr=5.0) == 0
    expected = truth["pet"] / truth["pet"][truth["cerebellum"]].mean() / 5
    brain = truth["brain"]
    np.testing.assert_allclose(voxels(Path("data"), "whole_Abeta", "s")[brain], expected[brain], atol=2e-3)


def test_what_would_be_cut_off_is_refused_with_its_share(near, truth, capsys):
    suvr = truth["pet"][truth["brain"]] / truth["pet"][truth["cerebellum"]].mean()
    assert quick(near, pet_max_suvr=1.2) == 2
    told = capsys.readouterr().err
    assert f"{(suvr > 1.2).mean():.1%}"[:-2] in told and "--pet_max_suvr" in told
    assert not list(Path("data").rglob("s.*"))


def test_smoothing_is_that_of_a_gaussian_of_the_asked_width(near, truth):
    assert quick(near, pet_fwhm=12.0) == 0
    smooth = gaussian_filter(truth["pet"], 12 / 2.3548 / VOXEL)
    expected = smooth / smooth[truth["cerebellum"]].mean() / 4
    found = voxels(Path("data"), "whole_Abeta", "s")
    np.testing.assert_allclose(found[truth["brain"]], expected[truth["brain"]], atol=2e-3)


def test_a_pet_that_ends_within_the_reference_region_is_refused(near, truth, capsys):
    affine, height = grid_affine(VOXEL), int(np.quantile(np.argwhere(truth["cerebellum"])[:, 2], 0.7))
    affine[2, 3] += height * VOXEL
    write_volume(near / "PET" / "s.nii.gz", truth["pet"][:, :, height:], affine)
    assert quick(near) == 2
    assert "of the reference region lie in brain and PET" in capsys.readouterr().err


def test_nothing_that_lies_there_is_replaced_unless_asked(near, truth, capsys):
    assert quick(near) == 0
    made = Path("data/whole_Abeta/s.nii.gz").read_bytes()
    assert quick(near, pet_max_suvr=5.0) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("data/whole_Abeta/s.nii.gz").read_bytes() == made
    assert quick(near, pet_max_suvr=5.0, overwrite=True) == 0
    assert Path("data/whole_Abeta/s.nii.gz").read_bytes() != made
    write_volume(near / "T1" / "s.nii.gz", 901 * truth["mri"], grid_affine(VOXEL))
    assert quick(near, pet_max_suvr=5.0) == 2              # another file of the same name


@pytest.mark.parametrize("name", ["s.nii", "s.nii.gz"])
def test_a_volume_of_somebody_elses_stays(near, truth, capsys, name):
    write_volume(Path("data/whole_MRI") / name, truth["mri"], grid_affine(VOXEL))
    theirs = (Path("data/whole_MRI") / name).read_bytes()
    assert quick(near) == 2
    assert f"data/whole_MRI/{name}: is there already" in capsys.readouterr().err
    assert (Path("data/whole_MRI") / name).read_bytes() == theirs
    assert len(list(Path("data/whole_MRI").iterdir())) == 1


def test_a_subject_that_was_interrupted_is_done_again(near, monkeypatch):
    def stop(*_):
        """Ctrl-C."""
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(subject, "draw_page", stop)
        assert quick(near) == 130
    assert Path("data/whole_MRI/s.nii.gz").exists()
    assert quick(near) == 0
    assert json.loads(Path("data/preprocess/s.json").read_text())["volumes"].keys() == {"mri", "pet"}


def test_an_output_that_was_changed_since_is_noticed(near, truth):
    assert quick(near) == 0
    write_volume(Path("data/whole_MRI/s.nii.gz"), truth["mri"], grid_affine(VOXEL))
    assert quick(near) == 2
    assert "is there already" in rows(Path("data")).loc["s", "problem"]


def test_a_failure_of_ants_is_that_subjects_problem(near, monkeypatch, capsys):
    def fail(*_):
        """An error as ITK raises it."""
        raise RuntimeError("itk::ExceptionObject\nDescription: no overlap")
    monkeypatch.setattr(registration, "register_head", fail)
    assert quick(near) == 2
    assert "raw/T1/s.nii.gz: ANTs failed: Description: no overlap" in capsys.readouterr().err


def test_a_head_without_a_brain_is_told(near, truth, capsys):
    write_volume(near / "T1" / "s.nii.gz", np.where(truth["cerebellum"], truth["mri"], 0), grid_affine(VOXEL))
    assert quick(near) == 2
    assert "ml was found; is it a T1 MRI of a whole head?" in capsys.readouterr().err


def test_an_mri_whose_values_start_far_below_0_is_remarked(near, truth, monkeypatch):
    def head_with_dark_voxels(image, voxel_mm, nonlinear, folder) -> registration.Head:
        """The true brain, of which a part has values below 0."""
        return registration.Head(image, registration.like(image, truth["brain"]), identity(folder))

    darkest = np.quantile(truth["mri"][truth["brain"]], 0.05)
    monkeypatch.setattr(registration, "register_head", head_with_dark_voxels)
    write_volume(near / "T1" / "s.nii.gz", 900 * (truth["mri"] - darkest), grid_affine(VOXEL))
    assert quick(near) == 0
    assert float(rows(Path("data")).loc["s", "mri_below_0"]) == pytest.approx(0.05, abs=0.01)
    assert "mri_below_0" in rows(Path("data")).loc["s", "remark"]


def test_scans_that_cannot_be_heads_are_told_one_by_one(near, truth, capsys):
    grid = grid_affine(VOXEL)
    write_volume(near / "T1" / "empty.nii", np.zeros((30, 36, 30), np.float32), grid)
    write_volume(near / "T1" / "frames.nii", np.stack([truth["mri"]] * 2, -1), grid)
    write_volume(near / "T1" / "small.nii", truth["mri"][:9], grid)
    sheared = grid.copy()
    sheared[0, 1] = 2
    write_volume(near / "T1" / "sheared.nii", truth["mri"], sheared)
    lost = nib.Nifti1Image(truth["mri"], None)
    nib.save(lost, near / "T1" / "lost.nii")
    write_volume(near / "T1" / "trailing.nii", truth["mri"][..., None], grid)
    assert quick(near) == 2
    told = capsys.readouterr().err
    for words in ("5 of 7 subjects", "empty.nii: all its voxels are 0", "frames.nii: has 2 frames",
                  "over 54x216x180 mm", "sheared.nii: the axes", "lost.nii: has neither sform nor qform"):
        assert words in told
    assert (rows(Path("data")).loc[["s", "trailing"], "problem"] == "").all()


def test_subjects_are_preprocessed_by_several_processes(near, truth, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(near.parent)
    for name in ("t", "u"):
        (near / "T1" / f"{name}.nii.gz").write_bytes(b"no NIfTI")
    (near / "T1" / "s.nii.gz").write_bytes(b"neither")
    assert quick(near, num_workers=2) == 2
    table = rows(Path("data"))
    assert list(table.index) == ["s", "t", "u"]
    assert table["problem"].str.contains("cannot be read as NIfTI").all()


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "")
    for workers, threads in ((0, "8"), (1, "8"), (3, "2"), (16, "1")):
        preprocess.limit_threads(workers)
        assert os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] == threads


# ---------------------------------------------------------------- the BIDS dataset

T1 = "sub-{0}/anat/sub-{0}_space-MNI152NLin2009aSym_res-6mm_desc-preproc_T1w.nii.gz"
SUVR = "sub-{0}/pet/sub-{0}_space-MNI152NLin2009aSym_res-6mm_desc-suvr_pet.nii.gz"
PLACES = {"whole_MRI/s.nii.gz": T1.format("s"), "whole_Abeta/s.nii.gz": SUVR.format("s")}


def test_the_validator_finds_no_error_in_a_cohort_with_its_volumes(near):
    bids = near.parent / "bids"
    (bids / "T1").mkdir(parents=True)
    (bids / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    for name in ("sub-01_ses-2", "sub-01_ses-3_acq-mp_run-1", "037_S_0001"):
        shutil.copy(near / "T1/s.nii.gz", near / f"T1/{name}_T1w.nii.gz")
        shutil.copy(near / "PET/s.nii.gz", near / f"PET/{name}_pet.nii.gz")
    assert quick(near) == 0
    for folder in ("latent_Abeta", "truth", "phantom/whole_MRI", "data_info"):
        Path("data", folder).mkdir(parents=True)
        Path("data", folder, "a.nii.gz").touch()
    found = validate(Path("data"))
    assert found["error"] == []
    assert {code for code, _ in found["warning"]} == {"TOO_FEW_AUTHORS",
                                                      "SIDECAR_KEY_RECOMMENDED SpatialReference"}
    in_mni = "space-MNI152NLin2009aSym_res-6mm_desc"
    assert {path.relative_to("data").as_posix() for path in Path("data").glob("sub-*/**/*.nii.gz")} == {
        T1.format("s"), SUVR.format("s"), T1.format("037S0001"), SUVR.format("037S0001"),
        f"sub-01/ses-2/anat/sub-01_ses-2_{in_mni}-preproc_T1w.nii.gz",
        f"sub-01/ses-2/pet/sub-01_ses-2_{in_mni}-suvr_pet.nii.gz",
        f"sub-01/ses-3/anat/sub-01_ses-3_{in_mni}-preproc_T1w.nii.gz",
        f"sub-01/ses-3/pet/sub-01_ses-3_{in_mni}-suvr_pet.nii.gz"}


def test_the_validator_would_find_a_volume_with_a_wrong_name(near):
    assert quick(near) == 0
    path = Path("data") / SUVR.format("s")
    path.rename(path.with_name("sub-s_acq-x_desc-suvr_pet.nii.gz"))
    assert validate(Path("data"))["error"]


def test_a_volume_of_the_dataset_is_the_file_that_training_reads(near):
    assert quick(near) == 0
    for view, published in PLACES.items():
        assert (Path("data") / view).samefile(Path("data") / published)
        assert not (Path("data") / published).is_symlink()


def test_on_a_disk_without_hard_links_it_is_a_copy(near, monkeypatch):
    def refuse(*_):
        """As FAT answers."""
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(os, "link", refuse)
    assert quick(near) == 0
    for view, published in PLACES.items():
        assert (Path("data") / view).read_bytes() == (Path("data") / published).read_bytes()
        assert not (Path("data") / view).samefile(Path("data") / published)
    monkeypatch.setattr(subject, "make_volumes", None)
    assert quick(near) == 0


@pytest.mark.parametrize("lost", [*PLACES, *PLACES.values(), SUVR.format("s").replace(".nii.gz", ".json"),
                                  "sub-s", "whole_Abeta"])
def test_what_is_lost_in_one_place_is_laid_there_again_from_the_other(near, monkeypatch, lost):
    """So is all of the dataset, beside volumes of a version that did not make one."""
    assert quick(near) == 0
    before = contents(Path("data"))
    path = Path("data") / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(subject, "make_volumes", None)
    assert quick(near) == 0
    assert contents(Path("data")) == before


@pytest.mark.parametrize("place", [T1.format("s"), SUVR.format("s")])
def test_a_volume_of_the_dataset_that_was_changed_is_noticed(near, truth, place):
    assert quick(near) == 0
    path = Path("data") / place
    path.unlink()
    write_volume(path, truth["mri"], grid_affine(VOXEL))
    assert quick(near) == 2
    assert "is there already" in rows(Path("data")).loc["s", "problem"]
    assert quick(near, overwrite=True) == 0
    for view, published in PLACES.items():
        assert (Path("data") / view).samefile(Path("data") / published)


def test_sidecars_say_what_a_volume_is_made_from_and_what_its_values_are(near):
    home = near.parent / "study"
    for folder, name in (("anat", "T1w"), ("pet", "trc-18FFBB_pet")):
        path = home / f"sub-1/{folder}/sub-1_{name}.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copy(near / ("T1" if folder == "anat" else "PET") / "s.nii.gz", path)
    (home / "dataset_description.json").write_text("{}")
    preprocess.preprocess_scans(preprocess.PreprocessSettings(
        raw=str(home), image_size=SIZE, pet_max_suvr=5.0, num_workers=0,
        reference_mask=str(near / "cerebellum.nii")))
    name = SUVR.format("1").replace("sub-1_space", "sub-1_trc-18FFBB_space").replace(".nii.gz", ".json")
    pet = json.loads((Path("data") / name).read_text())
    assert pet["Sources"] == ["bids:raw:sub-1/pet/sub-1_trc-18FFBB_pet.nii.gz",
                              "bids:raw:sub-1/anat/sub-1_T1w.nii.gz"]
    assert pet["LargestSUVR"] == 5 and pet["Units"] == "SUVR divided by 5"
    mri = json.loads((Path("data") / T1.format("1").replace(".nii.gz", ".json")).read_text())
    assert mri["Sources"] == pet["Sources"][1:] and mri["Resolution"] == "6 mm isotropic"
    links = json.loads(Path("data/dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": "../study"}
    assert validate(Path("data"))["error"] == []


def test_ids_that_give_no_bids_name_of_their_own_are_refused_at_once(near, capsys):
    for name in ("a_1", "A-1", "b", "sub--", "c" * 170, "d" * 140):
        shutil.copy(near / "T1/s.nii.gz", near / f"T1/{name}.nii.gz")
    assert quick(near) == 2
    error = capsys.readouterr().err
    assert "3 problem(s)" in error and "A-1, a_1 would have one name" in error
    assert "sub-- has no letter" in error and "ccc... is too long" in error
    assert not Path("data").exists()


def test_a_dataset_of_somebody_else_is_no_place_for_a_cohort(near, capsys):
    Path("data").mkdir()
    Path("data/dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    assert quick(near) == 2
    assert "BIDS dataset that il_cldm has not made" in capsys.readouterr().err
    assert len(list(Path("data").iterdir())) == 1


# ---------------------------------------------------------------- refused before anything is done

def test_without_a_reference_mask_pets_are_divided_by_the_templates_cerebellum(near, capsys):
    assert run(near, Path("data")) == 0
    said = "divided by the uptake in the whole cerebellum of plain regions of the MNI152 template"
    assert said in capsys.readouterr().out
    automatic = voxels(Path("data"), "whole_Abeta", "s")
    assert quick(near, overwrite="true") == 0
    ratio = automatic.sum() / voxels(Path("data"), "whole_Abeta", "s").sum()
    assert ratio == pytest.approx(1, abs=0.03)             # the phantom's own cerebellum is nearly the same
    assert run(near / "T1", Path("other")) == 0
    assert said not in capsys.readouterr().out             # an MRI alone needs none
    assert run(near, Path("third"), regions="centiloid") == 2
    assert "pip install --no-deps amypet==1.6.0" in capsys.readouterr().err
    assert not Path("third").exists()


def test_wrong_names_are_all_told_at_once(near, truth, capsys):
    shutil.copy(near / "T1" / "s.nii.gz", near / "T1" / "s_T1w.nii.gz")
    shutil.copy(near / "T1" / "s.nii.gz", near / "T1" / "a b.nii.gz")
    shutil.copy(near / "PET" / "s.nii.gz", near / "PET" / "alone.nii.gz")
    assert quick(near) == 2
    told = capsys.readouterr().err
    for words in ("3 problem(s)", "both are s", "'a b' is not an ID", "alone.nii.gz: has no T1 MRI"):
        assert words in told


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_scans_says_how_to_lay_them_out(near, capsys, folder):
    (near.parent / "empty").mkdir()
    assert run(near.parent / folder, Path("data")) == 2
    assert f"{folder}" in capsys.readouterr().err
    assert not Path("data").exists()


def test_a_grid_of_another_template_is_refused(near, capsys):
    with pytest.raises(SystemExit) as stop:
        quick(near, image_size=(91, 109, 91))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    for words in ("image_size (91, 109, 91)", "181 x 217 x 181 voxels of 1 mm", "30x36x30"):
        assert words in message
    assert not Path("data").exists()


def test_without_ants_the_command_says_what_to_install(near, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert quick(near) == 2
    assert "pip install -r requirements-preprocess.txt" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(near):
    Path("data/preprocess").mkdir(parents=True)
    with FolderLock(Path("data/preprocess")):
        assert quick(near) == 7


def test_the_reference_region_stands_alone_only_here():
    assert preprocess.PreprocessSettings(reference_mask="cerebellum.nii").reference_mask
    with pytest.raises(ValueError, match="go together"):
        Config(reference_mask="cerebellum.nii")


def test_all_wrong_settings_are_told_at_once(capsys):
    wrong = {"image_size": (90, 108, 91), "pet_fwhm": 99, "registration": "rigid", "num_workers": -1}
    with pytest.raises(SystemExit) as stop:
        main.main(["preprocess", *arguments(wrong)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    for part in ("error: 4 problem(s)", "image_size (90, 108, 91)", "pet_fwhm 99.0 must be",
                 "registration 'rigid'", "num_workers -1"):
        assert part in message
