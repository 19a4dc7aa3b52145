"""Mean intersection over union of semantic maps."""

from __future__ import annotations

import torch
from torch import Tensor


class MeanIoU:
    """Counts pixels by true and predicted class, image after image.

    Several of these, of images apart, merge into one; they can be pickled.

    Args:
        num_classes: K, labels are 0..K-1.
        ignore: the true label of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1; got {num_classes}")
        if 0 <= ignore < num_classes:
            raise ValueError(f"ignore: expected none of the {num_classes} classes; got {ignore}")
        self.num_classes, self.ignore = num_classes, ignore
        self.confusion = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        """[K, K + 1] pixels, true class by predicted class, the last none of the classes."""

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Counts one image, or several of one size: labels [h, w] or [B, h, w], integers.

        A predicted label may be `ignore` too: a class that is none of the K, wrong wherever a pixel counts.

        Raises:
            ValueError: shapes differ, or another label that counts lies outside 0..K-1.
        """
        for name, labels in (("predicted", predicted), ("truth", truth)):
            if labels.is_floating_point() or labels.dtype == torch.bool:
                raise TypeError(f"{name}: expected integers; got {labels.dtype}")
        if predicted.shape != truth.shape:
            raise ValueError(f"predicted: expected truth's {list(truth.shape)}; got {list(predicted.shape)}")
        counts = truth != self.ignore
        truth, predicted = truth[counts].long(), predicted[counts].long()
        for name, labels in (("predicted", predicted[predicted != self.ignore]), ("truth", truth)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"{name}: expected labels in 0..{self.num_classes - 1}"
                    f" or {self.ignore}; got {int(labels.min())}..{int(labels.max())}"
                )
        predicted = torch.where(predicted == self.ignore, self.num_classes, predicted)
        columns = self.num_classes + 1
        pairs = (truth * columns + predicted).bincount(minlength=self.num_classes * columns)
        self.confusion += pairs.view_as(self.confusion).cpu()

    def merge(self, other: MeanIoU) -> None:
        """Adds what another one counted on other images."""
        if (self.num_classes, self.ignore) != (other.num_classes, other.ignore):
            raise ValueError(
                f"other: expected num_classes = {self.num_classes} and ignore = {self.ignore}; "
                f"got {other.num_classes} and {other.ignore}"
            )
        self.confusion += other.confusion

    def result(self) -> dict[str, float]:
        """Four numbers in 0..1, or -1 where no pixel counted.

        mIoU: mean IoU of the classes that are true or predicted somewhere.
        mACC: mean over the true classes of the share of their pixels that was recognised.
        pACC: share of all pixels that was recognised.
        fwIoU: IoU weighted by how frequent a class truly is.
        """
        confusion = self.confusion.double()
        right, true, union = confusion.diagonal(), confusion.sum(1), self._union()
        if not true.any():
            return dict.fromkeys(("mIoU", "mACC", "pACC", "fwIoU"), -1.0)
        iou = right / union.clamp(min=1)
        return {
            "mIoU": float(iou[union > 0].mean()),
            "mACC": float((right / true)[true > 0].mean()),
            "pACC": float(right.sum() / true.sum()),
            "fwIoU": float((iou * true).sum() / true.sum()),
        }

    def per_class(self) -> dict[int, float]:
        """IoU of each label that is true or predicted somewhere."""
        right, union = self.confusion.diagonal(), self._union()
        return {label: int(right[label]) / int(union[label]) for label in union.nonzero()[:, 0].tolist()}

    def _union(self) -> Tensor:
        return self.confusion[:, :-1].sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
