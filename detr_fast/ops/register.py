"""One way from a call of an operator to its backend, for all operators alike.

An ordinary call goes straight to the backend, through one `torch.autograd.Function` where a gradient is
wanted, in a third of the time that dispatching a registered operator takes. What records or transforms calls
(torch.compile, torch.export, torch.jit.trace, make_fx, modes, tensor subclasses, torch.func) could not see
what a backend does: it meets the operator that is registered with torch.library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from detr_fast.ops.memory import NoMemory
from detr_fast.ops.operator import Operator

Result: TypeAlias = "Tensor | tuple[Tensor | None, ...]"

_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))
_C = torch._C
_dispatch_modes, _function_modes = _C._len_torch_dispatch_stack, _C._len_torch_function_stack
_transforms, _is_tracing = _C._are_functorch_transforms_active, _C._is_tracing
_Transform = _C._functorch.TransformType
_has_batch = _C._functorch.is_legacy_batchedtensor  # of autograd.grad(..., is_grads_batched=True)


class Registered:
    """An operator as it is called: declared once, reached every way.

    Args:
        operator: the table of backends.
        schema: that of torch.library without the backend: first the tensors, then numbers and strings.
        fake: makes results of the right shape and dtype from arguments without data.
        run: `run(implementation, arguments)` calls a backend; arguments are a tuple, in the schema's order.
        check: raises where arguments do not fit each other, in the caller's words. For an implementation
            with `CHECKS_ARGUMENTS`, which refuses them itself in less time, it only explains why.
        pack: makes that tuple of a list; an ordinary call brings it.
        name: registered name; by default the operator's.
        gradient: `gradient(grad_outputs, tensors, rest, needs, backend)` gives the gradient, or None, of each
            tensor argument, best by another `Registered`. None: results are constants.
        saved: which tensors `gradient` is given; of the others it gets the shape. Default: all.
        by_autograd: an ordinary call of the reference is differentiated by autograd instead of `gradient`.
        decides: the argument whose device and dtype choose the backend.
        shape_key: what GPU backends decide by beside device and dtype, from the tuple of arguments.
        fold: for each tensor, the dimension that vmap may fold its batch into. None: where that tensor has a
            batch, calls are made one after the other.
        fold_ndim: dimensions that the deciding tensor must have for that.
        fold_out: dimension of the results that the batch is then found in.
    """

    def __init__(
        self,
        operator: Operator,
        schema: str,
        fake: Callable[..., Any],
        run: Callable[[Any, Any], Result],
        *,
        check: Callable[[Any], None] | None = None,
        pack: Callable[[Sequence[Any]], Any] = tuple,
        name: str | None = None,
        gradient: Callable[..., Sequence[Tensor | None]] | None = None,
        saved: Sequence[bool] | None = None,
        by_autograd: bool = True,
        decides: int = 0,
        shape_key: Callable[..., Any] | None = None,
        fold: Sequence[int | None] | None = None,
        fold_ndim: int = 0,
        fold_out: int = 0,
    ) -> None:
        self.operator, self.fake, self.run, self.gradient = operator, fake, run, gradient
        self.check, self.pack = check, pack
        self.name = name or operator.name
        self.by_autograd, self.decides, self.shape_key = by_autograd, decides, shape_key
        self.fold_ndim, self.fold_out = fold_ndim, fold_out
        self.reference = operator.backends["reference"].implementation
        inputs, outputs = schema.split(" -> ")
        self.names = [part.split()[1] for part in inputs[1:-1].split(", ")]
        self.tensors = inputs.count("Tensor")
        self.saved = saved
        self.fold = fold or (None,) * self.tensors
        op = torch.library.custom_op(
            f"detr_fast::{self.name}",
            self._kernel,
            mutates_args=(),
            schema=f"{inputs[:-1]}, str? backend) -> {outputs}",
        )
        op.register_fake(lambda *arguments: fake(*arguments[: len(self.names)]))
        if gradient is not None:
            op.register_autograd(self._backward, setup_context=self._setup)
        op.register_vmap(self._vmap)
        self.op = getattr(torch.ops.detr_fast, self.name).default

    def __call__(self, arguments: tuple[Any, ...], backend: str | None = None) -> Any:
        """The result for arguments as `pack` makes them."""
        tensors, check = arguments[: self.tensors], self.check
        if not _PLAIN.issuperset(map(type, tensors)) or watched(tensors[0]):
            if check is not None:
                check(arguments)
            return self._recorded(tensors, arguments, backend)
        try:
            implementation = self._select(arguments, backend)
            if check is not None and not hasattr(implementation, "CHECKS_ARGUMENTS"):
                check(arguments)
            if self.gradient is not None and not (implementation is self.reference and self.by_autograd):
                if forward_ad._current_level >= 0 and implementation is not self.reference:
                    self._refuse_duals(tensors)
                if torch.is_grad_enabled():
                    for tensor in tensors:
                        if tensor is not None and tensor.requires_grad:
                            return _apply(self, implementation, backend, arguments, *tensors)
            return self.run(implementation, arguments)
        except Exception as error:
            if explained := self._explained(error, arguments):
                raise explained from None
            raise

    def _explained(self, error: Exception, arguments: Sequence[Any]) -> Exception | None:
        """The error in the caller's words, where the arguments are to blame."""
        if self.check is not None:
            try:
                self.check(arguments)
            except (TypeError, ValueError) as misfit:
                return misfit
        if isinstance(error, NoMemory):
            tensors = zip(self.names, arguments[: self.tensors], strict=False)
            empty = [name for name, t in tensors if t is not None and t.numel() and not t.data_ptr()]
            return ValueError(f"{(empty or [self.name])[0]}: {error}")
        return None

    def _select(self, arguments: Sequence[Any], backend: str | None) -> Any:
        decides = arguments[self.decides]
        key = self.shape_key(arguments) if self.shape_key is not None and decides.is_cuda else None
        return self.operator.select(decides.device, decides.dtype, backend, key)

    def _recorded(self, tensors: Sequence[Any], arguments: tuple[Any, ...], backend: str | None) -> Any:
        if not torch.compiler.is_compiling():
            if _transforms():
                kinds = {interpreter.key() for interpreter in _C._functorch.get_interpreter_stack()}
                if kinds == {_Transform.Functionalize}:
                    return self.op(*arguments, backend)
                if _Transform.Functionalize in kinds:
                    raise NotImplementedError(
                        f"{self.name} cannot be functionalized inside another transform"
                    )
                # by autograd the reference is differentiable in every way; vmap cannot look at its values
                direct = _Transform.Vmap not in kinds or _Transform.Jvp in kinds
                if direct and self._select(arguments, backend) is self.reference:
                    return self.run(self.reference, arguments)
                return _Transformed.apply(self, backend, tuple(arguments[self.tensors :]), *tensors)
            if forward_ad._current_level >= 0 and self.gradient is not None:
                self._refuse_duals(tensors)
        if self.gradient is None:
            tensors = [tensor.detach() if isinstance(tensor, Tensor) else tensor for tensor in tensors]
        return self.op(*tensors, *arguments[self.tensors :], backend)

    def _refuse_duals(self, tensors: Sequence[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
                raise self._no_forward_mode()

    def _no_forward_mode(self) -> NotImplementedError:
        return NotImplementedError(
            f"{self.name} has no forward-mode derivative in this backend; backend='reference' has"
        )

    def _kernel(self, *arguments: Any) -> Any:
        *inputs, backend = arguments
        result = self.run(self._select(inputs, backend), self.pack(inputs))
        if isinstance(result, Tensor):
            return result
        if all(part is not None for part in result):
            return tuple(result)
        # nobody asked for it, but a registered operator returns something all the same
        fakes = self.fake(*inputs)
        return tuple(fake if part is None else part for part, fake in zip(result, fakes, strict=True))

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self._save(ctx, inputs[: self.tensors], inputs[self.tensors : -1], inputs[-1])

    def _save(self, ctx: Any, tensors: Sequence[Any], rest: tuple[Any, ...], backend: str | None) -> None:
        ctx.rest, ctx.backend = rest, backend
        if self.saved is None:
            ctx.save_for_backward(*tensors)
            return
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in tensors]
        ctx.save_for_backward(*(t if kept else None for t, kept in zip(tensors, self.saved, strict=True)))

    def _backward(self, ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        gradients = self._gradients(
            ctx, grad_outputs, ctx.needs_input_grad[: self.tensors], ctx.saved_tensors
        )
        return (*gradients, *[None] * (len(ctx.rest) + 1))

    def _gradients(
        self, ctx: Any, grad_outputs: Any, needs: Sequence[bool], tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        assert self.gradient is not None
        if self.saved is not None:
            tensors = [
                tensor if kept else shape
                for tensor, shape, kept in zip(tensors, ctx.shapes, self.saved, strict=True)
            ]
        return tuple(self.gradient(grad_outputs, tensors, ctx.rest, needs, ctx.backend))

    def _vmap(self, info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        *inputs, backend = arguments
        rest = inputs[self.tensors :]

        def call(tensors: Sequence[Any]) -> Any:
            return self.op(*tensors, *rest, backend)

        return self._batched(call, info.batch_size, in_dims, inputs[: self.tensors])

    def _batched(
        self, call: Callable[[Sequence[Any]], Any], size: int, in_dims: Sequence[Any], tensors: Sequence[Any]
    ) -> tuple[Any, Any]:
        """A batch of calls: folded into one where `fold` allows it, else one after the other."""
        in_dims = in_dims[: self.tensors]
        batches = [None if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims, strict=True)]
        decides = tensors[self.decides].ndim - (in_dims[self.decides] is not None)
        if decides == self.fold_ndim and not any(
            batch is not None and dim is None for batch, dim in zip(batches, self.fold, strict=True)
        ):
            folded = [
                tensor if tensor is None or dim is None else _fold(tensor, batch, dim, size)
                for tensor, batch, dim in zip(tensors, batches, self.fold, strict=True)
            ]
            result = call(folded)
            if isinstance(result, Tensor):
                return _unfold(result, self.fold_out, size), 0
            results = [_unfold(out, self.fold_out, size) for out in result]
        else:
            calls = [
                call([t if batch is None else batch[i] for t, batch in zip(tensors, batches, strict=True)])
                for i in range(size)
            ]
            if isinstance(calls[0], Tensor):
                return torch.stack(calls), 0
            results = [torch.stack(parts) for parts in zip(*calls, strict=True)]
        return tuple(results), (0,) * len(results)


def watched(first: Tensor) -> bool:
    """Whether something records or transforms all calls, or those with this tensor."""
    return bool(
        torch.compiler.is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _transforms()
        or _is_tracing()
        or first.is_meta
        or _has_batch(first)
    )


def differentiable(
    operator: Operator,
    schema: str,
    fake: Callable[..., Any],
    forward: Callable[[Any, Any], Tensor],
    backward: Callable[[Any, Tensor, Any, Sequence[bool]], Any],
    *,
    by: Sequence[int],
    check: Callable[[Any], None] | None = None,
    pack: Callable[[Sequence[Any]], Any] = tuple,
    decides: int = 0,
    shape_key: Callable[..., Any] | None = None,
    fold: Sequence[int | None] | None = None,
    fold_ndim: int = 0,
    fold_out: int = 0,
) -> Registered:
    """An operator with one result that backends differentiate once and the reference any number of times.

    Args:
        operator: as for `Registered`.
        schema: as for `Registered`.
        fake: as for `Registered`.
        forward: the `run` of `Registered`.
        backward: `backward(implementation, grad_out, arguments, needs)` gives the gradient of the tensor
            `by`, or those of several tensors, None where not needed.
        by: numbers of the tensors that the result is differentiable by.
        check: as for `Registered`.
        pack: as for `Registered`.
        decides: as for `Registered`.
        shape_key: as for `Registered`.
        fold: as for `Registered`.
        fold_ndim: as for `Registered`.
        fold_out: as for `Registered`.
    """
    inputs = schema.split(" -> ")[0]

    def fake_gradients(grad_out: Tensor, *arguments: Any) -> Any:
        some = arguments[decides]
        fakes = [
            arguments[i].new_empty(arguments[i].shape) if need else some.new_empty(0)
            for i, need in zip(by, arguments[-1], strict=True)
        ]
        return fakes[0] if len(by) == 1 else tuple(fakes)

    results = "Tensor" if len(by) == 1 else f"({', '.join(['Tensor'] * len(by))})"
    gradients = Registered(
        operator,
        f"(Tensor grad_out, {inputs[1:-1]}, bool[] needs) -> {results}",
        fake_gradients,
        lambda implementation, call: backward(implementation, call[0], pack(call[1:-1]), call[-1]),
        name=f"{operator.name}_backward",
        gradient=_refuse(operator.name),
        decides=decides + 1,
        shape_key=shape_key and (lambda arguments: shape_key(arguments[1:-1])),
        fold=fold and (fold_out, *fold),
        fold_ndim=fold_ndim,
    )

    def gradient(
        grad_outputs: Any,
        tensors: Sequence[Any],
        rest: Sequence[Any],
        needs: Sequence[bool],
        backend: str | None,
    ) -> Sequence[Tensor | None]:
        wanted = tuple([needs[i] for i in by])
        found = gradients((grad_outputs[0], *tensors, *rest, wanted), backend)
        every: list[Tensor | None] = [None] * len(tensors)
        for i, grad in zip(by, (found,) if len(by) == 1 else found, strict=True):
            if needs[i]:
                every[i] = grad
        return every

    return Registered(
        operator,
        schema,
        fake,
        forward,
        check=check,
        pack=pack,
        gradient=gradient,
        decides=decides,
        shape_key=shape_key,
        fold=fold,
        fold_ndim=fold_ndim,
        fold_out=fold_out,
    )


def _refuse(name: str) -> Callable[..., Sequence[Tensor | None]]:
    """The gradient of a gradient that no backend but the reference can differentiate."""

    def gradient(*unused: Any) -> Sequence[Tensor | None]:
        raise RuntimeError(f"{name} cannot be differentiated twice by this backend; backend='reference' can")

    return gradient


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: Registered,
        implementation: Any,
        backend: str | None,
        arguments: tuple[Any, ...],
        *tensors: Any,
    ) -> Any:
        ctx.call = call
        call._save(ctx, tensors, arguments[call.tensors :], backend)
        result = call.run(implementation, arguments)
        return result if isinstance(result, Tensor) else tuple(result)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        gradients = ctx.call._gradients(ctx, grad_outputs, ctx.needs_input_grad[4:], ctx.saved_tensors)
        return (None, None, None, None, *gradients)


# `Function.apply` without its preparation for `torch.func`: a tenth of the call
_apply = super(torch.autograd.Function, _Eager).apply


class _Transformed(torch.autograd.Function):
    """The registered operator under torch.func."""

    @staticmethod
    def forward(call: Registered, backend: str | None, rest: tuple[Any, ...], *tensors: Any) -> Any:
        return call.op(*tensors, *rest, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, backend, rest, *tensors = inputs
        ctx.call = call
        call._save(ctx, tensors, rest, backend)
        if call.gradient is None:
            outputs = (output,) if isinstance(output, Tensor) else output
            ctx.mark_non_differentiable(*outputs)
            ctx.no_tangents = None if isinstance(output, Tensor) else (None,) * len(outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        if ctx.call.gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        needs, tensors = ctx.needs_input_grad[3:], ctx.saved_tensors
        # what `torch.func.vjp` returns is called when its transform, and with it their wrappers, have ended
        tensors = [None if t is None else _C._functorch.unwrap_if_dead(t) for t in tensors]
        return (None, None, None, *ctx.call._gradients(ctx, grad_outputs, needs, tensors))

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, call: Registered, backend: str | None, rest: tuple[Any, ...], *tensors: Any
    ) -> Any:
        return call._batched(
            lambda some: _Transformed.apply(call, backend, rest, *some), info.batch_size, in_dims[3:], tensors
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        if ctx.call.gradient is None:
            return ctx.no_tangents
        raise ctx.call._no_forward_mode()


def _fold(tensor: Tensor, batch: Tensor | None, dim: int, size: int) -> Tensor:
    """[..., n, ...] repeated, or its batch [size, ..., n, ...], as [..., size * n, ...]."""
    if batch is None:
        batch = tensor.expand(size, *tensor.shape)
    return batch.movedim(0, dim).flatten(dim, dim + 1)


def _unfold(out: Tensor, dim: int, size: int) -> Tensor:
    """[..., size * n, ...] to [size, ..., n, ...]."""
    shape = (*out.shape[:dim], size, out.shape[dim] // size, *out.shape[dim + 1 :])
    return out.reshape(shape).movedim(dim, 0)
