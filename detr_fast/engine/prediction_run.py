"""A whole run of predictions: from what a person names to a folder of results, in one process or several."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from detr_fast.distributed import gather, is_main, process_group, rank, world_size
from detr_fast.engine.detector import Detector
from detr_fast.engine.predict import Pictures, predict_sources
from detr_fast.engine.progress import say
from detr_fast.engine.records import FORMATS, RecordFile, begin, coco_image_ids, finish, read_done
from detr_fast.engine.sources import find_sources
from detr_fast.tasks import Record

PICTURE_FORMATS = ("overlays", "label-maps")
ALL_FORMATS = ("jsonl", *FORMATS, *PICTURE_FORMATS)
DEFAULT_FORMATS = ("json", *PICTURE_FORMATS)
PATIENCE = timedelta(days=7)  # of processes that are done, for the slowest one


def run_predictions(
    load: Callable[[], Detector],
    images: Sequence[str | Path],
    output: Path,
    *,
    formats: Iterable[str] = DEFAULT_FORMATS,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    recursive: bool = False,
    attention: bool = False,
    coco_annotations: Path | None = None,
    threshold: float | None = None,
    **options: Any,
) -> int:
    """Predicts images, videos and folders of them into a folder; under torchrun each process does its share.

    Records are written as they come, into `predictions.jsonl`; a run that was stopped goes on with `resume`.

    Args:
        load: gives the detector.
        images: see `find_sources`.
        output: folder, made where it is missing.
        formats: what to write besides: of `ALL_FORMATS`.
        settings: what a run that is resumed must have in common with this one, besides the threshold.
        resume: leave out what is done.
        recursive: search folders in folders.
        attention: draw that, too.
        coco_annotations: file that tells the image ids for `coco`.
        threshold: see `predict_image`.
        options: those of `predict_sources`.

    Returns:
        How many files could not be used, to the first process; each has been named on standard error.

    Raises:
        ValueError: as for `find_sources`, `predict_sources`, `read_done`, or an unknown format.
    """
    wanted = check_formats(formats)
    image_ids = None if coco_annotations is None else coco_image_ids(coco_annotations)
    sources = find_sources(images, recursive=recursive, leave_out=output)
    with process_group(torch.device("cpu"), PATIENCE):
        detector = load()
        if "coco" in wanted and detector.task_name in ("panoptic", "semantic"):
            wanted.add("label-maps")
        pictures = Pictures("overlays" in wanted, "label-maps" in wanted, attention)
        failures: list[str] = []

        def failed(file: str, why: str) -> None:
            failures.append(file)
            say(f"error: {why}", error=True)

        about = {
            **(settings or {}),
            "task": detector.task_name,
            "threshold": threshold,
            "pictures": [name for name in PICTURE_FORMATS if name in wanted] + ["attention"] * attention,
        }
        done = gather(read_done(output, about, resume=resume) if is_main() else None)[0]
        records = predict_sources(
            detector,
            sources,
            output,
            threshold=threshold,
            pictures=pictures,
            done=done,
            shard=(rank(), world_size()),
            failed=failed,
            **options,
        )
        if is_main():
            begin(output, about, resume=resume)
        gather(None)  # nobody writes before
        started, count = time.perf_counter(), 0
        with RecordFile(output, rank(), world_size()) as file:
            for record in records:
                file.write(record)
                say(summary(record, detector.task.records_key))
                count += 1
        rate = count / max(time.perf_counter() - started, 1e-9)
        counts, rates, failed_counts = zip(*gather((count, rate, len(failures))), strict=True)
        if is_main():
            finish(output)
            for name in FORMATS.keys() & wanted:
                FORMATS[name](output, detector.task_name, detector.categories, image_ids or {})
            say(f"{sum(counts)} images, {sum(rates):.2f} images/s")
            say(f"written: {output}")
            if sum(failed_counts):
                say(f"{sum(failed_counts)} of {len(sources)} files could not be used", error=True)
        return sum(failed_counts) if is_main() else 0


def print_predictions(
    load: Callable[[], Detector], images: Sequence[str | Path], *, recursive: bool = False, **options: Any
) -> int:
    """Writes one JSON line an image to standard output, and no files; otherwise as `run_predictions`."""
    failures = []

    def failed(file: str, why: str) -> None:
        failures.append(file)
        say(f"error: {why}", error=True)

    sources = find_sources(images, recursive=recursive)
    with process_group(torch.device("cpu"), PATIENCE):
        share = (rank(), world_size())
        for record in predict_sources(load(), sources, shard=share, failed=failed, **options):
            say(json.dumps(record))
    return len(failures)


def check_formats(formats: Iterable[str]) -> set[str]:
    """The formats; ValueError for an unknown one."""
    wanted = set(formats)
    if unknown := sorted(wanted - set(ALL_FORMATS)):
        raise ValueError(f"format: expected {', '.join(ALL_FORMATS)}; got {unknown[0]!r}")
    return wanted


def summary(record: Record, key: str) -> str:
    """What was found, as a person reads it."""
    names = [f"{r['name']} {r['score']:.2f}" if "score" in r else r["name"] for r in record[key]]
    place = f" frame {record['frame']}" if "frame" in record else ""
    return f"{record['file']}{place}: {', '.join(names) or 'nothing found'}"
