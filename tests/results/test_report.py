"""The page, as words and in a browser."""

import json
import random
import re
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.results import changes, decision, findings, report, tables
from tests import made
from tests.made import FP32, line
from tests.results.browsing import unreadable, variants

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DANGEROUS = "</script><script>alert(1)</script>"
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"no_worse_than": nan, "size_mb": 290.4, "kl": 0.0, "bits_per_weight": 32.0},
    "hqq-int8": {"no_worse_than": 0.3, "size_mb": 72.0, "kl": 0.001, "latency_p50_ms": 905.0, "backend": "hqq"},
    "hqq-int4": {"no_worse_than": 0.5, "size_mb": 57.0, "kl": 0.02, "latency_p50_ms": 700.0, "backend": "hqq"},
    "gptq-int4": {"no_worse_than": 1.0, "size_mb": 48.0, "kl": 0.03, "latency_p50_ms": 850.0, "backend": "gptq"},
    "bnb-nf4": {"no_worse_than": nan, "size_mb": 49.0, "kl": 0.2, "latency_p50_ms": 400.0, "backend": "bnb"},
    "candidate": {"no_worse_than": 0.3, "size_mb": 10.0, "kl": 0.01, "latency_p50_ms": 100.0, "backend": "quanto"},
}


def row(name: str, split: str, delta: float) -> dict[str, Any]:
    """Return a line of results.csv."""
    counts = {"other_texts": 3, "regressed": 2, "improved": 1, "empty": 0, "tokens": 100, "flips": 1.5}
    facts: dict[str, Any] = (
        {"test_unit": "speaker", "bits_per_weight": 4.5} | counts | VARIANTS[name] | {"split": split}
    )
    if name == "fp32":
        return FP32 | facts
    return (
        line(name, delta, delta - 0.2, delta + 0.2, "no worse" if facts["no_worse_than"] < 2 else "undecided") | facts
    )


def score(words: str, errors: int, name: str = "a") -> dict[str, Any]:
    """Return an utterance's scores."""
    counts = {"substitutions": errors, "deletions": 0, "insertions": 0}
    return {"id": name, "split": "test-clean", "reference": "said <b>words</b>", "hypothesis": words, **counts}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> findings.Study:
    lines = [row(name, split, 0.1 * n) for n, name in enumerate(VARIANTS) for split in ("test-clean", "test-other")]
    return findings.read(made.write(tmp_path_factory.mktemp("page") / "base", lines, model="base"))


@pytest.fixture(scope="module")
def page(study: findings.Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a study of a few variants; one of them writes what a page must not run."""
    own = [score(f"the cat number {n}", 1, f"u{n:02}") for n in range(30)]
    other = [score(f"the bat {DANGEROUS} number {n}", 1 + n % 3, f"u{n:02}") for n in range(30)]
    fp32 = {"utterances": own}
    changed = {"hqq-int4": changes.changed(fp32, {"utterances": other}), "hqq-int8": changes.changed(fp32, fp32)}
    folder = tmp_path_factory.mktemp("made")
    (folder / "sensitivity.csv").write_text(made.sensitivity())
    layers = tables.read(folder / "sensitivity.csv")
    text = report.text(study, changed, layers, {("test-clean", "u02"): "data:audio/flac;base64,AAAA"})
    (folder / "index.html").write_text(text)
    return folder / "index.html"


def test_the_words_stand_before_the_scripts_and_in_order(page: Path) -> None:
    text = page.read_text()
    heads = re.findall(r'<section id="(\w+)"', text)
    assert heads == ["answer", "size", "speed", "bits", "all", "changes", "oddities", "layers", "run"]
    assert text.index("What was run</h2>") < text.index("<script")
    assert "<strong>Ship <code>hqq-int8</code>: 72.0 MB" in text
    assert len(text) < 1_200_000


def test_nothing_of_a_text_is_markup(page: Path) -> None:
    text = page.read_text()
    assert DANGEROUS not in text
    assert "<del>cat</del> <ins>bat &lt;/script&gt;" in text
    assert "said &lt;b&gt;words&lt;/b&gt;" in text


def test_the_greatest_losses_are_shown_and_the_others_counted(page: Path) -> None:
    text = page.read_text()
    assert text.count('<li class="regressed">') == report.SHOWN
    assert "The first 20; <code>whisper-ptq compare fp32 hqq-int4 --most 30</code> shows all." in text
    assert text.count('src="data:audio/flac;base64,AAAA"') == 1
    assert 'id="changes-hqq-int8"' not in text  # it writes fp32's texts


def test_a_study_without_layers_or_changes_has_a_page(study: findings.Study) -> None:
    text = report.text(study, {}, None, {})
    assert "None: every variant writes fp32's texts." in text
    assert 'id="layers"' not in text


def page_of(lines: list[dict[str, Any]], folder: Path) -> str:
    """Return the page of a study of these lines; what scripts read of it must be JSON, which knows no NaN."""

    def refuse(what: str) -> None:
        raise AssertionError(f"{what} in JSON")

    text = report.text(findings.read(made.write(folder / "base", lines, model="base")), {}, None, {})
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text):
        json.loads(data, parse_constant=refuse)
    return text


def test_fp32_alone_has_a_page(tmp_path: Path) -> None:
    assert '"ladder"' not in page_of([row("fp32", "test-clean", 0.0)], tmp_path)


def test_an_earlier_study_has_neither_kl_nor_margins(tmp_path: Path) -> None:
    earlier = dict.fromkeys(("kl", "flips", "no_worse_than", "other_texts", "regressed", "improved", "empty", "tokens"))
    lines = [row(name, "test-clean", 0.1) | earlier | {"test_unit": ""} for name in VARIANTS]
    text = page_of(lines, tmp_path)
    assert ">inf<" not in text
    assert ">nan" not in text
    assert text.count("nothing fits") == 3 + 1  # and in the script


def test_speech_and_silence_have_their_own_units(tmp_path: Path) -> None:
    silence = {"split": "silence", "measure": "insertions_per_minute", "words": 0, "insertions": 0}
    lines = [row(name, split, 0.1) for name in VARIANTS for split in ("test-clean", "test-other")]
    lines = [
        one | silence | ({"insertions": 7} if one["variant"] == "hqq-int4" else {})
        if one["split"] == "test-other"
        else one
        for one in lines
    ]
    text = page_of(lines, tmp_path)
    assert ">test-clean WER %</button>" in text
    assert ">silence I/min</button>" in text
    assert "silence: nothing is said, and these write words: <code>hqq-int4</code> 7." in text


def test_forty_variants_that_loop_fit_in_a_page(tmp_path: Path) -> None:
    said = " ".join(f"word{n}" for n in range(500))
    own = {"utterances": [score(said, 0, f"u{n:02}") for n in range(30)]}
    looping = {"utterances": [score(f"{said} {'and ' * 444}", 444, f"u{n:02}") for n in range(30)]}
    found = changes.changed(own, looping)
    lines = [
        row(name, split, 0.1) | ({} if name == "fp32" else {"variant": f"{name}-{n}"})
        for n in range(8)
        for name in VARIANTS
        for split in ("test-clean", "test-other")
        if name != "fp32" or not n
    ]
    study = findings.read(made.write(tmp_path / "base", lines, model="base"))
    quantized = [one.variant for one in study.variants if one.variant != "fp32"]
    assert len(quantized) == 40
    assert len(report.text(study, dict.fromkeys(quantized, found), None, {})) < 1_200_000


@pytest.mark.slow
def test_the_table_is_sorted_by_its_heads(opened: "Page") -> None:
    head = opened.locator("#variants thead th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    by_size = sorted(VARIANTS, key=lambda name: VARIANTS[name]["size_mb"])
    assert variants(opened) == by_size
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert variants(opened) == by_size[::-1]
    opened.locator("#variants thead button").first.click()
    assert head.get_attribute("aria-sort") is None
    assert variants(opened) == sorted(VARIANTS)


@pytest.mark.slow
def test_the_table_shows_rows_that_have_all_words(opened: "Page") -> None:
    opened.fill("#filter", "int4 HQQ")
    assert variants(opened) == ["hqq-int4"]
    assert opened.inner_text("#shown") == "1 of 6 rows"
    opened.fill("#filter", "")
    assert variants(opened) == [*VARIANTS]


@pytest.mark.slow
def test_the_budget_finds_what_python_recommends(opened: "Page", study: findings.Study) -> None:
    script = """([mb, loss]) => {
        document.getElementById("max-mb").value = mb;
        document.getElementById("max-loss").value = loss;
        document.getElementById("budget").dispatchEvent(new Event("input"));
        return [...document.querySelectorAll("#best tbody tr")].map((row) => row.cells[1].textContent);
    }"""
    draw = random.Random(0)
    for _ in range(100):
        mb, loss = draw.randint(0, 310), draw.choice(["0.3", "0.5", "1.0", ""])
        most = float(loss or inf)
        goals: tuple[decision.Goal, ...] = ("nearest", "smallest", "fastest")
        wanted = [decision.recommend(study.lines, goal, mb, most) for goal in goals]
        assert opened.evaluate(script, [mb, loss]) == [row.variant if row else "nothing fits" for row in wanted]


@pytest.mark.slow
def test_what_stands_there_before_scripts_is_what_they_find(opened: "Page", page: Path) -> None:
    read = "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    before = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", of) for of in re.findall(r"<tr data-goal.*", page.read_text())]
    opened.dispatch_event("#max-mb", "input", {"bubbles": True})
    assert opened.eval_on_selector_all("#best tbody tr", read) == before
    assert [cells[1] for cells in before] == ["hqq-int8", "hqq-int8", "hqq-int8"]


@pytest.mark.slow
def test_keys_go_from_variant_to_variant_and_say_each(opened: "Page") -> None:
    opened.focus("[data-chart=wer_vs_size]")
    opened.keyboard.press("ArrowRight")
    assert opened.locator("#variants tr.picked th").inner_text() == "candidate"  # the smallest
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#picked").startswith("variant gptq-int4, MB 48.0, saved")
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    assert opened.locator("#variants tr.picked th").inner_text() == "fp32"
    opened.keyboard.press("Escape")
    assert opened.locator("#variants tr.picked").count() == 0


@pytest.mark.slow
def test_a_point_tells_of_its_variant(opened: "Page") -> None:
    opened.locator("[data-chart=wer] .mark-rect path").nth(1).hover()
    assert opened.inner_text("#tip").startswith("hqq-int8\nWER: 3.60 %\nagainst fp32: +0.10 [-0.10, +0.30]")
    assert opened.locator("#variants tr.picked th").inner_text() == "hqq-int8"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_a_chart_is_saved_as_a_picture(opened: "Page", kind: str, head: bytes) -> None:
    with opened.expect_download() as saved:
        opened.locator("figure", has=opened.locator("[data-chart=wer]")).get_by_text(f"save as {kind.upper()}").click()
    assert saved.value.suggested_filename == f"wer.{kind}"
    assert Path(saved.value.path()).read_bytes().startswith(head)


@pytest.mark.slow
def test_a_link_opens_the_changed_texts(opened: "Page") -> None:
    found = opened.locator("#changes-hqq-int4")
    assert found.get_attribute("open") is None
    opened.click("#variants a")
    opened.wait_for_selector("#changes-hqq-int4[open]")
    assert opened.locator("#changes-hqq-int4 li").first.is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_everybody_can_read_it(opened: "Page", width: int, scheme: "Any") -> None:
    opened.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert unreadable(opened, width, scheme) == []


@pytest.mark.slow
def test_without_scripts_the_answer_and_the_table_are_there(browser: "Browser", page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert "Ship hqq-int8" in tab.inner_text("#answer")
    assert tab.locator("#best tbody td").first.inner_text() == "hqq-int8"
    assert variants(tab) == [*VARIANTS]
    context.close()
