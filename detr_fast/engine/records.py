"""The records of a run of predictions on disk: one JSON object a line as they come, other formats from those.

While a run goes on its lines are in `predictions*.jsonl.part`, one file a process; in the end they become
`predictions.jsonl`, and from it what else is wanted. None of this holds more than one record in memory.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from detr_fast.data.coco_json import get, read_json
from detr_fast.data.images import load_pixels
from detr_fast.engine.results import SemanticResult
from detr_fast.tasks import TASKS, Categories, Record

LINES = "predictions.jsonl"
SETTINGS = "predictions.settings.json"
COLUMNS = ("file", "frame", "label", "category_id", "name", "score", "x0", "y0", "x1", "y1", "area")

_BEGINNING = re.compile(rb'\{"file": ("(?:[^"\\]|\\.)*"), (?:"frame": (\d+))?')


class RecordFile:
    """The lines that one process adds; records that were there before stay.

    Args:
        folder: of the results, made where it is missing.
        rank: of the process.
        ranks: how many there are.
    """

    def __init__(self, folder: Path, rank: int = 0, ranks: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = LINES if ranks == 1 else f"predictions-{rank}-of-{ranks}.jsonl"
        self._file = (folder / f"{name}.part").open("ab")

    def write(self, record: Record) -> None:
        """Adds one line, which a kill does not take back."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_done(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> dict[str, set[int]]:
    """What earlier runs into a folder did: each file, of videos with the frames. Nothing is changed.

    Args:
        folder: of the results.
        settings: what results depend on.
        resume: whether to go on with what is there.

    Raises:
        ValueError: an unfinished run is there and `resume` is not set, or it had other settings, or a damaged
            line, which the message names.
    """
    parts = _parts(folder)
    if not resume:
        if any(part.stat().st_size for part in parts):
            raise ValueError(
                f"output: {parts[0]} is of an unfinished run; go on with --resume, or delete it to start anew"
            )
        return {}
    if (folder / SETTINGS).is_file():
        earlier = read_json(folder / SETTINGS)
        for name, value in settings.items():
            if get(earlier, name, None) != value:
                raise ValueError(f"resume: {name} was {get(earlier, name, None)!r}; got {value!r}")
    done: dict[str, set[int]] = {}
    for part in parts or [path for path in [folder / LINES] if path.is_file()]:
        for number, line in enumerate(_lines(part), start=1):
            found = _BEGINNING.match(line)
            if found is None and line.endswith(b"\n"):
                raise ValueError(f"{part}: line {number}: expected a record; got {line[:40]!r}")
            if found is None or not line.endswith(b"\n"):
                continue  # what a kill left of the last line
            frames = done.setdefault(json.loads(found[1]), set())
            if found[2]:
                frames.add(int(found[2]))
    return done


def begin(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Makes a folder ready for the lines of a run, see `read_done`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    parts = _parts(folder)
    if resume and not parts and (folder / LINES).is_file():
        parts = [(folder / LINES).rename(folder / f"{LINES}.part")]
    for part in parts:
        _drop_torn_line(part)


def finish(folder: Path) -> None:
    """Joins the lines of all processes into `predictions.jsonl`."""
    whole = folder / f"{LINES}.part"
    with whole.open("ab") as joined:
        for part in _parts(folder):
            if part != whole:
                joined.writelines(_lines(part))
                joined.flush()
                part.unlink()
    whole.replace(folder / LINES)


def result_files(folder: Path) -> list[Path]:
    """All that may be written beside pictures."""
    names = (LINES, f"{LINES}.part", SETTINGS, "predictions.json", "predictions.csv", "coco.json")
    return [folder / name for name in names]


def read_records(folder: Path) -> Iterator[Record]:
    """Of a finished run."""
    return map(json.loads, _lines(folder / LINES))


def coco_image_ids(annotations: Path) -> dict[str, int | str]:
    """The id of each image of a COCO annotation file, by the name of its file."""
    images = get(read_json(annotations), "images", [])
    return {Path(image["file_name"]).name: image["id"] for image in images}


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("predictions*.jsonl.part"))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _drop_torn_line(path: Path) -> None:
    """Cuts off what a kill left of the last line."""
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


@contextmanager
def _made_beside(path: Path) -> Iterator[IO[str]]:
    """A file that takes its name when it is whole."""
    draft = path.with_name(f"{path.name}.part")
    with draft.open("w", encoding="utf-8", newline="") as file:
        yield file
    draft.replace(path)


def _write_list(path: Path, entries: Iterable[Any], before: str = "", after: str = "") -> None:
    """A JSON list, an entry a line."""
    with _made_beside(path) as file:
        file.write(f"{before}[")
        for i, entry in enumerate(entries):
            file.write((",\n" if i else "\n") + json.dumps(entry))
        file.write(f"\n]{after}\n")


def write_json(folder: Path, *_: object) -> None:
    """`predictions.json`: the records in a list."""
    _write_list(folder / "predictions.json", read_records(folder))


def write_csv(folder: Path, task_name: str, *_: object) -> None:
    """`predictions.csv`: a row for each find."""
    with _made_beside(folder / "predictions.csv") as file:
        rows = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        rows.writeheader()
        for record in read_records(folder):
            place = {"file": record["file"], "frame": record.get("frame", "")}
            for found in record[TASKS[task_name].records_key]:
                corners = zip(("x0", "y0", "x1", "y1"), found.get("box_xyxy", ()), strict=False)
                rows.writerow({**place, **found, **dict(corners)})


def write_coco(
    folder: Path, task_name: str, categories: Categories, image_ids: Mapping[str, int | str]
) -> None:
    """`coco.json`: COCO's results of the task; those of panoptic and semantic tasks need the label maps.

    Args:
        folder: of the results.
        task_name: of the records.
        categories: of the detector.
        image_ids: COCO's id of each file's name; others have the number that they are called, or their path.
    """
    entries = (
        entry
        for record in read_records(folder)
        for entry in _coco_entries(folder, task_name, categories, record, _image_id(record, image_ids))
    )
    before, after = "", ""
    if task_name == "panoptic":
        named = [{"id": category, "name": name} for category, name in categories.values()]
        before, after = f'{{"categories": {json.dumps(named)}, "annotations": ', "}"
    _write_list(folder / "coco.json", entries, before, after)


FORMATS: dict[str, Callable[[Path, str, Categories, Mapping[str, int | str]], None]] = {
    "json": write_json,
    "csv": write_csv,
    "coco": write_coco,
}


def _image_id(record: Record, image_ids: Mapping[str, int | str]) -> int | str:
    path = Path(record["file"])
    number = int(path.stem) if path.stem.isdecimal() and path.stem.isascii() else record["file"]
    image_id = image_ids.get(path.name, number)
    return f"{image_id}#{record['frame']}" if "frame" in record else image_id


def _coco_entries(
    folder: Path, task_name: str, categories: Categories, record: Record, image_id: int | str
) -> list[Record]:
    if task_name == "semantic":
        labels = torch.from_numpy(load_pixels(folder / record["ids"], ("L", "I;16")).astype(np.int64))
        return SemanticResult(Image.new("RGB", (1, 1)), categories, labels).to_coco(image_id)
    found = record[TASKS[task_name].records_key]
    if task_name == "panoptic":
        info = [{key: s[key] for key in ("id", "category_id", "area")} for s in found]
        file_name = record["ids"].removeprefix("ids/")
        return [{"image_id": image_id, "file_name": file_name, "segments_info": info}]
    return [
        {
            "image_id": image_id,
            "category_id": one["category_id"],
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "score": one["score"],
            **({"segmentation": one["segmentation"]} if "segmentation" in one else {}),
        }
        for one in found
        for x0, y0, x1, y1 in [one["box_xyxy"]]
    ]
