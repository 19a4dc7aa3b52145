"""Where the splits of a data set lie: the folder layouts that people have, recognised by their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal, TypeAlias

from detr_fast.data.coco_json import ImageEntries, Part
from detr_fast.data.dataset import Exif

Split: TypeAlias = Literal["train", "val"]

_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation")}
_EXPECTED = (
    "expected in it annotations/instances_{train,val}2017.json (COCO 2017), "
    "{train,valid}/_annotations.coco.json (Roboflow), annotations/instances_{train,val}.json or "
    "annotations/instances_default.json (CVAT), or result.json (Label Studio); or files named by hand"
)


@dataclass(frozen=True)
class DataSource:
    """A data set on disk.

    Attributes:
        root: its folder, in one of the layouts that `build_dataset` lists.
        train_json, train_images, val_json, val_images: an `instances` file and the folder of its images,
            given by hand; they come before what `root` holds.
        val_fraction: the share of the training images that is held out for validation where there is no split
            for it, above 0 and below 1; by file name, so that the same images are held out each time.
        exif: as for `ImageDataset`.
    """

    root: Path | None = None
    train_json: Path | None = None
    train_images: Path | None = None
    val_json: Path | None = None
    val_images: Path | None = None
    val_fraction: float | None = None
    exif: Exif = "auto"

    def __post_init__(self) -> None:
        for split in _NAMES:
            given = getattr(self, f"{split}_json"), getattr(self, f"{split}_images")
            if (given[0] is None) != (given[1] is None):
                raise ValueError(f"{split}_json, {split}_images: expected both or none; got {given}")
        if self.root is None and self.train_json is None and self.val_json is None:
            raise ValueError("data: expected a folder, or a JSON file and an image folder")
        if self.val_fraction is not None:
            self.part("val")

    @classmethod
    def of(cls, data: str | Path | DataSource) -> DataSource:
        """A folder as a source."""
        return data if isinstance(data, DataSource) else cls(Path(data))

    def part(self, split: Split) -> Part:
        """The part of the training images that a split gets where they are cut in two."""
        assert self.val_fraction is not None
        return Part(split, self.val_fraction)

    def instances(self, split: Split) -> Located:
        """Where the `instances` file and the images of a split lie.

        Raises:
            FileNotFoundError: naming the layouts that were looked for.
        """
        found = self._own(split)
        if found is not None:
            if self.val_fraction is not None and (split == "val" or self._own("val") is not None):
                remark = "val_fraction is ignored, as there is a validation split"
                return dataclasses.replace(found, words=f"{found.words}; {remark}")
            if self.val_fraction is None:
                return found
        whole = found or self._own("train") or next(self._single(), None)
        if whole is None and self.root is not None and not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder")
        if whole is None:
            raise FileNotFoundError(f"{self.root or 'data'}: no {split} split found; {_EXPECTED}")
        if self.val_fraction is not None:
            words = f"{whole.words}, {self.val_fraction:.0%} of the images held out for validation"
            return dataclasses.replace(whole, part=self.part(split), words=words)
        if split == "val":
            raise FileNotFoundError(
                f"{whole.annotations}: there is no validation split beside it: cut one off (val_fraction, "
                "say 0.1), name its files (val_json, val_images), evaluate on the split train, or not at all"
            )
        return whole

    def _own(self, split: Split) -> Located | None:
        """The split's own files."""
        by_hand = getattr(self, f"{split}_json")
        if by_hand is not None:
            return Located(by_hand, (getattr(self, f"{split}_images"),), "given by hand")
        return None if self.root is None else next(self._layouts(self.root, split), None)

    def _layouts(self, root: Path, split: Split) -> Iterator[Located]:
        annotations = root / "annotations"
        candidates = [
            Located(
                annotations / f"instances_{split}2017.json",
                (root / f"{split}2017", root / "images" / f"{split}2017"),
                "COCO 2017 layout",
            )
        ]
        for name in _NAMES[split]:
            file = root / name / "_annotations.coco.json"
            candidates.append(Located(file, (file.parent,), "Roboflow layout"))
            folders = (root / "images" / name, root / name, root / "images")
            candidates.append(Located(annotations / f"instances_{name}.json", folders, "CVAT layout"))
        yield from (candidate for candidate in candidates if candidate.annotations.is_file())

    def _single(self) -> Iterator[Located]:
        """One file for all images."""
        if self.root is None:
            return
        folders = (self.root / "images" / "default", self.root / "images", self.root)
        for name, layout in (
            ("annotations/instances_default.json", "CVAT layout"),
            ("result.json", "Label Studio layout"),
            ("_annotations.coco.json", "Roboflow layout"),
        ):
            if (self.root / name).is_file():
                yield Located(self.root / name, folders, f"{layout}, one file")


@dataclass(frozen=True)
class Located:
    """The files of a split.

    Attributes:
        image_dirs: where the images may lie, the likeliest first.
        words: what was recognised.
        part: the part of the images that is meant.
    """

    annotations: Path
    image_dirs: tuple[Path, ...]
    words: str
    part: Part | None = None

    def place(self, images: ImageEntries) -> tuple[Path, ImageEntries]:
        """The folder of the images and their names in it: as the file has them or, where the first image is
        in no folder under that name, without the folders that the file has before the names.

        Raises:
            FileNotFoundError: there is no image folder.
        """
        folders = [folder for folder in self.image_dirs if folder.is_dir()]
        if not folders:
            listed = " or ".join(map(str, self.image_dirs))
            raise FileNotFoundError(f"{listed} does not exist; expected the images of {self.annotations}")
        bare = [PureWindowsPath(file).name for file in images.files]  # knows both kinds of slashes
        for files in (images.files, bare):
            for folder in folders:
                if (folder / files[0]).is_file() and len(set(files)) == len(set(images.files)):
                    return folder, dataclasses.replace(images, files=files)
        return folders[0], images
