"""Image scores and their tables."""
import numpy as np
import pandas as pd
import pytest
import torch
from nilearn.datasets import load_mni152_template
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader

from evaluation.scores import Prediction, evaluate, mean_over_scans, summarize
from utils import METRICS, InputError, NotFiniteError, score_on_device, score_volume


@pytest.mark.parametrize("score", [score_volume, score_on_device])
def test_scores_equal_their_definitions(score):
    rng = np.random.default_rng(0)
    x, x_hat = rng.random((2, 9, 10, 11)).astype(np.float32)
    brain = np.zeros(x.shape, bool)
    brain[3:6, 4:7, 2:9] = True
    scores = score(torch.from_numpy(x_hat), torch.from_numpy(x), brain)
    assert scores["PSNR"] == pytest.approx(-10 * np.log10(np.mean((x - x_hat) ** 2)), rel=1e-5)
    assert scores["PSNR_brain"] == pytest.approx(-10 * np.log10(np.mean((x - x_hat)[brain] ** 2)), rel=1e-5)
    assert scores["MAE_brain"] == pytest.approx(np.abs(x - x_hat)[brain].mean(), rel=1e-5)

    def ssim_at(i, j, k):  # Wang et al. 2004, uniform 7^3 window, sample covariances, data range 1
        a, b = (v[i - 3:i + 4, j - 3:j + 4, k - 3:k + 4].astype(float).ravel() for v in (x, x_hat))
        covariance = np.cov(a, b)
        return ((2 * a.mean() * b.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
                / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)))
    inner = [ssim_at(i, j, k) for i in range(3, 6) for j in range(3, 7) for k in range(3, 8)]
    assert scores["SSIM"] == pytest.approx(np.mean(inner), abs=1e-5)
    inside = [ssim_at(i, j, k) for i in range(3, 6) for j in range(4, 7) for k in range(3, 8)]
    brain[:, :, [2, 8]] = False
    assert score(torch.from_numpy(x_hat), torch.from_numpy(x), brain)["SSIM_brain"] == pytest.approx(
        np.mean(inside), abs=1e-5
    )


def test_a_perfect_volume_scores_perfectly():
    x = torch.rand(8, 8, 8)
    with np.errstate(divide="ignore"):                     # the PSNR is infinite
        scores = score_volume(x, x, x.numpy() > 0.5)
    assert (scores["SSIM"], scores["MAE"], scores["SSIM_brain"]) == (pytest.approx(1), 0, pytest.approx(1))


def test_evaluate_gives_a_row_a_subject_whatever_the_batch_and_refuses_nan():
    x = torch.rand(3, 1, 8, 8, 8)
    brain = np.ones((8, 8, 8), bool)

    def score(x_hat, volumes):
        return score_volume(x_hat, volumes["pet"], brain)
    together = [{"id": ["a", "b", "c"], "label": torch.tensor([0, 1, 0]), "pet": x}]
    alone = [{"id": [name], "label": torch.tensor([label]), "pet": x[i:i + 1]}
             for i, name, label in ((0, "a", 0), (1, "b", 1), (2, "c", 0))]
    one, three = (
        evaluate(lambda batch: batch["pet"] * 0.9, loader, score, "t") for loader in (together, alone)
    )
    pd.testing.assert_frame_equal(one, three)
    assert one["ID"].tolist() == ["a", "b", "c"]
    assert one["label"].tolist() == [0, 1, 0]
    # more than the threads take at once
    table = evaluate(lambda batch: batch["pet"] * 0.9, alone * 20, score, "t")
    pd.testing.assert_frame_equal(table, pd.concat([three] * 20, ignore_index=True))
    broken = x.clone()
    broken[1, 0, 0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="the volume of b is not finite"):
        evaluate(lambda batch: broken, together, score, "t")

    def fail(x_hat, volumes):
        raise InputError("found while it was measured")
    with pytest.raises(InputError, match="found while it was measured"):
        evaluate(lambda batch: batch["pet"], together, fail, "t")


def test_a_measure_gets_the_volumes_of_its_scan_and_what_is_predicted_beside_them_stands_in_the_row():
    """In the order: who, what predict says of him, what is measured; and none of it moves to another row."""
    mri, pet = torch.rand(5, 1, 2, 2, 2), torch.rand(5, 1, 2, 2, 2)
    ids = [f"s{i}" for i in range(5)]
    batches = [{"id": ids[:3], "label": torch.tensor([0, 1, 0]), "mri": mri[:3], "pet": pet[:3]},
               {"id": ids[3:], "label": torch.tensor([1, 1]), "mri": mri[3:], "pet": pet[3:]}]

    def predict(batch):
        return Prediction(2 * batch["pet"], {"first": batch["mri"].flatten(1)[:, 0].tolist()})

    def measure(x_hat, volumes):
        assert volumes.keys() == {"mri", "pet"}
        assert torch.equal(x_hat, 2 * volumes["pet"]) and x_hat.shape == (2, 2, 2)
        return {"brightest": volumes["mri"].max().item()}
    table = evaluate(predict, batches, measure, "t")
    assert table.columns.tolist() == ["ID", "label", "first", "brightest"]
    assert table["ID"].tolist() == ids and table["label"].tolist() == [0, 1, 0, 1, 1]
    assert table["first"].tolist() == mri.flatten(1)[:, 0].tolist()
    assert table["brightest"].tolist() == mri.flatten(1).max(dim=1).values.tolist()
    without_mri = [{name: value for name, value in batch.items() if name != "mri"} for batch in batches]
    names = evaluate(lambda batch: batch["pet"], without_mri, lambda x_hat,
                     volumes: {"names": "".join(volumes)}, "t")["names"]
    assert names.tolist() == ["pet"] * 5


def test_nothing_that_is_evaluated_keeps_a_graph():
    weight = torch.ones(1, requires_grad=True)

    def measure(x_hat, volumes):
        return {"needs gradients": x_hat.requires_grad}
    batch = {"id": ["a"], "label": torch.tensor([0]), "pet": torch.rand(1, 1, 2, 2, 2)}
    assert not evaluate(lambda batch: weight * batch["pet"], [batch], measure, "t")["needs gradients"].any()


def test_a_mean_over_scans_counts_every_scan_once_in_batches_of_any_size():
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return {"id": f"s{i}", "value": float(i ** 2)}
    for size in (1, 2, 3, 5):
        loader = DataLoader(Items(), batch_size=size)
        assert mean_over_scans(lambda batch: batch["value"].mean().item(), loader) == pytest.approx(6.0)


def test_summary_has_mean_standard_deviation_and_n_of_each_method():
    scores = pd.DataFrame({"method": ["b", "b", "a"], **dict.fromkeys(METRICS, [1.0, 3.0, 5.0])})
    table = summarize(scores)
    first = table.iloc[0]
    assert (first["method"], first["metric"], first["mean"], first["n"]) == ("b", "PSNR", 2.0, 2)
    assert first["std"] == pytest.approx(np.sqrt(2))
    assert len(table) == 12
    assert METRICS == ("PSNR", "SSIM", "MAE", "PSNR_brain", "SSIM_brain", "MAE_brain")
    assert table["method"].tolist() == ["b"] * 6 + ["a"] * 6
    assert table["metric"].tolist() == [*METRICS] * 2


def volumes(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume and a poor copy of it: random ones, or the MNI152 T1 and its blurred self at 4 mm."""
    rng = np.random.default_rng(1)
    if kind == "random":
        return tuple(torch.from_numpy(rng.random((24, 20, 28), np.float32)) for _ in range(2))
    x = load_mni152_template(resolution=4).get_fdata(dtype=np.float32)
    x = x / x.max()
    return torch.from_numpy(x), torch.from_numpy(
        gaussian_filter(x, 0.6) + 0.01 * rng.random(x.shape, np.float32)
    )


@pytest.mark.parametrize("kind", ["random", "real"])
def test_scores_on_a_device_agree_with_scikit_image(kind):
    x, x_hat = volumes(kind)
    brain = x.numpy() > 0.4
    brain[0, :5] = True                                    # the map's rim counts too
    expected, found = score_volume(x_hat, x, brain), score_on_device(x_hat, x, brain)
    assert list(found) == list(METRICS)
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
