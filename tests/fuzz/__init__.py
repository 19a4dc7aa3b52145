"""Fuzz targets: a few seconds each in the test suite, as long as one likes by hand.

`python -m tests.fuzz.annotations --seconds 600` prints what it found; `--seed S --case N` repeats one case.
"""
