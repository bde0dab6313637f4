"""DP-FedAvg (arXiv 1710.06963) in rounds: clip, a mean over a fixed denominator, Gaussian noise, on Poisson cohorts."""

import functools

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from chances import has_scale

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg

RATE, CLIP, CLIENT_LR = 0.3, 0.05, 0.1
EXPECTED = RATE * len(problems.SIZES)


def private(task, denominator=EXPECTED):
    def make_algorithm(hyper):
        aggregator = agg.chain(
            agg.clip_norm(hyper["clip"]), agg.fixed_mean(denominator), agg.gaussian_noise(hyper["noise_multiplier"])
        )
        return ftx.algorithms.fed_avg(task, optax.sgd(CLIENT_LR), aggregator=aggregator)

    return make_algorithm


make_private = private(problems.LOGISTIC)


def round_of(make_algorithm=make_private, noise_multiplier=0.0, clip=CLIP, num_lanes=2, rounds_per_call=1, **changes):
    settings = {"cohorts": ftx.data.poisson_cohorts(RATE), "local": by_hand.work(), "seed": 5, **changes}
    experiment = problems.experiment(make_algorithm, hyper={"clip": clip, "noise_multiplier": noise_multiplier}, **settings)
    return ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, rounds_per_call=rounds_per_call))


def play(round_fn, rounds):
    """Parameter vectors before and after each round, and the infos."""
    state, infos = round_fn.init(), []
    vectors = [by_hand.as_vector(state.device.server.params)]
    while state.round < rounds:
        state, more = round_fn.run(state, min(round_fn.rounds_per_call, rounds - state.round))
        vectors.append(by_hand.as_vector(state.device.server.params))
        infos += more
    return vectors, infos


def clipped(vector, bound):
    return vector * min(1, bound / np.linalg.norm(vector)) if vector.any() else vector


# ---- without noise: by hand


def test_rounds_without_noise_are_the_clipped_sum_over_the_fixed_denominator_whoever_came():
    round_fn = round_of()
    data, (vectors, infos) = round_fn.experiment.train, play(round_fn, 12)
    sizes = [info.client_ids.size for info in infos]
    # Cohorts of different sizes, an empty one, and none that fills the capacity: ghost rows never enter.
    assert len(set(sizes)) > 2 and 0 in sizes
    assert max(sizes) < round_fn.capacities[0].clients == len(problems.SIZES)
    bitten = 0
    for before, after, info in zip(vectors[:-1], vectors[1:], infos, strict=True):
        deltas = [by_hand.delta(before, data, client, CLIENT_LR) for client in info.client_ids]
        bitten += sum(np.linalg.norm(delta) > CLIP for delta in deltas)
        want = sum((clipped(delta, CLIP) for delta in deltas), np.zeros(9)) / EXPECTED
        np.testing.assert_allclose(before - after, want, rtol=1e-3, atol=2e-6)
    assert bitten > 5


def test_the_denominator_is_the_same_for_one_client_and_for_all():
    moved = []
    for cohort in ([3], [0, 3], [3, 1]):
        cohorts = ftx.data.fixed_cohorts([cohort, range(6)])
        vectors, _ = play(round_of(cohorts=cohorts), 1)
        moved.append(vectors[0] - vectors[1])
    data, start = problems.ragged_clients(), vectors[0]
    one, other = (clipped(by_hand.delta(start, data, client, CLIENT_LR), CLIP) / EXPECTED for client in (3, 0))
    np.testing.assert_allclose(moved[0], one, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(moved[1], one + other, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(moved[2], one, rtol=1e-3, atol=2e-6)  # client 1 has no example and takes no part


@pytest.mark.slow
def test_without_noise_and_with_a_far_clip_and_everybody_it_is_federated_averaging_with_equal_weights():
    takers = sum(size > 0 for size in problems.SIZES)
    everybody = {"cohorts": ftx.data.poisson_cohorts(1.0)}
    have, _ = play(round_of(private(problems.LOGISTIC, takers), clip=1e9, **everybody), 3)

    def encode(update, weight, shared, client_state, client_key, round_key):
        return update, jnp.sign(weight), client_state

    equal = agg.chain(agg.stage("equal()", encode=encode), agg.mean())
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(CLIENT_LR), aggregator=equal)
    want, _ = play(round_of(algorithm, cohorts=ftx.data.all_clients()), 3)
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6)


# ---- with noise

# Two features, 4,000 outputs: enough coordinates for a narrow test of the noise's scale.
WIDE = ftx.tasks.classification(
    ftx.Model(
        lambda key: {"w": jnp.zeros((2, 4000)), "b": jnp.zeros(3)},
        lambda params, x, *, key=None: x @ params["w"][:, :3] + params["b"],
    )
)
make_wide = private(WIDE)
NOISE = 1.5


@functools.cache
def released_noise():
    """The noise of 12 rounds: [round, coordinate], each the difference to the same round without noise; and their infos."""
    loud, quiet = round_of(make_wide, NOISE), round_of(make_wide, 0.0)
    state, noise, infos = loud.init(), [], []
    for _ in range(12):
        silent, _ = quiet(state)
        state, info = loud(state)
        difference = jax.tree.map(jnp.subtract, silent.device.server.params, state.device.server.params)
        noise.append(by_hand.as_vector(difference))
        infos.append(info)
    return np.asarray(noise), infos


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_every_released_round_has_noise_of_the_right_scale_and_no_other(factor, accepted):
    noise, infos = released_noise()
    stddev = NOISE * CLIP / EXPECTED
    assert {has_scale(row, factor * stddev) for row in noise} == {accepted}
    np.testing.assert_allclose([info.aggregation["noise_stddev"] for info in infos], stddev, rtol=1e-6)


def test_noise_is_centred_and_new_in_every_round_and_coordinate():
    noise, _ = released_noise()
    stddev = NOISE * CLIP / EXPECTED
    assert abs(noise.mean()) < 5 * stddev / np.sqrt(noise.size)
    between = np.corrcoef(noise)[np.triu_indices(len(noise), 1)]
    assert np.abs(between).max() < 5 / np.sqrt(noise.shape[1])


def test_an_empty_round_still_releases_noise_and_says_that_it_is_empty():
    noise, infos = released_noise()
    empty = np.array([info.empty for info in infos])
    assert empty.any() and not empty.all()
    assert [info.num_clients == 0 for info in infos] == empty.tolist()
    assert all(has_scale(row, NOISE * CLIP / EXPECTED) for row in noise[empty])
    # Behind a mean that depends on who came, an empty round leaves the parameters.
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(CLIENT_LR))
    (before, after), (info,) = play(round_of(algorithm, cohorts=ftx.data.fixed_cohorts([[], [0]])), 1)
    assert info.empty and np.array_equal(before, after)


@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(1, 1), (6, 4)])
def test_noisy_rounds_do_not_depend_on_lanes_or_calls(num_lanes, rounds_per_call):
    want, _ = play(round_of(noise_multiplier=NOISE), 4)
    have, _ = play(round_of(noise_multiplier=NOISE, num_lanes=num_lanes, rounds_per_call=rounds_per_call), 4)
    np.testing.assert_allclose(have[-1], want[-1], rtol=1e-4, atol=1e-6)
