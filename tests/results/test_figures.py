import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.results import figures, tables
from tests import made
from tests.made import FP32, UNDECIDED, Row, frame


def result(variant: str, wer: float, size_mb: float = 100.0, split: str = "test-clean", backend: str = "hqq") -> Row:
    """Return a result whose intervals reach half a point either way."""
    delta = wer - 4.0
    return FP32 | {
        "variant": variant,
        "split": split,
        "backend": "none" if variant == "fp32" else backend,
        "utterances": 2620,
        "speakers": 40,
        "words": 52576,
        "size_mb": size_mb,
        "rate": wer,
        "rate_low": max(0.0, wer - 0.5),
        "rate_high": wer + 0.5,
        "delta": delta,
        "delta_low": delta - 0.5,
        "delta_high": delta + 0.5,
        "verdict": "baseline" if variant == "fp32" else "worse" if delta > 0.5 else UNDECIDED,
    }


STUDY = [
    result("fp32", 4.0, 151.0),
    result("hqq-int8", 4.1, 101.0),
    result("hqq-int2", 171.0, 86.0),
    result("new-int8", 4.3, 99.0, backend="new"),
    result("candidate", 4.2, 98.0, backend="quanto"),
]


@pytest.mark.parametrize(
    ("rates", "end"),
    [
        ([4.0], 4.5),  # all fit: the highest interval
        ([4.0, 6.0], 6.5),
        ([4.0, 8.9], 9.0),  # at most 5 points above a good baseline
        ([4.0, 6.0, 100.0], 6.5),  # what is beyond does not count
        ([12.0, 23.9], 24.0),  # at most twice a poor one
        ([0.0, 3.0], 3.5),
    ],
)
def test_the_axis_ends_where_the_useful_variants_do(rates: list[float], end: float) -> None:
    baseline, *others = rates
    assert figures.limit(frame(result("fp32", baseline), *(result(f"v{rate}", rate) for rate in others))) == end


def silent(variant: str, rate: float) -> Row:
    """Return a result on ten minutes in which nothing is said."""
    return result(variant, rate, split="silence") | {
        "utterances": 36,
        "words": 0,
        "minutes": 10.0,
        "wer_without_loops": None,
        "measure": "insertions_per_minute",
        "interval_unit": "utterance",
    }


def quiet(variant: str) -> Row:
    """Return a result of a variant that writes nothing, as fp32 does."""
    verdict = "baseline" if variant == "fp32" else UNDECIDED
    zeros = dict.fromkeys(["rate_high", "delta", "delta_low", "delta_high"], 0.0)
    return silent(variant, 0.0) | zeros | {"verdict": verdict}


def test_an_axis_of_zeros_ends_at_one() -> None:
    assert figures.limit(frame(quiet("fp32"), quiet("candidate"))) == 1.0


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ({"a": (100, 4.0)}, ["a"]),
        ({"a": (150, 4.0), "b": (100, 5.0), "c": (90, 6.0)}, ["c", "b", "a"]),
        ({"a": (150, 4.0), "b": (100, 3.9), "c": (110, 3.95)}, ["b"]),
        ({"a": (150, 4.0), "b": (100, 4.0), "c": (100, 4.0)}, ["b"]),
        ({"a": (100, 5.0), "b": (100, 4.0)}, ["b"]),
    ],
)
def test_pareto(points: dict[str, tuple[float, float]], front: list[str]) -> None:
    results = [result(name, wer, size) for name, (size, wer) in points.items()]
    assert list(figures.pareto(frame(*results)).variant) == front


@pytest.mark.parametrize(
    ("taken", "place"),
    [
        ([], (62, 45, 112, 55)),  # right of its point
        ([(60, 40, 70, 60)], (-12, 45, 38, 55)),  # else left
        ([(60, 40, 200, 60), (-100, 40, 40, 60)], (61, 64.05, 111, 74.05)),  # else aslant
    ],
)
def test_a_label_goes_where_there_is_room(taken: Sequence[figures.Box], place: figures.Box) -> None:
    assert figures.free_place(50, 10, (50, 50), taken, (-100, 0, 200, 100)) == pytest.approx(place, abs=0.01)


def test_a_label_stays_inside_the_frame() -> None:
    left, bottom, right, top = figures.free_place(50, 10, (95, 98), [], (0, 0, 100, 100))
    assert left >= 0
    assert bottom >= 0
    assert right <= 100
    assert top <= 100


def test_a_label_without_any_room_still_gets_a_place() -> None:
    assert figures.free_place(500, 500, (5, 5), [(0, 0, 10, 10)], (0, 0, 10, 10))


def test_every_variant_is_named_and_one_beyond_the_axis_with_its_rate() -> None:
    (axes,) = figures.wer_vs_size(frame(*STUDY)).axes
    names = ["fp32,\n151 MB", "hqq-int8", "hqq-int2 (171 %)", "new-int8", "candidate"]
    assert [text.get_text() for text in axes.texts] == names
    (axes,) = figures.differences(frame(*STUDY)).axes
    labels = [f"{each['variant']}, {each['size_mb']} MB" for each in STUDY]
    assert [text.get_text() for text in axes.get_yticklabels()] == labels
    assert [text.get_text() for text in axes.texts] == ["4.00", "4.10", "171.00 (cut)", "4.30", "4.20"]


def test_figures_say_what_the_intervals_are_by() -> None:
    (axes,) = figures.wer_vs_size(frame(*STUDY)).axes
    assert axes.get_title() == "test-clean: 2,620 utterances of 40 speakers, 52,576 words"
    assert axes.get_ylabel() == "word error rate, %, with its 95 % interval by speaker"
    small = [row | {"split": "few", "interval_unit": "utterance"} for row in STUDY]
    for results, units in ((STUDY, "speaker"), (small, "utterance"), ([*STUDY, *small], "speaker or utterance")):
        (legend,) = figures.differences(frame(*results)).legends
        notes = [text.get_text() for text in legend.get_texts()]
        assert f"95 % interval of the difference to fp32, by {units}" in notes


def test_figures_of_a_split_without_words_are_in_words_per_minute() -> None:
    results = [silent("fp32", 4.0), silent("hqq-int2", 171.0), silent("candidate", 4.2)]
    scatter, bars = figures.wer_vs_size(frame(*results)), figures.differences(frame(*results))
    assert scatter.axes[0].get_title() == "silence: 36 recordings without speech, 10.0 minutes"
    assert scatter.axes[0].get_ylabel() == "inserted words per minute, with its 95 % interval by utterance"
    assert "hqq-int2 (171/min)" in [text.get_text() for text in scatter.axes[0].texts]
    assert "best insertion rate at its size (Pareto front)" in [text.get_text() for text in scatter.legends[0].texts]
    assert bars.axes[0].get_xlabel() == "inserted words per minute"


def test_figures_of_both_kinds_of_splits_name_both_rates() -> None:
    mixed = [*STUDY, *(silent(each["variant"], each["rate"]) for each in STUDY)]
    scatter, bars = figures.wer_vs_size(frame(*mixed)), figures.differences(frame(*mixed))
    assert [axes.get_xlabel() for axes in bars.axes] == ["word error rate, %", "inserted words per minute"]
    names = [text.get_text() for text in scatter.legends[0].texts]
    assert "best WER or insertion rate at its size (Pareto front)" in names


def cells(text: str, folder: Path) -> dict[str, list[list[str]]]:
    """Return what the heat map of a sensitivity.csv says in its rows, by title of the panel."""
    (folder / "sensitivity.csv").write_text(text)
    *panels, bar = figures.sensitivity(tables.read(folder / "sensitivity.csv")).axes
    assert bar.get_ylabel() == "KL divergence to expect, 0.001 nats a token"
    assert [label.get_text() for label in panels[0].get_yticklabels()] == figures.KINDS
    found = {}
    for axes in panels:
        texts = {text.get_position(): text.get_text() for text in axes.texts}
        layers = range(len(axes.get_xticks()))
        found[axes.get_title()] = [[texts[layer, kind] for layer in layers] for kind in range(len(figures.KINDS))]
    return found


def test_the_heat_map_has_a_cell_for_each_layer(tmp_path: Path) -> None:
    found = cells(made.sensitivity(encoder=3, decoder=2), tmp_path)
    attention, none = ["0.40", "0.80", "1.6"], [""] * 3
    assert found == {
        "encoder": [*[attention] * 4, *[none] * 4, *[attention] * 2],
        "decoder": [["0.40", "0.80"]] * 10,
    }


def test_the_heat_map_tells_the_head_apart(tmp_path: Path) -> None:
    """It has no place among the layers; its colour would make all others dark."""
    (tmp_path / "sensitivity.csv").write_text(made.sensitivity().replace("4096,0.0004\n", "4096,0.0766243\n"))
    table = tables.read(tmp_path / "sensitivity.csv")
    table.loc[table.kind != "head", "kl_4bit"] = [0.0004 * 2**number for number in table.number.dropna()]
    figure = figures.sensitivity(table)
    assert figure.get_suptitle() == "Each layer alone rounded to 4 bits (the output head: 77)"
    assert figure.axes[-1].get_ylim() == pytest.approx((0.4, 0.8))


@pytest.mark.parametrize(("encoder", "decoder"), [(1, 1), (32, 2)])
@pytest.mark.parametrize("kl", [0.0, 0.25, 1e-9])
def test_the_heat_map_of_any_model_can_be_drawn(encoder: int, decoder: int, kl: float, tmp_path: Path) -> None:
    (tmp_path / "sensitivity.csv").write_text(made.sensitivity(encoder, decoder, kl))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.sensitivity(tables.read(tmp_path / "sensitivity.csv")).draw_without_rendering()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0000002, "0.000"),
        (0.0141, "0.014"),
        (0.2634, "0.26"),
        (2.556, "2.6"),
        (12.85, "13"),
        (250, "250"),
    ],
)
def test_cells_have_two_digits_that_tell(value: float, text: str, tmp_path: Path) -> None:
    assert cells(made.sensitivity(1, 1, value / 1000), tmp_path)["encoder"][0] == [text]
