"""Estimate how long a run takes by timing a step before the first one; with `--minutes`, set the run's length."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch

from selfcluster import distributed
from selfcluster.choice import RunSettings
from selfcluster.data.loader import Loader
from selfcluster.methods.base import Method
from selfcluster.runs.console import Console
from selfcluster.training.build import Parts
from selfcluster.training.embedding import to_layout
from selfcluster.training.loop import LoopSettings, planned_steps
from selfcluster.training.precision import autocast
from selfcluster.training.statistics import BatchStatistics
from selfcluster.types import Batch, Progress
from selfcluster.views.plans import ViewPlan
from selfcluster.waiting import busy_advice

_LONG = 5.0  # seconds: if the first timed step takes longer, no second one is timed
_WARMUP = 0.1  # with --minutes, the warm-up takes at most this share of the run


def seconds_per_step(method: Method, loader: Loader, views: ViewPlan, loop: LoopSettings) -> float | None:
    """Return the seconds of a step, with loading and without the optimizer. All ranks call it together.

    One or two batches run forward and backward, then the method gets its old state back. None if the method cannot
    learn before its first reassignment.
    """
    statistics = BatchStatistics(method)
    was_training = method.training
    batches = loader.batches(views, method.plan(), 0, 0, loader.steps_per_epoch, 0)
    progress = Progress(0, planned_steps(loop, loader.steps_per_epoch), 0, loader.steps_per_epoch, loop.seed)
    seconds = float("inf")
    method.train()
    try:
        for _ in range(min(2, loader.steps_per_epoch)):  # the first one also warms up
            started = time.monotonic()
            batch: Batch = next(batches)
            with autocast(loop.device, loop.precision):
                output = method(replace(batch, views=to_layout(batch.views)), progress)
            output.loss.backward()
            float(output.loss.detach())  # waits for the device
            seconds = min(seconds, time.monotonic() - started)
            if distributed.broadcast_object(seconds > _LONG):
                break
    except (RuntimeError, ValueError, IndexError):
        return None
    finally:
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
        method.zero_grad(set_to_none=True)
        statistics.restore()
        method.train(was_training)
    return distributed.broadcast_object(seconds)


def plan_duration(parts: Parts, loader: Loader, config: RunSettings, console: Console) -> LoopSettings:
    """Return the loop settings of a new run, and print how long it will take.

    If `config` has `minutes`, the number of epochs is set so that the run takes about that long, also in `config`.
    """
    loop, per_epoch = parts.loop, loader.steps_per_epoch
    if loop.device.type == "cpu":
        advice = busy_advice(torch.get_num_threads(), os.getloadavg()[0], os.cpu_count() or 1)
        if advice:
            console.say(advice)
    seconds = seconds_per_step(parts.method, loader, parts.views, loop)
    minutes = config.get("minutes")
    if seconds is None:
        why = "this method needs clusters before its first step, so the time of a step is not known yet"
        if minutes:
            console.warn(f"--minutes {minutes:g} has no effect: {why}; the run has {config['epochs']:g} epochs")
        else:
            console.say(f"the duration cannot be estimated: {why}")
        return loop
    if minutes:
        loop = spend(minutes, seconds, config, loop, per_epoch)
        console.say(f"  --epochs {config['epochs']:.2f}: the number of epochs that fit into --minutes {minutes:g}")
    steps = planned_steps(loop, per_epoch)
    more = ", and the reassignments" if type(parts.method).reassign is not Method.reassign else ""
    console.say(f"about {in_words(steps * seconds)} of training: {steps} steps of {seconds:.2g} s{more}")
    return loop


def spend(minutes: float, seconds: float, config: RunSettings, loop: LoopSettings, per_epoch: int) -> LoopSettings:
    """Return loop settings for a run of about `minutes`, at `seconds` per step; `config` is changed to match.

    The run has at least one step. A warm-up longer than a tenth of the run is shortened.
    """
    steps = max(1, round(60 * minutes / seconds))
    epochs = steps / per_epoch
    config["epochs"] = epochs
    config["warmup_epochs"] = min(config["warmup_epochs"], _WARMUP * epochs)
    training = replace(loop.training, epochs=epochs, warmup_epochs=config["warmup_epochs"])
    return replace(loop, training=training, images_seen=None)


def in_words(seconds: float) -> str:
    """Return a duration in words, with a unit that suits it.

    >>> in_words(50), in_words(1000), in_words(40_000)
    ('50 s', '17 min', '11.1 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
