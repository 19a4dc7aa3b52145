"""The HTTP application around a detector."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from detr_fast import __version__
from detr_fast.data import ImageError
from detr_fast.data.images import TooManyPixelsError, decode_image
from detr_fast.engine import Detector, ImageResult
from detr_fast.engine.inference import find, pixels_of
from detr_fast.serve.batching import Batcher
from detr_fast.serve.metrics import Metrics
from detr_fast.serve.payload import Question, Refused, read_question

T = TypeVar("T")

PAGE = Path(__file__).parent / "page"
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """Bounds of a server.

    Args:
        max_batch: images that run together; these have one size, so that none is padded and no answer depends
            on who else asks.
        max_wait: seconds that an image waits for others while the model is idle.
        max_queue: questions at once, those that run among them; more are told to come again (503).
        max_pixels: of an image; larger ones are refused before they are decoded (413).
        max_bytes: of a request's body (413).
        body_seconds: that a body may take to arrive (408).
        workers: threads that decode images and encode answers.
        allowed_hosts: names that the server answers to; None: all. Against pages that point their own name at
            a server on loopback.
    """

    max_batch: int = 8
    max_wait: float = 0.005
    max_queue: int = 128
    max_pixels: int = 50_000_000
    max_bytes: int = 32 * 2**20
    body_seconds: float = 30.0
    workers: int = 2
    allowed_hosts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_pixels", "max_bytes", "body_seconds", "workers"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0; got {getattr(self, name)}")
        if self.max_wait < 0:
            raise ValueError(f"max_wait: expected at least 0; got {self.max_wait}")


@dataclass(frozen=True)
class Prepared:
    """An image as the model takes it, and as results are of it."""

    pixels: Tensor
    image: Image.Image
    threshold: float | None


def create_app(detector: Detector, options: ServeOptions | None = None) -> Starlette:
    """An ASGI application: `POST /predict`, `/health`, `/metrics` and a page at `/`.

    Args:
        detector: runs on one thread.
        options: bounds.
    """
    server = _Server(detector, options or ServeOptions())
    hosts = server.options.allowed_hosts
    guard = [] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    routes = [
        Route("/predict", server.predict, methods=["POST"]),
        Route("/health", server.health),
        Route("/metrics", server.metrics_text),
        *(Route(path, _file(name)) for path, name in PAGE_FILES.items()),
    ]
    return Starlette(routes=routes, middleware=guard, lifespan=server.lifespan)


PAGE_FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}


def _file(name: str) -> Callable[[Request], FileResponse]:
    def serve_file(request: Request) -> FileResponse:
        return FileResponse(PAGE / name, headers=SECURITY)

    return serve_file


class _Server:
    """The routes, and what they share."""

    def __init__(self, detector: Detector, options: ServeOptions) -> None:
        self.detector, self.options = detector, options
        self.metrics = Metrics()
        self.in_flight = 0
        self.seconds_per_image = 0.0
        self.batcher: Batcher[Prepared, ImageResult]
        self.pool: ThreadPoolExecutor

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Warms the model up before the first question, answers the last ones before the end."""
        self.pool = ThreadPoolExecutor(self.options.workers, thread_name_prefix="images")
        self.batcher = Batcher(
            self.run,
            kind=lambda one: (one.pixels.shape, one.threshold),
            max_batch=self.options.max_batch,
            max_wait=self.options.max_wait,
        )
        gray = Image.new("RGB", (self.detector.image_size,) * 2, (128, 128, 128))
        await self.batcher.submit(Prepared(pixels_of(self.detector, gray), gray, None))
        yield
        await self.batcher.close()
        self.pool.shutdown()

    def run(self, batch: Sequence[Prepared]) -> list[ImageResult]:
        """A batch through the model."""
        started = time.perf_counter()
        pixels, images = [one.pixels for one in batch], [one.image for one in batch]
        results = find(self.detector, pixels, images, batch[0].threshold)
        seconds = time.perf_counter() - started
        self.metrics.model_seconds.observe(seconds)
        self.metrics.batch_size.observe(len(batch))
        self.seconds_per_image = 0.8 * self.seconds_per_image + 0.2 * seconds / len(batch)
        return results

    async def predict(self, request: Request) -> Response:
        """What is found in the image of a question, as JSON."""
        started = time.perf_counter()
        response = await self._answer(request)
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.request_seconds.observe(time.perf_counter() - started)
        return response

    async def health(self, request: Request) -> Response:
        """That the server runs, and what."""
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "model": self.detector.family,
                "task": self.detector.task_name,
                "threshold": self.detector.task.threshold,
                "classes": [name for _, name in self.detector.categories.values()],
            }
        )

    async def metrics_text(self, request: Request) -> Response:
        """Prometheus's."""
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def _answer(self, request: Request) -> Response:
        try:
            with self._place():
                limits = self.options.max_bytes, self.options.body_seconds
                question = await read_question(request, *limits)
                prepared = await self._on_thread(self._prepare, question)
                result = await self.batcher.submit(prepared)
                return JSONResponse(await self._on_thread(_content, result, question.overlay))
        except Refused as error:
            return JSONResponse({"error": error.message}, error.status, error.headers)
        except Exception:
            logger.exception("predict: a question that could not be answered")
            return JSONResponse({"error": "the server could not answer; its log says why"}, 500)

    @contextmanager
    def _place(self) -> Any:
        """A place among those who are served."""
        if self.in_flight >= self.options.max_queue:
            seconds = max(1, math.ceil(self.in_flight * self.seconds_per_image))
            raise Refused(503, "the queue is full; come again", {"Retry-After": str(seconds)})
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    def _prepare(self, question: Question) -> Prepared:
        try:
            image = decode_image(question.image, "image", max_pixels=self.options.max_pixels)
        except TooManyPixelsError as error:
            raise Refused(413, str(error)) from None
        except ImageError as error:
            raise Refused(400, str(error)) from None
        return Prepared(pixels_of(self.detector, image), image, question.threshold)

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)


def _content(result: ImageResult, overlay: bool) -> dict[str, Any]:
    """The answer as plain data."""
    content: dict[str, Any] = {"width": result.image.width, "height": result.image.height}
    content[result.records_key] = result.records
    if (ids := result.id_map()) is not None:
        content["ids_png"] = _encoded(ids, "PNG")
    if overlay:
        content["overlay_jpeg"] = _encoded(result.draw(), "JPEG", quality=90)
    return content


def _encoded(picture: Image.Image, form: str, **options: Any) -> str:
    """A picture file in base64."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")
