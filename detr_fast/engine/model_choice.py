"""Which model is trained, and from which weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from detr_fast.checkpoints import load_state_dict
from detr_fast.data.transforms import SCALES
from detr_fast.engine.loading import load_detector
from detr_fast.families import FAMILIES, check_task, family_of, model_config
from detr_fast.families.family import SMALL_IMAGE_SIZE
from detr_fast.models.conv_stem import STEMS

DEFAULT_MODEL = "detr-r50"


@dataclass(frozen=True)
class ModelChoice:
    """What to train.

    Args:
        name: of `MODELS`; by default the architecture of `weights`, else detr-r50.
        weights: a checkpoint to start from. Where it has other numbers of classes or queries, the first rows
            are taken.
        backbone_weights: an ImageNet file to start the backbone from.
        frozen_weights: a trained DETR that a DETR for segmentation keeps as it is and learns a mask head for.
        num_classes: by default what the data needs.
        num_queries: by default the model's.
        task: by default that of `weights`, else the family's first.
        allow_non_finite: take weights that are NaN or infinite, too.
    """

    name: str | None = None
    weights: Path | None = None
    backbone_weights: Path | None = None
    num_classes: int | None = None
    num_queries: int | None = None
    task: str | None = None
    frozen_weights: Path | None = None
    allow_non_finite: bool = False

    def starting_point(self) -> StartingPoint:
        """Reads `weights` or `frozen_weights`, where given."""
        sources = {name: getattr(self, name) for name in ("weights", "backbone_weights", "frozen_weights")}
        if len(given := [name for name, path in sources.items() if path is not None]) > 1:
            raise ValueError(f"{', '.join(given)}: expected one of them; got {len(given)}")
        if self.frozen_weights is not None:
            return self._around_frozen(self.frozen_weights)
        if self.weights is None:
            family = family_of(self.name or DEFAULT_MODEL)
            return StartingPoint(
                self, family, check_task(family, self.task), FAMILIES[family].contiguous_labels
            )
        trained = load_detector(self.weights, model=self.name, allow_non_finite=self.allow_non_finite)
        task = check_task(trained.family, self.task or trained.task_name)
        return StartingPoint(
            self,
            trained.family,
            task,
            trained.contiguous_labels,
            trained.model,
            trained.remarks,
            trained.image_size,
        )

    def _around_frozen(self, path: Path) -> StartingPoint:
        outer = {name: family for name, family in FAMILIES.items() if family.frozen is not None}
        name = self.name or next(iter(outer))
        family = outer.get(family_of(name))
        if family is None or family.frozen is None:
            expected = " or ".join(outer)
            raise ValueError(
                f"frozen_weights: expected the model {expected} around them; got {family_of(name)}"
            )
        trained = load_detector(
            path,
            model=name.replace(family.name, family.frozen.family, 1),
            allow_non_finite=self.allow_non_finite,
        )
        model = family.frozen.around(trained.model)
        task = check_task(family.name, self.task)
        return StartingPoint(
            self, family.name, task, trained.contiguous_labels, model, trained.remarks, trained.image_size
        )


@dataclass(frozen=True)
class StartingPoint:
    """A resolved `ModelChoice`.

    Args:
        contiguous_labels: whether labels are 0, 1, ... rather than the category ids, as `trained` has it.
        trained: the model of the choice's weights.
        short_side: of the images that `trained` was trained on, pixels.
        remarks: what a person should know about their file.
    """

    choice: ModelChoice
    family: str
    task: str
    contiguous_labels: bool
    trained: nn.Module | None = None
    remarks: tuple[str, ...] = ()
    short_side: int | None = None

    @property
    def small(self) -> bool:
        """Whether its backbone is that of small models, which start from nothing."""
        trained: Any = self.trained
        config = model_config(self.choice.name or DEFAULT_MODEL) if trained is None else trained.config
        return config.backbone in STEMS

    @property
    def image_size(self) -> int:
        """The short side of images that suits the model."""
        return self.short_side or (SMALL_IMAGE_SIZE if self.small else SCALES[-1])

    def build(self, num_classes: int) -> tuple[nn.Module, list[str]]:
        """The model with its starting weights, and remarks on what was special about them."""
        family, choice = FAMILIES[self.family], self.choice
        if self.trained is None:
            config = model_config(
                choice.name or DEFAULT_MODEL, num_classes=num_classes, num_queries=choice.num_queries
            )
            return family.model(config, backbone_weights=choice.backbone_weights), []
        trained: Any = self.trained.config
        num_queries = choice.num_queries or trained.num_queries
        if choice.frozen_weights and (num_classes, num_queries) != (trained.num_classes, trained.num_queries):
            raise ValueError(
                f"{choice.frozen_weights}: has {trained.num_classes} classes and {trained.num_queries} "
                f"queries, but {num_classes} and {num_queries} are needed, which a frozen model cannot learn"
            )
        model = family.model(dataclasses.replace(trained, num_classes=num_classes, num_queries=num_queries))
        load_state_dict(model, self.trained.state_dict())
        remarks = [
            f"{choice.weights}: has {old} {what} and {new} are needed: the first {min(old, new)} are taken"
            + (", the others start afresh" if new > old else "")
            for what, old, new in (
                ("classes", trained.num_classes, num_classes),
                ("queries", trained.num_queries, num_queries),
            )
            if old != new
        ]
        return model, [*self.remarks, *remarks]
