"""Regions that no file of the user's gives: the template's, those of an installed package, numbers of a label
image; and what the cohort decides where the settings say auto."""
import importlib
import json
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, LISTS, SHAPE, TINY, arguments, write_volume
from nibabel.affines import from_matvec

import main
from config import Config
from experiment import automatic
from experiment.automatic import separation
from experiment.saved import parse_for_experiment, read_settings
from imaging.centiloid_regions import FILES, centiloid_regions
from imaging.grids import Crop
from imaging.mni_regions import lies_in_mni_space, mni_regions
from imaging.regions import read_mask, share_inside, split_numbers
from newscans.synthesize import SynthesisSettings
from newscans.trained import load_trained
from utils import InputError

CROP = Crop(TINY["crop_start"], TINY["volume_size"])
WHOLE = Crop((0, 0, 0), SHAPE)
AT_1_MM = from_matvec(np.diag([-1, 1, 1]), (90, -126, -72))          # as SPM stores it, left first


# ---------------------------------------------------------------- of the template

def test_the_templates_regions_are_symmetric_apart_and_of_a_plausible_size():
    cortex, cerebellum = (np.asarray(image.dataobj) > 0 for image in mni_regions().values())
    assert not (cortex & cerebellum).any()
    for mask in (cortex, cerebellum):
        np.testing.assert_array_equal(mask, mask[::-1])    # x = 0 is the middle of the template's grid
    assert 200_000 < cortex.sum() < 350_000                # mm3; the Centiloid project's has 233.9 ml
    assert 100_000 < cerebellum.sum() < 150_000            # and its cerebellum 117.6 ml
    assert mni_regions() is mni_regions()


@pytest.mark.parametrize(("place", "expected"), [
    ((0, 45, 10), "cortex_mask"), ((6, -55, 30), "cortex_mask"), ((50, -50, 36), None),
    ((30, -65, -40), "reference_mask"), ((0, -28, -35), None), ((20, -10, 8), None), ((20, -90, 0), None)])
def test_places_that_an_atlas_knows_belong_to_the_right_region(place, expected):
    """Anterior cingulate, precuneus, cerebellum; pons, thalamus and occipital pole belong to none."""
    found = []
    for name, image in mni_regions().items():
        i, j, k = np.round(np.linalg.inv(image.affine) @ (*place, 1)).astype(int)[:3]
        if (np.asarray(image.dataobj)[i - 3:i + 4, j - 3:j + 4, k - 3:k + 4] > 0).any():
            found.append(name)
    assert expected in found if expected else "reference_mask" not in found


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ((0, 0, 0), True),
        ((10, -10, 5), True),
        ((0, 0, 90), False),
        ((200, 0, 0), False),
        ((0, -150, 0), False),
    ],
)
def test_a_crop_lies_in_mni_space_if_it_holds_the_places_of_the_regions(shift, expected):
    moved = AFFINE.copy()
    moved[:3, 3] += shift
    assert lies_in_mni_space(moved, CROP) is expected
    paper = from_matvec(np.eye(3), (-90, -126, -72) + np.array(shift))
    assert lies_in_mni_space(paper, Crop((10, 18, 10), (160, 192, 160))) is expected


# ---------------------------------------------------------------- of the Centiloid project

def write_package(folder, cortex: int = 233_883, cerebellum: int = 117_613) -> None:
    """A made-up package with masks of so many voxels of 1 mm, whose code must not be run."""
    masks = folder / "amypet" / "data" / "CL_masks"
    masks.mkdir(parents=True)
    (folder / "amypet" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for (name, _), count in zip(FILES.values(), (cortex, cerebellum), strict=True):
        voxels = np.zeros(181 * 217 * 181, np.int16)
        voxels[4_000_000 if "ctx" in name else 1_500_000:][:count] = 1
        write_volume(masks / name, voxels.reshape(181, 217, 181, order="F"), AT_1_MM)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder on the path of modules for a made-up package."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site").mkdir()
    importlib.invalidate_caches()
    return tmp_path / "site"


def test_the_centiloid_projects_masks_are_read_from_the_package_without_importing_it(package):
    write_package(package)
    images = centiloid_regions()
    assert {name: int(image.get_fdata().sum()) for name, image in images.items()} == {
        "cortex_mask": 233_883, "reference_mask": 117_613}
    assert "amypet" not in sys.modules
    stored = nib.load(package / "amypet/data/CL_masks/voi_ctx_1mm.nii")
    fine, whole = from_matvec(np.eye(3), (-90, -126, -72)), Crop((0, 0, 0), (181, 217, 181))
    found = read_mask(images["cortex_mask"], fine, whole)
    np.testing.assert_array_equal(found, np.asarray(stored.dataobj)[::-1] > 0)  # x to the right
    assert share_inside(images["cortex_mask"], fine, whole) == 1


@pytest.mark.parametrize(("counts", "expected"), [
    ((233_883 - 700, 117_613), "has 233.2 ml; expected 233.9 ml"),
    ((233_883, 117_613 + 1000), "has 118.6 ml; expected 117.6 ml"), ((0, 117_613), "has 0.0 ml")])
def test_masks_of_another_volume_are_refused(package, counts, expected):
    write_package(package, *counts)
    with pytest.raises(InputError, match="--force-reinstall installs the version that was tested") as error:
        centiloid_regions()
    assert expected in str(error.value)


def test_a_package_without_its_files_and_none_at_all_say_the_command(package):
    with pytest.raises(InputError, match=r"pip install --no-deps amypet==1\.6\.0 "):
        centiloid_regions()
    (package / "amypet").mkdir()
    (package / "amypet" / "__init__.py").write_text("")
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"2 file\(s\) of amypet cannot be used"):
        centiloid_regions()


# ---------------------------------------------------------------- numbers of a label image

@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aseg.nii.gz:7,8,46-47", ("aseg.nii.gz", "7,8,46-47")),
        ("aseg.nii.gz", ("aseg.nii.gz", "")),
        ("C:\\masks\\aseg.nii.gz", ("C:\\masks\\aseg.nii.gz", "")),
        ("C:123", ("C:123", "")),
        ("C:\\masks\\aseg.nii.gz:7", ("C:\\masks\\aseg.nii.gz", "7")),
        ("D:/a b/x.nii: 7, 8", ("D:/a b/x.nii", "7, 8")),
        ("/data/run:2/aseg.nii.gz", ("/data/run:2/aseg.nii.gz", "")),
        ("x.nii:a", ("x.nii:a", "")),
        ("/data/run:2/aseg.nii.gz:3", ("/data/run:2/aseg.nii.gz", "3")),
        ("x.nii:", ("x.nii:", "")),
    ],
)
def test_a_colon_parts_numbers_from_the_file_and_nothing_else(text, expected):
    assert split_numbers(text) == expected


@pytest.fixture
def labels(tmp_path):
    """A label image as FreeSurfer numbers its regions."""
    voxels = np.zeros(SHAPE, np.int32)
    for i, label in enumerate((7, 8, 46, 47, 1003, 1006, 1009, 2003)):
        voxels[5 + i, 8:10, 8:10] = label
    write_volume(tmp_path / "aseg.nii.gz", voxels)
    return tmp_path / "aseg.nii.gz", voxels


@pytest.mark.parametrize(
    ("numbers", "members"),
    [
        ("7", [7]),
        ("7,8,46,47", [7, 8, 46, 47]),
        ("46-47", [46, 47]),
        ("1003,1006-1009,2003", [1003, 1006, 1009, 2003]),
        (" 7 , 8", [7, 8]),
        ("1000-1999", [1003, 1006, 1009]),
        ("7,7", [7]),
    ],
)
def test_labels_by_number_and_range_are_the_mask(labels, numbers, members):
    path, voxels = labels
    expected = np.isin(voxels, members)
    np.testing.assert_array_equal(read_mask(f"{path}:{numbers}", AFFINE, WHOLE, "cortex_mask"), expected)
    assert share_inside(f"{path}:{numbers}", AFFINE, WHOLE) == 1


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ("7,9", "no voxel has the label 9"),
        ("20-40", "no voxel has the label 20-40"),
        ("9-7", "'9-7' is neither"),
        ("0", "'0' is neither a label from 1"),
        ("7,,8", "'' is neither"),
        ("7-8-9", "'7-8-9' is neither"),
        ("12345678", "'12345678' is neither"),
        ("1,2,3,4,5,6,9,10,11,12,13,14", "beside 0: 7, 8, 46, 47, 1003"),
    ],
)
def test_numbers_that_name_nothing_are_refused_with_what_there_is(labels, numbers, expected):
    with pytest.raises(InputError, match="cortex_mask") as error:
        read_mask(f"{labels[0]}:{numbers}", AFFINE, WHOLE, "cortex_mask")
    assert expected in str(error.value)
    assert len(str(error.value)) < 900


def test_a_label_image_without_numbers_says_how_to_give_them(labels):
    with pytest.raises(InputError, match=r"give the numbers of the region behind a colon, such as "
                                          r"aseg\.nii\.gz:7,8"):
        read_mask(labels[0], AFFINE, WHOLE, "reference_mask")


def test_a_file_of_that_very_name_is_taken_and_freesurfers_own_format_is_told(tmp_path, labels):
    odd = tmp_path / "mask:12"
    mask = tmp_path / "mask.nii"
    write_volume(mask, np.ones(SHAPE, np.uint8))
    mask.rename(odd)
    assert read_mask(odd, AFFINE, WHOLE).all()
    with pytest.raises(InputError, match=r"mri_convert aparc\+aseg\.mgz aparc\+aseg\.nii\.gz"):
        read_mask("aparc+aseg.mgz:1003", AFFINE, WHOLE)


# ---------------------------------------------------------------- what the cohort decides

@pytest.mark.parametrize(("labels", "suvr", "expected"), [
    ([0, 0, 1, 1], [1.0, 1.1, 1.2, 1.3], 1.0), ([0, 1, 0, 1], [1.0, 1.1, 1.2, 1.3], 0.75),
    ([1, 1, 0, 0], [1.0, 1.1, 1.2, 1.3], 0.0), ([0, 0, 0], [1.0, 1.1, 1.2], 0.0)])
def test_the_separation_of_the_labels_is_the_share_of_pairs_in_the_right_order(labels, suvr, expected):
    assert separation(np.array(labels), np.array(suvr)) == pytest.approx(expected)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Leave out the pictures of a run, which take most of its time."""
    for name in ("plot_history", "plot_shown_scans", "plot_comparison"):
        monkeypatch.setattr(main, name, lambda *_: None)


AUTO = TINY | {"regions": "auto", "exp": "r", "aae_epochs": 1, "ldm_epochs": 1}


def run(*words: str, **settings) -> int:
    """Exit code of main.py with these words and settings of a tiny experiment."""
    return main.main([*arguments(AUTO | settings), *words])


def saved(root) -> dict:
    """The settings that the experiment wrote down."""
    return json.loads((root / "result" / "r" / "config.json").read_text())["settings"]


def test_without_masks_there_is_an_suvr_and_it_is_the_label_where_it_tells_the_labels_apart(root, capsys):
    """The tiny cohort's amyloid lies at the front: its SUVR separates the labels."""
    assert run("--stages", "check", "aae", "encode", "ldm", "test", "tables") == 0
    said = capsys.readouterr().out
    assert said.count("no masks are given: the SUVR is measured in plain regions of the MNI152 template") == 1
    assert "apart with AUC 1.000 >= 0.85: label_in_training suvr, label_at_sampling matched" in said
    assert "SUVR: plain regions of the MNI152 template (--regions mni); data range 1" in said
    settings = saved(root)
    assert [settings[name] for name in ("regions", "label_in_training", "label_at_sampling")] == [
        "mni", "suvr", "matched"]
    assert (root / "result/r/uptake.csv").exists()
    assert "cortex and cerebellum: plain regions of the MNI152 template" in (
        root / "result/tables/image_quality.csv").read_text()
    assert run("--stages", "test") == 0                    # the same command goes on, without reading again
    assert "apart with AUC" not in capsys.readouterr().out
    trained = load_trained(Config(**read_settings("r")), 0.0)          # new scans are measured in them too
    assert trained.measurement.files.kind == "mni"
    assert trained.calibration is not None
    assert run("--stages", "test", regions="none") == 2  # the training had an SUVR
    assert 'label_in_training: "suvr" -> "true"' in capsys.readouterr().err


def test_where_the_suvr_does_not_tell_the_labels_apart_the_class_is_the_label(root, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(automatic, "separation", lambda labels, suvr: 0.849)
        assert run("--stages", "check", "aae", "encode", "ldm") == 0
    said = capsys.readouterr().out
    assert "apart with AUC 0.849 < 0.85: label_in_training true, label_at_sampling mixed" in said
    assert saved(root)["label_in_training"] == "true"
    assert run("--stages", "test") == 0                    # a trained stage 2 stays what it is
    assert saved(root)["label_in_training"] == "true"


def test_a_choice_of_the_users_is_not_changed(root, capsys):
    assert run("--stages", "aae", regions="mni", label_in_training="true") == 0
    assert "apart with AUC" not in capsys.readouterr().out
    assert (saved(root)["regions"], saved(root)["label_at_sampling"]) == ("mni", "mixed")


def test_an_experiment_from_before_there_were_automatic_regions_goes_on_without(root, capsys):
    assert run("--stages", "aae", "encode", "ldm", regions="none") == 0
    path = root / "result" / "r" / "config.json"
    content = json.loads(path.read_text())
    del content["settings"]["regions"]
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert run("--stages", "test") == 0
    said = capsys.readouterr().out
    assert (
        "regions none, label_in_training true, label_at_sampling mixed: as in the training of result/r"
        in said
    )
    assert not (root / "result/r/uptake.csv").exists()


def test_a_phantom_trained_without_its_regions_is_told_what_differs(tmp_path, monkeypatch, capsys):
    """Its label follows from its own regions: that of the training without them is another one."""
    monkeypatch.chdir(tmp_path)
    phantom = {"data_dir": "data/phantom", "phantom_subjects": (6, 2, 2), "phantom_voxel": 8}
    assert run("--stages", "aae", "encode", "ldm", regions="none", **phantom) == 0
    assert run("--stages", "test", regions="auto", **phantom) == 2
    said = capsys.readouterr().err
    assert 'label_in_training: "true" -> "suvr"' in said and "auto means" not in said


def test_masks_given_to_a_tool_count_instead_of_the_regions_of_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "result/e/config.json"
    path.parent.mkdir(parents=True)
    words = ["--exp", "e", "--mri", "m.nii", "--out", "o", "--cortex_mask", "c.nii", "--reference_mask",
             "r.nii"]
    for regions in ("none", "mni"):
        path.write_text(Config(exp="e", regions=regions, label_in_training="true").to_json())
        _, cfg = parse_for_experiment(SynthesisSettings, words, "main.py synthesize", "")
        assert (cfg.regions, cfg.cortex_mask) == ("auto", "c.nii")


def test_a_cohort_outside_mni_space_has_no_automatic_regions(root, capsys):
    brain = np.zeros(SHAPE, np.uint8)
    brain[4:18, 4:24, 4:18] = 1
    write_volume(root / "brain.nii.gz", brain, AFFINE + np.pad([[300.0]], ((0, 3), (3, 0))))
    for path in (root / "data").rglob("*.nii*"):
        image = nib.load(path, mmap=False)
        voxels, affine = image.get_fdata(dtype=np.float32), image.affine.copy()
        affine[0, 3] += 300
        path.unlink()
        write_volume(path, voxels, affine)
    assert run("--stages", "aae", brain_mask="brain.nii.gz") == 0
    assert (
        "regions none, label_in_training true, label_at_sampling mixed: the crop does not hold the places"
        in (capsys.readouterr().out)
    )
    assert run("--stages", "aae", brain_mask="brain.nii.gz", regions="mni", exp="s") == 2
    assert (
        "cortex_mask of plain regions of the MNI152 template (--regions mni): nothing of it lies inside the "
        "crop; is the cohort in MNI space?" in capsys.readouterr().err
    )


def take_cerebellum(root, scan: str) -> None:
    """Set the uptake of a PET to 0 below z = -8 mm."""
    path = root / "data" / "whole_Abeta" / f"{scan}.nii"
    image = nib.load(path, mmap=False)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[:, :, :8] = 0
    write_volume(path, voxels, image.affine)


def test_a_pet_without_cerebellum_leaves_the_automatic_regions_out(root, capsys):
    take_cerebellum(root, LISTS["test"][0])
    assert run("--stages", "check", "aae") == 0
    assert ("regions none, label_in_training true, label_at_sampling mixed: no uptake in the template's "
            "cerebellum in the PET of s09") in capsys.readouterr().out


def test_a_pet_without_uptake_in_regions_that_were_asked_for_is_named_and_there_is_no_auc(root, capsys):
    take_cerebellum(root, LISTS["train"][0])
    assert run("--stages", "check", "aae", regions="mni") == 0
    said = capsys.readouterr().out
    assert (
        "regions mni, label_in_training true, label_at_sampling mixed: no uptake in the regions mni in the "
        "PET "
        f"of {LISTS['train'][0]}" in said
    )
    assert "AUC" not in said


def test_the_check_alone_says_which_regions_it_will_take(root, capsys):
    assert run("--stages", "check") == 0
    assert "(--regions mni; --regions none leaves it out; docs/status.md)" in capsys.readouterr().out
    assert not (root / "result").exists()
    assert run("--stages", "check", "aae", regions="centiloid") == 2
    assert "pip install --no-deps amypet==1.6.0" in capsys.readouterr().err
