"""Pickled tensors: what torch's names in a checkpoint stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detr_fast.checkpoints.pickle_arrays import NUMPY_NAMES, counts
from detr_fast.checkpoints.pickle_machine import Name, Names, StandIn
from detr_fast.checkpoints.pickle_values import PLAIN_NAMES, Contents

# small tensors may repeat their storage's elements, by strides of 0; large ones would claim memory
MAX_REPEATED = 1 << 20

STORAGES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}
QUANTISED = ("Int8", "Int32", "UInt8", "UInt4x2", "UInt2x4")
DTYPES = {name: dtype for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)}


@dataclass(frozen=True)
class StorageKind(StandIn):
    """What a kind of storage holds; dtype None: each tensor tells its own."""

    dtype: torch.dtype | None


@dataclass(frozen=True)
class Storage(StandIn):
    """A tensor's memory: its bytes [n], and what they are."""

    data: Tensor
    dtype: torch.dtype | None


@dataclass(frozen=True)
class StridedTensor(Contents):
    """Stands for a tensor; those over one storage go on sharing it."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    own_dtype: Any = None

    def value(self) -> Tensor:
        dtype = self.own_dtype or getattr(self.storage, "dtype", None)
        if not isinstance(self.storage, Storage) or not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor without storage or dtype")
        shape, stride = counts(self.shape, "shape"), counts(self.stride, "stride")
        (offset,) = counts((self.offset,), "storage offset")
        if len(shape) != len(stride):
            raise ValueError(f"a tensor of shape {list(shape)} and strides {list(stride)}")
        numel = math.prod(shape)
        if not numel:
            return torch.empty(shape, dtype=dtype)
        elements = self.storage.data.numel() // dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if last >= elements or numel > max(elements, MAX_REPEATED):
            raise ValueError(f"a tensor of shape {list(shape)} in a storage of {elements} elements")
        return self.storage.data[: elements * dtype.itemsize].view(dtype).as_strided(shape, stride, offset)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *options: Any) -> StridedTensor:
    return _with_metadata(StridedTensor(storage, offset, shape, stride), options[2:])


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *metadata: Any
) -> StridedTensor:
    return _with_metadata(StridedTensor(storage, offset, shape, stride, dtype), metadata)


def _with_metadata(tensor: StridedTensor, metadata: tuple[Any, ...]) -> StridedTensor:
    if any(metadata):
        raise ValueError("expected tensors of plain memory; got one with a negative or conjugate bit")
    return tensor


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _with_attributes(make: Any, kind: Any, arguments: Any, attributes: Any) -> Any:
    if not isinstance(make, Name) or not isinstance(arguments, tuple):
        raise ValueError("a tensor that nothing makes")
    return make.make(*arguments)


def _refused(what: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise ValueError(f"expected dense tensors of numbers; got {what}")

    return refuse


def _device(kind: Any, index: Any = None) -> str:
    return f"{kind:.20}" if index is None else f"{kind:.20}:{index:d}"


UTILS: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_with_dtype,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_qtensor": _refused("quantised ones"),
    "_rebuild_sparse_tensor": _refused("sparse ones"),
    "_rebuild_nested_tensor": _refused("nested ones"),
    "_rebuild_meta_tensor_no_storage": _refused("ones of the device meta, which have no values"),
}

TORCH_NAMES: Names = {
    **PLAIN_NAMES,
    **NUMPY_NAMES,
    **{("torch._utils", name): make for name, make in UTILS.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
    ("torch.serialization", "_get_layout"): _refused("sparse ones"),
    ("torch", "Tensor"): _refused("a tensor by its type alone"),
    ("torch.nn.parameter", "Parameter"): _refused("a parameter by its type alone"),
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch", "device"): _device,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **{
        (module, name): StorageKind(dtype)
        for module in ("torch", "torch.storage")
        for name, dtype in STORAGES.items()
    },
    **{("torch", f"Q{kind}Storage"): _refused("quantised ones") for kind in QUANTISED},
}
