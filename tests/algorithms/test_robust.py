"""Krum and the median behind streaming lanes, against NumPy on the plain updates of the clients, with and without an attacker."""

import functools

import by_hand
import jax
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg

CLIENT_LR = 0.1
COHORTS = [[0, 2, 3, 4, 5], [3, 5, 2, 0], [5, 1, 4, 3], [4], [], [1, 2, 0, 3, 5, 4]]
START = {"w": np.float32([[0.3, -0.2, 0.1], [-0.1, 0.2, 0.4]]), "b": np.float32([0.1, 0.0, -0.1])}
ATTACKER = 3
RULES = {"krum": agg.krum(1), "median": agg.median(), "mean": agg.mean()}
ALGORITHMS = {
    name: ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(CLIENT_LR), aggregator=rule) for name, rule in RULES.items()
}


@functools.cache
def clients(attacked: bool) -> ftx.data.FederatedDataset:
    data = problems.ragged_clients()
    if not attacked:
        return data
    columns = dict(data.columns)
    rows = slice(*data.offsets[ATTACKER : ATTACKER + 2])
    columns["x"] = columns["x"].copy()
    columns["x"][rows] *= 1000
    return ftx.data.FederatedDataset(columns, data.offsets, data.client_ids)


@functools.cache
def play(name: str, num_lanes: int = 2, rounds_per_call: int = 1, attacked: bool = False):
    """Parameter vectors before and after each call, and the infos of all rounds."""
    experiment = problems.experiment(
        ALGORITHMS[name],
        hyper={},
        train=clients(attacked),
        cohorts=ftx.data.fixed_cohorts(COHORTS),
        local=by_hand.work(),
    )
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, rounds_per_call=rounds_per_call))
    state, infos = round_fn.init(init_params=START), []
    vectors = [by_hand.as_vector(state.device.server.params)]
    while state.round < len(COHORTS):
        state, more = round_fn.run(state, min(rounds_per_call, len(COHORTS) - state.round))
        vectors.append(by_hand.as_vector(state.device.server.params))
        infos += more
    return vectors, infos


def krum_by_hand(deltas: np.ndarray, num_byzantine: int = 1) -> int:
    """The row of least summed squared distance to its n - f - 2 nearest others (one at least)."""
    squared = np.square(deltas[:, None] - deltas[None]).sum(-1)
    neighbours = max(len(deltas) - num_byzantine - 2, 1)
    scores = [np.sort(np.delete(row, number))[:neighbours].sum() for number, row in enumerate(squared)]
    return int(np.argmin(scores))


def taking_part(cohort) -> list[int]:
    return [client for client in cohort if problems.SIZES[client]]


def rounds(name: str, attacked: bool):
    """Of each round: who took part, their updates by hand [client, 9], how far the server moved, and the info."""
    vectors, infos = play(name, attacked=attacked)
    for cohort, before, after, info in zip(COHORTS, vectors[:-1], vectors[1:], infos, strict=True):
        takers = taking_part(cohort)
        deltas = [by_hand.delta(before, clients(attacked), client, CLIENT_LR) for client in takers]
        yield takers, np.reshape(deltas, (-1, 9)), before - after, info


@pytest.mark.parametrize("attacked", [False, True])
def test_krum_takes_the_update_that_it_takes_by_hand(attacked):
    chosen = []
    for takers, deltas, moved, info in rounds("krum", attacked):
        assert info.aggregation["krum_too_few"] == (len(takers) < 5)
        if not takers:
            assert info.empty and not moved.any()
            continue
        row = krum_by_hand(deltas)
        np.testing.assert_allclose(moved, deltas[row], rtol=1e-3, atol=2e-6)
        assert info.client_ids[info.aggregation["krum_chosen"]] == takers[row]
        chosen.append(takers[row])
    assert len(chosen) == 5 and len(set(chosen)) > 1
    if attacked:
        assert ATTACKER not in chosen


@pytest.mark.parametrize("attacked", [False, True])
def test_the_median_is_that_of_the_clients_that_take_part(attacked):
    for takers, deltas, moved, info in rounds("median", attacked):
        want = np.median(deltas, axis=0) if takers else np.zeros(9)
        np.testing.assert_allclose(moved, want, rtol=1e-3, atol=2e-6)
        assert info.num_clients == len(takers) and info.empty == (not takers)


def test_cohorts_are_of_several_sizes_below_the_capacity_and_some_clients_take_no_part():
    sizes = [len(taking_part(cohort)) for cohort in COHORTS]
    assert sizes == [5, 4, 3, 1, 0, 5] and max(map(len, COHORTS)) == 6


@pytest.mark.parametrize("name", ["krum", "median"])
def test_an_attacker_moves_the_mean_far_and_a_robust_rule_no_further_than_an_honest_client_would(name):
    (_, deltas, by_mean, _), (_, _, by_rule, _) = next(rounds("mean", True)), next(rounds(name, True))
    attack = COHORTS[0].index(ATTACKER)
    honest = np.delete(deltas, attack, axis=0)
    largest = np.abs(honest).max(0)
    assert np.abs(deltas[attack]).max() > 10 * largest.max()
    assert (np.abs(by_rule) <= largest + 1e-6).all()
    assert np.abs(by_mean).max() > 3 * largest.max()


@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(1, 6), (6, 1)])
@pytest.mark.parametrize("name", ["krum", "median"])
def test_robust_rounds_do_not_depend_on_lanes_or_calls(name, num_lanes, rounds_per_call):
    vectors, infos = play(name)
    others, other_infos = play(name, num_lanes, rounds_per_call)
    np.testing.assert_allclose(others[-1], vectors[-1], rtol=1e-4, atol=1e-6)
    for info, other in zip(infos, other_infos, strict=True):
        assert info.aggregation == other.aggregation


def test_krum_for_more_attackers_than_a_round_can_bear_is_refused():
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=agg.krum(2))
    round_fn = ftx.make_round(problems.experiment(algorithm), ftx.Execution(num_lanes=1))
    with pytest.raises(ValueError, match=r"num_byzantine at most 1 for 6 clients a round \(n >= 2f \+ 3\), got 2"):
        round_fn(round_fn.init(init_params=jax.tree.map(np.zeros_like, START)))
