"""One rank of a torchrun job: torchrun -m tests.engine.run_ranks DIRECTORY."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from detr_fast.data import collate
from detr_fast.distributed import process_group, rank
from detr_fast.engine import Interrupted, evaluate
from tests.engine.tiny import dataset, detector_of, detr, trainer

CASES = ("unequal", "empty_rank", "accumulated")


def samples(directory: Path, case: str, rank: int) -> list[list[Any]]:
    """The micro-batches of a rank, the same whoever asks."""
    images = dataset(directory / "data", train=False)
    if case == "accumulated":
        return [[images[4 * rank], images[4 * rank + 1]], [images[4 * rank + 2]]]
    batch = [images[2 * rank], images[2 * rank + 1]]
    if case == "empty_rank" and rank == 1:
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        batch = [(image, {**target, **nothing}) for image, target in batch]
    return [batch]


def interrupted(directory: Path) -> tuple[int, int]:
    """The signal that ended a run, which one rank alone has got, and the steps that were done."""
    run = trainer(directory / "data", directory / "interrupted", log_every=2, epochs=5)
    step = run.train_step

    def signalled(batches: list[Any]) -> dict[str, Any]:
        if rank() == 1 and run.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batches)

    run.train_step = signalled  # type: ignore[method-assign]
    try:
        run.fit()
    except Interrupted as stopped:
        return stopped.number, run.progress.step
    return 0, run.progress.step


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with process_group(torch.device("cpu")):
        for case in CASES:
            run = trainer(directory / "data", directory / case, detr(dropout=0.0))
            terms = run.accumulate_gradients([collate(batch) for batch in samples(directory, case, rank())])
            gradients = {name: p.grad for name, p in run.model.named_parameters()}
            results[case] = {"gradients": gradients, "loss": terms["loss"]}
        validation = dataset(directory / "data", "val", train=False)
        run = trainer(
            directory / "data",
            directory / "run",
            evaluate=lambda model: evaluate(detector_of(model, validation), validation),
        )
        results["metrics"] = run.fit()
        results["weights"] = run.model.state_dict()
        results["interrupted"] = interrupted(directory)
        torch.save(results, directory / f"rank{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
