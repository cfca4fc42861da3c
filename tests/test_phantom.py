"""The phantom cohort: what is written, what is true about it, and what is refused."""
import json
import os
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dataset import SPLITS
from phantom import anatomy, uptake
from phantom import cohort as phantom
from phantom.anatomy import load_template
from phantom.cohort import build_phantom
from phantom.covariates import draw_covariates
from phantom.sites import assign
from phantom.uptake import Subject, draw_subject, simulate, simulate_anatomy, standard_load

SUBJECTS, VOXEL_MM, LINK, SEED = (5, 3, 4), 8, 0.6, 1
SHAPE = (22, 27, 22)
AFFINE = [[8, 0, 0, -86.5], [0, 8, 0, -122.5], [0, 0, 8, -68.5], [0, 0, 0, 1]]


def read(path: Path) -> np.ndarray:
    """Voxels of a volume."""
    return nib.load(path).get_fdata(dtype=np.float32)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a cohort by its path under root."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def volumes(root: Path) -> dict[str, np.ndarray]:
    """Every volume of a cohort by its path under root."""
    return {str(path.relative_to(root)): read(path) for path in sorted(root.rglob("*.nii.gz"))}


def refuse_network(*_, **__):
    """A stand-in for every way to the network."""
    raise AssertionError("the phantom must not use the network")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A cohort built with every way to the network blocked."""
    root = tmp_path_factory.mktemp("phantom") / "new" / "cohort"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse_network)
        patch.setattr(socket, "getaddrinfo", refuse_network)
        build_phantom(root, SUBJECTS, VOXEL_MM, LINK, SEED)
    return root


@pytest.fixture(scope="module")
def template() -> anatomy.Template:
    """The template of the cohort."""
    return load_template(VOXEL_MM)


def test_the_layout_is_a_users_own_plus_the_truth(cohort):
    names = [f"phantom{i:03d}" for i in range(1, 13)]
    info = pd.read_csv(cohort / "data_info" / "data_info.csv")
    lists = {split: (cohort / "data_info" / f"{split}.txt").read_text().split() for split in phantom.SPLITS}
    assert list(info.columns) == ["ID", "label", "age", "sex", "apoe4", "ptau217", "mmse", "site"]
    assert set(info["site"]) == {"site1"}
    assert list(info["ID"]) == names
    assert [len(ids) for ids in lists.values()] == list(SUBJECTS) and sum(lists.values(), []) == names
    for folder, ids in (("whole_MRI", names), ("whole_Abeta", names), ("truth/oracle", names[5:])):
        assert sorted(path.name for path in (cohort / folder).iterdir()) == [f"{name}.nii.gz" for name in ids]
    truth = pd.read_csv(cohort / "truth" / "truth.csv")
    assert list(truth.columns) == ["ID", "label", "suvr", "load", "atrophy", "discordant"]
    assert not truth["discordant"].any()
    assert truth["label"].equals(info["label"])
    settings = json.loads((cohort / "phantom.json").read_text())
    assert settings["note"] == "digital phantom, not patient data"
    assert settings["phantom_subjects"] == list(SUBJECTS)
    assert not list(cohort.parent.glob("*unfinished*"))


def test_half_of_each_split_is_positive(cohort):
    labels = pd.read_csv(cohort / "data_info" / "data_info.csv").set_index("ID")["label"]
    positives = []
    for split in phantom.SPLITS:
        positives.append(labels[(cohort / "data_info" / f"{split}.txt").read_text().split()].sum())
    assert positives == [3, 1, 2]                          # of 5, 3 and 4: an odd one rounded up, then down


def test_the_order_of_the_labels_depends_on_the_seed_alone():
    numbers = {"train": 40, "validation": 10, "test": 10}
    members = assign(numbers, 0)
    assert members == assign(numbers, 0) and members != assign(numbers, 1)
    assert 0 < sum(member.label for member in members[:20]) < 20


def test_volumes_share_one_mni_grid_and_stay_within_range(cohort):
    for path in cohort.rglob("*.nii.gz"):
        image = nib.load(path)
        assert image.shape == SHAPE and nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.array_equal(image.affine, AFFINE)
        assert image.header["sform_code"] == image.header["qform_code"] == 4
        assert image.get_data_dtype() == (np.uint8 if path.parent.name == "truth" else np.float32)
        voxels = np.asarray(image.dataobj)
        edge = np.concatenate([voxels[[0, -1]].ravel(), voxels[:, [0, -1]].ravel(), voxels[:, :, -1].ravel()])
        assert voxels.min() >= 0 and voxels.max() <= 1 and not edge.any()
        assert (voxels == 0).mean() > 0.3                  # background is exactly 0


@pytest.mark.parametrize("voxel_mm, shape", [(1, (181, 217, 181)), (2, (90, 108, 90)), (4, (45, 54, 45))])
def test_the_grid_is_the_papers_field_of_view(voxel_mm, shape):
    assert tuple(anatomy.FIELD_OF_VIEW // voxel_mm) == shape
    if voxel_mm == 4:
        assert load_template(4).brain.shape == shape
        assert np.array_equal(load_template(4).affine[:3, 3], [-88.5, -124.5, -70.5])


def test_the_template_stands_where_its_affine_says(template):
    grid = np.stack(np.meshgrid(*template.axes, indexing="ij"))
    centre = (grid * template.brain).sum((1, 2, 3)) / template.brain.sum()
    assert np.allclose(centre, [0, -20, 8], atol=4)        # the centre of the MNI brain
    assert abs(template.brain.sum() * 0.512 - 1882) < 20   # ml, the template's mask at 1 mm


def test_the_written_pet_measures_the_true_suvr(cohort):
    cortex, cerebellum = (read(cohort / "truth" / f"{name}.nii.gz") > 0 for name in ("cortex", "cerebellum"))
    for row in pd.read_csv(cohort / "truth" / "truth.csv").itertuples():
        pet = read(cohort / "whole_Abeta" / f"{row.ID}.nii.gz").astype(float)
        assert pet[cortex].mean() / pet[cerebellum].mean() == pytest.approx(row.suvr, abs=1e-4)
        assert pet[cerebellum].mean() * uptake.PET_SCALE == pytest.approx(1, abs=1e-4)
        assert row.load == pytest.approx(row.suvr - 1)


def test_the_regions_are_where_anatomy_has_them(template):
    def at(mask, *mm):
        """The mask at a place in MNI millimetres."""
        return mask[tuple(np.rint((np.array(mm) - template.affine[:3, 3]) / VOXEL_MM).astype(int))]

    assert not (template.cortex & template.cerebellum).any()
    assert at(template.cerebellum, 30, -66, -38) and at(template.cerebellum, -30, -66, -38)
    assert not at(template.cerebellum, 0, -26, -34)        # pons
    assert not at(template.cerebellum, 10, -90, 0)         # occipital pole
    assert at(template.cortex, 4, 52, 12) and at(template.cortex, -4, 52, 12)   # medial frontal
    assert at(template.cortex, 6, -58, 40)                 # precuneus
    assert at(template.cortex, 60, -30, -6)                # middle temporal
    assert not at(template.cortex, 10, -90, 0)             # occipital pole
    assert not at(template.cortex, 38, -22, 58)            # hand knob
    assert at(template.amyloid, 30, -66, -38) < 0.01 < 0.9 < at(template.amyloid, 4, 52, 12)


def test_the_split_list_is_that_of_the_dataset():
    assert phantom.SPLITS == SPLITS                        # written twice: the phantom imports no dataset


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    build_phantom(tmp_path / "again", SUBJECTS, VOXEL_MM, LINK, SEED)
    assert contents(cohort) == contents(tmp_path / "again")


def test_another_seed_gives_other_subjects(cohort, tmp_path):
    build_phantom(tmp_path / "other", (2, 2, 2), VOXEL_MM, LINK, SEED + 1)
    for name, voxels in volumes(tmp_path / "other").items():
        if name.startswith("whole"):
            assert not np.array_equal(voxels, volumes(cohort)[name])


@pytest.mark.parametrize("link", [0.0, 0.6, 0.9])
def test_link_is_the_correlation_of_atrophy_with_load(link):
    rng = np.random.default_rng(0)
    drawn = pd.DataFrame([draw_subject(rng, i % 2, link) for i in range(6000)])
    assert np.corrcoef(drawn["atrophy"], drawn["load"])[0, 1] == pytest.approx(link, abs=0.03)
    assert drawn["atrophy"].mean() == pytest.approx(0, abs=0.04)
    assert drawn["atrophy"].std() == pytest.approx(1, abs=0.03)
    assert drawn.groupby("label")["suvr"].mean().tolist() == pytest.approx([1.05, 1.45], abs=0.01)
    assert drawn["suvr"].between(0.9, 1.87).all() and drawn["age"].mean() == pytest.approx(72, abs=0.5)
    assert np.corrcoef(drawn["age"], drawn["atrophy"])[0, 1] == pytest.approx(0.4, abs=0.04)
    assert (drawn["sex"] == "M").mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("marker", [0.0, 0.75])
def test_covariates_follow_amyloid_or_atrophy_as_strongly_as_stated(marker):
    rng = np.random.default_rng(0)
    subjects = [draw_subject(rng, i % 2, 0.0) for i in range(8000)]
    drawn = pd.DataFrame(subjects).join(pd.DataFrame([draw_covariates(rng, one, marker) for one in subjects]))
    assert np.corrcoef(drawn["ptau217"], drawn["load"])[0, 1] == pytest.approx(marker, abs=0.03)
    assert np.corrcoef(drawn["mmse"], drawn["atrophy"])[0, 1] == pytest.approx(-0.6, abs=0.05)
    assert abs(np.corrcoef(drawn["mmse"], drawn["load"])[0, 1]) < 0.04        # without a link
    assert drawn["ptau217"].mean() == pytest.approx(0.60, abs=0.01) and drawn["ptau217"].min() >= 0.05
    assert drawn["mmse"].between(0, 30).all() and drawn["mmse"].dtype.kind == "i"
    for label, shares in {0: [0.75, 0.22, 0.03], 1: [0.40, 0.45, 0.15]}.items():
        found = drawn.loc[drawn["label"] == label, "apoe4"].value_counts(normalize=True).sort_index()
        assert found.tolist() == pytest.approx(shares, abs=0.03)


def test_atrophy_of_discordant_subjects_says_nothing_and_the_others_keep_their_images(tmp_path, cohort):
    build_phantom(tmp_path / "half", SUBJECTS, VOXEL_MM, LINK, SEED, discordant=0.5)
    truth = pd.read_csv(tmp_path / "half" / "truth" / "truth.csv").set_index("ID")
    before = pd.read_csv(cohort / "truth" / "truth.csv").set_index("ID")
    concordant = truth.index[truth["discordant"] == 0]
    assert 0 < len(concordant) < len(truth)
    assert truth["suvr"].equals(before["suvr"])
    unlinked = (
        truth["atrophy"] - (before["atrophy"] - LINK * standard_load(before["suvr"])) / 0.8
    ).abs() < 1e-9
    assert unlinked.equals(truth["discordant"] == 1)       # sqrt(1 - LINK^2) is 0.8
    for name, voxels in volumes(tmp_path / "half").items():
        is_same = np.array_equal(voxels, read(cohort / name))
        if name.startswith("whole"):
            assert is_same == (Path(name).name.removesuffix(".nii.gz") in concordant), name


def test_atrophy_takes_grey_matter_and_widens_the_ventricles(template):
    young, old = (simulate_anatomy(template, np.random.default_rng(0), atrophy) for atrophy in (-1.5, 1.5))
    cortex = template.cortex
    assert old["t1"][cortex].mean() < 0.97 * young["t1"][cortex].mean()
    assert old["baseline"][cortex].sum() < 0.85 * young["baseline"][cortex].sum()
    x, y, z = np.meshgrid(*template.axes, indexing="ij")
    ventricles = (np.abs(x) < 30) & (np.abs(y + 10) < 40) & (np.abs(z - 14) < 16)
    assert old["csf"][ventricles].sum() > 1.2 * young["csf"][ventricles].sum()
    assert old["brain"].sum() == pytest.approx(young["brain"].sum(), rel=0.02)


def test_one_sd_of_atrophy_costs_the_same_cortex_at_any_voxel_size(template):
    for at in (template, load_template(4)):
        csf = (at.brain - at.grey - at.white).clip(0)
        cortical = at.thinning / at.thinning.max()
        loss = 1 - (anatomy.thin(at.grey, csf, at.thinning) * cortical).sum() / (at.grey * cortical).sum()
        assert loss == pytest.approx(anatomy.CORTEX_LOSS, abs=1e-3)


def test_a_subject_is_the_same_at_any_voxel_size(template):
    fine = load_template(4)
    subject = draw_subject(np.random.default_rng(3), 1, LINK)
    pets = [simulate(at, np.random.default_rng(3), subject, LINK)[1] for at in (template, fine)]
    halved = pets[1][:44, :54, :44].reshape(22, 2, 27, 2, 22, 2).mean((1, 3, 5))
    brain = template.brain > 0.9
    assert np.corrcoef(pets[0][brain], halved[brain])[0, 1] > 0.8


def test_the_oracle_is_closer_to_the_pet_than_the_mean_pet(template):
    rng = np.random.default_rng(0)
    brain, pets, oracles, drawn = template.brain > 0.5, [], [], []
    for i in range(40):
        drawn.append(draw_subject(rng, i % 2, LINK))
        _, pet, oracle = simulate(template, rng, drawn[-1], LINK)
        pets.append(pet[brain])
        oracles.append(oracle)
    error_of_oracle = np.mean((np.stack([o[brain] for o in oracles]) - pets) ** 2)
    error_of_mean = np.var(pets, axis=0).mean()
    assert error_of_oracle < 0.7 * error_of_mean

    suvr = [o[template.cortex].mean() / o[template.cerebellum].mean() for o in oracles]
    assert np.corrcoef(suvr, [s.atrophy for s in drawn])[0, 1] > 0.9


def test_without_a_link_the_oracle_is_the_prior_mean(template):
    components = uptake.blur_components(template, simulate_anatomy(template, np.random.default_rng(0), 0.0))
    cortex, cerebellum = uptake.region_means(template, components)
    uptakes = [uptake.expected_uptake(cortex, cerebellum, atrophy, 0.0) for atrophy in (-2, 0, 2)]
    assert np.allclose(uptakes[0], uptakes[1]) and np.allclose(uptakes[1], uptakes[2])
    assert uptakes[0] @ cortex == pytest.approx(1.25, abs=1e-3)
    assert uptakes[0] @ cerebellum == pytest.approx(1)


@pytest.mark.parametrize("atrophy", [-1.0, 1.0])
def test_the_oracle_agrees_with_drawn_subjects_that_have_this_atrophy(template, atrophy):
    rng = np.random.default_rng(0)
    drawn = [draw_subject(rng, i % 2, LINK) for i in range(20000)]
    near = [s.suvr for s in drawn if abs(s.atrophy - atrophy) < 0.1]
    components = uptake.blur_components(template, simulate_anatomy(template, rng, atrophy))
    cortex, cerebellum = uptake.region_means(template, components)
    expected = uptake.expected_uptake(cortex, cerebellum, atrophy, LINK)
    assert expected @ cortex == pytest.approx(np.mean(near), abs=0.03)


@pytest.mark.parametrize("discordant", [0.4, 1.0])
def test_the_oracle_weighs_that_the_atrophy_may_mislead(template, discordant):
    rng = np.random.default_rng(0)
    near = []
    for i in range(40000):
        subject = draw_subject(rng, i % 2, 0.0 if rng.uniform() < discordant else 0.9)
        if abs(subject.atrophy - 1.2) < 0.1:
            near.append(subject.suvr)
    components = uptake.blur_components(template, simulate_anatomy(template, rng, 1.2))
    cortex, cerebellum = uptake.region_means(template, components)
    expected = uptake.expected_uptake(cortex, cerebellum, 1.2, 0.9, discordant)
    assert expected @ cortex == pytest.approx(np.mean(near), abs=0.02)
    certain = uptake.expected_uptake(cortex, cerebellum, 1.2, 0.9) @ cortex
    assert certain > expected @ cortex + 0.05              # so the mixture makes a difference here


@pytest.mark.parametrize("suvr", [0.9, 1.87])
@pytest.mark.parametrize("atrophy", [-5.0, 5.0])
def test_the_most_extreme_subjects_stay_within_range(template, suvr, atrophy):
    for seed in range(5):
        subject = Subject(int(suvr > 1), suvr, suvr - 1, atrophy, 72.0, "F", 1.85)
        mri, pet, oracle = simulate(template, np.random.default_rng(seed), subject, LINK)
        for voxels in (mri, pet, oracle):
            assert np.isfinite(voxels).all() and voxels.min() >= 0 and voxels.max() <= 1


def test_a_second_call_does_nothing(cohort, capsys):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    assert before
    capsys.readouterr()
    build_phantom(cohort, SUBJECTS, VOXEL_MM, LINK, SEED)
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before
    assert not capsys.readouterr().out


def test_other_settings_are_refused_all_at_once(cohort):
    with pytest.raises(ValueError, match="--data_dir") as error:
        build_phantom(cohort, SUBJECTS, 4, 0.3, SEED)
    assert "phantom_voxel: 8 -> 4" in str(error.value) and "phantom_link: 0.6 -> 0.3" in str(error.value)
    assert "phantom_seed" not in str(error.value)          # only what differs


def test_a_folder_with_somebodys_data_is_left_untouched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.nii").write_text("precious")
    with pytest.raises(ValueError, match="left untouched"):
        build_phantom(tmp_path / "mine", SUBJECTS, VOXEL_MM, LINK, SEED)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "scan.nii"]
    assert (tmp_path / "mine" / "scan.nii").read_text() == "precious"


def test_a_cut_run_leaves_no_cohort_and_its_rest_is_cleared(tmp_path, monkeypatch):
    def cut(*_):
        """Ctrl-C."""
        raise KeyboardInterrupt

    (tmp_path / "cohort").mkdir()                          # an empty folder is as good as none
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(phantom, "write_tables", cut)
        build_phantom(tmp_path / "cohort", (1, 1, 0), VOXEL_MM, LINK, SEED)
    assert not any((tmp_path / "cohort").iterdir())
    build_phantom(tmp_path / "cohort", (1, 0, 0), VOXEL_MM, LINK, SEED)
    assert {path.name for path in tmp_path.iterdir()} == {"cohort", ".cohort.lock"}
    assert [path.name for path in (tmp_path / "cohort" / "whole_MRI").iterdir()] == ["phantom001.nii.gz"]


def test_settings_out_of_range_are_named_together(tmp_path):
    with pytest.raises(ValueError) as error:
        build_phantom(tmp_path / "cohort", (0, 0, 0), 0, 0.99, -1, 1.1, -0.1, 7)
    assert all(name in str(error.value) for name in (
        "subjects", "voxel_mm 0", "link 0.99", "seed -1", "discordant 1.1", "marker -0.1", "sites 7"))
    assert not (tmp_path / "cohort").exists()
