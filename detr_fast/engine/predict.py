"""From image files to named objects, masks and segments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from detr_fast.data import ImageError
from detr_fast.drawing.boxes import draw_detections
from detr_fast.engine.detector import Detector
from detr_fast.engine.inference import check_threshold, find, pixels_of
from detr_fast.engine.outputs import check_not_inputs, distinct_names
from detr_fast.engine.progress import progress
from detr_fast.engine.records import result_files
from detr_fast.engine.results import ImageResult
from detr_fast.engine.sources import STDIN, Source, read_image, read_video
from detr_fast.tasks import Record

T = TypeVar("T")

# what an image can fail at without the run failing
IMAGE_ERRORS = (ImageError, OSError, MemoryError, torch.OutOfMemoryError)


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
        files: images that Pillow reads, or videos.
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
    sources = [Source(str(file), Path(file).stem) for file in files]
    failures: list[tuple[str, str]] = []
    pictures = Pictures(attention=attention)
    if output is None:
        pictures = Pictures(overlays=False, label_maps=False)
    yield from predict_sources(
        detector,
        sources,
        output,
        threshold=threshold,
        pictures=pictures,
        failed=lambda file, why: failures.append((file, why)),
    )
    if failures:
        raise PredictionError(failures)


@dataclass(frozen=True)
class Pictures:
    """What is drawn for each image.

    Args:
        overlays: `<name>.png`, what was found drawn over it; of a video `<name>/<frame>.png`.
        label_maps: of panoptic and semantic tasks, `ids/<name>.png`.
        attention: `attention/<name>.png`, see `Detector.attention`.
    """

    overlays: bool = True
    label_maps: bool = True
    attention: bool = False

    @property
    def folders(self) -> list[str]:
        """Where each goes."""
        wanted = {"": self.overlays, "ids/": self.label_maps, "attention/": self.attention}
        return [folder for folder, is_wanted in wanted.items() if is_wanted]


def predict_sources(
    detector: Detector,
    sources: Sequence[Source],
    output: Path | None = None,
    *,
    threshold: float | None = None,
    pictures: Pictures | None = None,
    batch_size: int = 1,
    every: int = 1,
    workers: int = 2,
    done: Mapping[str, Collection[int]] | None = None,
    shard: tuple[int, int] = (0, 1),
    failed: Callable[[str, str], object] | None = None,
) -> Iterator[Record]:
    """Predicts images and videos, as `predict_files` does; memory does not grow with their number.

    Records of videos are of one frame each and hold "frame" and "seconds", too. Other threads read what comes
    next and write pictures meanwhile; a record comes when its pictures are written.

    Args:
        detector: see `load_detector`.
        sources: see `find_sources`.
        output: folder for pictures.
        threshold: see `predict_image`.
        pictures: which; None draws none.
        batch_size: images that run together, see `Detector.__call__`.
        every: of videos, take one frame of so many.
        workers: threads that read and draw.
        done: sources to leave out, and of videos the frames.
        shard: (rank, ranks) of a process that does its share of the sources.
        failed: told the file and the reason where an image cannot be used.

    Raises:
        ValueError: an option that does not fit, or a result would be written over a source; nothing has been
            written.
    """
    check_threshold(threshold)
    for name, number in (("batch_size", batch_size), ("every", every), ("workers", workers)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1; got {number}")
    pictures = pictures or Pictures(overlays=False, label_maps=False)
    if pictures.attention and detector.task_name == "semantic":
        raise ValueError("attention: semantic results mix all queries; expected another task")
    done = {} if done is None else done
    # names that are taken stay as they are when files have been added
    ordered = sorted(sources, key=lambda source: source.file not in done)
    names = distinct_names(source.stem for source in ordered)
    if output is not None:
        read = [source.file for source in sources if source.file != STDIN]
        check_not_inputs(chain(_written(output, ordered, names, pictures), result_files(output)), read)
    tell = failed or (lambda file, why: None)
    mine = slice(shard[0], None, shard[1])
    named = list(zip(ordered[mine], names[mine], strict=True))
    videos = any(source.is_video for source, _ in named)
    total = None if videos else sum(source.file not in done for source, _ in named)

    def records() -> Iterator[Record]:
        with (
            ThreadPoolExecutor(workers) as pool,
            progress(total=total, desc="predict", unit="image") as bar,
        ):

            def told(file: str, why: str) -> None:
                bar.update()
                tell(file, why)

            reads = _reads(detector, named, every, done)
            loaded = _usable(_in_order(pool, reads, workers + batch_size), told)
            found = _found(detector, loaded, threshold, batch_size, told)
            saves = (
                partial(_save, one, result, _attention(detector, result, pictures), output, pictures)
                for one, result in found
            )
            for record in _in_order(pool, saves, workers):
                bar.update()
                yield record

    return records()


def _written(
    output: Path, sources: Iterable[Source], names: Iterable[str], pictures: Pictures
) -> Iterator[str | Path]:
    """The pictures of images; of videos, whose frames nobody has counted, those that are there already."""
    for source, name in zip(sources, names, strict=True):
        for folder in pictures.folders:
            if source.is_video:
                yield from (output / folder / name).glob("*.png")
            else:
                yield f"{output}/{folder}{name}.png"


@dataclass(frozen=True)
class _Loaded:
    """An image in memory, what its results are called and its part of the record; or why there is none."""

    file: str
    name: str
    image: Image.Image | None = None
    pixels: Tensor | None = None
    frame: Mapping[str, float] | None = None
    why: str = ""


def _reads(
    detector: Detector,
    named: Iterable[tuple[Source, str]],
    every: int,
    done: Mapping[str, Collection[int]],
) -> Iterator[Callable[[], _Loaded]]:
    """What is to be done to get each image; videos are decoded one frame after the other."""
    for source, name in named:
        file = source.file
        if not source.is_video:
            if file not in done:
                yield partial(_load, detector, file, name, partial(read_image, source))
            continue
        try:
            for frame in read_video(file, every, done.get(file, ())):
                place = {"frame": frame.index, "seconds": frame.seconds}
                shown = f"{name}/{frame.index:06d}"
                yield partial(_load, detector, file, shown, partial(_same, frame.image), place)
        except (ImageError, OSError) as error:
            yield partial(_Loaded, file, name, why=str(error))


def _same(image: Image.Image) -> Image.Image:
    return image


def _load(
    detector: Detector,
    file: str,
    name: str,
    read: Callable[[], Image.Image],
    frame: Mapping[str, float] | None = None,
) -> _Loaded:
    try:
        image = read()
        return _Loaded(file, name, image, pixels_of(detector, image), frame)
    except IMAGE_ERRORS as error:
        return _Loaded(file, name, why=str(error) or f"{file}: not enough memory")


def _usable(loaded: Iterable[_Loaded], failed: Callable[[str, str], object]) -> Iterator[_Loaded]:
    for one in loaded:
        if one.image is None:
            failed(one.file, one.why)
        else:
            yield one


def _found(
    detector: Detector,
    loaded: Iterator[_Loaded],
    threshold: float | None,
    batch_size: int,
    failed: Callable[[str, str], object],
) -> Iterator[tuple[_Loaded, ImageResult]]:
    while batch := list(islice(loaded, batch_size)):
        yield from _found_together(detector, batch, threshold, failed)


def _found_together(
    detector: Detector,
    batch: Sequence[_Loaded],
    threshold: float | None,
    failed: Callable[[str, str], object],
) -> list[tuple[_Loaded, ImageResult]]:
    """The results of a batch; images that are too large together go one by one."""
    pixels = [one.pixels for one in batch if one.pixels is not None]
    images = [one.image for one in batch if one.image is not None]
    try:
        return list(zip(batch, find(detector, pixels, images, threshold), strict=True))
    except (MemoryError, torch.OutOfMemoryError):
        if len(batch) == 1:
            failed(batch[0].file, f"{batch[0].file}: not enough memory")
            return []
    return [pair for one in batch for pair in _found_together(detector, [one], threshold, failed)]


def _attention(detector: Detector, result: ImageResult, pictures: Pictures) -> Image.Image | None:
    return detector.attention(result) if pictures.attention else None


def _save(
    loaded: _Loaded,
    result: ImageResult,
    attention: Image.Image | None,
    output: Path | None,
    pictures: Pictures,
) -> Record:
    """Writes the pictures of an image and makes its record."""
    record: Record = {"file": loaded.file, **(loaded.frame or {})}
    record |= {"width": result.image.width, "height": result.image.height}
    record[result.records_key] = result.records
    if output is None:
        return record
    if pictures.overlays:
        _write_picture(result.draw(), output / f"{loaded.name}.png")
    if pictures.label_maps and (ids := result.id_map()) is not None:
        record["ids"] = f"ids/{loaded.name}.png"
        _write_picture(ids, output / record["ids"])
    if attention is not None:
        _write_picture(attention, output / "attention" / f"{loaded.name}.png")
    return record


def _write_picture(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """The results of jobs in their order, of which no more than `ahead` wait."""
    waiting: deque[Future[T]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
