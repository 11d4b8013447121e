from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.results import charts, points, tables
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
    assert points.limit(frame(result("fp32", baseline), *(result(f"v{rate}", rate) for rate in others))) == end


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
    assert points.limit(frame(quiet("fp32"), quiet("candidate"))) == 1.0


@pytest.mark.parametrize(
    ("sizes", "front"),
    [
        ({"a": (100, 4.0)}, ["a"]),
        ({"a": (150, 4.0), "b": (100, 5.0), "c": (90, 6.0)}, ["c", "b", "a"]),
        ({"a": (150, 4.0), "b": (100, 3.9), "c": (110, 3.95)}, ["b"]),
        ({"a": (150, 4.0), "b": (100, 4.0), "c": (100, 4.0)}, ["b"]),
        ({"a": (100, 5.0), "b": (100, 4.0)}, ["b"]),
    ],
)
def test_pareto(sizes: dict[str, tuple[float, float]], front: list[str]) -> None:
    results = [result(name, wer, size) for name, (size, wer) in sizes.items()]
    assert list(points.pareto(frame(*results)).variant) == front


@pytest.mark.parametrize(
    ("taken", "place"),
    [
        ([], (58, 45, 108, 55)),  # right of its point
        ([(60, 40, 70, 60)], (-8, 45, 42, 55)),  # else left
        ([(60, 40, 200, 60), (-100, 40, 40, 60)], (25, 61, 75, 71)),  # else above
    ],
)
def test_a_label_goes_where_there_is_room(taken: Sequence[points.Box], place: points.Box) -> None:
    assert points.free_place(50, 10, (50, 50), taken, (-100, 0, 200, 100)) == pytest.approx(place, abs=0.01)


def test_a_label_stays_inside_the_frame() -> None:
    left, bottom, right, top = points.free_place(50, 10, (95, 98), [], (0, 0, 100, 100))
    assert left >= 0
    assert bottom >= 0
    assert right <= 100
    assert top <= 100


def test_a_label_without_any_room_still_gets_a_place() -> None:
    assert points.free_place(500, 500, (5, 5), [(0, 0, 10, 10)], (0, 0, 10, 10))


def shown(chart: Any) -> list[Row]:
    """Return every row that a chart draws, of all its data."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def words(spec: Any) -> list[str]:
    """Return all titles of a specification, and the texts that stand alone."""
    if isinstance(spec, list):
        return [text for each in spec for text in words(each)]
    if not isinstance(spec, dict):
        return []
    own = [spec["title"]] if isinstance(spec.get("title"), str) else []
    own += [spec["text"]] if isinstance(spec.get("text"), str) else []
    return own + [text for key, each in spec.items() if key != "datasets" for text in words(each)]


def test_every_variant_is_named_and_one_beyond_the_axis_with_its_rate() -> None:
    drawn = points.points(frame(*STUDY))
    assert list(drawn.name) == ["fp32", "hqq-int8", "hqq-int2 (171 %)", "new-int8", "candidate"]
    assert list(drawn.bar) == [f"{each['variant']}, {each['size_mb']} MB" for each in STUDY]
    assert list(drawn.end) == ["4.00", "4.10", "171.00 (cut)", "4.30", "4.20"]


def test_intervals_are_of_the_difference_around_fp32s_rate() -> None:
    drawn = points.points(frame(*STUDY)).set_index("variant")
    assert drawn.loc["hqq-int8", ["low", "high"]].tolist() == pytest.approx([3.6, 4.6])
    assert drawn.loc[["fp32", "hqq-int2"], ["low", "high"]].isna().all(axis=None)


def test_names_lie_beside_their_points_and_not_on_each_other() -> None:
    chart = charts.wer_vs_size(frame(*STUDY))
    places = [(row["name_x"], row["name_y"]) for row in shown(chart) if "name_x" in row]
    assert len(places) == len(set(places)) == len(STUDY) - 1  # fp32 is a line


def test_axes_begin_at_zero_and_fp16_is_a_line() -> None:
    (panel,) = charts.wer_vs_size(frame(*STUDY)).to_dict()["vconcat"]
    _, scatter = panel["layer"]  # above the Pareto front
    points = next(layer for layer in scatter["layer"] if layer["mark"].get("filled"))
    assert points["encoding"]["x"]["scale"]["domain"] == [0, pytest.approx(1.05 * 101.0)]
    assert points["encoding"]["y"]["scale"]["domain"][0] == 0
    assert 151.0 / 2 in [layer["encoding"].get("x", {}).get("datum") for layer in scatter["layer"]]
    assert {"fp16", "fp32, 151 MB"} <= {*words(panel)}


def test_charts_say_what_they_are_of() -> None:
    for chart in (charts.wer_vs_size, charts.wer_vs_speed, charts.differences):
        told = words(chart(frame(*STUDY)).to_dict())
        assert "test-clean: 2,620 utterances of 40 speakers, 52,576 words" in told
        assert "word error rate, %" in told


def test_charts_of_a_split_without_words_are_in_words_per_minute() -> None:
    results = frame(silent("fp32", 4.0), silent("hqq-int2", 171.0), silent("candidate", 4.2))
    told = words(charts.wer_vs_size(results).to_dict())
    assert "silence: 36 recordings without speech, 10.0 minutes" in told
    assert "inserted words per minute" in told
    assert "hqq-int2 (171/min)" in list(points.points(results).name)


def test_charts_of_both_kinds_of_splits_have_a_panel_each() -> None:
    mixed = [*STUDY, *(silent(each["variant"], each["rate"]) for each in STUDY)]
    told = words(charts.differences(frame(*mixed)).to_dict())
    assert {"word error rate, %", "inserted words per minute"} <= {*told}


def test_a_variant_that_is_slower_than_four_times_fp32_is_left_out_of_the_chart_of_times() -> None:
    slow = [row | {"latency_p50_ms": 800.0 if n else 100.0} for n, row in enumerate(STUDY)]
    drawn = shown(charts.wer_vs_speed(frame(*slow)))
    assert {row["variant"] for row in drawn if "variant" in row} == {"fp32"}


def test_an_earlier_study_has_no_ladder_of_kl() -> None:
    columns = {"kl": [0.01] * len(STUDY), "flips": [1.0] * len(STUDY), "bits_per_weight": [4.5] * len(STUDY)}
    results = frame(*STUDY).assign(**columns)
    (column,) = charts.ladder(results).to_dict()["hconcat"]
    assert len(column["vconcat"]) == 3
    (column,) = charts.ladder(results.assign(kl=float("nan"), flips=float("nan"))).to_dict()["hconcat"]
    assert len(column["vconcat"]) == 1


def cells(text: str, folder: Path) -> dict[str, list[list[str]]]:
    """Return what the heat map of a sensitivity.csv says in its rows, by title of the panel."""
    (folder / "sensitivity.csv").write_text(text)
    spec = charts.sensitivity(tables.read(folder / "sensitivity.csv")).to_dict()
    found = {}
    for panel in spec["hconcat"]:
        rows = spec["datasets"][panel["layer"][0].get("data", panel.get("data"))["name"]]
        texts = {(row["number"], row["kind"]): row["text"] for row in rows}
        layers = sorted({number for number, _ in texts})
        found[panel["title"]] = [[texts.get((number, kind), "") for number in layers] for kind in charts.KINDS]
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
    spec = charts.sensitivity(table).to_dict()
    assert spec["title"] == "KL to expect of each layer alone in 4 bits, 0.001 nats a token (the output head: 77)"
    colors = [layer["encoding"]["color"]["scale"] for panel in spec["hconcat"] for layer in panel["layer"][:1]]
    assert [scale["domain"] for scale in colors] == [pytest.approx([0.4, 0.8])] * 2


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
