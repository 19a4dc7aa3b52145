"""A detector that is quick and tells images apart, and a server around it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from torch import nn

from detr_fast.engine import Detector
from detr_fast.serve import ServeOptions, create_app
from detr_fast.serve.run import Server, listen
from detr_fast.structures import PaddedImages, Predictions

SIZE = 32


class Brightness(nn.Module):
    """Finds one object, whose box is as wide as the image is bright; counts batches; may take its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.seconds = seconds
        self.batches: list[int] = []

    def forward(self, images: PaddedImages) -> Predictions:
        time.sleep(self.seconds)
        self.batches.append(len(images))
        # what ImageNet's mean and deviation make of red
        red = images.tensors[:, 0].mean((1, 2)) * 0.229 + 0.485
        boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(images), 1)
        boxes[:, 0], boxes[:, 2] = red / 2, red
        logits = torch.tensor([0.0, 5.0, 0.0]).expand(1, len(images), 1, 3)
        return Predictions(logits, boxes[None, :, None])


def brightness_detector(seconds: float = 0.0) -> Detector:
    return Detector(Brightness(seconds), {1: (1, "<b>light</b>")}, SIZE, 2 * SIZE)


def picture(red: int, size: tuple[int, int] = (SIZE, SIZE), form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(content, form)
    return content.getvalue()


def width_found(answer: dict) -> float:
    """Of the only object."""
    (found,) = answer["detections"]
    x0, _, x1, _ = found["box_xyxy"]
    return x1 - x0


@contextmanager
def running(detector: Detector, options: ServeOptions | None = None) -> Iterator[str]:
    """The address of a server in another thread."""
    with running_app(create_app(detector, options)) as url:
        yield url


@contextmanager
def running_app(app: Starlette) -> Iterator[str]:
    """Likewise of any application."""
    with listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, log_config=None, log_level="warning", lifespan="on")
        ready = threading.Event()
        server = Server(config, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
