"""Two gloo processes do together what one does with the joined batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr_fast.data import collate
from detr_fast.engine import evaluate
from detr_fast.engine.checkpointing import read_training_checkpoint
from tests.engine.run_ranks import samples
from tests.engine.tiny import dataset, detector_of, detr, trainer, write_data
from tests.paths import ROOT

RANKS = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The data set, and what each rank of one torchrun job saved."""
    directory = tmp_path_factory.mktemp("ranks")
    # an odd number of images to evaluate, so that the ranks' shares differ
    write_data(directory / "data", train_images=8, val_images=5)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    done = subprocess.run(
        [*command, "-m", "tests.engine.run_ranks", str(directory)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return directory, [torch.load(directory / f"rank{i}.pt") for i in range(RANKS)]


@pytest.mark.parametrize("case", ["unequal", "empty_rank", "accumulated"])
def test_gradients_are_those_of_the_joined_batch(
    results: tuple[Path, list[dict]], tmp_path: Path, case: str
) -> None:
    directory, ranks = results
    run = trainer(directory / "data", tmp_path, detr(dropout=0.0))
    joined = [sample for rank in range(RANKS) for batch in samples(directory, case, rank) for sample in batch]
    terms = run.accumulate_gradients([collate(joined)])
    for saved in ranks:
        assert saved[case]["gradients"].keys() == {name for name, _ in run.model.named_parameters()}
        for name, parameter in run.model.named_parameters():
            torch.testing.assert_close(
                saved[case]["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name
            )
    mean = torch.stack([saved[case]["loss"] for saved in ranks]).mean()
    torch.testing.assert_close(mean, terms["loss"])


def test_ranks_stay_equal_and_write_one_run(results: tuple[Path, list[dict]]) -> None:
    directory, ranks = results
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(weight, ranks[1]["weights"][name]), name
    content = read_training_checkpoint(directory / "run" / "last.pt")
    assert content["training"]["progress"]["step"] == 4  # 8 images, 2 ranks, 2 images a rank, 2 epochs
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(weight, content["model"][name]), name


def test_a_signal_to_one_rank_ends_all_at_the_same_step(results: tuple[Path, list[dict]]) -> None:
    directory, ranks = results
    assert [saved["interrupted"] for saved in ranks] == [(signal.SIGTERM, 4)] * RANKS
    content = read_training_checkpoint(directory / "interrupted" / "last.pt")
    assert content["training"]["progress"]["step"] == 4


def test_one_process_goes_on_with_what_two_began(
    results: tuple[Path, list[dict]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, _ = results
    last = directory / "run" / "last.pt"
    run = trainer(directory / "data", tmp_path, batch_size=4, epochs=3, resume=last)
    assert [
        record.getMessage().removeprefix("resumed with another setting: ") for record in caplog.records
    ] == [
        "batch_size: 2 until now, 4 from here",
        "epochs: 2 until now, 3 from here",
        "processes: 2 until now, 1 from here",
    ]
    run.fit()
    assert run.progress.step == 6
    with pytest.raises(ValueError, match="images_per_step: 4 then, 2 now"):
        trainer(directory / "data", tmp_path, resume=last)


def test_evaluation_sees_every_image_once(results: tuple[Path, list[dict]]) -> None:
    directory, ranks = results
    model = detr()
    model.load_state_dict(ranks[0]["weights"])
    images = dataset(directory / "data", "val", train=False)
    alone = evaluate(detector_of(model, images), images)
    assert ranks[0]["metrics"] == ranks[1]["metrics"] == pytest.approx(alone)


def test_a_killed_worker_costs_what_came_after_the_last_checkpoint(tmp_path: Path) -> None:
    """torchrun starts all workers again, which go on by themselves to the end of an undisturbed run."""
    write_data(tmp_path / "data", train_images=8, val_images=2)
    weights = []
    for name in ("none", "killed"):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"),
            *("--max-restarts", "3", "-m", "tests.engine.run_killed", str(tmp_path / name)),
            *("train", "--data", str(tmp_path / "data"), "--output", str(tmp_path / f"run-{name}")),
            *("--model", "detr-tiny", "--resume", "auto", "--epochs", "3", "--checkpoint-every", "1"),
            *("--image-size", "32", "--num-workers", "0", "--device", "cpu", "--no-evaluate"),
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        content = read_training_checkpoint(tmp_path / f"run-{name}" / "last.pt")
        assert content["training"]["progress"]["step"] == 6
        weights.append(content["model"])
    assert (tmp_path / "killed").exists()
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
