"""Transcribe the calibration speech with the baseline: what its layers see calibrates static variants."""

from pipeline.core import stage


def main() -> None:
    """Write data/calibration.safetensors."""
    from tqdm import tqdm

    from pipeline.core import params
    from pipeline.speech import corpus
    from pipeline.whisper import BASELINE
    from pipeline.whisper.inference import decoding
    from pipeline.whisper.model import weights
    from pipeline.whisper.quantization import calibration

    settings = params.read()
    model = weights.load(BASELINE)
    vocabulary = decoding.Vocabulary.read(BASELINE, settings.decoding.language, settings.decoding.task)
    utterances = list(corpus.read(corpus.CALIBRATION))
    heard = [
        decoding.transcript(model, utterance, vocabulary)
        for utterance in tqdm(utterances, unit="utt", desc="calibration speech", disable=None)
    ]
    calibration.write([utterance.id for utterance in utterances], heard)
    print(f"{calibration.HEARD}: {len(utterances):,} utterances")


if __name__ == "__main__":
    stage.run(main)
