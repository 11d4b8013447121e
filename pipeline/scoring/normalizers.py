"""Normalizers: what makes two spellings of the same words equal, before words are compared.

| normalizer | for | what it does |
| --- | --- | --- |
| english | English alone | Whisper's: numbers, contractions, titles, British spelling; it drops "um", a German word |
| basic | other languages | Whisper's, but keeps combining marks: small letters, no punctuation, symbols or brackets |
| none | any | nothing |

Marks are vowels in Hindi, Tamil, Thai or Burmese, and tell words apart in Arabic, Hebrew or Vietnamese: a text with
them and one without differ. Basic compares Unicode's form NFKC, so that it does not matter how a letter is stored. An
apostrophe of any kind parts words, as with Whisper: l'homme is two. Letters are made small, not folded: Straße is not
Strasse. Digits of other scripts stay as they are.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words: their WER means little, and their CER is
what to read (a comma left out is a space, and counts in it).
"""

import importlib
import itertools
import re
import unicodedata
from collections.abc import Callable

Normalizer = Callable[[str], str]

APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bb\u02bc\uff07`\u00b4", "'"))
"""Typographic ones, the letters that Hawaiian and Ukrainian write, and the accents that are typed instead."""

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20e3\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Soft hyphens, joiners, byte order marks, an emoji's variants: what Unicode calls Default_Ignorable_Code_Point; and
the keycap (U+20E3), so that a digit in one is a digit."""

SPELLED = re.compile(r"(?<!\.\.)\bone(s?)\b")
"""What may be the figure 1; after two dots it is a word, and they are what is left of "…"."""

INFORMAL = ("kinda", "sorta", "dunno", "cause")
"""What whisper-normalizer spells out and openai/whisper does not: it makes "the cause" equal to "the because"."""

LONG = re.compile(r"(\d{4000})(?=\d)")
"""Python reads no number of more than 4300 digits (sys.get_int_max_str_digits)."""


def get(name: str) -> Normalizer:
    """Return the normalizer `english`, `basic` or `none`; spaces at the ends of what it returns mean nothing."""
    if name == "none":
        return str
    return _english() if name == "english" else _basic()


def version(name: str) -> str:
    """Return the package that a normalizer comes from and its version, or nothing for `none`."""
    return "" if name == "none" else f"whisper-normalizer {importlib.import_module('whisper_normalizer').__version__}"


def _english() -> Normalizer:
    """Return whisper-normalizer's, brought to what openai/whisper's does since its pull request 2836 of August 2026."""
    normalize = importlib.import_module("whisper_normalizer.english").EnglishTextNormalizer()
    for word in INFORMAL:
        del normalize.replacers[rf"\b{word}\b"]
    numbers = normalize.standardize_numbers
    normalize.standardize_numbers = lambda text: _digits(numbers(LONG.sub(r"\1 ", text)))
    return lambda text: normalize(_plain(text))


def _digits(text: str) -> str:
    """Return a text with 1 for "one" inside of numbers: the package spells it out there too, 3.1 as 3.one."""
    words = text.split()
    return " ".join(word if word in ("one", "ones") else SPELLED.sub(r"1\1", word) for word in words)


def _basic() -> Normalizer:
    clean = importlib.import_module("whisper_normalizer.basic").BasicTextNormalizer(preserve_marks=True)

    def normalize(text: str) -> str:
        small = clean(_plain(text)).replace("i\u0307", "i")  # what Python makes of the Turkish capital
        words = ("".join(itertools.dropwhile(is_mark, word)) for word in small.split())  # no letter carries those
        return " ".join(filter(None, words))

    return normalize


def is_mark(character: str) -> bool:
    """Tell whether a character is combined with the letter before it (Unicode's category M)."""
    return unicodedata.category(character).startswith("M")


def _plain(text: str) -> str:
    """Return a text with one kind of apostrophe and of space, and without what nobody sees."""
    return " ".join(INVISIBLE.sub("", text).translate(APOSTROPHES).split())
