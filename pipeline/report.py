"""Make the page that people look at, reports/index.html: what to ship, charts, all variants, the texts that changed."""

from base64 import b64encode
from collections.abc import Iterable

from pipeline import compare
from pipeline.core import files, params, stage
from pipeline.results import changes, findings, tables
from pipeline.speech import corpus


def main() -> None:
    """Read results.csv, sensitivity.csv where there is one, and all scores; write reports/index.html."""
    settings = params.read()

    from pipeline.results import report

    scores = {name: compare.read(compare.SCORES / f"{name}.json", "score") for name in settings.names}
    fp32 = scores.pop(params.BASELINE)
    found = {name: changes.changed(fp32, score) for name, score in scores.items()}
    shown = {(change.split, change.id) for each in found.values() for change in each[: report.SHOWN]}
    study = findings.current(settings)
    layers = tables.read(tables.SENSITIVITY) if tables.SENSITIVITY.exists() else None
    files.write_text(tables.INDEX, report.text(study, found, layers, audio(shown) if settings.report.audio else {}))
    print(f"{tables.INDEX}: {tables.INDEX.stat().st_size / 1e6:.1f} MB, opens from disk")


def audio(ids: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the recordings of some utterances of the corpus, by split and id, as data URLs."""
    wanted = set(ids)
    return {
        (utterance.split, utterance.id): f"data:audio/flac;base64,{b64encode(utterance.flac).decode()}"
        for shard in corpus.shards(corpus.CORPUS)
        for utterance in corpus.read_shard(shard)
        if (utterance.split, utterance.id) in wanted
    }


if __name__ == "__main__":
    stage.run(main)
