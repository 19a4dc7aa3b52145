"""Batches: padding, coverage over ranks, resuming, and independence of the number of workers."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from detr_fast.data import (
    Batch,
    CocoDetection,
    ImageError,
    batching,
    begin_epoch,
    build_detection_dataset,
    build_loader,
    collate,
)
from detr_fast.structures import PackedTargets
from detr_fast.tasks import build_dataset
from tests.data.make import annotation, image, segment, write_dataset, write_panoptic
from tests.paths import ROOT


@pytest.fixture
def data(tmp_path: Path) -> CocoDetection:
    """Eleven images, the i-th with i % 3 objects."""
    images = [image(i, 40 + i, 60 - i) for i in range(11)]
    annotations = [annotation(10 * i + j, i, [j, j, 20, 10]) for i in range(11) for j in range(i % 3)]
    write_dataset(tmp_path, images, annotations)
    return build_detection_dataset(tmp_path, "train", train=True, scales=(32, 48), max_size=96)


def ids(loader: DataLoader[Batch]) -> list[list[int]]:
    return [[int(target["image_id"]) for target in targets] for _, targets in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a[0].tensors, b[0].tensors) and all(
        x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)
        for x, y in zip(a[1], b[1], strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_data_are_the_same_with_workers(data: CocoDetection, workers: int) -> None:
    """torch alone puts the worker's traceback into the message."""
    (data.image_dir / "4.png").write_bytes(b"nothing")
    (data.image_dir / "9.png").unlink()
    loader = build_loader(data, 4, train=False, num_workers=workers)
    with pytest.raises(ImageError) as damaged:
        list(loader)
    assert str(damaged.value) == f"{data.image_dir / '4.png'}: not an image in a format that Pillow reads"
    write_dataset(data.image_dir.parent, [image(4, 44, 56)], [])
    with pytest.raises(FileNotFoundError) as missing:
        list(build_loader(data, 4, train=False, num_workers=workers))
    assert str(missing.value) == f"{data.image_dir / '9.png'}: no such image file"


def test_collate_pads(rng: torch.Generator) -> None:
    images = [torch.rand(3, 4, 7, generator=rng), torch.rand(3, 6, 5, generator=rng)]
    padded, targets = collate([(images[0], {"labels": torch.tensor([1])}), (images[1], {})])
    assert padded.tensors.shape == (2, 3, 6, 7)
    for i, (tensor, mask, original) in enumerate(zip(padded.tensors, padded.mask, images, strict=True)):
        height, width = original.shape[1:]
        assert torch.equal(tensor[:, :height, :width], original)
        assert (~mask).sum() == height * width
        assert not mask[:height, :width].any()
        assert (tensor[:, mask] == 0).all(), i
    assert [list(target) for target in targets] == [["labels"], []]


def test_padding_of_mask_classifiers(tmp_path: Path) -> None:
    """To the stride, images smaller than it too, or to the square of large-scale jitter; any data set."""
    maps = {i: np.full((i, 2 * i), 5) for i in (1, 9, 20, 33)}
    write_panoptic(tmp_path, maps, {i: [segment(5, 3)] for i in maps})
    jittered = build_dataset(tmp_path, "train", "panoptic", train=True, augmentation="lsj", lsj_size=48)
    loader = build_loader(jittered, 2, train=True, size=(48, 48), num_workers=1)
    begin_epoch(loader, 0)
    for images, targets in loader:
        assert images.tensors.shape == (2, 3, 48, 48)
        packed = PackedTargets.from_list(targets, mask_size=(48, 48)).masks
        assert packed is not None
        assert not packed[images.mask].any(), "masks lie on their images"
    plain = build_dataset(tmp_path, "train", "panoptic", train=False, scales=(20,), max_size=100)
    for images, targets in build_loader(plain, 2, train=False, multiple=32):
        assert images.tensors.shape[2:] == (32, 64)
        assert all(target["masks"].shape == (1, 20, 40) for target in targets)


def test_every_image_once_an_epoch(data: CocoDetection) -> None:
    loader = build_loader(data, 4, train=True, drop_last=False)
    orders = []
    for epoch in range(3):
        begin_epoch(loader, epoch)
        batches = ids(loader)
        assert [len(batch) for batch in batches] == [4, 4, 3]
        orders.append(flat(batches))
        assert sorted(orders[-1]) == list(range(11))
    assert orders[0] != orders[1] != orders[2]
    dropping = build_loader(data, 4, train=True)
    begin_epoch(dropping, 0)
    assert flat(ids(dropping)) == orders[0][:8]
    assert len(dropping) == 2


def test_two_ranks_share_an_epoch(data: CocoDetection) -> None:
    loaders = [build_loader(data, 2, train=True, rank=r, world_size=2, drop_last=False) for r in range(2)]
    shards = []
    for loader in loaders:
        begin_epoch(loader, 5)
        shards.append(ids(loader))
    assert [[len(batch) for batch in shard] for shard in shards] == [[2, 2, 2], [2, 2, 2]], "the same on all"
    seen = flat(shards[0] + shards[1])
    assert set(seen) == set(range(11))
    assert len(seen) == 12, "one image twice fills the ranks up"


@pytest.mark.parametrize("world_size", [1, 2, 3, 16])
def test_evaluation_shards_have_no_duplicates(data: CocoDetection, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        seen += flat(ids(build_loader(data, 2, train=False, rank=rank, world_size=world_size)))
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_inside_an_epoch(data: CocoDetection, num_workers: int, tmp_path: Path) -> None:
    loader = build_loader(data, 2, train=True, seed=3, num_workers=num_workers)
    begin_epoch(loader, 4)
    whole = list(loader)
    begin_epoch(loader, 5)
    following = list(loader)

    resumed = build_loader(
        build_detection_dataset(tmp_path, "train", train=True, scales=(32, 48), max_size=96),
        2,
        train=True,
        seed=3,
        num_workers=num_workers,
    )
    begin_epoch(resumed, 4, skip_batches=3)
    rest = list(resumed)
    assert len(rest) == len(whole) - 3 == 2
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))
    begin_epoch(resumed, 5)
    assert all(same(a, b) for a, b in zip(following, resumed, strict=True))


def test_skipped_batches_are_not_read(data: CocoDetection) -> None:
    loader = build_loader(data, 2, train=True)
    begin_epoch(loader, 0)
    skipped = flat(ids(loader)[:4])
    for image_id in skipped:
        (data.image_dir / f"{image_id}.png").unlink()
    begin_epoch(loader, 0, skip_batches=4)
    assert len(ids(loader)) == 1


def test_workers_do_not_matter(data: CocoDetection) -> None:
    """Over two epochs, because persistent workers must learn of the second."""
    results = []
    for num_workers in (0, 1, 2):
        loader = build_loader(data, 3, train=True, seed=1, num_workers=num_workers)
        batches = []
        for epoch in range(2):
            begin_epoch(loader, epoch)
            batches += list(loader)
        results.append(batches)
    for other in results[1:]:
        assert all(same(a, b) for a, b in zip(results[0], other, strict=True))


def test_global_random_state_is_left_alone(data: CocoDetection) -> None:
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        loader = build_loader(data, 3, train=True, num_workers=num_workers)
        begin_epoch(loader, 0)
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_get_no_signals_of_the_group(data: CocoDetection) -> None:
    """A launcher's SIGTERM to all processes lets the main one finish its step."""
    loader = build_loader(data, 1, train=True, num_workers=2)
    next(iter(loader))
    workers = active_children()
    assert len(workers) >= 2
    assert all(os.getpgid(worker.pid or 0) == worker.pid for worker in workers)


def test_bad_arguments(data: CocoDetection) -> None:
    with pytest.raises(ValueError, match="batch_size: expected >= 1; got 0"):
        build_loader(data, 0, train=True)
    with pytest.raises(ValueError, match=r"batch_size: a rank has 11 images, .* batch of 12"):
        build_loader(data, 12, train=True)
    with pytest.raises(ValueError, match="rank: expected 0 <= rank < world_size = 2; got 2"):
        build_loader(data, 1, train=True, rank=2, world_size=2)
    with pytest.raises(TypeError, match="train=True"):
        begin_epoch(build_loader(data, 1, train=False), 0)


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from detr_fast.data import build_loader
from detr_fast.tasks import build_dataset
data = build_dataset(sys.argv[1], "train", "instance", train=False, scales=(32,))
loader = build_loader(data, 64, train=False, num_workers=2)
batches = list(loader)
assert [len(targets) for _, targets in batches] == [64] * 5, batches
assert all(target["masks"].shape[0] == 2 for _, targets in batches for target in targets)
"""


def test_large_batches_need_few_open_files(tmp_path: Path) -> None:
    images = [image(i, 32, 32) for i in range(320)]
    shape = {"segmentation": [[2, 2, 20, 2, 20, 12, 2, 12]]}
    rows = [annotation(2 * i + j, i, [2, 2, 18, 10], **shape) for i in range(320) for j in range(2)]
    write_dataset(tmp_path, images, rows)
    program = [sys.executable, "-c", FEW_FILES, str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_fields_that_only_some_targets_have(tmp_path: Path) -> None:
    loader = batching._Loader(
        [0, 1, 2],  # type: ignore[arg-type]
        batch_size=3,
        collate_fn=lambda indices: batching._collate_samples(
            [
                (
                    torch.zeros(3, 4, 5),
                    {"labels": torch.arange(i), **({"masks": torch.ones(i, 4, 5).bool()} if i else {})},
                )
                for i in indices
            ]
        ),
    )
    ((images, targets),) = loader
    assert images.tensors.shape == (3, 3, 4, 5)
    assert [sorted(target) for target in targets] == [["labels"], ["labels", "masks"], ["labels", "masks"]]
    assert [target["labels"].tolist() for target in targets] == [[], [0], [0, 1]]
    assert targets[2]["masks"].shape == (2, 4, 5)
    assert targets[2]["masks"].all()
