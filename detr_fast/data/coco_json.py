"""Reading COCO's JSON files; what is wrong in one is named with its entry."""

from __future__ import annotations

import gc
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

ImageId: TypeAlias = int | str

MAX_CATEGORY = 2**53 - 1  # beyond it, programs that read JSON numbers as floating point merge neighbours
MAX_PIXELS = 2**31 - 1  # pycocotools counts the pixels of an image in 32 bits


@dataclass(frozen=True)
class Part:
    """One of the two parts that the images of a file are cut into, for training and for validation.

    Which image falls where depends on the file names, the fraction and the seed alone; entries with the same
    file name stay together.

    Attributes:
        name: "train" or "val".
        fraction: share of the images that "val" gets, above 0 and below 1; both parts get at least one.
    """

    name: Literal["train", "val"]
    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"val_fraction: expected a number above 0 and below 1; got {self.fraction!r}")

    def members(self, files: Sequence[str]) -> list[bool]:
        """For each image, whether it belongs to this part."""
        names = sorted(set(files))
        if len(names) < 2:
            raise ValueError("val_fraction: one image cannot be cut into two parts")
        count = min(max(round(len(names) * self.fraction), 1), len(names) - 1)
        held_out = set(Random(f"val/{self.seed}").sample(names, count))
        return [(file in held_out) == (self.name == "val") for file in files]


@dataclass(frozen=True)
class ImageEntries:
    """The images of a file: in the order of their ids where those are all integers, else of the file.

    Attributes:
        ids: as the file has them, integers or strings.
        files: names relative to the image folder.
        sizes: (width, height) in pixels.
    """

    ids: list[ImageId]
    files: list[str]
    sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def numbers(self) -> list[int]:
        """The ids where all of them are integers of 64 bits, else 1, 2, ..."""
        if all(type(i) is int and -(2**63) <= i < 2**63 for i in self.ids):
            return [int(i) for i in self.ids]
        return list(range(1, len(self.ids) + 1))

    def positions(self) -> dict[ImageId, int]:
        """The position of each id."""
        return {image_id: i for i, image_id in enumerate(self.ids)}

    def part(self, part: Part | None) -> ImageEntries:
        """Those of a part of the data set; None is all of it."""
        if part is None:
            return self
        kept = [i for i, member in enumerate(part.members(self.files)) if member]
        return ImageEntries(
            [self.ids[i] for i in kept], [self.files[i] for i in kept], [self.sizes[i] for i in kept]
        )


def read_coco(path: Path, kind: str) -> dict[str, list[dict[str, Any]]]:
    """The lists of objects `images`, `annotations` and `categories` of a file.

    Args:
        path: the file.
        kind: "instances" or "panoptic", for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no COCO file, or an empty one.
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
        if set(map(type, content[key])) - {dict}:
            i, entry = next((i, e) for i, e in enumerate(content[key]) if not isinstance(e, dict))
            raise ValueError(f"{path}: {key}[{i}]: expected an object; got {short(entry)}")
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{path}: an empty data set: {key!r} has no entries")
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError where it is none."""
    try:
        with paused_gc():
            return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"{path}: not a JSON file of a sensible depth") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error


@contextmanager
def paused_gc() -> Iterator[None]:
    """A parser makes millions of containers and no cycles: looking for those costs a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def get(entry: Any, key: str, default: Any) -> Any:
    """`entry[key]`, or the default where the entry is no object or lacks it."""
    return entry.get(key, default) if isinstance(entry, Mapping) else default


def field(entry: Any, key: str, kind: type, where: str) -> Any:
    """`entry[key]`, which must be there and of that type; integers as `as_int` takes them."""
    value = get(entry, key, None)
    result = as_int(value) if kind is int else value if isinstance(value, kind) else None
    if result is None:
        raise ValueError(f"{where}: expected {key!r} as {kind.__name__}; got {short(value)}")
    return result


def as_int(value: Any) -> int | None:
    """An integer, which may also be written 3.0 or "3"; None where it is none (a truth value is none)."""
    if type(value) is int:
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):  # numpy's
        return int(value)
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if type(value) is str and value.isascii() and value.removeprefix("-").isdigit() and len(value) <= 20:
        return int(value)
    return None


def as_number(value: Any) -> float | None:
    """A finite number, which may also be written as a string; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_flag(value: Any) -> bool | None:
    """0, 1, false, true or null (no), numbers also as strings; None where it is none of them."""
    if value is None or isinstance(value, bool):
        return bool(value)
    number = as_int(value)
    return bool(number) if number in (0, 1) else None


def as_id(value: Any) -> ImageId | None:
    """An image's id: an integer or a string that is not empty; None where it is none."""
    if isinstance(value, str):
        return value or None
    return as_int(value)


def find_image(positions: Mapping[ImageId, int], value: Any) -> int | None:
    """The position of the image that an annotation names, also as "12" for 12 or 12 for "12"."""
    image_id = as_id(value)
    if image_id is None or image_id in positions:
        return None if image_id is None else positions[image_id]
    other = str(image_id) if isinstance(image_id, int) else as_int(image_id)
    return None if other is None else positions.get(other)


def converted(
    values: list[Any],
    convert: Callable[[Any], Any],
    plain: set[type],
    problem: Callable[[int, Any], str],
) -> list[Any]:
    """A column of values, each converted where not all are of the `plain` types already.

    Raises:
        ValueError: `problem(index, value)` of the first for which `convert` gives None.
    """
    if set(map(type, values)) <= plain:
        return values
    results = list(map(convert, values))
    for i, result in enumerate(results):
        if result is None:
            raise ValueError(problem(i, values[i]))
    return results


def category_names(categories: list[Any], where: str) -> dict[int, str]:
    """The names by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for i, category in enumerate(categories):
        entry = f"{where}: categories[{i}]"
        category_id = field(category, "id", int, entry)
        if category_id in names or not 0 <= category_id <= MAX_CATEGORY:
            raise ValueError(f"{entry}: expected a distinct id >= 0 and < 2**53; got {category_id}")
        names[category_id] = field(category, "name", str, entry)
    return dict(sorted(names.items()))


def image_entries(images: list[Any], where: str) -> ImageEntries:
    """The entries of `images`, checked."""
    rows: dict[ImageId, tuple[str, tuple[int, int]]] = {}
    for i, image in enumerate(images):
        entry = f"{where}: images[{i}]"
        image_id = as_id(get(image, "id", None))
        if image_id is None:
            raise ValueError(f"{entry}: expected 'id' as int or str; got {short(get(image, 'id', None))}")
        if image_id in rows:
            raise ValueError(f"{entry}: the image id {image_id} occurs twice")
        width, height = (field(image, key, int, entry) for key in ("width", "height"))
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise ValueError(f"{entry}: expected 'width' and 'height' >= 1; got {width} and {height}")
        rows[image_id] = field(image, "file_name", str, entry), (width, height)
    ids = list(rows)
    if all(isinstance(i, int) for i in ids):
        ids.sort()
    return ImageEntries(ids, [rows[i][0] for i in ids], [rows[i][1] for i in ids])


def short(value: Any) -> str:
    """A value for a message: a line of bounded length, however large or deep the value is."""
    text = _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlist, _REPR.maxdict = 3, 60, 60, 8, 8
