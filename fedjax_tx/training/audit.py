"""``ftx.audit``: a private run with canaries among its clients, and how much of them is found in its parameters."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fedjax_tx import attacks, check, prng, tree
from fedjax_tx.data import FederatedDataset
from fedjax_tx.privacy import Audit, Budget, epsilon_lower_bound
from fedjax_tx.privacy.auditing import CANARY_WEIGHT, LEAST_SCORES
from fedjax_tx.simulation import Experiment
from fedjax_tx.simulation.round import resolve
from fedjax_tx.simulation.rounds import build_round
from fedjax_tx.training.run import check_run, run
from fedjax_tx.types import Execution, LocalWork, PyTree


def audit(
    experiment: Experiment,
    rounds: int,
    privacy: Budget,
    *,
    canaries: int,
    norm: float,
    confidence: float = 0.95,
    reference: Mapping[str, Any] | None = None,
    init_params: PyTree = None,
    execution: Execution | None = None,
) -> Audit:
    """Runs a private experiment with canaries among its clients and returns a lower bound on its epsilon beside what it claims.

    Each canary joins the clients by the toss of a coin, for the whole run; one that has joined is drawn into cohorts as others
    are, rides in the lanes, and sends a direction of its own (``ftx.attacks.canaries``, arXiv 2302.03098), of a weight beyond all
    bounds: noise must hide it whatever number of examples it says it has. Its score is how far the parameters have gone in that
    direction when the run ends. All scores are of one run, and make a bound by arXiv 2305.08846.

    What all other clients do moves the parameters too, also in the canaries' directions, and hides them. An attacker who knows
    these clients can tell roughly where they would go: with a ``reference``, a run without canaries tells it.

    The bound is of the run with canaries, which is not a run to use: they disturb it, and in its claim they count as clients. It
    looks at the last parameters only. Where there are not some times more parameters than canaries, it is weak.

    Args:
      experiment: with noise and cohorts that can be accounted for; not of ``with_covariates``, whose tables have no canaries.
      rounds, privacy, init_params, execution: as of ``ftx.run``.
      canaries: >= 20, of which about half join; 1,000 is usual.
      norm: > 0, of what they send; at least that to which updates are clipped.
      confidence: between 0.5 and 1, the chance that the bound holds.
      reference: hyperparameters in which a run of another seed, without canaries, differs from the experiment's: how far its
        parameters go is taken off. Without noise (say ``{"noise_multiplier": 0.0}``) it tells most; ``{}`` changes none.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range, or the experiment can't be accounted for.
      ModuleNotFoundError: if ``jax-privacy`` or ``dp-accounting`` is not installed.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> train = ftx.data.FederatedDataset.from_columns({"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}, [0, 0, 1, 1])
      >>> task = ftx.tasks.classification(ftx.Model(lambda key: jnp.zeros((4, 40)), lambda params, x, *, key=None: x @ params))
      >>> noisy = ftx.aggregation.chain(
      ...     ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(10), ftx.aggregation.gaussian_noise(5.0))
      >>> experiment = ftx.Experiment(
      ...     ftx.algorithms.fed_avg(task, optax.sgd(0.1), aggregator=noisy), train=train,
      ...     cohorts=ftx.data.all_clients(), local=ftx.data.LocalWork(batch_size=2))
      >>> budget, one_lane = ftx.privacy.Budget(delta=1e-5), ftx.Execution(num_lanes=1, rounds_per_call=1)
      >>> found = audit(experiment, 1, budget, canaries=20, norm=1.0, execution=one_lane)  # doctest: +SKIP
      >>> found.refuted  # doctest: +SKIP
      False
    """
    execution = Execution() if execution is None else execution
    check_run(experiment, rounds, {}, execution, None, evaluate_every=1)
    check.instance("privacy", privacy, Budget, "an ftx.privacy.Budget")
    canaries = check.integer("canaries", canaries, low=20)
    check.number("norm", norm, above=0)
    check.number("confidence", confidence, above=0.5, below=1)
    if reference is not None:
        for name in check.mapping("reference", reference):
            check.one_of("a name of reference", name, list(experiment.hyper))
    _refuse_cohorts(experiment, canaries)
    joined = _toss(canaries, experiment.seed)
    audited = _with_canaries(experiment, joined, norm)
    server = build_round(audited, {}, 1, Execution(), None).init(init_params=init_params).device.server
    result = run(audited, rounds, None, init_params, execution, privacy=privacy, progress=False)
    moved = tree.subtract(server.params, result.state.device.server.params)
    if reference is not None:
        # Of another seed: the noise of the audited run, and who was drawn in it, an attacker doesn't know.
        expected = dataclasses.replace(experiment, hyper={**experiment.hyper, **reference}, seed=(experiment.seed + 1) % 2**32)
        begin = (server.params, server.frozen) if jax.tree.leaves(server.frozen) else server.params
        last = run(expected, rounds, None, begin, execution, progress=False).state.device.server.params
        moved = tree.subtract(moved, tree.subtract(server.params, last))
    scores = np.asarray(_scores(moved, experiment.train.num_clients + jnp.arange(canaries), experiment.seed))
    inside, outside = scores[joined], scores[~joined]
    bound = epsilon_lower_bound(inside, outside, privacy.delta, method="one_run", confidence=confidence)
    return Audit(bound, result.ledger["epsilon"], privacy.delta, confidence, inside, outside)


def _toss(canaries: int, seed: int) -> np.ndarray:
    """Who joins, bool [canary]: each by itself, as the bound of one run asks for."""
    joined = prng.host_generator(seed, "canaries").random(canaries) < 0.5
    if min(joined.sum(), (~joined).sum()) < LEAST_SCORES:
        expected = f"to be more, or the seed another, lest fewer than {LEAST_SCORES} join or don't ({joined.sum()} would join)"
        check.fail_value("canaries", expected, canaries)
    return joined


def _refuse_cohorts(experiment: Experiment, canaries: int) -> None:
    """Refuses a source made for the experiment's own clients: of canaries its tables say nothing."""
    try:
        experiment.cohorts.init(experiment.train.num_clients + canaries)
    except ValueError as error:
        expected = f"to take {canaries} canaries for clients, as with_covariates and other tables of clients do not ({error})"
        check.fail_value("the cohorts of an audit", expected, experiment.cohorts.description)


def _with_canaries(experiment: Experiment, joined: np.ndarray, norm: float) -> Experiment:
    """The experiment with canaries behind its clients; one that has not joined has no example, so it takes no part."""
    train, count = experiment.train, joined.size
    train.refuse_part()
    # One row, and any, will do: neither what a canary sends nor its weight depends on it.
    columns = {name: np.concatenate([column, column[np.zeros(joined.sum(), int)]]) for name, column in train.columns.items()}
    offsets = np.append(train.offsets, train.offsets[-1] + np.cumsum(joined))
    ids = range(train.num_clients, train.num_clients + count)

    def make_algorithm(hyper):
        algorithm = resolve(experiment.make_algorithm, hyper)
        return attacks.canaries(algorithm, ids, norm, weight=CANARY_WEIGHT, seed=experiment.seed)

    data = FederatedDataset.from_offsets(columns, offsets)
    local = _work_for_more(experiment.local, count)
    return dataclasses.replace(experiment, make_algorithm=make_algorithm, train=data, local=local)


def _work_for_more(local: LocalWork, more: int) -> LocalWork:
    """The local work, one epoch or step for clients behind those who have entries of their own."""

    def longer(value):
        return np.append(value, np.ones(more, np.int64)) if isinstance(value, np.ndarray) else value

    return dataclasses.replace(local, epochs=longer(local.epochs), steps=longer(local.steps))


@partial(jax.jit, static_argnames="seed")
def _scores(moved: PyTree, clients: Array, seed: int) -> Array:
    """How far the parameters moved in each canary's direction, [canary]."""
    structure = tree.Structure.of(moved)

    def score(client):
        return structure.ravel(attacks.canary_direction(moved, client, seed)) @ structure.ravel(moved)

    return jax.lax.map(score, clients)
