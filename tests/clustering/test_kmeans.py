import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as Peer
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator

from selfcluster import distributed
from selfcluster.clustering import native
from selfcluster.clustering.kmeans import KMeans
from selfcluster.clustering.lloyd import Empty, add_rows, split
from selfcluster.clustering.two_level import Regions


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def blobs(per, centers, spread=0.1, seed=0):
    centers = torch.as_tensor(centers, dtype=torch.float32)
    x = centers.repeat_interleave(per, 0)
    return x + spread * rows(*x.shape, seed=seed), torch.arange(len(centers)).repeat_interleave(per)


def lloyd(x, c, steps, weight=None, spherical=False):
    """Float64, from the definition: assign to the nearest, move to the mean, `steps` times; empty ones stay."""
    x, c = (np.asarray(a).astype(np.float64) for a in (x, c))
    weight = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    if spherical:
        x, c = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, c))

    def assign():
        squares = ((x[:, None] - c) ** 2).sum(axis=2)
        return squares.argmin(axis=1), squares.min(axis=1)

    for _ in range(steps):
        labels, _ = assign()
        for j in range(len(c)):
            if weight[labels == j].sum() > 0:
                c[j] = np.average(x[labels == j], axis=0, weights=weight[labels == j])
                c[j] /= np.linalg.norm(c[j]) if spherical else 1.0
    labels, squares = assign()
    return labels, c, (weight * squares).sum()


@pytest.mark.parametrize("kernel", ["1", "0"])
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_iterations_are_lloyds_in_float64(kernel, spherical, weighted, monkeypatch):
    monkeypatch.setenv("SELFCLUSTER_NATIVE", kernel)
    x = rows(400, 7) + 3
    weight = torch.rand(400, generator=torch.Generator().manual_seed(1)) if weighted else None
    model = KMeans(9, init=x[:9], max_iter=6, empty="keep", spherical=spherical).fit(x, sample_weight=weight)
    labels, centers, inertia = lloyd(x, x[:9], 6, weight, spherical)
    assert (model.labels_.numpy() == labels).all()
    np.testing.assert_allclose(model.cluster_centers_, centers, rtol=1e-5, atol=1e-6)
    assert model.inertia_ == pytest.approx(inertia, rel=1e-5)
    assert len(model.history_) == 7


def test_it_agrees_with_scikit_learn_from_the_same_start():
    x = rows(600, 5).double().numpy()
    peer = Peer(8, init=x[:8], n_init=1, max_iter=300, tol=0.0, algorithm="lloyd").fit(x)
    ours = KMeans(8, init=x[:8], max_iter=300).fit(x)
    assert (ours.labels_ == peer.labels_).all()
    assert ours.inertia_ == pytest.approx(peer.inertia_, rel=1e-9)
    assert ours.cluster_centers_.dtype == np.float64


def test_by_hand():
    model = KMeans(2, init=np.array([[0.0], [10.0]]), max_iter=5).fit(np.array([[0.0], [1.0], [9.0], [12.0]]))
    assert model.labels_.tolist() == [0, 0, 1, 1]
    assert model.cluster_centers_.tolist() == [[0.5], [10.5]]
    assert model.inertia_ == 5.0
    assert model.n_iter_ == 1
    assert [h["moved"] for h in model.history_] == [4, 0]
    assert model.history_[0] == {"stage": 1, "inertia": 6.0, "moved": 4, "empty": 0, "largest": 2.0}


@pytest.mark.parametrize("init", ["random", "k-means++", "k-means||"])
@pytest.mark.parametrize("spherical", [False, True])
def test_separate_blobs_are_found(init, spherical):
    x, truth = blobs(60, np.eye(6) * 10)
    scores = [
        adjusted_rand_score(truth, KMeans(6, init=init, spherical=spherical, random_state=s).fit(x).labels_)
        for s in range(5)
    ]
    assert max(scores) == 1.0
    if init != "random":
        assert np.median(scores) == 1.0


def test_kinds_of_input_agree(tmp_path):
    x = rows(500, 6).numpy()
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=x.shape)
    file[:] = x
    file.flush()
    model = KMeans(7, random_state=3).fit(x)
    assert isinstance(model.labels_, np.ndarray)
    assert isinstance(model.cluster_centers_, np.ndarray)
    tensor = KMeans(7, random_state=3).fit(torch.from_numpy(x))
    assert isinstance(tensor.labels_, torch.Tensor)
    assert tensor.labels_.dtype == torch.int64
    for other in (tensor, KMeans(7, random_state=3).fit(np.load(tmp_path / "x.npy", mmap_mode="r"))):
        assert (np.asarray(other.labels_) == model.labels_).all()
        assert (np.asarray(other.cluster_centers_) == model.cluster_centers_).all()
    assert (model.predict(x) == model.labels_).all()
    assert model.score(x) == pytest.approx(-model.inertia_, rel=1e-6)
    half = KMeans(7, random_state=3).fit(torch.from_numpy(x).half())
    assert adjusted_rand_score(half.labels_, model.labels_) > 0.9


def test_a_file_is_read_in_blocks(tmp_path, monkeypatch):
    from selfcluster.clustering import rows as module

    x = rows(1000, 8).numpy()
    whole = KMeans(5, random_state=0).fit(x)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 8 * 64)
    sizes = []
    read = module.Rows.read

    def watched(self, part):
        block = read(self, part)
        sizes.append(len(block))
        return block

    monkeypatch.setattr(module.Rows, "read", watched)
    np.save(tmp_path / "x.npy", x)
    streamed = KMeans(5, random_state=0).fit(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert max(sizes) == 64
    assert (streamed.labels_ == whole.labels_).all()
    np.testing.assert_allclose(streamed.cluster_centers_, whole.cluster_centers_, rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_start():
    x = rows(800, 10)
    first, again, other = (KMeans(20, random_state=s, max_iter=5).fit(x) for s in (0, 0, 1))
    assert torch.equal(first.cluster_centers_, again.cluster_centers_)
    assert torch.equal(first.labels_, again.labels_)
    assert not torch.equal(first.cluster_centers_, other.cluster_centers_)


def test_a_set_far_from_the_origin_keeps_its_bits():
    x, truth = blobs(50, [[0.0, 0], [1, 0], [0, 1]], spread=0.05)
    labels = KMeans(3, init="k-means++", random_state=0).fit(x + 4096).labels_
    assert adjusted_rand_score(truth, labels) == 1.0


class TestEmpty:
    def test_kept_where_it_was(self):
        x = torch.tensor([[0.0, 1], [1, 1], [2, 1]])
        start = torch.tensor([[1.0, 1], [50, 50]])
        model = KMeans(2, init=start, empty="keep", max_iter=4).fit(x)
        assert model.labels_.tolist() == [0, 0, 0]
        assert model.cluster_centers_[1].tolist() == [50, 50]
        assert model.history_[-1]["empty"] == 1

    @pytest.mark.parametrize("empty", ["split", "split_randomly"])
    @pytest.mark.parametrize("donor", ["uniform", "size", "largest"])
    def test_split_fills_it(self, donor, empty):
        x, _ = blobs(40, [[0.0, 5], [9, 5], [0, 9]])
        start = torch.tensor([[3.0, 6], [50, 50], [60, 60]])
        model = KMeans(3, init=start, donor=donor, empty=empty, max_iter=50, random_state=0).fit(x)
        assert model.history_[0]["empty"] == 2
        assert model.history_[-1]["empty"] == 0
        assert model.labels_.bincount(minlength=3).min() > 0

    def test_by_hand(self):
        c = torch.tensor([[2.0, 4], [0, 0], [8, 8]], dtype=torch.float64)
        split(c, np.array([6.0, 0, 4]), Empty(donor="largest", perturbation=0.5), np.random.default_rng(0))
        assert c.tolist() == [[1.0, 6.0], [3.0, 2.0], [8.0, 8.0]]

    def test_a_random_step_has_the_given_length_and_leaves_the_donor(self):
        steps = []
        for seed in range(200):
            c = torch.tensor([[3.0, 4], [0, 0]], dtype=torch.float64)
            split(c, np.array([6.0, 0]), Empty("split_randomly", perturbation=0.1), np.random.default_rng(seed))
            assert c[0].tolist() == [3, 4]
            steps.append(c[1] - c[0])
        torch.testing.assert_close(torch.stack(steps).norm(dim=1), torch.full((200,), 0.5, dtype=torch.float64))
        assert torch.stack(steps).mean(dim=0).norm() < 0.1, "no direction is preferred"

    def test_odds_of_the_donors(self):
        drawn = {"uniform": np.zeros(3), "size": np.zeros(3)}
        generator = np.random.default_rng(0)
        for donor, count in drawn.items():
            for _ in range(1000):
                c = torch.eye(4, dtype=torch.float64)[:, :3] + 1
                before = c.clone()
                split(c, np.array([1.0, 2, 4, 0]), Empty(donor=donor), generator)
                count += (c[:3] != before[:3]).any(dim=1).numpy()
        np.testing.assert_allclose(drawn["uniform"] / 1000, [1 / 3, 1 / 3, 1 / 3], atol=0.05)
        np.testing.assert_allclose(drawn["size"] / 1000, [0, 1 / 4, 3 / 4], atol=0.05)  # (size - 1) / (N - k)


class TestStages:
    def test_subsample_comes_first_and_everything_after(self):
        x = rows(900, 4)
        model = KMeans(6, subsample=200, subsample_iter=3, max_iter=2, random_state=0).fit(x)
        assert [h["stage"] for h in model.history_] == [0] * 4 + [1] * 3
        assert sum(h["moved"] for h in model.history_[:1]) == 200
        assert model.history_[4]["moved"] == 900
        labels, _, _ = lloyd(x, model.cluster_centers_, 0)
        assert (labels == model.labels_.numpy()).all()

    def test_points_per_centroid_limit_the_iterations_but_not_the_labels(self):
        x = rows(900, 4)
        model = KMeans(6, max_points_per_centroid=20, max_iter=4, random_state=0).fit(x)
        assert model.history_[0]["moved"] == 120
        assert len(model.labels_) == 900
        labels, _, inertia = lloyd(x, model.cluster_centers_, 0)
        assert (labels == model.labels_.numpy()).all()
        assert model.inertia_ == pytest.approx(inertia, rel=1e-5)

    def test_no_limit_by_default(self):
        assert KMeans(1, random_state=0).fit(rows(900, 2)).history_[0]["moved"] == 900


class TestApproximate:
    def test_inertia_is_nearly_the_exact_ones(self):
        for x in (rows(6000, 32), blobs(20, rows(300, 32, seed=5), spread=0.5)[0]):
            start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(2))[:600]]
            exact = KMeans(600, init=start, max_iter=10).fit(x)
            near = KMeans(600, init=start, max_iter=10, approximate=True).fit(x)
            assert exact.inertia_ <= near.inertia_ * 1.001
            assert near.inertia_ <= 1.02 * exact.inertia_

    @pytest.mark.parametrize("kernel", ["1", "0"])
    def test_as_wide_as_all_is_exact_and_narrow_is_never_worse_than_before(self, kernel, monkeypatch):
        monkeypatch.setenv("SELFCLUSTER_NATIVE", kernel)
        x, c = rows(700, 12), rows(90, 12, seed=1)
        squares = torch.cdist(x.double(), c.double()).square()
        assert torch.equal(Regions(c, width=90).nearest(x).labels, squares.argmin(dim=1))
        last = torch.randint(0, 90, (700,), generator=torch.Generator().manual_seed(2))
        found = Regions(c, width=5).nearest(x, last)
        mine = squares.gather(1, found.labels[:, None]).squeeze(1)
        torch.testing.assert_close(found.distances.double(), mine, rtol=1e-5, atol=1e-6)
        assert (mine <= squares.gather(1, last[:, None]).squeeze(1)).all()

    def test_centroids_near_the_mean_do_not_draw_all_rows_into_their_region(self):
        # by distance a row far out is nearer to the middle of everything than to any of many far directions
        far, near = 20 * rows(1500, 64), 0.1 * rows(60, 64, seed=1)
        c = torch.cat([far, near])
        x = c + rows(len(c), 64, seed=2)
        regions = Regions(c)
        squares = torch.cdist(x.double(), regions.middles.double())
        assert torch.bincount(squares.argmin(dim=1)).max() < len(x) / 10
        found = regions.nearest(x, torch.zeros(len(x), dtype=torch.int64)).labels
        assert (found[:1500] == torch.arange(1500)).float().mean() > 0.95

    def test_both_routes_are_as_near(self, monkeypatch):
        x, c = rows(3000, 12), rows(400, 12, seed=1)
        last = torch.randint(0, 400, (3000,), generator=torch.Generator().manual_seed(2))
        fast = Regions(c, width=40).nearest(x, last).distances.sum()
        monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
        assert float(fast) == pytest.approx(float(Regions(c, width=40).nearest(x, last).distances.sum()), rel=0.01)


class TestZeroRows:
    @pytest.mark.parametrize("init", ["random", "k-means++", "k-means||"])
    def test_no_cluster_starts_from_a_row_without_direction(self, init):
        x = torch.cat([torch.zeros(150, 8), rows(600, 8)])
        with pytest.warns(UserWarning, match="150 of 750 rows of X are all zero"):
            model = KMeans(20, init=init, spherical=True, max_iter=0, random_state=0).fit(x)
        assert (model.cluster_centers_.norm(dim=1) > 0.9).all()


class TestBadInput:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_non_finite_rows_are_named(self, value):
        x = rows(50, 3).numpy()
        x[[7, 31], 1] = value
        with pytest.raises(ValueError, match="2 of 50 rows: rows 7, 31"):
            KMeans(2).fit(x)
        with pytest.raises(ValueError, match="row 7"):
            KMeans(2).fit(torch.from_numpy(x[:20]))
        with pytest.raises(ValueError, match="row 7"):
            KMeans(2, random_state=0).fit(x[10:30]).predict(x[:20])

    def test_large_finite_values_are_not_refused(self):
        assert KMeans(1).fit(np.full((4, 2), 3e38, np.float32)).labels_.tolist() == [0] * 4

    def test_more_clusters_than_rows(self):
        with pytest.raises(ValueError, match="n_samples=5 is fewer than n_clusters=6"):
            KMeans(6).fit(rows(5, 2))

    @pytest.mark.parametrize("empty", ["split", "keep"])
    def test_more_clusters_than_distinct_rows(self, empty):
        x = torch.tensor([[1.0, 2], [3, 4], [-5, 6]]).repeat(10, 1)
        with pytest.warns(UserWarning, match="3 distinct rows, fewer than n_clusters=5"):
            model = KMeans(5, empty=empty, random_state=0).fit(x)
        assert model.labels_.unique().numel() <= 3

    def test_zero_rows_have_no_direction(self):
        x = rows(30, 4)
        x[[4, 9]] = 0
        with pytest.warns(UserWarning, match="2 of 30 rows of X are all zero and have no direction: rows 4, 9"):
            model = KMeans(3, spherical=True, random_state=0).fit(x)
        torch.testing.assert_close(model.cluster_centers_.norm(dim=1), torch.ones(3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            KMeans(3, random_state=0).fit(x)

    def test_settings_are_refused_with_their_values(self):
        x = rows(20, 3)
        for setting, value in [
            ("n_clusters", 0), ("init", "kmeans"), ("empty", "drop"), ("donor", "small"), ("max_iter", -1),
            ("max_points_per_centroid", 0), ("subsample", 2.5), ("init", np.zeros((2, 3))),
        ]:  # fmt: skip
            with pytest.raises(ValueError, match=setting):
                KMeans(**{"n_clusters": 3, setting: value}).fit(x)
        for weight in (-np.ones(20), np.full(20, np.nan), np.ones(19)):
            with pytest.raises(ValueError, match="sample_weight"):
                KMeans(3).fit(x, sample_weight=weight)
        with pytest.raises(ValueError, match="4 features"):
            KMeans(3).fit(x).predict(torch.zeros(2, 4))


POINTS = st.integers(1, 3).flatmap(
    lambda d: st.lists(st.lists(st.integers(-4, 4), min_size=d, max_size=d), min_size=2, max_size=30)
)
quick = settings(max_examples=40, deadline=None)


class TestProperties:
    @quick
    @given(points=POINTS, seed=st.integers(0, 9), spherical=st.booleans())
    def test_inertia_never_rises_and_counts_sum_to_n(self, points, seed, spherical):
        x = torch.tensor(points, dtype=torch.float64) + 5.5  # no row is zero
        k = min(4, len(x))
        model = quiet(KMeans(k, empty="keep", spherical=spherical, random_state=seed), x)
        inertia = [h["inertia"] for h in model.history_]
        assert all(b <= a * (1 + 1e-9) + 1e-9 for a, b in itertools.pairwise(inertia))
        assert model.labels_.bincount(minlength=k).sum() == len(x)
        assert 0 <= model.labels_.min() <= model.labels_.max() < k

    @quick
    @given(points=POINTS, seed=st.integers(0, 9))
    def test_equal_rows_share_a_label(self, points, seed):
        x = torch.tensor(points, dtype=torch.float32).repeat(2, 1)
        labels = quiet(KMeans(3, random_state=seed), x).labels_
        _, group = x.unique(dim=0, return_inverse=True)
        for g in range(int(group.max()) + 1):
            assert labels[group == g].unique().numel() == 1

    @quick
    @given(points=POINTS, seed=st.integers(0, 9))
    def test_permuted_rows_have_permuted_labels(self, points, seed):
        x = torch.tensor(points, dtype=torch.float64)
        start = x[: min(3, len(x))] + 0.25
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        options = {"n_clusters": len(start), "init": start, "empty": "keep"}
        plain, permuted = quiet(KMeans(**options), x), quiet(KMeans(**options), x[order])
        assert torch.equal(plain.labels_[order], permuted.labels_)

    @quick
    @given(points=POINTS, seed=st.integers(0, 9))
    def test_as_many_clusters_as_rows_leave_nothing(self, points, seed):
        x = torch.tensor(points, dtype=torch.float32).unique(dim=0)
        assert KMeans(len(x), random_state=seed).fit(x).inertia_ == 0

    @quick
    @given(points=POINTS, times=st.integers(2, 4))
    def test_an_integer_weight_is_that_many_rows(self, points, times):
        x = torch.tensor(points, dtype=torch.float64)
        start = x[:2] + 0.25
        weight = torch.ones(len(x))
        weight[0] = times
        repeated = torch.cat([x, x[:1].repeat(times - 1, 1)])
        one = quiet(KMeans(2, init=start, empty="keep"), x, weight)
        many = quiet(KMeans(2, init=start, empty="keep"), repeated)
        torch.testing.assert_close(one.cluster_centers_, many.cluster_centers_)


def quiet(model, x, weight=None):
    with warnings.catch_warnings():  # few distinct rows are the point
        warnings.filterwarnings("ignore", message=".*distinct row")
        return model.fit(x, sample_weight=weight)


def test_sums_keep_their_bits_in_one_large_cluster(monkeypatch):
    monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
    x = torch.full((100_000, 1), 0.1)
    sums = torch.zeros(1, 1, dtype=torch.float64)
    add_rows(sums, x, torch.zeros(100_000, dtype=torch.int64), None)
    assert sums.item() == pytest.approx(100_000 * float(x[0, 0]), rel=3e-6)


EXPECTED = dict.fromkeys(
    ("check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data"),
    "a random start depends on the number of rows; scikit-learn's own KMeans fails these two as well",
)


@pytest.mark.filterwarnings("ignore:the data have .* distinct rows?:UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_checks():
    results = check_estimator(KMeans(random_state=0, max_iter=10), expected_failed_checks=EXPECTED, on_fail=None)
    failed = {r["check_name"] for r in results if r["status"] in ("failed", "xfail")}
    assert failed <= set(EXPECTED)


def _rank(rank, world, folder):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
    out = {}
    for name, options, data in _jobs():
        own = distributed.share(len(data))
        weight = torch.arange(1.0, 1 + len(data))[own] if name == "weighted" else None
        model = KMeans(random_state=5, **options).fit(data[own], sample_weight=weight)
        labels = distributed.all_gather(model.labels_)
        out[name] = (model.cluster_centers_, labels, model.inertia_, model.history_)
    x = rows(20, 2)[distributed.share(20)].clone()
    if rank == world - 1:
        x[-1] = torch.nan
    try:  # every rank must say so, or the others would wait for ever
        KMeans(2).fit(x)
    except ValueError as error:
        out["error"] = str(error)
    everywhere = distributed.gather_objects((out["error"], {n: out[n][0] for n, _, _ in _jobs()}))
    for error, centers in everywhere:
        assert error == out["error"]
        assert all(torch.equal(centers[n], out[n][0]) for n in centers)
    if rank == 0:
        torch.save(out, f"{folder}/{world}.pt")
    dist.destroy_process_group()


def _jobs():
    x, _ = blobs(101, rows(12, 6, seed=8), spread=0.4)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    yield "random", {"n_clusters": 12, "max_iter": 8}, x
    yield "empty", {"n_clusters": 4, "init": torch.eye(4, 6) * 40, "max_iter": 8}, x
    yield "weighted", {"n_clusters": 12, "max_iter": 8}, x
    yield "plus", {"n_clusters": 12, "init": "k-means++", "spherical": True, "max_iter": 8}, x
    yield "parallel", {"n_clusters": 12, "init": "k-means||", "max_iter": 8}, x
    yield "stages", {"n_clusters": 12, "subsample": 300, "subsample_iter": 4, "max_iter": 3}, x
    yield "few", {"n_clusters": 12, "max_points_per_centroid": 30, "max_iter": 3}, x


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_with_one_process(world, tmp_path):
    torch.multiprocessing.spawn(_rank, (world, str(tmp_path)), nprocs=world)
    many = torch.load(tmp_path / f"{world}.pt", weights_only=False)
    for name, options, data in _jobs():
        weight = torch.arange(1.0, 1 + len(data)) if name == "weighted" else None
        one = KMeans(random_state=5, **options).fit(data, sample_weight=weight)
        centers, labels, inertia, history = many[name]
        torch.testing.assert_close(centers, one.cluster_centers_, rtol=1e-5, atol=1e-5, msg=name)
        assert torch.equal(labels, one.labels_), name
        assert inertia == pytest.approx(one.inertia_, rel=1e-5)
        assert [h["moved"] for h in history] == [h["moved"] for h in one.history_]
    assert many["error"] == "X holds NaN or infinity in 1 of 20 rows: row 19. Drop or repair them."


def test_the_kernel_and_torch_give_the_same_clusters(monkeypatch):
    if not native.available():
        pytest.skip("no compiled kernel here")
    x = rows(3000, 24)
    fast = KMeans(80, random_state=0, max_iter=8).fit(x)
    monkeypatch.setenv("SELFCLUSTER_NATIVE", "0")
    plain = KMeans(80, random_state=0, max_iter=8).fit(x)
    assert torch.equal(fast.labels_, plain.labels_)
    torch.testing.assert_close(fast.cluster_centers_, plain.cluster_centers_, rtol=1e-6, atol=1e-6)


def test_a_start_may_be_a_parameter():
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 4)).astype("f"))
    start = torch.nn.Parameter(rows[:3].clone())
    for x in (rows, rows.numpy()):
        found = KMeans(3, init=start).fit(x)
        assert np.array_equal(np.asarray(found.labels_), np.asarray(KMeans(3, init=rows[:3]).fit(x).labels_))
        assert not getattr(found.cluster_centers_, "requires_grad", False)
