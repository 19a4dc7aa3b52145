"""Small COCO data sets for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 7, "name": "bus"}]


def image(image_id: int, width: int = 60, height: int = 40, file_name: str | None = None) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": file_name or f"{image_id}.png",
        "width": width,
        "height": height,
    }


def annotation(
    annotation_id: int, image_id: int, bbox: Any, category_id: int = 3, iscrowd: int = 0, **more: Any
) -> dict[str, Any]:
    area = bbox[2] * bbox[3] if len(bbox) == 4 else 0
    return {
        **more,
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": iscrowd,
    }


def write_json(path: Path, images: Any, annotations: Any, categories: Any = CATEGORIES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_images(folder: Path, images: list[dict[str, Any]]) -> Path:
    """Each image differs from the others, so that samples can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in images:
        pixels = np.random.default_rng(entry["id"]).integers(
            0, 256, (entry["height"], entry["width"], 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / entry["file_name"])
    return folder


def write_dataset(root: Path, images: list[dict[str, Any]], annotations: Any, split: str = "train") -> Path:
    """The COCO 2017 layout."""
    write_images(root / f"{split}2017", images)
    write_json(root / "annotations" / f"instances_{split}2017.json", images, annotations)
    return root


PANOPTIC_CATEGORIES = [
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 7, "name": "bus", "isthing": 1},
    {"id": 90, "name": "road", "isthing": 0},
]


def segment(segment_id: int, category_id: int, iscrowd: int = 0) -> dict[str, Any]:
    return {"id": segment_id, "category_id": category_id, "iscrowd": iscrowd}


def write_segments(path: Path, ids: NDArray[np.int64]) -> None:
    """A panoptic PNG, written byte by byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(rgb).save(path)


def write_panoptic(
    root: Path,
    maps: dict[int, NDArray[np.int64]],
    segments: dict[int, list[dict[str, Any]]],
    categories: Any = PANOPTIC_CATEGORIES,
    split: str = "train",
) -> Path:
    """The COCO 2017 layout with panoptic annotations of some images, given as maps of segment ids."""
    images = [image(i, ids.shape[1], ids.shape[0]) for i, ids in maps.items()]
    write_images(root / f"{split}2017", images)
    folder = root / "annotations" / f"panoptic_{split}2017"
    for i, ids in maps.items():
        write_segments(folder / f"{i}.png", ids)
    rows = [
        {"image_id": i, "file_name": f"{i}.png", "segments_info": entries} for i, entries in segments.items()
    ]
    write_json(folder.with_suffix(".json"), images, rows, categories)
    return root
