"""The tasks, by name."""

from detr_fast.tasks.detection import Detection
from detr_fast.tasks.instance import Instance
from detr_fast.tasks.panoptic import Panoptic
from detr_fast.tasks.semantic import Semantic
from detr_fast.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Detection(), Instance(), Panoptic(), Semantic())}
