"""What all set criteria share: loss names, weights, normalisers and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detr_fast.matcher import SetMatcher
from detr_fast.structures import PackedTargets


class StackedCriterion(nn.Module):
    """A set criterion over stacked decoder layers.

    Args:
        num_classes: classes without "no object".
        matcher: gives min(T, Q) targets of each image a query of their own, as `Matches`.
        weight_dict: the weight of each named loss in `total`.
        eos_coef: the weight of "no object" in the cross-entropy.
        losses: which of `known_losses` to compute; by default `default_losses`.
    """

    known_losses: tuple[str, ...]
    default_losses: tuple[str, ...]
    extra_logits = 1
    """Number of extra logits (1 for softmax, 0 for focal)."""

    def __init__(
        self,
        num_classes: int,
        matcher: SetMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float = 0.1,
        losses: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        losses = self.default_losses if losses is None else losses
        unknown = [name for name in losses if name not in self.known_losses]
        if unknown:
            raise ValueError(f"losses: expected some of {', '.join(self.known_losses)}; got {unknown[0]!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1; got {num_classes}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.losses = tuple(losses)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses that have a weight: what to call `backward` on."""
        by_weight: dict[float, list[Tensor]] = {}
        for name, weight in self.weight_dict.items():
            if name in losses:
                by_weight.setdefault(weight, []).append(losses[name])
        if not by_weight:
            raise ValueError(f"losses: expected some of {sorted(self.weight_dict)}; got {sorted(losses)}")
        return torch.stack([weight * torch.stack(terms).sum() for weight, terms in by_weight.items()]).sum()

    def _normalizers(
        self, targets: PackedTargets, joined_num_targets: Sequence[int] | None, logits: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        """Targets, at least 1, and summed class weights of the joined batch, means over the ranks."""
        num_targets = targets.num_targets if joined_num_targets is None else joined_num_targets
        queries, total = logits.shape[2], sum(num_targets)
        matched = sum(min(count, queries) for count in num_targets)
        weight = matched + self.eos_coef * (len(num_targets) * queries - matched)
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return float(max(total, 1)), weight
        # filled on the device: a copy from the host would wait for it
        totals = torch.stack([torch.full((), float(x), device=logits.device) for x in (total, weight)])
        torch.distributed.all_reduce(totals)
        means = totals / torch.distributed.get_world_size()
        return means[0].clamp(min=1), means[1]

    def _check_classes(self, logits: Tensor, targets: PackedTargets) -> None:
        labels = targets.labels
        if logits.ndim != 4 or logits.shape[3] != self.num_classes + self.extra_logits:
            raise ValueError(
                f"outputs: expected logits [L, B, Q, {'K + 1' if self.extra_logits else 'K'}] "
                f"with K = {self.num_classes}; got {list(logits.shape)}"
            )
        if len(targets) != logits.shape[1]:
            raise ValueError(f"targets: expected B = {logits.shape[1]} images as outputs; got {len(targets)}")
        # a compiled graph cannot look; there the match costs raise
        if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
            low, high = (int(x) for x in torch.aminmax(labels))
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"targets: expected labels in [0, {self.num_classes}); got {low if low < 0 else high}"
                )


def check_masks(masks: Tensor, layers_images_queries: tuple[int, ...], targets: PackedTargets) -> None:
    """Raises where predicted `masks` are not [L, B, Q, h, w], over the same padded images as the targets'."""
    if masks.ndim != 5 or masks.shape[:3] != layers_images_queries:
        raise ValueError(
            f"outputs: expected masks [L, B, Q, h, w] with L, B, Q = {[*layers_images_queries]}; "
            f"got {list(masks.shape)}"
        )
    if targets.masks is None:
        raise ValueError("targets: expected masks [sumT, H, W]; got targets without masks")
    (height, width), (h, w) = targets.masks.shape[1:], masks.shape[-2:]
    stride = max(-(-height // max(h, 1)), -(-width // max(w, 1)), 1)
    if (-(-height // stride), -(-width // stride)) != (h, w):
        raise ValueError(
            f"targets: expected masks padded as the images, (H, W) = a whole number of times the predicted "
            f"{(h, w)}; got {(height, width)}. PackedTargets.from_list(targets, mask_size=(H, W)) pads them"
        )


def suffixes(layers: int) -> list[str]:
    """Of the loss names, in the order of the decoder layers."""
    return [*(f"_{layer}" for layer in range(layers - 1)), ""]


def by_name(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One scalar a layer under its official name, from one [L] tensor a loss."""
    return {
        f"{name}{suffix}": value
        for name, values in losses.items()
        for suffix, value in zip(suffixes(len(values)), values.unbind(), strict=True)
    }


def layer_weights(layers: int, weights: Mapping[str, float]) -> dict[str, float]:
    """The same weights for each of `layers` decoder layers, under the official names."""
    return {f"{name}{suffix}": weight for suffix in suffixes(layers) for name, weight in weights.items()}
