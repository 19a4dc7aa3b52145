"""`detr-fast` whose rank 1 is killed once: torchrun -m tests.engine.run_killed MARKER ARGUMENTS...

The kill comes before the fourth step where MARKER does not exist yet; "none" kills nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from detr_fast import cli
from detr_fast.distributed import rank
from detr_fast.engine import Trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    marker = Path(sys.argv.pop(1))
    step = Trainer.train_step

    def killed(trainer: Trainer, batches: list[Any]) -> Any:
        if rank() == 1 and trainer.progress.step == 3 and marker.name != "none" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, batches)

    Trainer.train_step = killed  # type: ignore[method-assign]
    cli.main()
