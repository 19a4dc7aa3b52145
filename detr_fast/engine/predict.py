"""From image files to named boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detr_fast.data import image_to_tensor, load_image, resized_size
from detr_fast.engine.detector import Detector
from detr_fast.engine.draw import draw_detections
from detr_fast.engine.progress import progress
from detr_fast.postprocess import postprocess_detection
from detr_fast.structures import PaddedImages

Record = dict[str, Any]


@torch.no_grad()
def detect(detector: Detector, image: Image.Image, threshold: float = 0.5) -> list[Record]:
    """The detections of an RGB image whose score is at least `threshold`, best first.

    Each is {"label", "category_id", "name", "score", "box_xyxy": [x0, y0, x1, y1] in pixels of `image`}.
    Labels without a category (COCO's ids have gaps) are left out.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score in 0..1; got {threshold}")
    size = resized_size(image.width, image.height, detector.image_size, detector.max_size)
    pixels = image_to_tensor(image.resize(size, Image.Resampling.BILINEAR)).to(detector.device)
    predictions = detector.model.eval()(PaddedImages.from_list([pixels]))
    target_size = torch.tensor([[image.height, image.width]], device=detector.device)
    result = {
        name: values.tolist() for name, values in postprocess_detection(predictions, target_size)[0].items()
    }
    found = []
    for score, label, box in zip(result["scores"], result["labels"], result["boxes"], strict=True):
        if score >= threshold and label in detector.categories:
            category_id, name = detector.categories[label]
            limits = (image.width, image.height) * 2
            inside = [round(min(max(v, 0.0), limit), 2) for v, limit in zip(box, limits, strict=True)]
            found.append(
                {"label": label, "category_id": category_id, "name": name, "score": score, "box_xyxy": inside}
            )
    return sorted(found, key=lambda detection: -detection["score"])


def overlay(image: Image.Image, detections: Sequence[Record]) -> Image.Image:
    """A copy of the image with the detections drawn over it."""
    return draw_detections(
        image,
        [detection["box_xyxy"] for detection in detections],
        [detection["label"] for detection in detections],
        [f"{detection['name']} {detection['score']:.2f}" for detection in detections],
    )


def predict_files(
    detector: Detector, files: Sequence[str | Path], threshold: float = 0.5, overlays: Path | None = None
) -> Iterator[Record]:
    """Detects in image files, one record each: {"file", "width", "height", "detections": as from `detect`}.

    Images are turned upright as their EXIF orientation says.

    Args:
        detector: see `load_detector`.
        files: images that Pillow reads.
        threshold: lowest score.
        overlays: a folder, made where missing, for one `<name>.png` an image with its detections drawn.

    Raises:
        FileNotFoundError, ImageError: naming the file.
    """
    names = _overlay_names([Path(file) for file in files])
    for file, name in zip(progress(files, desc="predict", unit="image"), names, strict=True):
        image = load_image(file, exif_transpose=True)
        detections = detect(detector, image, threshold)
        if overlays is not None:
            overlays.mkdir(parents=True, exist_ok=True)
            overlay(image, detections).save(overlays / name)
        yield {"file": str(file), "width": image.width, "height": image.height, "detections": detections}


def _overlay_names(files: Sequence[Path]) -> list[str]:
    """`<stem>.png`, and `<stem>_2.png` ... where several files have the same stem."""
    names: list[str] = []
    for file in files:
        name, count = f"{file.stem}.png", 1
        while name in names:
            count += 1
            name = f"{file.stem}_{count}.png"
        names.append(name)
    return names
