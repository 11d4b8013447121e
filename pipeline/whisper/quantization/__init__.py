"""What quantization is made of: calibration speech, what the text depends on, rounding, the checkpoint written."""
