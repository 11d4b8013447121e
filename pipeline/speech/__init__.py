"""Speech: where recordings come from, and the prepared corpora that the stages read."""
