"""Every family with every task that it does: trained, evaluated and asked; and what cannot be done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from detr_fast.engine import FAMILIES, TASKS, load_detector
from detr_fast.engine.logs import read_log
from tests.cli.running import ok, refused
from tests.engine.tiny import SIZE, write_data
from tests.paths import ROOT

SMALL = ["--image-size", SIZE, "--num-workers", 0, "--device", "cpu"]
COMBINATIONS = [(family, task) for family, about in FAMILIES.items() for task in about.tasks]
NUMBERS = {"detection": 12, "instance": 12, "panoptic": 9, "semantic": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("shapes"), train_images=4, val_images=3)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The folders of runs of one epoch, made when they are first asked for."""

    class Runs(dict):
        def __missing__(self, key: tuple[str, str]) -> Path:
            family, task = key
            output = tmp_path_factory.mktemp(f"{family}-{task}")
            ok("train", "--data", data, "--output", output, "--model", f"{family}-tiny", "--task", task,
               "--epochs", 1, "--num-queries", 10, *SMALL)  # fmt: skip
            self[key] = output
            return output

    return Runs()


@pytest.mark.parametrize(("family", "task"), COMBINATIONS)
def test_a_run_is_evaluated_and_predicts(
    family: str, task: str, data: Path, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    run = runs[family, task]
    best = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    numbers = tmp_path / "numbers.json"
    outputs = ["--json", numbers, "--report", tmp_path / "report"]
    ok("eval", "--checkpoint", run / "last.pt", "--data", data, "--num-workers", 0, *outputs)
    metrics = json.loads(numbers.read_text())
    assert len(metrics) == NUMBERS[task]
    assert metrics == pytest.approx({name: best[name] for name in metrics})

    table = (tmp_path / "report" / "scores.md").read_text()
    assert "| class |" in table
    for picture in re.findall(r"\]\((.*?)\)", table):
        assert Image.open(tmp_path / "report" / picture).width > 300
    assert ("confusion.png" in table) == (task == "semantic" or (tmp_path / "report/confusion.png").exists())

    images = sorted((data / "val2017").iterdir())[:2]
    predict = ["predict", *images, "--checkpoint", run / "last.pt", "--output", tmp_path, "--threshold", 0]
    if task == "semantic":
        assert "semantic results mix all queries" in refused(*predict, "--attention")
        text = ok(*predict)
    else:
        text = ok(*predict, "--attention")
    assert all(str(image) in text for image in images)
    records = json.loads((tmp_path / "predictions.json").read_text())
    for record, image in zip(records, images, strict=True):
        found = record[TASKS[task].records_key]
        assert all({"label", "category_id", "name"} <= entry.keys() for entry in found)
        overlay = Image.open(tmp_path / f"{image.stem}.png")
        assert overlay.width == SIZE
        assert overlay.height >= SIZE  # a semantic picture has its legend below
        if task != "semantic" and found:
            assert Image.open(tmp_path / "attention" / f"{image.stem}.png").width > SIZE
        if task == "instance":
            for entry in found:
                assert rle.decode(entry["segmentation"]).shape == (SIZE, SIZE)
        if task == "panoptic":
            pixels = np.asarray(Image.open(tmp_path / record["ids"]).convert("RGB")).astype(int)
            ids, areas = np.unique(pixels @ [1, 256, 65536], return_counts=True)
            counted = dict(zip(ids.tolist(), areas.tolist(), strict=True))
            assert {entry["id"]: entry["area"] for entry in found}.items() <= counted.items()
        if task == "semantic":
            labels, areas = np.unique(np.asarray(Image.open(tmp_path / record["ids"])), return_counts=True)
            assert {entry["label"]: entry["area"] for entry in found} == dict(zip(labels, areas, strict=True))


def test_a_panoptic_model_does_the_other_tasks_too(
    data: Path, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    checkpoint = runs["mask2former", "panoptic"] / "last.pt"
    evaluate = ["eval", "--checkpoint", checkpoint, "--data", data, "--num-workers", 0, "--task"]
    assert "(AP)" in ok(*evaluate, "instance")
    assert "mean IoU" in ok(*evaluate, "semantic")
    image = next((data / "val2017").iterdir())
    ok("predict", image, "--checkpoint", checkpoint, "--task", "instance", "--output", tmp_path)
    assert "mask2former does panoptic or instance or semantic; got 'detection'" in refused(
        *evaluate, "detection"
    )
    instance = runs["mask2former", "instance"] / "last.pt"
    evaluate[2] = instance
    assert "was trained for instance; got 'panoptic'" in refused(*evaluate, "panoptic")


def test_resuming_and_fine_tuning(data: Path, runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    run = runs["mask2former", "semantic"]
    train = ["train", "--data", data, *SMALL]
    options = ["--model", "mask2former-tiny", "--task", "semantic", "--output", run]
    ok(*train, *options, "--epochs", 2, "--resume")
    weights = ["--weights", run / "last.pt", "--epochs", 1, "--no-evaluate"]
    text = ok(*train, *weights, "--output", tmp_path / "a", "--num-classes", 9)
    assert "has 7 classes and 9 are needed: the first 7 are taken, the others start afresh" in text
    content = torch.load(tmp_path / "a" / "last.pt")
    assert content["detector"]["task"] == "semantic"
    assert content["detector"]["family"] == "mask2former"
    assert content["model"]["sem_seg_head.predictor.class_embed.weight"].shape[0] == 10
    ok(*train, *weights, "--output", tmp_path / "b", "--task", "instance")
    assert torch.load(tmp_path / "b" / "last.pt")["detector"]["task"] == "instance"


def test_segmentation_around_a_frozen_detr(
    data: Path, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    detr = runs["detr", "detection"] / "last.pt"
    train = ["train", "--data", data, *SMALL, "--epochs", 1, "--no-evaluate", "--task", "instance"]
    ok(*train, "--frozen-weights", detr, "--output", tmp_path / "a")
    before, after = torch.load(detr)["model"], torch.load(tmp_path / "a" / "last.pt")["model"]
    assert all(torch.equal(value, after[f"detr.{name}"]) for name, value in before.items())
    train = [*train, "--output", tmp_path / "b", "--frozen-weights"]
    assert "expected the model detr-segm around them; got maskformer" in refused(
        *train, detr, "--model", "maskformer-tiny"
    )
    assert "which a frozen model cannot learn" in refused(*train, detr, "--num-classes", 12)
    assert "expected one of them; got 2" in refused(*train, detr, "--weights", detr)
    other = runs["deformable-detr", "detection"] / "last.pt"
    assert "the checkpoint holds deformable-detr with conv_stem" in refused(*train, other)


def test_what_does_not_fit(data: Path, runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    train = ["train", "--data", data, "--output", tmp_path / "run", *SMALL]
    assert "task: detr does detection; got 'panoptic'" in refused(
        *train, "--model", "detr", "--task", "panoptic"
    )
    assert "augmentation: expected 'detr' or 'lsj'" in refused(*train, "--augmentation", "mosaic")
    checkpoint = runs["mask2former", "panoptic"] / "last.pt"
    evaluate = ["eval", "--data", data, "--checkpoint"]
    assert "the checkpoint holds mask2former with conv_stem; got 'detr-r50'" in refused(
        *evaluate, checkpoint, "--model", "detr-r50"
    )
    torch.save({"model": {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(9, 2)}},
               tmp_path / "swin.pth")  # fmt: skip
    assert "got what looks like a Swin" in refused(*evaluate, tmp_path / "swin.pth")


def test_data_without_masks(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train_images=2, val_images=1)
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
        (data / "annotations" / f"panoptic_{split}2017.json").unlink()
    train = [
        "train",
        "--data",
        data,
        "--output",
        tmp_path / "run",
        "--model",
        "mask2former-tiny",
        *SMALL,
        "--task",
    ]
    print(refused(*train, "instance"))
    assert "panoptic_train2017.json does not exist" in refused(*train, "panoptic")
    assert "panoptic_train2017.json does not exist" in refused(*train, "semantic")


def test_more_targets_than_queries(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for model in ("mask2former-tiny", "deformable-detr-tiny"):
        caplog.clear()
        ok("train", "--data", data, "--output", tmp_path / model, "--model", model, "--num-queries", 1,
           "--epochs", 2, "--no-evaluate", *SMALL)  # fmt: skip
        assert len([r for r in caplog.records if "targets, but the model 1 queries" in r.getMessage()]) == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (500, 2)])
def test_images_smaller_than_the_stride(
    size: tuple[int, int], runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "small.png")
    for family, about in FAMILIES.items():
        checkpoint = runs[family, about.tasks[0]] / "last.pt"
        ok("predict", tmp_path / "small.png", "--checkpoint", checkpoint, "--output", tmp_path / family,
           "--threshold", 0)  # fmt: skip


def test_yolo_data_are_converted(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for i in range(2):
            image = tmp_path / "yolo" / "images" / part / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 30), 50).convert("RGB").save(image)
            label = tmp_path / "yolo" / "labels" / part / f"{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "yolo" / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/val\n")
    assert "written" in ok("convert", "yolo", tmp_path / "yolo" / "data.yaml", tmp_path / "coco")
    ok("train", "--data", tmp_path / "coco", "--output", tmp_path / "run", "--model", "deformable-detr-tiny",
       "--epochs", 1, *SMALL)  # fmt: skip
    assert "absent.yaml" in refused("convert", "yolo", tmp_path / "absent.yaml", tmp_path / "b")


def test_category_ids_may_be_anything(tmp_path: Path) -> None:
    """DETR's labels are COCO's ids; ids that leave most labels unused are counted through instead."""
    data = write_data(tmp_path / "data", train_images=2, val_images=1)
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        for entry in content["categories"]:
            entry["id"] *= 10_000
        for annotation in content["annotations"]:
            annotation["category_id"] *= 10_000
        path.write_text(json.dumps(content))
    for model in ("detr-tiny", "deformable-detr-tiny"):
        run = tmp_path / model
        ok("train", "--data", data, "--output", run, "--model", model, "--epochs", 1, *SMALL)
        detector = load_detector(run / "last.pt")
        assert detector.categories[4] == (70_000, "cross")
        assert detector.config.num_classes == 5
        ok("eval", "--checkpoint", run / "last.pt", "--data", data, "--num-workers", 0)


def test_two_processes_train_masks_and_agree(data: Path, tmp_path: Path) -> None:
    """A rank's share of the images counts once in the quality of all."""
    train = [
        "train",
        "--data",
        data,
        "--output",
        tmp_path / "run",
        "--model",
        "mask2former-tiny",
        "--epochs",
        1,
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*map(str, [*command, "-m", "detr_fast", *train, *SMALL])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logged = read_log(tmp_path / "run", "eval")[-1]
    numbers = tmp_path / "numbers.json"
    ok(
        "eval",
        "--checkpoint",
        tmp_path / "run" / "last.pt",
        "--data",
        data,
        "--json",
        numbers,
        "--num-workers",
        0,
    )
    alone = json.loads(numbers.read_text())
    assert {name: logged[name] for name in alone} == pytest.approx(alone)
