"""What flows between data, models, matching and losses.

Letters: `B` images, `L` decoder layers, `Q` queries, `T` targets of one image, `sumT` targets of the
batch, `K` classes.
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

    tensors: [B, 3, H, W] float.
    mask: [B, H, W] bool, True = padding.
    """

    tensors: Tensor
    mask: Tensor

    @classmethod
    def from_list(cls, images: Sequence[Tensor]) -> PaddedImages:
        """Pads [C, H_b, W_b] tensors to the largest height and width of the batch."""
        if not images:
            raise ValueError("images: expected at least one [C, H, W] tensor; got an empty list")
        channels = images[0].shape[0]
        for i, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != channels:
                raise ValueError(f"images[{i}]: expected [{channels}, H, W]; got {list(image.shape)}")
        height = max(image.shape[1] for image in images)
        width = max(image.shape[2] for image in images)
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

    labels: [sumT] int64 category ids.
    boxes: [sumT, 4] float, (cx, cy, w, h) relative to each image's own size.
    batch_index: [sumT] int64, the image that each target belongs to.
    sizes: the number of targets of each image, as Python ints, so nothing is read back from a GPU.
    """

    labels: Tensor
    boxes: Tensor
    batch_index: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def from_list(cls, targets: Sequence[Mapping[str, Tensor]]) -> PackedTargets:
        """Packs one mapping an image with `labels` [T] and `boxes` [T, 4]."""
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
        sizes = tuple(target["labels"].shape[0] for target in targets)
        labels = torch.cat([target["labels"] for target in targets]).long()
        boxes = torch.cat([target["boxes"] for target in targets])
        batch_index = torch.repeat_interleave(
            torch.arange(len(sizes), device=labels.device),
            torch.tensor(sizes, device=labels.device),
            output_size=sum(sizes),
        )
        return cls(labels, boxes, batch_index, sizes)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedTargets:
        """The same targets on another device."""
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=non_blocking),
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            batch_index=self.batch_index.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class Predictions:
    """What the heads say, decoder layers stacked, the last layer last.

    logits: [L, B, Q, K]; for softmax models the last class is "no object".
    boxes: [L, B, Q, 4], (cx, cy, w, h) in [0, 1].
    encoder: what the encoder of a two-stage model proposes, one for each position (L = 1, Q = S).
    """

    logits: Tensor
    boxes: Tensor
    encoder: Predictions | None = None

    def as_dict(self, aux: bool = True) -> dict[str, Any]:
        """The official form: `pred_logits`, `pred_boxes`, for earlier layers `aux_outputs`, and
        `enc_outputs` of a two-stage encoder."""
        layers = [{"pred_logits": c, "pred_boxes": b} for c, b in zip(self.logits, self.boxes, strict=True)]
        outputs: dict[str, Any] = dict(layers[-1])
        if aux:
            outputs["aux_outputs"] = layers[:-1]
        if self.encoder is not None:
            outputs["enc_outputs"] = self.encoder.as_dict(aux=False)
        return outputs

    @classmethod
    def from_dict(cls, outputs: Mapping[str, Any]) -> Predictions:
        """Stacks the official form; `aux_outputs` and `enc_outputs` may be absent."""
        for key in ("pred_logits", "pred_boxes"):
            if key not in outputs:
                raise ValueError(
                    f"outputs: expected the keys 'pred_logits' and 'pred_boxes'; got {sorted(outputs)}"
                )
        encoder = cls.from_dict(outputs["enc_outputs"]) if "enc_outputs" in outputs else None
        layers = [*outputs.get("aux_outputs", ()), outputs]
        if len(layers) == 1:
            return cls(outputs["pred_logits"][None], outputs["pred_boxes"][None], encoder)
        return cls(
            torch.stack([layer["pred_logits"] for layer in layers]),
            torch.stack([layer["pred_boxes"] for layer in layers]),
            encoder,
        )

    def last(self) -> Predictions:
        """The last layer alone, still stacked (L = 1)."""
        return Predictions(self.logits[-1:], self.boxes[-1:])


@dataclass(frozen=True)
class Matches:
    """The query that each target got, for every decoder layer.

    query: [L, sumT] int64 in packed target order; -1 where an image has more targets than queries
        and this target was left out.
    """

    query: Tensor

    def as_indices(self, targets: PackedTargets, layer: int = -1) -> list[tuple[Tensor, Tensor]]:
        """The official form of one layer: (query indices ascending, target indices) an image, on the CPU."""
        indices = []
        for query in np.split(self.query[layer].cpu().numpy(), np.cumsum(targets.sizes)[:-1]):
            order = np.argsort(query)[np.count_nonzero(query < 0) :]  # targets left out come first
            indices.append((torch.from_numpy(query[order]), torch.from_numpy(order)))
        return indices
