"""The data passed between data sets, models, matching and losses.

Letters: `B` images, `L` decoder layers, `Q` queries, `T` targets of one image, `sumT` targets of the
batch, `K` classes, `H`, `W` the padded batch's height and width, `h`, `w` a mask head's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedImages:
    """Images of different sizes in one tensor, padded with zeros at the bottom and right.

    Args:
        tensors: [B, 3, H, W] float.
        mask: [B, H, W] bool, True = padding.
    """

    tensors: Tensor
    mask: Tensor

    @classmethod
    def from_list(
        cls, images: Sequence[Tensor], *, multiple: int = 1, size: tuple[int, int] | None = None
    ) -> PaddedImages:
        """Pads images to the largest height and width of the batch.

        Args:
            images: [C, H_b, W_b] tensors, at least one.
            multiple: height and width are rounded up to a multiple of it.
            size: (height, width) to pad to instead; no image may exceed it.

        Raises:
            ValueError: a shape or option does not fit; the message names the argument.
        """
        if multiple < 1:
            raise ValueError(f"multiple: expected an integer >= 1; got {multiple}")
        if not images:
            raise ValueError("images: expected at least one [C, H, W] tensor; got an empty list")
        channels = images[0].shape[0]
        for i, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != channels:
                raise ValueError(f"images[{i}]: expected [{channels}, H, W]; got {list(image.shape)}")
        height, width = (-(-max(x.shape[i] for x in images) // multiple) * multiple for i in (1, 2))
        if size is not None:
            if height > size[0] or width > size[1]:
                raise ValueError(f"size: expected at least {(height, width)}, as the images need; got {size}")
            height, width = size
        tensors = images[0].new_zeros(len(images), channels, height, width)
        mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
        for i, image in enumerate(images):
            tensors[i, :, : image.shape[1], : image.shape[2]] = image
            mask[i, : image.shape[1], : image.shape[2]] = False
        return cls(tensors, mask)

    def to(self, *args: Any, **kwargs: Any) -> PaddedImages:
        """Moves or converts as `Tensor.to` does; the mask keeps its dtype."""
        tensors = self.tensors.to(*args, **kwargs)
        return PaddedImages(tensors, self.mask.to(tensors.device, non_blocking=True))

    def __len__(self) -> int:
        return self.tensors.shape[0]


@dataclass(frozen=True)
class PackedTargets:
    """The targets of a batch, image after image, packed once per step.

    Args:
        labels: [sumT] int64 category ids.
        boxes: [sumT, 4] float, (cx, cy, w, h) relative to each image's own size.
        batch_index: [sumT] int64, the image that each target belongs to.
        num_targets: T of each image, as Python ints, so that nothing is read back from a GPU.
        masks: [sumT, H, W] bool, padded with False at the bottom and right as the images are; None where the
            targets have none.
    """

    labels: Tensor
    boxes: Tensor
    batch_index: Tensor
    num_targets: tuple[int, ...]
    masks: Tensor | None = None

    @classmethod
    def from_list(
        cls, targets: Sequence[Mapping[str, Tensor]], mask_size: tuple[int, int] | None = None
    ) -> PackedTargets:
        """Packs the official form.

        Args:
            targets: for each image `labels` [T] of integers, `boxes` [T, 4] float (cx, cy, w, h) and, in all
                or none, `masks` [T, h, w] bool or uint8.
            mask_size: (H, W) of the padded images; by default the largest height and width of the masks.

        Raises:
            ValueError: a key is missing or a shape does not fit.
            TypeError: labels, boxes or masks of another dtype.
        """
        if not targets:
            raise ValueError("targets: expected one mapping an image; got an empty list")
        for i, target in enumerate(targets):
            for key in ("labels", "boxes"):
                if key not in target:
                    raise ValueError(
                        f"targets[{i}]: expected the keys 'labels' and 'boxes'; got {sorted(target)}"
                    )
            labels, boxes = target["labels"], target["boxes"]
            if labels.ndim != 1 or boxes.shape != (labels.shape[0], 4):
                raise ValueError(
                    f"targets[{i}]: expected labels [T] and boxes [T, 4]; "
                    f"got {list(labels.shape)} and {list(boxes.shape)}"
                )
            if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
                raise TypeError(f"targets[{i}]['labels']: expected integers; got {labels.dtype}")
            if not boxes.is_floating_point():
                raise TypeError(f"targets[{i}]['boxes']: expected a float dtype; got {boxes.dtype}")
        num_targets = tuple(target["labels"].shape[0] for target in targets)
        labels = torch.cat([target["labels"] for target in targets]).long()
        boxes = torch.cat([target["boxes"] for target in targets])
        batch_index = torch.repeat_interleave(
            torch.arange(len(num_targets), device=labels.device),
            torch.tensor(num_targets, device=labels.device),
            output_size=sum(num_targets),
        )
        return cls(labels, boxes, batch_index, num_targets, _packed_masks(targets, mask_size))

    @classmethod
    def of(cls, targets: PackedTargets | Sequence[Mapping[str, Tensor]]) -> PackedTargets:
        """Packed targets as they are, or the official form packed."""
        return targets if isinstance(targets, PackedTargets) else cls.from_list(targets)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedTargets:
        """The same targets on another device."""
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=non_blocking),
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            batch_index=self.batch_index.to(device, non_blocking=non_blocking),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.num_targets)


@dataclass(frozen=True)
class DenoisingGroups:
    """How the denoising queries of an image are laid out (DINO, arXiv:2203.03605, section 3.3).

    Args:
        count: G groups, each of two halves: queries to be restored, then background.
        size: M queries of a half, one a target; the largest number of targets of the batch's images.
    """

    count: int
    size: int

    @property
    def queries(self) -> int:
        """2 G M."""
        return 2 * self.count * self.size

    def index(self, targets: PackedTargets) -> Tensor:
        """[2 G, sumT] int64: the query of each target in each half of each group."""
        image = targets.batch_index
        count = image.new_zeros(len(targets)).index_add(0, image, torch.ones_like(image))
        place = torch.arange(len(image), device=image.device) - (count.cumsum(0) - count)[image]
        return place + torch.arange(2 * self.count, device=image.device)[:, None] * self.size

    def attend(self, queries: int, device: torch.device) -> Tensor:
        """Whom each query attends to, [1, 2 G M + Q, 2 G M + Q] bool with `queries` = Q others after them.

        A group attends to itself and to the others, these to themselves.
        """
        group = torch.arange(self.queries + queries, device=device).div(2 * self.size, rounding_mode="floor")
        group = group.clamp(max=self.count)
        return ((group[:, None] == group) | (group == self.count))[None]


@dataclass(frozen=True)
class Denoised:
    """What is predicted for denoising queries, decoder layers stacked.

    Args:
        logits: [L, B, 2 G M, K].
        boxes: [L, B, 2 G M, 4] (cx, cy, w, h).
        groups: G and M.
    """

    logits: Tensor
    boxes: Tensor
    groups: DenoisingGroups


@dataclass(frozen=True)
class Predictions:
    """What a detector predicts, decoder layers stacked, the last layer last.

    Args:
        logits: [L, B, Q, K]; for softmax models the last class is "no object".
        boxes: [L, B, Q, 4], (cx, cy, w, h) in [0, 1].
        encoder: what the encoder of a two-stage model proposes (L = 1), one for each position (Q = S) or, by
            DINO, each chosen one.
        masks: [1, B, Q, h, w] mask logits over the padded images, from a detector with a mask head, which
            predicts masks for the last layer alone.
        denoised: for denoising queries, in training.
    """

    logits: Tensor
    boxes: Tensor
    encoder: Predictions | None = None
    masks: Tensor | None = None
    denoised: Denoised | None = None

    def as_dict(self, aux: bool = True) -> dict[str, Any]:
        """The official form: `pred_logits`, `pred_boxes`, for earlier layers `aux_outputs`,
        `enc_outputs` of a two-stage encoder, `pred_masks` [B, Q, h, w] of a mask head, and `dn_meta`."""
        outputs = _unstacked({"pred_logits": self.logits, "pred_boxes": self.boxes}, aux)
        if self.encoder is not None:
            outputs["enc_outputs"] = self.encoder.as_dict(aux=False)
        if self.masks is not None:
            outputs["pred_masks"] = self.masks[-1]
        if self.denoised is not None:
            denoised, groups = self.denoised, self.denoised.groups
            known = _unstacked({"pred_logits": denoised.logits, "pred_boxes": denoised.boxes}, aux)
            outputs["dn_meta"] = {
                "pad_size": groups.queries,
                "num_dn_group": groups.count,
                "output_known_lbs_bboxes": known,
            }
        return outputs

    @classmethod
    def from_dict(cls, outputs: Mapping[str, Any]) -> Predictions:
        """Stacks the official form; `aux_outputs`, `enc_outputs` or DINO's `interm_outputs`, `pred_masks` and
        `dn_meta` may be absent."""
        logits, boxes = _stacked(outputs, "pred_logits", "pred_boxes")
        proposed = outputs.get("enc_outputs", outputs.get("interm_outputs"))
        encoder = None if proposed is None else cls.from_dict(proposed)
        masks = outputs["pred_masks"][None] if "pred_masks" in outputs else None
        denoised = None
        if (about := outputs.get("dn_meta")) and about["pad_size"]:
            count = about["num_dn_group"]
            groups = DenoisingGroups(count, about["pad_size"] // (2 * count))
            known = cls.from_dict(about["output_known_lbs_bboxes"])
            denoised = Denoised(known.logits, known.boxes, groups)
        return cls(logits, boxes, encoder, masks, denoised)

    @classmethod
    def of(cls, outputs: Predictions | Mapping[str, Any]) -> Predictions:
        """Predictions as they are, or the official form stacked."""
        return outputs if isinstance(outputs, Predictions) else cls.from_dict(outputs)

    def widened(self) -> Predictions:
        """Logits and boxes alone, in float32 at least."""
        logits, boxes = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (self.logits, self.boxes))
        return Predictions(logits, boxes)

    def last(self) -> Predictions:
        """The last layer alone, still stacked (L = 1)."""
        return Predictions(self.logits[-1:], self.boxes[-1:], masks=self.masks)


@dataclass(frozen=True)
class MaskPredictions:
    """What a mask classifier (MaskFormer, Mask2Former) predicts, decoder layers stacked, the last layer last.

    Args:
        logits: [L, B, Q, K + 1], the last class is "no object".
        masks: [L, B, Q, h, w] mask logits over the padded images.
    """

    logits: Tensor
    masks: Tensor

    def as_dict(self, aux: bool = True) -> dict[str, Any]:
        """The official form: `pred_logits`, `pred_masks` and, for earlier layers, `aux_outputs`."""
        return _unstacked({"pred_logits": self.logits, "pred_masks": self.masks}, aux)

    @classmethod
    def from_dict(cls, outputs: Mapping[str, Any]) -> MaskPredictions:
        """Stacks the official form; `aux_outputs` may be absent."""
        return cls(*_stacked(outputs, "pred_logits", "pred_masks"))

    @classmethod
    def of(cls, outputs: MaskPredictions | Mapping[str, Any]) -> MaskPredictions:
        """Predictions as they are, or the official form stacked."""
        return outputs if isinstance(outputs, MaskPredictions) else cls.from_dict(outputs)

    def maps(self) -> tuple[Tensor, Tensor]:
        """The masks as [L * B, Q, h, w], and where in it those of each layer and image are, [L, B].

        Not copied, be they laid out layer by layer or, as a product with each image's pixels leaves them,
        image by image.
        """
        layers, images = self.masks.shape[:2]
        device = self.masks.device
        if self.masks.transpose(0, 1).is_contiguous():
            place = torch.arange(layers * images, device=device).view(images, layers).T
            return self.masks.transpose(0, 1).flatten(0, 1), place
        return self.masks.flatten(0, 1), torch.arange(layers * images, device=device).view(layers, images)

    def last(self) -> MaskPredictions:
        """The last layer alone, still stacked (L = 1)."""
        return MaskPredictions(self.logits[-1:], self.masks[-1:])


@dataclass(frozen=True)
class Matches:
    """The query that each target got, for every decoder layer.

    Args:
        query: [L, sumT] int64 in packed target order; -1 where an image has more targets than queries and
            this target was left out.
    """

    query: Tensor

    def as_indices(self, targets: PackedTargets, layer: int = -1) -> list[tuple[Tensor, Tensor]]:
        """The official form of one layer: (query indices ascending, target indices) an image, on the CPU."""
        indices = []
        for query in np.split(self.query[layer].cpu().numpy(), np.cumsum(targets.num_targets)[:-1]):
            order = np.argsort(query)[np.count_nonzero(query < 0) :]  # targets left out come first
            indices.append((torch.from_numpy(query[order]), torch.from_numpy(order)))
        return indices


# what models take and return passes through torch.export, and the files that it writes, as it is
for _kind in (PaddedImages, Denoised, Predictions, MaskPredictions):
    torch.export.register_dataclass(_kind, serialized_type_name=f"detr_fast.{_kind.__name__}")
    torch.serialization.add_safe_globals([_kind])


def _unstacked(layers: Mapping[str, Tensor], aux: bool) -> dict[str, Any]:
    """The official form of stacked predictions, with `aux` the earlier layers too."""
    official = [dict(zip(layers, layer, strict=True)) for layer in zip(*layers.values(), strict=True)]
    return {**official[-1], "aux_outputs": official[:-1]} if aux else official[-1]


def _stacked(outputs: Mapping[str, Any], *keys: str) -> list[Tensor]:
    """Entries of the official form, all layers; no copy where there is one."""
    if any(key not in outputs for key in keys):
        expected = " and ".join(map(repr, keys))
        raise ValueError(f"outputs: expected the keys {expected}; got {sorted(outputs)}")
    aux = outputs.get("aux_outputs", ())
    return [
        torch.stack([layer[key] for layer in (*aux, outputs)]) if aux else outputs[key][None] for key in keys
    ]


def _packed_masks(targets: Sequence[Mapping[str, Tensor]], size: tuple[int, int] | None) -> Tensor | None:
    given = ["masks" in target for target in targets]
    if not any(given):
        return None
    if not all(given):
        raise ValueError(f"targets: expected masks in all or none; targets[{given.index(False)}] has none")
    for i, target in enumerate(targets):
        masks = target["masks"]
        if masks.ndim != 3 or masks.shape[0] != target["labels"].shape[0]:
            raise ValueError(
                f"targets[{i}]['masks']: expected [T, h, w] with T = {target['labels'].shape[0]}; "
                f"got {list(masks.shape)}"
            )
        if masks.dtype not in (torch.bool, torch.uint8):
            raise TypeError(f"targets[{i}]['masks']: expected bool (or uint8 of 0 and 1); got {masks.dtype}")
    height, width = (max(target["masks"].shape[axis] for target in targets) for axis in (1, 2))
    if size is not None:
        if height > size[0] or width > size[1]:
            raise ValueError(f"mask_size: expected at least {(height, width)}, as the masks; got {size}")
        height, width = size
    total = sum(target["masks"].shape[0] for target in targets)
    packed = torch.zeros(total, height, width, dtype=torch.bool, device=targets[0]["masks"].device)
    start = 0
    for target in targets:
        masks = target["masks"]
        packed[start : start + len(masks), : masks.shape[1], : masks.shape[2]] = masks.bool()
        start += len(masks)
    return packed
