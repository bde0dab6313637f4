"""Power-of-choice: who is chosen by hand, its limit, and the losses of a run as the next round's choice sees them."""

import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx import prng
from fedjax_tx.data import power_of_choice_cohorts, weighted_cohorts

EQUAL = np.ones(4)


def told(ids, losses, weights=None):
    weights = np.ones(len(ids)) if weights is None else np.array(weights)
    return np.array(ids), {"loss": (np.array(losses), weights)}


def generator(number=0):
    return prng.host_generator(0, "cohort", number)


def test_the_largest_losses_of_all_are_taken_and_the_unheard_before_them():
    source = power_of_choice_cohorts(2, 4, EQUAL)
    ids, state = source.select(source.init(4), generator(), told([0, 1, 2, 3], [0.5, 3.0, 1.0, 2.0]))
    assert ids.tolist() == [1, 3] and state.tolist() == [0.5, 3.0, 1.0, 2.0]
    ids, state = source.select(state, generator(1), told([1, 3], [0.1, 0.2]))
    assert ids.tolist() == [2, 0] and state.tolist() == [0.5, 0.1, 1.0, 0.2]
    ids, state = source.select(source.init(4), generator(), told([0, 2], [9.0, 8.0]))
    assert sorted(ids.tolist()) == [1, 3] and state.tolist() == [9.0, np.inf, 8.0, np.inf]


def test_only_candidates_are_taken_who_are_drawn_by_weight():
    losses = np.array([0.0, 1.0, 2.0, 3.0])
    source, counts = power_of_choice_cohorts(1, 2, [4, 3, 2, 1]), np.zeros(4)
    for number in range(2000):
        ids, _ = source.select(losses, generator(number), None)
        counts[ids] += 1
    # The pair {i, j} comes with w_i w_j (1 / (10 - w_i) + 1 / (10 - w_j)) / 10; the larger number of it is taken.
    pair = lambda a, b: a * b * (1 / (10 - a) + 1 / (10 - b)) / 10  # noqa: E731
    want = [0, pair(4, 3), pair(4, 2) + pair(3, 2), pair(4, 1) + pair(3, 1) + pair(2, 1)]
    np.testing.assert_allclose(counts, 2000 * np.array(want), atol=5 * 22)
    assert counts[0] == 0  # with a candidate beside it, the least loss is never taken


def test_with_as_many_candidates_as_clients_of_a_round_it_draws_by_weight():
    ours, theirs = power_of_choice_cohorts(2, 2, [4, 3, 2, 1]), weighted_cohorts(2, [4, 3, 2, 1])
    for number in range(5):
        state = np.array([3.0, 1.0, 2.0, 4.0])
        drawn = [source.select(own, generator(number), None)[0] for source, own in ((ours, state), (theirs, theirs.init(4)))]
        assert sorted(drawn[0].tolist()) == sorted(drawn[1].tolist())


def test_who_tells_no_loss_keeps_the_one_it_had():
    source, state = power_of_choice_cohorts(1, 4, EQUAL), np.array([1.0, 2.0, 3.0, np.inf])
    before = state.copy()
    _, after = source.select(state, generator(), told([0, 1, 2], [5.0, np.nan, 7.0], [0.0, 1.0, 1.0]))
    assert after.tolist() == [1.0, 2.0, 7.0, np.inf]
    np.testing.assert_array_equal(state, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2, EQUAL), "expected clients_per_round <= 2, the number of candidates, got 3"),
        ((1, 3, [1, 1, 0]), "expected candidates <= 2, the clients of positive weight, got 3"),
    ],
)
def test_counts_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        power_of_choice_cohorts(*arguments)


def test_what_does_not_fit_a_run_is_refused():
    source = power_of_choice_cohorts(1, 1, [1, 1])
    with pytest.raises(ValueError, match="expected weights to have 3 entries, one for each client, got '2 entries'"):
        source.init(3)
    with pytest.raises(ValueError, match=r"the clients' metrics to hold 'loss', .* got \['accuracy'\]"):
        source.select(source.init(2), generator(), (np.array([0]), {"accuracy": (np.ones(1), np.ones(1))}))


def test_a_run_hears_everybody_and_then_whoever_was_furthest_by_hand():
    # Four clients at 1, 2, 3, 4: whoever trains moves w half the way to its number, from a loss of (w - number)^2.
    algorithm = ftx.algorithms.fed_avg(scalars.TASK, optax.sgd(scalars.HALF_WAY))
    data, cohorts = scalars.clients([1], [2], [3], [4]), power_of_choice_cohorts(1, 4, EQUAL)
    work = ftx.data.LocalWork(batch_size=1)
    plain = problems.experiment(algorithm, hyper={}, train=data, local=work, cohorts=cohorts)
    state, infos = problems.play(plain, 9, num_lanes=1)
    order, w, losses = [int(info.client_ids[0]) for info in infos], 0.0, np.full(4, np.inf)
    assert sorted(order[:4]) == [0, 1, 2, 3]
    for client in order:
        assert losses[client] == losses.max()
        losses[client] = (w - client - 1) ** 2
        w = (w + client + 1) / 2
    np.testing.assert_allclose(state.device.server.params["w"], w, rtol=1e-6)
