"""Integers known on the host, as an array on the device."""

from __future__ import annotations

import triton
import triton.language as tl

_VARYING = ("first", "count", *(f"v{i}" for i in range(32)))


@triton.jit(do_not_specialize=_VARYING)
def table_kernel(
    table_ptr, first, count,
    v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15,
    v16, v17, v18, v19, v20, v21, v22, v23, v24, v25, v26, v27, v28, v29, v30, v31,
):  # fmt: skip
    """table[first + i] = v_i where first + i < count."""
    i = tl.arange(0, 32)
    v = tl.where(i == 0, v0, v1)
    v = tl.where(i == 2, v2, tl.where(i == 3, v3, v))
    v = tl.where(i == 4, v4, tl.where(i == 5, v5, v))
    v = tl.where(i == 6, v6, tl.where(i == 7, v7, v))
    v = tl.where(i == 8, v8, tl.where(i == 9, v9, v))
    v = tl.where(i == 10, v10, tl.where(i == 11, v11, v))
    v = tl.where(i == 12, v12, tl.where(i == 13, v13, v))
    v = tl.where(i == 14, v14, tl.where(i == 15, v15, v))
    v = tl.where(i == 16, v16, tl.where(i == 17, v17, v))
    v = tl.where(i == 18, v18, tl.where(i == 19, v19, v))
    v = tl.where(i == 20, v20, tl.where(i == 21, v21, v))
    v = tl.where(i == 22, v22, tl.where(i == 23, v23, v))
    v = tl.where(i == 24, v24, tl.where(i == 25, v25, v))
    v = tl.where(i == 26, v26, tl.where(i == 27, v27, v))
    v = tl.where(i == 28, v28, tl.where(i == 29, v29, v))
    v = tl.where(i == 30, v30, tl.where(i == 31, v31, v))
    tl.store(table_ptr + first + i, v.to(tl.int64), first + i < count)
