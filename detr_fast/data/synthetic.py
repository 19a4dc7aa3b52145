"""A data set of drawn shapes in COCO's format: small, exact and made in seconds."""

from __future__ import annotations

import colorsys
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

# Ids with gaps, as COCO's own: code that confuses labels with positions fails on this data set.
CATEGORIES = {1: "disc", 2: "rectangle", 4: "triangle", 5: "star", 7: "cross"}
STUFF = {11: "dark background", 14: "bright background"}
BRIGHT = 125  # grey value above which background is bright; half of it is
MAX_OBJECTS = 6
# An object may be hidden by later ones, but not so far that it cannot be told any more.
MIN_VISIBLE = 0.4

Mask = NDArray[np.bool_]


def write_shapes_dataset(
    root: str | Path,
    *,
    train_images: int,
    val_images: int,
    image_size: int = 128,
    seed: int = 0,
    class_colors: bool = True,
    max_objects: int = MAX_OBJECTS,
    object_sizes: tuple[float, float] = (0.1, 0.75),
) -> Path:
    """Writes a data set in the COCO 2017 layout: `annotations/instances_{train,val}2017.json`,
    `annotations/panoptic_{train,val}2017.json` with a folder of PNGs each, `train2017/` and `val2017/` with
    JPEG files.

    Each image has filled shapes of five categories (disc, rectangle, triangle, star, cross), turned at
    random, on a noisy background; later shapes cover earlier ones. Box, area and segmentation describe the
    *visible* pixels exactly; the segmentation is a polygon where the whole shape is visible and a run-length
    encoding where it is partly covered. In the panoptic files every pixel belongs to a segment: shapes are
    things, dark and bright background are stuff. The category ids have gaps. The same arguments give the
    same bytes (with the same Pillow), and the first images do not depend on how many follow.

    Args:
        root: the folder, made if missing.
        train_images: how many images to train on.
        val_images: how many images to evaluate on.
        image_size: width and height in pixels, at least 32.
        seed: of everything random.
        class_colors: a category keeps to a band of hues; otherwise its shape alone tells it.
        max_objects: most shapes an image; each count from 1 on is as likely.
        object_sizes: smallest and largest longer side of a shape, as fractions of the image.

    Returns:
        root.
    """
    if min(train_images, val_images) < 1:
        raise ValueError(f"train_images, val_images: expected >= 1; got {train_images} and {val_images}")
    if image_size < 32:
        raise ValueError(f"image_size: expected >= 32 pixels; got {image_size}")
    if max_objects < 1:
        raise ValueError(f"max_objects: expected >= 1; got {max_objects}")
    if not 0 < object_sizes[0] <= object_sizes[1] <= 1:
        raise ValueError(f"object_sizes: expected 0 < smallest <= largest <= 1; got {object_sizes}")
    root = Path(root)
    first_id = 1
    for split, (name, count) in enumerate((("train2017", train_images), ("val2017", val_images))):
        segment_folder = root / "annotations" / f"panoptic_{name}"
        for folder in (root / name, segment_folder):
            folder.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        instances: list[dict[str, Any]] = []
        panoptic: list[dict[str, Any]] = []
        for i in range(count):
            rng = np.random.default_rng([seed, split, i])
            pixels, objects, masks = _draw_scene(image_size, rng, class_colors, max_objects, object_sizes)
            file_name = f"{i + 1:012d}.jpg"
            Image.fromarray(pixels).save(root / name / file_name, quality=95, subsampling=0)
            image_id = first_id + i
            size = {"width": image_size, "height": image_size}
            images.append({"id": image_id, "file_name": file_name, **size, "license": 1})
            for entry in objects:
                instances.append({"id": len(instances) + 1, "image_id": image_id, "iscrowd": 0, **entry})
            colors, segments = _segments(masks)
            file_name = f"{i + 1:012d}.png"
            Image.fromarray(colors).save(segment_folder / file_name)
            panoptic.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
        first_id += count
        description = f"Drawn shapes, seed {seed}"
        _write_annotations(root, "instances", name, description, images, instances, CATEGORIES)
        _write_annotations(root, "panoptic", name, description, images, panoptic, {**CATEGORIES, **STUFF})
    return root


def _write_annotations(
    root: Path,
    kind: str,
    split: str,
    description: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: dict[int, str],
) -> None:
    content = {
        "info": {"description": description, "version": "1.0"},
        "licenses": [
            {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
        ],
        "categories": [_category(k, v, kind) for k, v in categories.items()],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


def _category(category: int, name: str, kind: str) -> dict[str, Any]:
    entry = {"id": category, "name": name, "supercategory": "stuff" if category in STUFF else "shape"}
    return entry if kind == "instances" else {**entry, "isthing": int(category not in STUFF)}


def _draw_scene(
    size: int,
    rng: np.random.Generator,
    class_colors: bool,
    max_objects: int,
    object_sizes: tuple[float, float],
) -> tuple[NDArray[np.uint8], list[dict[str, Any]], list[tuple[int, Mask]]]:
    """An image [size, size, 3], its objects as COCO annotations without ids, and all there is to see as
    (category, mask), which together cover it."""
    pixels = _background(size, rng)
    bright = pixels.mean(-1) > BRIGHT
    categories: list[int] = []
    polygons: list[NDArray[np.float64]] = []
    whole: list[Mask] = []
    visible: list[Mask] = []
    wanted = int(rng.integers(1, max_objects + 1))
    for _ in range(4 * wanted):
        category = int(rng.choice(list(CATEGORIES)))
        polygon = _place(_outline(CATEGORIES[category], rng), size, object_sizes, rng)
        mask = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], size, size))[..., 0] > 0
        covered = [part & ~mask for part in visible]
        if not mask.any() or any(
            part.sum() < MIN_VISIBLE * shape.sum() for part, shape in zip(covered, whole, strict=True)
        ):
            continue
        _paint(pixels, mask, _color(category, rng, class_colors), rng)
        categories.append(category)
        polygons.append(polygon)
        whole.append(mask)
        visible = [*covered, mask]
        if len(visible) == wanted:
            break
    pixels += 6 * rng.standard_normal(pixels.shape, dtype=np.float32)
    objects = [
        _annotation(category, polygon, part, complete=int(part.sum()) == int(shape.sum()))
        for category, polygon, part, shape in zip(categories, polygons, visible, whole, strict=True)
    ]
    masks = list(zip(categories, visible, strict=True))
    free = ~np.logical_or.reduce([np.zeros_like(bright), *visible])
    masks += [
        (stuff, part)
        for stuff, part in zip(STUFF, (free & ~bright, free & bright), strict=True)
        if part.any()
    ]
    return pixels.clip(0, 255).astype(np.uint8), objects, masks


def _segments(masks: list[tuple[int, Mask]]) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """The panoptic PNG [size, size, 3] and its entries."""
    ids = np.zeros(masks[0][1].shape, dtype=np.int64)
    segments = []
    for i, (category, mask) in enumerate(masks, start=1):
        segment_id = i * 0x9E3779 % 2**24  # an odd factor: distinct colours, far apart
        ids[mask] = segment_id
        segments.append({"id": segment_id, "category_id": category, "iscrowd": 0, **_extent(mask)})
    return (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8), segments


def _annotation(
    category: int, polygon: NDArray[np.float64], visible: Mask, *, complete: bool
) -> dict[str, Any]:
    segmentation: Any = [polygon.ravel().tolist()]
    if not complete:
        segmentation = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
        segmentation["counts"] = segmentation["counts"].decode("ascii")
    return {"category_id": category, **_extent(visible), "segmentation": segmentation}


def _extent(mask: Mask) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
    }


def _outline(shape: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """The corners [n, 2] of a shape around the origin, before it is turned and scaled."""
    if shape == "rectangle":
        half = rng.uniform(0.4, 1.0)
        return np.array([[-1, -half], [1, -half], [1, half], [-1, half]])
    if shape == "cross":
        a = rng.uniform(0.25, 0.4)
        corner = np.array([[a, a], [a, 1], [-a, 1]])
        quarter_turn = np.array([[0, 1], [-1, 0]])
        return np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])
    corners, radii = {"disc": (40, [1.0]), "triangle": (3, [1.0]), "star": (10, [1.0, 0.45])}[shape]
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.resize(radii, corners)[:, None]


def _place(
    outline: NDArray[np.float64], size: int, object_sizes: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Turns the outline, scales its longer side to a fraction of the image (uniform in the logarithm) and
    moves it to a random place inside. Corners are rounded to 1/100 pixel, as they are written."""
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    points = outline @ np.array([[cos, sin], [-sin, cos]])
    points -= points.min(0)
    points *= (
        size * math.exp(rng.uniform(math.log(object_sizes[0]), math.log(object_sizes[1]))) / points.max()
    )
    return np.round(points + rng.uniform(0, size - points.max(0)), 2)


def _color(category: int, rng: np.random.Generator, class_colors: bool) -> NDArray[np.float64]:
    hue = rng.uniform()
    if class_colors:
        hue = (list(CATEGORIES).index(category) + 0.6 * hue) / len(CATEGORIES)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1.0), rng.uniform(0.7, 1.0)))


def _paint(
    pixels: NDArray[np.float32], mask: Mask, color: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Fills the mask with a colour, plain or with stripes of its darker shade."""
    y, x = np.nonzero(mask)
    shade = np.ones(len(y))
    if rng.uniform() < 0.5:
        angle, period = rng.uniform(0, math.pi), rng.uniform(0.05, 0.15) * len(mask)
        shade = 0.85 + 0.15 * np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period))
    pixels[y, x] = shade[:, None] * color


def _background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[size, size, 3] of soft dull clouds."""
    coarse = rng.uniform(60, 190) + rng.uniform(-45, 45, (6, 6, 1)) + rng.uniform(-15, 15, (6, 6, 3))
    clouds = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    return np.asarray(clouds).astype(np.float32)
