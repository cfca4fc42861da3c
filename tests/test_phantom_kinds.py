"""Kinds of the phantom: what is true about each, that their oracle is the expected PET, and that the plain
one is the phantom as it was."""
import json
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from config import PRESETS, Config, with_later_settings
from phantom import anatomy, uptake
from phantom.anatomy import landmarks, load_template
from phantom.cohort import build_phantom
from phantom.kinds import KINDS, PLAIN
from phantom.sites import SITES, assign
from phantom.uptake import Subject, draw_subject, simulate, simulate_anatomy

NAMES, VOXEL_MM, SEED, LINK = list(KINDS), 8, 1, 0.6
OTHERS = [name for name in NAMES if name != "plain"]
WHITE_MATTER, OTHER_REGIONS = KINDS["white_matter"], KINDS["other_regions"]
SUBJECTS = (4, 2, 2)


@pytest.fixture(scope="module")
def templates() -> dict[str, anatomy.Template]:
    """The template of each kind at 8 mm."""
    plain = load_template(VOXEL_MM)                        # it depends on amyloid and atrophied alone
    return dict.fromkeys(KINDS, plain) | {"other_regions": load_template(VOXEL_MM, OTHER_REGIONS)}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> dict[str, Path]:
    """A cohort of each kind but the plain one."""
    root = tmp_path_factory.mktemp("kinds")
    for name in OTHERS:
        build_phantom(root / name, SUBJECTS, VOXEL_MM, LINK, SEED, kind=name)
    return {name: root / name for name in OTHERS}


def uptake_of(template: anatomy.Template, kind, suvr: float, atrophy: float = 0.0) -> np.ndarray:
    """PET without noise of an average subject of this SUVR, the cerebellar mean being 1."""
    maps = simulate_anatomy(template, np.random.default_rng(0), atrophy)
    components = uptake.blur_components(template, maps, kind.site)
    means = uptake.region_means(template, components)
    solved = uptake.solve_uptake(*means, kind.white_uptake[0], suvr)
    return np.einsum("k,kxyz->xyz", solved, components)


def deep_in(template: anatomy.Template, name: str, mm: float = 8.0) -> np.ndarray:
    """Grey matter so far inside a region that the blur brings little from its neighbours."""
    return (landmarks(template.axes)[name] > mm) & (template.grey > 0.5)


# ---------------------------------------------------------------- the plain kind

def test_the_plain_kind_is_the_phantom_as_it_was(templates):
    """With the numbers written out; that a cohort's voxels follow from them is tested where its sites are."""
    template = templates["plain"]
    near, pattern = landmarks(template.axes), np.float32(1)
    for name, level in (("occipital", 0.55), ("sensorimotor", 0.55), ("medial_temporal", 0.4),
                        ("ventricles", 0.0), ("striatum", 0.6), ("thalamus", 0.3), ("brainstem", 0.0),
                        ("cerebellum", 0.0)):
        pattern = pattern + expit(near[name] / 2) * (level - pattern)
    assert np.array_equal(template.amyloid, pattern.astype(np.float32))
    deep = np.maximum.reduce([near[name] for name in ("striatum", "thalamus", "brainstem", "cerebellum")])
    cortical = expit(-deep / 2).astype(np.float32)
    csf = (template.brain - template.grey - template.white).clip(0)
    rate = anatomy.thinning_rate(template.grey, csf, cortical)
    assert np.array_equal(template.thinning, cortical * np.float32(rate))
    assert PLAIN.white_uptake == (1.55, 0.10) and PLAIN.site == SITES[0]
    numbers = {"train": 5, "validation": 4, "test": 4}
    assert assign(numbers, 3, 1, PLAIN.site) == assign(numbers, 3)


def test_a_cohort_of_before_there_were_kinds_is_a_plain_one(tmp_path, cohorts):
    build_phantom(tmp_path / "cohort", (1, 0, 1), VOXEL_MM, LINK, SEED)
    path = tmp_path / "cohort" / "phantom.json"
    saved = json.loads(path.read_text())
    assert saved.pop("phantom_kind") == "plain"
    path.write_text(json.dumps(saved))
    build_phantom(tmp_path / "cohort", (1, 0, 1), VOXEL_MM, LINK, SEED)       # no word
    with pytest.raises(ValueError, match="phantom_kind: plain -> rare"):
        build_phantom(tmp_path / "cohort", (1, 0, 1), VOXEL_MM, LINK, SEED, kind="rare")


def test_settings_know_the_kinds_and_earlier_results_are_of_the_plain_one():
    assert Config.__dataclass_fields__["phantom_kind"].metadata["choices"] == tuple(NAMES)
    saved = {name: value for name, value in PRESETS["demo"].items() if name != "phantom_kind"}
    assert with_later_settings(saved)["phantom_kind"] == "plain"
    assert "phantom_kind" in Config().settings_of("comparison")


# ---------------------------------------------------------------- what is true of every kind

@pytest.mark.parametrize("name", OTHERS)
def test_the_written_pet_measures_the_true_suvr_in_the_same_regions(cohorts, templates, name):
    root = cohorts[name]
    masks = {}
    for region in ("cortex", "cerebellum"):
        masks[region] = nib.load(root / "truth" / f"{region}.nii.gz").get_fdata() > 0
        assert np.array_equal(masks[region], getattr(templates["plain"], region))
    for row in pd.read_csv(root / "truth" / "truth.csv").itertuples():
        pet = nib.load(root / "whole_Abeta" / f"{row.ID}.nii.gz").get_fdata()
        found = pet[masks["cortex"]].mean() / pet[masks["cerebellum"]].mean()
        assert found == pytest.approx(row.suvr, abs=1e-4)
    assert json.loads((root / "phantom.json").read_text())["phantom_kind"] == name


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("suvr", [0.9, 1.87])
@pytest.mark.parametrize("atrophy", [-5.0, 5.0])
def test_the_most_extreme_subjects_stay_within_range(templates, name, suvr, atrophy):
    kind = KINDS[name]
    white = kind.white_uptake[0] + 3 * kind.white_uptake[1]
    subject = Subject(int(suvr > 1), suvr, suvr - 1, atrophy, 72.0, "F", white)
    for voxels in simulate(templates[name], np.random.default_rng(0), subject, LINK, 0.0, kind.site,
                           kind.white_uptake):
        assert np.isfinite(voxels).all() and voxels.min() >= 0 and voxels.max() <= 1


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("atrophy", [-1.0, 1.0])
def test_the_oracle_is_the_mean_of_drawn_subjects_that_have_this_atrophy(templates, name, atrophy):
    """All four uptakes, white matter among them, against subjects drawn at random."""
    kind, template, rng = KINDS[name], templates[name], np.random.default_rng(0)
    link = 0.3 if name == "rare" else LINK
    maps = simulate_anatomy(template, rng, atrophy)
    means = uptake.region_means(template, uptake.blur_components(template, maps, kind.site))
    drawn = [draw_subject(rng, int(rng.uniform() < kind.prevalence), link, kind.white_uptake)
             for _ in range(8000)]
    near = [one for one in drawn if abs(one.atrophy - atrophy) < 0.15]
    found = np.mean([uptake.solve_uptake(*means, one.white, one.suvr) for one in near], axis=0)
    expected = uptake.expected_uptake(*means, atrophy, link, prevalence=kind.prevalence,
                                      white_uptake=kind.white_uptake)
    assert expected.tolist() == pytest.approx(found.tolist(), abs=0.04)
    assert expected @ means[0] == pytest.approx(np.mean([one.suvr for one in near]), abs=0.025)


@pytest.mark.parametrize("name", OTHERS)
def test_the_written_oracle_is_that_of_the_kind(cohorts, templates, name):
    """The expected uptake of the subject's own atrophy, with the prevalence and white matter of the kind."""
    kind, template, root = KINDS[name], templates[name], cohorts[name]
    for row in pd.read_csv(root / "truth" / "truth.csv").iloc[SUBJECTS[0]:].itertuples():
        rng = np.random.default_rng([SEED, int(row.ID.removeprefix("phantom"))])
        draw_subject(rng, row.label, LINK, kind.white_uptake)
        components = uptake.blur_components(template, simulate_anatomy(template, rng, row.atrophy), kind.site)
        expected = uptake.expected_uptake(*uptake.region_means(template, components), row.atrophy, LINK,
                                          prevalence=kind.prevalence, white_uptake=kind.white_uptake)
        oracle = nib.load(root / "truth" / "oracle" / f"{row.ID}.nii.gz").get_fdata(dtype=np.float32)
        assert np.array_equal(oracle, uptake.combine(expected, components))


# ---------------------------------------------------------------- white matter

def test_white_matter_is_brighter_than_grey_even_with_amyloid(templates):
    """In the plain kind amyloid makes grey matter the brighter one. Uptake without blur: the solved ones."""
    for name, is_brighter in (("plain", False), ("white_matter", True)):
        kind, template = KINDS[name], templates[name]
        maps = simulate_anatomy(template, np.random.default_rng(0), 0.0)
        means = uptake.region_means(template, uptake.blur_components(template, maps, kind.site))
        white, grey, amyloid, _ = uptake.solve_uptake(*means, kind.white_uptake[0], 1.45)
        assert (white > anatomy.GREY_UPTAKE * grey + amyloid) == is_brighter
    ratio = WHITE_MATTER.white_uptake[0] / PLAIN.white_uptake[0]
    assert ratio == pytest.approx(1.42, abs=0.01)          # as docs/phantom.md says


def test_white_matter_is_less_blurred(templates):
    """What is left of deep white matter as the scanner sees it; that a scanner blurs by its FWHM is tested
    where sites are."""
    template = templates["white_matter"]
    maps = simulate_anatomy(template, np.random.default_rng(0), 0.0)
    deep = maps["white"] > 0.9
    assert deep.sum() > 20 and WHITE_MATTER.site == SITES[0]._replace(pet_fwhm=4.5)
    plain, less = (uptake.blur_components(template, maps, kind.site)[0][deep].mean()
                   for kind in (PLAIN, WHITE_MATTER))
    assert 0 < 1 - less < 0.85 * (1 - plain)


# ---------------------------------------------------------------- other regions

@pytest.mark.parametrize("region", ["temporal", "occipital", "medial_temporal"])
def test_a_positive_subject_has_no_amyloid_in_spared_regions(templates, region):
    template = templates["other_regions"]
    negative, positive = (uptake_of(template, OTHER_REGIONS, suvr) for suvr in (1.05, 1.45))
    deep = deep_in(template, region)
    assert deep.sum() > 10
    assert positive[deep].mean() < 1.03 * negative[deep].mean()       # what the blur brings from elsewhere
    plain = [uptake_of(templates["plain"], PLAIN, suvr)[deep].mean() for suvr in (1.05, 1.45)]
    assert plain[1] > 1.1 * plain[0]


def test_the_rest_of_the_composite_carries_what_the_spared_fifth_does_not(templates):
    """The SUVR is the drawn one, so the amyloid of the other regions is higher than in the plain kind."""
    template = templates["other_regions"]
    spared = landmarks(template.axes)["temporal"] > 0
    assert (spared & template.cortex).sum() / template.cortex.sum() == pytest.approx(0.19, abs=0.02)
    rest = template.cortex & ~spared
    other = uptake_of(template, OTHER_REGIONS, 1.45)[rest].mean()
    plain = uptake_of(templates["plain"], PLAIN, 1.45)[rest].mean()
    assert other > 1.05 * plain


def test_atrophy_takes_the_temporal_lobe_alone(templates):
    template = templates["other_regions"]
    young, old = (simulate_anatomy(template, np.random.default_rng(0), atrophy) for atrophy in (-1.5, 1.5))
    temporal = deep_in(template, "temporal", 4.0)
    frontal = template.cortex & (landmarks(template.axes)["behind_centre"] < -30)
    assert temporal.sum() > 50 and frontal.sum() > 50
    assert old["baseline"][temporal].sum() < 0.85 * young["baseline"][temporal].sum()
    assert old["baseline"][frontal].sum() == pytest.approx(young["baseline"][frontal].sum(), rel=0.03)
    csf = (template.brain - template.grey - template.white).clip(0)
    weight = template.thinning / template.thinning.max()
    loss = 1 - (anatomy.thin(template.grey, csf, template.thinning) * weight).sum() / (
        template.grey * weight).sum()
    assert loss == pytest.approx(anatomy.CORTEX_LOSS, abs=2e-3)


# ---------------------------------------------------------------- few positives

def test_three_in_ten_are_positive_in_every_list():
    lists = {"train": 160, "validation": 60, "test": 80}
    members = assign(lists, 1000, 1, KINDS["rare"].site)
    positive = Counter(one.split for one in members if one.label)
    assert positive == {"train": 48, "validation": 18, "test": 24}
    assert assign(lists, 1000, 1, WHITE_MATTER.site) != members


def test_the_written_labels_have_the_prevalence_of_the_kind(cohorts):
    for name in OTHERS:
        labels = pd.read_csv(cohorts[name] / "data_info" / "data_info.csv")["label"]
        assert labels.sum() == {"rare": 1 + 1 + 1}.get(name, 2 + 1 + 1)


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize(("words", "problem"), [
    ({"kind": "real"}, "kind 'real': expected one of plain, white_matter, other_regions, rare"),
    ({"kind": "rare", "sites": 2}, "kind rare and sites 2: expected one site"),
])
def test_unknown_kinds_and_kinds_of_several_sites_are_refused(tmp_path, words, problem):
    with pytest.raises(ValueError, match=problem):
        build_phantom(tmp_path / "cohort", (4, 4, 4), VOXEL_MM, LINK, SEED, **words)
    assert not (tmp_path / "cohort").exists()


def test_another_kind_is_another_cohort(cohorts, tmp_path):
    shutil.copytree(cohorts["rare"], tmp_path / "rare")
    with pytest.raises(ValueError, match="phantom_kind: rare -> plain"):
        build_phantom(tmp_path / "rare", SUBJECTS, VOXEL_MM, LINK, SEED)
