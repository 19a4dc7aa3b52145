"""Whole-model inference on the CPU beside transformers' models with the same weights.

    python -m benchmarks.models [--size H W] [--threads N] [--repeats N] [--json FILE]

prints a line a model and where our time goes, and writes the rows with the machine (default:
benchmarks/results/models.json). Weights are random; sampling points spread over a few pixels, as trained
ones do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.peers.models import (
    DEFORMABLE_DETR_R50,
    MASK2FORMER_R50,
    our_forward,
    our_model,
    their_forward,
)
from detr_fast.machine import describe_machine
from detr_fast.models import DeformableDETR, deformable_attention

RESULTS = Path(__file__).parent / "results"
GOALS = {DEFORMABLE_DETR_R50: 3.0, MASK2FORMER_R50: 2.5}


def measure(name: str, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """One row: medians of alternating runs, the largest difference of the outputs, shares of our time."""
    torch.manual_seed(0)
    model, pixels = our_model(name), torch.randn(1, 3, *size)
    ours, theirs = our_forward(model), their_forward(name, model)
    with torch.inference_mode():
        differences = [
            float((a - b).abs().max() / b.abs().max())
            for a, b in zip(ours(pixels), theirs(pixels), strict=True)
        ]
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(repeats):
            for who, call in (("ours", ours), ("peer", theirs)):
                started = time.perf_counter()
                call(pixels)
                seconds[who].append(time.perf_counter() - started)
        spent: Counter[str] = Counter()
        with _timed(model, spent):
            started = time.perf_counter()
            ours(pixels)
            total = time.perf_counter() - started
    ours_s, peer_s = (sorted(seconds[who])[repeats // 2] for who in ("ours", "peer"))
    shares = {part: round(s / total, 3) for part, s in spent.items()}
    return {
        "model": name,
        "size": list(size),
        "threads": torch.get_num_threads(),
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": peer_s / ours_s,
        "goal": GOALS[name],
        "largest_difference": max(differences),
        "shares_of_ours": {**shares, "rest": round(1 - sum(shares.values()), 3)},
    }


@contextmanager
def _timed(model: nn.Module, spent: Counter[str]) -> Iterator[None]:
    """Adds up the seconds in the operator, in the backbone and in the rest of the attention modules."""
    operator = deformable_attention.ms_deform_attn_fused

    def timed_operator(*args: Any, **kwargs: Any) -> Tensor:
        started = time.perf_counter()
        result = operator(*args, **kwargs)
        spent["deformable attention operator"] += time.perf_counter() - started
        return result

    backbone = model.backbone[0] if isinstance(model, DeformableDETR) else model.backbone
    started: list[float] = []
    hooks = [
        backbone.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        backbone.register_forward_hook(
            lambda *_: spent.update({"backbone": time.perf_counter() - started.pop()})  # type: ignore[dict-item]
        ),
    ]
    try:
        with patch.object(deformable_attention, "ms_deform_attn_fused", timed_operator):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "models.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for name in GOALS:
        row = measure(name, tuple(options.size), options.repeats)
        rows.append(row)
        shares = ", ".join(f"{part} {share:.0%}" for part, share in row["shares_of_ours"].items())
        print(
            f"{name}: ours {row['ours_s']:.2f} s, transformers {row['peer_s']:.2f} s, {row['ratio']:.2f}x "
            f"(goal {row['goal']}x); outputs differ by {row['largest_difference']:.1e}; ours: {shares}"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"rows": rows, "machine": describe_machine()}, indent=1) + "\n")
    print(f"written: {options.json}")


if __name__ == "__main__":
    main()
