"""DP-SGD at the client by hand, the scale of its noise, and the laws of who may see what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.clients import private_gradient


def make_algorithm(hyper):
    return ftx.algorithms.dp_sgd(scalars.TASK, optax.sgd(scalars.HALF_WAY), hyper["clip"], hyper["noise"], 2)


def test_a_round_by_hand_in_numbers():
    # From 0: towards 1 and 10 the slopes are -2 and -20, clipped to -4: their sum over 2 is -3, to 0.75. The last batch has one
    # example, 3: slope -4.5, clipped to -4, and over 2 all the same: -2, to 1.25. Unclipped: to 11/4, then 1/16 more.
    # Client 1 holds -1: slope 2, over 2: 1, to -0.25.
    for clip, first, second in ((4.0, 1.25, -0.25), (1e9, 2.75 + 0.0625, -0.25)):
        experiment = problems.experiment(
            make_algorithm,
            train=scalars.clients([1, 10, 3], [-1]),
            local=ftx.data.LocalWork(batch_size=2, shuffle=False),
            hyper={"clip": clip, "noise": 0.0},
        )
        state, (info,) = problems.play(experiment, 1)
        np.testing.assert_allclose(state.device.server.params["w"], (3 * first + second) / 4, rtol=1e-6)
        if clip == 4.0:
            losses = [(1 + 100 + (3 - 0.75) ** 2) / 3, 1]
            np.testing.assert_allclose(info.client_metrics["loss"][0], losses, rtol=1e-6)


# ---- the gradient itself

# A vector w, and an example a vector x: loss w . x, so that an example's gradient is x.
SIZE = 4000
LINEAR = ftx.Task(
    lambda key: ({"w": jnp.zeros(SIZE)}, ()),
    lambda trainable, frozen, batch, key: {"value": batch["x"] @ trainable["w"]},
    lambda outputs, batch: (outputs["value"], jnp.ones(batch["x"].shape[0])),
    lambda outputs, batch: {},
)
CLIP, NOISE, OVER = 0.5, 1.5, 4.0


@functools.partial(jax.jit, static_argnums=0)
def gradient(noise, x, mask, key):
    return private_gradient(CLIP, noise, OVER)(LINEAR, {"w": jnp.zeros(SIZE)}, (), {"x": x}, mask, key)[1]["w"]


def rows(*places):
    """Examples of gradients along axes: (place, length) each."""
    x = np.zeros((len(places), SIZE), np.float32)
    for row, (place, length) in enumerate(places):
        x[row, place] = length
    return jnp.asarray(x)


def test_every_example_is_clipped_by_itself_and_a_masked_one_is_nothing():
    x = rows((0, 8.0), (1, 0.3), (2, jnp.nan), (3, 100.0))
    have = gradient(0.0, x, jnp.array([True, True, True, False]), jax.random.key(0))
    np.testing.assert_allclose(have[:5] * OVER, [0.5, 0.3, 0, 0, 0], rtol=1e-6)
    assert not have[5:].any()


@functools.cache
def noise():
    """The noise of ten steps [step, coordinate]: on full batches, and on empty ones."""
    x, keys = rows((0, 8.0), (1, 0.3), (2, 1.0), (3, 1.0)), [jax.random.key(seed) for seed in range(10)]
    masks = [jnp.full(4, number % 2 == 0) for number in range(10)]
    return np.array([gradient(NOISE, x, *at) - gradient(0.0, x, *at) for at in zip(masks, keys, strict=True)])


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_every_step_has_noise_of_the_right_scale_and_no_other_whoever_came(factor, accepted):
    """A chi-square test at about 1e-6, as of all noise."""
    scaled = noise() / (factor * NOISE * CLIP / OVER)
    right = np.abs(np.square(scaled).sum(1) - SIZE) < 4.9 * np.sqrt(2 * SIZE)
    assert right.tolist() == [accepted] * 10


def test_noise_is_centred_and_new_in_every_step():
    assert abs(noise().mean()) < 5 * NOISE * CLIP / OVER / np.sqrt(noise().size)
    assert np.abs(np.corrcoef(noise())[np.triu_indices(10, 1)]).max() < 5 / np.sqrt(SIZE)


@pytest.mark.slow
def test_with_drawn_batches_in_the_lanes_a_client_that_nobody_of_came_still_makes_noisy_steps():
    def algorithm(hyper):
        return ftx.algorithms.dp_sgd(problems.LOGISTIC, optax.sgd(0.1), 1.0, hyper["noise"], 1.0)

    # An expectation of 1e-6 examples: all batches are empty, and what moves is the noise of 4 steps at rate 0.1.
    local = ftx.data.LocalWork(batch_size=4, steps=4, expected_batch=1e-6)
    moved = {}
    for noise_multiplier in (0.0, 2.0):
        experiment = problems.experiment(
            algorithm, hyper={"noise": noise_multiplier}, local=local, cohorts=ftx.data.fixed_cohorts([[3]])
        )
        round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=2))
        state, steps = round_fn.init(), []
        for _ in range(60):
            after, _ = round_fn(state)
            pairs = zip(*(jax.tree.leaves(one.device.server.params) for one in (state, after)), strict=True)
            steps.append(np.concatenate([np.ravel(after - before) for before, after in pairs]))
            state = after
        moved[noise_multiplier] = np.array(steps)
    assert not moved[0.0].any()
    stddev = 0.1 * 2.0 * np.sqrt(4)
    assert abs(np.square(moved[2.0] / stddev).sum() - moved[2.0].size) < 4.9 * np.sqrt(2 * moved[2.0].size)
