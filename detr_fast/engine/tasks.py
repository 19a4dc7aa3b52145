"""The earlier place of `detr_fast.tasks`."""

from detr_fast.tasks import TASKS, Categories, Record, Scorer, Task

__all__ = ["TASKS", "Categories", "Record", "Scorer", "Task"]
