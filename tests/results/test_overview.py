"""The page over all studies, as words and in a browser."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.core.errors import UserError
from pipeline.results import findings, overview, points
from tests import made
from tests.made import FP32, Row, line
from tests.results.browsing import unreadable, variants

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SPEECH = [f"test-clean 1-2-{n}" for n in range(3)] + [f"test-other 5-6-{n}" for n in range(3)]


def result(variant: str, split: str, rate: float, size_mb: float, apart: float = 0.5) -> Row:
    """Return a line of results.csv, its interval `apart` points on either side."""
    facts: dict[str, Any] = {"split": split, "utterances": 3, "size_mb": size_mb, "rate": rate, "kl": 0.001}
    facts |= {"rate_low": rate - apart, "rate_high": rate + apart, "bits_per_weight": 4.5, "no_worse_than": None}
    if variant == "fp32":
        return FP32 | facts | {"bits_per_weight": 32.0}
    return line(variant, 0.1, -0.2, 0.4) | facts | {"backend": "hqq"}


def results(rates: dict[str, tuple[float, float]], **changes: Any) -> list[Row]:
    """Return lines of two splits, the second twice as hard, of variants with a rate and a size."""
    return [
        result(name, split, rate * factor, size) | changes
        for name, (rate, size) in rates.items()
        for split, factor in (("test-clean", 1), ("test-other", 2))
    ]


SMALLER = results({"fp32": (6.0, 150.0), "hqq-int8": (6.2, 100.0), "hqq-int2": (500.0, 30.0)})
BIGGER = results({"fp32": (4.0, 290.0), "hqq-int8": (4.1, 74.0), "hqq-int4": (6.5, 60.0), "fp16": (4.0, 145.0)})
BIGGER += results({"candidate": (4.0, 50.0)})


def write(folder: Path, lines: list[Row], model: str, heard: list[str] = SPEECH, **settings: Any) -> Path:
    """Write a study of a model on some speech."""
    made.write(folder, lines, model=model, **settings)
    (folder / overview.HEARD).write_text("".join(f"{each}\n" for each in [*heard, "dev-clean 9-9-9"]))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of three studies, two of which are on the same speech."""
    studies = tmp_path_factory.mktemp("studies")
    own = write(studies / "own", SMALLER, "tiny-en")
    (own / "index.html").write_text("its own page")
    other = [each.replace("1-2-", "3-4-") for each in SPEECH]
    return [own, write(studies / "two", BIGGER, "base"), write(studies / "unlike", BIGGER, "base", heard=other)]


@pytest.fixture(scope="module")
def page(folders: list[Path]) -> Path:
    file = folders[0].parent / "index.html"
    file.write_text(overview.text(folders))
    return file


def panels(folders: list[Path]) -> list[overview.Panel]:
    """Return what compares of some studies."""
    studies = {folder.name: findings.read(folder) for folder in folders}
    return overview.panels(studies, {folder.name: overview.heard(folder) for folder in folders})


def compared(folders: list[Path]) -> list[tuple[str, list[str]]]:
    """Return each panel's split and studies."""
    return [(panel.lines.split.iloc[0], panel.studies) for panel in panels(folders)]


def test_only_studies_on_the_same_utterances_share_a_panel(folders: list[Path]) -> None:
    """Other utterances of another split do not matter. What most models heard comes first."""
    assert compared(folders) == [
        ("test-clean", ["own", "two"]),
        ("test-other", ["own", "two", "unlike"]),
        ("test-clean", ["unlike"]),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"scoring__normalizer": "basic"},
        {"decoding__suppress_non_speech": False},
        {"decoding__max_new_tokens": 99},
        {"decoding__task": "translate"},
        {"corpus": "study"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_scoring_decoding_or_speech_does_not_compare(tmp_path: Path, settings: dict[str, Any]) -> None:
    first = write(tmp_path / "first", SMALLER, "tiny-en")
    assert {len(names) for _, names in compared([first, write(tmp_path / "alike", BIGGER, "base")])} == {2}
    other = write(tmp_path / "other", BIGGER, "base", **settings)
    assert {len(names) for _, names in compared([first, other])} == {1}


def test_what_calibrated_does_not_tell_studies_apart(tmp_path: Path) -> None:
    """Not even where it is of a split that is scored."""
    first = write(tmp_path / "first", SMALLER, "tiny-en")
    second = write(tmp_path / "second", BIGGER, "base", heard=[*SPEECH, "test-clean 7-7-7"])
    assert {len(names) for _, names in compared([first, second])} == {2}


def test_a_study_names_what_it_heard(tmp_path: Path) -> None:
    made.write(tmp_path / "old", SMALLER, model="tiny-en")
    with pytest.raises(UserError, match=r"old/utterances\.txt is not there; 'make study NAME=old' makes it"):
        overview.text([tmp_path / "old"])


def test_the_bigger_model_counts_with_what_is_no_larger_than_the_smaller_in_float16(folders: list[Path]) -> None:
    """75 MB: hqq-int8 is better, hqq-int4 is not. fp16, which is no quantization, and the candidate do not count."""
    (pair, found), *others = overview.duels(panels(folders[:2])).items()
    assert pair == ("tiny-en", "base")
    assert others == []
    assert [(duel.room, duel.fitting, duel.better, duel.apart) for duel in found] == [(75.0, 2, 1, 1)] * 2
    assert overview.leaning(found) == "It depends"


@pytest.mark.parametrize(
    ("better", "told"),
    [
        ([3, 2], "The bigger model, quantized"),
        ([1, 0], "The smaller model, unquantized"),
        ([3, 1], "It depends"),
        ([], "Not known"),
    ],
)
def test_most_variants_tell_which_model_on_each_speech(better: list[int], told: str) -> None:
    assert overview.leaning([overview.Duel(FP32, 3, count, 0) for count in better]) == told


def test_float16_is_reckoned_where_no_study_measured_it(folders: list[Path]) -> None:
    panel = panels(folders[:2])[0]
    found = overview.halved(panel).query("variant == 'fp16'")
    assert found[["study", "size_mb", "rate", "reckoned"]].to_numpy().tolist() == [
        ["two", 145.0, 4.0, False],
        ["own", 75.0, 6.0, True],
    ]


def test_every_variant_is_a_mark_and_one_name_stands_for_a_model(folders: list[Path]) -> None:
    (panel,) = (each for each in panels(folders) if len(each.studies) == 3)
    rows = overview.halved(panel)
    drawn = points.across(rows, 20.0)
    assert len(drawn) == 3 + 5 + 5 + 1
    assert drawn.variant.is_unique
    assert sorted(filter(None, drawn.name)) == ["base fp16", "base fp32", "tiny-en fp16", "tiny-en fp32"]
    assert drawn[drawn.hollow].variant.tolist() == ["own: hqq-int2", "own: fp16"]
    assert drawn.WER[0] == "12.00 % [11.50, 12.50]"


def test_a_front_ends_at_the_largest_variant_and_leaves_out_what_is_beyond(folders: list[Path]) -> None:
    panel = next(each for each in panels(folders[:2]) if each.lines.split.iloc[0] == "test-clean")
    found = points.fronts(overview.halved(panel), 20.0)
    assert found[["model", "size_mb", "rate"]].to_numpy().tolist() == [
        ["tiny-en", 75.0, 6.0],
        ["tiny-en", 150.0, 6.0],
        ["base", 50.0, 4.0],
        ["base", 290.0, 4.0],
    ]


def test_the_words_stand_before_the_scripts_and_in_order(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r'<section id="(\w+)"', text) == ["answer", "size", "all", "studies"]
    assert text.index("Studies</h2>") < text.index("<script")
    assert "3 utterances of 20 speakers, 2,400 words. Studies own, two. Models tiny-en, base.</figcaption>" in text
    assert '<a href="own/README.md">own</a>: Whisper tiny-en, 2 variants beside fp32; <a href="own/index.html">' in text
    assert 'href="two/index.html"' not in text
    assert len(text) < 1_200_000


def test_scripts_read_json_which_knows_no_nan(page: Path) -> None:
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page.read_text())
    assert "NaN" not in data
    assert len(json.loads(data)["specs"]) == 3


def test_one_model_alone_has_no_answer(folders: list[Path]) -> None:
    assert "<strong>Not known</strong>: no two models were measured" in overview.text(folders[1:])


def test_a_bigger_model_that_does_not_fit_is_no_answer(tmp_path: Path) -> None:
    large = results({"fp32": (3.0, 967.0), "hqq-int4": (3.0, 150.0)})
    both = [write(tmp_path / "one", SMALLER, "tiny-en"), write(tmp_path / "two", large, "small")]
    assert "<strong>Not known</strong>: no variant of small is as small as tiny-en in float16." in overview.text(both)


@pytest.mark.slow
def test_a_mark_tells_of_its_variant_and_study(opened: "Page") -> None:
    marks = opened.locator(".chart").first.locator("path[aria-roledescription=point], .mark-symbol.role-mark path")
    marks.first.hover(force=True)
    told = opened.inner_text("#tip").splitlines()
    assert told[0] == "own: fp32"
    assert [each.split(":")[0] for each in told[1:]] == ["model", "weights", "WER", "against fp32", "verdict", "KL"]
    assert {*opened.locator("#variants tr.picked th").all_inner_texts()} == {"fp32"}


@pytest.mark.slow
def test_the_table_is_sorted_and_filtered(opened: "Page") -> None:
    opened.fill("#filter", "own test-clean")
    assert variants(opened) == ["fp32", "hqq-int8", "hqq-int2"]
    assert opened.inner_text("#shown") == "3 of 26 rows"
    head = opened.locator("#variants thead th", has_text="MB")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert variants(opened) == ["hqq-int2", "hqq-int8", "fp32"]


@pytest.mark.slow
def test_keys_go_from_variant_to_variant_of_a_chart(opened: "Page") -> None:
    box = opened.locator(".chart").last  # the speech that one study alone heard
    box.focus()
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#picked").startswith("variant candidate, study unlike, model base, speech test-clean, 3")
    for _ in range(4):
        opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#picked").startswith("variant fp32, study unlike")
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#picked").startswith("variant candidate, study unlike")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_everybody_can_read_it(opened: "Page", width: int, scheme: "Any") -> None:
    assert unreadable(opened, width, scheme) == []


@pytest.mark.slow
def test_without_scripts_the_answer_and_the_table_are_there(browser: "Browser", page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert "no larger than tiny-en in float16 (75.0 MB)" in tab.inner_text("#answer")
    assert len(variants(tab)) == 26
    context.close()
