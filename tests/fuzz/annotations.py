"""Annotation files with anything anywhere: refused in words, or trained on and evaluated to a perfect score.

`python -m tests.fuzz.annotations --seconds 600`
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detr_fast.data import CocoDetection, CocoPanoptic, Instances
from detr_fast.metrics import PanopticQuality, coco_metrics
from tests.data.make import write_segments
from tests.fuzz.driver import Target, main

WIDTH, HEIGHT = 60, 40
LETTERS = [chr(code) for code in range(40, 121)]  # those of compressed run lengths, and others


def instances(rng: random.Random) -> dict[str, Any]:
    """A good file: a few images with objects given by polygons and run lengths, and a crowd."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(rng.randint(1, 3))
    ]
    rows = []
    for n in range(rng.randint(0, 6)):
        x, y, w, h = rng.randint(0, 40), rng.randint(0, 25), rng.randint(2, 20), rng.randint(2, 15)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        columns = [x * HEIGHT + y, *[h, HEIGHT - h] * (w - 1), h]
        runs = {"size": [HEIGHT, WIDTH], "counts": [*columns, WIDTH * HEIGHT - sum(columns)]}
        rows.append(
            {
                "id": n,
                "image_id": rng.choice(images)["id"],
                "category_id": rng.choice((1, 4)),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(rng.random() < 0.2),
                "segmentation": rng.choice(([polygon], runs)),
            }
        )
    categories = [{"id": 1, "name": "car"}, {"id": 4, "name": "bus"}]
    return {"images": images, "annotations": rows, "categories": categories}


def panoptic(rng: random.Random) -> dict[str, Any]:
    """A good panoptic file."""
    content = instances(rng)
    content["annotations"] = [
        {
            "image_id": entry["id"],
            "file_name": entry["file_name"],
            "segments_info": [{"id": k, "category_id": 4, "iscrowd": 0, "area": 9} for k in (3, 258)],
        }
        for entry in content["images"]
    ]
    for k, category in enumerate(content["categories"]):
        category["isthing"] = k
    return content


def oddity(rng: random.Random) -> Any:
    """A value that JSON can hold and that is seldom right."""
    number = rng.choice((0, 1, -1, 2, 4, 59, 61, 2**31, 2**53 + 1, 10**30, 0.5, 1e-30, 1e9, 1e308))
    return rng.choice(
        (
            number,
            -number,
            float("nan"),
            float("inf"),
            None,
            True,
            False,
            "",
            "0",
            "1",
            "400",
            "-3.5",
            "nan",
            "car",
            "b5c4d7f2-0000-4000-8000-00000000000a",
            "\ud800",
            "a\0b",
            "../" * 5000,
            "z" * 50,
            [],
            [number],
            [number] * 4,
            [[number] * 6],
            [[1, 2, 3, 4]],
            {},
            {"counts": [number, number], "size": [HEIGHT, WIDTH]},
            {
                "counts": "".join(chr(rng.randint(40, 120)) for _ in range(rng.randint(0, 30))),
                "size": [HEIGHT, WIDTH],
            },
        )
    )


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) inside a value."""
    items = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in places(inner)]


def mutate(content: Any, rng: random.Random) -> None:
    container, key = rng.choice(places(content))
    what = rng.random()
    if what < 0.6:
        container[key] = oddity(rng)
    elif what < 0.75:
        del container[key]
    elif isinstance(container, list):
        container.insert(key, container[key] if what < 0.9 else oddity(rng))
    else:
        container[key] = [container[key]]


def text_of(content: Any, rng: random.Random) -> bytes:
    """JSON, seldom with a byte of it changed."""
    text = bytearray(json.dumps(content).encode())
    if rng.random() < 0.1:
        text[rng.randrange(len(text))] = rng.randrange(256)
    if rng.random() < 0.02:
        del text[rng.randrange(len(text)) :]
    return bytes(text)


def case(rng: random.Random, folder: Path) -> None:
    kind = rng.choice(("bbox", "bbox", "segm", "segm", "panoptic"))
    content = panoptic(rng) if kind == "panoptic" else instances(rng)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        mutate(content, rng)
    path = folder / "a.json"
    path.write_bytes(text_of(content, rng))
    if kind == "panoptic":
        check_panoptic(CocoPanoptic(folder, path, write_maps(folder), contiguous_labels=True))
        return
    data = CocoDetection(folder, path, masks=kind == "segm", contiguous_labels=True)
    detections = list(perfect(data.instances, kind))
    metrics = coco_metrics(data.instances, detections, kind=kind)  # type: ignore[arg-type]
    best = 1.0 if detections else -1.0
    assert abs(metrics["AP"] - best) < 1e-9, metrics
    assert data.num_objects is not None
    assert data.num_objects >= len(detections)


def write_maps(folder: Path) -> Path:
    """The PNGs of good panoptic files."""
    maps = folder / "maps"
    if not maps.exists():
        ids = np.full((HEIGHT, WIDTH), 258)
        ids[5:20, 5:30], ids[0] = 3, 0
        for number in range(3):
            write_segments(maps / f"{number}.png", ids)
    return maps


def check_panoptic(data: CocoPanoptic) -> None:
    """The truth as a prediction has quality 1."""
    quality = PanopticQuality(data.things, data.label_to_category.keys() - data.things)
    for index in range(len(data)):
        ids, segments = data.panoptic_truth(index)
        found = [segment for segment in segments if not segment["iscrowd"]]
        crowds = torch.tensor([segment["id"] for segment in segments if segment["iscrowd"]], dtype=ids.dtype)
        quality.update(ids.masked_fill(torch.isin(ids, crowds), 0), found, ids, segments)
    assert quality.result()["PQ"] == (1 if data.num_objects else -1)


def perfect(data: Instances, kind: str) -> Any:
    """Detections that are the objects themselves."""
    for a in range(len(data)):
        if data.crowd[a] or (kind == "segm" and not covers(data, a)):
            continue
        found = (
            {"segmentation": text(data.encoding(a))}
            if kind == "segm"
            else {"bbox": data.boxes_xywh[a].tolist()}
        )
        yield {
            "image_id": data.images.ids[data.image[a]],
            "category_id": int(data.category[a]),
            "score": 1 - a / 1000,
            **found,
        }


def covers(data: Instances, a: int) -> bool:
    width, height = data.images.sizes[data.image[a]]
    assert data.masks is not None
    return width * height < 10**8 and bool(data.masks.draw([int(data.mask_number[a])], (height, width)).any())


def text(encoding: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(encoding["size"]), "counts": encoding["counts"].decode("ascii")}


TARGET = Target("annotations", case, (ValueError, FileNotFoundError))

if __name__ == "__main__":
    main(TARGET)
