"""Download the corpus and the calibration speech as they are published, verified by checksum.

What to get stands in params.yaml (corpus, calibration) and catalog.yaml (corpora). Interrupted downloads continue.
"""

from typing import TYPE_CHECKING

from pipeline.core import files, outside, stage
from pipeline.speech import sources

if TYPE_CHECKING:
    from pipeline.core import params


def needed(settings: "params.Params") -> dict[str, list[str]]:
    """Name the splits to get, by corpus: those that are scored, and the one that calibrates."""
    splits = {settings.corpus: list(settings.corpora[settings.corpus].splits)}
    splits.setdefault(settings.calibration.corpus, []).append(settings.calibration.split)
    return {corpus: list(dict.fromkeys(names)) for corpus, names in splits.items()}


def main() -> None:
    """Get what params.yaml asks for into data/raw/<corpus>/; files that are there and verified stay as they are.

    Anything else is removed, so that the folder depends on the settings alone and not on what was tried before; DVC's
    cache keeps it.
    """
    from pipeline.core import params

    settings = params.read()
    folders = {name: outside.read(settings, name) for name in ("corpus", "calibration")}
    states = {name: outside.state(name, [*filter(outside.there, read)]) for name, read in folders.items()}
    wanted = set()
    for name, splits in needed(settings).items():
        sources.download(name, settings.corpora[name], splits)
        wanted |= {file for split in splits for file in sources.archives(name, settings.corpora[name], split)}
    for name, state in states.items():
        outside.note(name, state)
    for path in sorted(sources.RAW.rglob("*"), reverse=True):  # a folder's contents come before the folder
        if path not in wanted and not (path.is_dir() and any(path.iterdir())):
            files.remove(path)


if __name__ == "__main__":
    stage.run(main)
