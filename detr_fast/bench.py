"""`detr-fast bench`: the benchmarks of a clone, which are not part of the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CLONE = Path(__file__).resolve().parents[1]


def why_not() -> str | None:
    """Why there is nothing to run beside this package, or None."""
    if (_CLONE / "benchmarks" / "__main__.py").is_file() and (_CLONE / "csrc").is_dir():
        return None
    return "benchmarks are part of the repository, not of the package: run `python -m benchmarks` in a clone"


def run_benchmarks(arguments: Sequence[str]) -> int:
    """Runs `python -m benchmarks ARGUMENTS` in a process of its own and returns its exit code.

    Raises:
        FileNotFoundError: where the package does not lie in a clone.
    """
    if reason := why_not():
        raise FileNotFoundError(reason)
    path = [str(_CLONE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    sys.stdout.flush()
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, env=environment, check=False).returncode
