"""Integers known on the host, as an array on the device."""

from __future__ import annotations

import triton
import triton.language as tl

_VARYING = ("first", "count", *(f"v{i}" for i in range(16)))


@triton.jit(do_not_specialize=_VARYING)
def table_kernel(
    table_ptr, first, count,
    v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15,
):  # fmt: skip
    """table[first + i] = v_i where first + i < count."""
    i = tl.arange(0, 16)
    v = tl.where(i == 0, v0, v1)
    v = tl.where(i == 2, v2, tl.where(i == 3, v3, v))
    v = tl.where(i == 4, v4, tl.where(i == 5, v5, v))
    v = tl.where(i == 6, v6, tl.where(i == 7, v7, v))
    v = tl.where(i == 8, v8, tl.where(i == 9, v9, v))
    v = tl.where(i == 10, v10, tl.where(i == 11, v11, v))
    v = tl.where(i == 12, v12, tl.where(i == 13, v13, v))
    v = tl.where(i == 14, v14, tl.where(i == 15, v15, v))
    tl.store(table_ptr + first + i, v.to(tl.int64), first + i < count)
