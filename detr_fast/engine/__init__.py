"""Training, evaluating and using models."""

from detr_fast.engine.config import TrainConfig, train_config
from detr_fast.engine.detector import Detector
from detr_fast.engine.evaluate import evaluate, predicted
from detr_fast.engine.loading import load_detector
from detr_fast.engine.predict import PredictionError, detect, overlay, predict_files, predict_image
from detr_fast.engine.recipe import dataset_detector
from detr_fast.engine.results import (
    DetectionResult,
    ImageResult,
    InstanceResult,
    PanopticResult,
    SemanticResult,
)
from detr_fast.engine.run_folder import FolderInUseError
from detr_fast.engine.stopping import Interrupted
from detr_fast.engine.train import NonFiniteLossError, Trainer
from detr_fast.families import FAMILIES, MODELS, model_config
from detr_fast.metrics import coco_metrics, format_metrics
from detr_fast.tasks import TASKS

__all__ = [
    "FAMILIES",
    "MODELS",
    "TASKS",
    "DetectionResult",
    "Detector",
    "FolderInUseError",
    "ImageResult",
    "InstanceResult",
    "Interrupted",
    "NonFiniteLossError",
    "PanopticResult",
    "PredictionError",
    "SemanticResult",
    "TrainConfig",
    "Trainer",
    "coco_metrics",
    "dataset_detector",
    "detect",
    "evaluate",
    "format_metrics",
    "load_detector",
    "model_config",
    "overlay",
    "predict_files",
    "predict_image",
    "predicted",
    "train_config",
]
