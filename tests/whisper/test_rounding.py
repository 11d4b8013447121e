"""Rounding, by hand where a hand can, and on inputs that depend on each other, where GPTQ has something to gain."""

import pytest
import torch
from torch import Tensor

from pipeline.whisper.model.packing import Packed
from pipeline.whisper.quantization import rounding
from pipeline.whisper.quantization.rounding import Order


def correlated(columns: int = 64, samples: int = 500) -> Tensor:
    """Return inputs of a layer: neighbours go together, and some are far larger than others."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, columns, generator=generator)
    return (noise.cumsum(1) + torch.randn(samples, 1, generator=generator)) * torch.logspace(-1, 1, columns)


def weight(rows: int = 24, columns: int = 64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def output_error(found: Tensor, exact: Tensor, inputs: Tensor) -> float:
    return float(((found - exact) @ inputs.T).norm() / (exact @ inputs.T).norm())


def test_eight_bits_have_a_scale_for_a_row_and_no_least_value() -> None:
    packed = rounding.nearest(torch.tensor([[127.0, -63.6, 0.4], [-0.5, 0.25, 0.0]]), 8)
    assert packed.codes.tolist() == [[255, 64, 128], [1, 128 + 64, 128]]  # 63.5 goes to the even 64
    assert (packed.scale.tolist(), packed.low) == ([[1.0], [pytest.approx(0.5 / 127, rel=1e-3)]], None)
    assert packed.weight()[0].tolist() == [127.0, -64.0, 0.0]


def test_fewer_bits_reach_from_the_least_value_of_a_group_to_its_largest() -> None:
    packed = rounding.nearest(torch.tensor([[-2.0, 5.0, 0.4, 1.6]]), 3)
    assert (packed.scale.tolist(), packed.low) == ([[1.0]], torch.tensor([[-2.0]]))
    assert packed.codes.tolist() == [[0, 7, 2, 4]]
    assert packed.weight().tolist() == [[-2.0, 5.0, 0.0, 2.0]]


@pytest.mark.parametrize(("row", "low", "scale"), [([3.0, 7.0], 0.0, 1.0), ([-7.0, -3.5], -7.0, 1.0)])
def test_zero_is_exact_where_all_weights_are_on_one_side(row: list[float], low: float, scale: float) -> None:
    packed = rounding.nearest(torch.tensor([row]), 3)
    assert packed.low is not None
    assert (packed.low.item(), packed.scale.item()) == (low, scale)


def test_each_group_of_64_has_its_own_scale() -> None:
    row = torch.cat([torch.linspace(0, 15, 64), torch.linspace(-30, 0, 64)])
    packed = rounding.nearest(row[None], 4)
    assert packed.low is not None
    assert (packed.scale.tolist(), packed.low.tolist()) == ([[1.0, 2.0]], [[0.0, -30.0]])


@pytest.mark.parametrize(("columns", "groups"), [(64, 1), (192, 3), (100, 1), (5, 1)])
def test_a_row_that_groups_do_not_divide_is_one_group(columns: int, groups: int) -> None:
    assert rounding.nearest(torch.randn(3, columns), 5).scale.shape == (3, groups)


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_no_weight_is_farther_than_half_a_step(bits: int) -> None:
    exact = weight()
    packed = rounding.nearest(exact, bits)
    # Scales in float16 are off by 2^-11: the largest weight, 2^bits steps from the least, by as much as that.
    assert ((packed.weight() - exact).abs() <= packed.scale.float() * (0.5 + 2 ** (bits - 11))).all()


def test_a_convolution_keeps_its_shape() -> None:
    exact = torch.randn(4, 3, 5)
    packed = rounding.nearest(exact, 8)
    assert packed.weight().shape == exact.shape
    assert torch.equal(packed.weight(), rounding.nearest(exact.flatten(1), 8).weight().reshape(4, 3, 5))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    exact = torch.zeros(3, 64)
    exact[1] = 1e-45  # less than float16 knows
    assert torch.equal(rounding.nearest(exact, bits).weight(), torch.zeros(3, 64))


def test_an_outlier_does_not_take_the_steps_from_columns_that_matter() -> None:
    exact = torch.linspace(-1, 1, 64)[None].clone()
    exact[0, 0] = -1.5
    even, aware = torch.ones(64), torch.ones(64)
    aware[0] = 0.0
    scale, low = rounding.optimal_grid(exact, 3, 64, even)
    narrow, later = rounding.optimal_grid(exact, 3, 64, aware)
    assert narrow < scale
    assert later > low


def test_ranges_are_searched_by_what_an_error_costs() -> None:
    exact, importance = weight(), torch.logspace(-2, 2, 64)

    def loss(scale: Tensor, low: Tensor | None) -> Tensor:
        assert low is not None
        codes = rounding.encode(exact, scale, low, 3)
        found = Packed(codes, scale, 3, (24, 64), low).weight()
        return ((found - exact).square() @ importance).sum()

    plain = loss(*rounding.grid(exact.unflatten(1, (-1, 32)), 3))
    assert loss(*rounding.optimal_grid(exact, 3, 32, importance)) < 0.9 * plain


def test_inputs_without_a_bond_round_to_the_nearest() -> None:
    """Nothing can take over an error, and the order does not matter."""
    order = Order.of(torch.diag(torch.tensor([1.0, 4.0, 2.0, 3.0])), 0.0)
    assert order.columns.tolist() == [1, 3, 2, 0]
    assert order.importance.tolist() == pytest.approx([1.0, 4.0, 2.0, 3.0])
    exact = torch.tensor([[0.4, 1.6, -0.7, 2.2]])
    codes = order.round(exact, lambda values, _: (values.round(), values.round()))
    assert codes.tolist() == [[0, 2, -1, 2]]


def test_an_error_is_left_to_the_column_that_says_the_same() -> None:
    """Two inputs that are nearly the same: 0.4 + 0.4 rounds to 0 + 0 one by one, and to 0 + 1 together."""
    order = Order.of(torch.tensor([[1.0, 0.999], [0.999, 1.0]]), 0.0)
    codes = order.round(torch.tensor([[0.4, 0.4]]), lambda values, _: (values.round(), values.round()))
    assert sorted(codes[0].tolist()) == [0, 1]


def test_importance_is_what_an_error_costs_after_later_columns_have_made_up_for_it() -> None:
    moments = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    # The first column comes first: 2 - 1 * 1 / 1 is left of its 2. The second is the last: all of its 1.
    assert Order.of(moments, 0.0).importance.tolist() == pytest.approx([1.0, 1.0])


def test_columns_beyond_a_block_hear_of_earlier_errors() -> None:
    """Whoever forgets it rounds each block alone, which costs more."""
    inputs, exact = correlated(300), weight(16, 300)
    order = Order.of(inputs.T @ inputs, 0.01)

    def quantize(values: Tensor, _: int) -> tuple[Tensor, Tensor]:
        codes = (values * 2).round()
        return codes, codes / 2

    left, expected = exact.double()[:, order.columns].clone(), torch.empty(16, 300, dtype=torch.float64)
    factor = order.factor.double()
    for at in range(300):  # Frantar et al., a column at a time
        expected[:, at] = (left[:, at] * 2).round() / 2
        left[:, at:] -= ((left[:, at] - expected[:, at]) / factor[at, at])[:, None] * factor[at, at:]
    found = order.round(exact, quantize).float() / 2
    same = (found[:, order.columns] == expected.float()).float().mean()
    assert same > 0.98  # a value in the middle of two codes may go either way
    assert output_error(found, exact, inputs) == pytest.approx(
        output_error(expected[:, order.columns.argsort()].float(), exact, inputs), rel=0.02
    )


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_gptq_keeps_outputs_closer_than_the_nearest_codes(bits: int, group: int) -> None:
    inputs, exact = correlated(), weight()
    packed = rounding.gptq(exact, Order.of(inputs.T @ inputs, 0.01), bits, group)
    assert packed.codes.max() <= 2**bits - 1
    assert packed.scale.shape == (24, 64 // group)
    assert packed.codes.dtype == torch.uint8
    plain = output_error(rounding.nearest(exact, bits).weight(), exact, inputs)
    assert output_error(packed.weight(), exact, inputs) < 0.5 * plain


def test_gptq_rounds_inputs_that_were_never_there_to_the_nearest() -> None:
    """A layer that heard silence: no second moment, and no division by it."""
    exact = weight()
    packed = rounding.gptq(exact, Order.of(torch.zeros(64, 64), 0.01), 4, 64)
    assert ((packed.weight() - exact).abs() <= packed.scale.float() * 0.51 + 0.26 * packed.scale.float() * 15).all()
    assert packed.weight().isfinite().all()


def test_a_silent_column_is_no_obstacle() -> None:
    inputs = correlated()
    inputs[:, 5] = 0
    order = Order.of(inputs.T @ inputs, 0.01)
    assert order.factor.isfinite().all()
    assert (order.importance > 0).all()


def test_steps_make_an_error_cost_alike_in_every_row_and_column() -> None:
    outputs, importance = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.0, 16.0])
    row, column = rounding.scales(torch.zeros(2, 3), outputs, importance, 0.01)
    assert (row.dtype, column.dtype) == (torch.float16, torch.float16)
    assert column.tolist() == [1.0, 0.5, 0.25]
    assert row.tolist() == pytest.approx([0.1, 0.05], rel=1e-3)
    cost = outputs[:, None] * (row.float()[:, None] * column.float()) ** 2 * importance
    torch.testing.assert_close(cost, torch.full((2, 3), 0.01), rtol=2e-3, atol=0)


def test_a_rows_largest_weight_bounds_its_scale() -> None:
    exact = torch.tensor([[0.1, 254.0], [0.1, 0.1]])
    row, column = rounding.scales(exact, torch.ones(2), torch.ones(2), 1e-4)
    assert column.tolist() == [1.0, 1.0]
    assert row.tolist() == pytest.approx([2.0, 0.01], rel=1e-3)
    assert rounding.rounded(exact, row, column).codes.tolist() == [[0, 127], [10, 10]]


@pytest.mark.parametrize("distortion", [1e-12, 1e-6, 1.0])
def test_scales_are_finite_for_rows_and_columns_of_zeros(distortion: float) -> None:
    exact, inputs = weight(), correlated()
    exact[3], exact[:, 7] = 0, 0
    inputs[:, 9] = 0
    order = Order.of(inputs.T @ inputs / len(inputs), 0.01)
    row, column = rounding.scales(exact, torch.full((24,), 1 / 24), order.importance, distortion)
    for scale in (row, column):
        assert scale.isfinite().all()
        assert (scale > 0).all()
    found = rounding.entropy_coded(exact, order, row, column).weight()
    assert found.isfinite().all()
    assert (found[3] == 0).all()
    assert rounding.rounded(exact, row, column).weight().isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_entropy_coded_meets_its_steps_and_keeps_outputs_closer(bits: int) -> None:
    inputs, exact = correlated(), weight()
    order = Order.of(inputs.T @ inputs / len(inputs), 0.01)
    row, column = rounding.scales(exact, torch.full((24,), 1 / 24), order.importance, 4.0**-bits)
    packed, plain = rounding.entropy_coded(exact, order, row, column), rounding.rounded(exact, row, column)
    assert packed.codes.dtype == torch.int8
    assert packed.codes.abs().max() <= 127
    assert torch.equal(packed.scale[:, 0], row)
    assert packed.column is not None
    assert torch.equal(packed.column, column)
    assert output_error(packed.weight(), exact, inputs) < 0.7 * output_error(plain.weight(), exact, inputs)
    assert packed.size() == pytest.approx(plain.size(), rel=0.1)  # as `mixed` guesses


def test_finer_steps_take_more_bytes_and_lose_less() -> None:
    inputs, exact = correlated(), weight(200)
    order = Order.of(inputs.T @ inputs / len(inputs), 0.01)
    found = []
    for distortion in (1e-1, 1e-2, 1e-3, 1e-4):
        grid = rounding.scales(exact, torch.full((200,), 1 / 200), order.importance, distortion)
        packed = rounding.entropy_coded(exact, order, *grid)
        found.append((packed.size(), -output_error(packed.weight(), exact, inputs)))
    assert found == sorted(found)
    assert len(set(found)) == 4
