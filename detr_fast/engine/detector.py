"""A model with what it takes to use it: its task, the names of its classes and its image size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from detr_fast.data.transforms import MAX_SIZE, SCALES
from detr_fast.drawing.attention import attention_pictures
from detr_fast.engine.inference import check_threshold, find, padded, pixels_of
from detr_fast.engine.inputs import ImageLike, as_images, is_one_image
from detr_fast.engine.results import ImageResult
from detr_fast.families import FAMILIES, check_task, decoder_attention
from detr_fast.families.results import Geometry, Result, ResultOptions
from detr_fast.structures import PaddedImages
from detr_fast.tasks import TASKS, Task


@dataclass
class Detector:
    """A model and its surroundings.

    Args:
        categories: for each label that stands for something, (category id, name).
        image_size, max_size: short side that images are resized to, and bound of the long side, pixels.
        family: of `FAMILIES`.
        task_name: one that the family does.
        things: of a model that was trained on things and stuff, the labels of things; None for all others.
        remarks: a line for each thing that a person should know about the file that the model is from.
        dtype: what the network computes in.
    """

    model: nn.Module
    categories: dict[int, tuple[int, str]]
    image_size: int = SCALES[-1]
    max_size: int = MAX_SIZE
    family: str = "detr"
    task_name: str = "detection"
    things: frozenset[int] | None = None
    remarks: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        task: str | None = None,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = torch.float32,
        threads: int | None = None,
        compile: bool = False,
        allow_non_finite: bool = False,
    ) -> Detector:
        """A detector from a checkpoint of this package, an official one, or a file that `export` wrote.

        Args:
            path: see `load_detector`.
            model: likewise.
            task: likewise.
            device: "auto" takes this process's GPU where there is one; exported files run on the CPU.
            dtype: what the network computes in: float32; bfloat16, which is faster on CPUs and GPUs that have
                instructions for it; or float16, on GPUs. Weights stay float32; boxes move by a pixel or two.
            threads: CPU threads; of checkpoints and `.pt2` files those of all of torch.
            compile: run the network by `torch.compile`; the first images of new sizes then take a minute.
            allow_non_finite: see `load_detector`.

        Raises:
            FileNotFoundError, ValueError: as for `load_detector`, or an option that the file cannot follow.
        """
        from detr_fast.engine.loading import load_detector  # which knows this class

        return load_detector(
            path,
            model=model,
            task=task,
            device=device,
            dtype=dtype,
            threads=threads,
            compile=compile,
            allow_non_finite=allow_non_finite,
        )

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        threshold: float | None = None,
        *,
        batch_size: int = 1,
    ) -> Any:
        """What the model finds in one or several images.

        Args:
            images: one image, see `as_image`, or several: a list, or an array [B, h, w, 3] or tensor
                [B, 3, h, w].
            threshold: lowest score; by default 0.5 for objects, of panoptic segments what the paper takes.
            batch_size: images that run together, padded to the largest of them. Models that normalise over
                positions (group norm) see that padding, so that one at a time is the default.

        Returns:
            An `ImageResult` of the task, `DetectionResult`, `InstanceResult`, `PanopticResult` or
            `SemanticResult`, for one image; a list of them for several.

        Raises:
            FileNotFoundError, ImageError, TypeError, ValueError: as for `as_image`, or a threshold that is no
                score.
        """
        results = list(self.stream(images, threshold, batch_size=batch_size))
        return results[0] if is_one_image(images) else results

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        threshold: float | None = None,
        *,
        batch_size: int = 1,
    ) -> Iterator[ImageResult]:
        """The results of images that come one after the other, in their order; see `__call__`.

        No more than `batch_size` images are held.
        """
        check_threshold(threshold)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1; got {batch_size}")
        coming = as_images(images)
        while batch := list(islice(coming, batch_size)):
            yield from find(self, [pixels_of(self, image) for image in batch], batch, threshold)

    def attention(
        self, result: ImageResult, most: int = 6, *, image: Image.Image | None = None
    ) -> Image.Image | None:
        """What the best `most` queries found, each beside where the last decoder layer looked for it.

        Args:
            result: of this detector.
            most: how many.
            image: what the model looked at, by default the image of `result`.

        Returns:
            None where nothing was found.

        Raises:
            ValueError: a semantic result, which mixes all queries.
        """
        shown = self.task.by_query(result.result, self.categories, most)
        if not shown["queries"]:
            return None
        images = padded(self, [pixels_of(self, image or result.image)])
        return attention_pictures(decoder_attention(self.model, images), images, result.image, **shown)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def task(self) -> Task:
        """The one called `task_name`."""
        return TASKS[self.task_name]

    @property
    def size_multiple(self) -> int:
        """What height and width of a batch are padded to a multiple of."""
        return getattr(self.model, "size_multiple", 1)

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def contiguous_labels(self) -> bool:
        """Whether labels are 0, 1, ... rather than the category ids; the family's way where they are both."""
        if any(label != category for label, (category, _) in self.categories.items()):
            return True
        gaps = max(self.categories, default=-1) >= len(self.categories)
        return not gaps and FAMILIES[self.family].contiguous_labels

    def with_task(self, name: str | None) -> Detector:
        """The same model for another task; None leaves it alone.

        A model that was trained on panoptic data does all tasks of its family, others do their own.
        """
        if name is None or name == self.task_name:
            return self
        check_task(self.family, name)
        if self.task_name != "panoptic":
            raise ValueError(f"task: the checkpoint was trained for {self.task_name}; got {name!r}")
        return dataclasses.replace(self, task_name=name)

    def results(
        self, images: PaddedImages, geometry: Geometry, threshold: float | None = None
    ) -> list[Result]:
        """What the model says about a batch, one result of its task an image.

        Args:
            images: the batch.
            geometry: its sizes, and those that results are wanted at.
            threshold: lowest score of an instance, by default 0, or class score of a panoptic segment, by
                default the family's own.
        """
        decode = FAMILIES[self.family].decode[self.task_name]
        things = self.categories.keys() if self.things is None else self.things
        options = ResultOptions(things, threshold, self.things is None)
        return decode(self._predictions(images), geometry, options)

    def _predictions(self, images: PaddedImages) -> Any:
        """Of the model, in float32 whatever it computes in."""
        if self.dtype == torch.float32:
            return self.model(images)
        with torch.autocast(self.device.type, self.dtype):
            predictions = self.model(images)
        values = {field.name: getattr(predictions, field.name) for field in dataclasses.fields(predictions)}
        narrow = {k: x for k, x in values.items() if isinstance(x, Tensor) and x.is_floating_point()}
        return dataclasses.replace(predictions, **{k: x.float() for k, x in narrow.items()})

    def description(self) -> dict[str, Any]:
        """All but the weights, as plain data for a checkpoint's "detector" entry."""
        return {
            "family": self.family,
            "task": self.task_name,
            "config": dataclasses.asdict(self.config),
            "categories": {label: [category, name] for label, (category, name) in self.categories.items()},
            "things": None if self.things is None else sorted(self.things),
            "image_size": self.image_size,
            "max_size": self.max_size,
        }
