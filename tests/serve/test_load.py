"""Many clients at once: every question gets its own answer, batches form, a full queue sends clients away."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

from detr_fast.serve import ServeOptions
from detr_fast.serve.batching import Batcher
from tests.export.test_export import detector_of
from tests.paths import ROOT
from tests.serve.load import ask_all
from tests.serve.running import Brightness, brightness_detector, picture, running, width_found

CLIENTS = 64


def test_64_clients_get_their_own_answers(capsys: pytest.CaptureFixture[str]) -> None:
    detector = brightness_detector(seconds=0.005)
    model = detector.model
    assert isinstance(model, Brightness)
    reds = [i % 200 + 50 for i in range(4 * CLIENTS)]
    sizes = [(40, 40), (60, 30)]
    contents = [picture(red, sizes[i % 3 == 0]) for i, red in enumerate(reds)]
    with running(detector, ServeOptions(max_batch=8)) as url:
        one = asyncio.run(ask_all(url, contents[:32], 1))
        alone, model.batches = len(model.batches), []
        many = asyncio.run(ask_all(url, contents, CLIENTS))
    assert alone == 1 + 32  # the first is the server's own
    assert sum(model.batches) == len(contents)
    assert 2 < max(model.batches) <= 8
    assert many.refused == 0
    for load, asked in ((one, reds[:32]), (many, reds)):
        for i, (answer, red) in enumerate(zip(load.answers, asked, strict=True)):
            assert width_found(answer) == pytest.approx(sizes[i % 3 == 0][0] * red / 255, abs=0.5)
    with capsys.disabled():
        print(f"\none by one {one}\n{CLIENTS} clients {many}")


def test_a_full_queue_loses_nothing() -> None:
    reds = [i % 200 + 50 for i in range(2 * CLIENTS)]
    with running(brightness_detector(seconds=0.01), ServeOptions(max_batch=2, max_queue=4)) as url:
        load = asyncio.run(ask_all(url, [picture(red) for red in reds], CLIENTS, most_wait=0.02))
        metrics = httpx.get(f"{url}/metrics").text
    assert load.refused > 0
    assert f'detr_fast_requests_total{{status="503"}} {load.refused}.0' in metrics
    for answer, red in zip(load.answers, reds, strict=True):
        assert width_found(answer) == pytest.approx(32 * red / 255, abs=0.2)


def test_large_bodies_get_their_answer_before_they_are_read() -> None:
    body = b"x" * 20_000_000  # more than buffers hold
    with running(brightness_detector(seconds=0.3), ServeOptions(max_queue=1, max_bytes=10_000)) as url:
        answer = httpx.post(f"{url}/predict", files={"image": body}, timeout=60)
        assert answer.status_code == 413
        ask = threading.Thread(target=lambda: httpx.post(f"{url}/predict", files={"image": picture(9)}))
        ask.start()
        while "detr_fast_in_flight 1.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        assert httpx.post(f"{url}/predict", files={"image": body}, timeout=60).status_code == 503
        ask.join()


def test_slow_and_vanishing_clients_cost_their_own_place_alone() -> None:
    options = ServeOptions(max_queue=2, body_seconds=0.5)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\n"
    with running(brightness_detector(), options) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as slow, socket.create_connection(address) as gone:
            slow.sendall(head)
            gone.sendall(head)
            time.sleep(0.1)
            assert httpx.post(f"{url}/predict", files={"image": picture(1)}).status_code == 503
            gone.close()
            time.sleep(0.1)
            assert httpx.post(f"{url}/predict", files={"image": picture(1)}).status_code == 200
            assert slow.recv(99).startswith(b"HTTP/1.1 408 ")


def test_questions_that_have_begun_are_answered_before_the_end() -> None:
    found = []
    with running(brightness_detector(seconds=0.5)) as url:
        ask = threading.Thread(
            target=lambda: found.append(httpx.post(f"{url}/predict", files={"image": picture(9)}))
        )
        ask.start()
        while "detr_fast_in_flight 1.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
    ask.join()
    assert found[0].status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_the_command_serves_until_a_signal(tmp_path: Path, rng: torch.Generator) -> None:
    tiny = detector_of("detr", rng)
    torch.save({"model": tiny.model.state_dict(), "detector": tiny.description()}, tmp_path / "a.pt")
    command = [sys.executable, "-m", "detr_fast", "serve", str(tmp_path / "a.pt"), "--device", "cpu"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*command, "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert f"error: host, port: cannot listen at 127.0.0.1:{port}: Address already in use" in done.stderr
    server = subprocess.Popen(
        [*command, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert server.stdout is not None
    try:
        found = re.fullmatch(r"serving at (http://127\.0\.0\.1:\d+)\n", server.stdout.readline())
        assert found is not None
        assert httpx.post(f"{found[1]}/predict", files={"image": picture(9)}).status_code == 200
        assert httpx.get(f"{found[1]}/health", headers={"host": "evil.example"}).status_code == 400
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    finally:
        server.kill()


def test_a_batch_that_fails_fails_only_who_is_to_blame() -> None:
    ran: list[list[int]] = []

    def run(items: list[int]) -> list[int]:
        ran.append(list(items))
        if 3 in items:
            raise ValueError("three")
        return [10 * item for item in items]

    async def main() -> list[object]:
        batcher: Batcher[int, int] = Batcher(run, kind=lambda _: 0, max_batch=8, max_wait=0.05)
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(5)), return_exceptions=True)
        await batcher.close()
        return list(answers)

    answers = asyncio.run(main())
    assert [str(answer) for answer in answers] == ["0", "10", "20", "three", "40"]
    assert ran == [[0, 1, 2, 3, 4], [0], [1], [2], [3], [4]]


def test_batches_hold_one_kind_and_the_oldest_goes_first() -> None:
    ran: list[list[int]] = []
    blocked = threading.Event()

    def run(items: list[int]) -> list[int]:
        ran.append(list(items))
        blocked.wait(5)
        return items

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(run, kind=lambda i: i % 2, max_batch=3, max_wait=0.0)
        asked = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 4, 5, 6, 8, 7)]
        gone = asyncio.create_task(batcher.submit(9))
        await asyncio.sleep(0.05)
        gone.cancel()
        blocked.set()
        await batcher.close()
        assert [await one for one in asked] == [1, 2, 4, 5, 6, 8, 7]
        with pytest.raises(RuntimeError, match="batcher: it is closed"):
            await batcher.submit(1)

    asyncio.run(main())
    assert [set(batch) for batch in ran[1:]] == [{2, 4, 6}, {5, 7}, {8}] or ran[0] == [1, 5, 7]
