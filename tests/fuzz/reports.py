"""What stages wrote and later ones read: transcripts, scores, tables, lists of files."""

import json
from pathlib import Path
from random import Random

from pipeline import compare, score
from pipeline.core import manifest
from pipeline.results import tables
from pipeline.results.__main__ import show
from tests import made
from tests.conftest import results_csv
from tests.fuzz.models import checkpoint
from tests.fuzz.project import FORM, settings, write
from tests.fuzz.spoil import document, garble, spoil, text

LINE = {"id": "a-1", "split": "test", "speaker": "a", "duration": 1.5, "text": "HE MIGHT", "pred_text": "He might."}


def transcripts(draw: Random) -> None:
    """What a model wrote: lines of JSON, which are then scored."""
    lines = [LINE | {"id": f"a-{n}", "speaker": f"s{n}", "text": " ".join("WORDS" * n)} for n in range(3)]
    if draw.random() < 0.6:
        data = b"\n".join(text(draw, line) for line in [spoil(draw, lines[0]), *lines[1:]])
    else:
        data = garble(draw, "\n".join(map(json.dumps, lines)).encode())
    settings()
    write({"reports/transcripts/fp32.jsonl": data})
    score.main("fp32")
    scores = compare.read(score.SCORES / "fp32.json", "score")
    for utterance in scores["utterances"]:
        counted = [utterance["alignment"].count(letter) for letter in "=SD"]
        assert counted == [utterance[kind] for kind in ("hits", "substitutions", "deletions")]


def scores(draw: Random) -> None:
    """What `score` and `transcribe` wrote."""
    found = {"variant": "fp32", "splits": {"test": {"wer": 3.5}}, "utterances": [LINE] * 3}
    write({"reports/scores/fp32.json": document(draw, json.dumps(found).encode())})
    assert isinstance(compare.read(Path("reports/scores/fp32.json"), "score"), dict)


def table(draw: Random) -> None:
    """results.csv, which is then printed."""
    data = results_csv(*made.LINES).encode()
    if draw.random() < 0.6:
        rows = [line.split(",") for line in data.decode().splitlines()]
        row = draw.choice(rows)
        words = ("", "x", "-1", "1e999", "nan", "inf", "9" * 400, "1,000", '"', "é\n\u2028", "wer", "\0", "0x1", "True")
        row[draw.randrange(len(row))] = draw.choice(words)
        data = "\n".join(map(",".join, rows)).encode()
    else:
        data = garble(draw, data)
    write({"reports/results.csv": data})
    frame = tables.read(tables.RESULTS)
    assert all(len(rows) for rows in tables.by_split(frame).values())
    assert frame["rate"].dtype.kind in "fi"
    show(frame)


def listed(draw: Random) -> None:
    """The list of a checkpoint's files."""
    files = checkpoint()
    write({f"models/fp32/{name}": files[name] for name in ("config.json", "tokenizer.json")})
    manifest.write(Path("models/fp32"), {"variant": FORM["variants"]["fp32"], "bytes": {"total": 1}})
    path = Path("models/fp32", manifest.NAME)
    path.write_bytes(document(draw, path.read_bytes()))
    assert isinstance(manifest.verify(path.parent), dict)
