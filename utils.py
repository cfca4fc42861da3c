"""Errors, device, precision, seeds, the moving average of weights, and the image metrics."""
import copy
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor


class InputError(ValueError):
    """Wrong data or settings of the user's: main prints the message without a traceback and exits with code
    2."""


class NotFiniteError(RuntimeError):
    """A loss, a gradient, weights or a synthesized volume are NaN or infinite: main prints where, and exits
    with code 3."""


# ---------------------------------------------------------------- device, precision and randomness

def pick_device(name: str, index: int = 0) -> torch.device:
    """'auto', 'cpu' or 'cuda' as a device, the GPU with that index. Raises InputError for cuda where there is
    none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch finds no CUDA GPU here; use --device auto or "
                         "--device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)                           # what says only "cuda" means this one too
    return torch.device("cuda", index)


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(
        getattr(torch.cpu, has, bool)() for has in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that networks compute in: bfloat16 for 'bf16', and for 'auto' where the device has
    instructions for it; else float32.

    Also lets a GPU use TF32 for what stays in float32 beside bfloat16, and forbids it otherwise. Raises
    InputError for a GPU without bf16.
    """
    native = has_bf16(device)
    if name == "bf16" and device.type == "cuda" and not native:
        raise InputError("precision bf16 was asked for, but this GPU has no bfloat16; use --precision auto "
                         "or --precision fp32")
    dtype = torch.bfloat16 if name == "bf16" or (name == "auto" and native) else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == torch.bfloat16
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which networks compute in dtype; weights, optimizers and losses stay in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def size_text(size: Iterable[int]) -> str:
    """A size as people write it, such as 160x192x160."""
    return "x".join(map(str, size))


def fused_on(device: torch.device) -> bool:
    """Whether an optimizer may be fused there: not on torch's meta device, on which sizes are reckoned."""
    return device.type != "meta"


def derived_seed(*parts) -> int:
    """A seed in [0, 2^63) that depends on every part (numbers or strings) and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*parts) -> None:
    """Seed torch's global generators from the parts."""
    torch.manual_seed(derived_seed(*parts))


def draw_noise(seed: int, subject: str, draw: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Endless standard normal tensors of that shape, on the CPU; they depend on seed, subject and number of
    the draw alone."""
    generator = torch.Generator().manual_seed(derived_seed(seed, subject, draw))
    while True:
        yield torch.randn(shape, generator=generator)


def draw_uniform(seed: int, subject: str, draw: int) -> float:
    """A number in [0, 1) that depends on seed, subject and number of the draw alone, independent of their
    noise."""
    generator = torch.Generator().manual_seed(derived_seed(seed, subject, draw, "label"))
    return torch.rand((), generator=generator, dtype=torch.float64).item()


class EMA:
    """Exponential moving average of a module's weights, in .module; a plain copy for the first `start`
    steps."""

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


# ---------------------------------------------------------------- image metrics, as scikit-image defines them

METRICS = ("PSNR", "SSIM", "MAE", "PSNR_brain", "SSIM_brain", "MAE_brain")
WINDOW = 7                                                 # voxels of SSIM's uniform window


def score_volume(x_hat: Tensor, x: Tensor, brain: np.ndarray) -> dict[str, float]:
    """PSNR (dB), SSIM and MAE of one volume on the whole box and inside the brain; data range 1, SSIM window
    7, uniform.

    x_hat, x: [D, H, W] float32 in [0, 1]; brain: [D, H, W] bool. Inside the brain: errors over its voxels
    only, and the mean of the SSIM map over them. Computed where x_hat is: by scikit-image on a CPU, by torch
    on a GPU.
    """
    if x_hat.device.type != "cpu":
        return score_on_device(x_hat, x.to(x_hat.device), brain)
    x_hat, x = x_hat.numpy(), x.numpy()
    ssim, ssim_map = structural_similarity(x, x_hat, win_size=WINDOW, data_range=1.0, full=True)
    inside, inside_hat = x[brain], x_hat[brain]
    return {"PSNR": peak_signal_noise_ratio(x, x_hat, data_range=1.0), "SSIM": float(ssim),
            "MAE": float(np.abs(x - x_hat).mean()),
            "PSNR_brain": peak_signal_noise_ratio(inside, inside_hat, data_range=1.0),
            "SSIM_brain": float(ssim_map[brain].mean()),
            "MAE_brain": float(np.abs(inside - inside_hat).mean())}


def score_on_device(x_hat: Tensor, x: Tensor, brain: np.ndarray) -> dict[str, float]:
    """score_volume in torch, in float64, on the device of both volumes."""
    x_hat, x, brain = x_hat.double(), x.double(), torch.from_numpy(brain).to(x.device)
    error, ssim_map, rim = (x - x_hat).abs(), _ssim_map(x, x_hat), WINDOW // 2

    def psnr(errors: Tensor) -> Tensor:
        return -10 * errors.square().mean().log10()
    scores = torch.stack([psnr(error), ssim_map[rim:-rim, rim:-rim, rim:-rim].mean(), error.mean(),
                          psnr(error[brain]), ssim_map[brain].mean(), error[brain].mean()])
    return dict(zip(METRICS, scores.tolist(), strict=True))


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of every voxel of [D, H, W] (Wang et al. 2004), the volumes mirrored at their faces, as
    scikit-image's full map."""
    fields = torch.stack([x, y, x * x, y * y, x * y])[:, None]                               # [5, 1, D, H, W]
    for axis in range(3):                                  # a uniform window is separable
        n, rim = x.shape[axis], WINDOW // 2
        mirrored = [*reversed(range(rim)), *range(n), *reversed(range(n - rim, n))]
        kernel = tuple(WINDOW if i == axis else 1 for i in range(3))
        fields = F.avg_pool3d(fields.index_select(axis + 2, torch.tensor(mirrored, device=x.device)), kernel,
                              stride=1)
    mean_x, mean_y, xx, yy, xy = fields[:, 0]
    unbiased = WINDOW ** 3 / (WINDOW ** 3 - 1)
    variances = unbiased * (xx - mean_x ** 2 + yy - mean_y ** 2)
    covariance = unbiased * (xy - mean_x * mean_y)
    c_1, c_2 = 0.01 ** 2, 0.03 ** 2
    return ((2 * mean_x * mean_y + c_1) * (2 * covariance + c_2)
            / ((mean_x ** 2 + mean_y ** 2 + c_1) * (variances + c_2)))
