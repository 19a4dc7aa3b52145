"""The demo's report: a loss curve, a grid of pictures and tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

GAP = 6


def plot_losses(
    training: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]], path: Path
) -> None:
    """Draws the last layer's losses and the evaluations' AP over the steps.

    Args:
        training: "train" records of a run's log.
        evaluations: its "eval" records.
        path: of the PNG file.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, precision = figure.subplots(1, 2)
    for name, title in (("loss_ce", "class"), ("loss_bbox", "box L1"), ("loss_giou", "1 - GIoU")):
        losses.plot([r["step"] for r in training], [r[name] for r in training], label=title)
    losses.set(title="losses of the last decoder layer", xlabel="step", yscale="log")
    for name in ("AP50", "AP"):
        precision.plot([r["step"] for r in evaluations], [r[name] for r in evaluations], "o-", label=name)
    precision.set(title="average precision on held-out images", xlabel="step", ylim=(0, 1))
    for axes in (losses, precision):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def picture_grid(pairs: Sequence[tuple[Image.Image, Image.Image]], across: int = 4) -> Image.Image:
    """Pairs of equally large pictures, ground truth beside prediction, `across` pairs a row."""
    width, height = pairs[0][0].size
    letters = max(12, height // 14)
    font = ImageFont.load_default(size=letters)
    header = 2 * GAP + letters
    columns, rows = min(across, len(pairs)), -(-len(pairs) // across)
    pair_width, row_height = 2 * width + 3 * GAP, height + GAP
    canvas = Image.new("RGB", (columns * pair_width + 2 * GAP, header + rows * row_height), "white")
    draw = ImageDraw.Draw(canvas)
    for column in range(columns):
        x = 2 * GAP + column * pair_width
        draw.text((x, GAP), "ground truth", font=font, fill="black")
        draw.text((x + width + GAP, GAP), "prediction", font=font, fill="black")
    for i, (truth, found) in enumerate(pairs):
        row, column = divmod(i, across)
        x, y = 2 * GAP + column * pair_width, header + row * row_height
        canvas.paste(truth, (x, y))
        canvas.paste(found, (x + width + GAP, y))
    return canvas


def write_report(
    path: Path,
    summary: Mapping[str, float],
    untrained: Mapping[str, float],
    benchmark: Mapping[str, Any],
    steps: int,
) -> None:
    """Writes the report beside `losses.png` and `predictions.png`.

    Args:
        path: of the Markdown file.
        summary: the trained model's twelve numbers, `seconds` and `seconds_training`.
        untrained: the untrained model's twelve numbers.
        benchmark: what `run_benchmarks` returned.
        steps: optimizer steps that were made.
    """
    machine = benchmark["machine"]
    lines = [
        "# DETR on drawn shapes",
        "",
        f"A small DETR, trained from random weights for {steps} steps in {summary['seconds_training']:.0f} s "
        f"({summary['seconds']:.0f} s in all) on {machine['cpu']}, {machine['torch_threads']} threads, "
        f"torch {machine['versions']['torch']}.",
        "",
        "## Average precision on held-out images",
        "",
        "| | untrained | trained |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {untrained[name]:.3f} | {summary[name]:.3f} |"
            for name in untrained
            # COCO's medium and large begin at 32 and 96 pixels: -1 means that there is none
            if untrained[name] >= 0
        ),
        "",
        "![losses and average precision](losses.png)",
        "",
        "## Predictions beside ground truth",
        "",
        "![predictions](predictions.png)",
        "",
        "## Operators",
        "",
        "Milliseconds, medians; ratio = peer time / ours, same threads.",
        "",
        "| operator | case | pass | threads | peer | ours | peer | ratio |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: |",
        *map(_speed_row, benchmark["rows"]),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _speed_row(row: Mapping[str, Any]) -> str:
    cells = [row["operator"], row["case"], row["pass"], str(row["threads"]), row["peer"]]
    if row["ratio"] is None:
        cells += ["", "", row.get("failed") or row.get("peer_failed") or row.get("left_out", "")]
    else:
        cells += [f"{row[key]:.3g}" if key in row else "" for key in ("ours_ms", "peer_ms")]
        cells.append(f"{row['ratio']:.1f}x")
    return "| " + " | ".join(cells) + " |"
