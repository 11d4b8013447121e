"""results.csv and the other tables: what their columns mean, and how they are written and read.

In a frame that was read, texts are "" and numbers NaN where there is no value.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.variant import Variant

RESULTS = Path("reports/results.csv")
PROTOCOL = Path("reports/protocol.csv")
ENGINES = Path("reports/engines.csv")
SENSITIVITY = Path("reports/sensitivity.csv")
FORETOLD = Path("reports/foretold.csv")
ERRORS = Path("reports/errors.csv")
FIGURES = Path("reports/figures")
INDEX = Path("reports/index.html")

MAKERS = {
    RESULTS.name: "dvc repro compare",
    PROTOCOL.name: "dvc repro score_protocols",
    ENGINES.name: f"python -m benchmarks.engines --out {ENGINES}",
    SENSITIVITY.name: "dvc repro sensitivity",
    ERRORS.name: "dvc repro compare",
    FORETOLD.name: "python -m benchmarks.foretell SPLIT",
}
"""The commands that write them."""

LIBRARIES = (
    *("python", "torch", "optimum-quanto", "hqq", "bitsandbytes", "torchao"),
    *("ctranslate2", "pywhispercpp", "gguf"),
)
"""Whose versions stand in results.csv; earlier studies lack some."""

FLOATS = 16  # bits from which on weights are not quantized

Row = Any  # a line of a frame, as its `itertuples` gives it: columns are attributes


@dataclass(frozen=True)
class Measure:
    """How the rate that leads a split is written."""

    name: str
    head: str  # at the top of its column
    title: str  # in full, with its unit
    unit: str  # behind a value
    steps: str  # what a difference is counted in


MEASURES = {
    "wer": Measure("WER", "WER %", "word error rate, %", " %", "points"),
    "insertions_per_minute": Measure("insertion rate", "I/min", "inserted words per minute", "/min", "words a minute"),
}
"""Keyed by their names in results.csv."""

RESULT_COLUMNS = {
    # What was measured: results.csv has a line for each variant and split.
    "variant": "text: key of `variants` in params.yaml, or `candidate`",
    "split": "text: split of the corpus",
    **{setting.name: f"text: {setting.name} of the variant in params.yaml" for setting in fields(Variant)},
    "bits": "bits of the variant in params.yaml",
    "group_size": "weights that share a scale, as the library made it; the smallest where layers differ",
    # The speech.
    "utterances": "number of utterances",
    "split_utterances": "utterances in the whole split, of which a limit may have chosen some",
    "speakers": "number of speakers; empty: not known",
    "minutes": "minutes of audio",
    "resampled": "utterances whose audio had another rate than 16 kHz",
    "mixed_down": "utterances whose audio had several channels",
    "normalizer": "text: english, basic or none",
    "normalizer_version": "text: package of the normalizer, and its version",
    "words": "words of the references, normalized",
    "characters": "characters of the references, normalized, spaces included",
    # Errors against the references, counted with the fewest edits.
    "hits": "words understood",
    "substitutions": "words replaced",
    "deletions": "words left out",
    "insertions": "words added",
    "character_errors": "edits of single characters",
    "wrong_utterances": "utterances with any error",
    "looping": "utterances whose text repeats itself over and over, where the reference does not",
    "looping_ids": "text: the first 20 of them, and how many more there are",
    "other_texts": "utterances whose normalized text is not fp32's",
    "other_ids": "text: the first 20 of them, and how many more there are",
    "regressed": "utterances with more errors than with fp32; of silence, with more words",
    "improved": "utterances with fewer",
    "p_churn": "two-sided p-value of as many regressed as improved (exact sign test), not corrected",
    "empty": "utterances without a word, where the reference has some",
    # Rates. Empty where the references hold no words: wer, cer and what follows from them.
    "measure": "text: rate that leads this split: wer or insertions_per_minute",
    "interval_unit": "text: what the bootstrap draws: speaker (from ten known ones on) or utterance",
    "wer": "word error rate, % of words",
    "cer": "character error rate, % of characters",
    "uer": "utterances with any error, %",
    "insertions_per_minute": "words added per minute of audio",
    "wer_without_loops": "word error rate without the utterances that loop, %; empty: all of them do",
    "*_delta": "difference of that measure to fp32's (protocol.csv: to the study's own protocol), in its unit",
    "*_low": "lower end of its 95 % interval, by interval_unit; paired where it is of a difference",
    "*_high": "upper end of it",
    "*_utterance": "the same, by utterance",
    "*_speaker": "the same, by speaker; empty: not known, or one only",
    # Verdicts on the difference to fp32; empty for fp32.
    "test_unit": "text: whose signs p-values flip: speaker, or utterance where speakers are too few to decide",
    "p_value": "two-sided p-value of no difference, by sign flips of test_unit",
    "p_holm": "the same after Holm's correction over all variants",
    "p_no_worse_*": "p-value of a loss of 0.3, 0.5 or 1.0 in the measure's unit or more, after the same correction",
    "verdict": "text: baseline; worse or better (p_holm below 0.05); no worse (below 0.025 for a margin); undecided",
    "no_worse_than": "smallest margin that its p-value shows the loss to be below; empty: none of the three",
    "units_to_decide": "units of test_unit that would decide it in four such corpora of five, by estimate",
    "smallest_detectable": "true difference that would be found in four such corpora of five, in the measure's unit",
    "mapsswe_z": "NIST's matched pairs: z, positive where there are more errors than with fp32",
    "mapsswe_p": "its two-sided p-value, not corrected",
    # Its next tokens beside fp32's, with fp32's own tokens forced through both (one by one, as in decoding, where
    # activations are quantized: torch.ao's scale spans a call); suppressed tokens take no part.
    "tokens": "tokens that fp32 wrote, ends included",
    "kl": "Kullback-Leibler divergence of its next-token distributions from fp32's, mean per token, nats",
    "kl_p99": "99th percentile of it over tokens",
    "flips": "tokens at which the likeliest one is not fp32's, %",
    "log_likelihood": "change of the log-likelihood of fp32's token, mean per token, nats",
    "dequantized": "text: True where texts and KL are of the dequantized weights in float32, False: of its own kernels",
    "larger": "text: the next larger variant in MB",
    "kl_less_larger": "kl less that of the next larger variant",
    "p_kl": "two-sided p-value of no difference between the two, by sign flips, after Holm's correction over all pairs",
    # torchao succeeds torch.ao, which is PyTorch's own and deprecated.
    "torch_ao": "text: variant of backend torch whose settings, but for `rest`, are those of this one of torchao",
    "kl_of_torch_ao": "kl over that variant's",
    "latency_of_torch_ao": "latency_p50_ms over that variant's",
    # The checkpoint on disk.
    "size_mb": "weights, MB (10^6 bytes)",
    "size_reduction": "saved of fp32's bytes, %",
    "size_reduction_fp16": "saved of a float16 checkpoint's bytes, %",
    "calibration": "number of utterances that calibrated it",
    "bytes_*": "bytes in total; of quantized weights; of their scales and zero points; of what is not quantized",
    "bits_per_weight": "bits of a quantized layer's weight, scales and zero points included",
    # Time and memory, of all splits together.
    "device": "text: where it ran: cpu or cuda",
    "batch_size": "utterances in a batch, of the pass in batches over some of the speech",
    "audio_s": "seconds of audio in that pass",
    "load_s": "seconds to load the checkpoint",
    "transcribe_s": "seconds of that pass",
    "pass_utterances": "its utterances",
    "pass_other_texts": "those of them whose text is not the transcript's",
    "rtfx": "seconds of audio transcribed in a second",
    "latency_p*_ms": "percentile of the time for a single utterance, features included, ms",
    "latency_utterances": "single utterances that were timed",
    "latency_other_texts": "those of them whose text is not the transcript's",
    "latency_threads": "threads for single utterances",
    "peak_rss_mb": "resident memory after single utterances, MB",
    "peak_gpu_mb": "GPU memory allocated by then, MB; empty: no GPU",
    "pass_peak_*": "the same two after the pass",
    "threads": "threads of the pass",
    "jobs": "stages that shared the machine",
    "machine": "text: processor, or GPU where device is one",
    "instructions": "text: instructions of the processor that kernels are chosen by, with a space between",
    "kernels": "text: what the engine computed with: instructions, and of CTranslate2 its library and type of numbers",
    "versions_*": "text: version of Python and of each library",
}
COLUMNS = RESULT_COLUMNS | {
    # protocol.csv: fp32 on a split, decoded and scored in one way; the first line of a split is the study's own.
    "suppress_non_speech": "text: True where tokens of sounds that are no speech were suppressed",
    "max_new_tokens": "most tokens of 30 s of audio",
    # engines.csv: one engine with the baseline.
    "engine": "text: name and format",
    "time_ratio": "its time over ours",
    "texts_differ": "utterances whose text is not ours",
    "rounds": "rounds in which the engines took turns; times are medians",
    "model": "text: key of `models` in catalog.yaml",
    # foretold.csv: a variant's KL divergence on speech that is neither scored nor calibrated on.
    "corpus": "text: key of `corpora` in catalog.yaml",
    # sensitivity.csv: a Linear layer of the baseline, in the model's order; the output head comes last.
    "layer": "text: its name in the checkpoint",
    "part": "text: encoder or decoder",
    "number": "number of the part's layer that it is in, from 0; empty: the head",
    "kind": "text: self or cross (attention) with q, k, v or out; fc1, fc2 or head",
    "weights": "number of weights",
    "kl_4bit": "KL divergence to expect of rounding it alone to the nearest of 4 bits, groups of 64, nats a token",
}
"""What stands in a column: a number, with its unit, or "text: ..."; `*` matches anything, in front another column."""

NEWER = {
    **dict.fromkeys(("split_utterances", "resampled", "mixed_down"), float("nan")),
    **dict.fromkeys(("tokens", "kl", "kl_p99", "flips", "log_likelihood"), float("nan")),
    **dict.fromkeys(("kl_of_torch_ao", "latency_of_torch_ao", "other_texts"), float("nan")),
    **dict.fromkeys(("regressed", "improved", "p_churn", "empty", "kl_less_larger", "p_kl"), float("nan")),
    **dict.fromkeys(("no_worse_than", "units_to_decide", "pass_utterances", "pass_other_texts"), float("nan")),
    **dict.fromkeys(("test_unit", "other_ids", "larger", "dequantized"), ""),
    **dict.fromkeys(("normalizer", "normalizer_version", "instructions", "kernels", "model", "torch_ao"), ""),
    **dict.fromkeys(("encoder", "decoder", "layers", "embedding", "conv", "budget", "budget_mb"), ""),
    "rest": "float32",
    "jobs": 1,
}
"""Columns that earlier studies do not have, and what stands for them."""

_COLUMNS = {
    RESULTS.name: [column for column in RESULT_COLUMNS if "*" not in column],
    PROTOCOL.name: [
        *("split", "suppress_non_speech", "max_new_tokens", "normalizer", "substitutions", "deletions", "insertions"),
        *("looping", "wer", "wer_without_loops", "insertions_per_minute", "interval_unit"),
        *("wer_delta", "wer_delta_low", "wer_delta_high"),
    ],
    ENGINES.name: [
        *("engine", "rtfx", "time_ratio", "texts_differ", "utterances", "audio_s", "batch_size", "threads", "rounds"),
        *("machine", "model"),
    ],
    FORETOLD.name: ["variant", "model", "corpus", "split", "utterances", "tokens", "kl"],
    SENSITIVITY.name: ["layer", "part", "number", "kind", "weights", "kl_4bit"],
}
"""What a file must have, by its name."""


def meaning(column: str) -> str:
    """Return what COLUMNS says of a column, by its name or for a family of columns; "" where it says nothing."""
    for name, text in COLUMNS.items():
        head, family, tail = name.partition("*")
        fits = family and column.startswith(head) and column.endswith(tail)
        if column == name or (fits and (head or meaning(column.removesuffix(tail)))):
            return text
    return ""


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Round every float, so that a review shows no noise: one word of LibriSpeech's test-clean is 0.002 % of it.

    p-values and what is in nats have six decimals: 0.0 is less than half a millionth.
    """
    digits = {key: 6 if key.startswith(("p_", "kl", "log_likelihood")) or key.endswith("_p") else 3 for key in row}
    # Adding 0.0 turns -0.0 to 0.0.
    return {key: round(v, digits[key]) + 0.0 if isinstance(v, float) else v for key, v in row.items()}


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV with every column that any row has; None is empty. A column must be documented here."""
    frame = pd.DataFrame(rows, dtype=object)
    unknown = [column for column in frame if not meaning(column)]
    assert not unknown, f"document {unknown} in pipeline/results/tables.py"
    return str(frame.to_csv(index=False))


def read(path: Path) -> pd.DataFrame:
    """Read one of the tables, wherever it lies; raise UserError where it is missing, empty or another file.

    In results.csv, the columns rate and delta, and either's _low and _high, are of the split's `measure`.
    """
    with _reading(path):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        if frame.empty:
            raise ValueError("no rows")
        newer = {column: NEWER[column] for column in _COLUMNS[path.name] if column not in frame}
        frame = pd.concat([frame, pd.DataFrame(newer, index=frame.index)], axis=1)
        numbers = [name for name in frame if (text := meaning(name)) and not text.startswith("text: ")]
        frame[numbers] = frame[numbers].apply(pd.to_numeric)
        if "verdict" in frame:
            frame["verdict"] = frame["verdict"].replace("no significant difference", "undecided")  # earlier studies
        if frame[numbers].isin([float("inf"), float("-inf")]).any(axis=None):
            raise ValueError("an infinite number")
        frame = frame.copy()  # pandas warns of one that grew by columns
        return _with_neutral(frame) if path.name == RESULTS.name else frame


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading a table raises into a UserError that names the command that writes it."""
    maker = MAKERS[path.name]
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run '{maker}' first") from None
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not what '{maker}' writes ({reason}); run it again") from None


def _with_neutral(frame: pd.DataFrame) -> pd.DataFrame:
    if unknown := set(frame["measure"]) - set(MEASURES):
        raise ValueError(f"measure {min(unknown)!r}")
    rows = frame.to_dict("records")
    for bound in ("", "_low", "_high"):
        frame[f"rate{bound}"] = [row[row["measure"] + bound] for row in rows]
        frame[f"delta{bound}"] = [row[f"{row['measure']}_delta{bound}"] for row in rows]
    return frame


def read_errors(path: Path) -> pd.DataFrame:
    """Read errors.csv: `split`, `id`, `speaker` and `words` of each utterance, then each variant's errors.

    Raises UserError where it is missing or another file.
    """
    with _reading(path):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        text = ["split", "id", "speaker"]
        return frame[text].join(frame.drop(columns=text).apply(pd.to_numeric))


def by_split(frame: pd.DataFrame) -> dict[str, list[Row]]:
    """Return the rows of each split, in the order of the file."""
    return {split: list(rows.itertuples()) for split, rows in frame.groupby("split", sort=False)}
