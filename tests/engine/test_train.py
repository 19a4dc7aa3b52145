"""The training loop: exactness of accumulation, averaging and resuming; what happens when it breaks down."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detr_fast import DETR
from detr_fast.data import collate
from detr_fast.engine import (
    FolderInUseError,
    Interrupted,
    NonFiniteLossError,
    TrainConfig,
    Trainer,
    evaluate,
    load_detector,
)
from detr_fast.engine.checkpointing import read_training_checkpoint, write_training_checkpoint
from detr_fast.engine.ema import averaged
from detr_fast.engine.logs import read_log
from detr_fast.engine.run_folder import claimed
from detr_fast.structures import PackedTargets, PaddedImages, Predictions
from tests.engine.tiny import dataset, detector_of, detr, trainer, write_data
from tests.paths import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("shapes"))


def weights(path: Path) -> dict[str, Tensor]:
    return read_training_checkpoint(path)["model"]


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"lr": -1.0}, {"lr": float("nan")}, {"ema": 1.0}, {"accumulate": 0}],
)
def test_config_names_the_wrong_field(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        TrainConfig(**wrong)


def test_accumulated_gradients_are_those_of_the_joined_batch(data: Path, tmp_path: Path) -> None:
    images = dataset(data, train=False)
    samples = [images[i] for i in range(6)]
    # unequal parts, one of them without any target
    empty = {**samples[5][1], "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    samples[5] = (samples[5][0], empty)
    parts = [samples[:3], samples[3:5], samples[5:]]
    runs = []
    for i, batches in enumerate(([samples], parts)):
        run = trainer(data, tmp_path / str(i), detr(dropout=0.0))
        terms = run.accumulate_gradients([collate(batch) for batch in batches])
        runs.append((terms, {name: p.grad for name, p in run.model.named_parameters()}))
    (joined_terms, joined), (terms, gradients) = runs
    for name in ("loss", "loss_ce", "loss_bbox_0", "loss_giou"):
        torch.testing.assert_close(terms[name], joined_terms[name])
    for name, gradient in joined.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


class Denoising(DETR):
    """A DETR that asks for targets, and shifts its queries by how many there are."""

    takes_targets = True

    def forward(self, images: PaddedImages, targets: PackedTargets | None = None) -> Predictions:
        self.seen.append(targets)
        shift = 0 if targets is None else len(targets.labels)
        return self.heads(self.stages(images).hs + shift)


@pytest.mark.parametrize("amp", [False, True])
def test_targets_reach_a_model_that_asks_for_them(data: Path, tmp_path: Path, amp: bool) -> None:
    images = dataset(data, train=False)
    batches = [collate([images[i] for i in part]) for part in ((0, 1), (2,))]
    model = Denoising(detr(images.num_classes).config)
    model.seen = []
    run = trainer(data, tmp_path, model, amp=amp)
    run.accumulate_gradients(batches)
    for targets, (padded, samples) in zip(model.seen, batches, strict=True):
        expected = PackedTargets.from_list(samples, mask_size=padded.tensors.shape[2:])
        assert torch.equal(targets.labels, expected.labels)
        assert torch.equal(targets.boxes, expected.boxes)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.seen.clear()
    evaluate(detector_of(model, images), images)
    assert model.seen == [None] * 6


def test_learning_rate_warms_up_and_drops(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, warmup_steps=2, lr_backbone=1e-4, epochs=2, lr_drop=1)
    run.fit()
    rates = [record["lr"] for record in read_log(tmp_path, "train")]
    # the rate is logged after its step, so it is the next step's
    assert rates == pytest.approx([1e-3] * 5 + [1e-4] * 7)
    backbone = {p for name, p in run.model.named_parameters() if name.startswith("backbone.")}
    groups = {group["initial_lr"]: set(group["params"]) for group in run.optimizer.param_groups}
    assert groups[1e-4] == backbone
    assert groups[1e-3] == set(run.model.parameters()) - backbone


def test_average_follows_the_weights() -> None:
    model = nn.Linear(3, 2)
    average = averaged(model, decay=0.5)
    expected = None
    for step in range(4):
        with torch.no_grad():
            model.weight.normal_()
        average.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = model.weight if step == 0 else decay * expected + (1 - decay) * model.weight
        expected = expected.detach().clone()
        torch.testing.assert_close(average.module.weight, expected)


def test_checkpoint_holds_the_average_and_loads_as_a_detector(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path, ema=0.9, epochs=1)
    run.fit()
    assert run.average is not None
    detector = load_detector(tmp_path / "last.pt")
    assert detector.categories[7] == (7, "cross")
    assert_same_weights(detector.model.state_dict(), run.average.module.state_dict())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(detector.model.state_dict().values(), run.model.state_dict().values(), strict=True)
    )


def test_best_checkpoint_is_of_the_best_evaluation(data: Path, tmp_path: Path) -> None:
    values = iter([0.1, 0.3, 0.2])
    seen = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"AP": next(values)}

    run = trainer(data, tmp_path, epochs=3, evaluate=evaluate)
    assert run.fit() == {"AP": 0.2}
    assert_same_weights(weights(tmp_path / "best.pt"), seen[1])
    assert_same_weights(weights(tmp_path / "last.pt"), seen[2])
    assert [record["AP"] for record in read_log(tmp_path, "eval")] == [0.1, 0.3, 0.2]
    assert list((tmp_path / "tensorboard").glob("events.*"))


class Stop(Exception):
    pass


def stop_after(run: Trainer, steps: int) -> None:
    """Lets the run break off before another step."""
    step = run.train_step

    def stopping(batches):
        if run.progress.step == steps:
            raise Stop
        return step(batches)

    run.train_step = stopping  # type: ignore[method-assign]


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "accumulate": 2}, {"amp": True}])
def test_resumed_run_repeats_the_uninterrupted_one(data: Path, tmp_path: Path, options: dict) -> None:
    options = {"epochs": 3, "checkpoint_every": 2, **options}
    trainer(data, tmp_path / "whole", **options).fit()

    run = trainer(data, tmp_path / "parts", **options)
    stop_after(run, run.steps_per_epoch + 3)
    with pytest.raises(Stop):
        run.fit()
    # another initialisation must not matter
    model = detr()
    with torch.no_grad():
        model.query_embed.weight.zero_()
    trainer(data, tmp_path / "parts", model, resume=tmp_path / "parts" / "last.pt", **options).fit()
    whole, parts = (read_training_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert_same_weights(whole["model"], parts["model"])
    curves = [
        [(r["step"], r["loss"]) for r in read_log(tmp_path / name, "train")] for name in ("whole", "parts")
    ]
    assert curves[0] == curves[1]


def test_killed_run_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # enough steps that the kill comes long before the end
    settings = {"epochs": 40, "checkpoint_every": 5}
    command = [sys.executable, "-m", "tests.engine.run_tiny", str(data), str(parts), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (parts / "last.pt").exists() and read_step(parts) >= 45:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_at = read_step(parts)
    assert 0 < killed_at < 240
    subprocess.run(
        [*command, "resume"], cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL, timeout=120
    )
    command[4] = str(whole)
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL, timeout=120)
    assert_same_weights(weights(whole / "last.pt"), weights(parts / "last.pt"))
    steps = [record["step"] for record in read_log(parts, "train")]
    assert steps == list(range(1, 241))


def test_checkpoints_by_time(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a step moves by a minute: every other step of an epoch's six is saved, and its end."""
    run = trainer(data, tmp_path, epochs=1, checkpoint_minutes=2, log_every=100)
    step, saved, now = run.train_step, [], [0.0]

    def slow(batches):
        now[0] += 60
        return step(batches)

    run.train_step = slow  # type: ignore[method-assign]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run.save = lambda name: saved.append(run.progress.step)  # type: ignore[method-assign]
    run.fit()
    assert saved == [2, 4, 6, 6]


def read_step(directory: Path) -> int:
    return read_training_checkpoint(directory / "last.pt")["training"]["progress"]["step"]


def test_resume_refuses_other_settings(data: Path, tmp_path: Path) -> None:
    trainer(data, tmp_path, epochs=1).fit()
    last = tmp_path / "last.pt"
    with pytest.raises(
        ValueError, match=r"last\.pt: cannot be resumed .*: seed: 42 then, 7 now; weight_decay: "
    ):
        trainer(data, tmp_path, seed=7, weight_decay=0.1, resume=last)
    with pytest.raises(ValueError, match="images_per_step: 2 then, 4 now"):
        trainer(data, tmp_path, accumulate=2, resume=last)
    with pytest.raises(ValueError, match="model dec_layers: 2 then, 1 now"):
        trainer(data, tmp_path, detr(dec_layers=1), resume=last)
    # a longer run is the same run
    trainer(data, tmp_path, epochs=2, resume=last).fit()
    assert read_step(tmp_path) == 12


def test_resume_refuses_another_data_set(data: Path, tmp_path: Path) -> None:
    trainer(data, tmp_path / "run", epochs=1).fit()
    last = tmp_path / "run" / "last.pt"
    more = write_data(tmp_path / "more", train_images=14)
    with pytest.raises(ValueError, match=r"image ids: \w+ then, \w+ now; images: 12 then, 14 now"):
        trainer(more, tmp_path / "run", resume=last)
    annotations = more / "annotations" / "instances_train2017.json"
    content = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    content["categories"][0]["name"] = "saucer"
    annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"category 1: \[1, 'disc'\] then, \[1, 'saucer'\] now"):
        trainer(more, tmp_path / "run", resume=last)


def images_of_steps(run: Trainer) -> list[list[int]]:
    """Fills with the image ids that each step of a run learns from."""
    step, seen = run.train_step, []

    def watched(batches):
        seen.append(sorted(int(t["image_id"]) for _, targets in batches for t in targets))
        return step(batches)

    run.train_step = watched  # type: ignore[method-assign]
    return seen


def test_a_step_may_be_split_anew(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"epochs": 1, "checkpoint_every": 2}
    whole = trainer(data, tmp_path / "whole", batch_size=4, **settings)
    expected = images_of_steps(whole)
    whole.fit()
    run = trainer(data, tmp_path / "parts", batch_size=4, **settings)
    stop_after(run, 2)
    with pytest.raises(Stop):
        run.fit()
    caplog.clear()
    last = tmp_path / "parts" / "last.pt"
    parts = trainer(data, tmp_path / "parts", batch_size=1, accumulate=4, resume=last, **settings)
    seen = images_of_steps(parts)
    parts.fit()
    assert seen == expected[2:]
    assert [record.getMessage() for record in caplog.records] == [
        "resumed with another setting: accumulate: 1 until now, 4 from here",
        "resumed with another setting: batch_size: 4 until now, 1 from here",
    ]


def test_a_new_learning_rate_counts_from_the_next_step(data: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "lr_drop": 1, "warmup_steps": 20}
    run = trainer(data, tmp_path, **settings)
    run.fit()
    again = trainer(data, tmp_path, resume=tmp_path / "last.pt", **settings)
    assert [g["lr"] for g in again.optimizer.param_groups] == [g["lr"] for g in run.optimizer.param_groups]
    other = trainer(data, tmp_path, resume=tmp_path / "last.pt", **{**settings, "epochs": 2, "lr": 3e-3})
    expected = 3e-3 * 0.1 * 7 / 20  # dropped after the first epoch, and the seventh step of warming up
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    other.fit()
    assert read_log(tmp_path, "train")[-1]["lr"] == pytest.approx(3e-3 * 0.1 * 13 / 20)


def test_a_failing_evaluation_costs_no_training(data: Path, tmp_path: Path) -> None:
    def fails(model: nn.Module) -> dict[str, float]:
        raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        trainer(data, tmp_path, epochs=1, evaluate=fails).fit()
    assert read_step(tmp_path) == 6
    # the resumed run makes up for the evaluation, once
    calls: list[int] = []

    def counts(model: nn.Module) -> dict[str, float]:
        calls.append(1)
        return {"AP": 0.5}

    for expected in ({"AP": 0.5}, {}):
        run = trainer(data, tmp_path, epochs=1, evaluate=counts, resume=tmp_path / "last.pt")
        assert run.fit() == expected
    assert len(calls) == 1
    assert run.progress.best == 0.5
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_finish_the_step_and_save(data: Path, tmp_path: Path, number: int, code: int) -> None:
    run = trainer(data, tmp_path, log_every=5)
    step, after = run.train_step, {}

    def interrupted(batches):
        if run.progress.step == 2:
            os.kill(os.getpid(), number)
        result = step(batches)
        after.update({k: v.clone() for k, v in run.model.state_dict().items()})
        return result

    run.train_step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match=r"stopped by SIG\w+ after step 3; .*last\.pt is written, .*--resume"
    ) as caught:
        run.fit()
    assert caught.value.exit_code == code
    assert signal.getsignal(number) == before
    assert read_step(tmp_path) == 3
    assert_same_weights(weights(tmp_path / "last.pt"), after)
    assert [record["step"] for record in read_log(tmp_path, "train")] == [3]


def test_signals_end_an_evaluation_at_once(data: Path, tmp_path: Path) -> None:
    def slow(model: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        raise AssertionError("goes on")

    with pytest.raises(Interrupted, match="after step 6; "):
        trainer(data, tmp_path, epochs=1, evaluate=slow).fit()
    assert read_step(tmp_path) == 6


def test_one_run_a_folder(data: Path, tmp_path: Path) -> None:
    for part in (".last.pt.123", ".best.pt.9"):
        (tmp_path / part).touch()
    (tmp_path / ".lock").write_text("process 1 on elsewhere")  # of a process that died
    with claimed(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}
        with pytest.raises(FolderInUseError, match=rf"process {os.getpid()} on .* trains into this folder"):
            trainer(data, tmp_path, epochs=1).fit()
        assert not (tmp_path / "log.jsonl").exists()
    trainer(data, tmp_path, epochs=1).fit()
    assert not (tmp_path / ".lock").exists()


def test_locks_do_not_outlive_their_process(tmp_path: Path) -> None:
    """Neither by a kill, nor by the processes that it had started."""
    code = (
        "import os, sys, time; from pathlib import Path; from detr_fast.engine.run_folder import claimed\n"
        "with claimed(Path(sys.argv[1])):\n"
        "    os.fork(); os.write(1, f'{os.getpid()}\\n'.encode()); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = {int(process.stdout.readline()) for _ in range(2)}
    with pytest.raises(FolderInUseError, match=f"process {process.pid} on"), claimed(tmp_path):
        pass
    process.kill()
    process.wait()
    try:
        with claimed(tmp_path):
            pass
    finally:
        os.kill((pids - {process.pid}).pop(), signal.SIGKILL)


def test_resume_refuses_files_without_training_state(data: Path, tmp_path: Path) -> None:
    torch.save({"model": detr().state_dict()}, tmp_path / "weights.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        trainer(data, tmp_path, resume=tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="no training state"):
        trainer(data, tmp_path, resume=tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"broken\.pt: damaged, or not a checkpoint"):
        trainer(data, tmp_path, resume=tmp_path / "broken.pt")


@pytest.mark.parametrize("log_every", [1, 4])
def test_non_finite_loss_stops_and_leaves_the_checkpoint(data: Path, tmp_path: Path, log_every: int) -> None:
    run = trainer(data, tmp_path, epochs=3, checkpoint_every=2, log_every=log_every)
    step, before = run.train_step, {}

    def poisoned(batches):
        if run.progress.step == 8:  # the ninth step is the epoch's third
            before.update({k: v.clone() for k, v in run.model.state_dict().items()})
            with torch.no_grad():
                run.model.bbox_embed.layers[0].weight.fill_(float("nan"))  # type: ignore[union-attr]
        return step(batches)

    run.train_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=r"step 9 \(epoch 2\): loss = nan, .*loss_bbox = nan"):
        run.fit()
    assert read_step(tmp_path) == 8
    assert_same_weights(weights(tmp_path / "last.pt"), before)


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_training_checkpoint({"value": torch.ones(3)}, path)
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        write_training_checkpoint({"value": torch.zeros(3), "bad": lambda: None}, path)
    assert torch.equal(torch.load(path)["value"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_too_few_images_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size: "):
        trainer(data, tmp_path, batch_size=13)
    with pytest.raises(ValueError, match="accumulate: an epoch has 6 batches"):
        trainer(data, tmp_path, accumulate=7)
