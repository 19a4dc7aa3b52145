"""What the server answers: every way to ask, every way to ask wrongly, bounds, metrics."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from detr_fast.serve import ServeOptions, create_app
from tests.export.test_export import detector_of
from tests.serve.running import SIZE, brightness_detector, picture, width_found

OPTIONS = ServeOptions(max_pixels=10_000, max_bytes=20_000)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(brightness_detector(), OPTIONS)) as client:
        yield client


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_way_to_ask_gets_the_same_answer(client: TestClient, form: str) -> None:
    content = picture(204, (20, 10), form)
    answers = [
        client.post("/predict", files={"image": ("a.x", content)}, data={"threshold": "0.3"}),
        client.post("/predict", json={"image": in_base64(content), "threshold": 0.3}),
        client.post("/predict", json={"image": "data:image/x;base64," + in_base64(content)}),
        client.post("/predict", content=content, headers={"content-type": f"image/{form.lower()}"}),
        client.post("/predict?threshold=0.3", files={"image": content}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json().keys() == {"width", "height", "detections"}
        assert (answer.json()["width"], answer.json()["height"]) == (20, 10)
        (found,) = answer.json()["detections"]
        assert found["name"] == "<b>light</b>"
        assert width_found(answer.json()) == pytest.approx(20 * 204 / 255, abs=0.2)


def test_options_of_a_question(client: TestClient) -> None:
    content = picture(100)
    none = client.post("/predict", json={"image": in_base64(content), "threshold": 1}).json()
    assert none["detections"] == []
    drawn = client.post("/predict", files={"image": content}, data={"overlay": "true"}).json()
    overlay = Image.open(io.BytesIO(base64.b64decode(drawn["overlay_jpeg"])))
    assert (overlay.size, overlay.format) == ((SIZE, SIZE), "JPEG")


def test_photographs_are_turned_upright(client: TestClient) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    content = io.BytesIO()
    image.save(content, "JPEG", exif=exif)
    answer = client.post("/predict", files={"image": content.getvalue()}).json()
    assert (answer["width"], answer["height"]) == (10, 20)


FORM = {"content-type": "multipart/form-data; boundary=x"}
JSON = {"content-type": "application/json"}
GOOD = in_base64(picture(1))


@pytest.mark.parametrize(
    ("question", "status", "message"),
    [
        ({"files": {"image": b"no picture"}}, 400, "image: not an image"),
        ({"files": {"image": b""}}, 400, "image: the file is empty"),
        ({"files": {"image": picture(1, form="JPEG")[:300]}}, 400, "image: "),
        ({"files": {"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}}, 400, "PostScript"),
        ({"files": {"photo": picture(1)}}, 400, "field: expected image, threshold, overlay; got 'photo'"),
        ({"data": {"image": "text"}, "files": {}}, 415, "content-type: expected"),
        ({"files": [("image", picture(1)), ("image", picture(1))]}, 400, "Too many files"),
        ({"files": {"image": picture(1)}, "data": {"threshold": "2"}}, 400, "threshold: expected a score"),
        ({"files": {"image": picture(1)}, "data": {"threshold": "nan"}}, 400, "threshold: expected a score"),
        ({"files": {"image": picture(1)}, "data": {"overlay": "maybe"}}, 400, "overlay: expected true or"),
        ({"content": b"--x\r\n", "headers": FORM}, 400, ""),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data"}}, 400, "body: no form"),
        ({"content": b"{", "headers": JSON}, 400, "body: no JSON"),
        ({"content": b"[" * 10_000, "headers": JSON}, 400, "body: no JSON"),
        ({"content": b"[]", "headers": JSON}, 400, "body: expected a JSON object; got list"),
        ({"json": {}}, 400, "image: expected an image file in base64"),
        ({"json": {"image": 3}}, 400, "image: expected an image file in base64"),
        ({"json": {"image": "http://example.org/a.png"}}, 400, "image: expected base64"),
        ({"json": {"image": "äöü"}}, 400, "image: expected base64"),
        ({"json": {"image": GOOD, "threshold": True}}, 400, "threshold: expected a score"),
        ({"json": {"image": GOOD, "threshold": [1]}}, 400, "threshold: expected a score"),
        ({"json": {"image": GOOD, "size": 3}}, 400, "field: expected image, threshold, overlay; got 'size'"),
        ({"content": picture(1)}, 415, "content-type: expected multipart/form-data, .* or image/*; got none"),
        ({"content": picture(1), "headers": {"content-type": "text/plain"}}, 415, "got text/plain"),
        ({"params": {"image": "x"}, "json": {"image": GOOD}}, 400, "image: expected in the body"),
        ({"files": {"image": picture(1, (101, 100))}}, 413, "image: expected at most 10000 pixels; got 101"),
        ({"files": {"image": b"x" * 20_001}}, 413, "body: expected at most 20000 bytes"),
        ({"content": iter([b"x" * 9_000] * 3), "headers": {"content-type": "image/png"}}, 413, "body: "),
        ({"json": {"image": "A" * 20_001}}, 413, "body: expected at most 20000 bytes"),
    ],
)  # fmt: skip
def test_bad_questions_are_told_why(
    client: TestClient, question: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post("/predict", **question)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    for part in message.split(".*"):
        assert part in answer.json()["error"]
    assert client.post("/predict", json={"image": GOOD}).status_code == 200


def test_other_methods_and_places(client: TestClient) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/elsewhere").status_code == 404
    assert client.get("/page/../app.py").status_code == 404


def test_health_and_page(client: TestClient) -> None:
    about = client.get("/health").json()
    assert about["status"] == "ok"
    assert (about["model"], about["task"], about["classes"]) == ("detr", "detection", ["<b>light</b>"])
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http" not in page.text  # nothing comes from elsewhere
    for part in ("/page.js", "/page.css"):
        assert part in page.text
        assert client.get(part).status_code == 200


def value(client: TestClient, name: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def test_metrics_count_what_happened() -> None:
    with TestClient(create_app(brightness_detector(), OPTIONS)) as client:
        for _ in range(3):
            client.post("/predict", files={"image": picture(1)})
        client.post("/predict", files={"image": b"x"})
        assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")
        assert value(client, 'detr_fast_requests_total{status="200"}') == 3
        assert value(client, 'detr_fast_requests_total{status="400"}') == 1
        assert value(client, "detr_fast_request_seconds_count") == 4
        assert value(client, "detr_fast_model_seconds_count") == 4  # one to warm up
        assert value(client, "detr_fast_batch_size_sum") == 4
        assert value(client, "detr_fast_in_flight") == 0


def test_only_named_hosts_are_answered() -> None:
    options = ServeOptions(allowed_hosts=["localhost"])
    with TestClient(create_app(brightness_detector(), options), base_url="http://localhost:80") as client:
        assert client.get("/health").status_code == 200
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 400


def test_a_defect_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    detector = brightness_detector()
    with TestClient(create_app(detector)) as client:
        detector.model.register_forward_pre_hook(lambda *_: 1 / 0)
        answer = client.post("/predict", files={"image": picture(1)})
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_label_maps_come_along(task: str, rng: torch.Generator) -> None:
    detector = detector_of("mask2former", rng).with_task(task)
    with TestClient(create_app(detector)) as client:
        answer = client.post("/predict", files={"image": picture(90, (60, 40))}).json()
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["ids_png"])))).astype(int)
    ids = pixels @ [1, 256, 65536] if task == "panoptic" else pixels
    key, name = ("segments", "id") if task == "panoptic" else ("classes", "label")
    assert ids.shape == (40, 60)
    assert all((ids == one[name]).sum() == one["area"] for one in answer[key])


@pytest.mark.parametrize("name", ["max_batch", "max_queue", "max_pixels", "max_bytes", "body_seconds"])
def test_bounds_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected more than 0; got 0"):
        ServeOptions(**{name: 0})


def test_an_answer_is_what_the_detector_says(rng: torch.Generator, tmp_path: Path) -> None:
    detector = detector_of("detr", rng)
    (tmp_path / "a.png").write_bytes(picture(77, (60, 40)))
    expected = detector(tmp_path / "a.png", threshold=0.0).records
    with TestClient(create_app(detector)) as client:
        answer = client.post("/predict?threshold=0", files={"image": (tmp_path / "a.png").read_bytes()})
    assert answer.json()["detections"] == json.loads(json.dumps(expected))
