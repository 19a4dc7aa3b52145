"""YOLO detection and segmentation data sets (Ultralytics' layout) to the COCO 2017 layout."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detr_fast.data.bounded_yaml import read_yaml
from detr_fast.data.coco_json import as_int, short
from detr_fast.data.dataset import MAX_LABEL
from detr_fast.data.images import load_image, read_header, upright_size
from detr_fast.data.semantic import IMAGE_SUFFIXES

# Rounding may push a coordinate a little outside of the image; more is another unit or another image.
TOLERANCE = 0.01


@dataclass
class YoloSummary:
    """What one split came to.

    Attributes:
        images: converted, with or without objects.
        objects: annotations written.
        masks: those of them with a polygon.
        without_labels: images without a label file, taken as images without objects.
        clamped: objects with a coordinate up to a hundredth outside of 0..1, cut to the image.
        without_area: objects left out because their box has no width or height.
        repeated: label lines left out because the same object stands on another line of the file.
        repeated_images: images left out because the split lists them already.
    """

    images: int = 0
    objects: int = 0
    masks: int = 0
    without_labels: int = 0
    clamped: int = 0
    without_area: int = 0
    repeated: int = 0
    repeated_images: int = 0

    def __str__(self) -> str:
        return (
            f"{self.images} images ({self.without_labels} without a label file), {self.objects} objects "
            f"({self.masks} with masks), {self.clamped} cut to the image; left out: {self.without_area} for "
            f"want of an area, {self.repeated} repeated lines, {self.repeated_images} images listed again"
        )


@dataclass
class _Split:
    """One split, read and checked but not yet written."""

    files: dict[str, Path] = field(default_factory=dict)  # by the name they get
    turned: set[str] = field(default_factory=set)  # those to be written upright
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    summary: YoloSummary = field(default_factory=YoloSummary)


def convert_yolo(
    data_yaml: str | Path, output: str | Path, *, images: Literal["link", "copy"] = "link"
) -> dict[str, YoloSummary]:
    """Writes a YOLO data set in the COCO 2017 layout: `annotations/instances_{train,val}2017.json`,
    `train2017/` and `val2017/`.

    `data.yaml` has `names` (a list, or a mapping from class to name), `train` and `val` (or `valid`), and may
    have `path`, the folder that these are relative to (itself relative to the file's folder). A split is a
    folder (searched with its subfolders), a text file with a path a line, or a list of those. The labels of
    `.../images/a/b.jpg` lie in `.../labels/a/b.txt`, or beside the image where no folder is called `images`:
    a line an object, `class cx cy w h` or, with three points or more, `class x0 y0 x1 y1 ...`, coordinates
    relative to the image. With `kpt_shape`, the numbers after a box are key points, which are left out. An
    empty or missing file means an image without objects.

    The category ids are YOLO's classes, from 0. Polygons become segmentations; an object that is given by
    its box has none. Images of different folders that have the same name get their number in the split behind
    it. YOLO's labels are about the upright image, so images whose EXIF orientation turns them are written
    anew, upright, as PNG.

    Everything is read and checked before anything is written.

    Args:
        data_yaml: the file.
        output: a folder that is new or empty.
        images: "link" makes symbolic links to the images, "copy" copies them.

    Returns:
        what was converted, by "train" and "val", as far as data.yaml has them.

    Raises:
        FileNotFoundError: data.yaml or what it names is missing.
        ValueError: data.yaml is not usable; a label line is not, or has a class that is not in `names` (the
            message names file and line); no image of a split has a label file; `output` is not empty.
        ImageError: an image file is none.
    """
    if images not in ("link", "copy"):
        raise ValueError(f"images: expected 'link' or 'copy'; got {images!r}")
    data_yaml, output = Path(data_yaml), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: expected a new or empty folder; {output} is not")
    config = _read_config(data_yaml)
    splits, first_id = {}, 1
    for name, files in config.sources.items():
        splits[name] = _read_split(files, config, first_id, f"{data_yaml}: {name}")
        first_id += len(files)
    categories = [{"id": k, "name": v, "supercategory": "object"} for k, v in sorted(config.names.items())]
    (output / "annotations").mkdir(parents=True)
    for name, split in splits.items():
        folder = output / f"{name}2017"
        folder.mkdir()
        for file_name, path in split.files.items():
            if file_name in split.turned:
                load_image(path, exif_transpose=True).save(folder / file_name)
            elif images == "copy":
                copyfile(path, folder / file_name)
            else:
                (folder / file_name).symlink_to(path.resolve())
        content = {"categories": categories, "images": split.images, "annotations": split.annotations}
        (output / "annotations" / f"instances_{name}2017.json").write_text(json.dumps(content))
    return {name: split.summary for name, split in splits.items()}


@dataclass
class _Config:
    """What `data.yaml` says.

    Attributes:
        names: by class.
        sources: the image files of each split.
        keypoints: numbers that follow a box on a label line; None: a line may be a polygon.
    """

    names: dict[int, str]
    sources: dict[str, list[Path]]
    keypoints: int | None


def _read_config(path: Path) -> _Config:
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping with 'names', 'train' and 'val'; got {short(config)}")
    names = config.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    by_class = {as_int(k): v for k, v in names.items()} if isinstance(names, dict) else {}
    usable = all(_is_class(k) and isinstance(v, str) and v for k, v in by_class.items())
    if not isinstance(names, dict) or not by_class or not usable or len(by_class) != len(names):
        raise ValueError(
            f"{path}: expected 'names' as a list or a mapping of classes, 0 to {MAX_LABEL}, to names; "
            f"got {short(names)}"
        )
    if as_int(config.get("nc", len(by_class))) != len(by_class):
        raise ValueError(f"{path}: 'nc' is {str(config['nc'])[:20]}, but there are {len(by_class)} names")
    base = path.parent / str(config.get("path") or "")
    sources = {}
    for split, keys in (("train", ("train",)), ("val", ("val", "valid"))):
        given = [config[key] for key in keys if config.get(key) not in (None, "", "null", "~")]
        if not given:
            continue
        if given[1:] and given[0] != given[1]:
            raise ValueError(f"{path}: expected 'val' or 'valid'; got both: {short(given)}")
        entries = given[0] if isinstance(given[0], list) else [given[0]]
        sources[split] = [file for entry in entries for file in _image_files(base, entry, f"{path}: {split}")]
        if not sources[split]:
            raise ValueError(f"{path}: {split}: no images in {', '.join(entries)[:200]}")
    if not sources:
        raise ValueError(f"{path}: expected 'train' or 'val'; got {short(sorted(config))}")
    return _Config({k: v for k, v in by_class.items() if k is not None}, sources, _keypoints(config, path))


def _is_class(value: int | None) -> bool:
    return value is not None and 0 <= value <= MAX_LABEL


def _keypoints(config: dict[str, Any], path: Path) -> int | None:
    shape = config.get("kpt_shape")
    if shape is None:
        return None
    points, numbers = map(as_int, shape) if isinstance(shape, list) and len(shape) == 2 else (None, None)
    if points is None or not 0 < points < 10_000 or numbers not in (2, 3):
        raise ValueError(f"{path}: expected 'kpt_shape' as [points, 2 or 3]; got {short(shape)}")
    return points * numbers


def _image_files(base: Path, entry: Any, where: str) -> list[Path]:
    if not isinstance(entry, str):
        raise ValueError(f"{where}: expected a folder, a text file or a list of those; got {short(entry)}")
    path = base / entry
    if not path.exists() and entry.startswith("../"):
        path = base / entry[3:]  # exports of Roboflow lie one folder deeper than they say
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not path.is_file():
        raise FileNotFoundError(f"{where}: {path} does not exist")
    return [path.parent / line for line in map(str.strip, _lines(path)) if line]


def _read_split(files: list[Path], config: _Config, first_id: int, where: str) -> _Split:
    split = _Split()
    distinct = list({file.absolute(): file for file in reversed(files)}.values())[::-1]
    for image_id, path in enumerate(distinct, start=first_id):
        (width, height), orientation = read_header(path)
        width, height = upright_size((width, height), orientation)
        file_name = path.name if orientation == 1 else f"{path.stem}.png"
        while file_name in split.files:
            file_name = f"{Path(file_name).stem}_{image_id}{Path(file_name).suffix}"
        split.files[file_name] = path
        if orientation != 1:
            split.turned.add(file_name)
        split.images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        labels = _label_file(path)
        if not labels.is_file():
            split.summary.without_labels += 1
            continue
        seen = set()
        for number, line in enumerate(_lines(labels), start=1):
            if not line.strip():
                continue
            category, points, is_box = _parse(line, config, f"{labels}: line {number}")
            what = (category, points.tobytes(), is_box)
            if what in seen:
                split.summary.repeated += 1
                continue
            seen.add(what)
            _annotate(split, image_id, category, points, is_box, (width, height))
    split.summary.images = len(distinct)
    split.summary.repeated_images = len(files) - len(distinct)
    split.summary.objects = len(split.annotations)
    if split.summary.without_labels == len(distinct):
        raise ValueError(
            f"{where}: none of the {len(distinct)} images has a label file; "
            f"that of {distinct[0]} would be {_label_file(distinct[0])}"
        )
    return split


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from error


def _parse(line: str, config: _Config, where: str) -> tuple[int, NDArray[np.float64], bool]:
    """The class, the corners [n, 2] relative to the image (two, not yet cut, for a box), and whether it is
    a box."""
    columns = line.split()
    if config.keypoints is not None:
        if len(columns) not in (5, 5 + config.keypoints):
            raise ValueError(
                f"{where}: expected 5 columns (class cx cy w h) and {config.keypoints} of key points, as "
                f"kpt_shape says; got {len(columns)} columns"
            )
        columns = columns[:5]
    is_box = len(columns) == 5
    if not is_box and (len(columns) < 7 or len(columns) % 2 == 0):
        raise ValueError(
            f"{where}: expected 5 columns (class cx cy w h), or a class and 3 or more points (or kpt_shape "
            f"in data.yaml); got {len(columns)} columns"
        )
    try:
        numbers = np.array([float(column) for column in columns])
    except ValueError:
        raise ValueError(f"{where}: expected numbers; got {line.strip()[:60]!r}") from None
    if numbers[0] not in config.names:
        raise ValueError(f"{where}: class {columns[0]} is not among the {len(config.names)} names")
    outside = ~((numbers[1:] >= -TOLERANCE) & (numbers[1:] <= 1 + TOLERANCE))
    if outside.any():
        raise ValueError(
            f"{where}: expected coordinates relative to the image, 0..1; got {columns[1 + outside.argmax()]}"
        )
    points = numbers[1:].reshape(-1, 2)
    if is_box:
        center, half = points[0], points[1].clip(min=0) / 2
        points = np.stack([center - half, center + half])
    return int(numbers[0]), points, is_box


def _annotate(
    split: _Split,
    image_id: int,
    category: int,
    points: NDArray[np.float64],
    is_box: bool,
    size: tuple[int, int],
) -> None:
    inside = points.clip(0, 1)
    # The corners of a box at the border come out of sums: what is below a millionth is not worth a count.
    split.summary.clamped += bool((np.abs(inside - points) > 1e-6).any())
    pixels = np.round(inside * size, 3)
    x, y = pixels.min(0)
    width, height = pixels.max(0) - (x, y)
    if width <= 0 or height <= 0:
        split.summary.without_area += 1
        return
    annotation = {
        "id": len(split.annotations) + 1,
        "image_id": image_id,
        "category_id": category,
        "bbox": [round(float(v), 3) for v in (x, y, width, height)],
        "area": round(float(width * height), 3),
        "iscrowd": 0,
    }
    if not is_box:
        x_next, y_next = np.roll(pixels, -1, axis=0).T
        annotation["area"] = round(abs(float(pixels[:, 0] @ y_next - pixels[:, 1] @ x_next)) / 2, 3)
        annotation["segmentation"] = [pixels.ravel().tolist()]
        split.summary.masks += 1
    split.annotations.append(annotation)
