"""Covariates beside the MRI: how they are read, what they are worth, what is refused, and a run with them."""
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import main
from evaluation import volume_figures
from evaluation.covariate_status import CovariateClassifier
from evaluation.status import fit_status_classifiers, load_status_classifiers, save_status_classifiers
from experiment.networks import cells_of
from labels.covariates import CovariateCoder, cells_key, column_problems, reading_problems
from labels.people import covariate_problems, read_covariates, read_people
from labels.ridge import LabelPredictor
from newscans.covariates import with_covariates
from utils import InputError

# ---------------------------------------------------------------- cells to numbers


def cells(**columns: list[str]) -> pd.DataFrame:
    """Cells of some subjects as text."""
    return pd.DataFrame(columns)


def test_numbers_are_standardised_on_the_training_list():
    train, new = ["61", "70.5", "82", "75"], ["70.5", "100"]
    coder = CovariateCoder.fit(cells(age=train))
    scaler = StandardScaler().fit(np.array(train, dtype=float)[:, None])
    np.testing.assert_allclose(
        coder.encode(cells(age=new)), scaler.transform(np.array(new, dtype=float)[:, None])
    )


def test_a_missing_value_is_the_mean_and_says_so_where_the_training_list_lacks_some():
    train = cells(marker=["1", "3", "", "n/a"] * 5, age=["60", "70", "80", "90"] * 5)
    coder = CovariateCoder.fit(train)
    found = coder.encode(cells(marker=["3", ""], age=["", "80"]))
    np.testing.assert_allclose(found, [[1, -1, 0], [0, 1, 5 / 125 ** 0.5]])     # half of them are missing
    np.testing.assert_allclose(coder.encode(cells(age=["80"])), [[0, 1, 5 / 125 ** 0.5]])      # no column


def test_fewer_than_10_missing_values_have_no_indicator_but_in_an_older_checkpoint():
    train = [str(i) for i in range(20)]
    counts = {len(CovariateCoder.fit(cells(x=[""] * n + train[n:])).encode(cells(x=[""]))[0])
              for n in (0, 1, 9)}
    few, many = (CovariateCoder.fit(cells(x=[""] * n + train[n:])) for n in (9, 10))
    assert counts == {1} and many.encode(cells(x=[""])).shape == (1, 2)
    [older] = few.state()
    again = CovariateCoder.from_state([older | {"missing": 0.45}])
    np.testing.assert_allclose(again.encode(cells(x=[""])), [[0, (1 - 0.45) / (0.45 * 0.55) ** 0.5]])


def test_words_become_indicators_whatever_their_case():
    coder = CovariateCoder.fit(cells(group=["MCI", "cn", "AD", "CN"]))
    shares = np.array([0.5, 0.25])                         # of cn and mci; ad stands first in the alphabet
    std = (shares * (1 - shares)) ** 0.5
    expected = (np.array([[0, 0], [1, 0], [0, 1]]) - shares) / std
    np.testing.assert_allclose(coder.encode(cells(group=["ad", "CN", "Mci"])), expected)
    np.testing.assert_array_equal(coder.encode(cells(group=["unknown"])), [[0, 0]])


@pytest.mark.parametrize("text, value", [
    ("<0.2", 0.2), (">= 1700", 1700), ("90+", 90), (".5", 0.5), ("1e-3", 1e-3), ("+2", 2)])
def test_a_bound_counts_as_its_number(text, value):
    coder = CovariateCoder.fit(cells(x=["0", "100"]))      # mean 50, standard deviation 50
    assert coder.encode(cells(x=["0", text]))[1, 0] == pytest.approx((value - 50) / 50)


@pytest.mark.parametrize("train, is_code", [(["2", "5", "3"], True), (["-2.5", "5", "3"], False)])
def test_minus_four_is_missing_where_nothing_else_is_below_0(train, is_code):
    coder = CovariateCoder.fit(cells(x=train))
    found = coder.encode(cells(x=["-4", "5"]))[0, 0]
    assert found == (
        0 if is_code else pytest.approx((-4 - coder.covariates[0].mean[0]) / coder.covariates[0].std[0])
    )


def test_what_a_coder_knows_survives_json():
    coder = CovariateCoder.fit(cells(group=["a", "b", "c", ""], x=["1", "2", "", "4"]))
    again = CovariateCoder.from_state(json.loads(json.dumps(coder.state())))
    new = cells(group=["B", "c", ""], x=["3", "", "1"])
    np.testing.assert_array_equal(again.encode(new), coder.encode(new))
    assert again.covariates == coder.covariates


# ---------------------------------------------------------------- columns that cannot be used

LABELS = np.arange(24) % 2
VARIED = [str(50 + 7 * i % 30) for i in range(24)]


@pytest.mark.parametrize(
    "column, message",
    [
        (["3"] * 24, "the same for everybody"),
        (["F"] * 23 + [""], "the same for everybody"),
        ([""] * 20 + ["NA", "-4", "n/a", "unknown"], "no subject of the training list has a value"),
        (list("abcdefg") + ["a"] * 17, "7 different words"),
        (VARIED[:22] + ["high", "low"], "'high' among numbers (2 of 24 cells)"),
        ([str(0.4 + 0.01 * i) for i in range(12)] + [str(400 + 10 * i) for i in range(12)], "in two units"),
        ([str(1 + 0.1 * label + 0.001 * i) for i, label in enumerate(LABELS)], "tells the labels of all 24"),
        ([["negative", "positive"][label] for label in LABELS], "tells the labels of all 24"),
        (
            [["a", "b"][i % 4 // 2] if label else "c" for i, label in enumerate(LABELS)],
            "tells the labels of all 24",
        ),
        ([VARIED[i] if label else "" for i, label in enumerate(LABELS)], "known or missing for all of"),
        (["-4" if label else VARIED[i] for i, label in enumerate(LABELS)], "known or missing for all of"),
        ([["a", "b"][i % 4 // 2] if label else "" for i, label in enumerate(LABELS)],
         "known or missing for all of"),
        (["0"] + [str(0.2 + 0.03 * i) for i in range(11)] + [str(200 + 10 * i) for i in range(12)],
         "in two units"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(column, message):
    [problem] = column_problems(cells(x=column), LABELS)
    assert problem.startswith("covariate x: ") and message in problem


@pytest.mark.parametrize("column", [
    VARIED, ["F", "M", ""] * 8, ["0", "1", "2"] * 8, ["-1", "0.5", "1"] * 8, ["0"] * 12 + ["300"] * 12,
    ["1"] * 23 + ["2"], ["0.1", "5", "40"] * 8, ["cn", "mci", "ad", "CN", "", "MCI"] * 4])
def test_a_column_that_can_be_used_is_not(column):
    assert not column_problems(cells(x=column), LABELS)


def test_a_column_that_is_missing_for_most_of_one_label_can_be_used():
    assert not column_problems(cells(x=[VARIED[i] if label or i < 2 else "" for i, label in
                                        enumerate(LABELS)]), LABELS)


def test_a_short_list_may_be_told_apart_by_chance():
    column = [str(label) for label in LABELS]
    assert column_problems(cells(x=column), LABELS) and not column_problems(cells(x=column[:18]), LABELS[:18])


@pytest.mark.parametrize(
    "texts, message",
    [
        (["F", "other"], "'other' in 1 row(s); expected one of f, m"),
        (["1", "F"], "'1' in 1 row(s)"),
        (["f", "", "M"], ""),
    ],
)
def test_words_that_the_training_list_does_not_have_are_named(texts, message):
    [covariate] = CovariateCoder.fit(cells(sex=["M", "F", "F"])).covariates
    problems = reading_problems(covariate, texts)
    assert message in problems[0] if message else not problems


@pytest.mark.parametrize("texts, message", [
    (["600", "700"], "such as 600, but 0.3 to 0.9 in the training list; in another unit?"),
    (["0.0006"], "such as 0.0006"), (["positive"], "'positive' in 1 row(s); expected a number"),
    (["0.1", "2.5", ""], "")])
def test_another_type_or_unit_than_in_the_training_list_is_named(texts, message):
    [covariate] = CovariateCoder.fit(cells(ptau217=["0.3", "0.5", "0.9"])).covariates
    problems = reading_problems(covariate, texts)
    assert message in problems[0] if message else not problems


@pytest.mark.parametrize("low, texts, message", [
    ("0", ["600", "0.3"], "1 value(s) such as 600, but 0 to 0.9"), ("0", ["0.0006", "2.5"], ""),
    ("-0.2", ["600"], "such as 600, but -0.2 to 0.9"), ("0", ["0", "-4"], "")])
def test_a_zero_in_the_training_list_leaves_another_unit_named(low, texts, message):
    [covariate] = CovariateCoder.fit(cells(x=[low, "0.3", "0.9"])).covariates
    problems = reading_problems(covariate, texts)
    assert message in problems[0] if message else not problems


def write_info(folder: Path, text: str) -> None:
    """data_info.csv with this text."""
    folder.mkdir(exist_ok=True)
    (folder / "data_info.csv").write_text(text)


def test_columns_are_found_by_name_and_missing_ones_named_together(tmp_path):
    write_info(tmp_path, "ID;label;P-Tau 217;sex\na;0;0,5;F\nc;0;NA;\n")
    assert read_people(tmp_path, "abc")["P-Tau 217"].tolist() == ["0.5", "", ""]
    found = read_covariates(tmp_path, "abc", ("ptau217", "sex"))
    assert found.to_dict("list") == {
        "ptau217": ["0.5", "", ""],
        "sex": ["F", "", ""],
    } and found.index.tolist() == list("abc")
    with pytest.raises(InputError) as error:
        read_covariates(tmp_path, "abc", ("apoe4", "sex", "mmse"))
    for name in ("apoe4", "mmse"):
        assert (
            f"has no column {name!r}, which the setting covariates names; its columns are ID, label"
            in str(error.value)
        )
    assert read_covariates(tmp_path, "abc", ()) is None


def test_all_problems_of_a_cohort_come_together_with_their_list(tmp_path):
    write_info(tmp_path, "ID,label,x,g\na,0,1,u\nb,1,2,v\nc,0,900,w\n")
    labels = {"train": {"a": 0, "b": 1}, "validation": {"c": 0}, "test": {}}
    problems = covariate_problems(tmp_path, labels, ("x", "g"))
    assert len(problems) == 2 and "another unit" in problems[0] and "'w' in 1 row(s)" in problems[1]
    assert all(problem.endswith("(validation.txt)") and "data_info.csv" in problem for problem in problems)


@pytest.mark.parametrize("name", ["label", "Label", "ID"])
def test_the_label_itself_is_no_covariate(tmp_path, name):
    write_info(tmp_path, "ID,label,x\na,0,1\nb,1,2\n")
    labels = {"train": {"a": 0, "b": 1}, "validation": {}, "test": {}}
    [problem] = covariate_problems(tmp_path, labels, ("x", name))
    assert f"{name} is no covariate" in problem


@pytest.mark.parametrize("names, same", [
    (("x", "x"), "x and x"), (("P-Tau 217", "g", "ptau217"), "P-Tau 217 and ptau217"), (("a b", "ab"), "")])
def test_a_column_that_is_named_twice_is_refused_before_training(tmp_path, names, same):
    write_info(tmp_path, "ID,label,x,g,P-Tau 217,a b,ab\na,0,1,u,3,5,5\nb,1,2,v,4,6,6\n")
    labels = {"train": {"a": 0, "b": 1}, "validation": {}, "test": {}}
    problems = covariate_problems(tmp_path, labels, names)
    assert len(problems) == bool(same) and all(f"{same}, which" in problem for problem in problems)


# ---------------------------------------------------------------- what they are worth

def subjects(n: int, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Pooled MRIs [n, 1, 6, 6, 6] and a marker [n] that each say half of the amount of amyloid [n], and
    labels."""
    rng = np.random.default_rng(seed)
    seen, marker = rng.standard_normal(n), rng.standard_normal(n)
    amount = seen + marker
    pattern = np.random.default_rng(5).standard_normal((3, 6, 6))
    pattern = np.concatenate([pattern, pattern[::-1]])     # the features are the mean of both sides
    mri = 1 + 0.1 * seen[:, None, None, None] * pattern + 0.05 * rng.standard_normal((n, 6, 6, 6))
    return torch.from_numpy(mri[:, None]).float(), marker, amount, (amount > 0).astype(int)


def predictor_of(covariates: pd.DataFrame | None, with_mri: bool = True) -> LabelPredictor:
    """A predictor that is fitted to 150 of these subjects."""
    mri, _, amount, labels = subjects(150, 0)
    soft = np.stack([-amount, amount], axis=1)
    return LabelPredictor.cross_fit(
        mri, labels, soft, torch.ones(6, 6, 6), 1, 0, torch.tensor([0.0, 1.0]), covariates, with_mri
    )


def as_cells(marker: np.ndarray, missing: float = 0.0) -> pd.DataFrame:
    """The marker as cells, a share of them empty."""
    is_empty = np.random.default_rng(9).random(len(marker)) < missing
    return cells(
        marker=["" if empty else f"{value:.4f}" for value, empty in zip(marker, is_empty, strict=True)]
    )


def correlation_of(predictor: LabelPredictor, covariates: pd.DataFrame | None) -> float:
    """Correlation of predicted and true amount in 300 subjects that no fit has seen."""
    mri, _, amount, _ = subjects(300, 1)
    return np.corrcoef(predictor.soft_labels(mri, covariates)[:, 1], amount)[0, 1]


def test_what_the_mri_cannot_know_comes_from_the_covariate():
    trained_on, new = subjects(150, 0)[1], subjects(300, 1)[1]
    alone = correlation_of(predictor_of(None), None)
    both = correlation_of(predictor_of(as_cells(trained_on)), as_cells(new))
    without_mri = correlation_of(predictor_of(as_cells(trained_on), with_mri=False), as_cells(new))
    assert alone == pytest.approx(0.5 ** 0.5, abs=0.07) and both > 0.95
    assert without_mri == pytest.approx(0.5 ** 0.5, abs=0.07)
    shuffled = [
        correlation_of(
            predictor_of(as_cells(np.random.default_rng(i).permutation(trained_on))), as_cells(new)
        )
        for i in range(6)
    ]
    assert np.mean(shuffled) == pytest.approx(alone, abs=0.04)


def test_a_third_of_missing_values_costs_less_than_half_of_the_gain():
    trained_on, new = subjects(150, 0)[1], subjects(300, 1)[1]
    alone = correlation_of(predictor_of(None), None)
    both = correlation_of(predictor_of(as_cells(trained_on)), as_cells(new))
    gappy = correlation_of(predictor_of(as_cells(trained_on, 0.3)), as_cells(new, 0.3))
    assert gappy > (alone + both) / 2


def test_without_its_table_a_predictor_falls_back_to_the_mri():
    predictor = predictor_of(as_cells(subjects(150, 0)[1]))
    assert correlation_of(predictor, None) == pytest.approx(0.5 ** 0.5, abs=0.07)


@pytest.mark.parametrize("missing", [1, 2, 9])
def test_a_few_missing_values_do_not_shift_everybody_without_the_table(missing):
    marker, (mri, _, amount, _) = as_cells(subjects(150, 0)[1]), subjects(300, 1)
    for seed in range(4):
        gappy = marker.copy()
        gappy.loc[np.random.default_rng(seed).permutation(150)[:missing], "marker"] = ""
        error = predictor_of(gappy).soft_labels(mri)[:, 1].numpy() - amount
        assert abs(error.mean()) < 0.3 and (error ** 2).mean() ** 0.5 < 1.1    # by the MRI alone -0.13, 1.01


def test_the_second_step_is_the_linear_regression_of_what_the_first_predicts_and_the_covariate():
    mri, marker, amount, _ = subjects(150, 0)
    predictor = predictor_of(as_cells(marker))
    new_mri, new_marker, _, _ = subjects(40, 3)
    first = LabelPredictor.cross_fit(mri, (amount > 0).astype(int), np.stack([-amount, amount], axis=1),
                                     torch.ones(6, 6, 6), 1, 0)
    mri_only = first._regress(new_mri, None)[:, 1].numpy()
    design = np.column_stack([mri_only, new_marker])
    found = predictor._regress(new_mri, as_cells(new_marker))[:, 1].numpy()
    fit = LinearRegression().fit(design, found)
    np.testing.assert_allclose(fit.predict(design), found, atol=1e-3)      # a plane in these two, and no more
    assert (fit.coef_ > 0.7).all()


def test_a_predictor_survives_its_checkpoint_and_an_mri_gets_the_same_in_any_company(tmp_path):
    marker, (mri, new, _, _) = subjects(150, 0)[1], subjects(7, 4)
    predictor = predictor_of(as_cells(marker))
    torch.save(predictor.state(), tmp_path / "state")
    again = LabelPredictor.from_state(torch.load(tmp_path / "state", weights_only=True))
    together = again.label(mri, as_cells(new))
    assert torch.equal(together, predictor.label(mri, as_cells(new))) and again.covariates == ("marker",)
    one_by_one = torch.cat([again.label(mri[i:i + 1], as_cells(new[i:i + 1])) for i in range(7)])
    assert torch.equal(together, one_by_one)


def test_an_older_checkpoint_knows_no_covariates():
    state = predictor_of(None).state()
    del state["coder"], state["second"]
    assert LabelPredictor.from_state(state).covariates == ()


def test_scans_without_a_row_have_empty_cells():
    people = cells(x=["1", "2"]).set_axis(["a", "b"])
    assert cells_of(people, ["b", "z"])["x"].tolist() == ["2", ""] and cells_of(None, ["b"]) is None


def test_the_key_of_cells_follows_every_one_of_them():
    assert cells_key(cells(x=["1", "2"])) == cells_key(cells(x=["1", "2"]))
    assert (
        len({cells_key(table) for table in (cells(x=["1", "2"]), cells(x=["2", "1"]), cells(y=["1", "2"]))})
        == 3
    )


# ---------------------------------------------------------------- amyloid status

def status_list(n: int, seed: int) -> pd.DataFrame:
    """A list of subjects with pooled MRIs [3, 3, 3] and a marker, both of which say something of the
    label."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    mri = 0.5 + 0.1 * label[:, None, None, None] + 0.4 * rng.standard_normal((n, 3, 3, 3))
    marker = label + rng.standard_normal(n)
    return pd.DataFrame({"ID": [f"s{i}" for i in range(n)], "label": label, "mri": list(mri),
                         "covariate marker": [f"{value:.5f}" for value in marker],
                         "covariate sex": ["F", "M", ""] * (n // 3)})


def test_status_from_covariates_is_scikit_learns_logistic_regression():
    train, test = status_list(60, 0), status_list(30, 1)
    classifier = CovariateClassifier.fit(train, 0, np.ones((6, 6, 6), bool), 2)

    def design(table: pd.DataFrame) -> np.ndarray:
        """Marker, whether the sex is m, and whether it is missing, standardised on the training list."""
        is_known, is_m = table["covariate sex"] != "", table["covariate sex"] == "M"
        known = (train["covariate sex"] != "").mean()
        marker = (table["covariate marker"].astype(float) - train["covariate marker"].astype(float).mean()
                  ) / train["covariate marker"].astype(float).std(ddof=0)
        sex = np.where(is_known, (is_m - 0.5) / 0.5, 0)
        return np.column_stack([marker, sex, (~is_known - (1 - known)) / (known * (1 - known)) ** 0.5])

    expected = LogisticRegression().fit(design(train), train["label"]).predict_proba(design(test))[:, 1]
    np.testing.assert_allclose(classifier.score(test), expected, atol=1e-6)
    assert classifier.score(test.iloc[[7]])[0] == classifier.score(test)[7]


def test_status_from_covariates_and_mri_is_better_than_from_either_and_survives_its_file(tmp_path):
    train, test = status_list(120, 0), status_list(300, 1)
    tables = [table.assign(pet=table["mri"]) for table in (train, test)]
    classifiers = fit_status_classifiers(*tables, np.ones((6, 6, 6), bool), 2, seed=0)
    auc = {name: roc_auc_score(test["label"], classifiers[name].score(tables[1]))
           for name in ("mri", "covariates", "covariates_mri")}
    assert auc["covariates_mri"] > max(auc["mri"], auc["covariates"]) + 0.03
    bound_to = dict.fromkeys(("mri", "covariates", "covariates_mri"), "x")
    save_status_classifiers(tmp_path / "file.npz", classifiers, bound_to)
    again = load_status_classifiers(tmp_path / "file.npz", bound_to)
    for name in bound_to:
        np.testing.assert_array_equal(again[name].score(tables[1]), classifiers[name].score(tables[1]))
        assert again[name].threshold == classifiers[name].threshold


# ---------------------------------------------------------------- a run with them

DRAWS = False
PHANTOM = {"data_dir": "data/phantom", "phantom_subjects": (6, 4, 4), "phantom_voxel": 8, "regions": "auto",
           "exp": "a", "covariates": ("ptau217", "mmse", "sex")}
MRI = "data/phantom/whole_MRI"


def run(*argv: str) -> int:
    """Exit code of main.py with these words."""
    try:
        return main.main(list(argv))
    except SystemExit as stop:
        return stop.code


def train(*stages: str, **settings) -> int:
    """Exit code of these stages of the experiment with covariates."""
    return run(*arguments(TINY | PHANTOM | settings), "--stages", *stages)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project folder with a tiny experiment that was trained with covariates."""
    root = tmp_path_factory.mktemp("covariates")
    before = os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert train("check", "aae", "encode", "ldm", "test") == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def inside(project, monkeypatch) -> Path:
    """That folder as the working directory, without pictures."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(volume_figures, "plot_overlay", lambda path, *_: path.touch())
    return project


def test_status_is_read_from_covariates_with_and_without_the_mri(inside):
    predictions = pd.read_csv("result/a/predictions.csv")
    found = predictions[predictions["classifier"].isin(["covariates", "covariates_mri"])]
    assert len(found) == 8 and set(found["method"]) == {"none"}
    assert found["score"].between(0, 1).all() and found.groupby("classifier")["score"].nunique().min() > 1


@pytest.mark.parametrize("names", [(), ("mmse", "ptau217", "sex"), ("ptau217",)])
def test_other_covariates_than_those_of_the_training_are_refused(inside, capsys, names):
    assert train("test", covariates=names) == 2
    message = capsys.readouterr().err
    assert "covariates" in message and "--exp" in message


def test_other_values_of_the_training_list_are_refused(inside, capsys):
    info = Path("data/phantom/data_info/data_info.csv")
    before = info.read_text()
    table = pd.read_csv(info)
    table["mmse"] = table["mmse"][::-1].to_numpy()
    table.to_csv(info, index=False)
    try:
        assert train("test") == 2
    finally:
        info.write_text(before)
    assert "covariates of the training list" in capsys.readouterr().err


def synthesized(out: str, *words: str) -> pd.DataFrame:
    """The table of a synthesis of the cohort's MRIs."""
    assert run("synthesize", "--exp", "a", "--mri", MRI, "--out", out, *words) == 0
    return pd.read_csv(f"{out}/synthesized.csv").set_index("ID")


def table_of(path: str, **columns) -> str:
    """A table of the cohort's subjects with their covariates, some columns changed or, with None, left
    out."""
    table = pd.read_csv("data/phantom/data_info/data_info.csv").drop(columns=["label", "age"])
    for name, values in columns.items():
        table = table.drop(columns=name) if values is None else table.assign(**{name: values})
    table.to_csv(path, index=False)
    return path


def test_new_scans_take_their_covariates_from_a_table(inside, capsys):
    without = synthesized("out_without")
    assert "without --table all of these count as missing" in capsys.readouterr().out
    with_table = synthesized("out_table", "--table", table_of("new.csv"))
    assert set(with_table["covariates"]) == {"ptau217, mmse, sex"} and set(without["covariates"]) == {
        "none known"
    }
    assert (with_table["p_label_1"] - without["p_label_1"]).abs().max() > 1e-3
    assert {"p_covariates", "p_covariates_mri", "positive_covariates"} <= set(with_table.columns)
    tested = (
        pd.read_csv("result/a/predictions.csv")
        .query("classifier == 'covariates_mri'")
        .set_index("ID")["score"]
    )
    assert with_table.loc[tested.index, "p_covariates_mri"].tolist() == pytest.approx(
        tested.tolist(), abs=1e-6
    )
    uptake = pd.read_csv("result/a/uptake.csv").query("method == 'il_cldm'").set_index("ID")["SUVR"]
    assert with_table.loc[uptake.index, "SUVR"].tolist() == pytest.approx(uptake.tolist(), abs=2e-3)


def test_a_column_that_is_missing_is_said_and_the_others_are_used(inside, capsys):
    found = synthesized("out_less", "--table", table_of("less.csv", mmse=None))
    assert set(found["covariates"]) == {"ptau217, sex"}
    assert "covariate mmse: not known of 14 of 14 scans" in capsys.readouterr().out


def test_a_code_for_a_missing_value_is_said_as_an_empty_cell_is(inside, capsys):
    found = synthesized("out_code", "--table", table_of("code.csv", mmse=-4))
    assert set(found["covariates"]) == {"ptau217, sex"}
    assert "covariate mmse: not known of 14 of 14 scans" in capsys.readouterr().out


def test_other_values_of_a_subject_make_another_pet(inside, capsys):
    synthesized("out_twice", "--table", table_of("one.csv"))
    command = ("synthesize", "--exp", "a", "--mri", MRI, "--out", "out_twice", "--table")
    assert run(*command, table_of("two.csv", mmse=30)) == 2
    assert "covariate mmse" in capsys.readouterr().err
    assert run(*command, "one.csv") == 0


@pytest.mark.parametrize("columns, message", [
    ({"sex": "X"}, "covariate sex: 'X' in 14 row(s); expected one of f, m"),
    ({"mmse": "good"}, "covariate mmse: 'good' in 14 row(s); expected a number"),
    ({"ptau217": 600}, "in another unit?"),
    ({"ID": "nobody"}, "no row belongs to any of the 14 MRIs"),
    ({"ID": None}, "no column of IDs"),
    ({"mmse": None, "sex": None, "ptau217": None}, "none of the columns ptau217, mmse, sex is there"),
])
def test_a_table_that_cannot_be_used_is_refused_before_anything_is_written(inside, capsys, columns, message):
    assert (
        run(
            "synthesize",
            "--exp",
            "a",
            "--mri",
            MRI,
            "--out",
            "out_bad",
            "--table",
            table_of("bad.csv", **columns),
        )
        == 2
    )
    assert message in capsys.readouterr().err and not Path("out_bad").exists()


def test_rows_of_a_subject_that_differ_are_refused_and_equal_ones_read(inside, capsys):
    table = pd.read_csv(table_of("twice.csv"))
    pd.concat([table, table]).to_csv("twice.csv", index=False)
    assert set(synthesized("out_equal", "--table", "twice.csv")["covariates"]) == {"ptau217, mmse, sex"}
    pd.concat([table, table.assign(mmse=12)]).to_csv("twice.csv", index=False)
    assert run("synthesize", "--exp", "a", "--mri", MRI, "--out", "out_differ", "--table", "twice.csv") == 2
    assert "phantom001: 2 rows that differ" in capsys.readouterr().err


@pytest.mark.parametrize("column, change", [
    ("participant_id", "sub-{}"), ("Subject", "{}"), ("id", "{}"), ("ID", "PHANTOM{}")])
def test_ids_are_found_under_the_names_and_spellings_of_others(inside, column, change):
    table = pd.read_csv(table_of("other.csv"))
    numbers = table["ID"].str.removeprefix("phantom")
    table["ID"] = [change.format(number if "PHANTOM" in change else f"phantom{number}") for number in numbers]
    table.rename(columns={"ID": column}).to_csv("other.tsv", sep="\t", index=False)
    out = f"out_{column}_{len(change)}"
    assert set(synthesized(out, "--table", "other.tsv")["covariates"]) == {"ptau217, mmse, sex"}


def test_covariates_that_no_label_takes_up_are_said_to_be_for_classifiers_alone(inside, capsys):
    assert train("check", label_at_sampling="none", exp="c") == 0
    assert "covariates (ptau217, mmse, sex): seen by the status classifiers alone" in capsys.readouterr().out
    with pytest.raises(InputError, match="samples without a label"):
        with_covariates([], "table.csv", None, "(.*)")


def test_a_column_that_is_not_there_is_refused_before_training(inside, capsys):
    assert train("check", covariates=("ptau217", "iq"), exp="b") == 2
    assert "has no column 'iq'" in capsys.readouterr().err
