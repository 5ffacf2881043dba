"""The loop: one for all methods.

One step: rates, reassignment if due, forward, backward, finite?, on_backward, clip, optimizer, on_step_end, report,
checkpoint if due. All random numbers depend on the step, so a resumed run gives the same weights, memories and
metrics as one that never stopped, if the numbers of processes and threads are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcluster import randomness
from selfcluster.data.ahead import Ahead
from selfcluster.data.loader import Loader
from selfcluster.data.threads import ReadingStopped
from selfcluster.distributed import at, rank
from selfcluster.faults import fault_point
from selfcluster.methods.base import Method
from selfcluster.models.convolution import quick_convolutions
from selfcluster.runs.console import Console
from selfcluster.runs.folder import RunFolder
from selfcluster.training.compiled import compiled
from selfcluster.training.embedding import make_embed
from selfcluster.training.freezing import rate_factors
from selfcluster.training.health import SAMPLE, Health
from selfcluster.training.micro_batches import split
from selfcluster.training.online_probe import OnlineProbe
from selfcluster.training.optim import clip, forget, learning_rate_at, make_optimizer, set_rates, weight_decay_at
from selfcluster.training.parallel import join_ranks, read, reducing
from selfcluster.training.precision import autocast, prefers_products
from selfcluster.training.pseudo_labels import PseudoLabels
from selfcluster.training.signals import StopRequest
from selfcluster.training.state import RunState, Skipped, layout_of
from selfcluster.training.statistics import BatchStatistics
from selfcluster.types import Batch, Output, Progress, Training
from selfcluster.views.plans import ViewPlan

_REPORT_STEPS = 100  # a row of metrics at least this often, and at the end of every epoch
_CHECKPOINT_SECONDS = 600
_EPOCH_SECONDS = {"cuda": 10.0}  # after a shorter epoch none is saved; an epoch may take 1 s there, and saving 0.3 s


class Preempted(RuntimeError):
    """A signal asked the run to stop; it is saved and resumes with the same command."""


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite; the message names the images."""


class Collapsed(RuntimeError):
    """The run has collapsed, and `on_collapse` is "stop"."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The settings of the loop. `training` holds the learning rates for this run's batch size."""

    training: Training
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    compile: bool = False
    accumulate: int = 1
    images_seen: int | None = None
    on_collapse: str = "warn"
    checkpoint_every: int | None = None
    max_skipped: int = 10


def fit(
    method: Method,
    loader: Loader,
    views: ViewPlan,
    settings: LoopSettings,
    console: Console,
    probe: OnlineProbe,
    folder: RunFolder | None = None,
    checkpoints: Path | None = None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    name_of: Callable[[int], str] = str,
    on_epoch: Callable[[int], dict[str, float]] = lambda epochs: {},
) -> RunState:
    """Train `method` to the end, from the newest checkpoint in `checkpoints` if there is one; return the final state.

    `folder`: for rank 0 to write to; None on the other ranks. `on_row` gets each row of metrics. `name_of` turns an
    image's position into its id, for messages. All ranks call `on_epoch` after each epoch with the number of epochs
    done; it returns numbers for the row of metrics. `probe` trains beside the method on its features.
    Raises Preempted, Diverged or Collapsed; the run folder then holds a checkpoint from which to resume.
    """
    training, device, per_epoch = settings.training, settings.device, loader.steps_per_epoch
    total, every = planned_steps(settings, per_epoch), settings.checkpoint_every
    optimizer = make_optimizer(method.groups(), training, rate_factors(method, training.layer_decay))
    quiet = per_epoch * max(training.warmup_epochs, getattr(method.settings, "freeze_epochs", 0))
    health = Health(
        getattr(method.settings, "num_prototypes", None), method.chance_loss(), int(quiet), total, method.advice
    )
    kept = PseudoLabels(method, loader.source.ids, loader.source.labels, device)
    products = prefers_products(device, settings.precision) and not settings.compile
    layout = layout_of(method, device, settings.precision, loader.in_memory, settings.compile, products)
    state = RunState(method, optimizer, health, kept, folder, layout, probe, loader.source, per_epoch)
    state.load(checkpoints, console)
    model = join_ranks(method, device)
    statistics = BatchStatistics(method)
    reassigns = type(method).reassign is not Method.reassign
    batches: Ahead | None = None
    batch: Batch | None = None
    unfit: list[Skipped] = []  # steps skipped in a row
    clock = saved = time.monotonic()
    steps_timed = 0
    method.train()
    console.start(total, state.step)
    at(lambda: f"step {state.step}" + (f", images {_first(batch.index, name_of, 4)}" if batch is not None else ""))

    fast, quick = compiled(method, settings.compile), quick_convolutions(method, products)
    with StopRequest() as request, loader.watch.stopping(lambda: request.signal is not None), fast, quick:
        while state.step < total:
            step = state.step
            fault_point("loop.step")
            progress = Progress(step, total, step // per_epoch, per_epoch, settings.seed)
            set_rates(optimizer, learning_rate_at(training, progress), weight_decay_at(training, progress))

            if reassigns and method.should_reassign(progress):
                state.save()
                embed = make_embed(
                    method, loader, views, device=device, precision=settings.precision, seed=settings.seed, step=step
                )
                state.reassignment = method.reassign(progress, embed)
                if state.reassignment:
                    state.reassignment |= kept.reassigned(progress, folder)
                forget(optimizer, method, method.plan().reset)
                batches = None
            elif step == 0:
                state.reassignment = kept.reassigned(progress, folder)
            if step % per_epoch == 0:
                kept.begin()
            if batches is None or step % per_epoch == 0:
                batches = loader.ahead(views, method.plan(), progress.epoch, step % per_epoch, per_epoch, step)

            try:
                batch = next(batches)
            except ReadingStopped as error:
                if loader.world == 1:  # with several, the others are inside the step and cannot take part in saving
                    state.save()
                raise Preempted(f"{error}; resume with the same command") from error
            statistics.keep()
            torch.manual_seed(randomness.key(settings.seed, "forward", step, rank()) >> 1)
            optimizer.zero_grad(set_to_none=True)
            outputs = []
            for part in split(batch, settings.accumulate):
                with reducing(model, last=len(outputs) == settings.accumulate - 1):
                    with autocast(device, settings.precision):
                        output: Output = model(part, progress)
                    (output.loss / settings.accumulate).backward()
                outputs.append(output)

            batches.prepare()  # before the numbers are read, which waits for the device
            state.shards.reduce()
            gradients = [p.grad for p in method.parameters() if p.grad is not None]
            norm = state.shards.norm(gradients)  # reduced already: all ranks see the same
            limit = _CHECKPOINT_SECONDS if (step + 1) % per_epoch else _EPOCH_SECONDS.get(device.type, -1.0)
            due = rank() == 0 and time.monotonic() - saved > limit
            values, stop, due = read(outputs, norm, request.signal is not None, due)
            report = (step + 1) % per_epoch == 0 or (step + 1) % per_epoch % _REPORT_STEPS == 0 or step + 1 == total

            if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
                method.on_backward(progress)
                left = [p.grad for p in method.parameters() if p.grad is not None]  # it may have scaled or dropped some
                clip(left, norm if training.clip is None else state.shards.norm(left), training)
                optimizer.step()
                method.on_step_end(progress, outputs)
                kept.see(batch.index, outputs)
                health.see(step, values, outputs, sample=_report_is_near(progress, SAMPLE // training.batch_size))
                unfit = []
            else:
                statistics.restore()
                state.skipped += 1
                unfit.append(Skipped(step, values["loss"], values["gradient_norm"], batch.index))
            probe.learn(batch.index)
            state.step += 1
            if state.step % per_epoch == 0:
                next(batches, None)  # past the last batch the ranks exchange which images they found bad

            steps_timed += 1
            seconds = time.monotonic() - clock
            speed = steps_timed * training.batch_size / seconds
            console.step(state.step, values["loss"], speed)
            if report:
                row: dict[str, Any] = {"step": state.step, "epoch": progress.epoch}
                row |= {"learning_rate": learning_rate_at(training, progress)}
                row |= {**state.reassignment, **health.report(), "skipped_steps": state.skipped, **probe.report()}
                row |= {"images_per_second": round(speed, 1), "seconds": round(seconds, 3)}
                if state.step % per_epoch == 0:
                    row |= kept.epoch(progress, folder) | on_epoch(state.step // per_epoch)
                if folder is not None:
                    folder.log(row)
                on_row(row)
                console.report(row, total, seconds / steps_timed * (total - state.step))
                if verdict := health.verdict(row):
                    console.warn(verdict)
                if verdict and settings.on_collapse == "stop":
                    state.save()
                    raise Collapsed(verdict)
                clock, steps_timed = time.monotonic(), 0

            if stop or due or state.step == total or (every and state.step % every == 0):
                state.save()
                saved = time.monotonic()
            if len(unfit) == settings.max_skipped:
                names, kept_in = _first(unfit[-1].index, name_of, 8), state.dump(unfit, name_of)
                raise Diverged(
                    f"{len(unfit)} steps in a row, up to step {step}, had a loss or gradient that is not finite; the "
                    f"last batch held {names}, ... Try a lower --learning-rate or --precision fp32."
                    + (f" {kept_in} holds the weights and the images of these steps." if kept_in else "")
                )
            if stop:
                raise Preempted(
                    f"stopped by {request.signal or 'a signal'} after step {state.step} of {total}: saved; "
                    "the same command resumes the run"
                )
    console.stop()
    return state


def planned_steps(settings: LoopSettings, steps_per_epoch: int) -> int:
    """Return the number of steps of a run, from its epochs or from the number of images that it sees."""
    batch = settings.training.batch_size
    images = settings.images_seen
    return max(1, round(settings.training.epochs * steps_per_epoch if images is None else images / batch))


def _first(index: Tensor, name_of: Callable[[int], str], count: int) -> str:
    """The ids of the first images of a batch."""
    return ", ".join(name_of(i) for i in index[:count].tolist())


def _report_is_near(progress: Progress, steps: int) -> bool:
    """Whether a row of metrics follows within `steps` steps; if so, features are kept for it."""
    in_epoch = progress.step % progress.steps_per_epoch + 1
    to_report = min(-in_epoch % _REPORT_STEPS, progress.steps_per_epoch - in_epoch)
    return min(to_report, progress.total_steps - progress.step - 1) <= steps
