"""What both stages share: errors, device, precision, seeds, the moving average, the key of weights."""
import copy
import hashlib
from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor


class InputError(ValueError):
    """Wrong data or settings of the user's: main prints the message without a traceback and exits with code 2."""


class NotFiniteError(RuntimeError):
    """A loss, a gradient, weights or a synthesized volume are NaN or infinite: main prints where, and exits with code 3."""


# ---------------------------------------------------------------- device, precision and randomness

def pick_device(name: str, index: int = 0) -> torch.device:
    """'auto', 'cpu' or 'cuda' as a device, the GPU with that index. Raises InputError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch finds no CUDA GPU here; use --device auto or --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)                           # what says only "cuda" means this one too
    return torch.device("cuda", index)


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(getattr(torch.cpu, has, bool)() for has in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that networks compute in: bfloat16 for 'bf16', and for 'auto' where the device has instructions for it; else float32.

    Also lets a GPU use TF32 for what stays in float32 beside bfloat16, and forbids it otherwise. Raises InputError for a GPU without bf16.
    """
    native = has_bf16(device)
    if name == "bf16" and device.type == "cuda" and not native:
        raise InputError("precision bf16 was asked for, but this GPU has no bfloat16; use --precision auto or --precision fp32")
    dtype = torch.bfloat16 if name == "bf16" or (name == "auto" and native) else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == torch.bfloat16
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which networks compute in dtype; weights, optimizers and losses stay in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def derived_seed(*parts) -> int:
    """A seed in [0, 2^63) that depends on every part (numbers or strings) and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*parts) -> None:
    """Seed torch's global generators from the parts and ask for deterministic kernels."""
    torch.manual_seed(derived_seed(*parts))
    torch.backends.cudnn.deterministic = True


def draw_noise(seed: int, subject: str, draw: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Endless standard normal tensors of that shape, on the CPU; they depend on seed, subject and number of the draw alone."""
    generator = torch.Generator().manual_seed(derived_seed(seed, subject, draw))
    while True:
        yield torch.randn(shape, generator=generator)


class EMA:
    """Exponential moving average of a module's weights, in .module; a plain copy for the first `start` steps."""

    def __init__(self, module: nn.Module, decay: float, start: int):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.start = decay, start

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the module after its optimizer step number `step`, counted from 1."""
        weight = 1.0 if step <= self.start else 1 - self.decay
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), weight)


def weights_key(*modules: nn.Module) -> str:
    """16 hexadecimal digits that identify the weights of the modules."""
    digest = hashlib.blake2b(digest_size=8)
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
