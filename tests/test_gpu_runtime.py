"""What makes networks fast on a GPU, as far as a CPU can tell: what is added changes no number, versions with
known faults are named, and a convolution that is wrong is refused."""
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from model import AAE, Conv3d, Discriminator, GroupNorm, UNet
from runtime import gpu
from utils import InputError

CPU = torch.device("cpu")


def padded(network: torch.nn.Module) -> torch.nn.Module:
    """A copy whose convolutions get zeros up to 8 channels, in channels-last memory, as on a GPU."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    for module in network.modules():
        if isinstance(module, Conv3d):
            module.least_channels = 8
    return network


@pytest.mark.parametrize("network, shapes", [
    (AAE((8, 16, 32), 1, norm_groups=8), [(2, 1, 16, 24, 16)]),
    (Discriminator((4, 16)), [(2, 1, 16, 24, 16)]),
    (UNet(1, 8, (1, 2), 1, norm_groups=4, multiscale=True), [(2, 1, 4, 6, 4), (2, 1, 16, 24, 16)])])
def test_zero_padded_channels_change_neither_output_nor_gradients(network, shapes):
    network = network.double()
    inputs, wide, results = [torch.rand(shape, dtype=torch.float64) for shape in shapes], padded(network), []
    if len(inputs) == 2:
        inputs.append(torch.tensor([3, 900]))
    for one in (network, wide):
        y = one(*inputs)
        y.square().mean().backward()
        results.append([y.detach(), *(weight.grad for weight in one.parameters() if weight.grad is not None)])
    narrow = [module for module in wide.modules()
              if isinstance(module, Conv3d) and min(module.in_channels, module.out_channels) < 8]
    assert narrow and len(results[0]) > 3
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_only_a_gpu_gets_fused_norms_and_zero_padded_channels():
    network = gpu.prepare(UNet(1, 8, (1, 2), 1, norm_groups=4), CPU)
    norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
    convolutions = [module for module in network.modules() if isinstance(module, Conv3d)]
    assert norms and not any(norm.fused for norm in norms)
    assert convolutions and not any(convolution.least_channels for convolution in convolutions)
    assert network.mid[0].conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    plain = gpu.prepare(network, CPU, channels_last=False)
    assert plain.mid[0].conv1.weight.is_contiguous()


def test_what_cudnn_is_asked_for_follows_the_setting():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        for deterministic in (True, False):
            gpu.set_up(deterministic)
            assert torch.backends.cudnn.deterministic is deterministic
            assert torch.backends.cudnn.benchmark is not deterministic
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("torch_version, cudnn, expected", [
    ("2.9.1+cu130", 91900, ["torch 2.9.1"]), ("2.13.0", 91002, ["cuDNN 9.10.2"]),
    ("2.13.0", 90800, ["cuDNN 9.8.0"]), ("2.13.0", 91100, []), ("2.8.0", 90701, []),
    ("2.9.0", 90900, ["torch 2.9.0", "cuDNN 9.9.0"]), ("2.6.0", 8907, [])])
def test_versions_with_known_faults_are_named(torch_version, cudnn, expected):
    found = gpu.known_faults(torch_version, cudnn)
    assert len(found) == len(expected)
    for name, fault in zip(expected, found, strict=True):
        assert name in fault


def test_versions_of_cudnn_are_written_as_people_write_them():
    assert [gpu.cudnn_version(number) for number in (91002, 90701, 8907)] == ["9.10.2", "9.7.1", "8.9.7"]


def test_a_convolution_in_bfloat16_differs_by_rounding_alone_and_one_that_loses_a_voxel_is_seen(monkeypatch):
    assert 0.002 < gpu.convolution_error(CPU, torch.bfloat16, 2, 8, (8, 9, 10)) < gpu.LARGEST_ERROR
    right = F.conv3d

    def conv3d(x, *args, **options):
        """A convolution that loses one voxel in bfloat16."""
        y = right(x, *args, **options)
        if y.dtype == torch.bfloat16:
            y[1, 2, 3, 4, 5] = 40 if y[1, 2, 3, 4, 5] < 0 else -40
        return y
    monkeypatch.setattr(F, "conv3d", conv3d)
    assert gpu.convolution_error(CPU, torch.bfloat16, 2, 8, (8, 9, 10)) > gpu.LARGEST_ERROR


@pytest.mark.parametrize("error, refused", [(0.02, False), (0.06, True), (float("nan"), True)])
def test_a_device_whose_convolutions_are_wrong_is_refused_with_what_to_do(monkeypatch, error, refused):
    monkeypatch.setattr(gpu, "describe", lambda device: "a GPU")
    monkeypatch.setattr(gpu, "convolution_error", lambda *_: error)
    if refused:
        with pytest.raises(InputError, match="on a GPU; .*--precision fp32"):
            gpu.check(CPU, torch.bfloat16, 2, 8, (8, 9, 10))
    else:
        gpu.check(CPU, torch.bfloat16, 2, 8, (8, 9, 10))
    gpu.check(CPU, torch.float32, 2, 8, (8, 9, 10))        # which is never wrong in this way


def test_nothing_is_captured_on_a_cpu():
    network = UNet(1, 8, (1, 2), 1, norm_groups=4)
    forward = network.forward
    gpu.capture_training(network, torch.float32, torch.zeros(1))
    assert network.forward == forward


@pytest.mark.parametrize("origin, compiler, capability, expected", [
    ("there", "/usr/bin/gcc", (9, 0), True),
    (None, "/usr/bin/gcc", (9, 0), False),                 # a folder of that name
    ("there", None, (9, 0), False), ("there", "/usr/bin/gcc", (6, 1), False)])
def test_triton_needs_a_compiler_and_a_gpu_that_it_knows(monkeypatch, origin, compiler, capability, expected):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=origin))
    monkeypatch.setattr(gpu.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert gpu.has_triton(torch.device("cuda")) is expected
