"""Training a model: one process or, under torchrun, several."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from detr_fast.data import ImageDataset, begin_epoch, build_loader
from detr_fast.data.batching import Batch
from detr_fast.distributed import is_main, pick_device, rank, world_size
from detr_fast.engine.checkpointing import (
    check_resumable,
    dataset_identity,
    read_training_checkpoint,
    write_training_checkpoint,
)
from detr_fast.engine.config import TrainConfig
from detr_fast.engine.ema import averaged
from detr_fast.engine.logs import RunLog
from detr_fast.engine.progress import progress
from detr_fast.engine.run_folder import claimed
from detr_fast.engine.stopping import Interrupted, StopRequest
from detr_fast.families.family import Groups, backbone_groups
from detr_fast.structures import PackedTargets

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module], dict[str, float]]


class NonFiniteLossError(ArithmeticError):
    """A loss term or the gradient became NaN or infinite; the message names the step and every term."""


@dataclass
class Progress:
    """How far training has come."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best: float = -math.inf
    evaluated: int = 0


class Trainer:
    """Trains a model that maps `PaddedImages` to what its criterion takes.

    The run's folder gets `last.pt` and, with an evaluation, `best.pt`, both written atomically, `log.jsonl`
    and `tensorboard/`. A run that was killed goes on from `last.pt`, also inside an epoch, to the same
    weights: the data's order, its augmentation and the random state of each step follow from the seed and
    the position alone.

    Args:
        model: with `size_multiple` where the sides of a batch must be multiples of something. One with
            `takes_targets = True`, as denoising wants it, is called with (`PaddedImages`, `PackedTargets`) in
            training, and with the images alone in evaluation.
        criterion: the losses, called as `SetCriterion` is, with its `total` and `weight_dict`.
        dataset: training images.
        config: see `TrainConfig`.
        output: the run's folder; made where missing.
        description: stored in the checkpoints under "detector", for whoever loads them.
        evaluate: called with the model (or its moving average) in eval mode; on all ranks.
        best_metric: the number of `evaluate` that decides which checkpoint is the best.
        parameter_groups: the optimizer's groups, from model and configuration.
        batch_shape: (height, width) that training batches are padded to; by default their largest image's.
        options: what else changes the training, as plain data by name; a continuation must have the same.
        source: where the data set lies, as plain data, for a continuation that is not told.
        resume: a `last.pt` to go on from.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        dataset: ImageDataset,
        config: TrainConfig,
        output: str | Path,
        *,
        description: Mapping[str, Any] | None = None,
        evaluate: Evaluate | None = None,
        best_metric: str = "AP",
        parameter_groups: Callable[[nn.Module, TrainConfig], Groups] = backbone_groups,
        batch_shape: tuple[int, int] | None = None,
        options: Mapping[str, Any] | None = None,
        source: Mapping[str, Any] | None = None,
        resume: str | Path | None = None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.device = pick_device(config.device)
        self.output = Path(output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.description = dict(description or {})
        self.evaluate = evaluate
        self.best_metric = best_metric

        self.loader = build_loader(
            dataset,
            config.batch_size,
            train=True,
            seed=config.seed,
            num_workers=config.num_workers,
            rank=rank(),
            world_size=world_size(),
            pin_memory=self.device.type == "cuda",
            multiple=getattr(model, "size_multiple", 1),
            size=batch_shape,
        )
        self.steps_per_epoch = _steps_per_epoch(dataset, self.loader, config)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"accumulate: an epoch has {len(self.loader)} batches of {config.batch_size} a process, "
                f"which do not fill one step of {config.accumulate}"
            )
        self.model = model.to(self.device)
        self.criterion: Any = criterion.to(self.device)
        self.average = averaged(self.model, config.ema) if config.ema else None
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = LambdaLR(self.optimizer, self._lr_factor)
        self.progress = Progress()
        self._data = dataset_identity(dataset)
        self._options, self._source = dict(options or {}), dict(source or {})
        self._stop = StopRequest(impatient=world_size() == 1)
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._crowding_known = False
        if resume is not None:
            self._load(Path(resume))
        self._distributed = (
            DistributedDataParallel(
                self.model, device_ids=[self.device] if self.device.type == "cuda" else None
            )
            if dist.is_initialized()
            else None
        )

    def fit(self) -> dict[str, float]:
        """Trains to the last epoch and returns the last evaluation's numbers.

        SIGINT and SIGTERM finish the step (of several processes: the steps until the next log record) and
        write `last.pt`. So does the end of an epoch, before its evaluation.

        Raises:
            FolderInUseError: another run writes into the folder.
            NonFiniteLossError: training broke down; the checkpoints are those from before.
            Interrupted: a signal ended it; `last.pt` is written.
        """
        with claimed(self.output) if is_main() else nullcontext(), self._stop.listening():
            resumed = self.progress.step > 0
            self.log = RunLog(self.output, self.progress.step if resumed else None) if is_main() else None
            try:
                return self._fit()
            except Interrupted as stopped:
                raise Interrupted(
                    stopped.number,
                    f"{stopped} after step {self.progress.step}; {self.output / 'last.pt'} is written, and "
                    "resuming (--resume) goes on from there",
                ) from None
            finally:
                if self.log is not None:
                    self.log.close()

    def _fit(self) -> dict[str, float]:
        done = self.progress
        # an evaluation that failed or was interrupted is made up for
        lost = 0 < done.epoch != done.evaluated and not done.step_in_epoch
        metrics = (self._evaluate_if_due() if lost else None) or {}
        while done.epoch < self.config.epochs:
            self._train_epoch()
            done.epoch += 1
            done.step_in_epoch = 0
            self.save("last.pt")
            metrics = self._evaluate_if_due() or metrics
        return metrics

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that evaluation and prediction use: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def train_step(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """One optimizer step on the joined `micro_batches`; returns the loss terms, left on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.accumulate_gradients(micro_batches)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_max_norm or math.inf)
        self.optimizer.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return {**terms, "grad_norm": norm}

    def accumulate_gradients(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """Adds the gradients of the joined `micro_batches` (of all ranks) to the parameters'.

        Every loss is normalised by the joined batch, so splitting it changes memory, not gradients.
        """
        model = self._distributed or self.model
        packed = [
            PackedTargets.from_list(targets, mask_size=(images.tensors.shape[2], images.tensors.shape[3]))
            for images, targets in micro_batches
        ]
        num_targets = [count for targets in packed for count in targets.num_targets]
        terms: dict[str, Tensor] = {}
        for i, (images, _) in enumerate(micro_batches):
            synchronise = self._distributed is None or i == len(micro_batches) - 1
            with nullcontext() if synchronise else self._distributed.no_sync():  # type: ignore[union-attr]
                images = images.to(self.device, non_blocking=True)
                targets = packed[i].to(self.device, non_blocking=True)
                inputs = (images, targets) if getattr(self.model, "takes_targets", False) else (images,)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
                    predictions = model(*inputs)
                self._warn_of_crowding(max(targets.num_targets), predictions.logits.shape[2])
                losses = self.criterion(predictions, targets, joined_num_targets=num_targets)
                total = self.criterion.total(losses)
                total.backward()
            for name, value in {"loss": total, **losses}.items():
                # What is no loss (class_error, cardinality_error) is a mean over images.
                share = 1 if name == "loss" or name in self.criterion.weight_dict else 1 / len(micro_batches)
                terms[name] = terms.get(name, 0) + value.detach() * share
        return terms

    def _warn_of_crowding(self, targets: int, queries: int) -> None:
        """Says once that an image has more targets than the model has queries: some are not learnt."""
        if targets > queries and not self._crowding_known:
            self._crowding_known = True
            logger.warning(
                "an image has %d targets, but the model %d queries: the matching leaves the most expensive "
                "out; more queries would take all",
                targets,
                queries,
            )

    def _train_epoch(self) -> None:
        config, done = self.config, self.progress
        self.model.train()
        begin_epoch(self.loader, done.epoch, skip_batches=done.step_in_epoch * config.accumulate)
        bar = progress(
            desc=f"epoch {done.epoch + 1}/{config.epochs}",
            total=self.steps_per_epoch,
            initial=done.step_in_epoch,
            unit="step",
        )
        started, first = time.perf_counter(), done.step
        saved = time.monotonic()
        with bar:
            for micro_batches in self._steps():
                _seed_step(config.seed, done.step)
                terms = self.train_step(micro_batches)
                self._pending.append((done.step + 1, terms))
                done.step += 1
                done.step_in_epoch += 1
                bar.update()
                checkpoint = bool(config.checkpoint_every) and done.step % config.checkpoint_every == 0
                alone, record = not dist.is_initialized(), done.step % config.log_every == 0
                if config.checkpoint_minutes and (alone or record):
                    checkpoint |= time.monotonic() - saved >= 60 * config.checkpoint_minutes
                stop = self._stop.number is not None and alone
                seconds = (time.perf_counter() - started) / (done.step - first)
                if done.step == first + 1:
                    self._show(bar, float(terms["loss"]), seconds)
                if checkpoint or stop or record:
                    self._show(bar, self._check_and_log(seconds)["loss"], seconds)
                    stop = self._stop.number is not None  # by now all processes know of it
                if checkpoint or stop:
                    self.save("last.pt")
                    saved = time.monotonic()
                if stop:
                    self._stop.raise_if_asked()
            if self._pending:
                self._check_and_log((time.perf_counter() - started) / max(1, done.step - first))

    def _show(self, bar: tqdm, loss: float, seconds_per_step: float) -> None:
        """The loss, and when the whole run will have ended, evaluations not counted."""
        steps = self.config.epochs * self.steps_per_epoch - self.progress.step
        left = timedelta(seconds=round(steps * seconds_per_step))
        bar.set_postfix(loss=f"{loss:.3f}", run_left=str(left), refresh=False)

    def _steps(self) -> Iterator[list[Batch]]:
        """The rest of the epoch's batches, in groups of one optimizer step."""
        batches = iter(self.loader)
        for _ in range(self.steps_per_epoch - self.progress.step_in_epoch):
            yield list(islice(batches, self.config.accumulate))

    def _check_and_log(self, seconds_per_step: float) -> dict[str, float]:
        """Reads the losses since the last call from the device, once, and logs their means."""
        names = list(self._pending[0][1])
        table = torch.stack([torch.stack([terms[name] for name in names]) for _, terms in self._pending])
        if dist.is_initialized():
            dist.all_reduce(table)
            table /= world_size()
            signal = torch.tensor(self._stop.number or 0, device=table.device)
            dist.all_reduce(signal, dist.ReduceOp.MAX)
            self._stop.number = int(signal) or None
        for (step, _), row in zip(self._pending, table.tolist(), strict=True):
            if not all(map(math.isfinite, row)):
                listing = ", ".join(f"{name} = {value:g}" for name, value in zip(names, row, strict=True))
                raise NonFiniteLossError(f"step {step} (epoch {self.progress.epoch + 1}): {listing}")
        self._pending.clear()
        means = dict(zip(names, table.mean(0).tolist(), strict=True))
        if self.log is not None:
            rates = {"lr": self.optimizer.param_groups[0]["lr"], "seconds_per_step": seconds_per_step}
            self.log.write("train", self.progress.step, {"epoch": self.progress.epoch + 1, **means, **rates})
        return means

    def _evaluate_if_due(self) -> dict[str, float] | None:
        done = self.progress.epoch
        if self.evaluate is None or (done % self.config.eval_every and done != self.config.epochs):
            return None
        with self._stop.at_once():
            metrics = self.evaluate(self.evaluated_model.eval())
        self.progress.evaluated = done
        if self.log is not None:
            self.log.write("eval", self.progress.step, {"epoch": done, **metrics})
        if metrics[self.best_metric] > self.progress.best:
            self.progress.best = metrics[self.best_metric]
            self.save("best.pt")
        self.save("last.pt")
        return metrics

    def _lr_factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return warmup * (0.1 if step >= self.config.lr_drop * self.steps_per_epoch else 1.0)

    def save(self, name: str) -> None:
        """Writes a checkpoint into the run's folder (rank 0 does, all may call)."""
        if not is_main():
            return
        content = {
            "model": self.evaluated_model.state_dict(),
            "detector": self.description,
            "training": {
                # What is trained, where "model" is its moving average.
                "model": None if self.average is None else self.model.state_dict(),
                "ema_updates": None if self.average is None else self.average.n_averaged,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "progress": dataclasses.asdict(self.progress),
                **self._settings(),
            },
        }
        write_training_checkpoint(content, self.output / name)

    def _settings(self) -> dict[str, Any]:
        """What a continuation is compared with."""
        return {
            "config": dataclasses.asdict(self.config),
            "images_per_step": _images_per_step(self.config),
            "processes": world_size(),
            "data": self._data,
            "options": self._options,
            "source": self._source,
        }

    def _load(self, path: Path) -> None:
        content = read_training_checkpoint(path)
        training = content["training"]
        try:
            then = {**training, "detector": content["detector"]}
            changes = check_resumable(then, {**self._settings(), "detector": self.description})
            self._take(content)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: holds no training state that this version can read: {error}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if is_main():
            for line in changes:
                logger.warning("resumed with another setting: %s", line)

    def _take(self, content: Mapping[str, Any]) -> None:
        """The state of a checkpoint, under this run's learning rates."""
        training = content["training"]
        rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        self.evaluated_model.load_state_dict(content["model"])
        if self.average is not None:
            self.model.load_state_dict(training["model"])
            self.average.n_averaged.copy_(training["ema_updates"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scheduler.load_state_dict(training["scheduler"])
        self.scheduler.base_lrs = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate
            group["lr"] = rate * self._lr_factor(self.scheduler.last_epoch)
        self.progress = Progress(**training["progress"])


def _images_per_step(config: TrainConfig) -> int:
    return config.batch_size * config.accumulate * world_size()


def _steps_per_epoch(dataset: ImageDataset, loader: Any, config: TrainConfig) -> int:
    """Full steps of an epoch: as many for any number of processes, where that leaves one.

    The ranks' loaders repeat a few images where these do not divide the data set, which may fill a step more.
    """
    return min(len(loader) // config.accumulate, max(1, len(dataset) // _images_per_step(config)))


def _seed_step(seed: int, step: int) -> None:
    """Gives each step and rank its own random state, so a resumed run needs none from the checkpoint."""
    torch.manual_seed(hash((seed, step, rank())) & 0x7FFF_FFFF_FFFF_FFFF)
