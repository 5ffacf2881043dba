"""SwAV's loss in a plain PyTorch loop, on the digits that scikit-learn brings: `python examples/own_loop.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from selfcluster import KMeans, sinkhorn
from selfcluster.clustering.scores import nmi
from selfcluster.methods.swav import swav_loss
from selfcluster.models.heads import Prototypes


def view(images: torch.Tensor) -> torch.Tensor:
    """Shift each image by up to a pixel and change its brightness."""
    shift = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(images, shift, dims=(1, 2)) * (0.7 + 0.6 * torch.rand(len(images), 1, 1))


def main(epochs: int = 30) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16  # (1797, 8, 8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
    prototypes = Prototypes(64, 60)
    optimizer = torch.optim.AdamW([*network.parameters(), *prototypes.parameters()], lr=2e-3)
    for _ in range(epochs):
        for batch in images[torch.randperm(len(images))].split(256):
            features = [F.normalize(network(view(batch)), dim=1) for _ in range(2)]
            scores = [prototypes(z) for z in features]  # each (B, K)
            codes = [sinkhorn(score.detach(), epsilon=0.05) for score in scores]
            loss = swav_loss(scores, codes, temperature=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            prototypes.normalize_()
    with torch.no_grad():
        rows = F.normalize(network.eval()(images), dim=1)
    clusters = KMeans(10, spherical=True, init="k-means++", random_state=0).fit(rows).labels_
    score = nmi(digits.target, clusters.numpy())
    print(f"loss {loss.item():.3f}, NMI of ten clusters with the digits {score:.3f}")
    return score


if __name__ == "__main__":
    main()
