"""Training, evaluating and using detectors."""

from detr_fast.engine.config import TrainConfig
from detr_fast.engine.detector import MODELS, Detector, dataset_categories, load_detector, model_config
from detr_fast.engine.evaluate import evaluate_detection
from detr_fast.engine.metrics import MeanIoU, PanopticQuality, coco_metrics, format_metrics
from detr_fast.engine.predict import detect, overlay, predict_files
from detr_fast.engine.train import NonFiniteLossError, Trainer

__all__ = [
    "MODELS",
    "Detector",
    "MeanIoU",
    "NonFiniteLossError",
    "PanopticQuality",
    "TrainConfig",
    "Trainer",
    "coco_metrics",
    "dataset_categories",
    "detect",
    "evaluate_detection",
    "format_metrics",
    "load_detector",
    "model_config",
    "overlay",
    "predict_files",
]
