"""Download the corpus and the calibration speech as they are published, verified by checksum."""

import argparse

from pipeline import errors, params, sources


def needed(settings: params.Params) -> dict[str, list[str]]:
    """Name the splits to get, by corpus: those that are scored, and the one that calibrates."""
    splits = {settings.corpus: list(settings.corpora[settings.corpus].splits)}
    calibration = splits.setdefault(settings.calibration.corpus, [])
    if settings.calibration.split not in calibration:
        calibration.append(settings.calibration.split)
    return splits


def main() -> None:
    """Get what params.yaml asks for into data/raw/<corpus>/; files that are there and verified stay as they are."""
    settings = params.read()
    for name, splits in needed(settings).items():
        sources.download(name, settings.corpora[name], splits)
        for leftover in (sources.RAW / name).glob(".*.partial"):
            leftover.unlink()


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m pipeline.download",
        description=f"{__doc__} What to get stands in params.yaml: corpus, corpora, calibration. "
        "It writes to data/raw/ and goes on where an interrupted run stopped.",
    ).parse_args()
    with errors.stage("download"):
        main()
