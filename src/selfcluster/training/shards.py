"""Parameters that only some ranks hold: their gradients are summed in their group, and they are saved a file a shard.

Caron et al. 2019, arXiv 1905.01278, section 4.2 (the sub-classifiers of DeeperCluster). A method that is shard i of c
names them in `sharded()`; shard i lives on the i-th c-th part of the ranks.
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
    """What is done about a method's sharded parameters: nothing where it has none. All ranks construct it together.

    Raises:
        ValueError: the processes cannot be shared out evenly over the shards.
    """

    def __init__(self, method: Method) -> None:
        self.names = method.sharded()
        self.number, count = method.data.shard
        if world_size() % count:
            raise ValueError(f"{count} shards over {world_size()} processes: choose a multiple of {count}")
        self.ranks = world_size() // count  # of a shard
        self.files = count if self.names else 0
        own = set(self.names)
        self.parameters = [p for name, p in method.named_parameters() if name in own]
        self.group: Any = None
        if self.names and self.ranks > 1:
            groups = [dist.new_group(range(i * self.ranks, (i + 1) * self.ranks)) for i in range(count)]
            self.group = groups[self.number]

    def reduce(self) -> None:
        """The mean of the gradients over all ranks, of which those without the parameter would add nothing."""
        for p in self.parameters:
            if p.grad is not None:
                if self.ranks > 1:
                    dist.all_reduce(p.grad, group=self.group)
                p.grad /= world_size()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all reduced gradients, other ranks' shards among them: the same on all ranks."""
        if not self.names:
            return torch.nn.utils.get_total_norm(gradients)
        mine = {id(p.grad) for p in self.parameters}
        common = torch.nn.utils.get_total_norm([g for g in gradients if id(g) not in mine])
        own = torch.nn.utils.get_total_norm([g for g in gradients if id(g) in mine])
        return (common.square() + all_reduce(own.square()) / self.ranks).sqrt()

    def save(self, checkpoints: Path | None, step: int, tensors: dict[str, Tensor]) -> None:
        """Move the sharded tensors out of `tensors` ("method.NAME", "optimizer.NAME.KEY") to a checkpoint of their own.

        The first rank of each shard writes, and all wait: no common checkpoint is older than its shards.
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
        """The tensors of a common checkpoint with those of the shards, until all the `wanted` are there.

        The run that wrote them may have had other shards than this one, or none.
        """
        tensors, folder = dict(loaded.tensors), loaded.path.parent
        own = checkpoint.shard(folder, self.number)
        for shard in sorted(folder.glob("shard-*"), key=lambda f: f != own):
            if wanted <= tensors.keys():
                break
            if (shard / loaded.path.name).exists():
                tensors |= checkpoint.load(shard / loaded.path.name).tensors
        return tensors
