"""Matching costs of transformers beside classes and boxes: phrases (Grounding DINO), masks (RF-DETR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.ops.mask_match_cost import mask_match_cost
from detr_fast.ops.point_sample import point_sample
from detr_fast.structures import PackedTargets


def phrase_costs(
    logits: Tensor, layer: Mapping[str, Any], labels: Sequence[Tensor], targets: PackedTargets
) -> Tensor:
    """[L, sumT, Q] focal costs, the mean over each target's own tokens (Grounding DINO, arXiv:2303.05499).

    Args:
        logits: [L, B, Q, K] of all layers.
        layer: any layer's outputs with `label_maps`, for each image [phrases, K]: the tokens of a phrase.
        labels: for each image the phrase [T] of each target.
        targets: the same, packed.
    """
    maps = torch.cat([x[chosen] for x, chosen in zip(layer["label_maps"], labels, strict=False)])
    tokens = maps.any(0).nonzero()[:, 0]  # a few of many: the costs of all would take most of the time
    maps, logits = maps[:, tokens], logits[..., tokens]
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    cost = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    shares = (maps / maps.sum(-1, keepdim=True)).to(p.dtype).split(targets.num_targets)
    return torch.cat([share @ cost[:, image].mT for image, share in enumerate(shares)], dim=1)


def mask_costs(
    matcher: Any, layers: Sequence[Mapping[str, Any]], masks: Tensor, targets: PackedTargets, groups: int
) -> Tensor:
    """[L * G, sumT, Q / G] cross-entropy and dice at random points, shared by all masks of a layer (RF-DETR).

    Args:
        matcher: with `cost_mask_class`, `cost_mask_dice` and `mask_point_sample_ratio`.
        layers: each with `pred_masks` [B, Q, h, w].
        masks: [sumT, H, W].
        targets: of the images.
        groups: G.
    """
    labels = torch.zeros_like(targets.labels)
    costs = []
    for predicted in (layer["pred_masks"].detach() for layer in layers):
        images, queries = predicted.shape[:2]
        count = images * queries * 4 // matcher.mask_point_sample_ratio  # as upstream counts them
        points = torch.rand(1, count, 2, device=predicted.device)
        found = point_sample(predicted, points, point_index=labels.new_zeros(images))
        found = found.unflatten(1, (groups, -1)).transpose(0, 1)
        grid = (2 * points - 1)[:, :, None].expand(len(masks), -1, -1, -1)
        wanted = F.grid_sample(masks[:, None].to(points.dtype), grid, mode="nearest", align_corners=False)
        costs.append(
            mask_match_cost(
                found.new_zeros(*found.shape[:3], 1),
                found,
                labels,
                wanted[:, 0, :, 0],
                targets.num_targets,
                w_class=0.0,
                w_mask=matcher.cost_mask_class,
                w_dice=matcher.cost_mask_dice,
            )
        )
    return torch.cat(costs)
