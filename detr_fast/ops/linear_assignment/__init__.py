"""Exact linear assignment of ragged batches: each target gets a query of its own at the least total cost.

Solved by successive shortest augmenting paths (Jonker and Volgenant, "A shortest augmenting path
algorithm for dense and sparse linear assignment problems", Computing 38, 1987) after a few rounds of
epsilon = 0 auction bidding (Bertsekas, "The auction algorithm", Annals of Operations Research 14, 1988).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.linear_assignment import cpu, cuda, reference, triton
from detr_fast.ops.memory import ready
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.register import Registered, watched

__all__ = ["OPERATOR", "linear_assignment"]


Method = Literal["paths", "auction"]
_METHODS = get_args(Method)
_INTEGER = frozenset((int,))
_HOST, _FLOAT64 = torch.device("cpu"), torch.float64
_KERNEL_DTYPES = frozenset((torch.float32, torch.float64))

OPERATOR = Operator(
    "linear_assignment",
    Backend("cuda", cuda.BACKEND, on_cuda(also=(torch.float64,)), cuda.why_not_rows),
    Backend("triton", triton, on_triton(also=(torch.float64,)), cuda.why_not_rows),
    Backend("cpu", cpu, on_cpu(also=(torch.float64,))),
    Backend("reference", reference, reference.why_not),
)


@overload
def linear_assignment(
    costs: Tensor,
    num_targets: Sequence[int],
    *,
    maximize: bool = False,
    return_status: Literal[False] = False,
    method: Method = "paths",
    backend: str | None = None,
) -> Tensor: ...
@overload
def linear_assignment(
    costs: Tensor,
    num_targets: Sequence[int],
    *,
    maximize: bool = False,
    return_status: Literal[True],
    method: Method = "paths",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def linear_assignment(
    costs: Tensor,
    num_targets: None = None,
    *,
    maximize: bool = False,
    method: Method = "paths",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def linear_assignment(
    costs: ArrayLike,
    num_targets: None = None,
    *,
    maximize: bool = False,
    method: Method = "paths",
    backend: str | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...
def linear_assignment(
    costs: Any,
    num_targets: Sequence[int] | None = None,
    *,
    maximize: bool = False,
    return_status: bool = False,
    method: Method = "paths",
    backend: str | None = None,
) -> Any:
    """Gives every target a query of its own so that the costs add up to the least possible total.

    One call solves all problems: one for each image and each index of the leading dimensions (decoder
    layers). The result is exact, to float64 rounding, whatever the dtype of the costs. It is discrete:
    no gradient flows, and costs that require one are used detached. Between assignments of equal total
    the choice is arbitrary but fixed: it depends on the costs of that problem alone, not on threads,
    on the other problems or on how the costs lie in memory.

    Any strides are accepted. For problems of equal size held as [B, Q, T], as most DETR code has them,
    pass `costs.transpose(1, 2)` with `num_targets=[T]`: nothing is copied.

    Entries that are not finite: +inf forbids its pair. NaN and -inf cost more than any assignment of
    the finite entries of their problem (with R = min(T, Q) pairs, more than R * max - (R - 1) * min), so
    such a pair is only taken where there is no way around it, and a training run survives it.

    Without `num_targets`, `linear_assignment(cost_matrix)` is `scipy.optimize.linear_sum_assignment`: one
    [n, m] matrix (tensor, array or nested lists of any real dtype) to (row_ind, col_ind), rows ascending,
    as tensors on the device of a tensor, else as arrays. There, as in scipy, NaN and -inf are errors, and so
    are infeasible matrices on any device; raising them waits for a GPU.

    Args:
        costs: [..., sumT, Q] floating point; row t holds the costs of packed target t against the Q
            queries of its own image. float16 and bfloat16 are widened to float32.
        num_targets: the number of targets T of each image, as Python ints that add up to sumT.
        maximize: looks for the largest total instead.
        return_status: also returns a status for each problem instead of raising where one has no
            finite solution.
        method: "paths" is the algorithm named above. "auction" is there to be compared with it, in the
            "cuda" backend alone: an auction with epsilon > 0, whose matching is returned if a dual
            certificate proves it optimal; every other problem is solved by "paths". As exact, and no
            faster by count of steps: where bids settle everything, "paths" does the same without a
            certificate, and where predictions are nearly alike the auction gives up after 256 rounds
            that "paths" does without (counts in benchmarks/README.md).
        backend: pins a backend. "cuda" does not wait for the device, so it never raises for an
            infeasible problem: its targets get -1, and the status tells. "reference" copies tensors on
            a GPU to the host and back; it also serves GPU calls with min(T, Q) above 2048 in an image,
            which would hold a GPU for seconds.

    Returns:
        The query of each target, int64 [..., sumT]; -1 where an image has more targets than queries and
        this one was left out, and for all targets of an infeasible problem. With `return_status`, also
        int32 [..., B]: 0 = solved, 1 = infeasible (too many +inf).

    Raises:
        ValueError: a wrong shape; an unknown method, or one that the backend lacks; an infeasible problem
            where `return_status` is False (not from "cuda").
        TypeError: a wrong dtype, or num_targets that are not ints.
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected 'paths' or 'auction'; got {method!r}")
    if num_targets is None:
        if return_status:
            raise ValueError("return_status: needs num_targets; one matrix raises where it is infeasible")
        return _one_matrix(costs, maximize, method, backend)
    if not isinstance(costs, Tensor):
        raise TypeError(
            f"costs: expected a tensor [..., sumT, Q] with num_targets; got {type(costs).__name__}"
        )
    if costs.dtype not in _KERNEL_DTYPES:
        if not costs.dtype.is_floating_point:
            raise TypeError(f"costs: expected a floating point dtype; got {costs.dtype}")
        costs = costs.float()
    if isinstance(num_targets, Tensor):
        raise TypeError("num_targets: expected Python ints (the targets of each image); got a tensor")
    if not _INTEGER.issuperset(map(type, num_targets)):  # `index` would fix the numbers of a traced call
        num_targets = list(map(index, num_targets))
    shape, total = costs.shape, sum(num_targets)
    if len(shape) < 2 or shape[-2] != total:
        raise ValueError(
            f"costs: expected [..., sumT, Q] with sumT = sum(num_targets) = {total}; got {list(shape)}"
        )
    if num_targets and min(num_targets) < 0:
        raise ValueError(f"num_targets: expected no negative number of targets; got {num_targets}")
    if costs.requires_grad:
        costs = costs.detach()
    if maximize:
        costs = -costs
    query, status = _CALL((costs, num_targets, not return_status, method), backend)
    return (query, status) if return_status else query


def _solve(solver: Any, call: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    costs, num_targets, check, method = call
    if method == "paths":
        return solver.solve(costs, num_targets, check)
    if not isinstance(solver, cuda.Cuda):
        raise ValueError('method: "auction" is in the "cuda" backend only; this call uses another')
    return solver.solve(costs, num_targets, check, by_auction=True)


def _fake(costs: Tensor, num_targets: Sequence[int], check: bool, method: str) -> tuple[Tensor, Tensor]:
    status = 0 if check else (*costs.shape[:-2], len(num_targets))
    return costs.new_empty(costs.shape[:-1], dtype=torch.int64), costs.new_empty(status, dtype=torch.int32)


def _has_many_rows(arguments: Sequence[Any]) -> bool:
    costs, num_targets = arguments[:2]
    return costs.shape[-1] > cuda.MOST_ROWS and max(num_targets, default=0) > cuda.MOST_ROWS


_CALL = Registered(
    OPERATOR,
    "(Tensor costs, SymInt[] num_targets, bool check, str method) -> (Tensor, Tensor)",
    _fake,
    _solve,
    shape_key=_has_many_rows,
    fold=(0,),
    fold_ndim=3,
)


def _one_matrix(matrix: Any, maximize: bool, method: Method, backend: str | None) -> tuple[Any, Any]:
    """`scipy.optimize.linear_sum_assignment`, its errors included."""
    if type(matrix) is np.ndarray or not isinstance(matrix, Tensor):  # the latter takes four times as long
        if method == "paths" and OPERATOR.select(_HOST, _FLOAT64, backend) is cpu:
            return cpu.solve_matrix(-cpu.real(matrix) if maximize else matrix)
        costs = cpu.real(matrix)
        # torch takes neither negative strides nor memory that is not writable
        rows, columns = _one_tensor(torch.from_numpy(costs.copy()), maximize, method, backend)
        return rows.numpy(), columns.numpy()
    tensor = matrix.detach()
    if tensor.is_complex():
        raise TypeError(f"costs: expected real numbers; got {tensor.dtype}")
    if tensor.dtype not in _KERNEL_DTYPES:
        tensor = tensor.double()
    if tensor.device == _HOST and type(tensor) is Tensor and not watched(tensor):
        rows, columns = _one_matrix(ready(tensor, contiguous=False).numpy(), maximize, method, backend)
        return torch.from_numpy(rows), torch.from_numpy(columns)
    return _one_tensor(tensor, maximize, method, backend)


def _one_tensor(costs: Tensor, maximize: bool, method: Method, backend: str | None) -> tuple[Tensor, Tensor]:
    if costs.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {costs.ndim} array")
    if maximize:
        costs = -costs
    # written so that NaN fails it too
    if costs.numel() and not costs.min() > -torch.inf:
        raise ValueError("matrix contains invalid numeric entries")
    query, status = linear_assignment(
        costs, [costs.shape[0]], return_status=True, method=method, backend=backend
    )
    if status:
        raise ValueError("cost matrix is infeasible")
    rows = torch.nonzero(query >= 0).flatten()
    return rows, query[rows]
