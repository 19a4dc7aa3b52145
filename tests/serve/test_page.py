"""The page in headless Chromium, where there is one: an image is dropped, and what was found appears."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from detr_fast.serve import ServeOptions, create_app
from detr_fast.serve.app import PAGE
from tests.serve.running import brightness_detector, picture, running_app

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# what a person does: drops a file on the page
DROP = """
fetch("/dropped").then((answer) => answer.blob()).then((blob) => {
  const carried = new DataTransfer();
  carried.items.add(new File([blob], "photo.png", { type: "image/png" }));
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
});
"""


def visit(dropped: bytes, tmp_path: Path, *more: str) -> str:
    """The page as it stands after a drop."""
    app = create_app(brightness_detector(), ServeOptions(max_pixels=10_000))

    def page(request: Request) -> Response:
        text = (PAGE / "page.html").read_text()
        return HTMLResponse(text.replace("</body>", '<script src="/drop.js" defer></script></body>'))

    app.routes.extend(
        [
            Route("/visit", page),
            Route("/drop.js", lambda request: Response(DROP, media_type="text/javascript")),
            Route("/dropped", lambda request: Response(dropped, media_type="image/png")),
        ]
    )
    assert BROWSER is not None
    with running_app(app) as url:
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=20000", *more, "--dump-dom", f"{url}/visit",
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_what_was_found_appears(tmp_path: Path) -> None:
    shown = visit(picture(204, (60, 40)), tmp_path)
    assert "detr, detection, 1 classes" in shown
    # a class name is text, whatever it holds
    assert re.search(r"<td>&lt;b&gt;light&lt;/b&gt;</td><td>0\.\d\d</td>", shown)
    assert re.search(r'<img id="picture" alt="&lt;b&gt;light.*" src="data:image/jpeg;base64,/9j/', shown)
    assert re.search(r"1 found in 60 . 40 pixels, \d+\.\d\d s", shown)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_an_error_is_shown(tmp_path: Path) -> None:
    shown = visit(picture(1, (200, 100)), tmp_path)
    assert "image: expected at most 10000 pixels; got 200 x 100" in shown
    assert '<p id="status" role="status" class="error">' in shown
