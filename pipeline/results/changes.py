"""Which utterances a variant writes otherwise than another, word by word (pure, of the files of `score`)."""

from dataclasses import dataclass
from typing import Any

import jiwer

from pipeline.core.errors import UserError

Json = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A stretch of two texts, in words: the same in both, or what one has in the place of the other's."""

    same: str = ""
    removed: str = ""
    added: str = ""


@dataclass(frozen=True)
class Change:
    """An utterance that a variant writes otherwise than the one before it, such as fp32; texts are normalized."""

    id: str
    split: str
    reference: str
    parts: list[Part]
    """What becomes of the text before in the variant's."""
    errors: int
    """The variant's word errors."""
    errors_before: int

    @property
    def verdict(self) -> str:
        """Regressed, improved or only other."""
        if self.errors == self.errors_before:
            return "other"
        return "regressed" if self.errors > self.errors_before else "improved"


def errors(utterance: Json) -> int:
    """Return an utterance's edits: where its reference holds no words, those are words inserted."""
    return int(utterance["substitutions"] + utterance["deletions"] + utterance["insertions"])


def changed(before: Json, after: Json) -> list[Change]:
    """Return the utterances that one variant writes otherwise than another, by their scores: greatest losses first.

    Raises UserError where the two were not scored on the same utterances.
    """
    if [(one["split"], one["id"]) for one in before["utterances"]] != [
        (one["split"], one["id"]) for one in after["utterances"]
    ]:
        raise UserError("the two were scored on other utterances; run 'dvc repro' first")
    found = [
        Change(
            new["id"],
            new["split"],
            new["reference"],
            words(old["hypothesis"], new["hypothesis"]),
            errors(new),
            errors(old),
        )
        for old, new in zip(before["utterances"], after["utterances"], strict=True)
        if old["hypothesis"] != new["hypothesis"]
    ]
    return sorted(found, key=lambda change: (change.errors_before - change.errors, change.split, change.id))


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
