"""From image files to named objects, masks and segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detr_fast.data import ImageError, image_to_tensor, load_image, resized_size
from detr_fast.drawing.attention import attention_pictures
from detr_fast.drawing.boxes import draw_detections
from detr_fast.engine.detector import Detector
from detr_fast.engine.outputs import check_not_inputs, distinct_stems
from detr_fast.engine.progress import progress
from detr_fast.families import decoder_attention
from detr_fast.families.results import Geometry
from detr_fast.structures import PaddedImages
from detr_fast.tasks import Record


class PredictionError(ValueError):
    """Files that nothing could be predicted for; `failures` holds (file, reason) of each."""

    def __init__(self, failures: Sequence[tuple[str, str]]) -> None:
        super().__init__(f"{len(failures)} files could not be used: " + "; ".join(why for _, why in failures))
        self.failures = tuple(failures)


@dataclass(frozen=True)
class Found:
    """What a model found in one image.

    images: the image as the model took it.
    result: of its task, the part that is worth showing.
    records: the same as plain data.
    """

    detector: Detector
    image: Image.Image
    images: PaddedImages
    result: dict[str, Any]
    records: list[Record]

    def overlay(self) -> Image.Image:
        """A copy of the image with what was found drawn over it."""
        return self.detector.task.overlay(self.image, self.result, self.detector.categories)

    def id_map(self) -> Image.Image | None:
        """The segment or class of each pixel, as the task stores them; None where the records tell all."""
        return self.detector.task.id_map(self.result)

    def attention(self, most: int = 6) -> Image.Image | None:
        """What the best `most` queries found, each beside where the last decoder layer looked for it.

        None where nothing was found; ValueError for semantic results.
        """
        shown = self.detector.task.by_query(self.result, self.detector.categories, most)
        if not shown["queries"]:
            return None
        attention = decoder_attention(self.detector.model, self.images)
        return attention_pictures(attention, self.images, self.image, **shown)


@torch.no_grad()
def predict_image(
    detector: Detector,
    image: Image.Image,
    threshold: float | None = None,
    *,
    shown: Image.Image | None = None,
) -> Found:
    """What the detector finds in an RGB image.

    threshold: lowest score; by default 0.5 for objects, and for panoptic segments what the paper takes.
    shown: the same image at the size that results are wanted at; by default the image itself.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score in 0..1; got {threshold}")
    images, geometry = model_input(detector, image)
    shown = shown or image
    geometry = dataclasses.replace(geometry, outputs=[(shown.height, shown.width)])
    detector.model.eval()
    threshold = detector.task.threshold if threshold is None else threshold
    (result,) = detector.results(images, geometry, threshold)
    result = detector.task.select(result, detector.categories, threshold or 0.0)
    if "boxes" in result:
        limits = torch.tensor([shown.width, shown.height] * 2, device=result["boxes"].device)
        result["boxes"] = result["boxes"].clamp(min=0).minimum(limits)
    return Found(detector, shown, images, result, detector.task.records(result, detector.categories))


def model_input(detector: Detector, image: Image.Image) -> tuple[PaddedImages, Geometry]:
    """An RGB image as the model takes it, and the sizes that its predictions are read by."""
    width, height = resized_size(image.width, image.height, detector.image_size, detector.max_size)
    pixels = image_to_tensor(image.resize((width, height), Image.Resampling.BILINEAR))
    images = PaddedImages.from_list([pixels], multiple=detector.size_multiple).to(detector.device)
    padded = (images.tensors.shape[2], images.tensors.shape[3])
    return images, Geometry(padded, [(height, width)], [(image.height, image.width)])


def detect(detector: Detector, image: Image.Image, threshold: float = 0.5) -> list[Record]:
    """The objects of an RGB image whose score is at least `threshold`, best first.

    Each is {"label", "category_id", "name", "score", "box_xyxy": [x0, y0, x1, y1] in pixels of `image`}, with
    "segmentation" (COCO's run lengths) where the task gives masks. Labels without a category (COCO's ids
    have gaps) are left out.
    """
    return predict_image(detector, image, threshold).records


def overlay(image: Image.Image, detections: Sequence[Record]) -> Image.Image:
    """A copy of the image with the boxes of detections drawn over it."""
    return draw_detections(
        image,
        [detection["box_xyxy"] for detection in detections],
        [detection["label"] for detection in detections],
        [f"{detection['name']} {detection['score']:.2f}" for detection in detections],
    )


def predict_files(
    detector: Detector,
    files: Sequence[str | Path],
    threshold: float | None = None,
    output: Path | None = None,
    *,
    attention: bool = False,
) -> Iterator[Record]:
    """Predicts image files, one record each: {"file", "width", "height", "detections" or "segments": [...]}.

    Images are turned upright as their EXIF orientation says.

    Args:
        detector: see `load_detector`.
        files: images that Pillow reads.
        threshold: see `predict_image`.
        output: a folder, made where missing, for one `<name>.png` an image with what was found drawn over
            it, for panoptic and semantic tasks `ids/<name>.png`, which the record names as "ids",
            and with `attention` `attention/<name>.png`, as `Found.attention` draws it.
        attention: draw that too; not for semantic tasks.

    Files that cannot be used are left out; when all others are done, one error lists them.

    Raises:
        ValueError: a result would be written over one of the files; nothing has been written.
        PredictionError: after the last record, where files could not be used.
    """
    paths = [Path(file) for file in files]
    names = distinct_stems(paths)
    if output is not None:
        places = ("", "ids/", "attention/") if attention else ("", "ids/")
        written = [output / f"{place}{name}.png" for name in names for place in places]
        check_not_inputs([*written, output / "predictions.json"], paths)
    failures: list[tuple[str, str]] = []
    for file, name in zip(progress(files, desc="predict", unit="image"), names, strict=True):
        try:
            image = load_image(file, exif_transpose=True)
            found = predict_image(detector, image, threshold)
        except (ImageError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failures.append((str(file), str(error) or "not enough memory"))
            continue
        record: Record = {"file": str(file), "width": image.width, "height": image.height}
        record[detector.task.records_key] = found.records
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            found.overlay().save(output / f"{name}.png")
            if (ids := found.id_map()) is not None:
                (output / "ids").mkdir(exist_ok=True)
                record["ids"] = f"ids/{name}.png"
                ids.save(output / record["ids"])
            if attention and (picture := found.attention()) is not None:
                (output / "attention").mkdir(exist_ok=True)
                picture.save(output / "attention" / f"{name}.png")
        yield record
    if failures:
        raise PredictionError(failures)
