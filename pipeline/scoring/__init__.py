"""Counts of errors: texts made alike, words compared, rates with intervals and tests."""
