"""A CUDA GPU: what it is, whether its convolutions can be trusted, and what makes networks fast on it.

Networks are channels last there, as on a CPU, which convolutions in bfloat16 want. torch's GroupNorm would
undo that: it makes its input contiguous, and computes in float32 under autocast. So it is replaced by a fused
one (runtime/fused_norm.py) where Triton is at hand. Convolutions from or to few channels are zero-padded,
and the denoiser's training passes are captured as CUDA graphs, because launching them takes longer than
computing. docs/speed.md says what each is worth.
"""
import importlib.util
import shutil
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from model import Conv3d, GroupNorm
from runtime.logs import say
from utils import InputError, size_text

GIB = 2 ** 30
LARGEST_ERROR = 0.05      # of a bfloat16 convolution, in standard deviations of its output; rounding: 0.02


def set_up(deterministic: bool) -> None:
    """Ask cuDNN for kernels that give the same result in every run, or let it try which is fastest."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def prepare(network: nn.Module, device: torch.device, channels_last: bool = True, fused_norm: bool = True,
            padded: bool = True) -> nn.Module:
    """The network on the device, as it is fastest there.

    channels_last: its memory layout. The rest is for a GPU and that layout. fused_norm: GroupNorm and
    activation in one kernel, if there is Triton. padded: no convolution with less than 8 channels.
    """
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    fused = None
    if fused_norm and channels_last and device.type == "cuda" and has_triton(device):
        from runtime.fused_norm import group_norm          # here, because not every machine has Triton
        fused = group_norm
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.fused = fused
        if isinstance(module, Conv3d):
            module.least_channels = 8 if padded and channels_last and device.type == "cuda" else 0
    return network.to(device=device, memory_format=memory_format)


def capture_training(network: nn.Module, dtype: torch.dtype, *inputs: Tensor) -> None:
    """Capture the training passes of a network, forward and backward, as CUDA graphs: then a pass is one
    launch instead of a thousand, which take longer than the work itself.

    inputs: of the shapes and types of every later call in training mode. Passes in evaluation mode stay as
    they are. Nothing on a CPU.
    """
    if inputs[0].device.type != "cuda":
        return
    # every pass copies its inputs to where the captured ones lay, which must not be anybody's tensors
    places = tuple(torch.zeros_like(one) for one in inputs)
    # gradients are added up on another stream than the one of the capture, which torch warns of once
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False):
        torch.cuda.make_graphed_callables(network, places, allow_unused_input=True)


def has_triton(device: torch.device) -> bool:
    """Whether Triton is there, which comes with torch for CUDA on Linux, with the C compiler that it needs
    and a GPU that it knows."""
    spec = importlib.util.find_spec("triton")
    is_there = spec is not None and spec.origin is not None and any(map(shutil.which, ("gcc", "clang", "cc")))
    return is_there and torch.cuda.get_device_capability(device) >= (7, 0)


def describe(device: torch.device) -> str:
    """GPU, memory, and the versions that its speed and its errors depend on."""
    gpu, cudnn = torch.cuda.get_device_properties(device), torch.backends.cudnn.version() or 0
    triton = "" if has_triton(device) else ", no Triton for it or no C compiler (GroupNorms are slower)"
    return (f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, torch {torch.__version__}, "
            f"CUDA {torch.version.cuda}, cuDNN {cudnn_version(cudnn)}{triton}")


def cudnn_version(number: int) -> str:
    """cuDNN's number of its version, such as 91002, as people write it: 9.10.2."""
    major = 10000 if number >= 90000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def known_faults(torch_version: str, cudnn: int) -> list[str]:
    """What is known to be wrong with these versions, as sentences; empty if nothing is."""
    found = []
    if torch_version.startswith("2.9."):
        found.append(f"torch {torch_version} is several times slower in 3D convolutions in bfloat16, and "
                     "takes several times the memory (pytorch issue 166122); take another version")
    if 90800 <= cudnn < 91100:
        found.append(f"cuDNN {cudnn_version(cudnn)} gave wrong 3D convolutions in bfloat16 on large volumes "
                     "(pytorch issue 163539); a newer one is safer, and --precision fp32 is safe")
    return found


def check(device: torch.device, dtype: torch.dtype, batch: int, channels: int,
          size: tuple[int, int, int]) -> None:
    """Say which GPU this is and what is known against its versions, and compute one convolution of the run's
    own size in both precisions. Raises InputError if they differ by more than rounding."""
    say("check", describe(device))
    for fault in known_faults(torch.__version__, torch.backends.cudnn.version() or 0):
        say("check", f"warning: {fault}")
    if dtype != torch.float32:
        error = convolution_error(device, dtype, batch, channels, size)
        if not error <= LARGEST_ERROR:                     # nor is it if it is not a number
            voxels = size_text(size)
            raise InputError(f"a 3D convolution of {batch} volumes of {voxels} voxels in {dtype} differs by "
                             f"{error:.2g} standard deviations from the same in float32, on "
                             f"{describe(device)}; rounding gives at most {LARGEST_ERROR}. Take another "
                             "version of torch, or --precision fp32")


@torch.no_grad()
def convolution_error(device: torch.device, dtype: torch.dtype, batch: int, channels: int,
                      size: tuple[int, int, int]) -> float:
    """Largest difference between a 3x3x3 convolution in dtype and in float32 of the same numbers, in standard
    deviations of the output."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(batch, channels, *size, dtype=dtype, device=device, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(channels, channels, 3, 3, 3, dtype=dtype, device=device, generator=generator)
    weight = weight.contiguous(memory_format=torch.channels_last_3d)
    found = F.conv3d(x, weight, padding=1)
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    expected = F.conv3d(x.float(), weight.float(), padding=1)
    torch.backends.cudnn.allow_tf32 = allowed
    return ((found.float() - expected).abs().max() / expected.std()).item()
