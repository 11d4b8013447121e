# ruff: noqa: RUF001 - typographic apostrophes and other scripts are what is tested
import importlib
import unicodedata

import pytest

from pipeline.scoring import normalizers, wer
from tests.scoring.test_wer import line


def normalized(name: str, text: str) -> str:
    """Return a text as it is compared."""
    return " ".join(normalizers.get(name)(text).split())


def errors(name: str, reference: str, hypothesis: str) -> str:
    """Return the alignment of two texts, a letter a word."""
    (scored,) = wer.score([line(reference, hypothesis)], normalizers.get(name))
    return scored.alignment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # numbers
        ("seven hundred and sixty two", "762"),
        ("nineteen ninety nine", "1999"),
        ("the nineteen fifties", "the 1950s"),
        ("twenty twenty one", "2021"),
        ("double oh seven", "007"),
        ("one oh one", "101"),
        ("twenty-one", "21"),
        ("minus five", "-5"),
        ("minus one", "-1"),
        ("one", "one"),
        ("the ones", "the ones"),
        ("number 1", "number one"),
        ("10:30", "10 30"),
        ("10km 20mm b747", "10 km 20 mm b 747"),
        # decimals
        ("three point one", "3.1"),
        ("one point five", "1.5"),
        ("3.1", "3.1"),
        ("PyTorch 1.10.1", "pytorch 1.10.1"),
        ("ten point one million", "10100000"),
        ("two and a half", "2.5"),
        # money and per cent
        ("one dollar", "$1"),
        ("$1", "$1"),
        ("one dollar and one cent", "$1.01"),
        ("$1.50", "$1.50"),
        ("two dollars and seventy cents", "$2.70"),
        ("forty cents", "¢40"),
        ("£5,000", "£5000"),
        ("$20 million", "$20000000"),
        ("one per cent", "1%"),
        ("ten percent", "10%"),
        ("99.9%", "99.9%"),
        # ordinals
        ("first", "1st"),
        ("the twenty first of may", "the 21st of may"),
        ("one point twenty first", "1.21st"),
        # contractions
        ("can't", "can not"),
        ("I'm she's it'd you'll we've they're", "i am she is it would you will we have they are"),
        ("he's been and he'd gone", "he has been and he had gone"),
        ("y'all ain't", "you all aint"),
        ("gonna wanna gotta", "going to want to got to"),
        ("woulda coulda", "would have could have"),
        ("kinda sorta dunno", "kinda sorta dunno"),
        ("the cause of it", "the cause of it"),
        # titles
        ("Mr. and Mrs. Smith", "mister and missus smith"),
        ("Dr. No of St. Louis", "doctor no of saint louis"),
        ("Gen. Lee and Col. Ross", "general lee and colonel ross"),
        # British spelling
        ("THE COLOUR IS GREY", "the color is gray"),
        ("the traveller realised", "the traveler realized"),
        # hyphens, apostrophes, other punctuation
        ("well-known co-operate", "well known co operate"),
        ("x–ray and so—on", "x ray and so on"),
        ("rock 'n' roll", "rock n roll"),
        ("the dogs' tails", "the dogs tails"),
        ("O'Brien", "0 brien"),
        ("U.S.A. a.m.", "u s a a m"),
        ("“Yes”, he said.", "yes he said"),
        ("Wait... what", "wait what"),
        ("A & B #5 @ home", "a b 5 home"),
        # fillers, brackets, accents
        ("um, uh, hmm, mhm yes", "yes"),
        ("the umbrella", "the umbrella"),
        ("[noise] yes (laughs) <unk>", "yes"),
        ("naïve café Straße œuvre", "naive cafe strasse oeuvre"),
    ],
)
def test_english_is_what_whispers_own_repository_makes_of_it(text: str, expected: str) -> None:
    """Expected: what openai/whisper's english.py returns since its pull request 2836, spaces aside.

    A copy of a normalizer stays behind the original, and additions of its own make other words equal.
    """
    assert normalized("english", text) == expected


@pytest.mark.parametrize("apostrophe", "'‘’‛ʻʼ＇`´")
def test_every_apostrophe_is_one(apostrophe: str) -> None:
    """Books print typographic apostrophes and models write plain ones: each contraction counted as two errors."""
    assert normalized("english", f"I can{apostrophe}t, it{apostrophe}s") == "i can not it is"
    assert normalized("basic", f"L{apostrophe}homme") == "l homme"
    assert normalized("basic", f"об{apostrophe}єкт") == "об єкт"


def test_quotation_marks_are_not_taken_for_contractions() -> None:
    assert normalized("english", "He said ‘hello’ to the dogs’ tails; ‘Tis") == "he said hello to the dogs tails tis"


def test_english_drops_a_german_word_and_basic_keeps_it() -> None:
    """The English fillers deleted "um" from German: 0 % where a quarter of the words was missing."""
    spoken, written = "er kommt um acht uhr um die ecke", "Er kommt acht Uhr. Die Ecke."
    assert errors("english", spoken, written) == "======"
    assert errors("basic", spoken, written) == "==D==D=="


@pytest.mark.parametrize(
    ("reference", "hypothesis", "alignment"),
    [
        ("कि", "की", "S"),  # Hindi: that, of
        ("यह किताब है", "यह किताब है।", "==="),
        ("பல் வலி", "பால் வலி", "S="),  # Tamil: tooth, milk
        ("ഭാഷ", "ഭാഷ", "="),  # Malayalam
        ("ไม้", "ไม่", "S"),  # Thai: wood, not
        ("كَتَبَ", "كُتِبَ", "S"),  # Arabic: he wrote, it was written
        ("סֵפֶר", "סָפַר", "S"),  # Hebrew: book, he counted
        ("ma má mà", "ma mà mà", "=S="),
        ("क़लम", "क\u093cलम", "="),  # one letter, stored in two ways
    ],
)
def test_marks_are_part_of_a_word(reference: str, hypothesis: str, alignment: str) -> None:
    """Whisper's basic normalizer cuts a word at each vowel sign: WER of Indian languages came out far too low."""
    assert errors("basic", reference, hypothesis) == alignment


@pytest.mark.parametrize("text", ["Tiếng Việt", "Äpfel größer", "한국어", "がぎぐ", "Ελλάδα", "सड़क"])
def test_it_does_not_matter_how_a_letter_is_stored(text: str) -> None:
    """A file from a Mac holds letters and accents apart: every accented word was an error."""
    forms = {normalized("basic", unicodedata.normalize(form, text)) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert len(forms) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Brown's well-known COLOUR, it's 21 % (laughs) of $1.50!",
        "[noise] yes <unk> (um) “quoted” and … so on – really?",
        "Über die Straße: 3,5 Größen, z.B. „Äpfel“ & STRASSE!",
        "Où est-il ? L'été, ÇA œuvre à l’hôtel",
        "¿Qué? ¡Mañana! 1ª nº 5 ½ ² ﬁ Ⅷ ™",
        "ОБЪЕКТ, да-да: ёлка",
        "ΟΔΟΣ; Ελλάδα",
        "你好，世界。（笑）今天「很好」",
        "今日は、いい天気ですね。ｶﾞｲﾄﾞ",
        "안녕하세요, 세계!",
    ],
)
def test_basic_is_whispers_where_there_are_no_marks(text: str) -> None:
    """Rates of another normalizer cannot be compared with those that are published."""
    whispers = importlib.import_module("whisper_normalizer.basic").BasicTextNormalizer()
    assert normalized("basic", text) == " ".join(whispers(text).split())


@pytest.mark.parametrize(
    ("text", "english", "basic"),
    [
        ("", "", ""),
        ("?! -- “”", "", ""),
        ("\u0301\u0301 \u093f ◌ा", "", ""),  # marks of no letter
        ("¨ ¸ ˛", "", ""),  # accents of no letter
        ("\ufeffYes", "yes", "yes"),
        ("co\u00adoperate", "cooperate", "cooperate"),
        ("a\x85b\u2028c\u00a0d\te\nf", "a b c d e f", "a b c d e f"),
        ("می\u200cخواهم", "میخواهم", "میخواهم"),
        ("क्\u200dष", "कष", "क्ष"),
        ("葛\U000e0100", "葛", "葛"),
        ("ok 👩\u200d👩\u200d👧 ❤\ufe0f 5\ufe0f\u20e3 🇩🇪", "ok 5", "ok 5"),
        ("١٢ १२", "12 12", "١٢ १२"),
        ("İstanbul", "istanbul", "istanbul"),
        ("IĞDIR", "igdir", "iğdir"),
    ],
)
def test_odd_texts(text: str, english: str, basic: str) -> None:
    """Characters that nobody sees were words of their own, or made a word another one."""
    assert (normalized("english", text), normalized("basic", text)) == (english, basic)


@pytest.mark.parametrize("name", ["english", "basic", "none"])
@pytest.mark.parametrize("piece", ["a", "1", "1,", "की", "'", "\u0301", " ", "$", "x'"])
def test_a_very_long_word_is_scored(name: str, piece: str) -> None:
    """A broken corpus, or a number of more digits than Python reads, stopped the scoring."""
    text = piece * (100_000 // len(piece))
    (scored,) = wer.score([line(text, text)], normalizers.get(name))
    assert (scored.errors, scored.character_errors) == (0, 0)


def test_the_version_names_the_package() -> None:
    """Two results by different versions of a normalizer cannot be compared."""
    assert normalizers.version("english") == normalizers.version("basic") == "whisper-normalizer 0.1.15"
    assert normalizers.version("none") == ""
