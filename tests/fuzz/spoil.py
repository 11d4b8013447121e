"""Change sound inputs at random: bytes, plain values at any depth, names."""

import copy
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

DEEP, LARGE, LAUGHS = "a list in a list in a list", "a number of 5,000 digits", "a billion laughs"
"""Values that `text` writes in the place of these."""

NAMES = "abcdefghi"
ALIASES = ", ".join(
    f"{a}: &{a} [{', '.join([f'*{b}' if b else 'x'] * 9)}]" for a, b in zip(NAMES, [None, *NAMES], strict=False)
)
"""A map of YAML, 9^9 values in a few bytes."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 0.5, 1e308, float("nan"), float("inf")),
    *("", "0", "x" * 300, "y" * 100_000, "../x", "/etc/passwd", "nul\0", "half \ud800", "é\n\u2028\x1b[31m", "<|en|>"),
    *([], {}, [1], [[]], ["a"], {"a": 1}, {"": None}, {"0": [0]}, DEEP, LARGE, LAUGHS),
)
WORDS = [
    *b'-1|NaN|1e999|null|../|/|"|,|:|.|*a|0x|1:99|1_000|2001-99-99|\r\n|\n| |\t|\0|\xff|\x1b[31m'.split(b"|"),
    *b"---\n|%YAML 9.9\n---\n|<<<<<<< HEAD\n|<<: 1\n|? {a: b}\n: c\n|{x: 1, x: 2}|&r [*r]|&r {x: *r}".split(b"|"),
    *b"!!int x|!!float x|!!bool x|!!binary x|!!timestamp x|!!set {a}|!!python/name:os.system x".split(b"|"),
    *b"\xef\xbb\xbf|\xed\xa0\x80|\xc3|\xe2\x80\xa8|\xc4\xb0|\xff\xff\xff\x7f|\x7f\xff\xff\xff|\0\0\0\x80".split(b"|"),
    *(
        bytes(8),
        b"\xff" * 4,
        b"\xff" * 8,
        b" " * 100_000,
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b"9" * 5_000,
        f"{{{ALIASES}}}".encode(),
    ),
]
"""Bytes that readers have stumbled over: signs of JSON and YAML, of conflicts in git, of no UTF-8; large numbers."""


def garble(draw: Random, data: bytes, other: bytes = b"") -> bytes:
    """Return `data` with one to four places changed: cut, flipped, doubled, overwritten, or spliced with `other`."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        near = min(draw.choice((16, 64, 512, len(data))), len(data))
        start = draw.randint(0, near) if draw.random() < 0.7 else len(data) - draw.randint(0, near)
        end = min(len(data), start + draw.choice((1, 4, 8, 100, 1000)))
        word, source = draw.choice(WORDS), other or data
        place = draw.randint(0, len(source))
        before, middle, after = data[:start], data[start:end], data[end:]
        data = draw.choice(
            (
                before + after,
                before + middle * 2 + after,
                before + draw.randbytes(end - start) + after,
                before + bytes(byte ^ 1 << draw.randrange(8) for byte in middle[:1]) + middle[1:] + after,
                before + word + data[start + len(word) :],
                before + word + data[start:],
                before + source[place : place + 100] + data[start:],
                before + source[place:],
                before,
            )
        )
    return data


def spoil(draw: Random, tree: Any) -> Any:
    """Return a copy of plain values with one to three of them replaced, dropped, added or exchanged, at any depth."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 3)):
        nodes = list(_nodes(tree))
        node = draw.choice([node for node in nodes if isinstance(node, dict | list) and node] or [[None]])
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        match draw.randrange(6):
            case 0:
                del node[key]
            case 1:
                node[key] = copy.deepcopy(draw.choice(nodes))
            case 2 if isinstance(node, dict):
                node[draw.choice(("", "x", "../x", "0", "y" * 300, f"{key} "))] = draw.choice(VALUES)
            case 3:
                node[key] = _near(draw, node[key])
            case _:
                node[key] = copy.deepcopy(draw.choice(VALUES))
    return tree if draw.random() > 0.01 else draw.choice(VALUES)


def _near(draw: Random, value: Any) -> Any:
    """Return a value that is nearly right: another number or text, or the same as another type."""
    if isinstance(value, int | float):
        return draw.choice((value + 1, value - 1, -value, value * 1000, float(value), str(value), [value], value > 0))
    if isinstance(value, str):
        return draw.choice(
            (f"{value} ", value[:-1], value.upper(), f"{value}\n", [value], value.split(), {value: value})
        )
    return draw.choice((str(value), [value], [value, value], {"a": value}))


def _nodes(tree: Any) -> Iterator[Any]:
    yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def text(draw: Random, tree: Any) -> bytes:
    """Return the values as JSON, which YAML is, too; now and then with a key there twice."""
    found = json.dumps(tree).replace(f'"{DEEP}"', "[" * 10_000 + "]" * 10_000).replace(f'"{LARGE}"', "9" * 5_000)
    found = found.replace(f'"{LAUGHS}"', f"{{{ALIASES}}}")
    if isinstance(tree, dict) and tree and draw.random() < 0.05:
        found = f"{{{json.dumps(draw.choice(list(tree)))}: {draw.choice(('null', '[]', '7'))}, {found[1:]}"
    return found.encode()


def document(draw: Random, data: bytes) -> bytes:
    """Spoil a JSON document: its values, or its bytes."""
    return text(draw, spoil(draw, json.loads(data))) if draw.random() < 0.7 else garble(draw, data)


def odd(draw: Random, name: str) -> str:
    """Return another name for a file in an archive."""
    folder, _, file = name.rpartition("/")
    names = [f"/{name}", f"../{name}", f"./{name}", f"{folder}/../{file}", f"{folder}/{'x' * 300}.flac", name.upper()]
    return draw.choice(
        [*names, f"{folder}/é\n{file}", f"{folder}//{file}", file, f"{folder}/\u202e{file}", "\x1b[31m.wav"]
    )


def zips(draw: Random, files: Mapping[str, bytes]) -> bytes:
    """Return a wheel, some of whose members may have strange names, and be large or encrypted."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            how = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
            bomb = bytes(100_000_000) if draw.random() < 0.003 else data
            archive.writestr(odd(draw, name) if draw.random() < 0.05 else name, bomb, how)
    return garble(draw, file.getvalue()) if draw.random() < 0.8 else file.getvalue()
