"""Each stage by hand, its statistics, and what a chain refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chances import has_scale, is_gaussian

from fedjax_tx import aggregation as agg


def run(aggregator, rows, weights=None, key=0):
    weights = np.ones(len(rows)) if weights is None else weights
    update, _, info = agg.aggregate(aggregator, {"w": jnp.asarray(rows, jnp.float32)}, weights, key=jax.random.key(key))
    return np.asarray(update["w"]), info


def test_clipping_by_hand():
    # Norms 10 and 1: the first is halved to (3, 4), the second stays; their mean is (1.5, 2.5).
    result, _ = run(agg.chain(agg.clip_norm(5.0), agg.mean()), [[6.0, 8.0], [0.0, 1.0]])
    np.testing.assert_allclose(result, [1.5, 2.5], rtol=1e-6)


def test_clipping_takes_the_norm_over_all_leaves():
    stacked = {"a": jnp.array([[6.0]]), "b": jnp.array([[8.0]])}
    update, _, _ = agg.aggregate(agg.chain(agg.clip_norm(5.0), agg.mean()), stacked, [1.0])
    np.testing.assert_allclose([update["a"][0], update["b"][0]], [3.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "stage", [agg.clip_norm(1.0), agg.clip_layers({"w": 0.6, "b": 0.8}), None], ids=["all", "layers", "adaptive"]
)
def test_a_clipped_update_of_few_bits_is_not_longer_than_the_bound(stage, dtype):
    chain = agg.adaptive_clip(agg.fixed_mean(1), first_norm=50.0) if stage is None else agg.chain(stage, agg.fixed_mean(1))
    keys = jax.random.key(0), jax.random.key(1)
    for size in (1000, 1100, 1500, 1999):  # some are clipped, some are scaled only, of some each number is rounded up
        update = {"w": jnp.ones(size, dtype), "b": jnp.full(size, 0.7, dtype)}
        message, _, _ = chain.encode(update, jnp.float32(1), chain.init(update), chain.init_client(update), *keys)
        norm = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(message)))
        assert 0.7 < norm <= 1 + 1e-6


def test_the_share_that_is_sent_is_rounded_up_as_it_is_written():
    # 0.07 * 100 and 0.55 * 100 are a little more than 7 and 55 in binary numbers.
    counts = [agg.compression.count_of(*given) for given in ((0.07, 100), (0.55, 100), (0.071, 100))]
    assert counts == [7, 55, 8]
    assert [agg.compression.count_of(*given) for given in ((1e-9, 100), (1, 3), (0.5, 3))] == [1, 3, 2]


def test_an_infinite_update_is_clipped_to_nothing():
    result, _ = run(agg.chain(agg.clip_norm(5.0), agg.mean()), [[np.inf, 1.0], [2.0, 2.0]])
    np.testing.assert_allclose(result, [1.0, 1.0])


def test_an_update_beyond_a_norm_is_zeroed_over_all_leaves_and_one_at_it_stays():
    stacked = {"a": jnp.array([[3.0], [0.0], [jnp.nan]]), "b": jnp.array([[4.0], [5.1], [1.0]])}
    update, _, _ = agg.aggregate(agg.chain(agg.zero_norm(5.0), agg.mean()), stacked, [1.0, 1.0, 2.0])
    np.testing.assert_allclose([update["a"][0], update["b"][0]], [3 / 4, 4 / 4])


def test_layers_are_clipped_each_to_its_norm_and_as_groups():
    stacked = {"a": [jnp.array([[3.0]]), jnp.array([[4.0]])], "b": jnp.array([[0.5, 9.0]]), "c": jnp.array([[jnp.nan]])}
    # The pair in a, of norm 5, is halved; b, of norm > 9, keeps its direction; c is not finite, and harms itself only.
    by_pattern = agg.clip_layers({"a/*": 2.5, "b": np.hypot(0.5, 9.0) / 3, "*": 1.0})
    update, _, _ = agg.aggregate(agg.chain(by_pattern, agg.mean()), stacked, [1.0])
    have = [*update["a"][0], *update["a"][1], *update["b"], *update["c"]]
    np.testing.assert_allclose(have, [1.5, 2.0, 0.5 / 3, 3.0, 0.0], rtol=1e-6)
    # A number is that of all four leaves together: 2 / sqrt(4) for each.
    update, _, _ = agg.aggregate(agg.chain(agg.clip_layers(2.0), agg.mean()), stacked, [1.0])
    np.testing.assert_allclose([update["a"][0][0], update["a"][1][0], np.linalg.norm(update["b"])], [1.0, 1.0, 1.0], rtol=1e-6)


def test_noise_behind_layers_is_that_of_the_root_of_the_sum_of_their_squared_norms():
    for max_norm, together in ({"w": 3.0, "b": 4.0}, 5.0), (5.0, 5.0):
        private = agg.chain(agg.clip_layers(max_norm), agg.fixed_mean(2), agg.gaussian_noise(0.5))
        _, _, info = agg.aggregate(private, {"w": jnp.zeros((2, 3)), "b": jnp.zeros((2, 1))}, jnp.ones(2))
        np.testing.assert_allclose(info["noise_stddev"], 0.5 * together / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("max_norm", "message"),
    [
        ({"w": 1.0}, r"expected max_norm to have a pattern that 'b' matches, got \['w'\]"),
        ({"*": 1.0, "w": 1.0}, r"expected a pattern of max_norm to be the first that one of \['b', 'w'\] matches, got 'w'"),
    ],
)
def test_layers_that_fit_no_update_are_refused_by_name(max_norm, message):
    with pytest.raises(ValueError, match=message):
        agg.aggregate(agg.chain(agg.clip_layers(max_norm), agg.mean()), {"w": jnp.ones((1, 2)), "b": jnp.ones((1, 2))}, [1.0])


def test_a_fixed_mean_of_weights_bounds_them_and_what_one_client_can_change():
    # Weights 2, 3 (of 7) and 0: (2 * 1 + 3 * 4) / 10.
    weighted = agg.fixed_mean(10, max_weight=3)
    np.testing.assert_allclose(run(weighted, [[1.0], [4.0], [9.0]], [2.0, 7.0, 0.0])[0], [1.4], rtol=1e-6)
    # One client of the greatest weight and norm changes the mean by 2 * 3 / 10: that is what noise of multiplier 1 stands for.
    private = agg.chain(agg.clip_norm(2.0), weighted, agg.gaussian_noise(1.0))
    np.testing.assert_allclose(run(private, [[1.0]])[1]["noise_stddev"], 0.6, rtol=1e-6)


def test_a_fixed_mean_divides_by_its_denominator_whoever_came():
    np.testing.assert_allclose(run(agg.fixed_mean(10), [[1.0], [4.0]], [1.0, 7.0])[0], [0.5])
    np.testing.assert_allclose(run(agg.fixed_mean(10), [[1.0], [4.0]], [0.0, 7.0])[0], [0.4])


def test_median_by_hand_for_odd_and_even_numbers():
    np.testing.assert_allclose(run(agg.median(), [[1.0, 9.0], [2.0, 7.0], [50.0, 8.0]])[0], [2.0, 8.0])
    np.testing.assert_allclose(run(agg.median(), [[1.0], [2.0], [4.0], [50.0]])[0], [3.0])
    np.testing.assert_allclose(run(agg.median(), [[1.0], [2.0], [4.0], [50.0]], [1, 1, 1, 0])[0], [2.0])


def test_krum_by_hand():
    # n = 5, f = 1: the 2 nearest neighbours count. Points 0, 1, 3, 4.5, 100 on a line:
    # 0: 1 + 9 = 10;  1: 1 + 4 = 5;  3: 2.25 + 4 = 6.25;  4.5: 2.25 + 12.25 = 14.5;  100: far.  So the second.
    result, info = run(agg.krum(1), [[0.0], [1.0], [3.0], [4.5], [100.0]])
    assert result == 1.0 and info["krum_chosen"] == 1 and not info["krum_too_few"]


def test_krum_says_when_a_round_has_too_few_clients():
    _, info = run(agg.krum(1), [[0.0], [1.0], [3.0], [4.5], [100.0]], [1, 1, 1, 1, 0])
    assert info["krum_too_few"]
    with pytest.raises(ValueError, match=r"num_byzantine at most 1 for 5 clients a round \(n >= 2f \+ 3\), got 2"):
        run(agg.krum(2), np.ones((5, 1)))


def test_krum_is_not_moved_by_an_attacker_of_any_size_but_the_mean_is():
    honest = np.random.default_rng(0).standard_normal((6, 4))
    attacked = np.concatenate([honest, np.full((1, 4), 1e6)])
    assert np.abs(run(agg.krum(1), attacked)[0]).max() <= np.abs(honest).max()
    assert np.abs(run(agg.mean(), attacked)[0]).max() > 1e5


def test_top_k_keeps_what_it_did_not_send_for_the_next_round():
    aggregator = agg.chain(agg.top_k(0.5), agg.mean())
    update = {"w": jnp.array([4.0, 1.0, -3.0, 2.0])}
    shared, memory = aggregator.init(update), aggregator.init_client(update)
    key = jax.random.key(0)
    sent = []
    for _ in range(2):
        message, _, memory = aggregator.encode(update, jnp.float32(1), shared, memory, key, key)
        sent.append(aggregator.receive(message, shared)["w"])
    # First 4 and -3 go; 1 and 2 stay behind. Then u = (4, 2, -3, 4): both 4s go; 2 and -3 stay.
    np.testing.assert_allclose(sent[0], [4, 0, -3, 0])
    np.testing.assert_allclose(sent[1], [4, 0, 0, 4])
    np.testing.assert_allclose(memory[0], [0, 2, -3, 0])


def test_top_k_loses_nothing_over_time():
    aggregator = agg.chain(agg.top_k(0.1), agg.mean())
    updates = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    shared, memory = aggregator.init({"w": updates[0]}), aggregator.init_client({"w": updates[0]})
    key, total = jax.random.key(0), np.zeros(20, np.float32)
    for update in updates:
        message, _, memory = aggregator.encode({"w": jnp.asarray(update)}, jnp.float32(1), shared, memory, key, key)
        total += np.asarray(aggregator.receive(message, shared)["w"])
    np.testing.assert_allclose(total + np.asarray(memory[0]), updates.sum(0), rtol=1e-4, atol=1e-4)


def test_a_client_that_takes_no_part_keeps_what_it_remembers():
    aggregator = agg.chain(agg.top_k(0.5), agg.mean())
    update = {"w": jnp.array([4.0, 1.0])}
    shared, memory, key = aggregator.init(update), (jnp.array([7.0, 8.0]), ()), jax.random.key(0)
    _, _, kept = aggregator.encode(update, jnp.float32(0), shared, memory, key, key)
    np.testing.assert_array_equal(kept[0], [7.0, 8.0])


def test_drive_sends_one_bit_a_coordinate():
    aggregator = agg.chain(agg.drive(), agg.mean())
    update = {"w": jnp.ones(1024)}
    key = jax.random.key(0)
    message, _, _ = aggregator.encode(update, jnp.float32(1), aggregator.init(update), ((), ()), key, key)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(message)) == 1024 // 8 + 4 + 8


@pytest.mark.slow
def test_drive_is_unbiased_and_errs_as_the_paper_says():
    # Theorem of DRIVE: the unbiased scale errs by (pi/2 - 1) ||x||^2 in expectation, for large dimensions; half or twice as
    # much would be another scheme.
    vector = np.random.default_rng(0).lognormal(size=512).astype(np.float32)
    rows = np.broadcast_to(vector, (400, 512))
    aggregator = agg.drive()
    shared = aggregator.init({"w": jnp.asarray(vector)})

    def one(key):
        message, _, _ = aggregator.encode({"w": jnp.asarray(vector)}, jnp.float32(1), shared, (), key, key)
        return aggregator.receive(message, shared)["w"]

    decoded = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(1), len(rows))))
    error = np.square(decoded - vector).sum(1).mean() / np.square(vector).sum()
    assert 0.9 * (np.pi / 2 - 1) < error < 1.1 * (np.pi / 2 - 1)
    bias = np.linalg.norm(decoded.mean(0) - vector) / np.linalg.norm(vector)
    assert bias < 1.5 * np.sqrt((np.pi / 2 - 1) / len(rows))


def test_integers_sum_to_the_same_bits_in_any_order_and_floats_do_not():
    rows = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32) * 10.0 ** np.arange(-4, 4).repeat(8)[:, None]
    orders = [np.random.default_rng(seed).permutation(64) for seed in range(5)]
    exact = [run(agg.integer_mean(1e5, 1e-2, 64), rows[order])[0].tobytes() for order in orders]
    inexact = [run(agg.mean(), rows[order])[0].tobytes() for order in orders]
    assert len(set(exact)) == 1 and len(set(inexact)) > 1


def test_integers_at_their_limit_do_not_wrap_around():
    # 2 clients of 2^30 - 1 units each: the sum is 2^31 - 2.
    limit = 2**30 - 1
    result, _ = run(agg.integer_mean(limit, 1.0, 2), [[1e30], [1e30]])
    np.testing.assert_allclose(result, [limit], rtol=1e-6)
    result, _ = run(agg.integer_mean(limit, 1.0, 2), [[-1e30], [-1e30]])
    np.testing.assert_allclose(result, [-limit], rtol=1e-6)


def test_integers_that_could_overflow_are_refused_when_the_chain_is_built():
    with pytest.raises(
        ValueError, match=r"max_clients at most 1 for max_value / resolution = 1073741824, lest a sum reach 2\^31"
    ):
        agg.integer_mean(2.0**30, 1.0, 2)


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_noise_has_its_scale_and_no_other(factor, accepted):
    # s = clip / denominator = 4 / 20; z = 1.5: a standard deviation of 0.3, by a chi-square test at 1e-6 over 20,000 draws.
    private = agg.chain(agg.clip_norm(4.0), agg.fixed_mean(20), agg.gaussian_noise(1.5))
    noise, info = run(private, np.zeros((20, 20_000)))
    assert has_scale(noise, 0.3 * factor) == accepted
    np.testing.assert_allclose(info["noise_stddev"], 0.3, rtol=1e-6)


def test_noise_is_gaussian_and_another_of_its_variance_is_not():
    noise, _ = run(agg.chain(agg.clip_norm(4.0), agg.fixed_mean(20), agg.gaussian_noise(1.5)), np.zeros((20, 20_000)))
    generator = np.random.default_rng(0)
    wrong = generator.laplace(0, 0.3 / np.sqrt(2), 20_000), generator.uniform(-0.3 * np.sqrt(3), 0.3 * np.sqrt(3), 20_000)
    np.testing.assert_allclose([other.std() for other in wrong], 0.3, rtol=0.05)
    assert is_gaussian(noise, 0.3) and not any(is_gaussian(other, 0.3) for other in wrong)


def test_noise_differs_between_leaves():
    private = agg.chain(agg.clip_norm(1.0), agg.fixed_mean(1), agg.gaussian_noise(1.0))
    update, _, _ = agg.aggregate(private, {"a": jnp.zeros((1, 8)), "b": jnp.zeros((1, 8))}, [1.0])
    assert not np.allclose(update["a"], update["b"])


REFUSED = {
    "nothing reduces": (lambda: agg.chain(agg.clip_norm(1.0)), r"one stage of chain\(clip_norm\(1.0\)\) to reduce, .*got none"),
    "two reduce": (lambda: agg.chain(agg.mean(), agg.median()), r"one stage of a chain to reduce, got mean\(\) and median\(\)"),
    "unbounded noise": (
        lambda: agg.chain(agg.fixed_mean(10), agg.gaussian_noise(1.0)),
        r"before gaussian_noise\(1.0\) to bound the influence of one client, got fixed_mean\(10\)",
    ),
    "noise behind a mean over who came": (
        lambda: agg.chain(agg.clip_norm(1.0), agg.mean(), agg.gaussian_noise(1.0)),
        r"before gaussian_noise\(1.0\) to bound .*, got clip_norm\(1.0\), mean\(\)",
    ),
    "noise for the sum in front of a mean": (
        lambda: agg.chain(agg.clip_norm(1.0), agg.gaussian_noise(1.0), agg.fixed_mean(10)),
        r"expected gaussian_noise\(1.0\) behind fixed_mean\(10\), since it changes the aggregate, got it in front",
    ),
    "clipping behind the mean, which would clip nothing": (
        lambda: agg.chain(agg.fixed_mean(10), agg.clip_norm(1.0), agg.gaussian_noise(1.0)),
        r"expected clip_norm\(1.0\) in front of fixed_mean\(10\), since it works at the client, got it behind",
    ),
    "noise behind a clipping norm that no constant bounds": (
        lambda: agg.chain(agg.adaptive_clip(agg.fixed_mean(10)), agg.gaussian_noise(1.0)),
        r"before gaussian_noise\(1.0\) to bound .*, got adaptive_clip\(fixed_mean\(10\), quantile=0.5\)",
    ),
    "adaptive clipping, then a mean over who came, then noise": (
        lambda: agg.adaptive_clip(agg.mean(), agg.gaussian_noise(1.0)),
        r"before gaussian_noise\(1.0\) to bound .*, got adaptive_clip\(\), mean\(\)",
    ),
    "noise alone": (lambda: agg.chain(agg.gaussian_noise(1.0), agg.mean()), r"before gaussian_noise\(1.0\) .*, got nothing"),
    "messages behind a sum": (
        lambda: agg.chain(agg.drive(), agg.integer_mean(1.0, 0.1, 10)),
        r"each client's message for drive\(\), but integer_mean\(1.0, 0.1, 10\) shows the server only sums",
    ),
    "reading what is packed": (
        lambda: agg.chain(agg.top_k(0.5), agg.clip_norm(1.0), agg.mean()),
        r"clip_norm\(1.0\) before top_k\(0.5\), which packs the update",
    ),
    "a stage alone": (
        lambda: agg.aggregate(agg.clip_norm(1.0), {"w": jnp.ones((1, 1))}, [1.0]),
        r"expected aggregator to reduce, such as chain\(clip_norm\(1.0\), mean\(\)\), got 'clip_norm\(1.0\)'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_chain_that_cannot_work_is_refused_by_name(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build()


def test_chains_nest():
    inner = agg.chain(agg.clip_norm(5.0), agg.mean())
    outer = agg.chain(agg.clip_norm(100.0), inner)
    np.testing.assert_allclose(run(outer, [[6.0, 8.0], [0.0, 1.0]])[0], [1.5, 2.5], rtol=1e-6)
