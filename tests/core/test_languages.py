import pytest

from pipeline.core import languages


def test_the_languages_are_whispers() -> None:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    assert languages.names().keys() == LANGUAGES.keys()
    assert {name: code for code, names in languages.names().items() for name in names} == TO_LANGUAGE_CODE


@pytest.mark.parametrize(
    ("word", "code"),
    [
        *(("german", "de"), ("German", "de"), ("hindi", "hi"), ("Mandarin", "zh"), ("flemish", "nl"), ("germna", "de")),
        *(("DE", "de"), ("de-AT", "de"), ("pt_BR", "pt"), (" en ", "en"), ("haitian creole", "ht")),
    ],
)
def test_names_of_languages_suggest_their_codes(word: str, code: str) -> None:
    """A language's name in the place of its code: other tools take names."""
    assert languages.suggestion(word) == f" (did you mean {code!r}?)"


def test_only_what_the_model_knows_is_suggested() -> None:
    assert languages.suggestion("german", ["en", "de"]) == " (did you mean 'de'?)"
    assert languages.suggestion("french", ["en", "de"]) == " (known: de, en)"
