"""Draws the README's chart of speed-ups from a results JSON.

    python -m benchmarks plot benchmarks/results/NAME.json --out docs/speed.png

It reads what `python -m benchmarks --json` writes and what `pytest benchmarks/` saves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.suite import Row

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
GREY = "#555555"


class Panel(NamedTuple):
    """Cases in order; where there are several passes, each adds its name to the label."""

    title: str
    operator: str
    passes: tuple[str, ...]
    peers: tuple[str, ...]
    cases: tuple[str, ...]

    def bars(self, rows: Mapping[Any, float]) -> list[tuple[str, dict[str, float]]]:
        """(label, ratio of each peer) for each case and pass that was measured."""
        bars = []
        for case in self.cases:
            for pass_ in self.passes:
                keys = {peer: (self.operator, case, pass_, peer) for peer in self.peers}
                label = f"{case}, {pass_.replace('+', ' + ')}" if len(self.passes) > 1 else case
                bars.append((label, {peer: rows[key] for peer, key in keys.items() if key in rows}))
        return [(label, ratios) for label, ratios in bars if ratios]


_STEPS = ("B=16 Q=100 L=6", "B=16 Q=300 L=6", "B=4 Q=900 L=7")
_DETR, _MASK2FORMER = ("facebookresearch/detr",), ("facebookresearch/Mask2Former", "batched PyTorch")
_MASKS = ("Mask2Former B=4 T~14", "Mask2Former B=1 T=100", "MaskFormer B=4 T~14")
PANELS = (
    Panel(
        "Multi-scale deformable attention",
        "ms_deform_attn",
        ("forward", "forward+backward"),
        ("grid_sample path", "indexing, torch.compile", "torch-ms-deform-attn"),
        ("encoder", "Mask2Former", "decoder", "RF-DETR"),
    ),
    Panel("Hungarian matcher, all decoder layers", "matcher", ("forward",), _DETR, _STEPS),
    Panel("Criterion with matching and gradients", "criterion", ("forward+backward",), _DETR, _STEPS),
    Panel("Mask matching costs", "mask_match_cost", ("forward",), _MASK2FORMER, _MASKS),
    Panel(
        "Linear assignment, 16 problems",
        "linear_assignment",
        ("forward",),
        ("scipy, (Q, T) matrices", "py-lap-solver", "lapx"),
        ("100x7 clustered", "300x100 clustered", "900x300 early"),
    ),
)


def read_rows(report: dict[str, Any]) -> list[Row]:
    """The rows of a report; those of pytest-benchmark are paired up within their groups."""
    if "rows" in report:
        rows: list[Row] = report["rows"]
        return rows
    groups: dict[str, dict[str, Any]] = {}
    for entry in report["benchmarks"]:
        groups.setdefault(entry["group"], {})[entry["extra_info"]["contender"]] = entry
    rows = []
    for contenders in groups.values():
        for name, entry in contenders.items():
            _, comma, form = name.partition(", ")
            ours = contenders.get(f"detr_fast{comma}{form}") or contenders["detr_fast"]
            if not name.startswith("detr_fast"):
                ratio = entry["stats"]["median"] / ours["stats"]["median"]
                rows.append({**entry["extra_info"], "peer": name, "ratio": ratio})
    return rows


def draw(report: dict[str, Any], threads: int, out: Path) -> None:
    """Horizontal bars on a logarithmic axis, one panel an operator, the ratio written beside each bar."""
    rows = {
        (row["operator"], row["case"], row["pass"], row["peer"]): row["ratio"]
        for row in read_rows(report)
        if row["threads"] == threads and row["ratio"] is not None
    }
    panels = [(panel, bars) for panel in PANELS if (bars := panel.bars(rows))]
    if not panels:
        raise SystemExit(f"no rows for {threads} threads to draw")
    heights = [sum(len(ratios) for _, ratios in bars) + 0.6 * len(bars) + 2.2 for _, bars in panels]
    figure = Figure(figsize=(9, 0.18 * sum(heights) + 0.5))
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    ratios = [ratio for _, bars in panels for _, of_peers in bars for ratio in of_peers.values()]
    for axis, (panel, bars) in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, bars, (0.9 * min(1.0, *ratios), 1.35 * max(ratios)))
    machine = report["machine"] if "machine" in report else report["machine_info"]["detr_fast"]
    cores = "1 thread" if threads == 1 else f"{threads} threads"
    axes[-1].set_xlabel(
        f"times faster than the peer, both on {cores} (log scale); {machine['cpu']}, {machine['isa']}, "
        f"torch {machine['versions']['torch']}, {machine['date'][:10]}",
        fontsize=8,
        color=GREY,
    )
    figure.tight_layout(h_pad=0.8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160)


def _draw_panel(
    axis: Axes, panel: Panel, bars: list[tuple[str, dict[str, float]]], limits: tuple[float, float]
) -> None:
    colours = dict(zip(panel.peers, COLOURS, strict=False))
    y, ticks = 0.0, []
    for _, ratios in bars:
        ticks.append(y + (len(ratios) - 1) / 2)
        for peer, ratio in ratios.items():
            axis.barh(y, ratio - 1, left=1, height=0.86, color=colours[peer])
            text = f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"
            axis.text(max(ratio, 1) * 1.04, y, text, va="center", fontsize=8)
            y += 1
        y += 0.6
    axis.axvline(1, color=GREY, linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xlim(limits)
    ticks_at = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000) if limits[0] <= tick <= limits[1]]
    axis.set_xticks(ticks_at, [f"{tick:g}x" for tick in ticks_at], fontsize=8)
    axis.set_xticks([], minor=True)
    axis.set_yticks(ticks, [label for label, _ in bars], fontsize=8.5)
    axis.set_ylim(y - 0.7, -0.7)
    axis.tick_params(length=0)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)
    axis.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    shown = [peer for peer in panel.peers if any(peer in ratios for _, ratios in bars)]
    handles = [
        Patch(color=colours[peer], label=f"against {peer.removesuffix(', (Q, T) matrices')}")
        for peer in shown
    ]
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2}
    axis.legend(handles=handles, ncols=len(shown), frameon=False, fontsize=8, handlelength=1.2, **place)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a JSON of `python -m benchmarks` or `pytest benchmarks/`")
    parser.add_argument("--threads", type=int, default=2, help="which rows to draw")
    parser.add_argument("--out", type=Path, default=Path("docs/speed.png"))
    options = parser.parse_args(arguments)
    draw(json.loads(options.results.read_text()), options.threads, options.out)
    return 0
