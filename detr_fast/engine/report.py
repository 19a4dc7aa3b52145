"""The demo's report: a loss curve, a grid of pictures and tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from detr_fast.machine import describe_machine

GAP = 6


@dataclass(frozen=True)
class Learnt:
    """What a model of the demo learnt.

    Args:
        about: what its numbers are.
        name: of its files, `<name>.png`, `<name>-losses.png` and, where something was found,
            `<name>-attention.png`.
    """

    title: str
    about: str
    name: str
    untrained: Mapping[str, float]
    trained: Mapping[str, float]
    steps: int
    seconds: float
    attention: bool


def plot_losses(
    training: Sequence[Mapping[str, float]],
    evaluations: Sequence[Mapping[str, float]],
    losses: Mapping[str, str],
    scores: Sequence[str],
    path: Path,
) -> None:
    """Draws the last layer's losses and the evaluations' scores over the steps.

    Args:
        training: "train" records of a run's log.
        evaluations: its "eval" records.
        losses: which terms, with their titles.
        scores: which numbers.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    terms, numbers = figure.subplots(1, 2)
    for name, title in losses.items():
        terms.plot([r["step"] for r in training], [r[name] for r in training], label=title)
    terms.set(title="losses of the last decoder layer", xlabel="step", yscale="log")
    for name in scores:
        numbers.plot([r["step"] for r in evaluations], [r[name] for r in evaluations], "o-", label=name)
    numbers.set(title="scores on held-out images", xlabel="step", ylim=(0, 1))
    for axes in (terms, numbers):
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
    path: Path, learnt: Sequence[Learnt], rows: Sequence[Mapping[str, Any]], seconds: float
) -> None:
    """Writes the report beside the pictures.

    Args:
        path: of the Markdown file.
        learnt: the models.
        rows: of the benchmark; may be empty.
        seconds: of the whole demo.
    """
    machine = describe_machine()
    lines = [
        "# Models of the DETR family on drawn shapes",
        "",
        f"Small models, trained from random weights on {machine['cpu']}, {machine['torch_threads']} threads, "
        f"torch {machine['versions']['torch']}; {seconds:.0f} s in all.",
        "",
        *(line for one in learnt for line in _model_lines(one)),
        "## Operators",
        "",
        "Milliseconds, medians; ratio = peer time / ours, same threads.",
        "",
        "| operator | case | pass | threads | peer | ours | peer | ratio |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: |",
        *map(_speed_row, rows),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _model_lines(one: Learnt) -> list[str]:
    pictures = [
        f"![losses and scores]({one.name}-losses.png)",
        "",
        "Ground truth beside predictions:",
        "",
        f"![predictions]({one.name}.png)",
        "",
    ]
    if one.attention:
        pictures += [
            "What queries found beside where they looked:",
            "",
            f"![attention]({one.name}-attention.png)",
            "",
        ]
    return [
        f"## {one.title}",
        "",
        f"{one.steps} steps; {one.seconds:.0f} s with evaluation. {one.about}, on held-out images:",
        "",
        "| | untrained | trained |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {one.untrained[name]:.3f} | {one.trained[name]:.3f} |"
            for name in one.untrained
            # COCO's medium and large begin at 32 and 96 pixels: -1 means that there is none
            if one.untrained[name] >= 0
        ),
        "",
        *pictures,
    ]


def _speed_row(row: Mapping[str, Any]) -> str:
    cells = [row["operator"], row["case"], row["pass"], str(row["threads"]), row["peer"]]
    if row["ratio"] is None:
        cells += ["", "", row.get("failed") or row.get("peer_failed") or row.get("left_out", "")]
    else:
        cells += [f"{row[key]:.3g}" if key in row else "" for key in ("ours_ms", "peer_ms")]
        cells.append(f"{row['ratio']:.1f}x")
    return "| " + " | ".join(cells) + " |"
