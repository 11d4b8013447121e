"""Int8 codes times activations as they come, held against the same arithmetic in double precision."""

import pytest
import torch
from torch import Tensor

from pipeline.whisper.model import integers, network
from pipeline.whisper.model.packing import Packed


def packed(rows: int = 96, columns: int = 160) -> Packed:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-127, 128, (rows, columns), generator=generator).to(torch.int8)
    scale = torch.rand(rows, 1, generator=generator).add(0.1).half()
    column = torch.rand(columns, generator=generator).add(0.1).half()
    return Packed(codes, scale, None, (rows, columns), None, column)


def sound(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def exact(of: Packed, x: Tensor, bias: Tensor | None) -> Tensor:
    """Round each position to its own 255 codes, and multiply."""
    assert of.column is not None
    wide = (x * of.column.float()).double()
    steps = wide.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    y = ((wide / steps).round() * steps) @ (of.codes.double() * of.scale.double()).T
    return (y if bias is None else y + bias).float()


@pytest.fixture(params=["bytes", "floats"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the processor's instructions, and as on one without them."""
    if request.param == "floats":
        monkeypatch.setattr(integers, "multiplies_bytes", lambda: False)
    elif not integers.multiplies_bytes():
        pytest.skip("this processor has no VNNI instructions: its kernel is the other one")
    return str(request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("shape", [(1, 7, 160), (3, 1, 160), (1, 1500, 160), (2, 160)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_positions_are_rounded_to_scales_of_their_own(shape: tuple[int, ...], biased: bool) -> None:
    weight, bias = packed(), sound(96) if biased else None
    x = sound(*shape) * 10.0 ** torch.arange(-2, -2 + shape[-2]).clamp(max=3)[:, None]
    found = integers.Linear(weight, bias, alone=False)(x)
    assert found.shape == (*shape[:-1], 96)
    expected = exact(weight, x, bias)
    share = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert share.max() < 5e-3  # a code at a tie, perhaps; a scale that is shared gives 1
    assert share.median() < 1e-6


def test_a_position_alone_is_as_near_to_the_weights_as_in_company() -> None:
    weight, bias, x = packed(), sound(96), sound(32, 160)
    layer = integers.Linear(weight, bias, alone=True)
    true = x @ weight.weight().T + bias
    together = (layer(x) - true).norm()
    alone = (torch.cat([layer(row[None]) for row in x]) - true).norm()
    assert 0 < together < 0.01 * true.norm()
    assert alone < 1.2 * together


@pytest.mark.usefixtures("kernel")
def test_zeros_give_the_bias() -> None:
    bias = sound(96)
    layer = integers.Linear(packed(), bias, alone=True)
    for positions in (1, 5):
        torch.testing.assert_close(layer(torch.zeros(positions, 160)), bias.expand(positions, -1), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("kernel")
def test_the_input_is_left_as_it_is() -> None:
    x = sound(5, 160)
    before = x.clone()
    integers.Linear(packed(), None, alone=True)(x)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("kernel")
def test_sums_that_16_bits_cannot_hold_are_right() -> None:
    """What older instructions cut off: rows of the largest codes, all of one sign."""
    ones = torch.ones(2048).half()
    weight = Packed(torch.full((64, 2048), 127, dtype=torch.int8), ones[:64, None], None, (64, 2048), None, ones)
    found = integers.Linear(weight, None, alone=False)(torch.ones(300, 2048))
    torch.testing.assert_close(found, torch.full((300, 64), 127.0 * 2048), rtol=1e-6, atol=0)


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16"), reason="this processor does not multiply bfloat16"
)
def test_attention_in_half_precision_is_near_that_in_full() -> None:
    torch.manual_seed(0)
    layer = network.Attention(64, 2).eval()
    x = sound(1, 1500, 64)
    with torch.no_grad():
        full = layer.attend(x, *layer.keys_values(x))
        layer.precision = torch.bfloat16
        half = layer.attend(x, *layer.keys_values(x))
    assert not torch.equal(half, full)
    assert (half - full).norm() < 0.01 * full.norm()
