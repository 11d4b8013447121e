"""The codes of Whisper's languages, for whoever writes a name: `german` is `de`."""

import difflib
import json
from collections.abc import Collection
from pathlib import Path

from pipeline.core import errors

AUTO = "auto"
"""Whisper detects the language itself."""


def names() -> dict[str, list[str]]:
    """Return the English names of each code's language, in small letters (openai/whisper, tokenizer.py)."""
    return dict(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))


def suggestion(word: str, known: Collection[str] = ()) -> str:
    """Return " (did you mean 'de'?)" for a name, another spelling of a code or a slip; `known` are a model's codes."""
    called = {name: code for code, of in names().items() for name in of}
    codes = set(known) or set(called.values())
    plain = word.strip().lower()
    alike = difflib.get_close_matches(plain, called, n=1, cutoff=0.75)
    meant = called[alike[0]] if alike else plain.replace("_", "-").partition("-")[0]
    return f" (did you mean {meant!r}?)" if meant in codes else errors.suggestion("" if alike else plain, codes)
