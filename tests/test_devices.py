"""Nothing stays on the CPU: computations on torch's `meta` device, beside which no tensor of the CPU may take
part, and a search of the source for what reads a GPU as if it were the CPU, or makes tensors beside it."""
import ast
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, TINY_SYSTEMS
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from baselines.regression import Labels
from config import BASELINES, LABELLED, Config
from evaluation.measurement import MaskFiles, Measurement
from evaluation.scores import evaluate
from experiment.networks import (LatentSampler, build_aae, build_baseline, build_diffusion,
                                 build_discriminator, build_unet)
from experiment.stage_2 import LatentBatches
from imaging.regions import Regions
from labels.ridge import LabelPredictor
from main import Stage2, aae_step, ldm_step, reconstruct, validation_loss
from model import Extractor, LatentSpace, Synthesizer
from runtime.settings import merged
from utils import EMA, METRICS, draw_noise

META, VOLUME, LATENT = torch.device("meta"), (1, 16, 24, 16), (4, 8, 12, 8)
IDS, LABELS = ["a", "b"], torch.tensor([[0.7, 0.3], [0.2, 0.8]])
MASK = np.ones(VOLUME[1:], dtype=bool)
MEASUREMENT = Measurement(MASK, Regions(MASK, MASK, {}), 8.0, MaskFiles("", {}))

# ---------------------------------------------------------------- a device without a GPU


def tensors_in(given) -> Iterator[Tensor]:
    """All tensors among arguments, however deep in lists and dicts."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple | dict):
        for one in given.values() if isinstance(given, dict) else given:
            yield from tensors_in(one)


class OneDevice(TorchFunctionMode):
    """Refuses a tensor of the CPU beside one of the device, as a GPU does; torch alone lets some pass on
    `meta`, such as the weights of a convolution. One without dimensions, or as an index, may take part on a
    GPU too. Values that are read of the device are made up."""

    MOVING = {Tensor.to, Tensor.copy_, torch._has_compatible_shallow_copy_type}
    VALUES = {Tensor.item: 0.5, Tensor.__float__: 0.5, Tensor.__bool__: True}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        tensors, kwargs = list(tensors_in([args, kwargs])), kwargs or {}
        if not any(tensor.is_meta for tensor in tensors):
            return function(*args, **kwargs)
        first = tensors[0]
        if function in self.VALUES:
            return self.VALUES[function]
        if function is Tensor.tolist:                      # integers are times, which fall to 1
            return [0.5] * len(first) if first.is_floating_point() else list(range(len(first), 0, -1))
        if function is Tensor.cpu:
            return torch.ones(first.shape, dtype=first.dtype)
        if function is torch.unique:                       # how many there are depends on the values
            return first
        if function is Tensor.__getitem__ and first.is_meta:
            is_mask = isinstance(args[1], Tensor) and args[1].is_meta and args[1].dtype == torch.bool
            return first.flatten() if is_mask else function(*args, **kwargs)
        if function not in self.MOVING:
            beside = [tuple(tensor.shape) for tensor in tensors if tensor.dim() and not tensor.is_meta]
            assert not beside, f"{function}: tensors {beside} of the CPU beside others of the device"
        return function(*args, **kwargs)


@pytest.fixture
def one_device() -> Iterator[None]:
    """A test in which the CPU and the device do not mix."""
    with OneDevice():
        yield


def assert_on_device(tensors, shape: tuple[int, ...] | None = None) -> None:
    """All of them, at least one, are on the device, and of this shape if it is given."""
    found = list(tensors_in([tensors]))
    assert found and all(tensor.device == META for tensor in found)
    assert shape is None or all(tensor.shape == shape for tensor in found)


def settings(**changed) -> Config:
    """Tiny settings, with attention."""
    own = TINY_SYSTEMS | {"unet_attention_levels": (1,), "timesteps": 10}
    return Config(**merged(Config, TINY, own | changed))


def volumes(device: torch.device = META) -> Tensor:
    """Volumes of two scans, [2, 1, D, H, W]."""
    return torch.zeros(2, *VOLUME, device=device)


def from_the_loader() -> dict:
    """A batch as loaders give it: on the CPU."""
    cpu = torch.device("cpu")
    return {"id": IDS, "label": torch.tensor([0, 1]), "mri": volumes(cpu), "pet": volumes(cpu)}


class Astray(nn.Module):
    """A module with a tensor that does not move with it."""

    def __init__(self):
        super().__init__()
        self.conv, self.shift = nn.Conv3d(1, 1, 1), torch.zeros(VOLUME)

    def forward(self, h):
        return self.conv(h) + self.shift


@pytest.mark.parametrize("mix", [
    lambda: Astray().to(META)(volumes()), lambda: Astray().conv(volumes()), lambda: volumes().numpy(),
    lambda: F.embedding(torch.zeros(2, device=META).long(), torch.zeros(2, 2)),
    lambda: LABELS @ torch.zeros(2, 2, device=META), lambda: torch.stack([LABELS, LABELS.to(META)]),
    lambda: LABELS[torch.zeros(2, device=META).long()],
    lambda: EMA(nn.Linear(2, 2), 0.5, 0).update(nn.Linear(2, 2).to(META), 1)])
def test_a_tensor_of_the_cpu_beside_one_of_the_device_is_refused(mix, one_device):
    with pytest.raises((AssertionError, RuntimeError, TypeError), match="of the CPU|on device|meta device"):
        mix()


# ---------------------------------------------------------------- networks and updates

def test_networks_compute_on_the_device_with_all_they_hold(one_device):
    aae, disc = build_aae(settings(), META), build_discriminator(settings(), META)
    assert_on_device(aae(volumes()), (2, *VOLUME))
    assert_on_device(aae.encoder(volumes()), (2, *LATENT))
    assert_on_device(disc(volumes()), (2, 1, 2, 3, 2))
    for downscale in (1, 2, 4, 8):
        shape = (2, 1, *(n // downscale for n in VOLUME[1:]))
        assert_on_device(Extractor(downscale).to(META)(volumes()), shape)


@pytest.mark.parametrize("conditioning", ["input", "multiscale", "none"])
def test_the_denoiser_computes_on_the_device(conditioning, one_device):
    unet = build_unet(settings(conditioning=conditioning), META)
    z_t, t = torch.zeros(2, *LATENT, device=META), torch.zeros(2, dtype=torch.int64, device=META)
    for label in (None, t, LABELS.to(META)):
        assert_on_device(unet(z_t, volumes(), t, label), (2, *LATENT))


def assert_trained_on_device(*opts: torch.optim.Optimizer) -> None:
    """Weights, gradients and moments of Adam are all on the device."""
    for opt in opts:
        weights = opt.param_groups[0]["params"]
        assert_on_device([weights, [weight.grad for weight in weights]])
        assert_on_device([[state["exp_avg"], state["exp_avg_sq"]] for state in opt.state.values()])


def test_an_update_of_stage_1_stays_on_the_device(one_device):
    aae, disc = build_aae(settings(recompute=True), META), build_discriminator(settings(), META)
    opt_g, opt_d = torch.optim.Adam(aae.parameters()), torch.optim.Adam(disc.parameters())
    for _ in range(2):
        losses = aae_step(aae, disc, opt_g, opt_d, volumes(), 100.0)
    assert losses == {"rec": 0.5, "adv": 0.5, "disc": 0.5}
    assert_trained_on_device(opt_g, opt_d)
    assert_on_device(dict(disc.named_buffers()))           # running statistics


class Loader(list):
    """The batches of a list of scans."""
    dataset = IDS


@pytest.mark.parametrize("changed", [
    {"image_loss": 0.0, "time_shift": 1.0, "conditioning": "input"}, {"image_loss": 1.0},
    {"prediction": "eps", "recompute": True}])
def test_an_update_of_stage_2_and_its_moving_average_stay_on_the_device(changed, one_device):
    """Though volumes, latents and labels come from the CPU."""
    cfg, scans = settings(**changed), [SimpleNamespace(id=name) for name in IDS]
    exp = SimpleNamespace(cfg=cfg, device=META, cast=nullcontext,
                          cohort=SimpleNamespace(train=scans[:1], validation=scans[1:]))
    space = LatentSpace(build_aae(cfg, META).requires_grad_(False), 0.3, 2.0)
    stage_2 = Stage2(build_diffusion(cfg, META), space, 0.25, cfg.image_loss, cfg.time_shift)
    latent_batches = LatentBatches(exp, space, {name: torch.zeros(LATENT) for name in IDS}, LABELS)
    unet = build_unet(cfg, META)
    ema, opt = EMA(unet, 0.5, 1), torch.optim.AdamW(unet.parameters())
    for step in (1, 2):
        batch = latent_batches.from_volumes(from_the_loader())
        assert_on_device(list(batch))
        losses = ldm_step(unet, opt, stage_2, batch)
        assert losses == ({"mse": 0.5, "image": 0.5} if cfg.image_loss else {"mse": 0.5})
        ema.update(unet, step)
    assert_trained_on_device(opt)
    assert_on_device(ema.module.state_dict())
    assert validation_loss(exp, ema.module, stage_2, latent_batches, Loader([from_the_loader()])) == 0.5


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_updated_and_predict_on_the_device(name, one_device):
    latents = {"a": torch.zeros(LATENT), "b": torch.ones(LATENT)}
    labels = Labels(
        {"a": torch.zeros(2), "b": torch.ones(2)}, lambda mri, ids: torch.ones(len(mri), 2), 1.0, 0.2
    )
    baseline = build_baseline(name, settings(), META, build_aae(settings(), META), latents,
                              labels if name in LABELLED else None)
    for epoch in (1, 2, 3, 4):                             # one of each phase
        baseline.begin_epoch(epoch, 4)
        losses = baseline.step(from_the_loader(), epoch)
        assert losses and set(losses.values()) == {0.5}
    gradients = [weight.grad for network in baseline.networks.values() for weight in network.parameters()]
    assert_on_device([gradient for gradient in gradients if gradient is not None])
    for network in baseline.networks.values():
        assert_on_device(network.state_dict())
    assert_on_device(baseline.predict(from_the_loader()["mri"], ids=["a", "b"]), (2, *VOLUME))


# ---------------------------------------------------------------- samples and scores

def synthesizer(cfg: Config) -> Synthesizer:
    """The synthesis on the device, three samples at once."""
    return Synthesizer(LatentSpace(build_aae(cfg, META), 0.3, 2.0), build_unet(cfg, META),
                       build_diffusion(cfg, META), batch=3)


@pytest.mark.parametrize("label", [None, LABELS], ids=["no label", "label"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_samples_are_on_the_device_though_noise_and_label_are_not(sampler, label, one_device):
    synthesis = synthesizer(settings())
    noise = [[draw_noise(0, name, draw, LATENT) for draw in range(2)] for name in IDS]
    z_0 = synthesis.sample(volumes(), label, noise, sampler, 3)
    assert_on_device(z_0, (2, 2, *LATENT))
    assert_on_device(synthesis.decode(z_0.mean(dim=1)), (2, *VOLUME))
    assert_on_device(synthesis.decode_samples(z_0), (2, 2, *VOLUME))


def test_matched_samples_bring_the_corrected_label_to_the_device(one_device):
    """Prediction and SUVR are of the CPU."""
    predictor = LabelPredictor(*[None] * 6, levels=torch.tensor([1.0, 1.5]))
    predictor.soft_labels = lambda mri, cells: LABELS
    cfg = settings(regions="auto", cortex_mask="c", reference_mask="r", label_in_training="suvr")
    sampler = LatentSampler(cfg, synthesizer(cfg), predictor, MEASUREMENT, "dpm", 3, range(2), matched=True)
    assert_on_device(sampler.synthesize(from_the_loader()), (2, *VOLUME))


def test_volumes_of_the_device_are_measured(one_device):
    """Image scores on the device, against a real PET of the CPU; the rest on a copy."""
    real = {name: volume[0, 0] for name, volume in from_the_loader().items() if name in ("mri", "pet")}
    found = MEASUREMENT.all_measures(volumes()[0, 0], real)
    assert {name: found[name] for name in METRICS} == dict.fromkeys(METRICS, 0.5)
    assert isinstance(found["pet"], np.ndarray) and found["SUVR"] == 1


def test_evaluate_takes_predictions_of_the_device(one_device):
    predict = reconstruct(SimpleNamespace(device=META, cast=nullcontext), build_aae(settings(), META))
    table = evaluate(predict, [from_the_loader()], lambda x_hat, volumes: {"device": x_hat.device.type}, "")
    assert table.to_dict("list") == {"ID": IDS, "label": [0, 1], "device": ["meta", "meta"]}


# ---------------------------------------------------------------- the source

ROOT = Path(__file__).parents[1]
HOT = ["main.py", "model.py", "utils.py", "experiment/*.py", "baselines/*.py", "evaluation/scores.py",
       "evaluation/uncertainty.py", "newscans/*.py", "runtime/fit.py"]
CREATORS = {f"torch.{name}" for name in ("zeros", "ones", "full", "rand", "randn", "randint", "arange",
                                         "linspace", "tensor", "eye", "empty")}
ALLOWED = {                            # file, function and call -> why it may go without .cpu() or device=
    "model.py Projector.__init__ torch.arange": "becomes a buffer, which moves with the module",
    "model.py Diffusion.__init__ torch.linspace": "becomes a buffer",
    "model.py Diffusion.ddim torch.linspace": "becomes a list of times",
    "utils.py draw_noise torch.randn": "on the CPU, so that every device has the same noise",
    "utils.py draw_uniform torch.rand": "on the CPU, so that every device has the same draws",
    "experiment/networks.py LatentSampler.draws torch.tensor": "labels are predicted and drawn on the CPU",
    "utils.py score_volume x_hat.numpy": "on the CPU: volumes elsewhere are left to score_on_device",
    "utils.py score_volume x.numpy": "of the loader, on the CPU",
    "experiment/stage_2.py fit_label_predictor soft_labels.numpy": "made of labels on the CPU",
    "experiment/survey.py save_survey survey.mean_pet.numpy": "made of the loader's volumes, on the CPU",
    "experiment/survey.py save_survey survey.mri.numpy": "pooled on the CPU",
    "newscans/trained.py load_trained metadata['affine'].numpy": "of a checkpoint, read to the CPU",
}


def links(chain: ast.expr) -> Iterator[str]:
    """Names of the methods and attributes on a chain, from its end."""
    while isinstance(chain, ast.Call | ast.Attribute | ast.Subscript):
        if isinstance(chain, ast.Attribute):
            yield chain.attr
        chain = chain.func if isinstance(chain, ast.Call) else chain.value


def on_the_cpu(call: ast.Call) -> str:
    """What a call reads or makes on the CPU without saying so; nothing for any other call."""
    name = ast.unparse(call.func)
    if name.endswith(".numpy"):
        return "" if "cpu" in links(call) else name
    if any(keyword.arg == "device" for keyword in call.keywords):
        return ""
    given = [name, *(ast.unparse(one) for one in call.args if isinstance(one, ast.Attribute))]
    return next((one for one in given if one in CREATORS), "")


def calls_on_the_cpu(node: ast.AST, where: str) -> Iterator[str]:
    """File, function and call, as keys of ALLOWED, of all such calls below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and on_the_cpu(child):
            yield f"{where} {on_the_cpu(child)}"
        is_scope = isinstance(child, ast.ClassDef | ast.FunctionDef)
        inside = f"{where}{'.' if ' ' in where else ' '}{child.name}" if is_scope else where
        yield from calls_on_the_cpu(child, inside)


def test_nothing_in_the_source_is_on_the_cpu_but_what_must_be():
    found = set()
    for pattern in HOT:
        paths = list(ROOT.glob(pattern))
        assert paths, pattern
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= set(calls_on_the_cpu(tree, path.relative_to(ROOT).as_posix()))
    new, gone = sorted(found - ALLOWED.keys()), sorted(ALLOWED.keys() - found)
    assert not new and not gone, f"on the CPU: {new}; allowed, but there no more: {gone}"


@pytest.mark.parametrize(("line", "found"), [
    ("torch.zeros(3)", "torch.zeros"), ("draw(torch.randn, 3)", "torch.randn"), ("h.numpy()", "h.numpy"),
    ("h[:, 0].double().numpy()", "h[:, 0].double().numpy"), ("len(torch.eye(h.cpu().numel()))", "torch.eye"),
    ("torch.zeros(3, device=h.device)", ""), ("draw(torch.randn, device=h.device)", ""),
    ("h.cpu()[0].numpy()", ""), ("torch.zeros_like(h)", ""), ("table.to_numpy()", "")])
def test_a_planted_line_on_the_cpu_is_found(line, found):
    tree = ast.parse(f"class Net:\n    def forward(self, h):\n        return {line}")
    assert list(calls_on_the_cpu(tree, "net.py")) == ([f"net.py Net.forward {found}"] if found else [])
