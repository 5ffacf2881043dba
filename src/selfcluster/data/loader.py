"""Batches of views, from images on the device where they fit, else from threads that read, decode and crop ahead.

In memory: all images have one size and fill at most a quarter of the device's memory; they are decoded once and cut on
the device. Otherwise threads (Pillow and torch release the interpreter's lock) decode each image once and cut all its
views; order and content do not depend on the number of threads. Either way the views are finished in batches on the
device. A bad image is quarantined and replaced by a draw that depends on nothing but (seed, step, image).
Departs: on a CPU, images in memory above 64 px are cut by the threads, which is several times cheaper there.

N images, B images of this rank in a batch, V views, C channels, H x W pixels, S a view's side.
"""

from __future__ import annotations

import math
import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from selfcluster import distributed, randomness
from selfcluster.data.ahead import Ahead
from selfcluster.data.cutting import CHUNK, Cutter, Job, no_substitute
from selfcluster.data.errors import BadImage
from selfcluster.data.images import survey
from selfcluster.data.in_memory import load_in_memory
from selfcluster.data.order import epoch_order, rank_slice, shuffled
from selfcluster.data.quarantine import Find, Quarantine
from selfcluster.data.sources import Source, check_enough
from selfcluster.data.threads import TIMEOUT, DaemonThreads, Watch
from selfcluster.devices import to_device
from selfcluster.types import Batch, EpochPlan
from selfcluster.views.crops import center_batch, cut_batch
from selfcluster.views.plans import ViewGroup, ViewPlan

_CUT_ON_CPU = 64  # side up to which matrix products beat a resize per image on a CPU (measured: 224 px, 9 ms to 2)
_SURVEY_SECONDS = 60.0  # for looking at all images before too many bad ones end the run


class Loader:
    """Batches of one source.

    Args:
        source: the images.
        batch_size: B over all processes; `world` divides it.
        image_size: side of the center view.
        channels: 1 or 3; images are converted.
        mean, std: C numbers each, of pixels in 0..1.
        interpolation, crop_pct, crop_mode: of the center view, see `views.crops.center`.
        seed: of orders, crops and replacements.
        device: where the views end up.
        workers: number of threads; None: one per core, divided among the processes of this host. 0: one thread, which
            does not read ahead.
        quarantine: file for the list of bad images, or None.
        max_bad: share of N that may be bad (see `quarantine.py` for the exact rule).
        rank, world: number of this process, and number of processes.
        in_memory: None decides by size; False never keeps the images on the device.
        timeout: seconds to wait for a read before the pass ends with `ReadTimeout`; None waits without limit.

    >>> from selfcluster.data.sources import open_source
    >>> source = open_source(np.zeros((20, 8, 8), np.uint8))
    >>> loader = Loader(source, batch_size=4, image_size=8, channels=1, mean=[0.5], std=[0.5], device="cpu")
    >>> loader.steps_per_epoch, loader.in_memory
    (5, True)
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: int,
        channels: int = 3,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bilinear",
        crop_pct: float | None = None,
        crop_mode: str = "center",
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        quarantine: str | os.PathLike[str] | None = None,
        max_bad: float = 0.01,
        rank: int = 0,
        world: int = 1,
        in_memory: bool | None = None,
        timeout: float | None = TIMEOUT,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f"--batch-size {batch_size}: must be a positive multiple of the number of processes, {world}"
            )
        self.source, self.batch_size, self.image_size, self.channels = source, batch_size, image_size, channels
        self.mean, self.std, self.seed = tuple(mean), tuple(std), seed
        self.center = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
        self.device = torch.device(device)
        self.rank, self.world = rank, world
        self.workers = _default_workers() if workers is None else workers
        self._pool: DaemonThreads | None = None
        self.watch = Watch(timeout, source.ids.__getitem__)
        self.quarantine = Quarantine(source.ids, quarantine, max_bad, rank, self._survey)
        self._images: Tensor | None = None  # (N, H, W, C) uint8 on the device
        if in_memory is not False:
            self._images = load_in_memory(source, channels, self.device, self._threads(), self.quarantine, self.watch)
        self._cutter = Cutter(
            source,
            self.quarantine.bad,
            self.watch,
            allowed=self.quarantine.allowed,
            channels=channels,
            image_size=image_size,
            center=self.center,
            seed=seed,
            images=self._images,
        )
        self._in_threads = self._images is None or (
            self.device.type == "cpu" and max(self._images.shape[1:3]) > _CUT_ON_CPU
        )

    @property
    def num_samples(self) -> int:
        """N, bad images included."""
        return len(self.source)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in N images; the incomplete last one is dropped.

        Raises:
            DataError: fewer images than one batch.
        """
        check_enough(self.num_samples, self.batch_size)
        return self.num_samples // self.batch_size

    def reading_report(self) -> dict[str, int]:
        """Return what reading met: bad_images, retried_reads, changed_files, and retried_images of an earlier start."""
        return {
            "bad_images": len(self.quarantine),
            "retried_reads": self.source.log.retries,
            "changed_files": len(self.source.log.changed),
            "retried_images": self.quarantine.retried,
        }

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images are kept on the device."""
        return self._images is not None

    def batches(
        self,
        plan: ViewPlan,
        epoch_plan: EpochPlan | None = None,
        epoch: int = 0,
        first_step_in_epoch: int = 0,
        steps_per_epoch: int | None = None,
        global_step: int = 0,
    ) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, from its step `first_step_in_epoch` on.

        `global_step` is the run's step of the first batch; views depend on it. Bad images are replaced;
        `Batch.index` holds the images really shown. All ranks take all batches: finds are exchanged after the last.
        """
        steps = self.steps_per_epoch if steps_per_epoch is None else steps_per_epoch
        order = epoch_order(self.num_samples, self.batch_size, steps, self.seed, epoch, epoch_plan)
        rows = order[first_step_in_epoch:, rank_slice(self.batch_size, self.rank, self.world)]
        jobs = (
            self._job(index, plan, self.seed, global_step + k, crop=True, substitute=True)
            for k, index in enumerate(rows)
        )
        yield from self._batches(jobs)
        self.quarantine.sync()

    def ahead(
        self, plan: ViewPlan, epoch_plan: EpochPlan, epoch: int, first_step: int, steps_per_epoch: int, global_step: int
    ) -> Ahead:
        """Return `batches(...)`, of which one can be made ahead on CUDA."""
        batches = self.batches(plan, epoch_plan, epoch, first_step, steps_per_epoch, global_step)
        return Ahead(batches, wanted=self.device.type == "cuda")

    @property
    def share_size(self) -> int:
        """How many images `iterate_all` takes on this rank, bad ones included."""
        runs = (run.stop - run.start for run in self._runs(self.batch_size))
        parts = (distributed.share(size, self.rank, self.world) for size in runs)
        return sum(part.stop - part.start for part in parts)

    def _runs(self, size: int) -> list[slice]:
        """All images, in runs of nearly `size`."""
        count = math.ceil(self.num_samples / size)
        return [distributed.share(self.num_samples, k, count) for k in range(count)]

    def iterate_all(
        self,
        view: str = "center",
        plan: ViewPlan | None = None,
        step: int = 0,
        batch_size: int | None = None,
        mixed: bool = False,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Yield this rank's share of all images, in the order of their ids unless `mixed`, bad ones left out.

        The images are divided into runs of nearly `batch_size` over all processes, and each rank takes its part of
        each run: the ranks make equally many batches, and together the same ones as one process would.

        Args:
            view: "center", or "train": all full-resolution views of `plan`, of one decode, with randomness that
                belongs to such passes alone. Pretext operations are left out.
            plan: needed for "train".
            step: number of the pass, for "train" and `mixed`.
            batch_size: images at a time, over all processes; default that of training.
            mixed: shuffle the images, as training does. Images next to each other in a folder are similar, so batch
                statistics over them would not match a training batch.
            first: batches that are passed over, by a pass that goes on where another ended.
        """
        runs = self._runs(batch_size or self.batch_size)
        seed = randomness.key(self.seed, "sweep")
        order = shuffled(self.num_samples, seed, "order", step) if mixed else np.arange(self.num_samples)
        runs = runs[first:]
        parts = [order[run][distributed.share(run.stop - run.start, self.rank, self.world)] for run in runs]
        if view == "train":
            if plan is None:
                raise ValueError('view="train" needs a plan')
            full = tuple(group for group in plan.groups if group.size == plan.sizes[0])
            if full != plan.groups[: len(full)]:
                raise ValueError(f"full-resolution views come first in a plan; its sizes are {plan.sizes}")
            plan = replace(plan, groups=full, pretext=None)
        elif view == "center":
            whole = ViewGroup(count=1, size=self.image_size, scale=None, flip_p=0.0)
            plan = ViewPlan(groups=(whole,))
        else:
            raise ValueError(f"view={view!r} is neither 'center' nor 'train'")
        jobs = (
            self._job(rows, plan, seed, step, crop=view == "train", substitute=False)
            for rows in parts
            if len(rows) or self.world > 1
        )
        yield from self._batches(jobs)
        self.quarantine.sync()

    def close(self) -> None:
        """End the threads; the loader starts new ones if it is used again."""
        if self._pool is not None:
            self._pool.shutdown(wait=not self.watch.hung, cancel_futures=True)
            self._pool = None

    def _job(self, index: np.ndarray, plan: ViewPlan, seed: int, step: int, *, crop: bool, substitute: bool) -> Job:
        return Job(step, index, plan, seed, crop, substitute, index.copy(), [])

    def _batches(self, jobs: Iterator[Job]) -> Iterator[Batch]:
        if self._images is not None and not self._in_threads:
            for job in jobs:
                yield from self._cut_in_memory(job, self._images)
            return
        for job in self._loaded(jobs):
            for row, reason, detail in job.finds:
                self.quarantine.add(row, BadImage(reason, detail))
            keep = job.shown >= 0
            if job.substitute and not keep.all():
                raise no_substitute(job)
            if keep.any():
                pixels = job.pixels if keep.all() else [view[keep] for view in job.pixels]
                yield self._finish(
                    [to_device(torch.from_numpy(view), self.device) for view in pixels], job, job.shown[keep]
                )
            elif self.world > 1:
                yield self._nothing(job)

    def _nothing(self, job: Job) -> Batch:
        """A batch without images: ranks that share statistics must make equally many."""
        views = [torch.zeros(0, self.channels, size, size, device=self.device) for size in job.plan.sizes]
        return Batch(views, torch.zeros(0, dtype=torch.int64, device=self.device), {})

    def _finish(self, views: list[Tensor], job: Job, shown: np.ndarray) -> Batch:
        index = torch.from_numpy(shown)  # on the CPU: a plan's random numbers and tables are made there
        done = job.plan.apply(views, job.seed, job.step, index, self.mean, self.std)
        pretext_labels = {k: v.to(self.device) for k, v in job.plan.pretext_labels(job.seed, job.step, index).items()}
        return Batch(done, to_device(index, self.device), pretext_labels)

    # images in memory

    def _cut_in_memory(self, job: Job, images: Tensor) -> Iterator[Batch]:
        bad = self.quarantine.bad
        shown = job.index if not job.substitute else self._cutter.replaced(job)
        shown = shown[~bad[shown]]
        if not len(shown):
            if self.world > 1:
                yield self._nothing(job)
            return
        chosen = images[to_device(torch.from_numpy(shown), self.device)].permute(0, 3, 1, 2)  # (B, C, H, W)
        if not job.crop:
            yield self._finish([center_batch(chosen, self.image_size, **self.center)], job, shown)
            return
        height, width = (np.full(len(shown), side) for side in images.shape[1:3])
        boxes = job.plan.boxes(job.seed, job.step, shown, height, width)
        views = [
            cut_batch(chosen, torch.from_numpy(box), group.size, group.interpolation)
            for box, group in zip(boxes, job.plan.views, strict=True)
        ]
        yield self._finish(views, job, shown)

    # threads

    def _threads(self) -> DaemonThreads:
        if self._pool is None:  # the calling thread reads nothing: a read that hangs could not be told from there
            self._pool = DaemonThreads(max(1, self.workers), "selfcluster-loader")
            weakref.finalize(self, self._pool.end)
        return self._pool

    def _loaded(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """Yield the jobs, done and in order, while the threads work on the next few."""
        pool = self._threads()
        if self.workers == 0:
            for job in jobs:
                yield self._done(job, [pool.submit(self._cutter.load, job, start) for start in self._cutter.begin(job)])
            return
        ahead: deque[tuple[Job, list[Future[list[Find]]]]] = deque()
        try:
            for job in jobs:
                ahead.append((job, [pool.submit(self._cutter.load, job, start) for start in self._cutter.begin(job)]))
                chunks = max(1, math.ceil(len(job.index) / CHUNK))
                if len(ahead) > max(2, math.ceil(2 * self.workers / chunks)):
                    yield self._done(*ahead.popleft())
            while ahead:
                yield self._done(*ahead.popleft())
        finally:
            for _, futures in ahead:
                for future in futures:
                    future.cancel()

    def _done(self, job: Job, futures: list[Future[list[Find]]]) -> Job:
        for future in futures:
            job.finds += self.watch.wait(future)
        return job

    def _survey(self, known: np.ndarray) -> tuple[list[Find], int]:
        return survey(self.source, known, _SURVEY_SECONDS, self._threads())


def _default_workers() -> int:
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
