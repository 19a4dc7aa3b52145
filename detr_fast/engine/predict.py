"""From image files to named objects, masks and segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from detr_fast.data import ImageError, load_image
from detr_fast.drawing.boxes import draw_detections
from detr_fast.engine.detector import Detector
from detr_fast.engine.inference import find, pixels_of
from detr_fast.engine.outputs import check_not_inputs, distinct_stems
from detr_fast.engine.progress import progress
from detr_fast.engine.results import ImageResult
from detr_fast.tasks import Record


class PredictionError(ValueError):
    """Files that nothing could be predicted for; `failures` holds (file, reason) of each."""

    def __init__(self, failures: Sequence[tuple[str, str]]) -> None:
        super().__init__(f"{len(failures)} files could not be used: " + "; ".join(why for _, why in failures))
        self.failures = tuple(failures)


def predict_image(
    detector: Detector,
    image: Image.Image,
    threshold: float | None = None,
    *,
    shown: Image.Image | None = None,
) -> ImageResult:
    """What the detector finds in an RGB image.

    threshold: lowest score; by default 0.5 for objects, and for panoptic segments what the paper takes.
    shown: the same image at the size that results are wanted at; by default the image itself.
    """
    (result,) = find(detector, [pixels_of(detector, image)], [shown or image], threshold)
    return result


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
            and with `attention` `attention/<name>.png`, as `Detector.attention` draws it.
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
            found.draw().save(output / f"{name}.png")
            if (ids := found.id_map()) is not None:
                (output / "ids").mkdir(exist_ok=True)
                record["ids"] = f"ids/{name}.png"
                ids.save(output / record["ids"])
            if attention and (picture := detector.attention(found)) is not None:
                (output / "attention").mkdir(exist_ok=True)
                picture.save(output / "attention" / f"{name}.png")
        yield record
    if failures:
        raise PredictionError(failures)
