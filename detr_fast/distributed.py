"""The few things that a run on several processes needs, all no-ops in a single process.

Distribution is torchrun + `DistributedDataParallel`: the trainer needs a gradient all-reduce, one small
all-reduce in the criterion and one gather in the evaluation, and it keeps exact control of accumulation and
of what a checkpoint holds; a launcher library would add a dependency and hide those three calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@contextmanager
def process_group(device: torch.device, timeout: timedelta | None = None) -> Iterator[None]:
    """Joins torchrun's processes for the time of a block; does nothing without torchrun.

    Args:
        device: what they talk about.
        timeout: how long one waits for the others; by default torch's half hour.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """`auto`: this process's GPU where there is one, else the CPU; others as `torch.device` reads them."""
    if name == "auto":
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda[:index]'; got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} was asked for, but this torch sees no CUDA device")
    return device


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """The picklable values of all ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values
