"""A folder of photographs through a detector on Ray Data, on one machine or a cluster.

python examples/predict_on_ray.py best.pt photos predictions --workers 2      (pip install "ray[data]")

Each worker loads the detector once and answers for many files; one that cannot be used has an "error" in
place of its records. Checkpoint and photographs must be where all machines see them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ray
import ray.data

from detr_fast import Detector
from detr_fast.data import ImageError
from detr_fast.engine.sources import find_sources


class Predict:
    """A worker."""

    def __init__(self, checkpoint: str, threshold: float | None) -> None:
        self.detector = Detector.load(checkpoint, threads=1)
        self.threshold = threshold

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            result = self.detector(row["file"], self.threshold)
        except (ImageError, OSError) as error:
            return {"file": row["file"], "records": "", "error": str(error)}
        return {"file": row["file"], "records": json.dumps(result.records), "error": ""}


def predict(
    checkpoint: Path, files: list[Path], output: Path, *, workers: int, threshold: float | None = None
) -> None:
    """Writes JSON lines of {"file", "records", "error"} into a folder."""
    rows = ray.data.from_items([{"file": str(file.resolve())} for file in files])
    found = rows.map(
        Predict,
        fn_constructor_args=(str(checkpoint.resolve()), threshold),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    found.write_json(str(output.resolve()))


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    files = [Path(source.file) for source in find_sources([options.folder], recursive=True)]
    predict(options.checkpoint, files, options.output, workers=options.workers)


if __name__ == "__main__":
    main()
