"""The drawn shapes: exact annotations, the same bytes from the same seed."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from scipy.ndimage import binary_erosion

from detr_fast.data import (
    CocoPanoptic,
    Target,
    build_detection_dataset,
    load_image,
    write_shapes_dataset,
)
from detr_fast.data.synthetic import BRIGHT, CATEGORIES, MAX_OBJECTS, STUFF
from detr_fast.tasks import build_dataset


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_annotations_are_exact(tmp_path: Path, rng: torch.Generator) -> None:
    seed = int(torch.randint(2**31, (), generator=rng))
    root = write_shapes_dataset(tmp_path, train_images=60, val_images=1, image_size=96, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(root / "annotations" / "instances_train2017.json"))
    assert len(coco.imgs) == 60
    polygons = 0
    for image_id in coco.imgs:
        objects = coco.imgToAnns[image_id]
        assert 1 <= len(objects) <= MAX_OBJECTS
        masks = np.stack([coco.annToMask(entry) for entry in objects])
        assert masks.sum(0).max() == 1, "visible parts do not overlap"
        for entry, mask in zip(objects, masks, strict=True):
            rows, columns = np.nonzero(mask)
            x, y, w, h = entry["bbox"]
            assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert entry["area"] == len(rows) > 0
            polygons += isinstance(entry["segmentation"], list)
    assert {entry["category_id"] for entry in coco.anns.values()} == set(CATEGORIES)
    assert 0 < polygons < len(coco.anns), "both whole and covered shapes occur"


def test_panoptic_files_say_the_same(tmp_path: Path, rng: torch.Generator) -> None:
    seed = int(torch.randint(2**31, (), generator=rng))
    root = write_shapes_dataset(tmp_path, train_images=30, val_images=1, image_size=64, seed=seed)
    instance = build_dataset(root, "train", "instance", train=False)
    panoptic = build_dataset(root, "train", "panoptic", train=False)
    instance.transforms = panoptic.transforms = None
    assert isinstance(panoptic, CocoPanoptic)
    assert panoptic.category_names == {**CATEGORIES, **STUFF}
    assert panoptic.things == frozenset(CATEGORIES)
    stuff = set()
    for i in range(30):
        ids, segments = panoptic.panoptic_truth(i)
        assert (ids != 0).all(), "every pixel belongs to a segment"
        image, expected = instance[i]
        things = {s["id"]: s["label"] for s in segments if s["isthing"]}
        masks = {tuple(mask.flatten().tolist()): label for mask, label in masks_and_labels(expected)}
        assert len(masks) == len(things)
        for segment, label in things.items():
            assert masks[tuple((ids == segment).flatten().tolist())] == label
        grey = np.asarray(image).mean(-1)
        for segment in segments:
            if not segment["isthing"]:
                stuff.add(segment["label"])
                interior = grey[binary_erosion((ids == segment["id"]).numpy(), iterations=4)]
                if len(interior) >= 20:
                    sign = 1 if segment["label"] == max(STUFF) else -1
                    assert (interior.mean() - BRIGHT) * sign > -3, "noise averages out"
    assert stuff == set(STUFF)


def masks_and_labels(target: Target) -> zip:
    return zip(target["masks"], target["labels"].tolist(), strict=True)


def test_objects_stand_out(tmp_path: Path) -> None:
    """The annotation is about this image: a plain colour inside the box that the surroundings lack."""
    root = write_shapes_dataset(tmp_path, train_images=40, val_images=1, image_size=96, seed=0)
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    files = {entry["id"]: entry["file_name"] for entry in content["images"]}
    outside = []
    for image_id, name in files.items():
        pixels = np.asarray(load_image(root / "train2017" / name)).astype(int)
        saturated = pixels.max(-1) - pixels.min(-1) > 66
        background = np.ones_like(saturated)
        for x, y, w, h in (e["bbox"] for e in content["annotations"] if e["image_id"] == image_id):
            assert saturated[y : y + h, x : x + w].mean() > 0.1
            background[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1] = False
        outside.append((saturated & background).mean())
    assert np.mean(outside) < 0.005


def test_number_and_size_of_objects(tmp_path: Path) -> None:
    options = {"train_images": 30, "val_images": 1, "image_size": 64}
    root = write_shapes_dataset(tmp_path, **options, max_objects=2, object_sizes=(0.3, 0.5))
    train = build_detection_dataset(root, "train", train=False, scales=(64,))
    train.transforms = None
    targets = [target for _, target in train]
    assert {len(target["labels"]) for target in targets} == {1, 2}
    alone = torch.cat([target["boxes"] for target in targets if len(target["labels"]) == 1])
    longer_side = (alone[:, 2:] - alone[:, :2]).max(1).values
    assert longer_side.min() >= 0.3 * 64 - 2
    assert longer_side.max() <= 0.5 * 64 + 2
    specks = write_shapes_dataset(tmp_path, **options, object_sizes=(0.001, 0.001))
    assert len(build_detection_dataset(specks, "train", train=False)) == 30, "too small to see: left out"


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = contents(
        write_shapes_dataset(tmp_path / "a", train_images=6, val_images=3, image_size=64, seed=5)
    )
    again = contents(
        write_shapes_dataset(tmp_path / "b", train_images=6, val_images=3, image_size=64, seed=5)
    )
    other = contents(
        write_shapes_dataset(tmp_path / "c", train_images=6, val_images=3, image_size=64, seed=6)
    )
    longer = contents(
        write_shapes_dataset(tmp_path / "d", train_images=8, val_images=3, image_size=64, seed=5)
    )
    assert first == again
    assert len(first) == 9 + 2 + 9 + 2, "images, instances, PNGs, panoptic"
    for name in first:
        if name.endswith(".jpg"):
            assert first[name] != other[name]
            assert first[name] == longer[name], "the first images do not depend on how many follow"
    assert first["train2017/000000000001.jpg"] != first["val2017/000000000001.jpg"]


@pytest.mark.parametrize("class_colors", [True, False])
def test_it_reads_as_a_detection_dataset(tmp_path: Path, class_colors: bool) -> None:
    write_shapes_dataset(tmp_path, train_images=4, val_images=4, image_size=64, class_colors=class_colors)
    train = build_detection_dataset(tmp_path, "train", train=True, scales=(64, 80), max_size=120)
    val = build_detection_dataset(tmp_path, "val", train=False, scales=(64,), max_size=120)
    assert train.num_classes == max(CATEGORIES) + 1
    assert val.category_names == CATEGORIES
    assert not set(train.image_ids) & set(val.image_ids)
    assert all(min(train[i][0].shape[1:]) in (64, 80) for i in range(4))
    assert all(len(val[i][1]["labels"]) for i in range(4))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_images, val_images: expected >= 1; got 0 and 1"):
        write_shapes_dataset(tmp_path, train_images=0, val_images=1)
    with pytest.raises(ValueError, match="image_size: expected >= 32 pixels; got 8"):
        write_shapes_dataset(tmp_path, train_images=1, val_images=1, image_size=8)
    with pytest.raises(ValueError, match="max_objects: expected >= 1; got 0"):
        write_shapes_dataset(tmp_path, train_images=1, val_images=1, max_objects=0)
    with pytest.raises(ValueError, match="object_sizes: expected 0 < smallest <= largest <= 1"):
        write_shapes_dataset(tmp_path, train_images=1, val_images=1, object_sizes=(0.5, 0.1))
