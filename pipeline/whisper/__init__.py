"""Whisper: its layers and weights, features, decoding, and the files that hold it."""

from pathlib import Path

BASELINE = Path("models/baseline")
"""The unquantized checkpoint in Hugging Face's layout, which `fetch` writes."""
