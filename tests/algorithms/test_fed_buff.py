"""FedBuff: delayed updates on paper, the synchronous run as its limit, the ring, the clock's times in the history, resumption."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx import prng
from fedjax_tx.simulation.round import run_rounds
from fedjax_tx.training.ledger import bytes_a_client

WHOLE = ftx.data.LocalWork(batch_size=4, shuffle=False)
ROOT = 2**-0.5


def on_paper(hyper):
    return ftx.algorithms.fed_buff(scalars.TASK, optax.sgd(scalars.HALF_WAY), max_staleness=6)


def assert_close(left, right, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


def written_down(*rounds):
    """A source of the cohorts and versions written down: [[(client, version), ...], ...]"""

    def select(state, generator, last):
        ids, version = (np.array(values) for values in zip(*rounds[int(state)], strict=True))
        return ftx.Cohort(ids, version), state + 1

    most = max(map(len, rounds))
    return ftx.data.all_clients()._replace(init=lambda n: np.int64(0), select=select, max_clients=lambda n: most)


def play_paper(examples, cohorts, rounds, make_algorithm=on_paper, **execution):
    experiment = problems.experiment(make_algorithm, hyper={}, train=scalars.clients(*examples), local=WHOLE, cohorts=cohorts)
    return problems.play(experiment, rounds, **execution)


# ---- on paper


def test_three_updates_of_a_fully_asynchronous_server_by_hand():
    # Clients A, B, C at 4, -4, 8 train for 1, 2, 5; the buffer holds one. A client ends half the way to its number.
    # t=1  A from w0 = 0: ends at 2,  delta -2,    age 0:  w1 = 2.
    # t=2  B from w0 = 0: ends at -2, delta 2,     age 1:  w2 = 2 - 2 / sqrt(2) = 0.5858.
    # t=2  A from w1 = 2: ends at 3,  delta -1,    age 1:  w3 = w2 + 1 / sqrt(2) = 1.2929.
    cohorts = ftx.data.async_cohorts([1, 2, 5], concurrency=3, buffer_size=1, max_staleness=6)
    state, infos = play_paper([[4], [-4], [8]], cohorts, 3)
    assert [(info.client_ids.tolist(), info.metrics["staleness"]) for info in infos] == [([0], 0), ([1], 1), ([0], 1)]
    w1, w2, w3 = 2.0, 2 - 2 * ROOT, 2 - ROOT
    np.testing.assert_allclose(state.device.server.params["w"], w3, rtol=1e-6)
    np.testing.assert_allclose(state.device.server.extra["w"], [w3, w2, w1, 0, 0, 0, 0], rtol=1e-6)
    # The losses at the starts: (0 - 4)^2, (0 + 4)^2, (2 - 4)^2.
    np.testing.assert_allclose([info.metrics["loss"] for info in infos], [16, 16, 4], rtol=1e-6)


# Who arrives how stale, worked out in tests/data/test_clock.py.
CLOCK_1_2_5 = ["A0", "B1", "A1", "A0", "B1", "A1", "C6", "A1", "B2", "A1"]


@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(1, 1), (1, 4)])
def test_ten_updates_of_a_fully_asynchronous_server_are_those_of_a_plain_loop(num_lanes, rounds_per_call):
    numbers, models = {"A": 4.0, "B": -4.0, "C": 8.0}, [0.0]
    for client, age in CLOCK_1_2_5:
        start = models[len(models) - 1 - int(age)]
        delta = start - (start + numbers[client]) / 2
        models.append(models[-1] - delta / np.sqrt(1 + int(age)))
    cohorts = ftx.data.async_cohorts([1, 2, 5], concurrency=3, buffer_size=1, max_staleness=6)
    state, infos = play_paper([[4], [-4], [8]], cohorts, 10, num_lanes=num_lanes, rounds_per_call=rounds_per_call)
    np.testing.assert_allclose(state.device.server.params["w"], models[-1], rtol=1e-5)
    np.testing.assert_allclose(state.device.server.extra["w"], models[:-8:-1], rtol=1e-5)
    assert [info.metrics["virtual_time"] for info in infos] == [1, 2, 2, 3, 4, 4, 5, 5, 6, 6]


def test_a_buffer_of_updates_of_different_age_and_size_by_hand():
    # Client 0 holds 8, client 1 holds -8 three times; the server's rate is 1/2.
    # Round 1: client 0 from w0 = 0: delta -4; w1 = 2.
    # Round 2: client 1 from w0 = 0, age 1: delta 4, s = 1/2; client 0 from w1 = 2, age 0: delta 2 - 5 = -3, s = 1.
    #          s is not in the denominator: mean (3 * 2 + 1 * -3) / 4 = 3/4; w2 = 2 - 3/8.
    def halves(hyper):
        return ftx.algorithms.fed_buff(
            scalars.TASK,
            optax.sgd(scalars.HALF_WAY),
            max_staleness=1,
            server_optimizer=optax.sgd(0.5),
            staleness_weight=lambda staleness: 1 / (1 + staleness),
        )

    cohorts = written_down([(0, 0)], [(1, 1), (0, 0)])
    state, _ = play_paper([[8], [-8, -8, -8]], cohorts, 2, halves)
    np.testing.assert_allclose(state.device.server.extra["w"], [1.625, 2], rtol=1e-6)


def test_a_buffer_without_an_example_ages_the_models_and_moves_nothing():
    def with_momentum(hyper):
        server = optax.sgd(1.0, momentum=0.5)
        return ftx.algorithms.fed_buff(scalars.TASK, optax.sgd(scalars.HALF_WAY), 2, server)

    # w1 = 2 (momentum -2).  Client 1 holds nothing: w2 = w1.  Client 2 (8) began when the server had made one step, at w1 = 2:
    # delta 2 - 5 = -3, s = 1/sqrt(2), momentum 0.5 * -2 - 3/sqrt(2): w3 = 2 + 1 + 3/sqrt(2).
    cohorts = written_down([(0, 0)], [(1, 0)], [(2, 1)])
    state, infos = play_paper([[4], [], [8]], cohorts, 3, with_momentum)
    assert [info.empty for info in infos] == [False, True, False]
    np.testing.assert_allclose(state.device.server.extra["w"], [3 + 3 * ROOT, 2, 2], rtol=1e-6)


# ---- laws


def buffered(hyper):
    return ftx.algorithms.fed_buff(problems.LOGISTIC, optax.sgd(0.1, momentum=0.9), 3, optax.adam(0.05))


def test_at_equal_speeds_it_is_the_synchronous_run_with_the_same_cohorts_bit_for_bit():
    clock = ftx.data.async_cohorts(np.full(6, 2.5), concurrency=3, buffer_size=3, max_staleness=3)
    state, infos = problems.play(problems.experiment(buffered, hyper={}, cohorts=clock), 6, 2, 3)
    cohorts = [info.client_ids.tolist() for info in infos]
    assert len({tuple(sorted(ids)) for ids in cohorts}) > 1
    assert {info.metrics["staleness"] for info in infos} == {0.0}

    def averaged(hyper):
        return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1, momentum=0.9), optax.adam(0.05))

    plain = problems.experiment(averaged, hyper={}, cohorts=ftx.data.fixed_cohorts(cohorts))
    want, want_infos = problems.play(plain, 6, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, state.device.server.params, want.device.server.params)
    jax.tree.map(np.testing.assert_array_equal, state.device.server.optimizer, want.device.server.optimizer)
    assert [info.metrics["loss"] for info in infos] == [info.metrics["loss"] for info in want_infos]


def random_durations(generator, ids):
    return generator.exponential(1.0 + ids)


ASYNC = ftx.data.async_cohorts(random_durations, concurrency=5, buffer_size=4, max_staleness=3)


@pytest.fixture(scope="module")
def one_by_one():
    return problems.play(problems.experiment(buffered, hyper={}, cohorts=ASYNC), 6, num_lanes=1)


@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(2, 3), (6, 4)])
def test_lanes_and_calls_change_nothing(one_by_one, num_lanes, rounds_per_call):
    want, want_infos = one_by_one
    state, infos = problems.play(problems.experiment(buffered, hyper={}, cohorts=ASYNC), 6, num_lanes, rounds_per_call)
    assert_close(state.device.server.extra, want.device.server.extra, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, state.cohorts, want.cohorts)
    for info, want_info in zip(infos, want_infos, strict=True):
        assert info.client_ids.tolist() == want_info.client_ids.tolist()
        assert_close(info.client_metrics, want_info.client_metrics, rtol=1e-4)
    assert max(info.client_metrics["staleness"][0].max() for info in infos) > 0


def test_lanes_do_not_hold_copies_of_the_ring():
    width, lanes = 64, 6
    task = ftx.tasks.classification(
        ftx.Model(lambda key: jnp.zeros((2, width, width)), lambda params, x, *, key=None: (x @ params[0, :2]) @ params[1])
    )

    def temporary_bytes(max_staleness):
        algorithm = ftx.algorithms.fed_buff(task, optax.sgd(0.1), max_staleness)
        round_fn = ftx.make_round(problems.experiment(algorithm, hyper={}), ftx.Execution(lanes, 1))
        state = round_fn.init()
        arguments = round_fn.arguments(state, round_fn.plan(state, 1))
        return run_rounds.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    model = 4 * 2 * width * width
    more = temporary_bytes(40) - temporary_bytes(0)
    # Less than one ring more; lanes that carry it add one each, six in all.
    assert more < 1.5 * 40 * model, more / (40 * model)


def test_a_client_is_charged_for_one_model_each_way_as_in_fed_avg():
    experiments = (problems.experiment(), problems.experiment(buffered, hyper={}))
    round_fns = [ftx.make_round(experiment, ftx.Execution(num_lanes=1)) for experiment in experiments]
    averaged, asynchronous = (bytes_a_client(round_fn, round_fn.init()) for round_fn in round_fns)
    assert asynchronous == averaged == (36, 36)


# ---- times, resumption, refusals


def test_virtual_times_and_staleness_reach_the_history_and_a_resumed_run_is_the_run(tmp_path):
    def run(rounds, directory):
        experiment = problems.experiment(buffered, hyper={}, cohorts=ASYNC)
        execution = ftx.Execution(num_lanes=2, rounds_per_call=3)
        return ftx.run(experiment, rounds, execution=execution, run_dir=directory, evaluate_every=2, progress=False)

    whole = run(6, tmp_path / "whole")
    run(4, tmp_path / "parts")
    parts = run(6, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, parts.state.device, whole.state.device)
    jax.tree.map(np.testing.assert_array_equal, parts.state.cohorts, whole.state.cohorts)
    assert parts.history == whole.history

    source, want = ASYNC, []
    state = source.init(6)
    for number in range(6):
        cohort, state = source.select(state, prng.host_generator(3, "cohort", number), None)
        want.append((float(state.now), float(np.mean(cohort.version)), float(cohort.covariates["dropped_updates"][0])))
    names = ("train/virtual_time", "train/staleness", "train/dropped_updates")
    np.testing.assert_allclose([[record[name] for name in names] for record in whole.history], want, rtol=1e-6)


def test_a_clock_of_older_starts_than_the_ring_holds_is_refused_before_anything_compiles():
    clock = ftx.data.async_cohorts(np.ones(6), concurrency=2, buffer_size=2, max_staleness=4)
    message = "expected the cohorts' max_version <= 3, the oldest start that the algorithm serves, got 4"
    with pytest.raises(ValueError, match=message):
        ftx.make_round(problems.experiment(buffered, hyper={}, cohorts=clock), ftx.Execution(num_lanes=1))
    with pytest.raises(ValueError, match="the cohorts' max_version <= 0"):  # nor has FedAvg any past model to hand out
        ftx.make_round(problems.experiment(cohorts=clock), ftx.Execution(num_lanes=1))


def test_a_version_beyond_the_ring_is_refused_on_the_host():
    round_fn = ftx.make_round(problems.experiment(buffered, hyper={}, cohorts=written_down([(0, 4)])), ftx.Execution(num_lanes=1))
    message = r"expected the cohort's version in 0..3, the starts that the algorithm serves, got \[4\]"
    with pytest.raises(ValueError, match=message):
        round_fn(round_fn.init())


def test_a_ring_of_less_than_the_current_model_is_refused():
    with pytest.raises(ValueError, match="expected max_staleness >= 0, got -1"):
        ftx.algorithms.fed_buff(scalars.TASK, optax.sgd(0.1), max_staleness=-1)
    with pytest.raises(TypeError, match="expected max_staleness to be an integer"):
        ftx.algorithms.fed_buff(scalars.TASK, optax.sgd(0.1), max_staleness=True)
