"""The benchmark: that it measures what it says, and computes the cost of a run from that."""
import dataclasses
import gc
import json
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY, arguments

from config import PRESETS, Config
from experiment.networks import build_unet
from runtime.commandline import parse
from studies import benchmark, parts
from studies import gpu as gpu_study

CFG = Config(**TINY)
MATCHED = parse(Config, ["--preset", "demo"], "main.py benchmark", "", PRESETS)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("part", parts.PARTS)
def test_every_part_can_be_measured(part, published):
    seconds, memory = benchmark.measure(part, CFG, published, quick=True)
    assert seconds > 0
    assert memory > 0.05


def test_the_head_is_not_empty():
    head = parts.Setup(CFG, False).head()
    assert head.shape == CFG.image_size
    assert 0 <= head.min() < head.std() < head.max() <= 1
    assert (head > 0.3).mean() > 0.1


def test_volumes_and_latents_are_random_and_not_zero():
    setup = parts.Setup(CFG, False)
    x, z = setup.volumes(2), setup.latents(2)
    assert x.shape == (2, 1, *CFG.volume_size) and 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1
    assert z.shape == (2, CFG.latent_channels, *CFG.latent_size) and abs(z.mean()) < 0.1
    assert x.std() > 0.2 and z.std() > 0.9 and not torch.equal(x[0], x[1])


def test_as_published_is_float32_in_the_default_layout_without_a_cache():
    cfg = dataclasses.replace(CFG, precision="bf16", recompute=True)
    plain, ours = parts.Setup(cfg, True), parts.Setup(cfg, False)
    assert (plain.cfg.precision, plain.cfg.cache, plain.cfg.recompute) == ("fp32", "off", False)
    assert (plain.dtype, ours.dtype) == (torch.float32, torch.bfloat16)
    assert ours.cfg == cfg
    for setup, layout in ((plain, torch.contiguous_format), (ours, torch.channels_last_3d)):
        network = setup.build(build_unet)
        weights = [weight for weight in network.parameters() if weight.dim() == 5]
        assert weights and all(weight.is_contiguous(memory_format=layout) for weight in weights)
    convolution = plain.build(build_unet).mid[0].conv1     # its weight cannot have both layouts at once
    assert not convolution.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_optimizers_are_plain_as_published_and_fused_in_ours(monkeypatch):
    fused = []
    for name in ("Adam", "AdamW"):
        kind = getattr(torch.optim, name)

        def noted(*args, kind=kind, **options):
            """The optimizer, whose options are noted."""
            fused.append(options["fused"])
            return kind(*args, **options)
        monkeypatch.setattr(parts.torch.optim, name, noted)
    for published in (True, False):
        fused.clear()
        parts.stage_1_step(parts.Setup(CFG, published))
        parts.stage_2_step(parts.Setup(CFG, published))
        assert fused == [not published] * 3


def test_the_image_loss_is_part_of_our_step_alone(monkeypatch):
    batches = []

    def noted(unet, opt, stage_2, batch, cast):
        """Note the weight of the image loss and whether there are PETs."""
        batches.append((stage_2.image_loss, batch.pet is not None))
    monkeypatch.setattr(parts, "ldm_step", noted)
    for published in (True, False):
        action, _ = parts.stage_2_step(parts.Setup(CFG, published))
        action()
    assert batches == [(0.0, False), (CFG.image_loss, True)]


def test_the_extractor_runs_in_every_evaluation_as_published_and_never_in_ours(monkeypatch):
    seen = []

    def watched(*args):
        """A denoiser that notes when its Extractor runs."""
        unet = build_unet(*args)
        unet.extractor.register_forward_hook(lambda *_: seen.append(1))
        return unet
    monkeypatch.setattr(parts, "build_unet", watched)
    for published in (True, False):
        action, samples = parts.network_evaluation(parts.Setup(CFG, published))
        seen.clear()
        action()
        action()
        assert (len(seen), samples) == ((2, 1) if published else (0, CFG.samples_per_scan))


def test_a_scan_has_a_pet_and_the_network_evaluations_of_one_pass(monkeypatch):
    evaluated = []

    def counted(*args):
        """A denoiser that notes how many latent samples each evaluation has."""
        unet = build_unet(*args)
        unet.out.register_forward_hook(lambda _module, _inputs, output: evaluated.append(len(output)))
        return unet
    monkeypatch.setattr(parts, "build_unet", counted)
    cfg = dataclasses.replace(CFG, upsampling="transposed")    # untrained, the other one gives zeros alone
    action, _ = parts.scan_pass(parts.Setup(cfg, False))
    x_hat = action()
    assert x_hat.shape == (1, 1, *CFG.volume_size) and x_hat.std() > 0
    assert sum(evaluated) == benchmark.scan_nfe(CFG) == CFG.samples_per_scan * CFG.sampling_steps


def test_matched_takes_two_passes():
    assert (benchmark.passes(CFG), benchmark.passes(MATCHED)) == (1, 2)
    assert benchmark.scan_nfe(MATCHED) == 4 * 2 * 2
    ddpm = dataclasses.replace(CFG, sampler="ddpm")
    assert benchmark.scan_nfe(ddpm) == CFG.samples_per_scan * (CFG.timesteps - 1)
    assert benchmark.published_nfe(CFG) == CFG.timesteps - 1


def test_seconds_are_the_median_after_a_warm_up_for_a_unit_of_work(monkeypatch):
    clock, taken = [0.0], iter([0.5, 0.02, 0.02, 0.3, 0.02, 0.02, 9.0])        # a slow start, and an outlier

    def action():
        """Let the clock go on."""
        clock[0] += next(taken)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    monkeypatch.setitem(parts.PARTS, "encode", lambda setup: (action, 2))
    assert benchmark.measure("encode", CFG, False, quick=False)[0] == pytest.approx(0.01)


def test_on_a_gpu_the_clock_waits_for_it_and_its_memory_is_measured(monkeypatch):
    """Without a GPU: a setup that says it is on one, and counters in the place of torch's functions."""
    clock, pending = [0.0], [0.0]

    class OnGpu(parts.Setup):
        """A setup on a GPU."""

        def __init__(self, cfg, published):
            super().__init__(cfg, published)
            self.device = torch.device("cuda")
            pending[0] = 5.0                               # what is still being copied

    def launch():
        """Return at once; the GPU works for 0.2 s."""
        pending[0] += 0.2

    def synchronize():
        """Wait for the GPU."""
        clock[0], pending[0] = clock[0] + pending[0], 0.0
    monkeypatch.setattr(benchmark, "Setup", OnGpu)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2 ** 30)
    monkeypatch.setitem(parts.PARTS, "encode", lambda setup: (launch, 2))
    assert benchmark.measure("encode", CFG, False, quick=False) == (pytest.approx(0.1), 3.0)


def test_a_part_whose_memory_does_not_suffice_is_left_out_and_other_faults_are_not(monkeypatch, capsys):
    class Pool:
        """A pool whose worker raises an error."""

        def __init__(self, *_, **__):
            self.error = errors.pop()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def submit(self, *_):
            """The pool, in the place of a future."""
            return self

        def result(self):
            """Raise the error."""
            raise self.error

        def shutdown(self, **_):
            """End."""
    no_memory = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    errors = [ZeroDivisionError("x"), no_memory, MemoryError()]
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", Pool)
    for _ in range(2):
        seconds, memory = benchmark.measure_apart("encode", CFG, False, True)
        assert seconds != seconds and memory != memory     # NaN
        assert "encode: not measured" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        benchmark.measure_apart("encode", CFG, False, True)


def made_up(part, _cfg, published, _quick):
    """Seconds and memory in the place of measured ones."""
    if published:
        assert part != parts.SCAN                      # it is extrapolated
        return 8.0, 2.0
    return {parts.SCAN: 14.0}.get(part, 2.0), 1.0


def test_the_tables_hold_ratios_an_extrapolated_scan_and_a_computed_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "measure_apart", made_up)
    assert benchmark.main(["--quick", "--preset", "published", *arguments(TINY)]) == 0
    table = pd.read_csv(tmp_path / "result" / "benchmark" / "benchmark.csv").set_index("part")
    assert table.index.tolist() == list(parts.PARTS)
    assert (table.drop(parts.SCAN)["ratio"] == 4).all()
    assert table.loc[parts.SCAN, "published_s"] == 19 * 8 + 8              # T - 1 evaluations, a decode
    assert (table["published_scan_NFE"] == 19).all()
    assert f"torch {torch.__version__}" in table["machine"].iloc[0]
    assert "computed from these, not measured" in capsys.readouterr().out


@pytest.mark.parametrize("size, passes", [("tiny", 1), ("demo", 2)])
def test_a_computed_run_is_made_of_the_measured_parts(tmp_path, monkeypatch, capsys, size, passes):
    """Three latent samples of 2 steps with ddim, validated with 2 steps of one sample; 14 s a pass."""
    changes = {"validation_every": 2, "sampling_steps": 2, "samples_per_scan": 3, "validation_steps": 2,
               "aae_epochs": 2, "ldm_epochs": 2, "timesteps": 20}
    words = arguments(TINY | changes) if size == "tiny" else ["--preset", "demo", *arguments(changes)]
    preset = [] if size == "demo" else ["--preset", "benchmark", "--phantom_subjects", "0", "0", "0"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "measure_apart", made_up)
    assert benchmark.main(["--quick", *preset, *words]) == 0
    table = pd.read_csv(tmp_path / "result" / "benchmark" / "benchmark.csv").set_index("part")
    assert (table["scan_NFE"] == 3 * 2 * passes).all()
    assert table.loc[parts.SCAN, "seconds"] == 14 * passes
    cost = pd.read_csv(tmp_path / "result" / "benchmark" / "run_cost_given.csv")
    cost = cost.set_index("of a computed run")
    assert cost.loc["stage 1 training", "published_h"] == pytest.approx(2 * 204 * 8 / 3600)
    assert cost.loc["stage 2 validation", "published_h"] == pytest.approx(2 * 51 * (160 + 8) / 3600)
    one_sample = (14 - 2) / 3                              # of one pass, without its decoding
    assert cost.loc["stage 2 validation", "hours"] == pytest.approx(1 * 51 * (one_sample + 2 + 2) / 3600)
    assert cost.loc["test", "hours"] == pytest.approx(51 * (14 * passes + 2) / 3600)
    assert cost.loc["all", "hours"] == pytest.approx(cost["hours"].iloc[:-1].sum())
    assert ("twice those of one pass" in capsys.readouterr().out) == (passes == 2)


def test_without_a_preset_paper_and_demo_size_are_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "measure_apart", made_up)
    assert benchmark.main(["--device", "cpu"]) == 0
    table = pd.read_csv(tmp_path / "result" / "benchmark" / "benchmark.csv")
    assert table["size"].unique().tolist() == ["paper", "demo"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(["--preset", "demo", "--device", "cuda"]) == 2
    assert "device cuda" in capsys.readouterr().err


# ---------------------------------------------------------------- on a GPU, as far as a CPU can tell

def dry_run(*words: str) -> dict:
    """What a dry run leaves in its file."""
    assert benchmark.main(["--dry_run", *words]) == 0
    return json.loads(Path("result/benchmark/gpu.json").read_text())


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """Each row of a dry run looks for garbage: among its own objects alone, not in all imported modules."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_a_dry_run_takes_every_row_and_a_second_call_none_again(tmp_path, monkeypatch, capsys,
                                                                little_garbage):
    """With tests/test_gpu.py in its place, which is run on its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_study, "gpu_tests", lambda: {"result": "not here"})
    monkeypatch.setattr(gpu_study, "LOADED_STEPS", 8)
    found = dry_run("--num_workers", "0")
    rows = [f"{row.table}: {row.name}" for row in gpu_study.rows(Config())]
    assert list(found["rows"]) == rows and len(set(rows)) == len(rows) > 50
    assert not [name for name, values in found["rows"].items() if "failed" in values]
    measured = [values["seconds"] for values in found["rows"].values() if "seconds" in values]
    assert len(measured) > 40 and min(measured) > 0
    page = Path("result/benchmark/gpu.md").read_text()
    assert "hours of 1000 + 1000 epochs with 408 + 51 + 51 subjects" in page
    assert all(name in page for name in rows)
    capsys.readouterr()
    assert dry_run("--num_workers", "0") == found
    assert f"{len(rows)} rows are there already" in capsys.readouterr().out


def test_a_call_ends_with_its_minutes_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clock, measured = [0.0], []

    def measure(name: str) -> dict:
        """Take 50 seconds; the second row fails."""
        clock[0] += 50
        measured.append(name)
        if name == "b":
            raise RuntimeError("no such kernel")
        return {"seconds": 1.0}
    monkeypatch.setattr(gpu_study, "rows", lambda cfg: [gpu_study.Row("t", name, partial(measure, name))
                                                        for name in "abcd"])
    monkeypatch.setattr(gpu_study.time, "monotonic", lambda: clock[0])
    found = dry_run("--minutes", "1.5")["rows"]
    assert list(found) == ["t: a", "t: b"] and found["t: b"] == {"failed": "RuntimeError: no such kernel"}
    assert set(dry_run("--minutes", "10")["rows"]) == {"t: a", "t: b", "t: c", "t: d"}
    assert measured == list("abbcd")                       # what failed is tried again


def test_rows_of_another_machine_are_not_continued_nor_are_those_that_failed(tmp_path):
    file, failed = tmp_path / "gpu.json", {"failed": "no such kernel"}
    file.write_text(json.dumps({"about": {"machine": "x"}, "rows": {"a": {"seconds": 1.0}, "b": failed}}))
    assert gpu_study._measured_before(file, {"machine": "x"}) == {"a": {"seconds": 1.0}}
    assert gpu_study._measured_before(file, {"machine": "y"}) == {}
    file.write_text("cut")
    assert gpu_study._measured_before(file, {"machine": "x"}) == {}


def test_the_hours_of_a_run_on_a_gpu_are_those_of_its_rows():
    seconds = {"steps: stage 1 training step, batch 2, bf16": 0.1, "parts: encode, batch 4, bf16": 0.02,
               "steps: stage 2 training step, batch 2, bf16": 0.2, "parts: decode, batch 4, bf16": 0.03,
               "parts: network evaluation, batch 8, bf16": 0.004, "parts: scores of a volume": 0.01,
               "parts: one scan, bf16": 0.5}
    found = {name: {"seconds": value} for name, value in seconds.items()}
    hours = gpu_study.hours_of(Config(), found)
    assert hours["stage 1 training"] == pytest.approx(1000 * 204 * 0.1 / 3600)
    assert hours["stage 2 validation"] == pytest.approx(1000 * 51 * (2 * 0.004 + 0.03 + 0.01) / 3600)
    assert hours["all"] == pytest.approx(sum(value for name, value in hours.items() if name != "all"))
    assert gpu_study.hours_of(Config(), {name: found[name] for name in list(found)[1:]}) == {}


def test_what_an_earlier_row_took_is_given_back_even_if_its_network_refers_to_itself(monkeypatch):
    """As a network does whose passes were captured: only a search for circles frees it."""
    earlier = []

    def decode(setup):
        assert all(gone() is None for gone in earlier)
        network = torch.nn.Linear(1, 1)
        network.forward = lambda: network.weight
        earlier.append(weakref.ref(network))
        return network.forward, 1

    monkeypatch.setitem(gpu_study.PARTS, "decode", decode)
    cfg = dataclasses.replace(Config(), device="cpu", **gpu_study.TINY)
    gc.disable()
    try:
        gpu_study.part(cfg, "decode")
        gpu_study.part(cfg, "decode")
    finally:
        gc.enable()
    assert len(earlier) == 2
