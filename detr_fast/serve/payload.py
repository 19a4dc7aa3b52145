"""Reading a request for predictions, within bounds."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

FIELDS = ("image", "threshold", "overlay")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


class Refused(Exception):
    """A request that gets an error; `status` is HTTP's."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass(frozen=True)
class Question:
    """What a client asks.

    Args:
        image: the bytes of an image file.
        threshold: lowest score; None: the task's.
        overlay: whether the picture with what was found is wanted, too.
    """

    image: bytes
    threshold: float | None
    overlay: bool


async def read_question(request: Request, max_bytes: int, seconds: float) -> Question:
    """The question in a request: multipart/form-data, JSON with the image in base64, or an image as it is.

    Args:
        request: its query string may give all fields but the image.
        max_bytes: of the body.
        seconds: that the body may take.

    Raises:
        Refused: with 400, 408, 413 or 415.
    """
    try:
        fields = await asyncio.wait_for(_fields(request, max_bytes), seconds)
    except asyncio.TimeoutError:
        raise Refused(408, f"body: expected within {seconds:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "body: the client went away") from None
    if unknown := sorted(fields.keys() - set(FIELDS)):
        raise Refused(400, f"field: expected {', '.join(FIELDS)}; got {unknown[0]!r}")
    image = fields.get("image")
    if not isinstance(image, bytes):
        raise Refused(400, "image: expected an image file in the field `image`; got none")
    return Question(image, _threshold(fields.get("threshold")), _flag(fields.get("overlay", False)))


async def _fields(request: Request, max_bytes: int) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    given: dict[str, Any] = dict(request.query_params)
    if "image" in given:
        raise Refused(400, "image: expected in the body; got a query parameter")
    body = _bounded(request, max_bytes)
    if kind == "multipart/form-data":
        return given | await _form(request, body, max_bytes)
    if kind != "application/json" and not kind.startswith("image/"):
        expected = "multipart/form-data, application/json or image/*"
        raise Refused(415, f"content-type: expected {expected}; got {kind or 'none'}")
    content = b"".join([chunk async for chunk in body])
    return given | (_json(content) if kind == "application/json" else {"image": content})


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes, up to its bound."""
    too_large = Refused(413, f"body: expected at most {max_bytes} bytes")
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise too_large
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > max_bytes:
            raise too_large
        yield chunk


async def _form(request: Request, body: AsyncGenerator[bytes, None], max_bytes: int) -> dict[str, Any]:
    parser = MultiPartParser(
        request.headers, body, max_files=1, max_fields=len(FIELDS), max_part_size=max_bytes
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:  # KeyError: no boundary
        raise Refused(400, f"body: no form that can be read: {getattr(error, 'message', error)}") from None
    try:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise Refused(400, f"{name}: expected once; got more")
            fields[name] = await value.read() if isinstance(value, UploadFile) else value
        return fields
    finally:
        await form.close()


def _json(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "body: no JSON") from None
    if not isinstance(fields, dict):
        raise Refused(400, f"body: expected a JSON object; got {type(fields).__name__}")
    image = fields.get("image")
    if not isinstance(image, str):
        raise Refused(400, "image: expected an image file in base64")
    if image.startswith("data:"):
        image = image.partition(",")[2]
    try:
        return {**fields, "image": base64.b64decode(image, validate=True)}
    except (binascii.Error, ValueError):
        raise Refused(400, "image: expected base64; got other characters") from None


def _threshold(value: Any) -> float | None:
    if value is None:
        return None
    try:
        score = math.nan if isinstance(value, bool | bytes) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise Refused(400, f"threshold: expected a score in 0..1; got {str(value)[:40]}")
    return score


def _flag(value: Any) -> bool:
    flag = value if isinstance(value, bool) else _FLAGS.get(str(value).lower())
    if flag is None:
        raise Refused(400, f"overlay: expected true or false; got {str(value)[:40]}")
    return flag
