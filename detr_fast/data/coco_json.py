"""Reading COCO's JSON files; what is wrong in one is named with its entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_coco(path: Path, kind: str) -> dict[str, list[Any]]:
    """The lists `images`, `annotations` and `categories` of a file.

    Args:
        path: the file.
        kind: "instances" or "panoptic", for messages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(get(content, key, None), list):
            raise ValueError(
                f"{path}: not a COCO {kind} file: expected an object with the lists 'images', "
                f"'annotations' and 'categories'; {key!r} is missing or not a list"
            )
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{path}: an empty data set: {key!r} has no entries")
    return content


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def get(entry: Any, key: str, default: Any) -> Any:
    """`entry[key]`, or the default where the entry is no object or lacks it."""
    return entry.get(key, default) if isinstance(entry, Mapping) else default


def field(entry: Any, key: str, kind: type, where: str) -> Any:
    """`entry[key]`, which must be there and of that type."""
    value = get(entry, key, None)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: expected {key!r} as {kind.__name__}; got {value!r}")
    return value


def category_names(categories: list[Any], where: str) -> dict[int, str]:
    """The names by category id."""
    names: dict[int, str] = {}
    for i, category in enumerate(categories):
        entry = f"{where}: categories[{i}]"
        category_id = field(category, "id", int, entry)
        if category_id in names or category_id < 0:
            raise ValueError(f"{entry}: expected a distinct id >= 0; got {category_id}")
        names[category_id] = field(category, "name", str, entry)
    return names


def images_by_id(images: list[Any], where: str) -> dict[int, tuple[str, tuple[int, int]]]:
    """(file name, (width, height)) by image id, in the order of the ids."""
    by_id: dict[int, tuple[str, tuple[int, int]]] = {}
    for i, image in enumerate(images):
        entry = f"{where}: images[{i}]"
        image_id, width, height = (field(image, key, int, entry) for key in ("id", "width", "height"))
        if image_id in by_id:
            raise ValueError(f"{entry}: the image id {image_id} occurs twice")
        by_id[image_id] = field(image, "file_name", str, entry), (width, height)
    return dict(sorted(by_id.items()))
