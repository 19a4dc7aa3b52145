"""Operator speed beside its peers: cases, contract checks, interleaved timing, reports."""
