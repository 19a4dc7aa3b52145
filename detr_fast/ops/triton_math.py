"""Device functions that kernels of several operators call."""

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def power(base, exponent, SQUARE: tl.constexpr):
    """base^exponent for base >= 0; SQUARE: the exponent is 2."""
    if SQUARE:
        return base * base
    else:
        return tl.exp(exponent * tl.log(tl.maximum(base, TINY)))
