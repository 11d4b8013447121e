"""What each backend says to a variant: the defaults that it fills in, or the sentence that refuses it."""

from typing import Any

import pytest

from pipeline import backends
from pipeline.core.errors import UserError
from tests.backends.common import make

FILLED: list[tuple[dict[str, Any], tuple[str | None, int | None, bool | None]]] = [
    # what is asked for -> granularity, group_size, symmetric
    ({"backend": "none", "bits": 32, "format": "float", "rest": "float32"}, (None, None, None)),
    ({"backend": "none", "bits": 16, "format": "float"}, (None, None, None)),
    ({"backend": "none", "bits": 16, "format": "float", "embedding": 5, "conv": 8}, (None, None, None)),
    ({"backend": "torch", "activations": "dynamic"}, ("channel", None, True)),
    ({"backend": "torch", "activations": "static"}, ("channel", None, True)),
    ({"backend": "torch", "activations": "static", "granularity": "tensor"}, ("tensor", None, True)),
    (
        {"backend": "torch", "activations": "dynamic", "granularity": "tensor", "symmetric": False},
        ("tensor", None, False),
    ),
    ({"backend": "quanto"}, ("channel", None, True)),
    ({"backend": "quanto", "format": "float"}, ("channel", None, True)),
    ({"backend": "quanto", "activations": "static"}, ("channel", None, True)),
    ({"backend": "quanto", "bits": 4}, ("group", 128, False)),
    ({"backend": "quanto", "bits": 2, "granularity": "group", "group_size": 128}, ("group", 128, False)),
    ({"backend": "hqq"}, ("group", 64, False)),
    ({"backend": "hqq", "bits": 3, "group_size": 128}, ("group", 128, False)),
    ({"backend": "hqq", "bits": 1, "granularity": "channel"}, ("channel", None, False)),
    ({"backend": "bnb", "activations": "dynamic"}, ("channel", None, True)),
    ({"backend": "bnb", "bits": 4, "format": "nf"}, ("group", 64, True)),
    ({"backend": "bnb", "bits": 4, "format": "nf", "double_quant": True}, ("group", 64, True)),
    ({"backend": "bnb", "bits": 4, "format": "fp", "group_size": 128}, ("group", 128, True)),
    ({"backend": "torchao"}, ("channel", None, True)),
    ({"backend": "torchao", "group_size": 32}, ("group", 32, True)),
    ({"backend": "torchao", "activations": "dynamic"}, ("channel", None, True)),
    ({"backend": "torchao", "activations": "dynamic", "granularity": "tensor"}, ("tensor", None, True)),
    ({"backend": "torchao", "format": "float"}, ("channel", None, True)),
    ({"backend": "torchao", "bits": 4}, ("group", 64, False)),
    ({"backend": "torchao", "bits": 4, "group_size": 32}, ("group", 32, False)),
    ({"backend": "torchao", "bits": 3}, ("group", 64, True)),
    ({"backend": "torchao", "bits": 6, "granularity": "channel"}, ("channel", None, True)),
    ({"backend": "torchao", "bits": 2, "symmetric": False}, ("group", 64, False)),
    ({"backend": "torchao", "bits": 1}, ("group", 64, False)),
    *(({"backend": "gptq", "bits": bits}, ("group", 64, False)) for bits in (8, 6, 5, 4, 3)),
    ({"backend": "gptq", "bits": 4, "group_size": 128, "symmetric": False}, ("group", 128, False)),
    ({"backend": "mixed", "budget": 17.2}, (None, None, None)),
    ({"backend": "mixed", "budget_mb": 50.0}, (None, None, None)),
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"backend": "none", "format": "float"}, "none: bits 8 is not possible (choose 32 or 16)"),
    ({"backend": "none", "bits": 32}, "none: format int is not possible (choose float)"),
    (
        {"backend": "none", "bits": 32, "format": "float", "activations": "dynamic"},
        "none: activations dynamic is not possible (choose none)",
    ),
    (
        {"backend": "none", "bits": 32, "format": "float", "group_size": 64},
        "none: group_size 64 is not possible without quantization (choose null)",
    ),
    (
        {"backend": "none", "bits": 32, "format": "float", "double_quant": True},
        "none: double_quant true is not possible without quantization (choose false)",
    ),
    (
        {"backend": "torch"},
        "torch: activations none is not possible: its kernels need them (choose dynamic or static)",
    ),
    ({"backend": "torch", "bits": 4, "activations": "dynamic"}, "torch: bits 4 is not possible (choose 8)"),
    (
        {"backend": "torch", "format": "float", "activations": "dynamic"},
        "torch: format float is not possible (choose int)",
    ),
    (
        {"backend": "torch", "activations": "static", "granularity": "group"},
        "torch: granularity group is not possible (choose tensor or channel)",
    ),
    (
        {"backend": "torch", "activations": "static", "group_size": 64},
        "torch: group_size 64 is not possible (choose null)",
    ),
    (
        {"backend": "torch", "activations": "static", "symmetric": False},
        "torch: symmetric false is not possible per channel (choose true)",
    ),
    (
        {"backend": "torch", "activations": "static", "double_quant": True},
        "torch: double_quant true is not possible (choose false)",
    ),
    (
        {"backend": "quanto", "activations": "dynamic"},
        "quanto: activations dynamic is not possible (choose none or static)",
    ),
    ({"backend": "quanto", "bits": 3}, "quanto: bits 3 is not possible with format int (choose 8, 4 or 2)"),
    (
        {"backend": "quanto", "bits": 4, "format": "float"},
        "quanto: bits 4 is not possible with format float (choose 8)",
    ),
    ({"backend": "quanto", "bits": 4, "format": "nf"}, "quanto: format nf is not possible (choose int or float)"),
    (
        {"backend": "quanto", "bits": 4, "activations": "static"},
        "quanto: bits 4 is not possible with activations static (choose 8)",
    ),
    (
        {"backend": "quanto", "format": "float", "activations": "static"},
        "quanto: format float is not possible with activations static (choose int)",
    ),
    (
        {"backend": "quanto", "granularity": "group"},
        "quanto: granularity group is not possible with 8 bits (choose channel)",
    ),
    (
        {"backend": "quanto", "bits": 4, "granularity": "channel"},
        "quanto: granularity channel is not possible with 4 bits (choose group)",
    ),
    (
        {"backend": "quanto", "bits": 4, "group_size": 64},
        "quanto: group_size 64 is not possible with 4 bits (choose null or 128)",
    ),
    ({"backend": "quanto", "group_size": 128}, "quanto: group_size 128 is not possible with 8 bits (choose null)"),
    (
        {"backend": "quanto", "symmetric": False},
        "quanto: symmetric false is not possible with 8 bits (choose true)",
    ),
    (
        {"backend": "quanto", "bits": 2, "symmetric": True},
        "quanto: symmetric true is not possible with 2 bits (choose false)",
    ),
    ({"backend": "quanto", "double_quant": True}, "quanto: double_quant true is not possible (choose false)"),
    ({"backend": "hqq", "bits": 5}, "hqq: bits 5 is not possible (choose 8, 4, 3, 2 or 1)"),
    ({"backend": "hqq", "bits": 4, "format": "nf"}, "hqq: format nf is not possible (choose int)"),
    (
        {"backend": "hqq", "bits": 4, "activations": "static"},
        "hqq: activations static is not possible: it is weight-only (choose none)",
    ),
    (
        {"backend": "hqq", "bits": 4, "granularity": "tensor"},
        "hqq: granularity tensor is not possible (choose channel or group)",
    ),
    (
        {"backend": "hqq", "bits": 4, "group_size": 60},
        "hqq: group_size 60 is not possible (choose a multiple of 8 that divides every row)",
    ),
    (
        {"backend": "hqq", "bits": 4, "symmetric": True},
        "hqq: symmetric true is not possible: it always has zero points (choose false)",
    ),
    ({"backend": "hqq", "bits": 4, "double_quant": True}, "hqq: double_quant true is not possible (choose false)"),
    ({"backend": "bnb", "format": "float"}, "bnb: format float is not possible (choose int, fp or nf)"),
    (
        {"backend": "bnb"},
        "bnb: activations none is not possible with format int: LLM.int8() quantizes them (choose dynamic)",
    ),
    ({"backend": "bnb", "bits": 4}, "bnb: bits 4 is not possible with format int (choose 8)"),
    (
        {"backend": "bnb", "activations": "dynamic", "granularity": "group"},
        "bnb: granularity group is not possible with format int (choose channel)",
    ),
    (
        {"backend": "bnb", "activations": "dynamic", "group_size": 64},
        "bnb: group_size 64 is not possible with format int (choose null)",
    ),
    (
        {"backend": "bnb", "activations": "dynamic", "double_quant": True},
        "bnb: double_quant true is not possible with format int (choose false)",
    ),
    ({"backend": "bnb", "format": "nf"}, "bnb: bits 8 is not possible with format nf (choose 4)"),
    (
        {"backend": "bnb", "bits": 4, "format": "fp", "activations": "dynamic"},
        "bnb: activations dynamic is not possible with format fp: it is weight-only (choose none)",
    ),
    (
        {"backend": "bnb", "bits": 4, "format": "nf", "granularity": "channel"},
        "bnb: granularity channel is not possible with format nf (choose group)",
    ),
    (
        {"backend": "bnb", "bits": 4, "format": "nf", "group_size": 32},
        "bnb: group_size 32 is not possible (choose 64, 128, 256, 512, 1024, 2048 or 4096)",
    ),
    (
        {"backend": "bnb", "bits": 4, "format": "nf", "symmetric": False},
        "bnb: symmetric false is not possible: its formats have no zero points (choose true)",
    ),
    (
        {"backend": "torchao", "bits": 9},
        "torchao: bits 9 is not possible with format int (choose 8, 7, 6, 5, 4, 3, 2 or 1)",
    ),
    (
        {"backend": "torchao", "bits": 4, "format": "float"},
        "torchao: bits 4 is not possible with format float (choose 8)",
    ),
    ({"backend": "torchao", "bits": 4, "format": "nf"}, "torchao: format nf is not possible (choose int or float)"),
    (
        {"backend": "torchao", "activations": "static"},
        "torchao: activations static is not possible (choose none or dynamic)",
    ),
    (
        {"backend": "torchao", "bits": 4, "activations": "dynamic"},
        "torchao: bits 4 is not possible with activations dynamic (choose 8)",
    ),
    (
        {"backend": "torchao", "format": "float", "activations": "dynamic"},
        "torchao: format float is not possible with activations dynamic: its float8 kernels need a GPU (choose int)",
    ),
    (
        {"backend": "torchao", "activations": "dynamic", "group_size": 64},
        "torchao: granularity group is not possible with 8 bits and activations dynamic (choose tensor or channel)",
    ),
    (
        {"backend": "torchao", "bits": 4, "granularity": "channel"},
        "torchao: granularity channel is not possible with 4 bits (choose group)",
    ),
    (
        {"backend": "torchao", "bits": 5, "granularity": "tensor"},
        "torchao: granularity tensor is not possible with 5 bits (choose channel or group)",
    ),
    (
        {"backend": "torchao", "bits": 4, "group_size": 16},
        "torchao: group_size 16 is not possible with 4 bits (choose 32, 64 or 128)",
    ),
    (
        {"backend": "torchao", "bits": 3, "group_size": 60},
        "torchao: group_size 60 is not possible (choose a multiple of 8 that divides every row)",
    ),
    ({"backend": "torchao", "symmetric": False}, "torchao: symmetric false is not possible with 8 bits (choose true)"),
    (
        {"backend": "torchao", "bits": 4, "symmetric": True},
        "torchao: symmetric true is not possible with 4 bits (choose false)",
    ),
    (
        {"backend": "torchao", "bits": 1, "symmetric": True},
        "torchao: symmetric true is not possible with 1 bits (choose false)",
    ),
    ({"backend": "torchao", "double_quant": True}, "torchao: double_quant true is not possible (choose false)"),
    (
        {"backend": "none", "bits": 32, "format": "float", "embedding": 8},
        "none: embedding 8 is not possible with 32 bits, which are the baseline (choose null)",
    ),
    (
        {"backend": "none", "bits": 32, "format": "float", "conv": 8},
        "none: conv 8 is not possible with 32 bits, which are the baseline (choose null)",
    ),
    (
        {"backend": "none", "bits": 16, "format": "float", "encoder": 8},
        "none: encoder 8 is not possible without quantization (choose null)",
    ),
    ({"backend": "gptq", "bits": 2}, "gptq: bits 2 is not possible (choose 8, 6, 5, 4 or 3)"),
    ({"backend": "gptq", "bits": 7}, "gptq: bits 7 is not possible (choose 8, 6, 5, 4 or 3)"),
    ({"backend": "gptq", "bits": 4, "format": "nf"}, "gptq: format nf is not possible (choose int)"),
    (
        {"backend": "gptq", "activations": "dynamic"},
        "gptq: activations dynamic is not possible: it is weight-only (choose none)",
    ),
    ({"backend": "gptq", "granularity": "channel"}, "gptq: granularity channel is not possible (choose group)"),
    ({"backend": "gptq", "group_size": 16}, "gptq: group_size 16 is not possible (choose 32, 64 or 128)"),
    (
        {"backend": "gptq", "symmetric": True},
        "gptq: symmetric true is not possible: it always has zero points (choose false)",
    ),
    ({"backend": "gptq", "double_quant": True}, "gptq: double_quant true is not possible (choose false)"),
    (
        {"backend": "mixed"},
        "mixed: budget and budget_mb are missing; give the checkpoint's size as one of them",
    ),
    (
        {"backend": "mixed", "budget": 17.2, "budget_mb": 50.0},
        "mixed: budget and budget_mb are both set; give the checkpoint's size as one of them",
    ),
    *(
        (
            {"backend": "mixed", "budget": 17.2, key: value},
            f"mixed: {key} {value} is not possible: the budget decides (choose {choice})",
        )
        for key, value, choice in (
            ("bits", 4, "8"),
            ("encoder", 8, "null"),
            ("decoder", 4, "null"),
            ("layers", ["*.v_proj=8"], "[]"),
            ("embedding", 8, "null"),
            ("conv", 8, "null"),
            ("group_size", 64, "null"),
            ("granularity", "group", "null"),
        )
    ),
    (
        {"backend": "mixed", "budget": 17.2, "symmetric": True},
        "mixed: symmetric true is not possible: the budget decides (choose null)",
    ),
    (
        {"backend": "mixed", "budget": 17.2, "rest": "float32"},
        "mixed: rest float32 is not possible (choose float16)",
    ),
    (
        {"backend": "mixed", "budget": 17.2, "activations": "static"},
        "mixed: activations static is not possible (choose none or dynamic)",
    ),
]


def _words(given: dict[str, Any]) -> str:
    return " ".join(str(value) for value in given.values())


@pytest.mark.parametrize(("given", "filled"), FILLED, ids=[_words(given) for given, _ in FILLED])
def test_the_librarys_defaults_are_filled_in(
    given: dict[str, Any], filled: tuple[str | None, int | None, bool | None]
) -> None:
    granularity, group_size, symmetric = filled
    expected = make(**{**given, "granularity": granularity, "group_size": group_size, "symmetric": symmetric})
    supports = backends.get(given["backend"]).supports
    assert supports(make(**given)) == expected
    assert supports(expected) == expected


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=[_words(given) for given, _ in REFUSED])
def test_what_the_library_lacks_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        backends.get(given["backend"]).supports(make(**given))
    assert str(error.value) == sentence
