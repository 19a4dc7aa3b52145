"""What a detector found in one image, a class for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detr_fast.boxes import tight_boxes
from detr_fast.metrics import coco_detections
from detr_fast.metrics.coco import encode_mask
from detr_fast.tasks import TASKS, Categories, Record

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False, repr=False)
class ImageResult:
    """What all results have.

    Args:
        image: the RGB image that coordinates are pixels of.
        categories: for each label, (category id, name).
    """

    task_name: ClassVar[str]

    image: Image.Image
    categories: Categories

    @property
    def result(self) -> dict[str, Any]:
        """The fields as the task's own functions take them."""
        raise NotImplementedError

    @property
    def records_key(self) -> str:
        """What records are called where they are listed."""
        return TASKS[self.task_name].records_key

    @property
    def records(self) -> list[Record]:
        """Each find as plain data that JSON takes; see the task's `records`."""
        return TASKS[self.task_name].records(self.result, self.categories)

    def draw(self) -> Image.Image:
        """A copy of the image with what was found drawn over it."""
        return TASKS[self.task_name].overlay(self.image, self.result, self.categories)

    def id_map(self) -> Image.Image | None:
        """The segment or class of each pixel, as the task stores them; None where the records tell all."""
        return TASKS[self.task_name].id_map(self.result)

    def to_coco(self, image_id: int | str) -> list[Record]:
        """Entries of COCO's results format; of panoptic results the one annotation of the image.

        Args:
            image_id: as the annotation file has it.
        """
        raise NotImplementedError

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`, class names in its `data["class_name"]`.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        names = [record["name"] for record in self.records]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"{type(self).__name__}({self.image.width}x{self.image.height}: {shown or 'nothing'})"

    def _ids(self) -> dict[int, int]:
        return {label: category for label, (category, _) in self.categories.items()}

    def _supervision(
        self, boxes: Tensor, labels: Sequence[int], scores: Tensor | None, masks: Tensor | None
    ) -> supervision.Detections:
        try:
            from supervision import Detections
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "supervision is not installed; `pip install supervision` brings it", name="supervision"
            ) from error
        return Detections(
            xyxy=boxes.cpu().numpy().astype(np.float32).reshape(-1, 4),
            mask=None if masks is None else masks.cpu().numpy(),
            confidence=None if scores is None else scores.cpu().numpy().astype(np.float32),
            class_id=np.array(labels, dtype=np.int64),
            data={"class_name": np.array([self.categories[label][1] for label in labels], dtype=str)},
        )


@dataclass(frozen=True, eq=False, repr=False)
class DetectionResult(ImageResult):
    """Objects, best first.

    Args:
        scores: [X] float, 0..1.
        labels: [X] int64, keys of `categories`.
        boxes_xyxy: [X, 4] float, pixels inside the image.
        queries: [X] int64, the query that found each.
    """

    task_name = "detection"

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    queries: Tensor

    @property
    def result(self) -> dict[str, Any]:
        """The fields as the task's own functions take them."""
        return {
            "scores": self.scores,
            "labels": self.labels,
            "boxes": self.boxes_xyxy,
            "queries": self.queries,
        }

    @property
    def names(self) -> list[str]:
        """The class of each."""
        return [self.categories[label][1] for label in self.labels.tolist()]

    def to_coco(self, image_id: int | str) -> list[Record]:
        """{"image_id", "category_id", "bbox": [x, y, w, h], "score"} of each, masks as "segmentation"."""
        return coco_detections(image_id, self.result, self._ids())

    def to_supervision(self) -> supervision.Detections:
        """See `ImageResult`."""
        return self._supervision(self.boxes_xyxy, self.labels.tolist(), self.scores, None)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, repr=False)
class InstanceResult(DetectionResult):
    """Objects with masks, best first.

    Args:
        masks: [X, h, w] bool, of the image's size.
    """

    task_name = "instance"

    masks: Tensor

    @property
    def result(self) -> dict[str, Any]:
        """The fields as the task's own functions take them."""
        return {**super().result, "masks": self.masks}

    def to_supervision(self) -> supervision.Detections:
        """See `ImageResult`."""
        return self._supervision(self.boxes_xyxy, self.labels.tolist(), self.scores, self.masks)


@dataclass(frozen=True, eq=False, repr=False)
class PanopticResult(ImageResult):
    """Segments that do not overlap, best first.

    Args:
        segmentation: [h, w] int32, the segment id of each pixel, 0 = none.
        segments: {"id", "label", "isthing", "score", "area"} of each.
    """

    task_name = "panoptic"

    segmentation: Tensor
    segments: Sequence[Mapping[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        """The fields as the task's own functions take them."""
        return {"segmentation": self.segmentation, "segments": self.segments}

    def to_coco(self, image_id: int | str) -> list[Record]:
        """One annotation of COCO's panoptic format; its "file_name" stands for the picture `id_map`."""
        boxes = tight_boxes(self._masks()).tolist()
        info = [
            {
                "id": record["id"],
                "category_id": record["category_id"],
                "isthing": int(record["isthing"]),
                "area": record["area"],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
            }
            for record, (x0, y0, x1, y1) in zip(self.records, boxes, strict=True)
        ]
        return [{"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": info}]

    def to_supervision(self) -> supervision.Detections:
        """See `ImageResult`."""
        masks = self._masks()
        scores = torch.tensor([segment["score"] for segment in self.segments])
        labels = [segment["label"] for segment in self.segments]
        return self._supervision(tight_boxes(masks), labels, scores, masks)

    def __len__(self) -> int:
        return len(self.segments)

    def _masks(self) -> Tensor:
        ids = self.segmentation.new_tensor([segment["id"] for segment in self.segments])
        return self.segmentation == ids[:, None, None]


@dataclass(frozen=True, eq=False, repr=False)
class SemanticResult(ImageResult):
    """A class for each pixel.

    Args:
        labels: [h, w] int64; those that are no key of `categories` stand for nothing.
    """

    task_name = "semantic"

    labels: Tensor

    @property
    def result(self) -> dict[str, Any]:
        """The fields as the task's own functions take them."""
        return {"labels": self.labels}

    def to_coco(self, image_id: int | str) -> list[Record]:
        """{"image_id", "category_id", "segmentation"} of each class that is there, as COCO-Stuff has them."""
        return [
            {
                "image_id": image_id,
                "category_id": record["category_id"],
                "segmentation": encode_mask(self.labels == record["label"]),
            }
            for record in self.records
        ]

    def to_supervision(self) -> supervision.Detections:
        """See `ImageResult`; one mask a class, without scores."""
        labels = [record["label"] for record in self.records]
        masks = self.labels == self.labels.new_tensor(labels)[:, None, None]
        return self._supervision(tight_boxes(masks), labels, None, masks)


def result_of(
    task_name: str, image: Image.Image, categories: Categories, found: Mapping[str, Any]
) -> ImageResult:
    """The typed form of a selected result of a task."""
    if task_name == "panoptic":
        return PanopticResult(image, categories, found["segmentation"], found["segments"])
    if task_name == "semantic":
        return SemanticResult(image, categories, found["labels"])
    fields = (found["scores"], found["labels"], found["boxes"], found["queries"])
    if task_name == "instance":
        return InstanceResult(image, categories, *fields, masks=found["masks"])
    return DetectionResult(image, categories, *fields)
