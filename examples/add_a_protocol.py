"""A protocol of your own: the nearest class mean, on any network: `python examples/add_a_protocol.py`.

A protocol is one class with its settings. It joins `evaluate` by `register_protocol`, or by an entry point of the group
`selfcluster.protocols` in your package's pyproject.toml.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import selfcluster
from selfcluster.evaluation.protocol import Protocol, Result, result_of
from selfcluster.evaluation.protocols import register_protocol
from selfcluster.evaluation.subject import Subject
from selfcluster.setting import setting


@dataclass(frozen=True, kw_only=True)
class NearestMeanSettings:
    normalize: bool = setting(True, "scale features to length 1 first")


class NearestMean(Protocol):
    """Accuracy of the nearest class mean."""

    Settings = NearestMeanSettings

    def run(self, subject: Subject, settings: NearestMeanSettings) -> Result:
        train, test = subject.parts
        x, y = (part.vectors / (np.linalg.norm(part.vectors, axis=1, keepdims=True) if settings.normalize else 1)
                for part in (train, test))  # fmt: skip
        classes = np.unique(train.labels[train.labels >= 0])
        means = np.stack([x[train.labels == label].mean(axis=0) for label in classes])  # (L, F)
        nearest = classes[((y[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]
        known = test.labels >= 0
        accuracy = float((nearest == test.labels)[known].mean())
        return result_of("nearest_mean", {"top1": accuracy, "n_test": int(known.sum())}, subject, settings)


def main(limit: int | None = None) -> float:
    register_protocol("nearest_mean", NearestMean)
    with tempfile.TemporaryDirectory() as folder:
        settings = {} if limit is None else {"limit": limit}
        selfcluster.train("swav", "builtin:digits", out=Path(folder) / "run", epochs=1, quiet=True, **settings)
        result = selfcluster.evaluate("nearest_mean", Path(folder) / "run", normalize=True)
    print(f"{result.protocol}: {result['top1']:.3f} of {result['n_test']} digits")
    return result["top1"]


if __name__ == "__main__":
    main()
