"""The benchmark of the compared systems: what is timed, what is multiplied, and what the table says."""
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, TINY_SYSTEMS, arguments

from baselines.resvit import Generator
from config import SYSTEMS, Config
from experiment.networks import build_baseline
from runtime.settings import merged
from studies import benchmark, systems
from studies.parts import Setup

CFG = Config(**merged(Config, {}, TINY | TINY_SYSTEMS))
CPU = torch.device("cpu")


def watched(monkeypatch) -> list:
    """The systems that are built from now on."""
    built = []

    def build(*args, **options):
        """A system, which is noted."""
        built.append(build_baseline(*args, **options))
        return built[-1]
    monkeypatch.setattr(systems, "build_baseline", build)
    return built


def weights_of(network) -> torch.Tensor:
    """A copy of all weights of a network, one after another."""
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.parametrize("part", systems.PARTS)
def test_every_part_of_every_system_can_be_measured(part):
    seconds, memory = benchmark.measure(part, CFG, False, quick=True)
    assert seconds > 0
    assert memory > 0.05


TERMS = {"pix2pix": {"disc", "rec", "adv"}, "tpa_gan": {"l1", "mse", "dssim", "adv", "disc"},
         "fgan": {"feature", "adv", "voxel", "disc", "cls"}, "resvit": {"disc", "l1", "adv"}, "ddpm": {"mse"}}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_is_one_of_the_costliest_phase_and_trains(name, monkeypatch):
    built = watched(monkeypatch)
    step, units = systems.training_step(name, Setup(CFG, False))
    [system] = built
    networks = [network for which, network in system.networks.items() if which not in ("ema", "t")]
    before = [weights_of(network) for network in networks]
    losses = step()
    assert units == 1 and set(losses) == TERMS[name]
    assert all(np.isfinite(list(losses.values())))
    for network, old in zip(networks, before, strict=True):
        assert not torch.equal(weights_of(network), old)


@pytest.mark.parametrize("part", [systems.training_step, systems.scan])
def test_the_transformers_of_resvit_take_part(part, monkeypatch):
    seen = []
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward",
                        lambda self, source: seen.append(self.uses_transformers) or forward(self, source))
    part("resvit", Setup(CFG, False))[0]()
    assert seen and all(seen)


@pytest.mark.parametrize("size", [1, 3])
def test_a_step_sees_a_batch_of_the_settings(size, monkeypatch):
    built = watched(monkeypatch)
    step, _ = systems.training_step("ddpm", Setup(dataclasses.replace(CFG, ldm_batch_size=size), False))
    seen = []
    built[0].unet.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    step()
    assert seen == [size]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_scan_is_a_pet(name):
    synthesize, units = systems.scan(name, Setup(CFG, False))
    pet = synthesize()
    assert units == 1 and pet.shape == (1, 1, *CFG.volume_size)
    assert 0 <= pet.min() < pet.max() <= 1
    assert torch.equal(synthesize(), pet)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_scan_takes_the_network_evaluations_that_the_system_says(name):
    system = build_baseline(name, CFG, CPU, None)
    network = next(iter(system.networks.values()))
    if name == "ddpm":                                     # sampling calls its parts, of the moving average
        network = system.ema.module.out
    seen = []
    network.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    for trained in system.networks.values():
        trained.eval()
    system.predict(torch.rand(1, 1, *CFG.volume_size), ids=["s"])
    assert sum(seen) == system.evaluations


def test_evaluations_are_one_a_volume_one_a_slice_or_one_a_step_of_a_sample():
    by_name = {name: systems.metadata_of(name, systems.SCAN, CFG)["network_evaluations"] for name in SYSTEMS}
    assert by_name == dict.fromkeys(SYSTEMS, 1) | {"resvit": CFG.volume_size[2], "ddpm": 3}


@pytest.mark.parametrize("sampler, steps, samples, evaluations, timed", [
    ("ddim", 3, 1, 3, 2), ("ddim", 3, 2, 6, 2), ("ddim", 1, 1, 1, 1), ("ddpm", 3, 1, 19, 2)])
def test_a_scan_of_the_ddpm_is_shortened_and_multiplied(sampler, steps, samples, evaluations, timed):
    changed = dataclasses.replace(CFG.ddpm, sampler=sampler, sampling_steps=steps, samples=samples)
    cfg = dataclasses.replace(CFG, ddpm=changed)
    found = systems.metadata_of("ddpm", systems.SCAN, cfg)
    assert found["network_evaluations"] == evaluations
    assert found["multiplied_by"] == evaluations / timed
    assert build_baseline("ddpm", systems.shortened(cfg), CPU, None).evaluations == timed


@pytest.mark.parametrize("name", SYSTEMS)
def test_parameters_are_those_of_all_networks_in_training_and_of_one_in_synthesis(name):
    system, count = build_baseline(name, CFG, CPU, None), {}
    for part, network in system.networks.items():
        count[part] = sum(weight.numel() for weight in network.parameters())
    count.pop("ema", 0)
    generator = next(iter(count))                          # the network that predicts, by the test above
    assert systems.metadata_of(name, systems.STEP, CFG)["parameters"] == sum(count.values())
    assert systems.metadata_of(name, systems.SCAN, CFG)["parameters"] == count[generator]


def made_up(part, _cfg, published, _quick):
    """Seconds and memory in the place of measured ones; the memory does not suffice for a step of TPA-GAN."""
    assert not published
    return (float("nan"), float("nan")) if part == "tpa_gan, training step" else (8.0, 2.0)


def test_the_table_has_two_rows_a_system_and_says_what_was_multiplied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "measure_apart", made_up)
    words = arguments(TINY | TINY_SYSTEMS | {"ldm_batch_size": 1})
    assert benchmark.main(["--systems", "--quick", "--preset", "published", *words]) == 0
    table = pd.read_csv(tmp_path / "result" / "benchmark" / "systems.csv").set_index(["system", "part"])
    parts = ("training step", "one scan")
    assert table.index.tolist() == [(name, part) for name in SYSTEMS for part in parts]
    assert (table["batch_size"] == 1).all() and (table["precision"] == "float32").all()
    assert table["machine"].str.contains("1 threads on .*, torch", regex=True).all()
    multiplied = ["measured_seconds", "multiplied_by", "seconds"]
    assert table.loc[("ddpm", "one scan"), multiplied].tolist() == [8, 1.5, 12]
    others = table.drop([("ddpm", "one scan"), ("tpa_gan", "training step")])
    assert (others["seconds"] == 8).all() and (others["GiB"] == 2).all() and (table["parameters"] > 0).all()
    assert np.isnan(table.loc[("tpa_gan", "training step"), ["seconds", "GiB"]].astype(float)).all()
    shown = capsys.readouterr().out
    assert "3 network evaluations: 8.0000 s measured with 2, times 1.5" in shown
    assert f"{CFG.volume_size[2]} network evaluations, one a slice" in shown


def test_the_systems_that_baselines_names_are_measured_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "measure_apart", made_up)
    words = arguments(TINY | TINY_SYSTEMS | {"baselines": ("fgan",)})
    assert benchmark.main(["--systems", "--preset", "published", *words]) == 0
    table = pd.read_csv(tmp_path / "result" / "benchmark" / "systems.csv")
    assert table["system"].tolist() == ["fgan", "fgan"]


def test_a_process_of_its_own_measures_a_part_and_its_memory_alone():
    ballast = np.ones(2 ** 27)                             # a GiB, which this process has had from then on
    del ballast
    seconds, memory = benchmark.measure_apart("fgan, one scan", CFG, False, quick=True)
    assert seconds > 0
    assert 0.05 < memory < 1.0
