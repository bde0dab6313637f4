"""Compressed updates in rounds: top-k with each client's own memory, DRIVE's decoding of each message, and the bytes sent."""

import functools

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx.training.ledger import bytes_a_client

CLIENT_LR = 0.1
COHORTS = [[0, 2, 3], [3, 5, 1], [0, 3, 4, 5]]
START = {"w": np.float32([[0.3, -0.2, 0.1], [-0.1, 0.2, 0.4]]), "b": np.float32([0.1, 0.0, -0.1])}


def algorithm_of(*stages):
    aggregator = agg.chain(*stages, agg.mean())
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(CLIENT_LR), aggregator=aggregator)


PLAIN = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(CLIENT_LR))
TOP_QUARTER = algorithm_of(agg.top_k(0.25))
TOP_ALL = algorithm_of(agg.top_k(1.0))
DRIVE = algorithm_of(agg.drive())
FOUR_BITS = algorithm_of(agg.quantize(4, bucket_size=4))
INTEGERS = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=agg.integer_mean(1.0, 1e-3, 6))


def round_of(algorithm, num_lanes=2, rounds_per_call=1):
    experiment = problems.experiment(algorithm, hyper={}, cohorts=ftx.data.fixed_cohorts(COHORTS), local=by_hand.work())
    return ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, rounds_per_call=rounds_per_call))


@functools.cache
def play(algorithm, num_lanes=2, rounds_per_call=1, rounds=3):
    """The states before and after each call of the program."""
    round_fn = round_of(algorithm, num_lanes, rounds_per_call)
    states = [round_fn.init(init_params=START)]
    while states[-1].round < rounds:
        state, _ = round_fn.run(states[-1], min(rounds_per_call, rounds - states[-1].round))
        states.append(state)
    return states


def vector_of(state):
    return by_hand.as_vector(state.device.server.params)


def memory_of(state) -> np.ndarray:
    (encoders,) = state.device.encoders
    (memory,) = jax.tree.leaves(encoders)
    return np.asarray(memory, np.float64)


# ---- top-k with error feedback


def test_error_feedback_by_hand_over_rounds_with_partial_participation():
    # k = ceil(9 / 4) = 3 of 9 coordinates; client 1 has no example, so it sends nothing and remembers nothing.
    states, data = play(TOP_QUARTER), problems.ragged_clients()
    vector, memory = vector_of(states[0]), np.zeros((6, 9))
    corrected = 0
    for cohort, state in zip(COHORTS, states[1:], strict=True):
        total = np.zeros(9)
        for client in [client for client in cohort if problems.SIZES[client]]:
            wanted = by_hand.delta(vector, data, client, CLIENT_LR) + memory[client]
            sent = np.where(np.argsort(np.argsort(-np.abs(wanted))) < 3, wanted, 0)
            corrected += bool(memory[client].any())
            memory[client] = wanted - sent
            total += problems.SIZES[client] * sent
        vector = vector - total / sum(problems.SIZES[client] for client in cohort)
        np.testing.assert_allclose(vector_of(state), vector, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(memory_of(state), memory, rtol=1e-4, atol=1e-6)
    assert corrected == 4  # clients 3 and then 0, 3 and 5 came with a memory
    assert not memory[1].any() and memory[[0, 2, 3, 4, 5]].any(1).all()


def test_without_error_feedback_the_second_round_is_another():
    forgetful = play(algorithm_of(agg.top_k(0.25, error_feedback=False)))
    np.testing.assert_allclose(vector_of(forgetful[1]), vector_of(play(TOP_QUARTER)[1]), rtol=1e-5, atol=1e-6)
    assert np.abs(vector_of(forgetful[2]) - vector_of(play(TOP_QUARTER)[2])).max() > 1e-3
    assert not jax.tree.leaves(forgetful[1].device.encoders)


@pytest.mark.slow
@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(1, 3), (6, 1)])
@pytest.mark.parametrize("algorithm", [TOP_QUARTER, DRIVE], ids=["top_k", "drive"])
def test_compressed_rounds_do_not_depend_on_lanes_or_calls(algorithm, num_lanes, rounds_per_call):
    want, have = play(algorithm)[-1], play(algorithm, num_lanes, rounds_per_call)[-1]
    np.testing.assert_allclose(vector_of(have), vector_of(want), rtol=1e-4, atol=1e-6)
    leaves = [jax.tree.leaves(state.device.encoders) for state in (have, want)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *leaves)


def test_sending_every_coordinate_is_federated_averaging():
    plain, whole = play(PLAIN), play(TOP_ALL)
    np.testing.assert_allclose(vector_of(whole[-1]), vector_of(plain[-1]), rtol=1e-5, atol=1e-7)
    assert not memory_of(whole[-1]).any()
    assert np.abs(vector_of(play(TOP_QUARTER)[-1]) - vector_of(plain[-1])).max() > 1e-2


# ---- DRIVE: the server decodes each message before it sums

SIZE = 1024
MANY = 300


# Softmax regression of 16 features on 64 classes: 1,024 weights, a power of two, so that nothing is padded.
WIDE = ftx.tasks.classification(ftx.Model(lambda key: {"w": jnp.zeros((16, 64))}, lambda params, x, *, key=None: x @ params["w"]))


def scaled(factor):
    """DRIVE with another scale: 2 / pi is that of least error for one client, ||R x||_1 / d, which is biased."""
    right = agg.drive()

    def receive(message, shared):
        return right.receive({**message, "scale": factor * message["scale"]}, shared)

    return right._replace(receive=receive)


def make_wide(hyper):
    return ftx.algorithms.fed_avg(WIDE, optax.sgd(0.5), aggregator=agg.chain(scaled(hyper["factor"]), agg.mean()))


def wide_clients():
    generator = np.random.default_rng(0)
    columns = {
        "x": generator.standard_normal((8, 16)).astype(np.float32),
        "y": generator.integers(0, 64, 8).astype(np.int32),
    }
    return ftx.data.FederatedDataset.from_offsets(columns, np.array([0, 4, 5, 8]))


def updates_of(factor, seeds):
    """What one round from 0 moves the weights by, for each seed of the rotations."""
    local = ftx.data.LocalWork(batch_size=4, shuffle=False)
    experiment = problems.experiment(make_wide, hyper={"factor": factor}, train=wide_clients(), local=local)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=3, rounds_per_call=1))
    states = [round_fn(round_fn.init(seed=seed))[0] for seed in seeds]
    return np.asarray([-np.asarray(state.device.server.params["w"], np.float64).ravel() for state in states])


@functools.cache
def drive_statistics(factor: float):
    """(the mean update's length along the true one, its standard error, mean squared error, that of the paper)."""
    data = wide_clients()
    x, y = np.asarray(data.columns["x"], np.float64), np.asarray(data.columns["y"])
    # From weights of 0 in one step at rate 0.5: every class has the chance 1 / 64.
    rows = (0.5 * x[:, :, None] * (1 / 64 - np.eye(64)[y])[:, None, :]).reshape(8, SIZE)
    own = [rows[begin:end].mean(0) for begin, end in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
    shares = data.client_sizes / 8
    true = sum(share * one for share, one in zip(shares, own, strict=True))
    sent = updates_of(factor, range(MANY))
    along = sent @ true / np.square(true).sum()
    # Clients rotate independently, so their errors (pi / 2 - 1) ||x||^2 add up, each by its share squared.
    paper = (np.pi / 2 - 1) * sum(share**2 * np.square(one).sum() for share, one in zip(shares, own, strict=True))
    return along.mean(), along.std() / np.sqrt(MANY), np.square(sent - true).sum(1).mean(), paper


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / np.pi, False), (1.5, False)])
def test_drive_decodes_every_message_without_bias_and_a_wrong_scale_is_told_apart(factor, accepted):
    mean, error, _, _ = drive_statistics(factor)
    assert error < 0.02
    assert (abs(mean - 1) < 4 * error + 0.01) == accepted


@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / np.pi, False), (1.5, False)])
def test_drive_errs_as_the_paper_says_for_clients_that_rotate_independently(factor, accepted):
    _, _, squared, paper = drive_statistics(factor)
    assert (abs(squared / paper - 1) < 0.1) == accepted


# ---- bytes


@pytest.mark.parametrize(
    ("algorithm", "up"),
    [
        (PLAIN, 9 * 4),
        (TOP_QUARTER, 3 * (4 + 4)),  # three values and their places
        (TOP_ALL, 9 * (4 + 4)),
        (DRIVE, 16 // 8 + 4 + 8),  # a bit for each of 16 coordinates (9, padded), the scale, the key of the rotation
        (FOUR_BITS, 5 + 3 * 4),  # nine halves of a byte, and the scales of three buckets
        (INTEGERS, 9 * 4),
    ],
    ids=["plain", "top_quarter", "top_all", "drive", "four_bits", "integers"],
)
def test_the_ledger_counts_what_is_sent(algorithm, up):
    round_fn = round_of(algorithm)
    assert bytes_a_client(round_fn, round_fn.init(init_params=START)) == (9 * 4, up)


def test_a_run_charges_every_client_of_every_cohort():
    experiment = round_of(TOP_QUARTER).experiment
    result = ftx.run(experiment, 3, execution=ftx.Execution(num_lanes=2, rounds_per_call=1), progress=False)
    assert result.ledger["client_updates"] == 3 + 3 + 4
    assert result.ledger["bytes_up"] == 10 * 24 and result.ledger["bytes_down"] == 10 * 36
