"""Canaries in a run: what they send, who joins, and what their scores say of noise that is not what it claims."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx import attacks, prng

SIZES = (4, 1000)
"""4,000 parameters: some times the canaries."""
TASK = ftx.tasks.classification(ftx.Model(lambda key: jnp.zeros(SIZES), lambda params, x, *, key=None: x @ params))
BUDGET = ftx.privacy.Budget(delta=1e-5)
OPTIONS = {"canaries": 300, "norm": 1.0, "execution": ftx.Execution(num_lanes=1, rounds_per_call=1)}


def experiment(noise, claimed):
    """Five clients of an example each and a mean over 10, with noise of one multiplier that is said to be of another."""
    noisy = agg.chain(agg.clip_norm(1.0), agg.fixed_mean(10), agg.gaussian_noise(noise))._replace(noise_multiplier=claimed)
    columns = {"x": np.eye(5, 4, dtype=np.float32), "y": np.arange(5)}
    return ftx.Experiment(
        ftx.algorithms.fed_avg(TASK, optax.sgd(0.1), aggregator=noisy),
        train=ftx.data.FederatedDataset.from_columns(columns, np.arange(5)),
        cohorts=ftx.data.all_clients(),
        local=ftx.data.LocalWork(batch_size=1, epochs=np.array([1, 2, 1, 1, 1])),
    )


def test_canaries_send_a_direction_of_their_own_and_others_what_they_would():
    def finish(broadcast, info, local):
        return ftx.ClientResult({"delta": {"w": jnp.ones(500), "n": jnp.int32(3)}}, jnp.float32(1), (), {})

    trainer = ftx.ClientTrainer(None, None, None, finish)
    honest = ftx.FederatedAlgorithm(None, (ftx.Pass(trainer, agg.nothing(), None, None),), None)
    spoiled = attacks.canaries(honest, [3, 8], norm=2.0, seed=1).passes[0].trainer

    def sent(number):
        info = ftx.ClientInfo(jnp.int32(number), 0, 0, 0, 0, {}, jax.random.key(0), None)
        return spoiled.finish(None, info, None).update["delta"]

    np.testing.assert_array_equal(sent(0)["w"], np.ones(500))
    three, eight = sent(3), sent(8)
    assert int(three["n"]) == 3
    np.testing.assert_allclose(three["w"], 2 * attacks.canary_direction(three, 3, seed=1)["w"], rtol=1e-6)
    assert float(jnp.linalg.norm(three["w"])) == pytest.approx(2.0, rel=1e-5)
    # Two random directions in 500 dimensions: a cosine of five standard deviations is not one of them.
    assert abs(float(three["w"] @ eight["w"])) / 4 < 5 / np.sqrt(500)
    assert not np.allclose(three["w"], 2 * attacks.canary_direction(three, 3, seed=2)["w"])


def test_canaries_weigh_what_they_say_if_they_have_examples_at_all():
    def finish(broadcast, info, local):
        return ftx.ClientResult({"delta": jnp.ones(4)}, jnp.asarray(info.num_examples, jnp.float32), (), {})

    honest = ftx.FederatedAlgorithm(
        None, (ftx.Pass(ftx.ClientTrainer(None, None, None, finish), agg.nothing(), None, None),), None
    )

    def weights(**options):
        spoiled = attacks.canaries(honest, [3], norm=2.0, **options).passes[0].trainer
        infos = [ftx.ClientInfo(jnp.int32(i), 0, n, 0, 0, {}, jax.random.key(0), None) for i, n in ((0, 5), (3, 5), (3, 0))]
        return [float(spoiled.finish(None, info, None).weight) for info in infos]

    assert weights() == [5, 5, 0]
    assert weights(weight=20.0) == [5, 20, 0]


@pytest.mark.slow
def test_noise_that_is_not_what_it_says_is_caught_in_a_run():
    found = ftx.audit(experiment(0.2, claimed=20.0), 1, BUDGET, **OPTIONS)
    assert found.claimed == ftx.privacy.epsilon(20.0, 1.0, 1, 1e-5)
    assert found.refuted and found.epsilon > 1
    # By the toss of a coin; a canary that joined moved the mean over 10 by its own direction.
    assert found.scores_in.size + found.scores_out.size == 300 and 110 < found.scores_in.size < 190
    # Others' directions add to a score about sqrt(150 / 4000) of its own, noise 0.2.
    assert found.scores_in.mean() == pytest.approx(0.1, abs=0.1 * 5 * 0.3 / np.sqrt(110))
    assert found.scores_out.mean() == pytest.approx(0.0, abs=0.1 * 5 * 0.3 / np.sqrt(110))
    assert found._replace(claimed=ftx.privacy.epsilon(0.2, 1.0, 1, 1e-5)).refuted is False


@pytest.mark.slow
def test_noise_that_forgets_the_weight_of_a_client_is_caught_in_a_run():
    def weighted(mean):
        noisy = agg.chain(agg.clip_norm(1.0), mean, agg.gaussian_noise(4.0))
        base = experiment(1.0, claimed=1.0)
        algorithm = ftx.algorithms.fed_avg(TASK, optax.sgd(0.1), aggregator=noisy)
        return ftx.Experiment(algorithm, train=base.train, cohorts=base.cohorts, local=base.local)

    true = agg.fixed_mean(10, max_weight=20)
    forgetful = true._replace(sensitivity=lambda bound: bound / 10)
    options = {**OPTIONS, "canaries": 60}
    assert ftx.audit(weighted(forgetful), 1, BUDGET, **options).refuted
    assert not ftx.audit(weighted(true), 1, BUDGET, **options).refuted


@pytest.mark.slow
def test_true_noise_is_not_refuted_over_rounds_and_poisson_cohorts():
    poisson = ftx.data.poisson_cohorts(0.5)
    private = experiment(4.0, claimed=4.0)
    private = ftx.Experiment(
        private.make_algorithm, train=private.train, cohorts=poisson, local=ftx.data.LocalWork(batch_size=1), seed=2
    )
    found = ftx.audit(private, 10, BUDGET, **OPTIONS)
    assert not found.refuted
    # A run with so much less noise than that tells its canaries.
    loud = ftx.Experiment(
        experiment(0.3, claimed=0.3).make_algorithm, train=private.train, cohorts=poisson, local=private.local, seed=2
    )
    assert ftx.audit(loud, 10, BUDGET, **OPTIONS).epsilon > 1


def drifting(noise):
    """Clients that move the parameters far; their canaries are few. ``hyper`` says the noise."""

    def make(hyper):
        noisy = agg.chain(agg.clip_norm(10.0), agg.fixed_mean(10), agg.gaussian_noise(hyper["noise"]))
        return ftx.algorithms.fed_avg(TASK, optax.sgd(50.0), aggregator=noisy)

    columns = {"x": np.eye(5, 4, dtype=np.float32), "y": np.arange(5)}
    return ftx.Experiment(
        make,
        hyper={"noise": noise},
        train=ftx.data.FederatedDataset.from_columns(columns, np.arange(5)),
        cohorts=ftx.data.all_clients(),
        local=ftx.data.LocalWork(batch_size=1),
    )


def test_what_others_do_hides_canaries_from_who_does_not_know_the_others():
    options = {**OPTIONS, "canaries": 60}
    budget = ftx.privacy.Budget(delta=1e-5, accountant="rdp")
    blind = ftx.audit(drifting(1e-3), 1, budget, **options)
    knowing = ftx.audit(drifting(1e-3), 1, budget, reference={"noise": 0.0}, **options)

    def apart(found):
        spread = np.sqrt((found.scores_in.var() + found.scores_out.var()) / 2)
        return (found.scores_in.mean() - found.scores_out.mean()) / spread

    assert apart(knowing) > 2 * apart(blind)
    assert knowing.epsilon > blind.epsilon
    np.testing.assert_allclose(knowing.scores_in.mean(), 0.1, atol=0.02)  # a canary's norm over the clients expected


def test_a_reference_of_true_noise_gives_nothing_away():
    # Its noise is its own: taking it off adds to the noise of the scores, and must not take off that of the audited run.
    found = ftx.audit(drifting(40.0), 1, BUDGET, reference={}, **{**OPTIONS, "canaries": 60})
    assert found.scores_out.std() == pytest.approx(40.0 * 10 / 10 * np.sqrt(2), rel=0.4)
    assert not found.refuted


def test_cohorts_with_a_table_of_clients_have_no_room_for_canaries():
    tabled = dataclasses.replace(drifting(1.0), cohorts=ftx.data.with_covariates(ftx.data.all_clients(), size=np.ones(5)))
    message = (
        r"the cohorts of an audit to take 300 canaries for clients, as with_covariates .*size to have 305 rows.*got 'with_cov"
    )
    with pytest.raises(ValueError, match=message):
        ftx.audit(tabled, 1, BUDGET, **OPTIONS)


def test_a_toss_that_leaves_too_few_on_a_side_is_refused_before_the_run():
    tosses = (prng.host_generator(seed, "canaries").random(20) < 0.5 for seed in itertools.count())
    seed = next(seed for seed, joined in enumerate(tosses) if not 4 <= joined.sum() <= 16)
    with pytest.raises(ValueError, match=r"expected canaries to be more, or the seed another, lest fewer than 4 join or don't"):
        ftx.audit(dataclasses.replace(drifting(1.0), seed=seed), 1, BUDGET, **{**OPTIONS, "canaries": 20})


def test_a_reference_names_hyperparameters():
    with pytest.raises(ValueError, match=r"a name of reference.*noisy"):
        ftx.audit(drifting(1.0), 1, BUDGET, reference={"noisy": 0.0}, **OPTIONS)
