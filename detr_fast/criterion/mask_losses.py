"""The mask terms of set losses, for all decoder layers and images in one pass each.

A *row* is one target in one layer: the map of its query beside its mask. Letters as in
`detr_fast.structures`; R rows = L * sumT, X values of a row. Full-resolution maps are never kept: they are
made a few rows at a time. Nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.masks import chunks
from detr_fast.ops.point_sample import point_sample
from detr_fast.structures import MaskPredictions, PackedTargets


class Focal(NamedTuple):
    """The balance and the exponent of a focal loss (arXiv:1708.02002); alpha < 0: no balance."""

    alpha: float = 0.25
    gamma: float = 2.0


FOCAL = Focal()


class Matched(NamedTuple):
    """Predicted maps beside the masks of their targets.

    Args:
        maps: [M, h, w] logits of all queries.
        map_index: [R], the map of each row; any where a target is unmatched.
        targets: with masks.
        query: [L, sumT] as in `Matches`.
        num_masks: what the sums over targets are divided by.
    """

    maps: Tensor
    map_index: Tensor
    targets: PackedTargets
    query: Tensor
    num_masks: Tensor | float

    @classmethod
    def of(
        cls,
        predictions: MaskPredictions,
        targets: PackedTargets,
        query: Tensor,
        num_masks: Tensor | float = 1.0,
    ) -> Matched:
        maps, place = predictions.maps()
        rows = place[:, targets.batch_index] * maps.shape[1] + query.clamp(min=0)
        return cls(maps.flatten(0, 1), rows.flatten(), targets, query, num_masks)

    @property
    def masks(self) -> Tensor:
        """[sumT, H, W] bool."""
        assert self.targets.masks is not None
        return self.targets.masks

    @property
    def target_index(self) -> Tensor:
        """[R], the target of each row."""
        layers, total = self.query.shape
        return torch.arange(total, device=self.query.device).repeat(layers)

    def by_layer(self, losses: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[L] each: of two losses [R] the sums over matched rows, divided by `num_masks`."""
        shape, matched = self.query.shape, self.query >= 0
        mask, dice = (loss.view(shape).where(matched, 0).sum(1) / self.num_masks for loss in losses)
        return mask, dice


def point_losses(matched: Matched, points: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, the mean over each row's points, and dice loss (arXiv:2112.01527, section 3.3).

    Args:
        matched: R rows.
        points: [R, P, 2], (x, y) in 0..1.

    Returns:
        [L] each.
    """
    found = point_sample(matched.maps[:, None], points, map_index=matched.map_index)[:, 0]
    wanted = point_sample(matched.masks[:, None], points, map_index=matched.target_index)[:, 0]
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return matched.by_layer(RowLosses.apply(found, wanted.to(found.dtype), None))


def map_losses(matched: Matched, focal: Focal = FOCAL) -> tuple[Tensor, Tensor]:
    """Focal loss, the mean over the pixels of the target, and dice loss of bilinearly upsampled logits.

    As in DETR (arXiv:2005.12872, section 4.4) and MaskFormer (arXiv:2107.06278, section 3.3).

    Returns:
        [L] each.
    """
    losses = MapLosses.apply(matched.maps, matched.masks, matched.map_index, matched.target_index, focal)
    return matched.by_layer(losses)


class RowLosses(torch.autograd.Function):
    """Mean cross-entropy (or focal loss) [R] and dice loss [R] of logits x and targets t in 0..1, [R, X].

    Keeps nothing but its inputs; autograd would keep three more tensors of their size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, focal: Focal | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, t)
        ctx.focal = focal
        parts = _chunks(len(x), x.shape[1], x.device)
        return _joined([Compared.of(x[rows], t[rows], focal).losses() for rows in parts], x)

    @staticmethod
    def backward(ctx: Any, grad_mask: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        x, t = ctx.saved_tensors
        grad, gamma = torch.empty_like(x), ctx.focal.gamma if ctx.focal is not None else 1.0
        for rows in _chunks(len(x), x.shape[1], x.device):
            by_mask, by_dice = Compared.of(x[rows], t[rows], ctx.focal).slopes(gamma)
            grad[rows] = by_mask * grad_mask[rows, None] + by_dice * grad_dice[rows, None]
        return grad, None, None


class MapLosses(torch.autograd.Function):
    """`RowLosses` of maps [M, h, w] upsampled to the size of masks [sumT, H, W].

    Args:
        map_index, target_index: [R] int64, which map and mask a row compares.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, masks: Tensor, map_index: Tensor, target_index: Tensor, focal: Focal
    ) -> tuple[Tensor, Tensor]:
        parts, slopes = [], []
        for rows in _chunks(len(map_index), masks[0:1].numel() or 1, maps.device):
            x, t = _upsampled(maps, masks, map_index[rows], target_index[rows])
            compared = Compared.of(x, t, focal)
            parts.append(compared.losses())
            if ctx.needs_input_grad[0]:
                full = torch.stack(compared.slopes(focal.gamma)).unflatten(-1, masks.shape[1:])
                slopes.append(_upsampling_backward(full, maps.shape[1:]))
        # the slopes of small maps, rather than all that they are made of once more
        ctx.save_for_backward(map_index, *slopes)
        ctx.shape, ctx.dtype = maps.shape, maps.dtype
        return _joined(parts, maps)

    @staticmethod
    def backward(ctx: Any, grad_mask: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        map_index, *slopes = ctx.saved_tensors
        grad = torch.zeros(ctx.shape, dtype=ctx.dtype, device=map_index.device)
        first = 0
        for by_mask, by_dice in slopes:
            rows = slice(first, first := first + len(by_mask))
            found = by_mask * grad_mask[rows, None, None] + by_dice * grad_dice[rows, None, None]
            grad.index_add_(0, map_index[rows], found.to(grad.dtype))
        return grad, None, None, None, None


def _upsampled(maps: Tensor, masks: Tensor, map_index: Tensor, target_index: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of some rows, [r, H * W]."""
    x = maps.index_select(0, map_index)[:, None]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = F.interpolate(x, size=masks.shape[1:], mode="bilinear", align_corners=False)
    return x.flatten(1), masks.index_select(0, target_index).flatten(1).to(x.dtype)


def _upsampling_backward(grad: Tensor, size: torch.Size) -> Tensor:
    """The gradient [2, r, h, w] of maps of `size` from that of the upsampled ones, [2, r, H, W]."""
    if grad.device.type != "cpu":
        flat, to = grad.flatten(0, 1)[:, None], grad.shape[2:]
        shape = [len(flat), 1, *size]
        found = torch.ops.aten.upsample_bilinear2d_backward(flat, to, shape, False)
        return found.view(*grad.shape[:2], *size)
    # torch's CPU kernel takes its time; two products with the weights of rows and columns do not
    rows, columns = (
        F.interpolate(torch.eye(n, dtype=grad.dtype)[None], size=to, mode="linear", align_corners=False)[0]
        for n, to in zip(size, grad.shape[2:], strict=True)
    )
    return rows @ grad @ columns.mT


class Compared(NamedTuple):
    """Logits beside targets, [r, X] each, and what losses and their derivatives share.

    Args:
        t: targets, in 0..1.
        p: probabilities.
        entropy: binary cross-entropies.
        wrong: probabilities of the wrong answer.
        weight: what a focal loss multiplies `entropy * wrong` by; None: no focal loss.
        numerator: [r, 1], twice the overlap, plus one.
        denominator: [r, 1], the sum of both areas, plus one.
    """

    t: Tensor
    p: Tensor
    entropy: Tensor
    wrong: Tensor
    weight: Tensor | None
    numerator: Tensor
    denominator: Tensor

    @classmethod
    def of(cls, x: Tensor, t: Tensor, focal: Focal | None) -> Compared:
        p = x.sigmoid()
        both, overlap = p + t, p * t
        numerator, denominator = (2 * overlap.sum(1, keepdim=True) + 1, both.sum(1, keepdim=True) + 1)
        wrong, weight = both.sub_(overlap, alpha=2), None
        if focal is not None:
            weight = wrong.clamp(min=torch.finfo(p.dtype).tiny).pow_(focal.gamma - 1)
            if focal.alpha >= 0:
                weight *= (2 * focal.alpha - 1) * t + (1 - focal.alpha)
        entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        return cls(t, p, entropy, wrong, weight, numerator, denominator)

    def losses(self) -> tuple[Tensor, Tensor]:
        """[r] mean cross-entropy or focal loss, and dice loss."""
        mask = self.entropy if self.weight is None else self.entropy * self.wrong * self.weight
        return mask.mean(1), 1 - (self.numerator / self.denominator)[:, 0]

    def slopes(self, gamma: float) -> tuple[Tensor, Tensor]:
        """[r, X] each: the derivatives of `losses` by the logits; `gamma` is that of the focal loss."""
        slope = self.p * (1 - self.p)
        by_mask = self.p - self.t
        if self.weight is not None:
            turned = (1 - 2 * self.t).mul_(slope)  # the derivative of `wrong`
            by_mask = by_mask.mul_(self.wrong).addcmul_(self.entropy, turned, value=gamma).mul_(self.weight)
        by_dice = (self.numerator / self.denominator - 2 * self.t).mul_(slope / self.denominator)
        return by_mask / self.p.shape[1], by_dice


def _chunks(rows: int, values: int, device: torch.device) -> Iterable[slice]:
    """Slices of rows whose temporaries stay in a CPU's cache, or small beside a GPU's memory."""
    unrolled = torch.compiler.is_compiling()
    step = max(1, (1 << 24 if device.type != "cpu" or unrolled else 1 << 19) // max(1, values))
    return chunks(rows, step)


def _joined(parts: list[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    if not parts:
        empty = like.new_zeros(0, dtype=torch.promote_types(like.dtype, torch.float32))
        return empty, empty.clone()
    mask, dice = zip(*parts, strict=True)
    return torch.cat(mask), torch.cat(dice)
