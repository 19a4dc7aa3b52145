"""The README's operator and the PyTorch it is said to equal."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests.paths import ROOT


def test_the_operator_equals_its_equivalent() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (operator,) = (block for block in blocks if "= ms_deform_attn(" in block)
    (equivalent,) = (block for block in blocks if "grid_sample" in block)
    names: dict[str, Any] = {}
    exec(operator, names)
    actual = names.pop("output")
    exec(equivalent, names)
    torch.testing.assert_close(actual, names["output"], rtol=1e-5, atol=1e-5)


def test_every_place_it_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## Repository map") : text.index("## Limitations")]
    places = [place.rstrip("/") for place in re.findall(r"`([\w/]+(?:\.py)?/?)`", table)]
    assert len(places) >= 10
    for place in places:
        assert (ROOT / place).exists() or (ROOT / "detr_fast" / place).exists(), place
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
