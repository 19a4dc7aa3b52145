"""What models are trained and asked for: targets, scores, records and pictures, one file a task."""

from detr_fast.tasks.datasets import build_dataset
from detr_fast.tasks.table import TASKS
from detr_fast.tasks.task import Categories, Record, Scorer, Scores, Task

__all__ = ["TASKS", "Categories", "Record", "Scorer", "Scores", "Task", "build_dataset"]
