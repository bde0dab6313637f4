"""Metrics through noise: by hand, at their limits, and with the noise that was accounted for and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from chances import has_scale

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg

NOISE, NORM, CLIENTS, MOST = 0.5, 2.0, 4, 8.0


def reporting(losses, noise):
    """The private pass of clients whose update is 0 and whose metrics are (loss, loss / 2); and the updates that they send."""
    chained = agg.chain(agg.clip_norm(NORM), agg.fixed_mean(CLIENTS), agg.gaussian_noise(noise))
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(1.0), aggregator=chained)

    def finish(broadcast, info, loss):
        metrics = {"loss": (loss, jnp.float32(3)), "half": (loss / 2, jnp.float32(loss > 0))}
        return ftx.ClientResult({"delta": {"b": jnp.zeros(5)}}, jnp.float32(2), (), metrics)

    (plain,) = algorithm.passes
    plain = plain._replace(trainer=plain.trainer._replace(finish=finish), combine=lambda state, aggregate, key: (aggregate, {}))
    options = {"max_metric": MOST, "metrics_noise": 3.0}
    (private,) = ftx.privacy.with_private_metrics(algorithm._replace(passes=(plain,)), CLIENTS, **options).passes
    results = [private.trainer.finish((), (), jnp.float32(loss)) for loss in losses]
    assert all(result.metrics == {} for result in results)
    return private, jax.tree.map(lambda *leaves: jnp.stack(leaves), *[result.update for result in results])


def told(private, updates, key, weights=(2.0,) * CLIENTS):
    """What the server hands on, and what it reports, of one round."""
    weights = jnp.asarray(weights)
    aggregate, _, _ = agg.apply.aggregate_arrays(private.aggregator, updates, weights, None, key)
    return private.combine((), aggregate, None)


def test_means_by_hand_of_clipped_metrics_each_client_once():
    # 20 and what is not a number count as 8, -1 as 0; halves: 2, 8, 0 and 4 for the one without weight.
    private, updates = reporting([4.0, 20.0, -1.0, np.nan], noise=0.0)
    aggregate, means = told(private, updates, jax.random.key(0))
    np.testing.assert_allclose(aggregate["delta"]["b"], 0)
    np.testing.assert_allclose(means["train/private_loss"], (4 + 8 + 0 + 8) / 4, rtol=1e-6)
    np.testing.assert_allclose(means["train/private_half"], (2 + 8 + 4 + 4) / 4, rtol=1e-6)
    # Whoever does not come counts as the middle of the range.
    _, means = told(private, updates, jax.random.key(0), weights=(2.0, 7.0, 0.0, 0.0))
    np.testing.assert_allclose(means["train/private_loss"], (4 + 8 + 4 + 4) / 4, rtol=1e-6)


def test_what_a_client_sends_of_its_metrics_has_norm_one_at_most():
    _, updates = reporting([0.0, MOST, np.inf, 3.0], noise=0.0)
    norms = np.linalg.norm([updates["metrics"]["loss"], updates["metrics"]["half"]], axis=0)
    assert norms.max() <= 1 + 1e-6 and norms[2] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def released():
    private, updates = reporting([MOST / 2] * CLIENTS, NOISE)

    def one(key):
        aggregate, means = told(private, updates, key)
        return aggregate["delta"]["b"], means["train/private_loss"] - MOST / 2, means["train/private_half"] - MOST / 4

    return private.aggregator.noise_multiplier, *jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 3000))


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_updates_and_metrics_have_their_noise_and_no_other(released, factor, accepted):
    multiplier, delta, loss, half = released
    assert multiplier == pytest.approx(NOISE / np.sqrt(1 + 1 / 9))
    assert has_scale(delta, factor * NOISE * NORM / CLIENTS) == accepted
    # Two metrics of norm 1 together: the sum's deviation is 3 z sqrt(2), in units of half the range.
    of_metrics = 3 * NOISE * np.sqrt(2) * (MOST / 2) / CLIENTS
    assert has_scale(loss, factor * of_metrics) == has_scale(half, factor * of_metrics) == accepted


def test_metrics_by_classes_and_algorithms_without_noise_are_refused():
    chained = agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2), agg.gaussian_noise(1.0))
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(1.0), aggregator=chained)
    (plain,) = algorithm.passes
    by_class = ftx.ClientResult({"delta": 0.0}, jnp.float32(1), (), {"recall": (jnp.zeros(3), jnp.ones(3))})
    odd = plain._replace(trainer=plain.trainer._replace(finish=lambda *arguments: by_class))
    (private,) = ftx.privacy.with_private_metrics(algorithm._replace(passes=(odd,)), 2).passes
    with pytest.raises(ValueError, match=r"the metric 'recall' to be a scalar where metrics are private, got 'shape \(3,\)'"):
        private.trainer.finish((), (), ())
    with pytest.raises(ValueError, match=r"algorithm to have noise on its aggregate, got 'mean\(\)'"):
        ftx.privacy.with_private_metrics(ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(1.0)), 2)
