"""Say in one sentence what pydantic finds wrong with the settings: the place, the value and the way out."""

import dataclasses
import reprlib
import typing
from collections.abc import Sequence
from typing import Any

from pipeline.core.errors import suggestion

if typing.TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_SHOWN = reprlib.Repr()
"""Writes values of any size and depth: aliases make a few bytes of YAML a billion values."""
_SHOWN.maxlevel, _SHOWN.maxstring = 2, 200

_ENTRIES = {"variants": "variant", "models": "model", "corpora": "corpus"}  # what an entry of a map is called

_WORDS = {  # what pydantic's kinds of errors ask for
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a map",
    "dataclass_type": "a map of keys to values",
}


def sentence(errors: "Sequence[ErrorDetails]", settings: Any) -> str:
    """Return the sentence about the first of pydantic's errors; `settings` is the dataclass that it validates."""
    # A misspelt key comes before the key that is missing for it.
    error = min(errors, key=lambda error: error["type"] not in ("unexpected_keyword_argument", "invalid_key"))
    path = [part for part in error["loc"] if part not in ("[key]", "str", "list[str]")]  # the last two: of a union
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    shown = _SHOWN.repr(given)
    file = "catalog.yaml" if path[:1] in (["models"], ["corpora"]) else "params.yaml"
    place, owner = _place(path, settings), _place(path[:-1], settings) if path[1:] else file
    if kind == "invalid_key":
        return f"{owner}: the key {path[-1]} is no text; write it in quotes, or remove it"
    if kind == "value_error":
        return f"{place}: {context['error']}"
    if path == ["device"] and kind != "missing":
        return f"device is {shown}, but it must be auto, cpu, cuda or cuda:N"
    if kind == "string_too_long":
        return f"{owner}: the name {given[:20]!r}... has over {context['max_length']} characters"
    if kind == "string_pattern_mismatch" or error["loc"][-1] == "[key]":
        if not isinstance(given, str):
            word = f", or a word such as int{given}" if type(given) is int else ""
            return f'{owner}: the name {given} is no text; write "{given}" in quotes{word}'
        begin = ", and begin with a letter or digit" if given.startswith("-") else ""
        return f"{owner}: the name {shown} may hold only letters, digits and hyphens{begin}"
    if kind == "unexpected_keyword_argument":
        return f"{owner}: unknown key {path[-1]!r}{suggestion(path[-1], keys(_at(settings, path[:-1])))}"
    if kind == "missing":
        return f"{owner}: the key {path[-1]!r} is missing"
    if kind == "too_short":
        return f"{place} is empty; give at least one"
    if kind == "greater_than_equal":
        return f"{place} is {given}, but at least {context['ge']} is needed"
    if kind == "greater_than":
        return f"{place} is {given}, but more than {context['gt']:g} is needed"
    if kind == "less_than_equal":
        return f"{place} is {given}, but at most {context['le']} is possible"
    alike = [other for other in errors if other["loc"][:-1] == error["loc"][:-1]]  # of a union: one for each kind
    words = [other.get("ctx", {}).get("expected") or _WORDS.get(other["type"], "of another kind") for other in alike]
    return f"{place} is {shown}, but it must be {' or '.join(dict.fromkeys(words))}"


def keys(settings: Any) -> set[str]:
    """Return the keys of a dataclass of settings."""
    return {field.name for field in dataclasses.fields(settings)}


def _place(path: Sequence[int | str], settings: Any) -> str:
    """Name a place: ("variants", "x", "bits") is "variant 'x': bits"; the top level's settings are the candidate's."""
    if path[1:] and path[0] in _ENTRIES:
        return ": ".join([f"{_ENTRIES[str(path[0])]} {path[1]!r}", *map(str, path[2:])])
    candidate = not path or path[0] in keys(settings.__base__)
    return ": ".join(["candidate"] * candidate + [str(part) for part in path])


def _at(settings: Any, path: Sequence[int | str]) -> Any:
    """Return the dataclass that is at this place: a section, or an entry of a map."""
    for key in path:
        hint = typing.get_type_hints(settings).get(str(key))
        settings = next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))), settings)
    return settings
