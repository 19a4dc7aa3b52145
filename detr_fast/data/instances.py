"""What a COCO `instances` file says, checked and brought into one form for training and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detr_fast.data.annotation_cache import Arrays, cached
from detr_fast.data.coco_json import (
    ImageEntries,
    Part,
    as_flag,
    as_id,
    as_int,
    as_number,
    category_names,
    converted,
    find_image,
    get,
    image_entries,
    paused_gc,
    read_coco,
    short,
)
from detr_fast.data.packed_masks import PackedMasks
from detr_fast.data.typed_coco import NotTyped, TypedReader

MAX_AREA = 1e10  # pycocotools leaves larger objects out of all its ranges, without a word

AREA = f"'area' as a number of 0..{MAX_AREA:.0e} square pixels"

COLUMNS = ("image", "category", "boxes_xywh", "area", "crowd", "mask_number")

# when boxes are taken for another format: of so many and more, so large a share
FEW_BOXES, SMALL_SHARE, NEARLY_ALL = 10, 0.1, 0.98

NO_AREA = "boxes without an area inside their image"
NO_MASK = "objects without a usable mask"
NO_PLACE = "crowds without box and mask"


@dataclass(frozen=True)
class Instances:
    """The objects and crowds of the images, image after image, within an image in the order of the file.

    Attributes:
        path: the file.
        images: its images, or those of a part of it.
        categories: the names by category id, in the order of the ids.
        image: [A] int64, the position of an object's image in `images`.
        category: [A] int64, category ids.
        boxes_xywh: [A, 4] float64 in pixels, cut to the image.
        area: [A] float64 in square pixels: the annotated one, else that of the mask, else that of the box.
        crowd: [A] bool.
        masks: the segmentations, where they were asked for; that of object a is number `mask_number[a]`.
        left_out: how many annotations are not among these, by the reason.
        remarks: what else a person should know.
    """

    path: Path
    images: ImageEntries
    categories: dict[int, str]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    masks: PackedMasks | None
    mask_number: NDArray[np.int64]
    left_out: Mapping[str, int]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def encoding(self, a: int) -> dict[str, Any]:
        """The mask of object a as pycocotools' compressed run lengths; needs `masks`."""
        assert self.masks is not None
        width, height = self.images.sizes[self.image[a]]
        return self.masks.encoding(int(self.mask_number[a]), (height, width))


@paused_gc()  # until the parsed file is gone
def read_instances(path: str | Path, *, segmentations: bool = False, part: Part | None = None) -> Instances:
    """Reads a COCO `instances` file. Training and evaluation both go by what this returns.

    Left out, and counted: boxes without an area inside their image and, with segmentations, objects whose
    segmentation cannot cover a pixel. What is missing or null is filled in: `iscrowd` is 0, `area` that of
    the mask or box, a box that around the segmentation, the mask of a crowd its box. The annotations' own
    ids tell nothing and are ignored. Image ids may be integers or strings.

    Args:
        path: the file.
        segmentations: read the masks too.
        part: only the images of this part of the data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a usable COCO file; the message names the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")

    def read() -> Instances:
        try:
            return _read(path, TypedReader(path, segmentations=segmentations), segmentations, part)
        except NotTyped:
            return _read(path, EntryReader(path), segmentations, part)

    options = {"segmentations": segmentations, "part": part and dataclasses.asdict(part)}
    return _unpacked(path, *cached(path, options, lambda: _packed(read())))


def _packed(data: Instances) -> tuple[dict[str, Any], Arrays]:
    """Plain data and arrays that `_unpacked` makes the same of."""
    arrays: Arrays = {name: getattr(data, name) for name in COLUMNS}
    arrays["sizes"] = np.array(data.images.sizes, np.int64).reshape(-1, 2)
    if data.masks is not None:
        arrays |= data.masks.arrays()
    content = {
        "ids": data.images.ids,
        "files": data.images.files,
        "categories": list(data.categories.items()),
        "left_out": dict(data.left_out),
        "remarks": data.remarks,
        "masks": data.masks is not None,
    }
    return content, arrays


def _unpacked(path: Path, content: dict[str, Any], arrays: Arrays) -> Instances:
    sizes: Any = list(map(tuple, arrays["sizes"].tolist()))
    return Instances(
        path=path,
        images=ImageEntries(content["ids"], content["files"], sizes),
        categories=dict(content["categories"]),
        masks=PackedMasks.from_arrays(arrays) if content["masks"] else None,
        left_out=content["left_out"],
        remarks=tuple(content["remarks"]),
        **{name: arrays[name] for name in COLUMNS},
    )


def _read(path: Path, reader: TypedReader | EntryReader, segmentations: bool, part: Part | None) -> Instances:
    all_images = reader.image_entries()
    images = all_images.part(part)
    categories = category_names(reader.category_entries, str(path))
    category = reader.categories(categories)
    categories, remarks = _without_supercategory(categories, reader.category_entries, category)
    image = reader.images(all_images, images)
    crowd, area = reader.crowds(), reader.areas()
    boxes, boxed = reader.boxes()
    sizes = np.array(images.sizes, np.float64)[image]
    given, (boxes, has_area) = boxes, _cut(boxes, sizes)
    here = image >= 0

    def shape(i: int) -> tuple[int, int]:
        width, height = images.sizes[image[i]]
        return height, width

    masks, numbers = PackedMasks(), np.full(len(image), -1, np.int64)
    wanted = np.flatnonzero(here & (has_area & segmentations | ~boxed))
    crowd_boxes = np.where(crowd[wanted, None], boxes[wanted], np.nan)
    numbers[wanted] = reader.take_masks(wanted, sizes[wanted, ::-1].astype(np.int64), masks, crowd_boxes)
    masked = numbers >= 0
    for i in np.flatnonzero(masked & ~boxed).tolist():
        around, positive = _cut(masks.bounds(int(numbers[i]), shape(i))[None], sizes[i : i + 1])
        boxes[i], has_area[i] = around[0], positive[0]
    if (missing := here & ~boxed & ~masked & ~crowd).any():
        raise ValueError(reader.bad_box(int(missing.argmax())))

    problems = {
        NO_PLACE: here & ~boxed & ~masked,
        NO_AREA: here & ~has_area & (boxed | masked),
        NO_MASK: here & has_area & ~masked & segmentations,
    }
    kept = np.flatnonzero(here & ~np.any(list(problems.values()), axis=0))
    kept = kept[np.argsort(image[kept], kind="stable")]
    for i in kept[~((area[kept] >= 0) & (area[kept] <= MAX_AREA))].tolist():
        reader.refuse_area(i)
    for i in kept[np.isnan(area[kept])].tolist():
        if masked[i]:
            area[i] = coco_mask.area(masks.encoding(int(numbers[i]), shape(i)))
        else:
            area[i] = boxes[i, 2] * boxes[i, 3]
    return Instances(
        path,
        images,
        categories,
        image[kept],
        category[kept],
        boxes[kept],
        area[kept],
        crowd[kept],
        masks if segmentations else None,
        numbers[kept],
        {reason: int(rows.sum()) for reason, rows in problems.items() if rows.any()},
        remarks + _doubts(path, given[kept], boxes[kept], sizes[kept]),
    )


class EntryReader:
    """The columns of `annotations`, each checked as a whole; what is wrong is named with its entry."""

    def __init__(self, path: Path) -> None:
        content = read_coco(path, "instances")
        self.where, self.annotations = str(path), content["annotations"]
        self.category_entries, self._images = content["categories"], content["images"]

    def image_entries(self) -> ImageEntries:
        return image_entries(self._images, self.where)

    def entry(self, i: int) -> str:
        return f"{self.where}: annotations[{i}] (id {short(get(self.annotations[i], 'id', None))})"

    def column(self, key: str) -> list[Any]:
        return [annotation.get(key) for annotation in self.annotations]

    def expected(self, what: str) -> Any:
        return lambda i, value: f"{self.entry(i)}: expected {what}; got {short(value)}"

    def images(self, known: ImageEntries, chosen: ImageEntries) -> NDArray[np.int64]:
        """The position of each annotation's image among the chosen ones, -1 for others."""
        values, positions = self.column("image_id"), known.positions()
        if set(map(type, values)) <= {int}:
            found = [positions.get(value) for value in values]
        else:
            values = converted(values, as_id, set(), self.expected("'image_id' as int or str"))
            found = [find_image(positions, value) for value in values]
        if None in found:
            i = found.index(None)
            raise ValueError(f"{self.entry(i)} refers to image {short(values[i])}, which is not in the file")
        index = np.array(found, np.int64)
        if chosen is known:
            return index
        place = chosen.positions()
        return np.array([place.get(image_id, -1) for image_id in known.ids], np.int64)[index]

    def categories(self, names: Mapping[int, str]) -> NDArray[np.int64]:
        values = converted(self.column("category_id"), as_int, {int}, self.expected("'category_id' as int"))
        if unknown := set(values) - names.keys():
            i = next(i for i, value in enumerate(values) if value in unknown)
            raise ValueError(f"{self.entry(i)} refers to category {values[i]}, which is not in the file")
        return np.array(values, np.int64)

    def crowds(self) -> NDArray[np.bool_]:
        values = self.column("iscrowd")
        if not (set(map(type, values)) <= {int} and set(values) <= {0, 1}):
            values = converted(values, as_flag, set(), self.expected("'iscrowd' as 0 or 1"))
        return np.array(values, bool)

    def areas(self) -> NDArray[np.float64]:
        """NaN where none is given."""
        return np.array(converted(self.column("area"), _area, {float}, self.expected(AREA)), np.float64)

    def refuse_area(self, i: int) -> None:
        """Of the rows that count, an area that is given must be a sensible one."""
        if (value := self.annotations[i].get("area")) is not None:
            raise ValueError(self.expected(AREA)(i, value))

    def boxes(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[A, 4] (x, y, w, h), and for each whether it is given; NaN where it is not."""
        values = self.column("bbox")
        given = np.array([not (value is None or value == []) for value in values], bool)
        if not given.all():
            values = [value if has else [0, 0, 0, 0] for value, has in zip(values, given, strict=True)]
        for i, value in enumerate(values):
            if type(value) is not list or len(value) != 4:
                raise ValueError(self.bad_box(i))
        flat = list(chain.from_iterable(values))
        try:
            boxes = np.array(flat if set(map(type, flat)) <= {int, float} else [np.nan], np.float64)
        except OverflowError:  # an integer beyond floating point
            boxes = np.array([np.nan])
        if not np.isfinite(boxes).all():
            bad = (i for i, value in enumerate(values) if None in map(_plain_number, value))
            raise ValueError(self.bad_box(next(bad)))
        boxes = boxes.reshape(-1, 4)
        boxes[~given] = np.nan
        return boxes, given

    def bad_box(self, i: int) -> str:
        return self.expected("'bbox' as four finite numbers [x, y, w, h]")(i, self.annotations[i].get("bbox"))

    def take_masks(
        self,
        rows: NDArray[np.int64],
        shapes: NDArray[np.int64],
        masks: PackedMasks,
        crowd_boxes: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """The numbers of annotations' masks, -1 where one has none; a crowd's box stands in for it.

        Args:
            rows: of which X annotations.
            shapes: [X, 2] (height, width) of their images.
            masks: where they are put.
            crowd_boxes: [X, 4] (x, y, w, h), NaN where an annotation is no crowd.
        """
        numbers = np.full(len(rows), -1, np.int64)
        for n, (i, (height, width)) in enumerate(zip(rows.tolist(), shapes.tolist(), strict=True)):
            segmentation = self.annotations[i].get("segmentation")
            try:
                numbers[n] = masks.append_object(segmentation, (height, width), crowd_boxes[n])
            except ValueError as error:
                raise ValueError(f"{self.entry(i)}: {error}") from None
        return numbers


def _plain_number(value: Any) -> float | None:
    return None if isinstance(value, str) else as_number(value)


def _area(value: Any) -> float | None:
    return float("nan") if value is None else as_number(value)


def _cut(
    boxes_xywh: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes [A, 4] cut to images of (width, height) [A, 2], and whether an area is left; NaN stays NaN.

    A box inside its image is left as it is, to the last bit.
    """
    start, sides = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    with np.errstate(over="ignore"):
        end = start + sides
    first, last = start.clip(0, sizes), end.clip(0, sizes)
    cut = np.where((first == start) & (last == end), sides, last - first)
    # Compared as float32, which is what samples hold: a sliver may vanish there.
    positive = np.all(last.astype(np.float32) > first.astype(np.float32), axis=1)
    return np.concatenate([first, cut], 1), positive


def _doubts(
    path: Path, given: NDArray[np.float64], cut: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[str, ...]:
    """What makes one doubt that boxes [A, 4] are (x, y, w, h) in pixels.

    Raises:
        ValueError: they are many, and hardly any is not in another format.
    """
    outside, count = int((np.abs(given - cut) > 1).any(1).sum()), len(given)
    expected = f"{path}: expected boxes as [x, y, width, height] in pixels; got"
    if count >= FEW_BOXES:
        if (given <= 1).all(1).mean() > NEARLY_ALL:
            raise ValueError(
                f"{expected} {count} boxes within one pixel: they look like fractions of the image"
            )
        ordered = (given[:, 2:] >= given[:, :2]).all(1) & (given[:, 2:] <= sizes + 1).all(1)
        if outside > SMALL_SHARE * count and ordered.mean() > NEARLY_ALL:
            raise ValueError(
                f"{expected} {outside} of {count} that reach out of their image: they look like corners "
                "[x0, y0, x1, y1], which lie inside"
            )
    if outside:
        return (f"{outside} boxes reach out of their image and are cut: are they [x, y, width, height]?",)
    if count and (given <= 1).all():
        return ("all boxes lie within one pixel: are they in pixels?",)
    return ()


def _without_supercategory(
    names: dict[int, str], entries: list[Any], used: NDArray[np.int64]
) -> tuple[dict[int, str], tuple[str, ...]]:
    """The categories without the first one where that is only the name of the others' group, as in the files
    that Roboflow exports."""
    parents = {as_int(entry["id"]): entry.get("supercategory") for entry in entries}
    first, *others = names
    if not others or parents[first] not in (None, "", "none") or (used == first).any():
        return names, ()
    if any(parents[category] != names[first] for category in others):
        return names, ()
    remark = f"category {first} ({names[first]}) is the group of the others and has no objects: left out"
    return {category: names[category] for category in others}, (remark,)
