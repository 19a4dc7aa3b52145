"""Contrastive denoising queries (DINO, Zhang et al. 2022, arXiv:2203.03605, section 3.3).

In training, groups of further queries start from the targets of each image with noise: of each group the
first half, one query a target, from labels and boxes a little off, to be restored; the second half from boxes
further off, to be told as background. All images have as many queries; those that no target takes are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detr_fast.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from detr_fast.structures import DenoisingGroups, PackedTargets


class Noise(NamedTuple):
    """Random numbers for each of the 2 G halves and sumT targets.

    Args:
        label_chance: [2 G, sumT] in 0..1, which labels are replaced.
        label: [2 G, sumT] int64 in [0, K), by what.
        box_sign: [2 G, sumT, 4] of -1 and 1, in which direction each corner's coordinate moves.
        box_part: [2 G, sumT, 4] in 0..1, how far.
    """

    label_chance: Tensor
    label: Tensor
    box_sign: Tensor
    box_part: Tensor

    @classmethod
    def draw(cls, targets: PackedTargets, groups: DenoisingGroups, num_classes: int) -> Noise:
        """From the default generator of the targets' device."""
        boxes = targets.boxes
        shape = (2 * groups.count, len(boxes))
        return cls(
            torch.rand(shape, device=boxes.device),
            torch.randint(num_classes, shape, device=boxes.device),
            torch.randint(2, (*shape, 4), device=boxes.device) * 2 - 1,
            torch.rand((*shape, 4), dtype=boxes.dtype, device=boxes.device),
        )


@dataclass(frozen=True)
class ContrastiveDenoising:
    """How targets become noised queries; the names in brackets are the official options.

    Args:
        number: queries of an image, about (`dn_number`): 2 * number are shared out among its groups.
        label_noise: twice the share of labels that are replaced (`dn_label_noise_ratio`).
        box_noise: how far a coordinate moves at most, in halves of the box's side (`dn_box_noise_scale`):
            those to be restored up to once, background once to twice as far.
        limit_groups: fewer than 50 as `number` are shared out too. The official code makes 2 * number groups
            then, however many targets there are.
    """

    number: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0
    limit_groups: bool = False

    def groups(self, targets: PackedTargets) -> DenoisingGroups | None:
        """How many groups of how many queries the images of a batch get; None without any target."""
        most, total = max(targets.num_targets), 2 * self.number
        if not most or not total:
            return None
        shared_out = total >= 100 or self.limit_groups
        return DenoisingGroups(max(total // (2 * most), 1) if shared_out else total, most)

    def queries(
        self, targets: PackedTargets, groups: DenoisingGroups, noise: Noise, label_embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Content [B, 2 G M, C] and boxes [B, 2 G M, 4] (cx, cy, w, h), their width and height maybe < 0.

        Args:
            targets: of the batch, at most M an image.
            groups: G and M.
            noise: of 2 G halves.
            label_embedding: [K or more, C], a row for each class.
        """
        labels, boxes = self.noised(targets, noise)
        index = (targets.batch_index.expand_as(labels), groups.index(targets))
        batch, count = len(targets), groups.queries
        content = label_embedding.new_zeros(batch, count, label_embedding.shape[1])
        centers = boxes.new_full((batch, count, 4), 0.5)
        return content.index_put(index, label_embedding[labels]), centers.index_put(index, boxes)

    def noised(self, targets: PackedTargets, noise: Noise) -> tuple[Tensor, Tensor]:
        """Labels [2 G, sumT] and boxes [2 G, sumT, 4] with noise; every other half is background's."""
        labels = noise.label.where(noise.label_chance < self.label_noise / 2, targets.labels)
        farther = torch.arange(len(labels), device=labels.device)[:, None, None] % 2
        shift = noise.box_sign * (noise.box_part + farther) * self.box_noise
        boxes = targets.boxes
        corners = box_cxcywh_to_xyxy(boxes) + shift * boxes[:, 2:].repeat(1, 2) / 2
        return labels, box_xyxy_to_cxcywh(corners.clamp(0, 1))
