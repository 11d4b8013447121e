"""The pipeline: a module is a stage, or serves several."""

import sys

# Python 3.11 may write half of a bytecode file to a full disk, and fails to read it ever after (CPython's gh-126606).
# To compile these few modules takes 10 ms of a stage.
sys.dont_write_bytecode = True
