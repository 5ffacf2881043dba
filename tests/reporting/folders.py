"""Run folders and sources of images for the tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image


class Pictures:
    """A source over arrays; `jpeg` hands out bytes instead."""

    def __init__(
        self, ids: list[str], images: np.ndarray, labels: Any = None, class_names: Any = None, jpeg: bool = False
    ) -> None:
        self.ids, self.images, self.labels, self.class_names, self.jpeg = ids, images, labels, class_names, jpeg

    def read(self, i: int) -> Any:
        if not self.jpeg:
            return self.images[i]
        buffer = io.BytesIO()
        Image.fromarray(self.images[i]).save(buffer, "JPEG")
        return buffer.getvalue()


def write_vectors(path: Path, ids: list[str], vectors: Any) -> None:
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids, "path": ids, "vector": column}), path)


def write_clusters(path: Path, ids: list[str], cluster: Any, distance: Any) -> None:
    cluster, distance = np.asarray(cluster, np.int64), np.asarray(distance, np.float32)
    pq.write_table(pa.table({"id": ids, "path": ids, "cluster": cluster, "distance": distance}), path)


def make_run(folder: Path, ids: list[str], k: int = 3, dim: int = 6, seed: int = 0) -> Path:
    """A complete run folder: `k` clusters far apart, everything else plausible."""
    rng = np.random.default_rng(seed)
    cluster = np.arange(len(ids)) % k
    centers = 10 * rng.standard_normal((k, dim))
    vectors = (centers[cluster] + rng.standard_normal((len(ids), dim))).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_vectors(folder / "embeddings.parquet", ids, vectors)
    write_clusters(folder / "clusters.parquet", ids, cluster, np.linalg.norm(vectors - centers[cluster], axis=1))
    rows = [
        {"step": s, "epoch": s // 10, "loss": 3.0 - 0.02 * s, "learning_rate": 0.1, "images_per_second": 90.0}
        | {"chance_loss": float(np.log(30)), "used_codes": 30, "seconds": 1.5}
        for s in range(40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "step": 40}))
    (folder / "quarantine.jsonl").write_text(
        json.dumps({"path": "b.jpg", "reason": "empty", "detail": "0 bytes"}) + "\n"
    )
    config = {
        "method": "swav",
        "seed": 3,
        "data": {"data": "photos"},
        "about": {"command": "selfcluster train swav photos"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder
