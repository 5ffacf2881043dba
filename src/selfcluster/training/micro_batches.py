"""Split a batch into micro-batches and add their gradients, if the batch does not fit in memory (`--accumulate`)."""

from __future__ import annotations

from dataclasses import replace

from selfcluster.training.embedding import to_layout
from selfcluster.types import Batch


def split(batch: Batch, parts: int) -> list[Batch]:
    """Return the micro-batches of a batch, in channels-last layout."""
    views = [view.chunk(parts) for view in batch.views]
    index = batch.index.chunk(parts)
    pretext_labels = {name: values.chunk(parts) for name, values in batch.pretext_labels.items()}
    return [
        replace(
            batch,
            views=to_layout([view[i] for view in views]),
            index=index[i],
            pretext_labels={name: values[i] for name, values in pretext_labels.items()},
        )
        for i in range(parts)
    ]
