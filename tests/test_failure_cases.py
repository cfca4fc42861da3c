"""Failure cases picked by hand-made errors, and the methods text of runs of many kinds."""
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from config import DEMO, PUBLISHED, Config
from evaluation import volume_figures
from evaluation.failure_cases import Case, failure_cases, read_cases
from evaluation.methods_text import REFERENCES, methods_text
from evaluation.participants import Count, Flow
from evaluation.results import Run
from imaging.grids import Crop


def make_run(
    errors: list[float],
    has_suvr: bool = True,
    phantom: bool = False,
    uncertain: bool = True,
    status: bool = True,
    methods: tuple[str, ...] = ("aae", "il_cldm", "mean_pet"),
    **settings,
) -> Run:
    """A run whose test subjects s0, s1, ... have these errors of the SUVR, or of MAE_brain without
    regions."""
    saved = json.loads(Config(**settings).to_json())
    ids = [f"s{i}" for i in range(len(errors))]
    test = pd.concat(
        [
            pd.DataFrame(
                {"method": method, "ID": ids, "label": 1, "MAE_brain": 0.02 if has_suvr else np.abs(errors)}
            )
            for method in methods
        ]
    )
    uptake = uncertainty = predictions = None
    if has_suvr:
        uptake = pd.concat([pd.DataFrame({"method": method, "ID": ids, "label": 1, "SUVR": values})
                            for method, values in (("real", 1.5), ("il_cldm", 1.5 + np.array(errors)))])
        known = 1.0 if uncertain else np.nan
        uncertainty = pd.DataFrame({"ID": ids, "low": known, "probability": known})
    if status:
        predictions = pd.DataFrame({"ID": ids, "label": 1, "classifier": "mri", "method": "none"})
    metadata = {"phantom": phantom, "settings": saved["settings"], "versions": saved["versions"]}
    return Run("x", metadata, test, uptake, predictions, None, uncertainty)


def people_of(n: int, **columns) -> pd.DataFrame:
    """People s0, s1, ... in another order than that of the test list."""
    return pd.DataFrame({"ID": [f"s{i}" for i in range(n)], **columns})[::-1]


def test_two_best_four_median_two_worst_by_absolute_error():
    errors = [0.05, -0.3, 0.01, 0.2, -0.02, 0.07, 0.06, -0.4, 0.08, 0.09]
    cases = failure_cases(
        make_run(errors), people_of(10, Age=["7" + str(i) for i in range(10)], note=["$x$"] * 10), ("note",)
    )
    assert cases["case"].tolist() == ["best"] * 2 + ["median"] * 4 + ["worst"] * 2
    assert cases["ID"].tolist() == ["s2", "s4", "s6", "s5", "s8", "s9", "s1", "s7"]
    assert cases["rank"].tolist() == [1, 2, 4, 5, 6, 7, 9, 10]
    assert set(cases["n"]) == {10}
    assert cases["age"].tolist() == ["72", "74", "76", "75", "78", "79", "71", "77"]
    assert cases["SUVR"].iloc[-1] == pytest.approx(1.1)
    assert cases["error"].iloc[-1] == pytest.approx(0.4)
    assert list(cases.columns) == [
        "case",
        "rank",
        "n",
        "ID",
        "label",
        "criterion",
        "error",
        "SUVR_real",
        "SUVR",
        "MAE_brain",
        "age",
        "note",
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_short_lists_are_shown_whole(n):
    cases = failure_cases(make_run([0.1 * (n - i) for i in range(n)]), people_of(n))
    assert cases["ID"].tolist() == [f"s{i}" for i in range(n)][::-1]
    assert set(cases["case"]) == {"all"}
    assert cases["rank"].tolist() == list(range(1, n + 1))


@pytest.mark.parametrize("n", [8, 9])
def test_ties_keep_the_order_of_the_test_list(n):
    cases = failure_cases(make_run([0.1] * n), people_of(n))
    assert cases["ID"].tolist() == [f"s{i}" for i in (0, 1, 2, 3, 4, 5, n - 2, n - 1)]


def test_without_regions_the_error_is_that_of_the_brain():
    cases = failure_cases(make_run([0.3, 0.1, 0.2], has_suvr=False), people_of(3))
    assert cases["ID"].tolist() == ["s1", "s2", "s0"]
    assert set(cases["criterion"]) == {"MAE_brain"}
    assert "SUVR" not in cases


def test_a_subject_without_an_suvr_is_not_among_them_unless_nobody_has_one():
    assert failure_cases(make_run([0.3, np.nan, 0.2]), people_of(3))["ID"].tolist() == ["s2", "s0"]
    assert set(failure_cases(make_run([np.nan] * 3), people_of(3))["criterion"]) == {"MAE_brain"}


def test_without_a_synthetic_pet_there_is_no_picture(tmp_path):
    cases = failure_cases(make_run([0.1]), people_of(1))
    assert read_cases(cases, {}, tmp_path, Crop((0, 0, 0), (2, 2, 2)), 0) == []


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_nothing_covers_anything_in_the_picture_and_all_is_on_it(n, tmp_path, monkeypatch):
    drawn, rng = [], np.random.default_rng(0)
    monkeypatch.setattr(volume_figures.pyplot(), "close", drawn.append)
    text = [
        "sub-ADNI037S6046_ses-M",
        "012",
        "label 1",
        "age 71.3",
        "sex F",
        "diagnosis $MCI$",
        "SUVR 1.312 real",
        "1.201 synthetic",
        "error -0.111",
    ]
    slices = {name: rng.random((40, 48)) for name in ("MRI", "real PET", "synthetic PET")}
    cases = [Case(f"median ({i + 10} of 20)", text, slices) for i in range(n)]
    notice = "digital phantom, not patient data; research only, not for clinical use"
    volume_figures.plot_cases(tmp_path / "cases", cases, "axial slices at z = 20 mm", notice)
    [figure] = drawn
    figure.draw_without_rendering()
    artists = [*figure.texts]
    for axis in figure.axes:
        artists += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
    boxes = [artist.get_window_extent() for artist in artists if artist.get_text()]
    assert len(boxes) == 1 + 2 * n + 4 + 2
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    errors = [axis.images[0] for axis in figure.axes if axis.images and axis.images[0].cmap.name == "RdBu_r"]
    assert len({image.get_clim() for image in errors}) == 1
    assert errors[0].get_clim()[0] == -errors[0].get_clim()[1]
    row, width = errors[0].get_array().filled(np.nan), 40
    difference = np.rot90(slices["synthetic PET"] - slices["real PET"])        # [H, D], the front at the top
    for i in range(n):
        np.testing.assert_array_equal(row[:, i * (width + 1):][:, :width], difference)
    assert np.isnan(row[:, width::width + 1]).all()


# ---------------------------------------------------------------- methods text

FLOW = Flow({"train": Count(6, 5), "validation": Count(2, 2), "test": Count(1, 1)},
            {"train": {0: 3, 1: 3}, "validation": {0: 1, 1: 1}, "test": {0: 0, 1: 1}})
DIFFERENT = [  # arguments of make_run, what is said, what is not
    (
        {},
        [
            "To be filled in",
            "SUVR was measured in plain regions of the MNI152",
            "drawn by DDIM",
            "v (Salimans",
            "6 scans of 5 subjects (3 with label 0, 3 with label 1)",
            "1 scan (0 with label 0, 1 with label 1)",
            "conformal",
            "Platt 1999",
            "4 latent samples",
        ],
        ["digital phantom", "ancestral", "null control"],
    ),
    (
        {"phantom": True, **DEMO},
        [
            "simulated digital phantom, not patient data",
            "phantom_link 0.6",
            "the phantom's own cortex",
            "drawn twice",
            "16 network evaluations a scan",
        ],
        ["To be filled in", "MNI152 template"],
    ),
    ({"phantom": True}, ["simulated digital phantom, not patient data;"], ["phantom_link"]),
    (
        {**PUBLISHED, "regions": "none", "has_suvr": False},
        [
            "predict the noise (Ho et al. 2020)",
            "ancestral sampling",
            "No label was given in sampling",
            "1 latent sample a scan was drawn",
            "999 network evaluations each",
            "It was decoded",
            "1 channel",
        ],
        [
            "ridge",
            "DDIM",
            "shift of",
            "L1 loss between",
            "SUVR",
            "scaled to mean 0",
            "half a cosine",
            "conformal",
        ],
    ),
    (
        {"regions": "none", "has_suvr": False},
        ["predicted from its MRI by ridge regression", "(Platt 1999)", "8 network evaluations a scan"],
        ["SUVR", "drawn twice"],
    ),
    (
        {"num_classes": 3, "status": False, "uncertain": False},
        ["temperature (Guo et al. 2017)"],
        ["Platt", "status was read", "McNemar", "conformal", "bootstrap"],
    ),
    (
        {"label_in_training": "none", "label_at_sampling": "none"},
        ["given the MRI:"],
        ["ridge", "given the MRI and"],
    ),
    ({"conditioning": "none"}, ["given the subject's label"], ["given the MRI"]),
    (
        {"conditioning": "none", "label_in_training": "none", "label_at_sampling": "none"},
        ["linear):"],
        [", given"],
    ),
    (
        {"sampler": "dpm", "time_shift": 0.5, "shuffle_labels": True},
        ["DPM-Solver++", "to low noise", "null control"],
        ["DDIM (Song"],
    ),
    ({"prediction": "eps"}, ["the noise (Ho et al. 2020)"], ["Salimans"]),
    (
        {"cortex_mask": "c.nii", "reference_mask": "r.nii", "centiloid": (100.0, -90.0)},
        ["c.nii over r.nii", "Centiloids were computed as 100 SUVR -90", "Klunk"],
        ["MNI152 template"],
    ),
    ({"regions": "centiloid"}, ["Centiloid project's masks", "Klunk"], ["plain regions"]),
    (
        {"ldm_from": "one"},
        ["stage 1 are those of the experiment one", "stage 2 are those of the experiment one"],
        [],
    ),
    ({"aae_from": "two"}, ["stage 1 are those of the experiment two"], ["stage 2 are those"]),
    (
        {"methods": ("il_cldm", "mean_pet", "resvit", "oracle")},
        ["trained for comparison: resvit", "true anatomy"],
        ["reconstruction of the real PET"],
    ),
    ({"uncertain": False}, ["SUVR was measured"], ["conformal", "Platt 1999). All"]),
    ({"crop_jitter": 0, "aae_lr_decay": False}, ["a step and process, L1"], ["shifted", "half a cosine"]),
    (
        {"aae_epochs": 1, "ldm_epochs": 7, "seed": 3},
        ["1 epoch of Adam", "7 epochs of AdamW", "The seed was 3"],
        [],
    ),
]


@pytest.mark.parametrize(("changes", "said", "not_said"), DIFFERENT)
def test_every_kind_of_run_is_described_as_it_was(changes, said, not_said):
    changes = dict(changes)
    changes["label_in_training"] = changes.get("label_in_training") or (
        "suvr" if any(changes.get("phantom_subjects", [])) else "true")     # as a cohort settles auto
    text = methods_text(make_run([0.1, 0.2], **changes), FLOW)
    for sentence in said:
        assert sentence in text
    for sentence in not_said:
        assert sentence not in text
    assert "2 scans of the test list were synthesized" in text
    assert "None" not in text
    assert "nan" not in text


@pytest.mark.parametrize(("changes", "said", "not_said"), DIFFERENT[:6])
def test_the_references_are_those_that_are_cited(changes, said, not_said):
    body, references = methods_text(make_run([0.1], **changes), FLOW).split("\n\nReferences\n")
    for short, full in REFERENCES.items():
        assert (short in body) == (full in references), short
    assert "Ou, Pan, Xie, Guo, Shen" in references


def test_what_was_left_out_and_covariates_are_in_the_text():
    flow = dataclasses.replace(FLOW, found=Count(12, 9), all_left_out=Count(3, 3), labelled=Count(9, 8))
    run = make_run([0.1], label_in_training="true")
    run.metadata["settings"]["covariates"] = ["age", "apoe4"]
    text = methods_text(run, flow)
    assert "Of 12 scans of 9 subjects with an MRI or a PET, 3 scans of 3 subjects were left out" in text
    assert "predicted from its MRI and age, apoe4 by ridge regression" in text


def test_further_analyses_are_in_the_text_of_a_run_that_has_them():
    plain = make_run([0.1, 0.2])
    text = methods_text(plain, FLOW)
    for sentence in ("ICC(A,1) (McGraw and Wong 1996)", "log odds (Cox 1958)"):
        assert sentence in text
    own = {"classifier": "covariates", "score": 0.5}
    settings = {"cortex_mask": "c.nii", "reference_mask": "r.nii"}
    run = make_run([0.1, 0.2], centiloid=(100.0, -90.0), **settings)
    run.metadata["settings"]["covariates"] = ["age", "apoe4"]
    run = dataclasses.replace(run, people=run.test[["ID", "label"]], uptake=run.uptake.assign(CL=50.0),
                              predictions=pd.concat([run.predictions, run.predictions.assign(**own)]))
    fuller = methods_text(run, FLOW, ["north", "south"])
    for sentence in ("logistic regression on age, apoe4, alone and with the MRI", "Kruskal and Wallis 1952",
                     "without subjects whose real PET had 10 to 30 Centiloids",
                     "external cohorts north, south were scored with the same networks"):
        assert sentence in fuller and sentence not in text
    assert "The external cohort east was scored" in methods_text(plain, FLOW, ["east"])
    assert "ICC" not in methods_text(make_run([0.1], has_suvr=False, regions="none", status=False), FLOW)


def test_the_text_holds_no_path_of_this_machine():
    assert str(Path.cwd()) not in methods_text(make_run([0.1]), FLOW)
