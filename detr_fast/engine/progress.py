"""Progress bars that stay readable in a log file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from detr_fast.distributed import is_main

if TYPE_CHECKING:
    from tqdm import tqdm


def say(line: str, *, error: bool = False) -> None:
    """Writes a line without tearing a bar."""
    from tqdm import tqdm

    file = sys.stderr if error else sys.stdout
    if sys.stderr.isatty():
        tqdm.write(line, file=file)
    else:  # a log, which has no use for the bar after each line
        print(line, file=file, flush=True)


def progress(*args: Any, **options: Any) -> tqdm:
    """A tqdm bar of rank 0; redrawn four times a second on a terminal, every ten seconds elsewhere."""
    from tqdm import tqdm

    interval = 0.25 if sys.stderr.isatty() else 10.0
    return tqdm(*args, disable=not is_main(), leave=False, mininterval=interval, maxinterval=10.0, **options)
