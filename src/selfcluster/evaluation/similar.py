"""Find the images of a run that are most similar to a given one, by the cosine of their features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcluster.clustering.assign import unit_rows
from selfcluster.clustering.neighbors import nearest
from selfcluster.data.decode import BadImage, decode
from selfcluster.data.ranges import ValueRange
from selfcluster.data.sources import DataError
from selfcluster.files import reason_of
from selfcluster.runs.tables import CLUSTERS, embeddings_of, read_clusters
from selfcluster.views.crops import decoded_side


def read_picture(path: Path, side: int, value_range: ValueRange | None = None) -> np.ndarray:
    """Return an image file as a set of one image, (1, H, W, 1 or 3) uint8; raise DataError if it cannot be used.

    A JPEG is decoded at a smaller size if a center view of `side` pixels allows it, like the run's own images.
    `value_range` is the run's, for images deeper than 8 bits.
    """
    try:
        return decode(path.read_bytes(), channels=None, shrink_to=decoded_side(side), value_range=value_range)[None]
    except BadImage as error:
        raise DataError(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {reason_of(error)}") from error


def most_similar(run: Path, vector: np.ndarray, k: int) -> list[dict[str, Any]]:
    """Return the k images of a run nearest to features (F,), a row each: rank from 1, cosine, id, path, cluster."""
    table = embeddings_of(run)
    if not 1 <= k <= len(table.ids):
        raise ValueError(f"--k {k}: must be from 1 to {len(table.ids)}, the number of embedded images of {run}")
    query, database = (unit_rows(torch.from_numpy(rows)) for rows in (vector[None], table.vectors))
    found = nearest(query, database, k)
    clusters = read_clusters(run / CLUSTERS).by_id() if (run / CLUSTERS).is_file() else {}
    return [
        {
            "rank": rank,
            "cosine": cosine,
            "id": table.ids[i],
            "path": table.paths[i],
            "cluster": clusters.get(table.ids[i]),
        }
        for rank, (cosine, i) in enumerate(zip(found.values[0].tolist(), found.indices[0].tolist()), start=1)
    ]
