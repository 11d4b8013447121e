"""params.yaml and catalog.yaml as typed, validated values: the one place that knows their keys.

Every stage reads its settings through `read`, so that a misspelt key or an impossible value is refused with one
sentence before any work starts. DVC does not see a default change: CONTRIBUTING.md says what to do.
"""

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from pipeline.core import languages, params_errors
from pipeline.core.errors import UserError, suggestion
from pipeline.core.variant import CONFIG, Positive, Variant

T = TypeVar("T")

FILE = Path("params.yaml")
CATALOG = Path("catalog.yaml")
CANDIDATE = "candidate"
BASELINE = "fp32"

# DVC builds stage names and parameter paths from names: a dot or a slash would break its tracking silently.
Name = Annotated[str, StringConstraints(strict=True, pattern="^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=100)]
Seed = Annotated[StrictInt, Field(ge=0)]

Files = dict[StrictStr, StrictStr | None]
"""File name -> SHA-256 of its bytes, or null where another pin (a hub revision) stands for it."""


@dataclass(frozen=True, config=CONFIG)
class Model:
    """Where a baseline checkpoint comes from."""

    source: Literal["hub", "package", "directory"]
    path: StrictStr | None = None
    repo: StrictStr | None = None
    revision: StrictStr | None = None
    files: Files = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = {"hub": ("repo", "revision", "files"), "package": ("files",), "directory": ("path",)}
        _check_needed(self, needed[self.source])


@dataclass(frozen=True, config=CONFIG)
class Corpus:
    """Where speech with transcripts comes from, and which of it is scored."""

    source: Literal["openslr", "package", "directory", "hub", "generated"]
    splits: Annotated[list[Name], Field(min_length=1)]
    limit: Positive | None = None
    """Utterances of each split, drawn evenly across speakers; None = all. Source `generated` makes so many."""
    seed: Seed = 0
    """Random seed of source `generated`; the others do not use it."""
    path: StrictStr | None = None
    url: list[StrictStr] | StrictStr | None = None
    """Where the archives are; the others of a list are mirrors of the first."""
    repo: StrictStr | None = None
    revision: StrictStr | None = None
    files: Files = field(default_factory=dict)
    utterances: dict[StrictStr, Positive] = field(default_factory=dict)
    """Split -> number of utterances that the publisher tells; a split of another number is refused."""

    def __post_init__(self) -> None:
        needed = {
            "openslr": ("url", "files"),
            "package": ("path", "files"),
            "directory": ("path",),
            "hub": ("repo", "revision", "files"),
            "generated": ("limit",),
        }
        _check_needed(self, needed[self.source])
        archived = {file.removesuffix(".tar.gz") for file in self.files}
        unknown = [split for split in self.utterances if self.source == "openslr" and split not in archived]
        if unknown:
            raise ValueError(f"utterances: unknown split {unknown[0]!r}{suggestion(unknown[0], archived)}")


@dataclass(frozen=True, config=CONFIG)
class Decoding:
    """How text is decoded: always greedy, without temperature fallback."""

    language: StrictStr = "en"
    """Code of what is spoken; `auto`: the model detects it, in each utterance."""
    task: Literal["transcribe", "translate"] = "transcribe"
    batch_size: Positive = 16
    max_new_tokens: Positive = 444
    suppress_non_speech: StrictBool = True
    """Never write what Whisper's vocabulary holds for sounds that are no speech, such as "(" or "♪♪"."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.language != languages.AUTO and not re.fullmatch("[a-z]{2,3}", self.language):
            wanted = f"a language's code or {languages.AUTO!r}{languages.suggestion(self.language)}"
            raise ValueError(f"language is {self.language!r}, but it must be {wanted}")


@dataclass(frozen=True, config=CONFIG)
class Latency:
    """How the time from an utterance to its text is measured, one utterance at a time."""

    utterances: Positive = 20
    seconds: Positive = 10
    """None is begun that would end later, were it as slow as the one before: a variant that loops takes minutes."""
    threads: Positive = 2
    """Fixed, so that machines with more cores give figures that compare."""


@dataclass(frozen=True, config=CONFIG)
class Calibration:
    """The audio on which static variants learn their activation ranges."""

    corpus: StrictStr
    split: Name
    utterances: Positive
    seed: Seed = 0


@dataclass(frozen=True, config=CONFIG)
class Scoring:
    """How transcripts become rates and intervals."""

    normalizer: Literal["english", "basic", "none"] = "english"
    resamples: Annotated[StrictInt, Field(ge=1000, le=1_000_000)] = 10_000
    seed: Seed = 0


@dataclass(frozen=True, config=CONFIG)
class Report:
    """What the page shows."""

    audio: StrictBool = False
    """Hold the recordings of the utterances that are shown: for small corpora, as they are most of the page then."""


@dataclass(frozen=True, config=CONFIG)
class Review:
    """When a change may not land."""

    tolerance: Annotated[float, Field(ge=0)] = 0.3
    """Points that the loss of a recommended variant, and fp32's rate, may surely grow by."""
    kl_factor: Annotated[float, Field(gt=1)] = 2.0
    """Times that a recommended variant's KL divergence may grow by: that shows on little speech, too."""


@dataclass(frozen=True, config=CONFIG, kw_only=True)
class Params(Variant):
    """Both files. The candidate's keys are at params.yaml's top level, hence a Variant."""

    model: StrictStr
    corpus: StrictStr
    device: Annotated[str, StringConstraints(strict=True, pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    kernels: Literal["library", "dequantized"] = "library"
    """What gives texts and KL of variants that quantize weights alone: the library, or their values in float32."""
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    decoding: Decoding
    latency: Latency
    calibration: Calibration
    scoring: Scoring
    report: Report = Report()
    review: Review = Review()
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    corpora: Annotated[dict[Name, Corpus], Field(min_length=1)]

    @property
    def candidate(self) -> Variant:
        """What is being tried."""
        return Variant(**{key: getattr(self, key) for key in params_errors.keys(Variant)})

    @property
    def names(self) -> list[str]:
        """All variants in the file's order, the candidate last."""
        return [*self.variants, CANDIDATE]

    def variant(self, name: str) -> Variant:
        """Return the settings of a variant by name; `candidate` is one of the names."""
        return self.candidate if name == CANDIDATE else _pick("variant", name, self.variants)

    def __post_init__(self) -> None:
        super().__post_init__()
        calibration = self.calibration
        _pick("model", self.model, self.models)
        scored = _pick("corpus", self.corpus, self.corpora)
        _pick("corpus", calibration.corpus, self.corpora, "calibration: ")
        for name in {CANDIDATE, "baseline"} & self.variants.keys():  # their folders in models/
            raise UserError(f"variants: the name {name!r} is taken; choose another")
        baseline = self.variants.get(BASELINE)
        if baseline is None or baseline.backend != "none":
            raise UserError(
                f"variants: {BASELINE!r} (backend: none) is missing; every difference is measured against it"
            )
        if baseline.bits == 16:
            raise UserError(f"variant {BASELINE!r}: bits is 16, but it must be 32: all sizes are told as shares of it")
        heard = self.decoding.language
        if self.scoring.normalizer == "english" and heard != "en" and self.decoding.task == "transcribe":
            raise UserError(
                f"scoring: normalizer 'english' deletes and rewrites other languages' words, and decoding.language is "
                f"{heard!r}; set scoring.normalizer to 'basic'"
            )
        if self.corpora[calibration.corpus].source == "generated":
            raise UserError(
                f"calibration: corpus {calibration.corpus!r} is generated, and activation ranges learned without "
                "speech would not hold for it; calibrate on a corpus of speech"
            )
        if calibration.corpus == self.corpus and calibration.split in scored.splits:
            raise UserError(
                f"calibration: split {calibration.split!r} of corpus {self.corpus!r} is one that is scored; "
                "calibrate on another split, or the scores would be tuned on their own audio"
            )


def read(folder: Path = Path()) -> Params:
    """Read and validate the settings in `folder`; raise UserError with one sentence about the first mistake."""
    return parse(_load(folder / FILE), _load(folder / CATALOG))


def parse(form: dict[str, Any], catalog: dict[str, Any]) -> Params:
    """Turn the files' plain values into Params (pure)."""
    listed = {"models", "corpora"}
    for file, misplaced in ((FILE, form.keys() & listed), (CATALOG, catalog.keys() - listed)):
        if misplaced:
            raise UserError(
                f"{file}: {min(misplaced, key=str)!r} does not belong here; {CATALOG} holds models and corpora alone"
            )
    try:
        return TypeAdapter(Params).validate_python(form | catalog)
    except ValidationError as error:
        raise UserError(params_errors.sentence(error.errors(include_url=False), Params)) from None


def _load(file: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is not here; run the pipeline from the project's top folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as a text in UTF-8 ({error}); restore it with git") from None
    except YAMLError as error:
        line = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{file}{line} is not valid YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply; restore it with git") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # ruamel.yaml's own, of values like 2026-02-31
        reason = f"a value cannot be read ({error})"
        raise UserError(f"{file} is not valid YAML: {reason}; correct it, or restore the file with git") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file} holds no keys; restore it with 'git checkout {file}'")
    return raw


def _check_needed(entry: Model | Corpus, needed: tuple[str, ...]) -> None:
    for key in needed:
        if not getattr(entry, key):
            raise ValueError(f"source {entry.source!r} needs the key {key!r}")


def _pick(kind: str, name: str, known: dict[str, T], where: str = "") -> T:
    if name not in known:
        raise UserError(f"{where}unknown {kind} {name!r}{suggestion(name, known)}")
    return known[name]
