"""From samples to batches: collating, shuffling, sharding over ranks, resuming inside an epoch."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from detr_fast.data.dataset import ImageDataset
from detr_fast.data.transforms import Target
from detr_fast.structures import PaddedImages

Batch = tuple[PaddedImages, list[Target]]

# What a person can mend about the data, as against a defect, which keeps its traceback.
_ERRORS_OF_DATA = (ValueError, OSError)


class _Samples(Dataset[Any]):
    """The samples of a data set, a batch at a time; an error in the data stands in for its batch.

    Raised in a worker, it would reach the main process with the worker's traceback inside its message.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        try:
            return [self.dataset[index] for index in indices]
        except _ERRORS_OF_DATA as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on; shown with a traceback, not with a message
                error.add_note(traceback.format_exc())
            return error


def _collate_samples(samples: Any, **options: Any) -> Any:
    """A batch on its way from a worker: as each tensor is a file that both hold open, there are few."""
    if isinstance(samples, Exception):
        return samples
    images, targets = collate(samples, **options)
    names = dict.fromkeys(name for target in targets for name in target)
    return images, len(targets), {name: _joined([target.get(name) for target in targets]) for name in names}


def _joined(values: list[Tensor | None]) -> tuple[Tensor, list[torch.Size | None]]:
    """One field of all targets in one tensor, and each one's shape, None where a target lacks it."""
    there = [value.reshape(-1) for value in values if value is not None]
    return torch.cat(there), [None if value is None else value.shape for value in values]


def _parted(joined: Tensor, shapes: list[torch.Size | None]) -> list[Tensor | None]:
    """What `_joined` joined, in views."""
    parts = iter(joined.split([shape.numel() for shape in shapes if shape is not None]))
    return [None if shape is None else next(parts).view(shape) for shape in shapes]


class _Loader(DataLoader[Batch]):
    """Parts what `_collate_samples` joined, and raises here what `_Samples` caught in a worker."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            images, count, fields = batch
            targets: list[Target] = [{} for _ in range(count)]
            for name, field in fields.items():
                for target, value in zip(targets, _parted(*field), strict=True):
                    if value is not None:
                        target[name] = value
            yield images, targets


def collate(
    batch: Sequence[tuple[Tensor, Target]], *, multiple: int = 1, size: tuple[int, int] | None = None
) -> Batch:
    """Samples to (padded images, list of targets); `multiple` and `size` as for `PaddedImages.from_list`."""
    images, targets = zip(*batch, strict=True)
    return PaddedImages.from_list(images, multiple=multiple, size=size), list(targets)


class TrainBatches(Sampler[list[int]]):
    """Batches of shuffled indices of one rank.

    The order depends on the seed and the epoch alone, so `set_epoch(epoch, skip_batches=k)` goes on after
    the k-th batch of an interrupted epoch without reading an image. All ranks get the same number of
    batches of the same sizes; a few indices occur twice where the ranks do not divide the data set.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool
    ) -> None:
        # DistributedSampler reads nothing of its data set but the length.
        self._sampler: DistributedSampler[int] = DistributedSampler(
            cast(Any, range(length)), num_replicas=world_size, rank=rank, seed=seed
        )
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._skip_batches = 0
        if len(self) == 0:
            raise ValueError(
                f"batch_size: a rank has {len(self._sampler)} images, which do not fill one batch of "
                f"{batch_size}; take a smaller one"
            )

    def set_epoch(self, epoch: int, *, skip_batches: int = 0) -> None:
        """Chooses the order and how many batches at its start are left out, until the next call."""
        self._sampler.set_epoch(epoch)
        self._skip_batches = skip_batches

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self._sampler)
        batches = (indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size))
        return islice(batches, self._skip_batches, len(self))

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        images = len(self._sampler)
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)


def _leave_signals(_: int) -> None:
    """Leaves the process group, which terminals and job schedulers signal: the main process alone decides.

    Workers that outlive it notice, and end.
    """
    os.setpgrp()


def build_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = True,
    pin_memory: bool = False,
    multiple: int = 1,
    size: tuple[int, int] | None = None,
) -> DataLoader[Batch]:
    """A loader of `collate`d batches of one rank.

    Training: shuffled by `TrainBatches`; call `begin_epoch` before each iteration. Evaluation: in order,
    every image on exactly one rank, so ranks may differ in the number of batches by one.
    Iterating leaves torch's global random state alone, and the batches do not depend on `num_workers`.

    Args:
        dataset: the whole data set, the same on every rank.
        batch_size: images a rank.
        train: see above.
        seed: of the order.
        num_workers: processes that read ahead; 0 reads in this process.
        rank: this process.
        world_size: how many processes there are.
        drop_last: training only: leave out an incomplete last batch, as the official DETR does.
        pin_memory: as for `torch.utils.data.DataLoader`.
        multiple: pad height and width to a multiple of it.
        size: (height, width) to pad to; by default the largest of the batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected >= 1; got {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 <= rank < world_size = {world_size}; got {rank}")
    options: dict[str, Any]
    if train:
        options = {
            "batch_sampler": TrainBatches(
                len(dataset), batch_size, seed=seed, rank=rank, world_size=world_size, drop_last=drop_last
            )
        }
    else:
        options = {"batch_size": batch_size, "sampler": range(rank, len(dataset), world_size)}
    return _Loader(
        _Samples(dataset),
        **options,
        collate_fn=partial(_collate_samples, multiple=multiple, size=size),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals,
        # A loader draws its workers' seeds; from its own generator, not from the one that dropout uses.
        generator=torch.Generator().manual_seed(seed),
    )


def begin_epoch(loader: DataLoader[Batch], epoch: int, *, skip_batches: int = 0) -> None:
    """Sets the order and the augmentation of a training loader's next iteration.

    Args:
        loader: from `build_loader(..., train=True)`.
        epoch: counted from 0.
        skip_batches: batches already done, when an interrupted epoch goes on.
    """
    samples, batches = loader.dataset, loader.batch_sampler
    if not isinstance(samples, _Samples) or not isinstance(batches, TrainBatches):
        raise TypeError("loader: expected a loader from build_loader(..., train=True)")
    samples.dataset.set_epoch(epoch)
    batches.set_epoch(epoch, skip_batches=skip_batches)
