"""Laws of the ways to deal examples: each has one client, the seed names the result, no client is too small; limits of skews."""

import numpy as np
import pandas as pd
import pytest

from fedjax_tx.data import (
    FederatedDataset,
    class_counts,
    describe,
    partition_by,
    partition_dirichlet,
    partition_features,
    partition_iid,
    partition_quantity,
    partition_shards,
)

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), [90, 10, 200, 1, 99, 100, 100, 150, 50, 197]))
SIZE, CLIENTS = LABELS.size, 23
FEATURES = np.random.default_rng(1).normal(size=(SIZE, 3)) + LABELS[:, None]
WAYS = {
    "iid": lambda seed: partition_iid(SIZE, CLIENTS, seed=seed),
    "dirichlet 0": lambda seed: partition_dirichlet(LABELS, CLIENTS, 0.0, seed=seed),
    "dirichlet 1e-300": lambda seed: partition_dirichlet(LABELS, CLIENTS, 1e-300, seed=seed),
    "dirichlet 0.5": lambda seed: partition_dirichlet(LABELS, CLIENTS, 0.5, seed=seed),
    "dirichlet 1e300": lambda seed: partition_dirichlet(LABELS, CLIENTS, 1e300, seed=seed),
    "dirichlet inf": lambda seed: partition_dirichlet(LABELS, CLIENTS, np.inf, seed=seed),
    "shards": lambda seed: partition_shards(LABELS, CLIENTS, 2, seed=seed),
    "quantity": lambda seed: partition_quantity(SIZE, CLIENTS, 0.3, seed=seed, min_size=4),
    "features": lambda seed: partition_features(FEATURES, CLIENTS, 0.8, seed=seed),
    "features of classes": lambda seed: partition_features(FEATURES, CLIENTS, 0.8, seed=seed, labels=LABELS),
}
EQUAL = [name for name in WAYS if name not in ("shards", "quantity")]


def holdings(clients, labels):
    """How many examples of each class each client has, [client, class]."""
    counts = np.zeros((clients.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (clients, labels), 1)
    return counts


def skew(clients, labels):
    return describe(FederatedDataset.from_columns({"y": labels}, clients)).labels.skew


@pytest.mark.parametrize("name", WAYS)
def test_every_example_has_one_client_and_every_client_an_example(name):
    clients = WAYS[name](0)
    assert clients.dtype == np.int32 and clients.shape == (SIZE,)
    np.testing.assert_array_equal(np.unique(clients), np.arange(CLIENTS))
    data = FederatedDataset.from_columns({"row": np.arange(SIZE)}, clients)
    np.testing.assert_array_equal(np.sort(data.columns["row"]), np.arange(SIZE))


@pytest.mark.parametrize("name", WAYS)
def test_the_seed_names_the_result_and_nothing_else_does(name):
    first = WAYS[name](3)
    np.random.seed(1)
    np.testing.assert_array_equal(first, WAYS[name](3))
    assert not np.array_equal(first, WAYS[name](4))


@pytest.mark.parametrize("name", EQUAL)
def test_sizes_differ_by_one(name):
    sizes = np.bincount(WAYS[name](1))
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("alpha", [0.0, 1e-300, 1e-6])
def test_with_small_alpha_a_client_has_one_class_where_sizes_allow_it(alpha):
    labels = np.repeat(np.arange(5), 40)
    held = holdings(partition_dirichlet(labels, 20, alpha, seed=2), labels)
    np.testing.assert_array_equal(np.sort(held.ravel())[-20:], np.full(20, 10))


def test_with_alpha_0_only_what_is_left_of_a_class_is_mixed():
    held = holdings(WAYS["dirichlet 0"](0), LABELS)
    # Each class leaves one client at most that has to go on with another.
    assert (held > 0).sum() <= CLIENTS + held.shape[1] - 1
    assert np.median(held.max(1) / held.sum(1)) == 1


@pytest.mark.parametrize("alpha", [1e300, np.inf])
def test_with_large_alpha_clients_have_the_shares_of_all(alpha):
    labels = np.repeat([0, 1, 2], [1000, 3000, 6000])
    held = holdings(partition_dirichlet(labels, 4, alpha, seed=0), labels)
    np.testing.assert_allclose(held / 2500, np.broadcast_to([0.1, 0.3, 0.6], held.shape), atol=4 * 0.5 / np.sqrt(2500))
    assert np.abs(holdings(partition_dirichlet(labels, 4, 10.0, seed=0), labels) / 2500 - [0.1, 0.3, 0.6]).max() > 0.05


def test_shares_vary_as_those_of_a_dirichlet_distribution_do():
    """While the pool is hardly touched: Var q = p (1 - p) / (alpha + 1), and n examples of it vary by a 1 / n of the rest."""
    labels, alpha, size = np.repeat([0, 1], [60_000, 140_000]), 4.0, 100
    share = holdings(partition_dirichlet(labels, 2000, alpha, seed=0), labels)[:200, 1] / size
    within = (1 - 1 / (alpha + 1)) / size
    expected = 0.3 * 0.7 * (1 / (alpha + 1) + within)
    assert share.mean() == pytest.approx(0.7, abs=4 * np.sqrt(expected / 200))
    assert share.var() == pytest.approx(expected, rel=0.4)
    assert share.var() != pytest.approx(0.3 * 0.7 / (alpha / 2 + 1), rel=0.4)


def test_one_knob_leads_from_iid_to_one_class():
    labels = np.repeat(np.arange(10), 60)
    skews = [skew(partition_dirichlet(labels, 20, alpha, seed=0), labels) for alpha in (np.inf, 100.0, 10.0, 1.0, 0.1, 0.0)]
    assert skews == sorted(skews)
    assert skews[0] == pytest.approx(skew(partition_iid(600, 20, seed=0), labels), abs=0.05)
    assert skews[-1] == pytest.approx(0.9)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_client_has_no_more_classes_than_shards(shards):
    held = holdings(partition_shards(LABELS, CLIENTS, shards, seed=5), LABELS)
    assert (held > 0).sum(1).max() == shards
    assert held.sum(1).min() >= shards


def test_balanced_classes_are_cut_into_equal_shards():
    labels = np.tile(np.arange(10), 60)
    np.testing.assert_array_equal(np.bincount(partition_shards(labels, 100, 2, seed=0)), np.full(100, 6))


def test_as_many_shards_as_examples_are_single_examples():
    np.testing.assert_array_equal(np.bincount(partition_shards([0, 0, 0, 1], 2, 2, seed=0)), [2, 2])


@pytest.mark.parametrize("alpha", [1e-300, 0.05, 1.0])
@pytest.mark.parametrize("min_size", [0, 1, 7, 20])
def test_no_client_is_smaller_than_the_minimum(alpha, min_size):
    sizes = np.bincount(partition_quantity(460, CLIENTS, alpha, seed=0, min_size=min_size), minlength=CLIENTS)
    assert sizes.sum() == 460 and sizes.min() >= min_size
    if min_size == 20:  # there is nothing left to be uneven about
        np.testing.assert_array_equal(sizes, np.full(CLIENTS, 20))
    elif alpha < 1:
        assert sizes.max() > 100


def test_quantity_tends_to_equal_sizes_and_keeps_classes_alike():
    clients = partition_quantity(SIZE, 10, 1e9, seed=0)
    assert np.ptp(np.bincount(clients)) <= 2
    labels = np.tile([0, 1], 5000)
    held = holdings(partition_quantity(10_000, 10, 0.5, seed=0), labels)
    assert abs(held[:, 0] - held[:, 1]).max() < 4 * np.sqrt(held.sum(1).max())


def test_sorted_features_are_cut_into_runs():
    feature = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(partition_features(feature, 4, seed=0), feature // 3)
    # the direction of several: everything is on the line (1, 2, 0)
    line = np.outer(feature, [1.0, 2.0, 0.0])
    np.testing.assert_array_equal(partition_features(line, 4, seed=0), feature // 3)
    wide = np.outer(feature, np.arange(30.0))  # more entries than examples
    np.testing.assert_array_equal(partition_features(wide, 4, seed=0), feature // 3)


def test_within_classes_features_differ_and_classes_do_not():
    feature = np.arange(100) + 1000 * np.tile([0, 1, 2, 3], 25)  # a class tells most of the feature
    labels = np.tile([0, 1, 2, 3], 25)
    clients = partition_features(feature, 5, seed=0, labels=labels)
    np.testing.assert_array_equal(holdings(clients, labels), np.full((5, 4), 5))
    np.testing.assert_array_equal(clients, np.arange(100) // 20)
    assert holdings(partition_features(feature, 5, seed=0), labels).max() == 20


def test_strength_is_a_correlation():
    feature = np.random.default_rng(0).normal(size=20_000)
    for strength in (0.0, 0.5, 1.0):
        place = partition_features(feature, 2000, strength, seed=0)
        normal = np.sort(feature)[np.argsort(np.argsort(place, kind="stable"))]  # ranks as normal scores
        assert np.corrcoef(normal, feature)[0, 1] == pytest.approx(strength, abs=0.03)


def test_equal_features_are_no_fault():
    np.testing.assert_array_equal(np.bincount(partition_features(np.ones((6, 2)), 3, seed=0)), [2, 2, 2])


@pytest.mark.parametrize("make", [np.array, pd.Series, pd.Categorical, lambda names: np.array(names, object)])
def test_labels_may_be_strings_of_any_kind(make):
    names = ["dog", "cat", "cat", "dog", "emu"]
    want = partition_dirichlet([1, 0, 0, 1, 2], 2, 0.5, seed=0)
    np.testing.assert_array_equal(partition_dirichlet(make(names), 2, 0.5, seed=0), want)
    assert partition_by(make(names)).tolist() == [1, 0, 0, 1, 2]


def test_labels_may_be_booleans():
    truth = np.arange(8) % 3 == 0
    np.testing.assert_array_equal(partition_dirichlet(truth, 2, 0.5, seed=0), partition_dirichlet(1 * truth, 2, 0.5, seed=0))
    data = FederatedDataset.from_columns({"y": truth}, np.arange(8) % 2)
    assert class_counts(data, 2).tolist() == [[2, 2], [3, 1]]


def test_a_label_that_is_no_string_is_named():
    with pytest.raises(TypeError, match=r"^expected labels to be of strings, got None \(NoneType\) in entry 1$"):
        partition_dirichlet(["a", None], 1, 0.5, seed=0)


def test_keys_are_clients_in_their_order():
    keys = np.array(["b", "a", "c", "a"])
    np.testing.assert_array_equal(partition_by(keys), [1, 0, 2, 0])
    np.testing.assert_array_equal(partition_by(np.array([7, -1, 7])), [1, 0, 1])


def test_small_keys_share_a_client():
    keys = np.repeat(np.arange(5), [1, 5, 2, 9, 1])  # 0 and 4 make 2; with 2 that makes 4; with 1 that makes 9
    np.testing.assert_array_equal(np.bincount(partition_by(keys, min_size=2)), [2, 5, 2, 9])
    np.testing.assert_array_equal(np.bincount(partition_by(keys, min_size=4)), [4, 5, 9])
    np.testing.assert_array_equal(np.bincount(partition_by(keys, min_size=6)), [9, 9])
    np.testing.assert_array_equal(np.bincount(partition_by(keys, min_size=18)), [18])
    clients = partition_by(keys, min_size=4)
    assert all(len(set(clients[keys == key])) == 1 for key in range(5))
