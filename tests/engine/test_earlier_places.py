"""Where names that moved are found still."""

from __future__ import annotations

import pytest

import detr_fast.data
import detr_fast.engine.metrics
import detr_fast.engine.tasks
from detr_fast import families, metrics, tasks


def test_earlier_places() -> None:
    from detr_fast.engine import MODELS, TASKS
    from detr_fast.engine.families import FAMILIES

    assert detr_fast.data.build_dataset is tasks.build_dataset
    assert FAMILIES is families.FAMILIES
    assert detr_fast.engine.tasks.TASKS is tasks.TASKS
    assert detr_fast.engine.metrics.MeanIoU is metrics.MeanIoU
    assert MODELS is families.MODELS
    assert TASKS is tasks.TASKS
    with pytest.raises(AttributeError, match="build_datasets"):
        detr_fast.data.build_datasets  # noqa: B018
