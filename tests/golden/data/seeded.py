"""Deterministic stand-in weights and inputs for the golden cases.

A golden case stores no weights. Both sides fill a model from the *names and shapes* of its
state dict, so a case stays a few hundred kilobytes and a wrong key name is caught at once.
`RandomState` streams are frozen by NumPy's compatibility policy.
"""

from __future__ import annotations

import zlib

import numpy as np

EMBEDDING_TABLES = ("query_embed", "query_feat", "row_embed", "col_embed", "level_embed")


def seeded_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values for the entry called `name`, fixed by the name alone; float32 of `shape`."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if leaf == "running_mean":
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "weight" and len(shape) == 1:  # normalisation scales
        return (1.0 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if leaf in ("bias", "in_proj_bias"):
        scale = 1.0 if "sampling_offsets" in name else 0.05
        return (scale * rng.standard_normal(shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else max(1, shape[0] if shape else 1)
    if any(table in name for table in EMBEDDING_TABLES):
        fan_in = 1  # embedding tables: unit variance
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def seeded_state_dict(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """`{name: array}` for a `{name: shape}` mapping, such as a case's `state_dict_shapes`."""
    return {name: seeded_array(name, tuple(shape)) for name, shape in shapes.items()}


def seeded_image(name: str, height: int, width: int) -> np.ndarray:
    """A normalised image, float32 (3, height, width), values roughly N(0, 1) with smooth structure."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    coarse = rng.standard_normal((3, (height + 7) // 8, (width + 7) // 8))
    return np.kron(coarse, np.ones((1, 8, 8)))[:, :height, :width].astype(np.float32)
