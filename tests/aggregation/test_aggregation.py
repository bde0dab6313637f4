"""Aggregation: the mean by hand and by its laws; errors by their messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx.aggregation import aggregate, fixed_mean, mean, nothing, population_mean, total
from fedjax_tx.types import Aggregator, Linear, Stacked


def stacked_updates(clients: int = 6, seed: int = 0):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(generator.normal(size=(clients, *shape)), jnp.float32)  # noqa: E731
    return {"delta": {"w": draw(3, 2), "b": draw(2)}, "control": draw()}


def test_the_mean_by_hand():
    update, state, info = aggregate(mean(), {"delta": jnp.array([[1.0, 0.0], [4.0, 6.0]])}, [2.0, 1.0])
    assert update["delta"].tolist() == [2.0, 2.0]
    assert (state, info) == ((), {})


def test_the_mean_is_numpys_weighted_average():
    updates, weights = stacked_updates(), np.array([5.0, 0.0, 1.0, 9.0, 3.0, 7.0])
    update, _, _ = aggregate(mean(), updates, weights)
    want = jax.tree.map(lambda leaf: np.average(np.asarray(leaf, np.float64), axis=0, weights=weights), updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), update, want)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_client_of_weight_zero_adds_nothing_whatever_it_sends(bad):
    clean = {"delta": jnp.array([[1.0], [2.0], [5.0]])}
    broken = {"delta": jnp.array([[1.0], [bad], [5.0]])}
    weights = [1.0, 0.0, 3.0]
    assert aggregate(mean(), broken, weights)[0]["delta"].tolist() == aggregate(mean(), clean, weights)[0]["delta"].tolist()


def test_a_client_that_counts_and_sends_nan_shows():
    assert np.isnan(aggregate(mean(), {"delta": jnp.array([1.0, jnp.nan])}, [1.0, 1.0])[0]["delta"])


@pytest.mark.parametrize(
    ("aggregator", "rows", "weights", "wanted"),
    [
        (mean(), [4, 8], [0.5, 0.5], 6),
        (mean(), [1, 2], [1.0, 1.0], 1.5),
        (mean(), [100, 100], [1.5, 0.5], 100),
        (mean(weighted=False), [100, 100], [3.0, 1.0], 100),
        (fixed_mean(4), [100, 100], [3.0, 1.0], 50),
        (fixed_mean(1, max_weight=0.5), [4, 8], [1.0, 1.0], 6),
        (population_mean(), [100, 101], [1.0, 1.0], 100.5),
        (total(), [100, 100], [1.0, 1.0], -56),  # what is only added keeps its type, modulo 2^8
    ],
)
def test_a_mean_of_integers_is_no_integer_and_no_sum_of_it_overflows(aggregator, rows, weights, wanted):
    assert aggregate(aggregator, {"w": jnp.array(rows, jnp.int8)}, weights)[0]["w"] == wanted


def test_it_can_be_compiled():
    updates = stacked_updates()
    compiled = jax.jit(lambda updates, weights: aggregate(mean(), updates, weights)[0])(updates, jnp.arange(6.0))
    want, _, _ = aggregate(mean(), updates, jnp.arange(6.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), compiled, want)
    with pytest.raises(ValueError, match=r"weights to have shape \[client\] with at least one client, got \(2, 3\)"):
        jax.jit(lambda weights: aggregate(mean(), updates, weights)[0])(jnp.ones((2, 3)))


def test_a_total_weight_of_zero_gives_zero():
    update, _, _ = aggregate(mean(), {"delta": jnp.array([[1.0], [jnp.nan]])}, [0.0, 0.0])
    assert update["delta"].tolist() == [0.0]


def test_the_mean_does_not_depend_on_the_scale_of_weights():
    updates, weights = stacked_updates(), np.arange(6.0)
    one, other = (aggregate(mean(), updates, scale * weights)[0] for scale in (1.0, 1000.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def test_the_mean_does_not_depend_on_the_order_of_clients():
    updates, weights = stacked_updates(), np.arange(6.0)
    order = np.array([3, 0, 5, 1, 4, 2])
    one, _, _ = aggregate(mean(), updates, weights)
    other, _, _ = aggregate(mean(), jax.tree.map(lambda leaf: leaf[order], updates), weights[order])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_bfloat16_comes_back_as_bfloat16_and_is_summed_in_float32():
    # In bfloat16 256 + 1 is 256: a sum in that type would lose every small client.
    values = jnp.array([[256.0]] + [[1.0]] * 256, jnp.bfloat16)
    update, _, _ = aggregate(mean(), {"delta": values}, np.ones(257))
    assert update["delta"].dtype == jnp.bfloat16
    np.testing.assert_allclose(float(update["delta"][0]), 512 / 257, rtol=2**-8)


def test_float32_stays_float32():
    assert aggregate(mean(), {"delta": jnp.ones((2, 3))}, np.array([1, 2]))[0]["delta"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
def test_integers_keep_their_type_and_wrap_around(dtype):
    seen = []

    def decode(reduced, totals, state, key):
        seen.append(reduced["m"].dtype)
        return reduced, state, {}

    high = jnp.iinfo(dtype).max
    update, _, _ = aggregate(nothing()._replace(decode=decode), {"m": jnp.array([[high], [3]], dtype)}, [1.0, 1.0])
    assert seen == [dtype]
    assert update["m"].dtype == dtype
    assert int(update["m"][0]) == int(jnp.iinfo(dtype).min) + 2


def test_encode_sees_one_client_and_decode_sees_the_totals():
    def encode(update, weight, shared, client_state, client_key, round_key):
        assert update["x"].shape == (3,)
        same = jax.random.uniform(round_key)
        return {"x": update["x"] + shared, "client": jax.random.uniform(client_key), "round": same}, 2 * weight, client_state

    def decode(reduced, totals, state, key):
        return {"x": reduced.summands["x"].sum(0)}, state + 1, {"totals": totals, "rows": reduced}

    aggregator = Aggregator(
        lambda update: jnp.float32(10.0), lambda update: (), encode, lambda message, shared: message, Stacked(), decode
    )
    update, state, info = aggregate(aggregator, {"x": jnp.ones((4, 3))}, [1.0, 0.0, 2.0, 1.0])
    assert update["x"].tolist() == [44.0] * 3
    assert float(state) == 11.0
    assert [int(part) for part in info["totals"]] == [8, 3, 4, 4]
    rows = info["rows"]
    assert rows.weights.tolist() == [2.0, 0.0, 4.0, 2.0]
    assert rows.valid.tolist() == [True, False, True, True]
    assert len(set(rows.summands["client"].tolist())) == 4
    assert len(set(rows.summands["round"].tolist())) == 1


def test_a_state_handed_in_is_used_and_a_key_changes_what_is_drawn():
    def decode(reduced, totals, state, key):
        return reduced, state + 1, {"drawn": jax.random.uniform(key)}

    aggregator = nothing()._replace(init=lambda update: jnp.int32(0), decode=decode)
    updates, weights = {"x": jnp.ones((2, 1))}, [1.0, 1.0]
    _, state, info = aggregate(aggregator, updates, weights)
    _, state, again = aggregate(aggregator, updates, weights, state)
    assert int(state) == 2
    assert float(info["drawn"]) == float(again["drawn"])
    other = aggregate(aggregator, updates, weights, key=jax.random.key(1))[2]
    assert float(other["drawn"]) != float(info["drawn"])


def test_nothing_sums_what_it_is_given():
    assert aggregate(nothing(), {"x": jnp.array([1.0, 2.0])}, [1.0, 5.0])[0]["x"].tolist() == 3.0
    assert isinstance(nothing().reduce, Linear)


@pytest.mark.parametrize(
    ("message", "updates", "weights"),
    [
        (r"stacked_updates\['w'\] to have a leading axis of 2 clients, got \(3, 1\)", {"w": np.ones((3, 1))}, [1, 1]),
        (r"stacked_updates\['w'\] to have a leading axis of 2 clients, got \(\)", {"w": np.float32(1)}, [1, 1]),
        (r"weights to be finite and >= 0, got -1.0", {"w": np.ones((2, 1))}, [1, -1]),
        (r"weights to be finite and >= 0, got nan", {"w": np.ones((2, 1))}, [1, np.nan]),
        (r"weights to be finite and >= 0, got inf", {"w": np.ones((2, 1))}, [1, np.inf]),
        (r"weights to have shape \[client\] .*, got \(1, 2\)", {"w": np.ones((2, 1))}, [[1, 1]]),
        (r"weights to have shape \[client\] with at least one client, got \(0,\)", {"w": np.ones((0, 1))}, []),
    ],
)
def test_updates_and_weights_that_do_not_fit_are_refused(message, updates, weights):
    with pytest.raises(ValueError, match=message):
        aggregate(mean(), updates, weights)


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="expected weights to be an array of numbers"):
        aggregate(mean(), {"w": np.ones((2, 1))}, ["a", "b"])


def test_updates_without_any_leaf_are_refused_or_empty():
    update, _, _ = aggregate(nothing(), {}, [1.0])
    assert update == {}


def test_an_unweighted_mean_counts_all_alike_but_for_weight_zero():
    rows = {"w": jnp.array([[1.0], [4.0], [100.0]])}
    assert aggregate(mean(weighted=False), rows, [7.0, 1.0, 0.0])[0]["w"].tolist() == [2.5]
    assert aggregate(mean(), rows, [7.0, 1.0, 0.0])[0]["w"].tolist() == [1.375]


def test_weighted_that_is_no_truth_value_is_refused():
    with pytest.raises(TypeError, match="weighted"):
        mean(weighted="no")
