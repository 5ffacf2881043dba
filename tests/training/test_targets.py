"""How targets are made, by hand and on one process or two, and what is refused before any is."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from selfcluster import distributed
from selfcluster.clustering.assign import unit_rows
from selfcluster.data.sources import open_source
from selfcluster.methods.clusterfit import allot, cluster, cluster_by_label, prototypes
from selfcluster.runs.folder import RunError
from selfcluster.settings.requirements import check_needs, layers_in, teachers_in
from selfcluster.training.targets import TARGETS_FILE, read_targets

CONFIG = {
    "num_prototypes": 6,
    "kmeans_iterations": 50,
    "kmeans_sample": None,
    "kmeans_sample_iterations": 30,
    "teacher_pca": 0,
    "seed": 0,
}


def blobs(count: int = 6, each: int = 20, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows around `count` directions far apart, and which one each is from."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(count * each) % count
    return unit_rows(torch.eye(dim)[kind] + 0.05 * torch.randn(count * each, dim, generator=generator)), kind


@pytest.mark.parametrize(
    ("sizes", "k", "expected"),
    [
        ([100, 400], 6, [2, 4]),  # roots 10 and 20
        ([1, 1, 9_998], 5, [1, 1, 3]),  # a label of one image has one cluster
        ([100, 0, 100], 4, [2, 0, 2]),  # a label without images has none
        ([2, 2, 10_000], 12, [1, 1, 10]),
        ([25, 25, 100], 5, [1, 1, 3]),  # wanted 1.25, 1.25, 2.5: what is left goes to the last
        ([3, 3], 6, [3, 3]),
    ],
)
def test_clusters_a_label_follow_the_root_of_its_size(sizes, k, expected):
    assert allot(np.array(sizes), k).tolist() == expected


@pytest.mark.parametrize("k", [1, 8])
def test_too_few_or_too_many_clusters_for_the_labels_are_refused(k):
    with pytest.raises(ValueError, match=rf"--num-prototypes {k}: must be between 2, the number of labels, and 7,"):
        allot(np.array([3, 4]), k)


def test_shares_always_add_up():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(0, 40, 10)
        k = int(rng.integers((sizes > 0).sum(), sizes.sum() + 1))
        shares = allot(sizes, k)
        assert shares.sum() == k
        assert (shares <= sizes).all()
        assert (shares[sizes > 0] >= 1).all()


@pytest.mark.parametrize("changed", [{}, {"teacher_pca": 6}, {"kmeans_sample": 60, "kmeans_iterations": 5}])
def test_kmeans_finds_blobs(changed):
    rows, kind = blobs()
    wanted = 0.6 if not changed.get("teacher_pca") else 0.5  # from random members, so not always all six
    assert adjusted_rand_score(kind, cluster(rows, torch.arange(len(rows)), CONFIG | changed)) > wanted


def test_kmeans_with_pca_clusters_whitened_components_without_unit_length():
    rows, _ = blobs()
    x = rows.double().numpy() - rows.double().numpy().mean(axis=0)
    values, axes = np.linalg.eigh(x.T @ x / len(x))
    white = (x @ axes[:, ::-1][:, :3] / np.sqrt(values[::-1][:3])).astype(np.float32)
    found = cluster(rows, torch.arange(len(rows)), CONFIG | {"teacher_pca": 3})
    centers = np.stack([white[found == k].mean(axis=0) for k in range(6)])
    nearest = ((white[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(nearest, found)  # a fixed point of Lloyd's iteration in that space


def test_clusters_by_label_never_cross_a_label():
    rows, kind = blobs()
    labels = torch.where(kind < 2, 0, 1)  # 40 and 80 images: of 6 clusters 2.5 and 3.5, so 2 and 4 or 3 and 3
    found = cluster_by_label(rows, torch.arange(len(rows)), labels, CONFIG)
    assert sorted(set(found.tolist())) == list(range(6))
    of_label = [set(found[labels == label].tolist()) for label in (0, 1)]
    assert not of_label[0] & of_label[1]
    assert [len(clusters) for clusters in of_label] == allot(np.array([40, 80]), 6).tolist()


def test_prototypes_are_label_means_and_one_assignment():
    rows = torch.tensor([[0.0, 0.0], [4.0, 0.0], [3.0, 0.0], [9.0, 0.0], [9.0, 2.0]])
    labels = torch.tensor([0, 0, 3, 3, 3])  # means (2, 0) and (7, 2/3): the third row is nearer to the first
    assert prototypes(rows, labels).tolist() == [0, 0, 0, 3, 3]


def rank_targets(length: int) -> dict:
    """The rows shared unevenly: the second rank has no image of label 0."""
    rows, kind = blobs()
    labels = torch.where(kind < 2, 0, 1)
    order = labels.argsort(stable=True)
    rows, labels = rows[order], labels[order]
    mine = slice(0, length) if distributed.rank() == 0 else slice(length, None)
    if distributed.world_size() == 1:
        mine = slice(None)
    return {
        "prototypes": prototypes(rows[mine], labels[mine]).tolist(),
        "by_label": cluster_by_label(rows[mine], torch.arange(len(rows))[mine], labels[mine], CONFIG).tolist(),
    }


@pytest.mark.slow
def test_two_processes_make_the_same_targets_as_one(ranks):
    whole, parts = rank_targets(0), ranks.run(rank_targets, 50)
    for name, expected in whole.items():
        assert parts[0][name] + parts[1][name] == expected


def dealt_clusters(sample: int | None) -> list[tuple[int, int]]:
    """(image, cluster) of this rank's images, dealt as a sweep deals them: a part of every batch."""
    rows = blobs()[0]
    batches = torch.arange(len(rows)).chunk(5)
    index = torch.cat([part[distributed.share(len(part))] for part in batches])
    found = cluster(rows[index], index, CONFIG | {"kmeans_sample": sample, "kmeans_iterations": 5})
    return list(zip(index.tolist(), found.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("sample", [None, 60])
def test_clusters_do_not_depend_on_who_holds_which_images(ranks, sample):
    parts = ranks.run(dealt_clusters, sample)
    assert sorted(parts[0] + parts[1]) == dealt_clusters(sample)


def test_targets_that_are_damaged_or_of_other_images_are_refused(tmp_path):
    assert read_targets(None, 5) is None
    assert read_targets(tmp_path, 5) is None
    np.save(tmp_path / TARGETS_FILE, np.zeros((2, 5), dtype=np.int64))
    assert read_targets(tmp_path, 5).shape == (2, 5)
    with pytest.raises(RunError, match=r"targets.npy: int64 \(2, 5\) are not targets of 6 images"):
        read_targets(tmp_path, 6)
    (tmp_path / TARGETS_FILE).write_bytes((tmp_path / TARGETS_FILE).read_bytes()[:-20])
    with pytest.raises(RunError, match="cannot be read"):
        read_targets(tmp_path, 5)


def a_run(folder, method: str, state: str = "finished") -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"method: {method}\n")
    (folder / "status.json").write_text(json.dumps({"state": state}))
    return str(folder)


def test_teachers_are_named_between_commas():
    assert teachers_in("a, runs/b ,c=d.pth") == ["a", "runs/b", "c=d.pth"]
    assert teachers_in(["a", "runs/b"]) == ["a", "runs/b"]  # --teacher given twice
    assert teachers_in(None) == []


def test_a_layer_is_for_all_teachers_or_one_each():
    assert layers_in(None, 2) == [None, None]
    assert layers_in("layer3", 2) == ["layer3", "layer3"]
    assert layers_in("layer3, blocks.11", 2) == ["layer3", "blocks.11"]
    assert layers_in("layer3,", 2) == ["layer3", None]  # the second's own features
    with pytest.raises(ValueError, match="--teacher-layer a,b names 2 layers for 3 teachers; name one layer for all"):
        layers_in("a,b", 3)


def test_what_is_needed_is_asked_for_by_its_flag(tmp_path, pictures, kinds):
    plain, labeled = open_source(pictures), open_source(pictures, labels_from=kinds)
    rotnet, running = a_run(tmp_path / "rotnet", "rotnet"), a_run(tmp_path / "running", "swav", "running")
    right = a_run(tmp_path / "right", "supervised")
    weights = tmp_path / "weights.pth"
    weights.touch()
    cases = [
        ("supervised", {}, plain, "supervised learns from labels: say where they are with --labels-from"),
        ("clusterfit", {}, plain, "add --teacher NETWORK. NETWORK is starter"),
        ("clusterfit", {"teacher": running}, plain, "that run is running; finish it first"),
        ("clusterfit", {"teacher": "runs/nothing"}, plain, "there is no runs/nothing"),
        ("clusterfit", {"teacher": "resnet18=gone.pth"}, plain, "there is no gone.pth"),
        ("clusterfit", {"teacher": rotnet, "target": "per-label"}, labeled, "did you mean per_label"),
        ("clusterfit", {"teacher": rotnet, "target": "per_label"}, plain, "--target per_label learns from labels"),
        ("clusterfit", {"teacher": rotnet, "target": "prototypes"}, plain, "--labels-from"),
        (
            "clusterfit",
            {"teacher": rotnet, "target": "distill"},
            labeled,
            "is a run of rotnet, which has no classifier",
        ),
        ("clusterfit", {"teacher": "resnet18", "target": "distill"}, labeled, "resnet18 has no classifier here"),
        ("clusterfit", {"teacher": right, "target": "distill"}, plain, "--target distill learns from labels"),
        ("clusterfit", {"teacher": rotnet, "rounds": 0}, plain, "--rounds 0: must be 1 or more"),
        (
            "clusterfit",
            {"teacher": rotnet, "rounds": 2, "target": "regress"},
            plain,
            "uses one fixed teacher, so --rounds must be 1",
        ),
    ]
    for method, said, source, words in cases:
        with pytest.raises(ValueError) as caught:
            check_needs(method, said, source)
        assert words in str(caught.value)
    one = open_source(pictures[:4], labels_from=str(one_label(tmp_path)))
    with pytest.raises(ValueError, match="all 4 images have the label 'only'"):
        check_needs("supervised", {}, one)


@pytest.mark.parametrize(("method", "flag"), [("supervised", "--labels-from"), ("clusterfit", "--teacher")])
def test_what_is_missing_is_refused_before_torch(method, flag, tmp_path, pictures):
    for number in range(2):
        Image.fromarray(pictures[number]).save(tmp_path / f"{number}.png")
    code = (
        "import sys; from selfcluster.cli import main\n"
        f"status = main(['train', {method!r}, {str(tmp_path)!r}, '--out', {str(tmp_path / 'run')!r}])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert flag in done.stderr
    assert not (tmp_path / "run").exists()


def one_label(folder):
    path = folder / "one.csv"
    path.write_text("id,label\n" + "".join(f"{i},only\n" for i in range(4)))
    return path


def test_what_has_all_it_needs_passes(tmp_path, pictures, kinds):
    labeled = open_source(pictures, labels_from=kinds)
    right = a_run(tmp_path / "right", "supervised")
    check_needs("supervised", {}, labeled)
    check_needs("swav", {}, open_source(pictures))
    for target in ("kmeans", "per_label", "prototypes", "distill", "regress"):
        check_needs("clusterfit", {"teacher": right, "target": target}, labeled)
    check_needs("clusterfit", {"teacher": "resnet18,tiny_layout", "rounds": 3}, open_source(pictures))
