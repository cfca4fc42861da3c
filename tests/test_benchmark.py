"""The benchmark: that it measures what it says, and computes the cost of a run from that."""
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments

from config import Config
from studies import benchmark

CFG = Config(**TINY)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("part", benchmark.PARTS)
def test_every_part_can_be_measured(part, published):
    seconds, memory = benchmark.measure(part, CFG, published, quick=True)
    assert seconds > 0
    assert memory > 0.05


def test_the_volumes_are_not_empty():
    head = benchmark.Setup(CFG, False).head()
    assert head.shape == CFG.image_size
    assert 0 <= head.min() < head.std() < head.max() <= 1
    assert (head > 0.3).mean() > 0.1


def test_as_published_is_float32_in_the_default_layout_without_a_cache():
    plain, ours = benchmark.Setup(CFG, True).cfg, benchmark.Setup(CFG, False).cfg
    assert (plain.channels_last, plain.precision, plain.cache) == ("off", "fp32", "off")
    assert ours == CFG


def test_the_extractor_runs_in_every_call_as_published_and_never_in_ours(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "build_unet", lambda *args: watched(seen, *args))
    for published in (True, False):
        action, draws = benchmark.denoiser_call(benchmark.Setup(CFG, published))
        seen.clear()
        action()
        action()
        assert (len(seen), draws) == ((2, 1) if published else (0, CFG.samples_per_scan))


def watched(seen, *args):
    from experiment.networks import build_unet
    unet = build_unet(*args)
    unet.extractor.register_forward_hook(lambda *_: seen.append(1))
    return unet


def test_seconds_are_the_median_after_a_warm_up_for_a_unit_of_work(monkeypatch):
    clock, taken = [0.0], iter([0.5, 0.02, 0.02, 0.3, 0.02, 0.02, 9.0])                      # a slow first call, and an outlier

    def action():
        clock[0] += next(taken)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    monkeypatch.setitem(benchmark.PARTS, "encode", lambda setup: (action, 2))
    assert benchmark.measure("encode", CFG, False, quick=False)[0] == pytest.approx(0.01)


def test_the_tables_hold_ratios_an_extrapolated_scan_and_a_computed_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "measure_apart", lambda part, cfg, published, quick:
                        (8.0, 2.0) if published else ({"one scan": 14.0}.get(part, 2.0), 1.0))
    assert benchmark.main(["--quick", "--preset", "paper", *arguments(TINY | {"validation_every": 2})]) == 0
    table = pd.read_csv(tmp_path / "result" / "benchmark" / "benchmark.csv").set_index("part")
    assert table.index.tolist() == list(benchmark.PARTS)
    assert (table.drop("one scan")["ratio"] == 4).all()
    assert table.loc["one scan", "published_s"] == 19 * 8 + 8                                # T - 1 calls, and a decode
    assert f"torch {torch.__version__}" in table["machine"].iloc[0]
    cost = pd.read_csv(tmp_path / "result" / "benchmark" / "run_cost_given.csv").set_index("of a computed run")
    assert cost.loc["stage 1 training", "published_h"] == pytest.approx(2 * 204 * 8 / 3600)
    assert cost.loc["stage 2 validation", "published_h"] == pytest.approx(2 * 51 * (160 + 8) / 3600)
    assert cost.loc["stage 2 validation", "hours"] == pytest.approx(1 * 51 * (2 / 6 * 12 + 2 + 2) / 3600)   # every second epoch
    assert cost.loc["test", "hours"] == pytest.approx(51 * (14 + 2) / 3600)
    assert cost.loc["all", "hours"] == pytest.approx(cost["hours"].iloc[:-1].sum())
    assert "computed from these, not measured" in capsys.readouterr().out
