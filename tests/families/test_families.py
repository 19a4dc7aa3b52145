"""The table of families, files of each of them, and their results held against the ground truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.engine import (
    FAMILIES,
    MODELS,
    TASKS,
    TrainConfig,
    dataset_detector,
    evaluate,
    load_detector,
    model_config,
    predict_image,
    train_config,
)
from detr_fast.engine.coco_categories import coco_categories
from detr_fast.families import check_task, family_in, family_of, results
from detr_fast.structures import MaskPredictions, PackedTargets, PaddedImages, Predictions
from detr_fast.tasks import build_dataset
from tests.engine.tiny import SIZE, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("shapes"), train_images=1, val_images=5)


def test_every_name_is_a_model_of_its_family() -> None:
    for name in MODELS:
        assert isinstance(model_config(name), FAMILIES[family_of(name)].config)
    assert model_config("mask2former-swin-l").num_queries == 200
    assert model_config("deformable-detr-r50-two-stage").two_stage
    for family, about in FAMILIES.items():
        assert model_config(family) == about.config()


def test_tasks_of_a_family() -> None:
    assert {task for about in FAMILIES.values() for task in about.tasks} == TASKS.keys()
    assert check_task("detr-segm", None) == "panoptic"
    assert check_task("maskformer", "semantic") == "semantic"
    with pytest.raises(ValueError, match="task: deformable-detr does detection; got 'semantic'"):
        check_task("deformable-detr", "semantic")


def test_training_settings_are_the_familys_unless_said_otherwise() -> None:
    assert train_config("detr", lr=None) == TrainConfig()
    mask2former = train_config("mask2former", lr=3e-4, epochs=None)
    assert (mask2former.lr, mask2former.lr_backbone, mask2former.weight_decay) == (3e-4, 1e-5, 0.05)
    assert (mask2former.clip_max_norm, mask2former.epochs) == (0.01, 50)
    deformable = train_config("deformable-detr")
    assert (deformable.lr, deformable.lr_backbone, deformable.lr_drop) == (2e-4, 2e-5, 40)


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_hold_every_parameter_once(family: str) -> None:
    model = FAMILIES[family].model(model_config(f"{family}-tiny", num_classes=3))
    groups = FAMILIES[family].parameter_groups(model, TrainConfig(lr=1.0, lr_backbone=0.5))
    parameters = [id(p) for group in groups for p in group["params"]]
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == {id(p) for p in model.parameters() if p.requires_grad}
    slow = {id(p) for group in groups if group["lr"] == 0.5 for p in group["params"]}
    assert slow == {id(p) for name, p in model.named_parameters() if "backbone." in name}


@pytest.mark.parametrize(
    ("family", "num_classes", "task", "label", "category"),
    [
        ("detr", 91, "detection", 90, (90, "toothbrush")),
        ("detr-segm", 250, "panoptic", 200, (200, "rug-merged")),
        ("detr-segm", 91, "instance", 90, (90, "toothbrush")),
        ("deformable-detr", 91, "detection", 1, (1, "person")),
        ("maskformer", 133, "panoptic", 80, (92, "banner")),
        ("maskformer", 150, "semantic", 149, (149, "class 149")),
        ("mask2former", 133, "panoptic", 79, (90, "toothbrush")),
        ("mask2former", 80, "instance", 0, (1, "person")),
    ],
)
def test_official_files_tell_their_family_and_task(
    family: str, num_classes: int, task: str, label: int, category: tuple[int, str], tmp_path: Path
) -> None:
    small = {"backbone": "resnet18", "num_classes": num_classes, "nheads": 8}
    model = FAMILIES[family].model(model_config(f"{family}-tiny", **small))
    torch.save({"model": model.state_dict()}, tmp_path / "official.pth")
    detector = load_detector(tmp_path / "official.pth", model=family)
    assert (detector.family, detector.task_name) == (family, task)
    assert detector.categories[label] == category
    assert (detector.things is not None) == (task == "panoptic")
    if detector.things is not None:
        assert len(detector.things) == 80
    assert detector.contiguous_labels == (family in ("maskformer", "mask2former"))
    for name, value in detector.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    for other in FAMILIES[family].tasks:
        assert load_detector(tmp_path / "official.pth", task=other).task_name == other
    with pytest.raises(
        ValueError, match=r"official\.pth: model: expected a checkpoint of (maskformer|detr); got "
    ):
        load_detector(tmp_path / "official.pth", model="maskformer" if family != "maskformer" else "detr")


@pytest.mark.parametrize("name", [*(f"{family}-tiny" for family in FAMILIES), "two-stage"])
def test_state_dicts_tell_their_family(name: str) -> None:
    family = "deformable-detr" if name == "two-stage" else family_of(name)
    config = model_config(f"{family}-tiny", **({"two_stage": True} if name == "two-stage" else {}))
    state = FAMILIES[family].model(config).state_dict()
    assert family_in(state) == family
    assert family_in({"sem_seg_head.predictor.static_query.weight": 0}) == "mask2former"
    assert family_in({"fc.weight": 0}) is None


def test_coco_has_gaps_that_labels_keep_or_close() -> None:
    for count, stuff in ((80, 0), (91, 0), (133, 53), (250, 53)):
        categories, things, _ = coco_categories(count)
        assert len(categories) == 80 + stuff
        assert all((label == category) == (count in (91, 250)) for label, (category, _) in categories.items()
                   if category > 12)  # fmt: skip
        assert things is None or len(things) == 80


class Knows(nn.Module):
    """Answers with the masks and classes of the images it was told, certain of all of them."""

    size_multiple = 4

    def __init__(self, targets: list[dict], num_classes: int, boxes: bool) -> None:
        super().__init__()
        self.targets, self.num_classes, self.boxes = iter(targets), num_classes, boxes
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images: PaddedImages) -> MaskPredictions | Predictions:
        batch, (height, width) = len(images), images.tensors.shape[2:]
        logits = torch.full((1, batch, 8, self.num_classes + 1), -20.0)
        logits[..., -1] = 0
        masks = torch.full((1, batch, 8, height, width), -20.0)
        boxes = torch.full((1, batch, 8, 4), 0.5)
        for b, target in enumerate(next(self.targets) for _ in range(batch)):
            for q, (label, mask, box) in enumerate(
                zip(target["labels"], target["masks"], target["boxes"], strict=True)
            ):
                logits[0, b, q, label] = 20
                masks[0, b, q, : mask.shape[0], : mask.shape[1]] = 40 * mask - 20.0
                boxes[0, b, q] = box
        return Predictions(logits, boxes, masks=masks) if self.boxes else MaskPredictions(logits, masks)


@pytest.mark.parametrize(
    ("family", "task"), [(f, t) for f, about in FAMILIES.items() for t in about.tasks if about.masks]
)
def test_ground_truth_scores_one(family: str, task: str, data: Path) -> None:
    images = build_dataset(
        data, "val", task, train=False, scales=(SIZE,), contiguous_labels=FAMILIES[family].contiguous_labels
    )  # type: ignore[arg-type]
    knows = Knows([images[i][1] for i in range(len(images))], images.num_classes, family == "detr-segm")
    detector = dataset_detector(knows, images, family, task, SIZE, SIZE)
    metrics = evaluate(detector, images, batch_size=2)
    best = metrics[detector.task.best_metric]
    if (family, task) == ("detr-segm", "panoptic"):
        assert best > 0.9  # segments of 4 pixels or fewer are dropped, and these images have some
    else:
        assert best == pytest.approx(1.0, abs=1e-6)
        assert "100.0" in detector.task.format(metrics) or "1.000" in detector.task.format(metrics)


@pytest.mark.parametrize(("trained_for", "resize"), [("semantic", "after"), ("panoptic", "before")])
def test_semantic_scores_are_resized_as_officially(
    trained_for: str, resize: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(*arguments: object, resize: str) -> list[torch.Tensor]:
        seen.append(resize)
        return [torch.zeros(SIZE, SIZE, dtype=torch.int64)]

    monkeypatch.setattr(results, "postprocess_semantic_labels", record)
    images = build_dataset(data, "val", "panoptic", train=False, scales=(SIZE,), contiguous_labels=True)
    knows = Knows([images[0][1]], images.num_classes, boxes=False)
    detector = dataset_detector(knows, images, "mask2former", trained_for, SIZE, SIZE).with_task("semantic")
    predict_image(detector, Image.new("RGB", (SIZE, SIZE)))
    assert seen == [resize]


def test_other_categories_are_refused(data: Path) -> None:
    images = build_dataset(data, "val", "panoptic", train=False, scales=(SIZE,), contiguous_labels=True)
    detector = dataset_detector(nn.Linear(1, 1), images, "mask2former", "panoptic", SIZE, SIZE)
    detector.categories[0] = (3, "wheel")
    with pytest.raises(ValueError, match=r"none of the model.s: 1 \(disc\); the model has 3 \(wheel\)"):
        evaluate(detector, images)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("name", [*(f"{family}-tiny" for family in FAMILIES), "two-stage"])
def test_every_parameter_gets_a_gradient(name: str, count: int, rng: torch.Generator) -> None:
    """Ranks wait for each other: a gradient that is missing where there are no targets would hang them."""
    family = FAMILIES["deformable-detr" if name == "two-stage" else family_of(name)]
    options = {"two_stage": True} if name == "two-stage" else {}
    config = model_config("deformable-detr-tiny" if options else name, num_classes=3, **options)
    images = PaddedImages.from_list([torch.randn(3, 64, 64, generator=rng)])
    masks = torch.zeros(count, 64, 64, dtype=torch.bool)
    masks[:, 8:40, 16:30] = True
    targets = [{"labels": torch.ones(count, dtype=torch.int64), "boxes": torch.rand(count, 4, generator=rng)}]
    if family.masks:
        targets[0]["masks"] = masks
    model = family.model(config).train()
    criterion = family.criterion(config)
    packed = PackedTargets.from_list(targets)
    inputs = (images, packed) if getattr(model, "takes_targets", False) else (images,)
    criterion.total(criterion(model(*inputs), packed)).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
