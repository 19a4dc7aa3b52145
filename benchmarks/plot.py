"""Draws the README's chart of speed-ups from a results JSON.

    python -m benchmarks plot benchmarks/results/NAME.json --out docs/speed.png

It reads what `detr-fast bench --json` writes and what `pytest benchmarks/` saves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

matplotlib.use("Agg")

Row = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
GREY = "#555555"

# (panel title, operator, passes, peers, cases in order; a pass adds its name to the label)
PANELS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "Multi-scale deformable attention",
        "ms_deform_attn",
        ("forward", "forward+backward"),
        ("grid_sample path", "torch-ms-deform-attn"),
        ("encoder", "Mask2Former", "decoder", "RF-DETR"),
    ),
    (
        "Hungarian matcher, all decoder layers",
        "matcher",
        ("forward",),
        ("facebookresearch/detr",),
        ("B=16 Q=100 L=6", "B=16 Q=300 L=6", "B=4 Q=900 L=7"),
    ),
    (
        "Criterion with matching and gradients",
        "criterion",
        ("forward+backward",),
        ("facebookresearch/detr",),
        ("B=16 Q=100 L=6", "B=16 Q=300 L=6", "B=4 Q=900 L=7"),
    ),
    (
        "Mask matching costs",
        "mask_match_cost",
        ("forward",),
        ("facebookresearch/Mask2Former", "batched PyTorch"),
        ("Mask2Former B=4 T~14", "Mask2Former B=1 T=100", "MaskFormer B=4 T~14"),
    ),
    (
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
        return report["rows"]
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in report["benchmarks"]:
        groups.setdefault(entry["group"], {})[entry["extra_info"]["contender"]] = entry
    rows = []
    for contenders in groups.values():
        for name, entry in contenders.items():
            if name.startswith("detr_fast"):
                continue
            _, comma, form = name.partition(", ")
            ours = contenders.get(f"detr_fast, {form}" if comma else "detr_fast") or contenders["detr_fast"]
            ratio = entry["stats"]["median"] / ours["stats"]["median"]
            rows.append({**entry["extra_info"], "peer": name, "ratio": ratio})
    return rows


def read_machine(report: dict[str, Any]) -> dict[str, Any]:
    """Where the report was measured."""
    return report["machine"] if "machine" in report else report["machine_info"]["detr_fast"]


def draw(report: dict[str, Any], threads: int, out: Path) -> None:
    """Horizontal bars on a logarithmic axis, one panel an operator, the ratio written beside each bar."""
    rows = {
        (row["operator"], row["case"], row["pass"], row["peer"]): row["ratio"]
        for row in read_rows(report)
        if row["threads"] == threads and row["ratio"] is not None
    }
    panels = [(panel, bars) for panel in PANELS if (bars := _bars(panel, rows))]
    if not panels:
        raise SystemExit(f"no rows for {threads} threads to draw")
    heights = [sum(len(ratios) for _, ratios in bars) + 0.6 * len(bars) + 2.2 for _, bars in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 0.18 * sum(heights) + 0.5), height_ratios=heights, squeeze=False
    )
    ratios = [ratio for _, bars in panels for _, of_peers in bars for ratio in of_peers.values()]
    limits = (0.9 * min(1.0, *ratios), 1.35 * max(ratios))
    for axis, (panel, bars) in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, panel[0], panel[3], bars, limits)
    machine = read_machine(report)
    cores = "1 thread" if threads == 1 else f"{threads} threads"
    axes[-1, 0].set_xlabel(
        f"times faster than the peer, both on {cores} (log scale); {machine['cpu']}, {machine['isa']}, "
        f"torch {machine['versions']['torch']}, {machine['date'][:10]}",
        fontsize=8,
        color=GREY,
    )
    figure.tight_layout(h_pad=0.8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160)
    plt.close(figure)


def _bars(panel: Any, rows: dict[tuple[str, str, str, str], float]) -> list[tuple[str, dict[str, float]]]:
    """(label, ratio of each peer) for each case and pass that was measured."""
    _, operator, passes, peers, cases = panel
    bars = []
    for case in cases:
        for pass_ in passes:
            ratios = {
                peer: rows[operator, case, pass_, peer]
                for peer in peers
                if (operator, case, pass_, peer) in rows
            }
            if ratios:
                bars.append((f"{case}, {pass_.replace('+', ' + ')}" if len(passes) > 1 else case, ratios))
    return bars


def _draw_panel(
    axis: Axes,
    title: str,
    peers: tuple[str, ...],
    bars: list[tuple[str, dict[str, float]]],
    limits: tuple[float, float],
) -> None:
    y, ticks = 0.0, []
    for label, ratios in bars:
        ticks.append((y + (len(ratios) - 1) / 2, label))
        for peer, ratio in ratios.items():
            axis.barh(y, ratio - 1, left=1, height=0.86, color=COLOURS[peers.index(peer)])
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
    axis.set_yticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=8.5)
    axis.set_ylim(y - 0.7, -0.7)
    axis.tick_params(length=0)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    shown = [peer for peer in peers if any(peer in ratios for _, ratios in bars)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[peers.index(peer)]) for peer in shown]
    axis.legend(
        handles,
        [f"against {peer.partition(',')[0]}" for peer in shown],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(shown),
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
        handlelength=1.2,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, help="a JSON written by `detr-fast bench` or `pytest benchmarks/`"
    )
    parser.add_argument("--threads", type=int, default=2, help="which rows to draw")
    parser.add_argument("--out", type=Path, default=Path("docs/speed.png"))
    options = parser.parse_args(arguments)
    draw(json.loads(options.results.read_text()), options.threads, options.out)
    return 0
