"""The global patch accelerates what is built and loaded under it, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import transformers as hf

from detr_fast.integrations import transformers
from detr_fast.integrations.attention_forms import FusedAttention
from detr_fast.integrations.losses import FastLoss
from tests.integrations import tiny


def accelerated(model: hf.PreTrainedModel) -> bool:
    attention = any(isinstance(module, FusedAttention) for module in model.modules())
    assert attention == isinstance(model.__dict__.get("_loss_function"), FastLoss)
    return attention


def test_models_built_and_loaded_under_the_patch(tmp_path: Path) -> None:
    originals = (hf.PreTrainedModel.post_init, hf.PreTrainedModel.__dict__["from_pretrained"])
    tiny.build("deformable_detr").save_pretrained(tmp_path)
    with transformers.patched():
        assert accelerated(tiny.build("deformable_detr"))
        assert accelerated(hf.DeformableDetrForObjectDetection.from_pretrained(tmp_path))
        assert accelerated(hf.AutoModelForObjectDetection.from_pretrained(tmp_path))
        assert hf.BertModel(tiny.BERT)  # nothing known in it, and no complaint
    assert not accelerated(tiny.build("deformable_detr"))
    assert not accelerated(hf.DeformableDetrForObjectDetection.from_pretrained(tmp_path))
    assert originals == (hf.PreTrainedModel.post_init, hf.PreTrainedModel.__dict__["from_pretrained"])


def test_patching_twice_and_undoing_once() -> None:
    original = hf.PreTrainedModel.post_init
    transformers.patch()
    transformers.patch()
    with transformers.patched():
        pass
    assert hf.PreTrainedModel.post_init is not original
    transformers.unpatch()
    transformers.unpatch()
    assert hf.PreTrainedModel.post_init is original


def test_without_transformers_it_says_so() -> None:
    code = (
        "from detr_fast.integrations import transformers\n"
        "try:\n    transformers.patch()\n"
        "except RuntimeError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("transformers has not been imported")
