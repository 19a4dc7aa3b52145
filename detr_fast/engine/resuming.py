"""What a run recorded for its continuation, which takes from it what it is not told anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_fast.data import DataSource
from detr_fast.engine.checkpointing import read_training_checkpoint
from detr_fast.engine.config import TrainConfig
from detr_fast.engine.model_choice import ModelChoice

PATHS = ("root", "train_json", "train_images", "val_json", "val_images")  # of a `DataSource`


@dataclass(frozen=True)
class EarlierRun:
    """What a run's `last.pt` tells.

    Args:
        last: the file.
        config: the fields of its `TrainConfig`.
        options: what else changed its training, by the names of `train_on_coco`, and more.
        source: the fields of its `DataSource`, paths as text, and whether it was `evaluated`.
    """

    last: Path
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    source: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> EarlierRun:
        """Of the run in `folder`; raises as `read_training_checkpoint` does."""
        last = folder / "last.pt"
        training = read_training_checkpoint(last)["training"]
        return cls(last, training.get("config", {}), training.get("options", {}), training.get("source", {}))

    def model_choice(self, given: ModelChoice) -> ModelChoice:
        """Its model as it was trained; what else is `given` must be the same."""
        return dataclasses.replace(
            given,
            weights=self.last,
            backbone_weights=None,
            frozen_weights=None,
            num_classes=given.num_classes or self.options.get("num_classes"),
        )

    def train_config(self, **given: Any) -> TrainConfig:
        """Its settings; `given` ones override them, None leaves them alone."""
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        then = {name: value for name, value in self.config.items() if name in names}
        return TrainConfig(**{**then, **_said(given)})

    @property
    def evaluated(self) -> bool:
        """Whether it was evaluated on a validation split."""
        return bool(self.source.get("evaluated", True))

    def data_source(self, **given: Any) -> DataSource:
        """Its data set, or the one that is given."""
        said = _said(given)
        if any(isinstance(value, Path) for value in said.values()):
            return DataSource(**said)
        names = {field.name for field in dataclasses.fields(DataSource)}
        then = {
            name: Path(value) if name in PATHS and value else value
            for name, value in self.source.items()
            if name in names
        }
        return DataSource(**{**then, **said})


def source_record(source: DataSource) -> dict[str, Any]:
    """A data source as plain data; its paths absolute, as a run may be gone on with from another place."""
    return {
        name: str(value.resolve()) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(source).items()
    }


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
