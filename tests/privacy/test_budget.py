"""What a run spends, against the accountants called by hand; where it ends; and what is refused, with the reason."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx import privacy

DELTA = 1e-3
HALF = ftx.data.poisson_cohorts(0.5, max_clients=6)
ALL = ftx.data.all_clients()


def noisy(noise=2.0, denominator=2):
    return agg.chain(agg.clip_norm(1.0), agg.fixed_mean(denominator), agg.gaussian_noise(noise))


def spent_on(cohorts, aggregator=None, num_clients=6, **options):
    budget = privacy.Budget(delta=DELTA, **options)
    return privacy.spending(budget, [noisy() if aggregator is None else aggregator], cohorts, num_clients)


def make_private(hyper):
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=noisy(hyper["noise"]))


EXPERIMENT = problems.experiment(make_private, hyper={"noise": 2.0}, cohorts=ALL)
EXECUTION = ftx.Execution(num_lanes=1, rounds_per_call=1)


def test_what_is_read_off_a_run_is_what_one_would_say_oneself():
    assert spent_on(HALF)(3) == privacy.epsilon(2.0, 0.5, 3, DELTA)
    assert spent_on(ALL, accountant="rdp")(3) == privacy.epsilon(2.0, 1.0, 3, DELTA, "rdp")
    assert spent_on(ftx.data.uniform_cohorts(2))(3) == privacy.epsilon_of_fixed_cohorts(2.0, 2, 6, 3, DELTA)
    labelled = ftx.data.with_covariates(ftx.data.uniform_cohorts(2), size=np.ones(6))
    assert spent_on(labelled)(3) == spent_on(ftx.data.uniform_cohorts(2))(3)


@pytest.mark.slow
def test_a_cohort_with_little_room_is_accounted_for_as_that():
    spent = spent_on(ftx.data.poisson_cohorts(0.5, max_clients=4))(3)
    assert spent == privacy.epsilon(2.0, 0.5, 3, DELTA, population=6, max_clients=4) > privacy.epsilon(2.0, 0.5, 3, DELTA)


def test_noise_in_two_stages_is_one_of_their_joint_variance():
    twice = agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2), agg.gaussian_noise(3.0), agg.gaussian_noise(4.0))
    assert twice.noise_multiplier == 5.0
    # The same noise on a sum and on a mean: the multiplier is relative to what one client can change, wherever it is added.
    total = agg.chain(agg.clip_norm(1.0), agg.fixed_mean(1), agg.gaussian_noise(2.0))
    assert total.noise_multiplier == noisy(2.0, denominator=100).noise_multiplier == 2.0
    for name, aggregator in {"sum": total, "mean": noisy(2.0, denominator=100)}.items():
        _, _, info = agg.aggregate(aggregator, {"w": jnp.zeros((2, 3))}, jnp.ones(2))
        assert float(info["noise_stddev"]) == pytest.approx({"sum": 2.0, "mean": 0.02}[name])
    assert agg.chain(agg.clip_norm(1.0), agg.mean()).noise_multiplier is None


def test_parts_are_told_apart_by_the_noise_of_all_together():
    # 1 / sqrt(1/9 + 1/16) = 2.4, and with a third of 2.4 that of two such.
    assert agg.parts(a=noisy(3.0), b=noisy(4.0)).noise_multiplier == pytest.approx(2.4)
    assert agg.parts(a=noisy(3.0), b=noisy(4.0), c=noisy(2.4)).noise_multiplier == pytest.approx(2.4 / np.sqrt(2))
    assert agg.parts(a=noisy(0.0), b=noisy(0.0)).noise_multiplier == 0
    assert agg.parts(a=noisy(3.0), b=agg.mean()).noise_multiplier is None
    # Of noise correlated over rounds so is that of one factorisation; two kinds are no one mechanism.
    trees = privacy.tree_factorization(3), privacy.tree_factorization(4)
    short, long = (agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2), agg.correlated_noise(3.0, tree)) for tree in trees)
    both = agg.parts(a=short, b=short)
    assert (both.noise_multiplier, both.factorization) == (pytest.approx(3 / np.sqrt(2)), trees[0])
    for other in (long, noisy(3.0)):
        assert agg.parts(a=short, b=other).noise_multiplier is None


@pytest.mark.parametrize(
    ("cohorts", "aggregator", "message"),
    [
        (
            ftx.data.uniform_cohorts(2),
            agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2)),
            "private run to have noise on its result",
        ),
        (ftx.data.fixed_cohorts([[0, 1]]), noisy(), "got 'fixed_cohorts"),
        (ftx.data.weighted_cohorts(2, [1] * 6), noisy(), "got 'weighted_cohorts"),
        (ftx.data.with_dropout(ftx.data.uniform_cohorts(2), 0.5), noisy(), "got 'with_dropout"),
        (ftx.data.poisson_cohorts(0.5, max_clients=3), noisy(), "where cohorts have limited room"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(cohorts, aggregator, message):
    with pytest.raises(ValueError, match=message):
        spent_on(cohorts, aggregator, accountant="rdp")(1)


def test_colluding_attackers_are_refused_for_what_they_do():
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=noisy())
    (one,) = ftx.attacks.alie(algorithm, [0]).passes
    with pytest.raises(
        ValueError, match=r"no clients who collude: what they send depends on the updates of the honest, .*got 'alie"
    ):
        spent_on(ALL, one.aggregator)
    (alone,) = ftx.attacks.sign_flip(algorithm, [0]).passes
    assert spent_on(ALL, alone.aggregator)(1) == spent_on(ALL)(1)


def test_a_budget_affords_as_many_rounds_as_it_says():
    spent = spent_on(ALL, accountant="rdp")
    for target in (spent(1), spent(5) + 1e-9, spent(8) - 1e-9):
        rounds = privacy.affordable_rounds(spent, target, 10)
        assert spent(rounds) <= target < spent(rounds + 1)
    assert privacy.affordable_rounds(spent, spent(1) / 2, 10) == 0
    assert privacy.affordable_rounds(spent, 1e9, 10) == 10


def test_a_run_ends_when_its_budget_is_spent_and_says_what_it_spent(tmp_path):
    spent = spent_on(ALL, accountant="rdp")
    budget = privacy.Budget(delta=DELTA, epsilon=spent(3) + 1e-6, accountant="rdp")
    options = {"privacy": budget, "progress": False, "evaluate_every": 2, "execution": EXECUTION}
    assert "epsilon" not in ftx.run(EXPERIMENT, 2, run_dir=tmp_path / "run", **{**options, "privacy": None}).ledger
    # Rounds that were made when nobody asked have cost as much.
    short = ftx.run(EXPERIMENT, 2, run_dir=tmp_path / "run", **options)
    assert (short.ledger["epsilon"], short.ledger["delta"], short.stopped) == (spent(2), DELTA, "finished 2 rounds")
    # It goes on with what is left, whatever was asked for.
    long = ftx.run(EXPERIMENT, 9, run_dir=tmp_path / "run", **options)
    assert (long.ledger["rounds"], long.ledger["epsilon"]) == (3, spent(3))
    assert long.stopped.startswith(f"privacy spent: epsilon {math.floor(1e4 * spent(3)) / 1e4:g} of ")
    whole = ftx.run(EXPERIMENT, 9, **options)
    np.testing.assert_array_equal(whole.params["w"], long.params["w"])
    assert whole.ledger == long.ledger
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ledger"]["epsilon"] == spent(3) and "train/" in summary["privacy"]
    with pytest.raises(ValueError, match=r"expected privacy.epsilon to pay for a round, which costs .*, got 0.001"):
        ftx.run(EXPERIMENT, 9, privacy=privacy.Budget(delta=DELTA, epsilon=0.001), progress=False)


@pytest.mark.slow
def test_private_metrics_are_all_that_is_told_of_training_and_are_accounted_for(tmp_path):
    budget = privacy.Budget(delta=DELTA, private_metrics=True, max_metric=4.0, metrics_noise=2.0, accountant="rdp")
    options = {"progress": False, "execution": EXECUTION, "run_dir": tmp_path / "run"}
    result = ftx.run(EXPERIMENT, 2, privacy=budget, **options)
    assert [name for name in result.history[0] if name.startswith("train/")] == ["train/private_loss"]
    assert result.ledger["epsilon"] == pytest.approx(privacy.epsilon(2.0 / np.sqrt(1 + 1 / 4), 1.0, 2, DELTA, "rdp"))
    assert "train/ numbers, with noise of their own, are covered too" in result.privacy
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["privacy"] == result.privacy
    # Rounds whose metrics had no noise don't go on as if they had, nor the other way round.
    with pytest.raises(ValueError, match=r"but privacy.max_metric is 4.0 there and None here; privacy.metrics_noise is 2.0"):
        ftx.run(EXPERIMENT, 3, privacy=privacy.Budget(delta=DELTA), **options)
    # Without noise it is the mean loss over the six clients, of whom the one without examples stands in the middle.
    silent = dataclasses.replace(EXPERIMENT, hyper={"noise": 0.0})
    told = ftx.run(silent, 1, privacy=budget, progress=False, execution=EXECUTION)
    round_fn = ftx.make_round(silent, EXECUTION)
    state, info = round_fn(round_fn.init())
    losses, weights = info.client_metrics["loss"]
    expected = (losses[weights > 0].clip(0, 4).sum() + 2.0 * (weights == 0).sum()) / 6
    assert told.history[0]["train/private_loss"] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(told.params["w"], state.device.server.params["w"], rtol=1e-5, atol=1e-7)
    assert told.ledger["epsilon"] == math.inf


@pytest.mark.slow
def test_an_adaptive_norm_is_state_of_the_run_and_goes_on_when_the_run_does(tmp_path):
    def make(hyper):
        adaptive = agg.adaptive_clip(agg.fixed_mean(6), agg.gaussian_noise(hyper["noise"]), first_norm=hyper["first_norm"])
        return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=adaptive)

    experiment = problems.experiment(make, hyper={"noise": 0.3, "first_norm": 0.5}, cohorts=HALF)
    budget = privacy.Budget(delta=DELTA)
    options = {"privacy": budget, "progress": False, "evaluate_every": 2, "execution": EXECUTION}
    whole = ftx.run(experiment, 6, **options)
    ftx.run(experiment, 4, run_dir=tmp_path / "run", **options)
    again = ftx.run(experiment, 6, run_dir=tmp_path / "run", **options)
    jax.tree.map(np.testing.assert_array_equal, whole.state.device, again.state.device)
    norms = [record["aggregation/clip_norm"] for record in again.history]
    assert norms == [record["aggregation/clip_norm"] for record in whole.history] and len(set(norms)) == 6
    assert whole.ledger["epsilon"] == privacy.epsilon(0.3, 0.5, 6, DELTA) and whole.ledger == again.ledger
    # Side by side in a sweep, each setting follows a norm of its own.
    swept = ftx.sweep(experiment, 3, {"first_norm": [0.5, 0.1]}, progress=False)
    alone = ftx.run(dataclasses.replace(experiment, hyper={"noise": 0.3, "first_norm": 0.1}), 3, progress=False)
    have = [record["aggregation/clip_norm"] for record in swept.history[1]]
    np.testing.assert_allclose(have, [record["aggregation/clip_norm"] for record in alone.history], rtol=1e-4)


def test_private_metrics_have_noise_of_the_kind_that_the_updates_have():
    tree = privacy.tree_factorization(4, max_participations=2)
    correlated = agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2), agg.correlated_noise(3.0, tree))
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=correlated)
    (one,) = privacy.with_private_metrics(algorithm, 2, metrics_noise=1.0).passes
    assert (one.aggregator.noise_multiplier, one.aggregator.factorization) == (pytest.approx(3 / np.sqrt(2)), tree)
    spent = spent_on(ftx.data.separated_cohorts(2, 2, max_participations=2), one.aggregator)
    limits = ftx.data.separated_cohorts(2, 2, max_participations=2).participation
    assert spent(4) == pytest.approx(privacy.epsilon_of_correlated_noise(3 / 2**0.5, tree, 4, DELTA, participation=limits))


def test_clients_who_remember_are_refused():
    remembering = agg.chain(agg.clip_norm(1.0), agg.top_k(0.5), agg.fixed_mean(2))
    noisy_memory = remembering._replace(noise_multiplier=1.0)
    remembers = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=noisy_memory)
    with pytest.raises(ValueError, match="to remember nothing from round to round"):
        ftx.run(problems.experiment(remembers, cohorts=ALL), 1, privacy=privacy.Budget(delta=DELTA), progress=False)

    def make(hyper):
        return ftx.algorithms.mime(problems.LOGISTIC, optax.sgd(0.1))

    with pytest.raises(ValueError, match="expected aggregators to be one"):
        ftx.run(problems.experiment(make), 1, privacy=privacy.Budget(delta=DELTA), progress=False)
