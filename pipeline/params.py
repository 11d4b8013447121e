"""params.yaml as typed, validated values: the one place that knows its keys.

Every stage reads its settings through `read`, so a misspelt key or an impossible value is refused with one sentence
before any work starts, whichever stage meets it first.
"""

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import UserError, suggestion

T = TypeVar("T")

FILE = Path("params.yaml")
CANDIDATE = "candidate"
BASELINE = "fp32"

Files = dict[str, str | None]
"""File name -> SHA-256 of its bytes, or null where another pin (a hub revision) stands for it."""


@dataclass(frozen=True)
class Variant:
    """What to quantize and how. None means: as the library does by default for these bits."""

    backend: str
    bits: int = 8
    format: Literal["int", "float", "nf", "fp"] = "int"
    activations: Literal["none", "dynamic", "static"] = "none"
    granularity: Literal["tensor", "channel", "group"] | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    double_quant: bool = False
    """Quantize the scales too (bitsandbytes' 4-bit formats)."""
    include: list[str] = field(default_factory=lambda: ["*"])
    """Glob patterns of the Linear layers to quantize, such as `model.decoder.*`."""
    exclude: list[str] = field(default_factory=lambda: ["proj_out"])
    """Glob patterns of those to leave alone; `proj_out` is tied to the token embedding."""


@dataclass(frozen=True)
class Model:
    """Where a baseline checkpoint comes from."""

    source: Literal["hub", "package", "directory"]
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    files: Files = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Where speech with transcripts comes from, and which of it is scored."""

    source: Literal["openslr", "package", "directory", "hub", "generated"]
    splits: list[str]
    limit: int | None = None
    """Utterances of each split, of all speakers alike; None = all. Source `generated` makes as many as this says."""
    seed: int = 0
    """What source `generated` starts from; the others need none."""
    path: str | None = None
    url: list[str] | str | None = None
    """Where the archives are; the others of a list are mirrors of the first."""
    repo: str | None = None
    revision: str | None = None
    files: Files = field(default_factory=dict)
    utterances: dict[str, int] = field(default_factory=dict)
    """Split -> number of utterances that the publisher tells; one that has not so many is refused."""


@dataclass(frozen=True)
class Decoding:
    """How text is decoded: always greedy, without temperature fallback."""

    language: str = "en"
    task: Literal["transcribe", "translate"] = "transcribe"
    batch_size: int = 16
    max_new_tokens: int = 444
    suppress_non_speech: bool = True
    """Never write what Whisper's vocabulary holds for sounds that are no speech, such as "(" or "♪♪"."""
    seed: int = 0


@dataclass(frozen=True)
class Latency:
    """How the time from an utterance to its text is measured, one utterance at a time."""

    utterances: int = 20
    seconds: int = 60
    """No utterance is begun after so long: a variant that loops takes minutes for twenty."""
    threads: int = 2
    """Fixed, so that machines with more cores give figures that compare."""


@dataclass(frozen=True)
class Calibration:
    """The audio on which static variants learn their activation ranges."""

    corpus: str
    split: str
    utterances: int
    seed: int = 0


@dataclass(frozen=True)
class Scoring:
    """How transcripts become rates and intervals."""

    normalizer: Literal["english", "basic", "none"] = "english"
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml, with the candidate's top-level keys gathered in `candidate`."""

    model: str
    corpus: str
    device: str
    candidate: Variant
    models: dict[str, Model]
    corpora: dict[str, Corpus]
    variants: dict[str, Variant]
    decoding: Decoding
    latency: Latency
    calibration: Calibration
    scoring: Scoring

    def variant(self, name: str) -> Variant:
        """Return the settings of a variant by name; `candidate` is one of the names."""
        if name == CANDIDATE:
            return self.candidate
        return _pick("variant", name, self.variants)

    @property
    def names(self) -> list[str]:
        """All variants in the file's order, the candidate last."""
        return [*self.variants, CANDIDATE]


def read(file: Path = FILE) -> Params:
    """Read and validate the parameters; raise UserError with one sentence about the first mistake."""
    return parse(_load(file))


def parse(raw: dict[str, Any]) -> Params:
    """Turn the file's plain values into Params (pure)."""
    candidate_keys = [f.name for f in dataclasses.fields(Variant)]
    own_keys = [f.name for f in dataclasses.fields(Params) if f.name != "candidate"]
    _check_keys("params.yaml", raw, [*own_keys, *candidate_keys], [*own_keys, "backend"])
    params = Params(
        model=_value("model", str, raw["model"]),
        corpus=_value("corpus", str, raw["corpus"]),
        device=_device(raw["device"]),
        candidate=_variant(CANDIDATE, {key: raw[key] for key in candidate_keys if key in raw}),
        models={name: _model(name, entry) for name, entry in _entries("models", raw)},
        corpora={name: _corpus(name, entry) for name, entry in _entries("corpora", raw)},
        variants={name: _variant(name, entry) for name, entry in _entries("variants", raw)},
        decoding=_build("decoding", Decoding, raw["decoding"]),
        latency=_build("latency", Latency, raw["latency"]),
        calibration=_build("calibration", Calibration, raw["calibration"]),
        scoring=_build("scoring", Scoring, raw["scoring"]),
    )
    _pick("model", params.model, params.models)
    _pick("corpus", params.corpus, params.corpora)
    _pick("corpus", params.calibration.corpus, params.corpora, "calibration: ")
    if BASELINE not in params.variants or params.variants[BASELINE].backend != "none":
        raise UserError(f"variants: {BASELINE!r} (backend: none) is missing; every difference is measured against it")
    if params.corpora[params.calibration.corpus].source == "generated":
        raise UserError(
            f"calibration: corpus {params.calibration.corpus!r} is generated, and activation ranges learned without "
            "speech would not hold for it; calibrate on a corpus of speech"
        )
    if params.calibration.corpus == params.corpus and params.calibration.split in params.corpora[params.corpus].splits:
        raise UserError(
            f"calibration: split {params.calibration.split!r} of corpus {params.corpus!r} is one that is scored; "
            "calibrate on another split, or the scores would be tuned on their own audio"
        )
    for where, least, number in (
        ("decoding: batch_size", 1, params.decoding.batch_size),
        ("decoding: max_new_tokens", 1, params.decoding.max_new_tokens),
        ("latency: utterances", 1, params.latency.utterances),
        ("latency: seconds", 1, params.latency.seconds),
        ("latency: threads", 1, params.latency.threads),
        ("calibration: utterances", 1, params.calibration.utterances),
        ("scoring: resamples", 1000, params.scoring.resamples),
        ("decoding: seed", 0, params.decoding.seed),
        ("calibration: seed", 0, params.calibration.seed),
        ("scoring: seed", 0, params.scoring.seed),
        *((f"corpus {name!r}: seed", 0, corpus.seed) for name, corpus in params.corpora.items()),
    ):
        if number < least:
            raise UserError(f"{where} is {number}, but at least {least} is needed")
    return params


def backends() -> list[str]:
    """Name the backends: one module each in pipeline/backends/."""
    return sorted(file.stem for file in (Path(__file__).parent / "backends").glob("[!_]*.py"))


def _load(file: Path) -> dict[str, Any]:
    try:
        raw = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is not here; run the pipeline from the project's top folder") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file} holds no keys; restore it with 'git checkout {file}'")
    return raw


def _variant(name: str, entry: Any) -> Variant:
    where = CANDIDATE if name == CANDIDATE else f"variant {name!r}"
    variant = _build(where, Variant, entry)
    if variant.backend not in backends():
        raise UserError(f"{where}: unknown backend {variant.backend!r}{suggestion(variant.backend, backends())}")
    for key, number in (("bits", variant.bits), ("group_size", variant.group_size)):
        if number is not None and number < 1:
            raise UserError(f"{where}: {key} is {number}, but it must be at least 1")
    if variant.group_size is not None and variant.granularity in ("tensor", "channel"):
        raise UserError(
            f"{where}: group_size {variant.group_size} goes with granularity 'group', not {variant.granularity!r}"
        )
    return variant


def _model(name: str, entry: Any) -> Model:
    model = _build(f"model {name!r}", Model, entry)
    needed = {"hub": ("repo", "revision", "files"), "package": ("files",), "directory": ("path",)}[model.source]
    _check_needed(f"model {name!r}", model, needed)
    return model


def _corpus(name: str, entry: Any) -> Corpus:
    corpus = _build(f"corpus {name!r}", Corpus, entry)
    needed = {
        "openslr": ("url", "files"),
        "package": ("path", "files"),
        "directory": ("path",),
        "hub": ("repo", "revision", "files"),
        "generated": ("limit",),
    }[corpus.source]
    _check_needed(f"corpus {name!r}", corpus, needed)
    if not corpus.splits:
        raise UserError(f"corpus {name!r}: splits is empty; name at least one split to score")
    for split in corpus.splits:
        _check_name(f"corpus {name!r}: split", split)
    archived = {file.removesuffix(".tar.gz") for file in corpus.files}
    for split, count in corpus.utterances.items():
        if corpus.source == "openslr" and split not in archived:
            raise UserError(f"corpus {name!r}: utterances: unknown split {split!r}{suggestion(split, archived)}")
        if count < 1:
            raise UserError(f"corpus {name!r}: utterances of {split!r} are {count}, but at least 1 is needed")
    if corpus.limit is not None and corpus.limit < 1:
        raise UserError(f"corpus {name!r}: limit is {corpus.limit}; give a number of utterances, or null for all")
    return corpus


def _check_needed(where: str, entry: Model | Corpus, needed: tuple[str, ...]) -> None:
    for key in needed:
        if not getattr(entry, key):
            raise UserError(f"{where}: source {entry.source!r} needs the key {key!r}")


def _entries(key: str, raw: dict[str, Any]) -> list[tuple[str, Any]]:
    if not isinstance(raw[key], dict) or not raw[key]:
        raise UserError(f"{key} is empty; give at least one named entry")
    for name in raw[key]:
        _check_name(key, name)
        if key == "variants" and name in (CANDIDATE, "baseline"):  # their folders in models/
            raise UserError(f"{key}: the name {name!r} is taken; choose another")
    return list(raw[key].items())


def _check_name(where: str, name: Any) -> None:
    # DVC builds stage names and parameter paths from these: a dot or a slash would break its tracking silently.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise UserError(f"{where}: the name {name!r} may hold only letters, digits and hyphens")


def _device(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise UserError(f"device is {value!r}, but it must be auto, cpu, cuda or cuda:N")
    return value


def _pick(kind: str, name: str, known: dict[str, T], where: str = "") -> T:
    if name not in known:
        raise UserError(f"{where}unknown {kind} {name!r}{suggestion(name, known)}")
    return known[name]


def _build(where: str, cls: type[T], raw: Any) -> T:
    fields = dataclasses.fields(typing.cast(Any, cls))
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    _check_keys(where, raw, [f.name for f in fields], required)
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(f"{where}: {key}", hints[key], value) for key, value in raw.items()})


def _check_keys(where: str, raw: Any, known: list[str], required: list[str]) -> None:
    if not isinstance(raw, dict):
        raise UserError(f"{where} is {raw!r}, but it must be a map of keys to values")
    for key in raw:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{suggestion(key, known)}")
    for key in required:
        if key not in raw:
            raise UserError(f"{where}: the key {key!r} is missing")


def _value(where: str, hint: Any, value: Any) -> Any:
    if not _fits(hint, value):
        raise UserError(f"{where} is {value!r}, but it must be {_words(hint)}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(choice, value) for choice in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(inner[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(inner[0], k) and _fits(inner[1], v) for k, v in value.items())
    return type(value) is hint  # exact: in Python True is an int, in params.yaml it is not


def _words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(choice) for choice in inner)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is list:
        return f"a list, each {_words(inner[0])}"
    if origin is dict:
        return "a map of splits to whole numbers" if inner[1] is int else "a map of file names to SHA-256 digests"
    return {int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}[hint]
