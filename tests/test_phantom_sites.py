"""Sites of the phantom: who is scanned where, what differs there, and that one is the phantom as it was."""
import dataclasses
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from config import PRESETS, Config, with_later_settings
from phantom import uptake
from phantom.anatomy import load_template
from phantom.cohort import SPLITS, build_phantom
from phantom.sites import SITES, assign
from phantom.uptake import draw_subject, simulate, simulate_anatomy, smooth_field

LINK, SEED, VOXEL_MM = 0.6, 1, 8
NAMES = [site.name for site in SITES]
BENCHMARK = {"train": 160, "validation": 60, "test": 80}


@pytest.fixture(scope="module")
def template():
    """The template at 8 mm."""
    return load_template(VOXEL_MM)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A cohort of three sites."""
    root = tmp_path_factory.mktemp("sites") / "cohort"
    build_phantom(root, (12, 6, 9), VOXEL_MM, LINK, SEED, sites=3)
    return root


def people_of(root: Path) -> pd.DataFrame:
    """data_info.csv with the list of every subject."""
    info = pd.read_csv(root / "data_info" / "data_info.csv").set_index("ID")
    for split in SPLITS:
        info.loc[(root / "data_info" / f"{split}.txt").read_text().split(), "split"] = split
    return info


def old_simulate(template, rng, subject):
    """MRI and PET as they were before there were sites, with the numbers written out."""
    anatomy = simulate_anatomy(template, rng, subject.atrophy)
    sigma, blurred = 7.0 / 2.355 / template.voxel_mm, []
    for name in ("white", "baseline", "amyloid", "csf"):
        blurred.append(gaussian_filter(anatomy[name], sigma, mode="constant") * anatomy["support"])
    components = np.stack(blurred)
    slow = 0.04 * smooth_field(rng, template.axes, 30.0 / 2.355)
    noise = slow + 0.04 * smooth_field(rng, template.axes, 7.0 / 2.355)
    components *= 1 + 0.5 * np.tanh(noise / 0.5)
    means = uptake.region_means(template, components)
    pet = uptake.combine(uptake.solve_uptake(*means, subject.white, subject.suvr), components)
    bias = 1 + 0.025 * smooth_field(rng, template.axes, 40.0)
    noise = 0.02 * rng.standard_normal(bias.shape, dtype=np.float32)
    return np.where(anatomy["brain"] > 0.5, anatomy["t1"] * bias + noise, 0).clip(0, 1), pet


# ---------------------------------------------------------------- one site

def test_with_one_site_no_voxel_differs_from_before_there_were_sites(template, tmp_path):
    build_phantom(tmp_path / "one", (4, 2, 2), VOXEL_MM, LINK, SEED)
    rng, labels = np.random.default_rng([SEED, 0]), []
    for positives, number in ((2, 4), (1, 2), (1, 2)):
        labels += rng.permutation(np.arange(number) < positives).astype(int).tolist()
    info = pd.read_csv(tmp_path / "one" / "data_info" / "data_info.csv")
    assert info["label"].tolist() == labels and set(info["site"]) == {"site1"}
    for index, (name, label) in enumerate(zip(info["ID"], labels, strict=True), start=1):
        rng = np.random.default_rng([SEED, index])
        mri, pet = old_simulate(template, rng, draw_subject(rng, label, LINK))
        for folder, expected in (("whole_MRI", mri), ("whole_Abeta", pet)):
            image = nib.load(tmp_path / "one" / folder / f"{name}.nii.gz")
            assert np.array_equal(image.get_fdata(dtype=np.float32), expected), name


def test_the_first_site_is_the_phantom_of_one_site():
    assert SITES[0] == ("site1", 7.0, 0.04, 1.0, 0.025, 0.5)


def test_an_oracle_of_even_prevalence_weighs_as_it_did(template):
    cortex, cerebellum = np.array([0.2, 0.4, 0.5, 0.1]), np.array([0.4, 0.6, 0.01, 0.1])
    u = (np.arange(1000) + 0.5) / 1000
    order = np.random.default_rng(0)
    white = np.concatenate([uptake.truncated_normal(order.permutation(u), (1.55, 0.10)) for _ in range(2)])
    suvr = np.concatenate([uptake.truncated_normal(u, both) for both in ((1.05, 0.05), (1.45, 0.14))])
    log_weight = -(0.7 - LINK * uptake.standard_load(suvr)) ** 2 / (2 * (1 - LINK ** 2))
    weight = np.exp(log_weight - log_weight.max())
    before = uptake.solve_uptake(cortex, cerebellum, white, suvr) @ (weight / weight.sum())
    assert np.array_equal(before, uptake.expected_uptake(cortex, cerebellum, 0.7, LINK))


# ---------------------------------------------------------------- who is scanned where

@pytest.mark.parametrize("sites", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("numbers", [(160, 60, 80), (80, 12, 20), (12, 12, 12), (37, 13, 14), (0, 0, 300)])
def test_sites_are_spread_over_all_lists_in_both_labels(sites, numbers):
    members = assign(dict(zip(SPLITS, numbers, strict=True)), 0, sites)
    assert [Counter(one.split for one in members)[split] for split in SPLITS] == list(numbers)
    for split, number in zip(SPLITS, numbers, strict=True):
        counts = Counter((one.site.name, one.label) for one in members if one.split == split)
        if number:
            assert set(counts) == {(name, label) for name in NAMES[:sites] for label in (0, 1)}
    of_site = Counter(one.site.name for one in members)
    assert max(of_site.values()) - min(of_site.values()) <= 1


def test_each_site_has_its_prevalence_to_the_nearest_subject():
    members = assign({"train": 60, "validation": 42, "test": 600}, 0, 6)
    for split, number in (("train", 10), ("validation", 7), ("test", 100)):
        for site in SITES:
            positives = sum(one.label for one in members if one.split == split and one.site == site)
            assert abs(positives - number * site.prevalence) <= 0.5 + 1e-9, (split, site.name)


def test_ids_tell_neither_site_nor_label_and_the_seed_decides():
    members = assign(BENCHMARK, 0, 4)
    assert members == assign(BENCHMARK, 0, 4) != assign(BENCHMARK, 1, 4)
    assert len({one.site for one in members[:20]}) == 4 and {one.label for one in members[:20]} == {0, 1}
    assert [one.id for one in members[:2]] == ["phantom001", "phantom002"]


def test_the_sites_stand_in_data_info_and_in_the_settings(cohort):
    people = people_of(cohort)
    assert list(people.columns[:-1]) == ["label", "age", "sex", "apoe4", "ptau217", "mmse", "site"]
    assert Counter(people["site"]) == {"site1": 9, "site2": 9, "site3": 9}
    assert people.groupby(["split", "site"])["label"].nunique().eq(2).all()
    assert json.loads((cohort / "phantom.json").read_text())["phantom_sites"] == 3
    truth = pd.read_csv(cohort / "truth" / "truth.csv").set_index("ID")
    assert truth["label"].equals(people["label"])


def test_the_written_pet_measures_the_true_suvr_at_every_site(cohort):
    cortex, cerebellum = (nib.load(cohort / "truth" / f"{name}.nii.gz").get_fdata() > 0
                          for name in ("cortex", "cerebellum"))
    for row in pd.read_csv(cohort / "truth" / "truth.csv").itertuples():
        pet = nib.load(cohort / "whole_Abeta" / f"{row.ID}.nii.gz").get_fdata()
        assert pet[cortex].mean() / pet[cerebellum].mean() == pytest.approx(row.suvr, abs=1e-4)


def test_a_seed_has_the_same_sites_and_labels_at_any_voxel_size(cohort, tmp_path):
    build_phantom(tmp_path / "coarse", (12, 6, 9), 10, LINK, SEED, sites=3)
    assert people_of(tmp_path / "coarse").equals(people_of(cohort))


# ---------------------------------------------------------------- what differs there

def test_the_table_is_within_its_ranges_and_no_site_is_another():
    assert len(SITES) == Config.__dataclass_fields__["phantom_sites"].metadata["high"] == 6
    for column in zip(*SITES, strict=True):
        assert len(set(column)) == len(SITES)
    assert all(4 <= site.pet_fwhm <= 8 and 0.3 <= site.prevalence <= 0.7 for site in SITES)
    assert {site.pet_fwhm for site in SITES[:4]} >= {4.0, 8.0}     # few sites have both ends


@pytest.mark.parametrize("site", SITES, ids=NAMES)
def test_the_scanner_blurs_as_its_site_says(template, site):
    voxels = np.zeros((41, 41, 41), np.float32)
    voxels[20, 20, 20] = 1
    point = dict.fromkeys(("white", "baseline", "amyloid", "csf"), voxels)
    fine = dataclasses.replace(template, voxel_mm=1)
    seen = uptake.blur_components(fine, point | {"support": np.ones((41, 41, 41), bool)}, site)
    profile = seen[0].sum(axis=(1, 2), dtype=float)    # a Gaussian's variance is its FWHM over 2.355, squared
    variance = (profile * (np.arange(41) - 20) ** 2).sum() / profile.sum()
    assert 2.355 * np.sqrt(variance) == pytest.approx(site.pet_fwhm, rel=0.02)


@pytest.mark.parametrize("site", SITES, ids=NAMES)
def test_the_mri_has_the_contrast_and_bias_of_its_site(template, site):
    anatomy = simulate_anatomy(template, np.random.default_rng(0), 0.0)
    flat = anatomy | {"t1": np.full_like(anatomy["t1"], 0.65)}          # grey alone: what is left is the bias
    brain = anatomy["brain"] > 0.5
    varied, noise = [], 0.02 / 0.65
    for seed in range(40):
        varied.append(uptake.render_mri(template, flat, np.random.default_rng(seed), site)[brain] / 0.65)
    assert np.mean(varied) == pytest.approx(1, abs=0.02)
    assert np.sqrt(np.var(varied) - noise ** 2) == pytest.approx(site.mri_bias, rel=0.25)
    mri = uptake.render_mri(template, anatomy, np.random.default_rng(0), site)
    slope = np.polyfit(anatomy["t1"][brain], mri[brain], 1)[0]
    assert slope == pytest.approx(site.mri_contrast, rel=0.1)


@pytest.mark.parametrize("site", SITES, ids=NAMES)
def test_the_pet_is_as_noisy_as_its_site_says(template, site):
    noise = [uptake.draw_noise(template, np.random.default_rng(seed), site) for seed in range(8)]
    assert np.std(noise) == pytest.approx(np.hypot(0.04, site.pet_noise), rel=0.05)  # slow, and noise


@pytest.mark.parametrize("site", SITES, ids=NAMES)
def test_the_most_extreme_subjects_stay_within_range_at_every_site(template, site):
    for suvr in (0.9, 1.87):
        for atrophy in (-5.0, 5.0):
            subject = uptake.Subject(int(suvr > 1), suvr, suvr - 1, atrophy, 72.0, "F", 1.85)
            for voxels in simulate(template, np.random.default_rng(0), subject, LINK, 0.0, site):
                assert np.isfinite(voxels).all() and voxels.min() >= 0 and voxels.max() <= 1


# ---------------------------------------------------------------- the oracle

@pytest.mark.parametrize("site", SITES, ids=NAMES)
@pytest.mark.parametrize("atrophy", [-1.0, 1.0])
def test_the_oracle_agrees_with_drawn_subjects_of_its_site(template, site, atrophy):
    rng = np.random.default_rng(0)
    drawn = [draw_subject(rng, int(rng.uniform() < site.prevalence), LINK) for _ in range(20000)]
    near = [one.suvr for one in drawn if abs(one.atrophy - atrophy) < 0.1]
    components = uptake.blur_components(template, simulate_anatomy(template, rng, atrophy), site)
    cortex, cerebellum = uptake.region_means(template, components)
    expected = uptake.expected_uptake(cortex, cerebellum, atrophy, LINK, prevalence=site.prevalence)
    assert expected @ cortex == pytest.approx(np.mean(near), abs=0.02)


def test_without_a_link_the_oracle_is_the_prior_mean_of_its_site(template):
    anatomy = simulate_anatomy(template, np.random.default_rng(0), 0.0)
    components = uptake.blur_components(template, anatomy, SITES[2])
    cortex, cerebellum = uptake.region_means(template, components)
    expected = uptake.expected_uptake(cortex, cerebellum, 1.0, 0.0, prevalence=0.7)
    assert expected @ cortex == pytest.approx(0.7 * 1.45 + 0.3 * 1.05, abs=1e-3)


def test_the_oracle_of_the_own_site_is_nearer_than_that_of_another(template):
    own, other = SITES[1], SITES[2]                        # 4 mm and 30 % positive against 8 mm and 70 %
    rng, brain, errors = np.random.default_rng(0), template.brain > 0.5, {own: [], other: []}
    for _ in range(15):
        subject = draw_subject(rng, int(rng.uniform() < own.prevalence), LINK)
        seed = int(rng.integers(2 ** 31))
        pet = simulate(template, np.random.default_rng(seed), subject, LINK, 0.0, own)[1]
        for site in errors:
            oracle = simulate(template, np.random.default_rng(seed), subject, LINK, 0.0, site)[2]
            errors[site].append(np.mean((oracle[brain] - pet[brain]) ** 2))
    assert np.mean(errors[own]) < 0.85 * np.mean(errors[other])


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize(("numbers", "sites", "problem"), [
    ((12, 12, 12), 0, "sites 0: expected an integer from 1 to 6"),
    ((14, 14, 14), 7, "sites 7: expected an integer from 1 to 6"),
    ((14, 14, 14), -1, "sites -1"),
    ((14, 14, 14), 2.5, "sites 2.5"),
    ((12, 5, 9), 3, "subjects (12, 5, 9): expected at least 6 in each list, 2 of each of the 3 sites"),
    ((1, 0, 0), 2, "at least 4 in each list"),
])
def test_too_few_subjects_or_too_many_sites_are_refused(tmp_path, numbers, sites, problem):
    with pytest.raises(ValueError) as error:
        build_phantom(tmp_path / "cohort", numbers, VOXEL_MM, LINK, SEED, sites=sites)
    assert problem in str(error.value) and not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("numbers", [(4, 4, 4), (0, 0, 4), (5, 0, 9)])
def test_as_few_subjects_as_have_both_labels_are_taken(numbers):
    members = assign(dict(zip(SPLITS, numbers, strict=True)), 0, 2)
    assert {(one.site.name, one.label) for one in members if one.split == "test"} == {
        ("site1", 0), ("site1", 1), ("site2", 0), ("site2", 1)}


def test_another_number_of_sites_is_another_cohort(cohort):
    with pytest.raises(ValueError, match="phantom_sites: 3 -> 2"):
        build_phantom(cohort, (12, 6, 9), VOXEL_MM, LINK, SEED, sites=2)


def test_results_from_before_there_were_sites_are_of_one():
    saved = {name: value for name, value in PRESETS["demo"].items() if name != "phantom_sites"}
    assert with_later_settings(saved)["phantom_sites"] == 1
    assert "phantom_sites" in Config().settings_of("comparison")
    assert "phantom_sites" not in Config().settings_of("aae", "ldm", "synthesis")
