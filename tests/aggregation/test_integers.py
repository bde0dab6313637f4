"""Exact integer sums at the edge of their range, and the number of clients that they are made for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg

LARGEST = 2**24  # 127 of them are 2^31 - 2^24, and float32 holds both numbers exactly
EDGE = agg.integer_mean(max_value=LARGEST, resolution=1.0, max_clients=127)


def modular_sum(values):
    """The sum as the server holds it, read as a signed integer."""
    key = jax.random.key(0)
    messages = [EDGE.encode({"w": jnp.float32(value)}, jnp.float32(1), (), (), key, key)[0]["w"] for value in values]
    assert {message.dtype for message in messages} == {jnp.dtype(jnp.uint32)}
    return int(np.asarray(messages).sum(dtype=np.uint32).astype(np.int32))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_is_exact_and_one_client_more_would_wrap_around(sign):
    assert modular_sum([sign * LARGEST] * 127) == sign * 127 * LARGEST == sign * (2**31 - LARGEST)
    assert modular_sum([sign * 1e30] * 127) == sign * 127 * LARGEST  # clipped to the largest
    # +2^31 reads as -2^31: what the bound is for.
    assert modular_sum([LARGEST] * 128) == -(2**31)
    assert modular_sum([sign * LARGEST] * 129) == -sign * (2**31 - LARGEST)


def test_sums_of_both_signs_are_exact():
    assert modular_sum([LARGEST] * 64 + [-LARGEST] * 63) == LARGEST
    assert modular_sum([LARGEST] * 63 + [-LARGEST] * 64 + [3.0]) == 3 - LARGEST


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_mean_at_the_edge_is_right(sign):
    update, _, _ = agg.aggregate(EDGE, {"w": jnp.full((127, 2), sign * LARGEST)}, jnp.ones(127))
    np.testing.assert_allclose(update["w"], sign * LARGEST, rtol=1e-6)


@pytest.mark.parametrize(("most", "largest"), [(128, 2**24), (2, 2**30), (1, 2**31)])
def test_a_bound_of_two_to_the_31_is_refused_and_one_below_is_taken(most, largest):
    with pytest.raises(ValueError, match=rf"max_clients at most {most - 1} for max_value / resolution = {largest}"):
        agg.integer_mean(largest, 1.0, most)
    agg.integer_mean(largest, 1.0, most - 1) if most > 1 else agg.integer_mean(largest - 1, 1.0, most)


# ---- the number of clients that a reduction is made for


def limited(name, most):
    return agg.stage(name, max_clients=most)


def test_a_chain_takes_as_many_clients_as_the_least_of_its_stages():
    assert agg.chain(limited("a()", 7), agg.integer_mean(1.0, 0.1, 10)).max_clients == 7
    assert agg.chain(limited("a()", 70), agg.integer_mean(1.0, 0.1, 10)).max_clients == 10
    assert agg.chain(agg.clip_norm(1.0), agg.chain(agg.integer_mean(1.0, 0.1, 10))).max_clients == 10
    assert agg.chain(agg.clip_norm(1.0), agg.mean()).max_clients is None


def test_more_rows_than_the_reduction_takes_are_refused_naming_it_and_both_numbers():
    exact = agg.integer_mean(4.0, 0.25, 3)
    agg.aggregate(exact, {"w": jnp.ones((3, 1))}, jnp.ones(3))
    with pytest.raises(ValueError, match=r"the clients of a round <= 3 for integer_mean\(4.0, 0.25, 3\), got 4"):
        agg.aggregate(exact, {"w": jnp.ones((4, 1))}, jnp.ones(4))
    with pytest.raises(ValueError, match=r"<= 3 for chain\(clip_norm\(1.0\), integer_mean\(4.0, 0.25, 3\)\), got 4"):
        agg.aggregate(agg.chain(agg.clip_norm(1.0), exact), {"w": jnp.ones((4, 1))}, jnp.ones(4))


def with_cohorts(cohorts):
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=agg.integer_mean(4.0, 2.0**-20, 3))
    return ftx.make_round(problems.experiment(algorithm, cohorts=cohorts), ftx.Execution(num_lanes=1, rounds_per_call=1))


def test_cohorts_that_can_be_larger_are_refused_before_anything_compiles():
    with_cohorts(ftx.data.uniform_cohorts(3))
    with_cohorts(ftx.data.poisson_cohorts(0.5, max_clients=3))
    for cohorts, most in ((ftx.data.all_clients(), 6), (ftx.data.fixed_cohorts([[0], [1, 2, 3, 4]]), 4)):
        with pytest.raises(ValueError, match=rf"the clients of a round <= 3 for integer_mean\(4.0, .*, 3\), got {most}"):
            with_cohorts(cohorts)
    with pytest.raises(ValueError, match="the clients of a round <= 3 .*, got 6"):
        with_cohorts(ftx.data.poisson_cohorts(0.5))


def test_a_second_pass_is_checked_too():
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1))
    second = algorithm.passes[0]._replace(aggregator=agg.integer_mean(4.0, 0.25, 3))
    with pytest.raises(ValueError, match="the clients of a round <= 3 .*, got 6"):
        ftx.make_round(problems.experiment(algorithm._replace(passes=(*algorithm.passes, second))), ftx.Execution(num_lanes=1))


def test_rounds_of_integers_are_federated_averaging_with_equal_weights_to_the_resolution():
    round_fn = with_cohorts(ftx.data.fixed_cohorts([[0, 3, 5], [2, 4]]))
    plain = agg.stage("equal()", encode=lambda u, w, s, c, k, r: (u, jnp.sign(w), c))
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=agg.chain(plain, agg.mean()))
    other_fn = ftx.make_round(
        problems.experiment(algorithm, cohorts=ftx.data.fixed_cohorts([[0, 3, 5], [2, 4]])), ftx.Execution(num_lanes=3)
    )
    state, other = round_fn.init(), other_fn.init()
    for _ in range(2):
        (state, _), (other, _) = round_fn(state), other_fn(other)
    have, want = state.device.server.params, other.device.server.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3 * 2.0**-20), have, want)
