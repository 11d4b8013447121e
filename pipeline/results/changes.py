"""Which utterances a variant writes otherwise than fp32, word by word (pure, of the files of `score`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jiwer

from pipeline.core.params import BASELINE

Json = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A stretch of two texts, in words: the same in both, or what one has in the place of the other's."""

    same: str = ""
    removed: str = ""
    added: str = ""


@dataclass(frozen=True)
class Change:
    """An utterance that a variant writes otherwise than fp32; texts are normalized."""

    id: str
    split: str
    reference: str
    parts: list[Part]
    """What becomes of fp32's text in the variant's."""
    errors: int
    """The variant's word errors."""
    errors_fp32: int

    @property
    def verdict(self) -> str:
        """Regressed, improved or only other."""
        if self.errors == self.errors_fp32:
            return "other"
        return "regressed" if self.errors > self.errors_fp32 else "improved"


def errors(utterance: Json) -> int:
    """Return an utterance's edits: where its reference holds no words, those are words inserted."""
    return int(utterance["substitutions"] + utterance["deletions"] + utterance["insertions"])


def changed(scores: Mapping[str, Json]) -> dict[str, list[Change]]:
    """Return the utterances of each variant whose text is not fp32's: the greatest losses first."""
    baseline = scores[BASELINE]["utterances"]
    return {
        name: sorted(
            (_change(own, one) for own, one in zip(baseline, of["utterances"], strict=True) if _differ(own, one)),
            key=lambda change: (change.errors_fp32 - change.errors, change.split, change.id),
        )
        for name, of in scores.items()
        if name != BASELINE
    }


def _differ(own: Json, one: Json) -> bool:
    return bool(own["hypothesis"] != one["hypothesis"])


def _change(own: Json, one: Json) -> Change:
    parts = words(own["hypothesis"], one["hypothesis"])
    return Change(one["id"], one["split"], one["reference"], parts, errors(one), errors(own))


def words(before: str, after: str) -> list[Part]:
    """Return what becomes of a text in another one, aligned by the fewest edits of words (jiwer)."""
    old, new = before.split(), after.split()
    parts: list[Part] = []
    for part in jiwer.process_words(before, after).alignments[0]:
        gone = " ".join(old[part.ref_start_idx : part.ref_end_idx])
        come = " ".join(new[part.hyp_start_idx : part.hyp_end_idx])
        if part.type == "equal":
            parts.append(Part(same=gone))
        elif parts and not parts[-1].same:  # a word replaced and one removed beside it are one change to a reader
            parts[-1] = Part("", _joined(parts[-1].removed, gone), _joined(parts[-1].added, come))
        else:
            parts.append(Part("", gone, come))
    return parts


def _joined(*texts: str) -> str:
    return " ".join(filter(None, texts))
