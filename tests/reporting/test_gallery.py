"""Who is on a cluster's card."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcluster.reporting.gallery import FARTHEST, NEAREST, RANDOM, build_gallery


def rows(members):
    return [m.row for m in members]


def test_by_hand():
    cluster = np.array([4, 4, 4, 1, 1, -1])
    distance = np.array([3.0, 1.0, 2.0, 5.0, 7.0, 0.0], np.float32)
    gallery = build_gallery(cluster, distance)
    big, small = gallery.cards
    assert (big.number, big.size, big.spread, big.share) == (4, 3, 2.0, 0.6)
    assert rows(big.nearest) == [1, 2, 0]
    assert (small.number, small.size, small.spread) == (1, 2, 6.0)
    assert (gallery.without, gallery.empty, gallery.repeated) == (1, 3, 0)
    assert gallery.purity is None
    assert big.label is None


def test_a_large_cluster_shows_its_ends_and_its_middle():
    distance = np.random.default_rng(0).permutation(100).astype(np.float32)
    (card,) = build_gallery(np.zeros(100, int), distance).cards
    assert distance[rows(card.nearest)].tolist() == list(range(NEAREST))
    assert distance[rows(card.farthest)].tolist() == [99, 98, 97][:FARTHEST]
    assert len(card.random) == RANDOM
    assert len(set(rows(card.members))) == NEAREST + RANDOM + FARTHEST
    assert build_gallery(np.zeros(100, int), distance).cards == [card]


def test_one_image_repeated_is_shown_once_and_counted():
    distance = np.concatenate([np.full(90, 0.5), np.arange(1, 11)]).astype(np.float32)
    copies = np.concatenate([np.zeros(90, int), np.arange(1, 11)])
    (card,) = build_gallery(np.zeros(100, int), distance, copies=copies).cards
    assert card.nearest[0].times == 90
    assert [m.times for m in card.members[1:]] == [1] * (len(card.members) - 1)
    assert card.repeated == 89


def test_copies_in_different_clusters_are_not_repeats_of_one_cluster():
    gallery = build_gallery(np.array([0, 1]), np.zeros(2, np.float32), copies=np.array([9, 9]))
    assert gallery.repeated == 0


def test_purity_by_hand():
    cluster, labels = np.array([0, 0, 0, 1, 1]), np.array([2, 2, 0, 1, -1])
    gallery = build_gallery(cluster, np.zeros(5, np.float32), labels=labels, class_names=["hat", "shoe", "<b>"])
    assert [(c.label, c.purity) for c in gallery.cards] == [("<b>", 2 / 3), ("shoe", 1.0)]
    assert gallery.purity == 3 / 4
    unknown = build_gallery(cluster, np.zeros(5, np.float32), labels=np.full(5, -1))
    assert unknown.purity is None


def test_every_order_has_pictures_at_its_head():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 50, 200)
    cluster = np.repeat(np.arange(200), sizes)
    gallery = build_gallery(cluster, rng.random(len(cluster)).astype(np.float32), cards=20)
    assert (len(gallery.cards), len(gallery.rows)) == (20, 180)
    shown = {c.number for c in gallery.cards}
    for by, head in (("size", 5), ("spread", 3)):
        first = sorted(gallery.clusters, key=lambda c: getattr(c, by))[:head]
        assert {getattr(c, by) for c in first} <= {getattr(c, by) for c in gallery.cards}
    assert {c.number for c in sorted(gallery.clusters, key=lambda c: (-c.size, c.number))[:10]} <= shown
    assert not any(c.members for c in gallery.rows)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 5), st.one_of(st.floats(0, 1e6, width=32), st.just(float("nan")))), max_size=60)
)
def test_nobody_is_lost_and_nobody_is_shown_twice(images):
    cluster = np.array([c for c, _ in images], np.int64)
    gallery = build_gallery(cluster, np.array([d for _, d in images], np.float32), cards=4)
    assert sum(c.size for c in gallery.clusters) + gallery.without == len(images)
    for card in gallery.cards:
        members = rows(card.members)
        assert len(members) == len(set(members)) == min(card.size, NEAREST + FARTHEST + RANDOM)
        assert (cluster[members] == card.number).all()


def test_stability_and_metadata_by_hand_and_their_heads_have_pictures():
    cluster = np.repeat(np.arange(12), 3)
    column = np.full(36, -1)
    column[:9] = [0, 0, 1, 1, 1, 1, 0, 1, 2]  # shares of clusters 0, 1, 2: 2/3, 1, 1/3; no value in others
    gallery = build_gallery(
        cluster,
        np.repeat(np.arange(12), 3).astype(np.float32),  # the first is the tightest
        stability={11: 0.9, 10: 0.4},
        metadata={"day": (column, ["mon", "tue", "wed"])},
        cards=8,
    )
    by_number = {c.number: c for c in gallery.clusters}
    assert [by_number[n].stability for n in (9, 10, 11)] == [None, 0.4, 0.9]
    assert [by_number[n].values for n in (0, 1, 3)] == [(("mon", 2 / 3),), (("tue", 1.0),), (None,)]
    assert gallery.columns == ("day",)
    assert gallery.is_stability_known
    assert 11 in {c.number for c in gallery.cards}
    assert not build_gallery(cluster, np.zeros(36, np.float32)).is_stability_known
