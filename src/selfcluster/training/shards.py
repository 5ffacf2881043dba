"""Parameters that only some ranks hold: sum their gradients within the group, and save one file per shard.

Caron et al. 2019, arXiv 1905.01278, section 4.2 (the sub-classifiers of DeeperCluster). A method names these parameters
in `sharded()`. With c shards the ranks form c equal groups, and group i holds shard i.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from selfcluster.distributed import all_reduce, gather_objects, rank, world_size
from selfcluster.files import message_of
from selfcluster.methods.base import Method
from selfcluster.runs import checkpoint


class Shards:
    """Handles a method's sharded parameters; does nothing if there are none. All ranks construct it together.

    Raises:
        ValueError: the number of processes is not a multiple of the number of shards.
    """

    def __init__(self, method: Method) -> None:
        self.names = method.sharded()
        self.number, count = method.data.shard
        if world_size() % count:
            raise ValueError(
                f"{world_size()} processes cannot share {count} shards equally: start a multiple of {count} processes "
                "(torchrun --nproc-per-node)"
            )
        self.ranks = world_size() // count  # of a shard
        self.files = count if self.names else 0
        own = set(self.names)
        self.parameters = [p for name, p in method.named_parameters() if name in own]
        self.group: Any = None
        if self.names and self.ranks > 1:
            groups = [dist.new_group(range(i * self.ranks, (i + 1) * self.ranks)) for i in range(count)]
            self.group = groups[self.number]

    def reduce(self) -> None:
        """Average the sharded gradients over all ranks; ranks without the parameter count as zero."""
        for p in self.parameters:
            if p.grad is not None:
                if self.ranks > 1:
                    dist.all_reduce(p.grad, group=self.group)
                p.grad /= world_size()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm of all reduced gradients, with the shards of other ranks: the same on all ranks."""
        if not self.names:
            return torch.nn.utils.get_total_norm(gradients)
        mine = {id(p.grad) for p in self.parameters}
        common = torch.nn.utils.get_total_norm([g for g in gradients if id(g) not in mine])
        own = torch.nn.utils.get_total_norm([g for g in gradients if id(g) in mine])
        return (common.square() + all_reduce(own.square()) / self.ranks).sqrt()

    def save(self, checkpoints: Path | None, step: int, tensors: dict[str, Tensor]) -> None:
        """Move the sharded tensors from `tensors` ("method.NAME", "optimizer.NAME.KEY") into their own checkpoint.

        The first rank of each shard writes it, and all ranks wait, so the shards are complete before the common
        checkpoint is written.
        """
        if not self.names:
            return
        own = {key: tensors.pop(key) for key in list(tensors) if key.partition(".")[2].startswith(self.names)}
        problem = None
        if checkpoints is not None and rank() % self.ranks == 0:
            try:
                checkpoint.save(checkpoint.shard(checkpoints, self.number), step, own, {"step": step})
            except OSError as error:
                problem = message_of(error)
        problems = [p for p in gather_objects(problem) if p]
        if problems:
            raise OSError(problems[0])

    def load(self, loaded: checkpoint.Checkpoint, wanted: set[str]) -> dict[str, Tensor]:
        """Return the tensors of a common checkpoint, and those of its shards until all `wanted` are found.

        The run that wrote the checkpoint may have had another number of shards, or none.
        """
        tensors, folder = dict(loaded.tensors), loaded.path.parent
        own = checkpoint.shard(folder, self.number)
        for shard in sorted(folder.glob("shard-*"), key=lambda f: f != own):
            if wanted <= tensors.keys():
                break
            if (shard / loaded.path.name).exists():
                tensors |= checkpoint.load(shard / loaded.path.name).tensors
        return tensors
