"""What only a CUDA GPU can show: networks, updates and whole runs are right there, in every precision.

    python -m pytest tests/test_gpu.py
"""
import dataclasses
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, arguments

import main
from config import DEMO, Config
from experiment.networks import build_aae, build_diffusion, build_discriminator, build_unet
from experiment.stage_2 import LatentBatch
from main import Stage2, aae_step, ldm_step
from model import ACTIVATIONS, LatentSpace, Synthesizer
from runtime import gpu
from runtime.checkpoints import load_checkpoint
from utils import autocast, draw_noise, pick_precision, score_volume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = dataclasses.replace(Config(), **{name: DEMO[name] for name in (
    "image_size", "crop_start", "volume_size", "crop_jitter", "aae_channels", "aae_norm_groups",
    "disc_channels", "unet_channels", "unet_mults", "unet_res_blocks", "unet_norm_groups")})
PUBLISHED = dataclasses.replace(SMALL, conditioning="input", aae_norms=("blocks", "output"),
                                latent_channels=1, prediction="eps", image_loss=0.0)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative difference of two tensors of whatever device and type."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm()).item()


def alike(build, cfg: Config) -> list:
    """A network on the CPU and on the GPU, with the same weights."""
    torch.manual_seed(0)
    networks = [build(cfg, CPU), build(cfg, GPU)]
    networks[1].load_state_dict(networks[0].state_dict())
    return networks


@pytest.fixture(autouse=True)
def exact():
    """Begin every test without TF32 and with kernels that repeat themselves."""
    pick_precision("fp32", GPU)
    gpu.set_up(True)


# ---------------------------------------------------------------- the fused GroupNorm

@pytest.mark.parametrize("channels, groups, size, activation, dtype", [
    (16, 16, (40, 96, 40), "relu", torch.float32), (384, 32, (10, 12, 10), "silu", torch.bfloat16),
    (24, 4, (5, 7, 9), "none", torch.float32), (1024, 32, (5, 6, 5), "silu", torch.float32),
    (64, 16, (64, 64, 80), "relu", torch.bfloat16)])
def test_the_fused_norm_and_its_gradients_are_those_of_torch_in_float64(channels, groups, size, activation,
                                                                       dtype):
    from runtime.fused_norm import group_norm
    allowed = 1e-5 if dtype == torch.float32 else 5e-3
    torch.manual_seed(0)
    x = (3 * torch.randn(2, channels, *size, device=GPU) + 1).to(dtype).requires_grad_()
    weight, bias = (torch.randn(channels, device=GPU).requires_grad_() for _ in range(2))
    dy = torch.randn_like(x)
    y = group_norm(x, groups, weight, bias, 1e-6, activation)
    y.backward(dy)
    exact = [value.detach().double().requires_grad_() for value in (x, weight, bias)]
    expected = ACTIVATIONS[activation](F.group_norm(exact[0], groups, *exact[1:], 1e-6))
    expected.backward(dy.double())
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last_3d)
    assert difference(y, expected) < allowed
    for found, wanted in zip((x, weight, bias), exact, strict=True):
        assert difference(found.grad, wanted.grad) < allowed


def test_the_fused_norm_is_exact_at_paper_size():
    from runtime.fused_norm import group_norm
    x = torch.rand(2, 16, 160, 192, 160, device=GPU) + 10                         # a mean of 36 deviations
    weight, bias = torch.ones(16, device=GPU), torch.zeros(16, device=GPU)
    y = group_norm(x, 16, weight, bias, 1e-6, "none")
    assert y.mean().abs() < 1e-4 and abs(y.square().mean().item() - 1) < 1e-3
    assert difference(y[:, :2], F.group_norm(x[:, :2].double(), 2, eps=1e-6)) < 1e-3


# ---------------------------------------------------------------- networks, samplers, scores

@pytest.mark.parametrize("cfg", [SMALL, PUBLISHED], ids=["default", "published"])
@pytest.mark.parametrize("precision, allowed", [("fp32", 1e-4), ("tf32", 5e-3), ("bf16", 3e-2)])
def test_networks_give_what_they_give_on_a_cpu(cfg, precision, allowed):
    dtype = pick_precision("bf16" if precision == "bf16" else "fp32", GPU)
    if precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    x, mri = torch.rand(2, 1, *cfg.volume_size), torch.rand(2, 1, *cfg.volume_size)
    z_t = torch.randn(2, cfg.latent_channels, *cfg.latent_size)
    t, label = torch.tensor([3, 900]), torch.tensor([0, 1])
    for build, inputs in ((build_aae, [x]), (build_discriminator, [x]), (build_unet, [z_t, mri, t, label])):
        on_cpu, there = alike(build, cfg)
        with torch.no_grad(), autocast(GPU, dtype):
            found = there(*[value.to(GPU) for value in inputs])
        with torch.no_grad():
            expected = on_cpu(*inputs)
        assert difference(found, expected) < allowed, build.__name__


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("precision, allowed", [("fp32", 1e-3), ("bf16", 5e-2)])
def test_updates_of_both_stages_are_those_of_a_cpu(precision, allowed, captured):
    """Three updates of each: their losses, on the same batch, steps and noise, with the denoiser's passes
    captured or not."""
    cfg, losses = SMALL, {}
    dtype = pick_precision(precision, GPU)
    torch.manual_seed(1)
    x, mri, z_0 = torch.rand(2, 1, *cfg.volume_size), torch.rand(2, 1, *cfg.volume_size), torch.randn(
        2, cfg.latent_channels, *cfg.latent_size)
    aaes, discs, unets = alike(build_aae, cfg), alike(build_discriminator, cfg), alike(build_unet, cfg)
    for device, aae, disc, unet in zip((CPU, GPU), aaes, discs, unets, strict=True):
        def cast(device=device):
            """Autocast on the GPU alone."""
            return autocast(device, dtype if device == GPU else torch.float32)
        opt_g, opt_d = (torch.optim.Adam(network.parameters(), 1e-4, fused=True) for network in (aae, disc))
        opt = torch.optim.AdamW(unet.parameters(), 1e-4, fused=True)
        found = [aae_step(aae, disc, opt_g, opt_d, x.to(device), 100.0, cast) for _ in range(3)]
        stage_2 = Stage2(build_diffusion(cfg, device), LatentSpace(aae.eval().requires_grad_(False)), 0.2)
        batch = LatentBatch(*(value.to(device) for value in (z_0, mri, torch.eye(2), x)))
        if captured:
            t = torch.tensor([5, 5], device=device)
            gpu.capture_training(unet, dtype, batch.z_0, batch.mri, t, batch.label)
        stage_2.diffusion.draw_times = lambda n, shift, device=device: torch.tensor([200, 700], device=device)
        for _ in range(3):
            with pytest.MonkeyPatch.context() as patch:    # the same noise, which is drawn on the device
                patch.setattr(main.torch, "randn", lambda *shape, device=None: noise_of(shape).to(device))
                found.append(ldm_step(unet, opt, stage_2, batch, cast))
        losses[device] = [value for row in found for value in row.values()]
    np.testing.assert_allclose(losses[GPU], losses[CPU], rtol=allowed, atol=allowed)


def noise_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Always the same noise of a shape."""
    return torch.from_numpy(np.random.default_rng(5).standard_normal(shape, dtype=np.float32))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_samplers_give_the_pet_of_a_cpu(sampler):
    cfg = dataclasses.replace(SMALL, timesteps=20)
    mri, pets = torch.rand(2, 1, *cfg.volume_size), []
    for device, aae, unet in zip((CPU, GPU), alike(build_aae, cfg), alike(build_unet, cfg), strict=True):
        synthesizer = Synthesizer(LatentSpace(aae.eval()), unet.eval(), build_diffusion(cfg, device))
        shape = (cfg.latent_channels, *cfg.latent_size)
        noise = [[draw_noise(0, subject, k, shape) for k in range(2)] for subject in ("a", "b")]
        z_0 = synthesizer.sample(mri.to(device), torch.eye(2), noise, sampler, 5)
        assert z_0.device.type == device.type
        pets.append(z_0)
    assert difference(pets[1], pets[0]) < 1e-4


def test_scores_are_those_of_scikit_image():
    torch.manual_seed(0)
    x = F.avg_pool3d(torch.rand(1, 1, 46, 54, 46), 7, 1)[0, 0]
    x_hat, brain = (x + 0.05 * torch.randn_like(x)).clamp(0, 1), x.numpy() > 0.5
    expected = score_volume(x_hat, x, brain)
    assert score_volume(x_hat.to(GPU), x, brain) == pytest.approx(expected, abs=1e-5)


def test_the_guard_passes_here_and_refuses_a_convolution_that_is_wrong(monkeypatch):
    gpu.check(GPU, torch.bfloat16, 2, 16, (40, 48, 40))
    assert torch.cuda.get_device_name() in gpu.describe(GPU)
    wrong, right = [], F.conv3d

    def conv3d(x, *args, **options):
        """A convolution that loses one voxel in bfloat16."""
        y = right(x, *args, **options)
        if y.dtype == torch.bfloat16:
            y[0, 0, 3, 3, 3] += 10
            wrong.append(1)
        return y
    monkeypatch.setattr(F, "conv3d", conv3d)
    with pytest.raises(gpu.InputError, match="--precision fp32"):
        gpu.check(GPU, torch.bfloat16, 2, 16, (40, 48, 40))
    assert wrong


# ---------------------------------------------------------------- whole runs

SETTINGS = TINY | {"exp": "a", "precision": "auto"}
STAGES = ["--stages", "check", "aae", "encode", "ldm", "test"]


def run(**settings) -> int:
    """The exit code of a run of the tiny cohort, on the GPU unless the settings say otherwise."""
    return main.main([*arguments(SETTINGS | {"device": "cuda"} | settings), *STAGES])


def weights(folder) -> dict[str, torch.Tensor]:
    """The denoiser's weights in a result folder."""
    return load_checkpoint(folder / "CHECKPOINT_Unet_last.pth.tar")["state"]["unet"]


def test_two_runs_of_a_seed_are_equal_to_the_last_bit(root):
    assert run(deterministic=True) == run(exp="b", deterministic=True) == 0
    first, second = weights(root / "result/a"), weights(root / "result/b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    csvs = [(root / "result" / exp / "test.csv").read_bytes() for exp in ("a", "b")]
    assert csvs[0] == csvs[1]


def test_a_checkpoint_goes_from_cpu_to_gpu_and_back(root):
    assert run(device="cpu", precision="fp32", aae_epochs=1, ldm_epochs=1) == 0
    on_gpu = {"device": "cuda", "aae_epochs": 1, "ldm_epochs": 2}
    on_cpu = {"device": "cpu", "precision": "fp32", "aae_epochs": 1, "ldm_epochs": 3}
    for settings in (on_gpu, on_cpu):
        words = arguments(SETTINGS | settings)
        assert main.main([*words, "--stages", "check", "encode", "ldm", "test"]) == 0
    assert pd.read_csv(root / "result/a/loss_curve.csv")["epoch"].max() == 3


def test_a_run_that_is_cut_in_an_epoch_goes_on_bit_for_bit(root, monkeypatch):
    assert run(exp="uncut", deterministic=True) == 0
    taken, step = [], main.ldm_step

    def cut(*args):
        """A step, and a stop after the second."""
        losses = step(*args)
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses
    monkeypatch.setattr(main, "ldm_step", cut)
    assert run(deterministic=True) == 75
    assert run(deterministic=True) == 0
    first, second = weights(root / "result/uncut"), weights(root / "result/a")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_too_little_memory_is_explained(root, capsys):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        assert run() == 4
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in capsys.readouterr().err


def test_the_demo_goes_through_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "demo", "--device", "cuda", "--phantom_subjects", "12", "4", "4",
             "--aae_epochs", "2", "--ldm_epochs", "4"]
    stages = ["--stages", "check", "aae", "encode", "ldm", "baselines", "test"]
    assert main.main([*words, "--exp", "demo", *stages]) == 0
    table = pd.read_csv(tmp_path / "result/demo/test.csv")
    assert table["PSNR"].between(5, 60).all() and "il_cldm" in set(table["method"])
