"""Precision, the moving average, noise, keys of weights."""

import pytest
import torch
from torch import nn

from utils import EMA, InputError, autocast, draw_noise, pick_device, pick_precision, weights_key


def test_noise_of_a_draw_depends_on_seed_subject_and_number_alone():
    shape = (1, 2, 2, 2)
    first = next(draw_noise(0, "s1", 0, shape))
    assert torch.equal(next(draw_noise(0, "s1", 0, shape)), first)
    assert not any(
        torch.equal(next(draw_noise(*other, shape)), first)
        for other in ((1, "s1", 0), (0, "s2", 0), (0, "s1", 1))
    )
    stream = draw_noise(0, "s1", 0, shape)
    assert torch.equal(next(stream), first)
    assert not torch.equal(next(stream), first)
    many = torch.cat([next(stream) for _ in range(1500)])
    assert abs(many.mean().item()) < 0.03
    assert many.std().item() == pytest.approx(1, abs=0.03)


def test_precision_decides_what_networks_compute_in():
    cpu, network, x = torch.device("cpu"), nn.Conv3d(1, 1, 3), torch.rand(1, 1, 4, 4, 4)
    found = {}
    for name in ("fp32", "bf16"):
        with autocast(cpu, pick_precision(name, cpu)):
            found[name] = network(x)
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        assert tf32 == (name == "bf16",) * 2               # never where all is to be float32
    assert {name: y.dtype for name, y in found.items()} == {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert torch.equal(found["fp32"], network(x))
    torch.testing.assert_close(found["bf16"].float(), found["fp32"], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_the_cpu_has_it(monkeypatch, instructions, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert pick_precision("auto", torch.device("cpu")) == dtype


def test_moving_average_copies_first_and_follows_its_recursion_then():
    module = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(module, decay=0.9, start=2), None
    for step in range(1, 6):
        with torch.no_grad():
            module.weight.fill_(step ** 2)
        ema.update(module, step)
        expected = float(step ** 2) if step <= 2 else 0.9 * expected + 0.1 * step ** 2
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert not ema.module.weight.requires_grad
    assert not ema.module.training


def test_weights_key_tells_weights_apart():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    assert weights_key(a) != weights_key(b)
    b.load_state_dict(a.state_dict())
    assert weights_key(a) == weights_key(b)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_without_one_is_an_input_error():
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="no CUDA GPU"):
        pick_device("cuda")
