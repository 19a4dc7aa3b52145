"""What a run leaves behind to be read: one JSON object a line, TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """Appends records to `log.jsonl` and the numbers among them to TensorBoard.

    Args:
        directory: the run's folder.
        after_step: drop what an interrupted run wrote after this step, because it happens again; None
            starts a new log.
    """

    def __init__(self, directory: Path, after_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = directory / "log.jsonl"
        kept = [] if after_step is None or not path.exists() else _up_to(path, after_step)
        path.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        purge = None if after_step is None else after_step + 1
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=purge)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Records `values` under `kind` ("train" or "eval") at a step."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Writes what is pending and closes the files."""
        self._file.close()
        self._events.close()


def read_log(directory: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind from a run's `log.jsonl`."""
    lines = (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def _up_to(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill cut off
        if record["step"] <= step:
            kept.append(line)
    return kept
