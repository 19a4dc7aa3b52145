"""What is predicted: image files, folders and patterns of them, videos, standard input."""

# ruff: noqa: PTH111, PTH112, PTH122, PTH207
from __future__ import annotations

import glob
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detr_fast.data import ImageError, load_image
from detr_fast.data.images import decode_image

STDIN = "-"
# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
VIDEO_SUFFIXES = frozenset(
    (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
)
# fmt: on


@dataclass(frozen=True)
class Source:
    """An image, a video or standard input.

    Args:
        file: its path as records give it, or `-`.
        stem: what its results are called: the path in the folder that it was found in, without suffix.
    """

    file: str
    stem: str

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return os.path.splitext(self.file)[1].lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Frame:
    """An image of a video.

    Args:
        index: counted from 0.
        seconds: when it is shown.
        image: turned upright.
    """

    index: int
    seconds: float
    image: Image.Image


def find_sources(
    given: Iterable[str | Path], *, recursive: bool = False, leave_out: Path | None = None
) -> list[Source]:
    """The images and videos that paths, folders and patterns stand for, each file once, folders sorted.

    Args:
        given: `-` for an image on standard input; folders; patterns as `photos/**/*.jpg`, where there is no
            file of that name; anything else is a file, be it there or not. `~` is the home folder.
        recursive: search folders in folders, too.
        leave_out: a folder of results, whose pictures are not taken where a folder around it is searched.

    Raises:
        ValueError: a folder or pattern that holds no image and no video.
    """
    results = None if leave_out is None else os.path.realpath(leave_out)
    found: dict[str, Source] = {}
    for entry in map(str, given):
        path = os.path.expanduser(entry)
        if entry == STDIN:
            sources = [Source(STDIN, "stdin")]
        elif os.path.isdir(path):
            sources = [Source(file, _stem(file, path)) for file in _walk(path, recursive, results)]
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = filter(_is_wanted, sorted(glob.glob(path, recursive=True)))
            sources = [Source(file, _stem(file)) for file in matches if not _lies_in(file, results)]
        else:
            sources = [Source(path, _stem(path))]
        if not sources:
            deeper = "; --recursive searches the folders in it" if os.path.isdir(path) else ""
            raise ValueError(f"images: {entry} holds no image and no video{'' if recursive else deeper}")
        for source in sources:
            found.setdefault(source.file, source)
    return list(found.values())


def read_image(source: Source) -> Image.Image:
    """The image of a file or of standard input, turned upright.

    Raises:
        FileNotFoundError, ImageError: as for `load_image`.
    """
    if source.file == STDIN:
        return decode_image(sys.stdin.buffer.read(), "standard input")
    return load_image(source.file, exif_transpose=True)


def read_video(file: str, every: int = 1, done: Collection[int] = ()) -> Iterator[Frame]:
    """Every `every`-th frame of a video that is not `done`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it is no video, or damaged; what came before has been given.
        ImportError: av is not installed.
    """
    import av

    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such video file")
    try:
        with av.open(file) as container:
            if not container.streams.video:
                raise ImageError(f"{file}: a video without pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for index, frame in enumerate(container.decode(stream)):
                if index % every == 0 and index not in done:
                    image = frame.to_image()
                    upright = image.rotate(frame.rotation, expand=True) if frame.rotation else image
                    yield Frame(index, round(float(frame.time or 0.0), 3), upright)
    except av.error.FFmpegError as error:
        raise ImageError(f"{file}: {error.strerror}") from error


def _walk(folder: str, recursive: bool, results: str | None) -> Iterator[str]:
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            # a link to a folder may lead back here
            if recursive and not entry.is_symlink() and os.path.realpath(entry.path) != results:
                yield from _walk(entry.path, recursive, results)
        elif _is_wanted(entry.name):
            yield entry.path


def _lies_in(file: str, folder: str | None) -> bool:
    return folder is not None and os.path.realpath(file).startswith(folder + os.sep)


def _is_wanted(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def _stem(file: str, folder: str | None = None) -> str:
    path = Path(file)
    return path.stem if folder is None else path.relative_to(folder).with_suffix("").as_posix()
