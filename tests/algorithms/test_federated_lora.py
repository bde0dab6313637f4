"""Federated low-rank adapters by hand: exact aggregation, ranks of clients' own, and A left as it was drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import algorithms, tree
from fedjax_tx.algorithms.het_lora import added_norm
from fedjax_tx.algorithms.low_rank import low_rank_layers
from fedjax_tx.training.ledger import bytes_a_client

RATE, SIZES = 0.5, (5, 0, 1, 9, 3, 7)
LOCAL = ftx.data.LocalWork(batch_size=9, steps=3)
RANKS = [1, 2, 2, 1, 1, 2]
KERNEL, A, B = (np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in ((2, 3), (2, 2), (2, 3)))
START = {"head": {"kernel": KERNEL, "bias": np.zeros(3, np.float32), "lora": {"lora_a": A, "lora_b": B}}}


def one_round(algorithm, num_lanes=2, **changes):
    """(server before, server after, info, round function, state) of a round from ``START``; all clients train 3 steps."""
    settings = {"hyper": {}, "local": LOCAL, **changes}
    own = problems.experiment(algorithm, **settings)
    round_fn = ftx.make_round(own, ftx.Execution(num_lanes=num_lanes, rounds_per_call=1))
    state = start = round_fn.init(init_params=jax.tree.map(jnp.asarray, START))
    state, info = round_fn(state)
    return start.device.server, state.device.server, info, round_fn, state


def trained(client, lora_a, lora_b):
    """A and B of a client after 3 steps of gradient descent on all its data, from given ones."""
    columns = {name: jnp.asarray(column) for name, column in problems.ragged_clients().client(client).items()}

    def loss(pair):
        x, y = columns["x"], columns["y"]
        return optax.softmax_cross_entropy_with_integer_labels(x @ KERNEL + (x @ pair[0]) @ pair[1], y).mean()

    pair = jnp.asarray(lora_a), jnp.asarray(lora_b)
    for _ in range(3):
        pair = jax.tree.map(lambda leaf, slope: leaf - RATE * slope, pair, jax.grad(loss)(pair))
    return [np.asarray(leaf, np.float64) for leaf in pair]


@pytest.mark.slow
def test_exact_aggregation_gives_the_mean_of_the_clients_models():
    before, after, info, round_fn, state = one_round(algorithms.fed_ex_lora(problems.LOW_RANK, optax.sgd(RATE)))
    pairs, weights = [trained(client, A, B) for client in (0, 2, 3, 4, 5)], np.array([5, 1, 9, 3, 7]) / 25
    mean_a, mean_b, product = (
        sum(weight * part(*pair) for weight, pair in zip(weights, pairs, strict=True))
        for part in (lambda a, b: a, lambda a, b: b, lambda a, b: a @ b)
    )
    adapter = after.params["head"]["lora"]
    np.testing.assert_allclose(adapter["lora_a"], mean_a, atol=1e-5)
    np.testing.assert_allclose(adapter["lora_b"], mean_b, atol=1e-5)
    residual = product - mean_a @ mean_b
    assert np.linalg.norm(residual) > 0.01  # what averaging alone would lose
    np.testing.assert_allclose(after.frozen["head"]["kernel"], KERNEL + residual, atol=1e-5)
    np.testing.assert_allclose(info.server["residual_norm"], np.linalg.norm(residual), rtol=1e-3)
    np.testing.assert_array_equal(after.frozen["head"]["bias"], before.frozen["head"]["bias"])
    # A client sends its A and B; the server forms their product.
    assert bytes_a_client(round_fn, state)[1] == 4 * (A.size + B.size)


@pytest.mark.slow
def test_exact_aggregation_scales_what_it_adds_as_the_model_does():
    model = ftx.models.lora(ftx.Model(problems.init_head, problems.low_rank_logits), rank=2, alpha=6.0)
    task = ftx.tasks.freeze(ftx.tasks.classification(model), "*lora*")
    x = np.asarray(problems.ragged_clients().columns["x"])
    clients = [one_round(algorithms.fed_avg(task, optax.sgd(RATE)), cohorts=ftx.data.fixed_cohorts([[k]]))[1] for k in (0, 5)]
    both = one_round(algorithms.fed_ex_lora(task, optax.sgd(RATE), lora_alpha=6.0), cohorts=ftx.data.fixed_cohorts([[0, 5]]))[1]
    own, exact = ([model.apply(tree.join(s.params, s.frozen), x) for s in states] for states in (clients, [both]))
    np.testing.assert_allclose(exact[0], (5 * own[0] + 7 * own[1]) / 12, rtol=1e-4, atol=1e-4)
    assert not np.allclose(both.frozen["head"]["kernel"], KERNEL, atol=0.01)


def test_a_sweep_refuses_frozen_kernels_that_change():
    own = problems.experiment(lambda hyper: algorithms.fed_ex_lora(problems.LOW_RANK, optax.sgd(hyper["client_lr"])))
    with pytest.raises(ValueError, match="leave what is frozen as it is"):
        ftx.sweep(own, rounds=1, grid={"client_lr": [0.1, 0.2]}, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("norm_weighted", [False, True])
def test_clients_train_their_own_rank_and_the_server_pads_with_zeros(norm_weighted):
    algorithm = algorithms.het_lora(problems.LOW_RANK, optax.sgd(RATE), RANKS, norm_weighted=norm_weighted)
    before, after, _, _, _ = one_round(algorithm)
    mean_a, mean_b, total = np.zeros((2, 2)), np.zeros((2, 3)), 0.0
    for client in (0, 2, 3, 4, 5):
        rank = RANKS[client]
        lora_a, lora_b = trained(client, A[:, :rank], B[:rank])
        weight = np.linalg.norm(lora_a @ lora_b) if norm_weighted else SIZES[client]
        mean_a[:, :rank] += weight * lora_a
        mean_b[:rank] += weight * lora_b
        total += weight
    np.testing.assert_allclose(after.params["head"]["lora"]["lora_a"], mean_a / total, atol=1e-5)
    np.testing.assert_allclose(after.params["head"]["lora"]["lora_b"], mean_b / total, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)


def test_clients_of_the_whole_rank_who_count_by_examples_are_those_of_federated_averaging():
    whole = one_round(algorithms.het_lora(problems.LOW_RANK, optax.sgd(RATE), [2, 9] * 3, norm_weighted=False))[1]
    plain = one_round(algorithms.fed_avg(problems.LOW_RANK, optax.sgd(RATE)))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole.params, plain.params)


def test_evaluation_is_of_what_a_client_of_that_rank_would_use_and_of_the_whole_rank_for_a_stranger():
    own = problems.experiment(algorithms.het_lora(problems.LOW_RANK, optax.sgd(RATE), RANKS), hyper={})
    state = ftx.make_round(own, ftx.Execution(num_lanes=1)).init(init_params=jax.tree.map(jnp.asarray, START))
    # Some of the training clients, in another order than there.
    parts, names = [problems.ragged_clients().client(client) for client in (5, 3, 0, 3)], ["c5", "stranger", "c0", "c3"]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    offsets = np.append(0, np.cumsum([len(part["y"]) for part in parts]))
    held_out = ftx.data.FederatedDataset.from_offsets(columns, offsets, names)
    value, _ = ftx.make_evaluation(own, held_out)(state)["loss"]
    for number, rank in enumerate([RANKS[5], 2, RANKS[0], RANKS[3]]):
        logits = parts[number]["x"] @ (KERNEL + A[:, :rank] @ B[:rank])
        want = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), parts[number]["y"]).mean()
        np.testing.assert_allclose(value[number], want, rtol=1e-4)


def test_ranks_of_another_number_of_clients_are_refused():
    own = problems.experiment(algorithms.het_lora(problems.LOW_RANK, optax.sgd(RATE), [1, 2]), hyper={})
    with pytest.raises(ValueError, match="the algorithm's number of clients to be 6, as many as the training data has, got 2"):
        ftx.make_round(own, ftx.Execution(num_lanes=1))


def test_the_norm_of_stacked_products():
    rng = np.random.default_rng(1)
    lora_a, lora_b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5, 2), (3, 2, 4)))
    have = added_norm({"layers": {"lora": {"lora_a": lora_a, "lora_b": lora_b}}}, (("layers",),))
    np.testing.assert_allclose(have, np.linalg.norm(np.asarray(lora_a) @ np.asarray(lora_b)), rtol=1e-5)


@pytest.mark.slow
def test_with_a_as_it_was_drawn_the_mean_of_the_products_is_the_product_with_the_mean():
    task = ftx.tasks.freeze(problems.ADAPTED, "*lora_b")
    _, after, _, _, _ = one_round(algorithms.fed_avg(task, optax.sgd(RATE)))
    clients = [one_round(algorithms.fed_avg(task, optax.sgd(RATE)), cohorts=ftx.data.fixed_cohorts([[k]]))[1] for k in range(6)]
    product = sum(
        size * A @ np.asarray(one.params["head"]["lora"]["lora_b"]) for size, one in zip(SIZES, clients, strict=True)
    ) / sum(SIZES)
    np.testing.assert_array_equal(after.frozen["head"]["lora"]["lora_a"], A)
    np.testing.assert_allclose(A @ np.asarray(after.params["head"]["lora"]["lora_b"]), product, atol=1e-5)


def test_tasks_without_adapters_or_with_other_ones_are_named():
    for task in (problems.LOGISTIC, ftx.tasks.freeze(problems.LOGISTIC, "b")):
        with pytest.raises(ValueError, match=r"the task to train adapters, as freeze\(task"):
            low_rank_layers(task)
    for task in (ftx.tasks.freeze(problems.ADAPTED, "*lora_b"), problems.ADAPTED):
        with pytest.raises(ValueError, match="to train lora_a and lora_b and to freeze the kernel beside them, .* got 'head'"):
            low_rank_layers(task)
