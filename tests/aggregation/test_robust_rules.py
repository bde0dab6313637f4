"""Robust rules by hand, against NumPy, and what they say of rounds with too few clients."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx import aggregation as agg
from fedjax_tx.aggregation.stacked import sort_coordinates, squared_distances


def run(aggregator, rows, weights=None, state=None):
    weights = np.ones(len(rows)) if weights is None else weights
    update, _, info = agg.aggregate(aggregator, {"w": jnp.asarray(rows, jnp.float32)}, weights, state)
    return np.asarray(update["w"]), info


def test_coordinates_are_sorted_as_numpy_sorts_them_for_every_number_of_clients():
    for size in (1, 3, 8, 13):
        rows = np.random.default_rng(size).standard_normal((size, 40)).astype(np.float32)
        np.testing.assert_array_equal(sort_coordinates(jnp.asarray(rows), jnp.ones(size, bool)), np.sort(rows, axis=0))
    absent = np.array([True, False, True, True, False, True, True, True, False, True, True, True, True])
    ranked = sort_coordinates(jnp.asarray(rows), jnp.asarray(absent))
    np.testing.assert_array_equal(ranked[:10], np.sort(rows[absent], axis=0))
    assert np.isinf(ranked[10:]).all()


def test_distances_between_rows_that_are_near_each_other_and_far_from_0_are_those_of_numpy():
    # Their squares are 1e6 of what the distances are, as much as float32 can tell apart.
    rows = 1000 + np.random.default_rng(0).standard_normal((7, 20)).astype(np.float32)
    rows[3] = 1e9
    want = np.square(rows[:, None].astype(np.float64) - rows[None]).sum(-1)
    have = squared_distances({"w": jnp.asarray(rows)}, jnp.ones(7, bool))
    np.testing.assert_allclose(have, want, rtol=1e-4)


def test_the_trimmed_mean_by_hand():
    rows = [[1.0, 10.0], [2.0, -50.0], [6.0, 8.0], [-100.0, 9.0], [100.0, 0.0]]
    # A fifth of 5 is 1 at either end: (1 + 2 + 6) / 3 and (0 + 8 + 9) / 3.
    np.testing.assert_allclose(run(agg.trimmed_mean(0.2), rows)[0], [3.0, 17 / 3], rtol=1e-6)
    # Of the first 4, 0.2 * 4 is rounded down to none.
    np.testing.assert_allclose(run(agg.trimmed_mean(0.2), rows, [1, 9, 1, 1, 0])[0], [-91 / 4, -23 / 4], rtol=1e-6)
    np.testing.assert_allclose(run(agg.trimmed_mean(0.25), rows, [1, 9, 1, 1, 0])[0], [1.5, 8.5], rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_a_fraction_that_is_a_whole_number_of_clients_trims_that_many(fraction):
    rows = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)
    trimmed = round(10 * fraction)
    want = np.sort(rows, axis=0)[trimmed : 10 - trimmed].mean(0)
    np.testing.assert_allclose(run(agg.trimmed_mean(fraction), rows)[0], want, rtol=1e-5, atol=1e-6)


def test_multi_krum_by_hand():
    # n = 5, f = 1: the scores of 0, 1, 3, 4.5, 100 are 10, 5, 6.25, 14.5 and far (as for Krum): the best three are 0, 1 and 3.
    rows = [[0.0], [1.0], [3.0], [4.5], [100.0]]
    np.testing.assert_allclose(run(agg.multi_krum(1, 3), rows)[0], [4 / 3], rtol=1e-6)
    np.testing.assert_allclose(run(agg.multi_krum(1, 1), rows)[0], run(agg.krum(1), rows)[0])
    # Without the last client 4 - f = 3 are taken at most; one neighbour counts: 1, 1, 2.25, 2.25.
    result, info = run(agg.multi_krum(1, 4), rows, [1, 1, 1, 1, 0])
    np.testing.assert_allclose(result, [4 / 3], rtol=1e-6)
    assert info["krum_too_few"] and not run(agg.multi_krum(1, 3), rows)[1]["krum_too_few"]


def test_the_smoothed_weiszfeld_iterations_by_hand():
    # From the medians (0, 0), at distances 5, 1, 3, 4 and 0.5: each counts by their inverse, the last as if it were 2 away.
    rows = [[3.0, 4.0], [-1.0, 0.0], [0.0, -3.0], [4.0, 0.0], [-0.5, 0.0]]
    weights = np.array([1 / 5, 1 / 2, 1 / 3, 1 / 4, 1 / 2])
    want = (weights[:, None] * rows).sum(0) / weights.sum()
    np.testing.assert_allclose(run(agg.geometric_median(num_iterations=1, smoothing=2.0), rows)[0], want, rtol=1e-5)


def test_the_geometric_median_minimises_the_summed_distance():
    rows = np.random.default_rng(1).standard_normal((7, 3))
    center, _ = run(agg.geometric_median(num_iterations=60), rows)
    # Where it is least, the unit vectors towards the clients sum to 0.
    away = rows - center
    np.testing.assert_allclose((away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0), 0, atol=1e-3)


def test_centred_clipping_by_hand_over_two_rounds_and_iterations():
    rows = {"w": jnp.array([[3.0, 4.0], [0.0, 1.0]])}
    rule = agg.centered_clip(2.5)
    # From 0 the first is clipped from 5 to 2.5: ((1.5, 2) + (0, 1)) / 2. From there the
    # first is (2.25, 2.5) away, clipped again, and the second (-0.75, -0.5).
    first, state, _ = agg.aggregate(rule, rows, jnp.ones(2))
    second, state, _ = agg.aggregate(rule, rows, jnp.ones(2), state)
    np.testing.assert_allclose(first["w"], [0.75, 1.5], rtol=1e-6)
    np.testing.assert_allclose(
        second["w"],
        [0.75 + (2.25 * 2.5 / np.hypot(2.25, 2.5) - 0.75) / 2, 1.5 + (2.5 * 2.5 / np.hypot(2.25, 2.5) - 0.5) / 2],
        rtol=1e-6,
    )
    both, _, _ = agg.aggregate(agg.centered_clip(2.5, num_iterations=2), rows, jnp.ones(2))
    np.testing.assert_allclose(both["w"], second["w"], rtol=1e-6)
    # Nobody comes: nothing is agreed on, and what was before is kept.
    nothing, kept, _ = agg.aggregate(rule, rows, jnp.zeros(2), state)
    np.testing.assert_array_equal(nothing["w"], [0, 0])
    np.testing.assert_array_equal(kept["w"], state["w"])


def bulyan_by_hand(rows, num_byzantine):
    """Krum again and again on what is left (two neighbours at least), then the values nearest to each median; in float64."""
    left, taken = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * num_byzantine):
        own = rows[left]
        ranked = np.sort(np.square(own[:, None] - own[None]).sum(-1), axis=1)
        best = left[int(np.argmin(ranked[:, 1 : 1 + max(len(left) - num_byzantine - 2, 2)].sum(1)))]
        taken.append(best)
        left.remove(best)
    chosen = rows[taken]
    order = np.argsort(np.abs(chosen - np.median(chosen, axis=0)), axis=0)[: len(taken) - 2 * num_byzantine]
    return np.take_along_axis(chosen, order, axis=0).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("num_byzantine", [0, 1, 2])
def test_bulyan_is_krum_again_and_again_and_then_a_mean_around_the_median(num_byzantine):
    rows = np.random.default_rng(5).standard_normal((11, 6))
    rows[:num_byzantine] *= 50
    result, info = run(agg.bulyan(num_byzantine), rows)
    np.testing.assert_allclose(result, bulyan_by_hand(rows, num_byzantine), rtol=1e-4, atol=1e-5)
    assert not info["bulyan_too_few"]


def test_bulyan_by_hand():
    # n = 7, f = 1: of 0, 1, 2, 4, 6, 11, 100 Krum takes 2 (its 4 nearest: 1 + 4 + 4 + 16 = 25), then 4 (of 3: 4 + 9 + 16), 1 (of
    # 2: 1 + 25), 6 (25 + 36) and 11 (121 + 89^2). Their median is 4, and 2, 4 and 6 are the three nearest to it.
    rows = [[100.0], [4.0], [0.0], [2.0], [11.0], [6.0], [1.0]]
    np.testing.assert_allclose(run(agg.bulyan(1), rows)[0], [4.0], rtol=1e-6)
    assert run(agg.bulyan(1), rows, [1, 1, 1, 1, 1, 1, 0])[1]["bulyan_too_few"]


def test_nearest_neighbour_mixing_by_hand_before_any_rule_and_between_stages():
    # Of 0, 1, 2 and 10 the three nearest to the first three are these, with mean 1; to 10 they are 10, 2 and 1.
    rows, weights = [[0.0], [1.0], [2.0], [10.0]], [1, 2, 1, 1]
    mixing = agg.nearest_neighbor_mixing(1)
    np.testing.assert_allclose(run(agg.chain(mixing, agg.median()), rows, weights)[0], [1.0], rtol=1e-6)
    np.testing.assert_allclose(run(agg.chain(mixing, agg.mean()), rows, weights)[0], [(4 + 13 / 3) / 5], rtol=1e-6)
    # Clipped to 4 before: 10 is 4, and 3 nearest to it are 4, 2 and 1. Clipped behind: the mixture is cut from 13/3 to 4.
    clip = agg.clip_norm(4.0)
    np.testing.assert_allclose(run(agg.chain(clip, mixing, agg.mean()), rows)[0], [(3 + 7 / 3) / 4], rtol=1e-6)
    np.testing.assert_allclose(run(agg.chain(mixing, clip, agg.mean()), rows)[0], [(3 + 4) / 4], rtol=1e-6)
    assert not run(agg.chain(mixing, agg.mean()), rows)[1]["mixing_too_few"]
    assert run(agg.chain(mixing, agg.mean()), rows, [1, 0, 0, 1])[1]["mixing_too_few"]


NOISE = agg.gaussian_noise(1.0)
REFUSED = {
    "mixing": (
        lambda: agg.chain(agg.nearest_neighbor_mixing(3), agg.mean()),
        r"num_byzantine at most 2 for 6 clients a round \(n > 2f\), got 3",
    ),
    "mixing behind the mean": (
        lambda: agg.chain(agg.mean(), agg.nearest_neighbor_mixing(1)),
        r"nearest_neighbor_mixing\(1\) before a stage that reduces",
    ),
    "mixing behind sums": (
        lambda: agg.chain(agg.nearest_neighbor_mixing(1), agg.integer_mean(1.0, 0.1, 10)),
        r"message for nearest_neighbor_mixing\(1\), but chain\(integer_mean\(.*\)\) shows the server only sums",
    ),
    "memory behind mixing": (
        lambda: agg.chain(agg.nearest_neighbor_mixing(1), agg.top_k(0.5), agg.mean()),
        r"behind nearest_neighbor_mixing\(1\), .* to remember nothing of a client, got chain\(top_k\(0.5\), mean\(\)\)",
    ),
    "noise behind mixing": (
        lambda: agg.chain(agg.nearest_neighbor_mixing(1), agg.clip_norm(1.0), agg.fixed_mean(10), agg.gaussian_noise(1.0)),
        r"expected no noise behind nearest_neighbor_mixing\(1\), .*got chain\(clip_norm\(1.0\), .*gaussian_noise\(1.0\)\)",
    ),
    "noise in a chain behind mixing that clips before and behind": (
        lambda: agg.chain(agg.clip_norm(1.0), agg.nearest_neighbor_mixing(1), agg.adaptive_clip(agg.fixed_mean(10), NOISE)),
        r"expected no noise behind nearest_neighbor_mixing\(1\), .*got chain\(adaptive_clip\(",
    ),
    "noise of each client behind mixing": (
        lambda: agg.chain(agg.nearest_neighbor_mixing(1), agg.clip_norm(1.0), agg.local_noise(1.0), agg.mean()),
        r"expected no noise behind nearest_neighbor_mixing\(1\), .*got chain\(clip_norm\(1.0\), local_noise\(1.0\), mean\(\)\)",
    ),
    "multi_krum": (lambda: agg.multi_krum(2, 1), r"num_byzantine at most 1 for 6 clients a round \(n >= 2f \+ 3\), got 2"),
    "multi_krum of all": (lambda: agg.multi_krum(1, 6), r"num_selected at most 5 for 6 clients a round \(m <= n - f\), got 6"),
    "bulyan": (lambda: agg.bulyan(1), r"num_byzantine at most 0 for 6 clients a round \(n >= 4f \+ 3\), got 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_that_cannot_work_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        run(make(), np.ones((6, 1)))


RULES = {
    "median": agg.median(),
    "trimmed_mean": agg.trimmed_mean(0.2),
    "krum": agg.krum(1),
    "multi_krum": agg.multi_krum(1, 3),
    "bulyan": agg.bulyan(1),
    "geometric_median": agg.geometric_median(),
    "centered_clip": agg.centered_clip(1.0),
}
ALWAYS = ("median", "krum", "centered_clip")


@pytest.mark.parametrize("name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in RULES])
def test_a_row_that_is_not_finite_takes_no_part_and_nobody_gives_0(name):
    rows = np.random.default_rng(2).standard_normal((8, 2))
    broken = rows.copy()
    broken[3, 1], broken[5, 0] = np.nan, -np.inf
    without = [1, 1, 1, 0, 1, 0, 1, 1]
    np.testing.assert_allclose(run(RULES[name], broken)[0], run(RULES[name], rows, without)[0], rtol=1e-5)
    np.testing.assert_array_equal(run(RULES[name], rows, np.zeros(8))[0], [0, 0])
