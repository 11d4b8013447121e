"""The layouts in which Whisper is published, read and turned into one: Hugging Face's."""
