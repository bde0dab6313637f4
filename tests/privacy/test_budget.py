"""What a run spends, against the accountants called by hand; where it ends; and what is refused, with the reason."""

import json
import math

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


@pytest.mark.parametrize(
    ("cohorts", "aggregator", "message"),
    [
        (
            ftx.data.uniform_cohorts(2),
            agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2)),
            "private run to have noise",
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
