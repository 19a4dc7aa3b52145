"""What the benchmark's tests share: the suites at sizes that take milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from benchmarks.peers import transformers_models
from benchmarks.suite import Contender, Suite, all_suites
from benchmarks.suites import models
from detr_fast.models import Mask2Former, Mask2FormerConfig


def _tiny(full: Suite) -> Suite:
    """With tiny cases in place of its own, and without what takes seconds to compile."""

    def contenders(case: Any) -> list[Contender]:
        return [contender for contender in full.contenders(case) if not contender.compiles_s]

    return replace(full, cases=full.tiny, gpu_cases=full.tiny, contenders=contenders)


FULL = {suite.operator: suite for suite in all_suites()}
TINY = {operator: _tiny(suite) for operator, suite in FULL.items()}


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Mask2Former that takes milliseconds in place of the models of the suite."""

    def make(name: str) -> nn.Module:
        config = Mask2FormerConfig(num_classes=3, num_queries=5, backbone="conv_stem")
        return Mask2Former(config).eval().requires_grad_(False)

    models._model.cache_clear()
    monkeypatch.setattr(models, "random_model", make)
    monkeypatch.setattr(transformers_models, "why_not", lambda: "has no such model")
    yield
    models._model.cache_clear()
