"""Inference of MaskFormer and Mask2Former against the official code: semantic, instance and panoptic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from detr_fast.postprocess import postprocess_instance, postprocess_panoptic, postprocess_semantic
from detr_fast.structures import MaskPredictions
from tests.golden import case as golden
from tests.golden.case import Case

ATOL = 1e-5


def mask_inference(notes: Mapping[str, Any]) -> bool:
    return "object_mask_threshold" in notes["config"] and "padded_size" in notes["config"]


def arguments(case: Case) -> tuple[Any, ...]:
    config = case.config
    predictions = MaskPredictions(case["in/pred_logits"][None], case["in/pred_masks"][None])
    return (
        predictions,
        config["padded_size"],
        config["image_sizes_before_padding"],
        config["output_sizes"],
    )


def images(case: Case, kind: str) -> list[int]:
    """The images for which the case holds results of this kind."""
    return [i for i in range(len(case.config["output_sizes"])) if case.names(f"{i}/{kind}")]


@pytest.mark.parametrize(("name", "group"), golden.find(mask_inference))
@pytest.mark.parametrize(("kind", "resize"), [("semantic", "before"), ("semantic_resized_after", "after")])
def test_semantic(name: str, group: str, kind: str, resize: Any) -> None:
    case = golden.load(name)
    found = postprocess_semantic(*arguments(case), resize=resize)
    held = [i for i in images(case, kind) if f"{i}/{kind}" in case]
    assert held
    for i in held:
        torch.testing.assert_close(found[i], case[f"{i}/{kind}"], rtol=0, atol=ATOL)


@pytest.mark.parametrize(("name", "group"), golden.find(mask_inference))
@pytest.mark.parametrize("kind", ["panoptic", "panoptic_alt"])
def test_panoptic(name: str, group: str, kind: str) -> None:
    case = golden.load(name)
    thresholds = case.config if kind == "panoptic" else case.config[kind]
    # in the words of the cases' sources: Mask2Former asks each pixel for a mask probability of its own
    mask2former = case.notes["source"].startswith("facebookresearch/Mask2Former")
    found = postprocess_panoptic(
        *arguments(case),
        things=case.config["thing_classes"],
        mask_threshold=thresholds["object_mask_threshold"],
        overlap=thresholds["overlap_threshold"],
        pixel_threshold=0.5 if mask2former else None,
    )
    assert images(case, f"{kind}/")
    for i in images(case, f"{kind}/"):
        prefix, segments = f"{i}/{kind}/", found[i]["segments"]
        assert torch.equal(found[i]["segmentation"], case[f"{prefix}segmentation"].int())
        assert [s["id"] for s in segments] == case[f"{prefix}segment_id"].tolist()
        assert [s["label"] for s in segments] == case[f"{prefix}category_id"].tolist()
        assert [s["isthing"] for s in segments] == case[f"{prefix}isthing"].bool().tolist()
        areas = found[i]["segmentation"].flatten().bincount(minlength=len(segments) + 1)[1:]
        assert [s["area"] for s in segments] == areas.tolist()


def with_instances(notes: Mapping[str, Any]) -> bool:
    return mask_inference(notes) and "instances_per_image_topk" in notes["config"]


@pytest.mark.parametrize(("name", "group"), golden.find(with_instances))
@pytest.mark.parametrize("kind", ["instance_things", "instance_all"])
def test_instance(name: str, group: str, kind: str) -> None:
    case = golden.load(name)
    found = postprocess_instance(
        *arguments(case),
        top=case.config["instances_per_image_topk"],
        things=case.config["thing_classes"] if kind == "instance_things" else None,
    )
    assert images(case, kind)
    for i in images(case, kind):
        prefix = f"{i}/{kind}/"
        torch.testing.assert_close(found[i]["scores"], case[f"{prefix}scores"], rtol=0, atol=ATOL)
        assert torch.equal(found[i]["labels"], case[f"{prefix}labels"])
        assert torch.equal(found[i]["masks"], case[f"{prefix}masks"].bool())
