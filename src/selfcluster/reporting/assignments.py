"""Which clusters the page shows: those that training used, or a later assignment of the images.

A run trains on pseudo-labels of views or of center crops, by a network that still learns. Its table of clusters is made
afterwards, from center crops by the exported network. The two differ, and published NMI is of the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from selfcluster.runs.contents import Contents
from selfcluster.runs.labels import label_files, last_labels

_ROUNDING = 1e-3  # of the share in the summary


def which_clusters(contents: Contents) -> str | None:
    """Return sentences that say which clusters are shown and how many equal the pseudo-labels; None without labels."""
    try:
        found = last_labels(contents.folder)
    except ValueError as error:
        return f"The clusters of training cannot be read: {error}."
    if found is None or contents.clusters is None:
        return None
    epoch, trained = found
    labels = np.array([trained.get(name, -1) for name in contents.clusters.ids.to_pylist()], np.int64)
    name = Path("labels", label_files(contents.folder)[epoch].name)
    text = f"In the last epoch, training itself had other clusters ({name})"
    both = labels >= 0
    summary = contents.status.get("summary")
    stored = summary.get("same_as_trained") if isinstance(summary, dict) else None
    if not both.any() or not isinstance(stored, int | float):
        return f"These clusters were made after training, from the final network's features. {text}."
    share = float((labels == contents.clusters.cluster)[both].mean())
    if abs(share - stored) > _ROUNDING:
        return (
            f"These clusters were made by a later command. {text}. At its end, the run assigned each image again by "
            f"its center crop; {stored:.0%} of the images got the cluster of their last label in training."
        )
    return (
        f"These clusters were made after training, by the final network, from the center of each image. {text}: "
        f"{share:.0%} of the {both.sum():,} images that training put into a cluster are in the same one here."
    )
