"""Packed weights: their bytes, worked by hand, and what becomes of a file that somebody has damaged."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.whisper.model import packing, weights
from pipeline.whisper.model.packing import Packed
from pipeline.whisper.quantization import rounding


def half(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float16)


def written(folder: Path, tensors: dict[str, Tensor], packed: dict[str, Packed], rest: str = "float16") -> Path:
    """Write a checkpoint's weights as `quantize` does; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    packing.shrink(folder, packed, rest)
    return folder


def coded(rows: int, columns: int, seed: int = 0) -> Packed:
    """Return codes without a fixed width, most of them near 0, as rounding leaves them."""
    generator = torch.Generator().manual_seed(seed)
    column = (torch.rand(columns, generator=generator) + 0.5).half()
    codes = torch.randn(rows, columns, generator=generator).mul(2).round().clamp(-127, 127).to(torch.int8)
    scale = (torch.rand(rows, 1, generator=generator) + 0.5).half()
    return Packed(codes, scale, None, (rows, columns), None, column)


def test_codes_stand_in_planes_of_one_bit_each() -> None:
    """Rows follow each other without a gap; the last byte of a plane is filled up with zeros."""
    codes = torch.tensor([[7, 0, 1, 2, 4], [0, 0, 0, 1, 7]], dtype=torch.uint8)
    packed = Packed(codes, half([1.0], [1.0]), 3, (2, 5), half([0.0], [0.0]))
    planes = [0b10100000, 0b11000000, 0b10010000, 0b01000000, 0b10001000, 0b01000000]  # bit 0 of all codes, 1, 2
    assert packed.tensors()["codes"].tolist() == planes
    assert torch.equal(packed.weight(), codes.float())


def test_a_weight_is_its_code_times_the_groups_scale_and_the_least_value() -> None:
    codes = torch.tensor([[0, 15, 8, 1]], dtype=torch.uint8)
    packed = Packed(codes, half([0.5, 2.0]), 4, (1, 4), half([-1.0, 3.0]))
    assert packed.weight().tolist() == [[-1.0, 6.5, 19.0, 5.0]]


def test_without_a_least_value_the_middle_code_is_zero() -> None:
    packed = Packed(torch.tensor([[0, 128, 255]], dtype=torch.uint8), half([0.5]), 8, (1, 3))
    assert packed.weight().tolist() == [[-64.0, 0.0, 63.5]]


def test_a_weight_of_no_fixed_width_is_its_code_times_row_and_column() -> None:
    codes = torch.tensor([[-127, 0], [1, 5]], dtype=torch.int8)
    packed = Packed(codes, half([0.5], [2.0]), None, (2, 2), None, half(1.0, 0.25))
    assert packed.weight().tolist() == [[-63.5, 0.0], [2.0, 2.5]]


@pytest.mark.parametrize("shape", [(5, 64), (3, 7), (2, 3, 3), (1, 1)])
@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_fixed_widths_come_back_exactly_in_no_more_bytes_than_they_need(
    bits: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    packed = rounding.nearest(weight, bits)
    count, scales = weight.numel(), 2 * shape[0] * (1 if bits == 8 else 2)  # 8 bits have no least value
    assert packed.size() == bits * -(-count // 8) + scales
    folder = written(tmp_path, {"a.weight": weight}, {"a": packed})
    stored = load_file(folder / "model.safetensors")
    assert set(stored) == {"a.weight.codes", "a.weight.scale", *(["a.weight.low"] if bits < 8 else [])}
    assert sum(tensor.nbytes for tensor in stored.values()) == packed.size()
    read = weights.read(folder)["a.weight"]
    assert (read.shape, read.dtype) == (shape, torch.float32)
    assert torch.equal(read, packed.weight())


def test_all_codes_of_a_width_come_back(tmp_path: Path) -> None:
    for bits in range(1, 9):
        codes = torch.arange(2**bits, dtype=torch.uint8)[None]
        packed = Packed(codes, half([1.0]), bits, (1, 2**bits), half([0.0]))
        assert torch.equal(weights.read(written(tmp_path, {}, {"a": packed}))["a.weight"], codes.float())


def test_frequent_codes_take_fewer_bits(tmp_path: Path) -> None:
    packed = coded(300, 200)
    values, counts = packed.codes.unique(return_counts=True)
    share = counts / counts.sum()
    entropy = float(-(share * share.log2()).sum())
    assert len(values) > 2**4
    assert entropy < 3.1
    bits = 8 * len(packed.tensors()["codes"]) / packed.codes.numel()
    assert entropy <= bits < entropy + 0.1  # Huffman's whole bits cost that little
    assert packed.size() == len(packed.tensors()["codes"]) + 2 * 300 + 2 * 200
    assert torch.equal(weights.read(written(tmp_path, {}, {"a": packed}))["a.weight"], packed.weight())


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 9), (7, 5)])
def test_a_few_codes_of_no_fixed_width_come_back(shape: tuple[int, int], tmp_path: Path) -> None:
    packed = coded(*shape)
    assert torch.equal(weights.read(written(tmp_path, {}, {"a": packed}))["a.weight"], packed.weight())


@pytest.mark.parametrize("value", [0, -127, 127])
def test_codes_that_are_all_alike_come_back(value: int, tmp_path: Path) -> None:
    """Eight of them in a byte is the most that a file may promise."""
    codes = torch.full((512, 512), value, dtype=torch.int8)
    packed = Packed(codes, torch.ones(512, 1).half(), None, (512, 512), None, torch.ones(512).half())
    assert torch.equal(weights.read(written(tmp_path, {}, {"a": packed}))["a.weight"], codes.float())


def test_columns_of_one_scale_come_back_in_their_order(tmp_path: Path) -> None:
    """Columns are stored by their scales; where two are alike, reader and writer must agree on which is first."""
    codes = torch.arange(-32, 32, dtype=torch.int8).reshape(2, 32)
    packed = Packed(codes, half([1.0], [1.0]), None, (2, 32), None, half(*[1.0, 0.5] * 16))
    assert torch.equal(weights.read(written(tmp_path, {}, {"a": packed}))["a.weight"], packed.weight())


def test_the_rest_is_stored_as_float16_and_comes_back_exactly(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4).half().float(), "a.bias": torch.tensor([65504.0, -65504.0, 2.0**-24])}
    folder = written(tmp_path, tensors, {})
    assert all(tensor.dtype == torch.float16 for tensor in load_file(folder / "model.safetensors").values())
    read = weights.read(folder)
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, tensors[name]) for name, tensor in read.items())


def test_float32_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    before = (tmp_path / "model.safetensors").read_bytes()
    packing.shrink(tmp_path, {}, "float32")
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_file_is_the_same_every_time(tmp_path: Path) -> None:
    """Safetensors writes metadata in another order each time: a checkpoint seems to change, and all reruns."""
    packed = {"a": coded(4, 5), "b": rounding.nearest(torch.ones(2, 64), 4)}
    path = tmp_path / "model.safetensors"
    found = set()
    for _ in range(20):
        save_file({"c.weight": torch.ones(2)}, path, {name: name * 2 for name in ("format", 'ä\n"', "x", "y")})
        packing.shrink(tmp_path, packed, "float16")
        found.add(path.read_bytes())
    assert len(found) == 1
    with safe_open(path, "pt") as file:
        assert file.metadata()['ä\n"'] == 'ä\n"ä\n"'
    assert set(weights.read(tmp_path)) == {"a.weight", "b.weight", "c.weight"}


def test_a_librarys_own_tensors_stay_as_they_are(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(3, 4, dtype=torch.int8), "a.weight_scale": torch.rand(3)}
    folder = written(tmp_path, tensors, {})
    for read in (load_file(folder / "model.safetensors"), weights.read(folder)):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in read.items())
        assert all(tensor.dtype == tensors[name].dtype for name, tensor in read.items())


def test_what_float16_cannot_hold_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        written(tmp_path, {"a.bias": torch.tensor([0.0, -65536.0])}, {})
    assert str(error.value) == ("a.bias has values beyond 65,504, which float16 cannot hold; set rest to float32")


def test_a_module_computes_with_what_is_stored() -> None:
    linear = nn.Linear(4, 3)
    model = nn.Sequential(linear, nn.Linear(3, 2))
    packed = rounding.nearest(linear.weight, 4)
    packing.attach(linear, packed)
    assert packing.attached(model) == {"0": packed}
    assert torch.equal(linear.weight, packed.weight())


FIXED, DEFLATED = "fixed", "deflated"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return the folder of a file with a weight of each kind, and one that is not packed."""
    packed = {FIXED: rounding.nearest(torch.randn(6, 128), 4), DEFLATED: coded(40, 30)}
    return written(tmp_path, {"bare.weight": torch.ones(2)}, packed)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        weights.read(folder)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def edit(folder: Path, tensors: dict[str, Tensor | None], told: Any = None) -> None:
    """Replace tensors (None: drop) by names such as `fixed.scale`, and what is told of weights."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    whole = load_file(path)
    for name, tensor in tensors.items():
        weight, part = name.split(".")
        whole.pop(f"{weight}.weight.{part}", None)
        if tensor is not None:
            whole[f"{weight}.weight.{part}"] = tensor
    if isinstance(told, dict):
        before = json.loads(metadata[packing.KEY])
        told = json.dumps({name: before[name] | told.get(name.removesuffix(".weight"), {}) for name in before})
    save_file(whole, path, metadata | ({} if told is None else {packing.KEY: told}))


def test_the_undamaged_file_is_read(stored: Path) -> None:
    edit(stored, {})
    assert set(weights.read(stored)) == {"fixed.weight", "deflated.weight", "bare.weight"}


@pytest.mark.parametrize(
    "told",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '"fixed"',
        "[" * 10_000,
        '{"fixed.weight": 4}',
        '{"fixed.weight": null}',
        '{"fixed.weight": []}',
        '{"fixed.weight": {}}',
        '{"fixed.weight": {"bits": 4}}',
        '{"fixed.weight": {"shape": [6, 128]}}',
        '{"fixed.weight": {"bits": ' + "9" * 5000 + ', "shape": [6, 128]}}',
        '{"other.weight": {"bits": 4, "shape": [6, 128]}}',
        '{"bare.weight": {"bits": 4, "shape": [2]}}',
    ],
    ids=lambda told: told[:40] or "empty",
)
def test_metadata_that_somebody_has_edited(told: str, stored: Path) -> None:
    edit(stored, {}, told)
    assert "holds weights that cannot be unpacked" in refusal(stored)


@pytest.mark.parametrize(
    "bits", [0, -4, 3, 9, 10**30, 4.5, True, "4", [4], {}, float("nan"), float("inf"), None, "x" * 1000]
)
def test_bits_that_are_not_those_of_the_codes(bits: Any, stored: Path) -> None:
    """A text or a list times a number of bytes is gigabytes of it."""
    edit(stored, {}, {FIXED: {"bits": bits, "shape": [6, 128]}})
    assert "holds weights that cannot be unpacked" in refusal(stored)


@pytest.mark.parametrize("bits", [8, 3, 1])
def test_a_width_for_codes_without_one(bits: int, stored: Path) -> None:
    edit(stored, {}, {DEFLATED: {"bits": bits}})
    assert "holds weights that cannot be unpacked" in refusal(stored)


SHAPES: list[Any] = [
    [],
    [6],
    [6, 0],
    [0, 128],
    [6, 127],
    [5, 128],
    [128, 6],
    [6, -128],
    [-6, 128],
    [6, -1],
    [6, -1, -128],
    [6, 128, 2],
    [6, 2**32, 2**32],
    [2**63, 128],
    [6, 10**30],
    [6, 128.5],
    [6.0, 128.0],
    ["6", "128"],
    [[6], [128]],
    [None, 128],
    "6",
    6,
    None,
    {"6": 128},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weight", [FIXED, DEFLATED])
def test_shapes_that_are_not_those_of_the_codes(weight: str, shape: Any, stored: Path) -> None:
    edit(stored, {}, {weight: {"shape": shape}})
    assert "holds weights that cannot be unpacked" in refusal(stored)


HALVES = torch.ones(6, 2).half()
SPOILT: list[tuple[str, Tensor | None]] = [
    *((f"{weight}.{part}", None) for weight in (FIXED, DEFLATED) for part in ("codes", "scale")),
    ("deflated.column", None),
    *(
        ("fixed.codes", tensor)
        for tensor in (
            torch.zeros(0, dtype=torch.uint8),
            torch.zeros(383, dtype=torch.uint8),
            torch.zeros(385, dtype=torch.uint8),
            torch.zeros(384, 2, dtype=torch.uint8),
            torch.zeros(384, 0, dtype=torch.uint8),
            torch.tensor(7, dtype=torch.uint8),
            torch.zeros(384, dtype=torch.int8),
            torch.zeros(384, dtype=torch.float16),
            torch.zeros(384, dtype=torch.bfloat16),
        )
    ),
    *(
        (f"fixed.{part}", tensor)
        for part in ("scale", "low")
        for tensor in (
            HALVES[:5],
            HALVES[:, :0],
            HALVES[:0],
            HALVES[0],
            HALVES[0, 0],
            HALVES[:, :, None],
            HALVES[:, :, None].expand(6, 2, 64).contiguous(),
            HALVES.repeat(1, 50)[:, :99],
            HALVES.float(),
            HALVES.to(torch.complex64),
            HALVES.to(torch.int8),
            HALVES.bool(),
        )
    ),
    ("fixed.column", torch.ones(127).half()),
    ("fixed.column", torch.ones(128)),
    ("deflated.scale", torch.ones(39, 1).half()),
    ("deflated.low", torch.ones(40, 2).half()),
    *(("deflated.column", tensor) for tensor in (torch.ones(29).half(), torch.ones(30), torch.ones(30, 1).half())),
]


@pytest.mark.parametrize(
    ("name", "tensor"), SPOILT, ids=lambda x: x if isinstance(x, str) else str(x is not None and [*x.shape, x.dtype])
)
def test_parts_that_do_not_fit(name: str, tensor: Tensor | None, stored: Path) -> None:
    edit(stored, {name: None if tensor is None else tensor.clone()})
    assert "holds weights that cannot be unpacked" in refusal(stored)


@pytest.mark.parametrize("damage", ["cut", "cut at its end", "one bit", "no deflate", "too short", "too long", "other"])
def test_deflated_codes_that_somebody_has_damaged(damage: str, stored: Path) -> None:
    data = bytearray(load_file(stored / "model.safetensors")["deflated.weight.codes"].numpy().tobytes())
    if damage.startswith("cut"):
        data = data[: len(data) // 2] if damage == "cut" else data[:-1]
    elif damage == "one bit":
        data[len(data) // 2] ^= 1
    elif damage == "no deflate":
        data[:2] = b"PK"
    else:
        data = bytearray(zlib.compress(bytes({"too short": 1199, "too long": 1201, "other": 0}[damage])))
    edit(stored, {"deflated.codes": torch.frombuffer(data, dtype=torch.uint8)})
    assert "holds weights that cannot be unpacked" in refusal(stored)


@pytest.mark.parametrize("rows", [40, 50_000])
def test_a_file_that_inflates_without_end_takes_no_memory(rows: int, stored: Path) -> None:
    """2.5 GB of zeros, and 10 GB as floats, in 2.5 MB that say so and in a file that says 1,200."""
    import tracemalloc

    squeeze = zlib.compressobj(9)
    bomb = b"".join(squeeze.compress(bytes(50_000)) for _ in range(5_000)) + squeeze.flush()
    if rows > 40:
        huge = {"scale": torch.ones(rows, 1).half(), "column": torch.ones(rows).half()}
        edit(stored, {f"deflated.{part}": tensor for part, tensor in huge.items()}, {DEFLATED: {"shape": [rows, rows]}})
    edit(stored, {"deflated.codes": torch.frombuffer(bytearray(bomb), dtype=torch.uint8)})
    tracemalloc.start()
    try:
        assert "holds weights that cannot be unpacked" in refusal(stored)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_file_that_is_cut_anywhere_is_one_sentence(stored: Path) -> None:
    path = stored / "model.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert refusal(stored) == (f"{stored}: model.safetensors is missing or cut short; fetch or quantize it again")


def test_a_flipped_byte_is_read_or_one_sentence(stored: Path) -> None:
    path = stored / "model.safetensors"
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            weights.read(stored)
        except UserError:
            refused += 1
    assert refused > 100
