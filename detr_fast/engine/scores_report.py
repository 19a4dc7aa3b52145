"""What stands behind a model's scores, as tables and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detr_fast.tasks import Scores, Task

MOST_NAMES = 40  # of rows beside which names can be read


def write_scores_report(scores: Scores, task: Task, folder: Path) -> None:
    """Writes `scores.md`, and `precision-recall.png` and `confusion.png` where the task has them."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Scores", f"```text\n{task.format(scores.metrics)}\n```"]
    if scores.classes:
        columns = next(iter(scores.classes.values()))
        ranked = sorted(scores.classes.items(), key=lambda row: -next(iter(row[1].values())))
        rows = [f"| class | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        rows += [
            f"| {name.replace('|', ' ')} | {' | '.join(f'{value:.3f}' for value in numbers.values())} |"
            for name, numbers in ranked
        ]
        parts.append("\n".join(rows))
    if scores.curves:
        _plot_curves(scores, folder / "precision-recall.png")
        parts.append("Mean over the classes that occur:\n\n![Precision by recall](precision-recall.png)")
    if scores.confusion is not None and scores.confusion.any():
        _plot_confusion(scores, folder / "confusion.png")
        parts.append("Share of each true class:\n\n![Confusion of classes](confusion.png)")
    (folder / "scores.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _plot_curves(scores: Scores, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for title, precision in scores.curves.items():
        axes.plot(np.linspace(0, 1, len(precision)), precision, label=f"{title}: {precision.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(title="mean")
    figure.savefig(path, dpi=120)


def _plot_confusion(scores: Scores, path: Path) -> None:
    """Rows in shares, of the classes that occur; in the row "none" is what was found where nothing is."""
    from matplotlib.figure import Figure

    assert scores.confusion is not None
    names = np.array([*scores.confused, "none"])
    occurs = (scores.confusion.sum(0) + scores.confusion.sum(1)) > 0
    counts, names = scores.confusion[np.ix_(occurs, occurs)], names[occurs]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(4 + 0.22 * len(names), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, shrink=0.8)
    figure.savefig(path, dpi=120)
