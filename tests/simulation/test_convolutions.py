"""Convolutions with a kernel for each client: ``vmap`` makes grouped ones of them; lanes still change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from jax import lax

import fedjax_tx as ftx
from fedjax_tx import tree

SIZE, CHANNELS, CLASSES = 6, 3, 4


def init(key):
    kernel, head = jax.random.split(key)
    return {
        "kernel": 0.5 * jax.random.normal(kernel, (3, 3, 1, CHANNELS)),
        "head": 0.5 * jax.random.normal(head, ((SIZE - 2) ** 2 * CHANNELS, CLASSES)),
    }


def apply(params, x, *, key=None):
    hidden = lax.conv_general_dilated(x, params["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(hidden).reshape(len(x), -1) @ params["head"]


def pictures(sizes=(5, 2, 7, 1)) -> ftx.data.FederatedDataset:
    generator = np.random.default_rng(0)
    columns = {
        "x": generator.random((sum(sizes), SIZE, SIZE, 1), np.float32),
        "y": generator.integers(0, CLASSES, sum(sizes)).astype(np.int32),
    }
    return ftx.data.FederatedDataset.from_offsets(columns, np.append(0, np.cumsum(sizes)))


def make_algorithm(hyper):
    task = ftx.tasks.classification(ftx.Model(init, apply))
    return ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"]))


LOCAL = ftx.data.LocalWork(batch_size=2, epochs=1, shuffle=False)
EXPERIMENT = problems.experiment(make_algorithm, train=pictures(), local=LOCAL)


def convolve_by_hand(x, kernel):
    """A valid 3 x 3 convolution as a sum of nine shifted products."""
    out = SIZE - 2
    return sum(x[:, i : i + out, j : j + out] @ kernel[i, j] for i in range(3) for j in range(3))


@pytest.fixture(scope="module")
def one_by_one():
    """Two rounds, one client after another, the convolution written out."""
    data, params = EXPERIMENT.train, ftx.make_round(EXPERIMENT, ftx.Execution(num_lanes=1)).init().device.server.params

    @jax.jit
    def step(params, x, y):
        def loss(params):
            hidden = jax.nn.relu(convolve_by_hand(x, params["kernel"])).reshape(len(x), -1)
            return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["head"], y).mean()

        return jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, jax.grad(loss)(params))

    for _ in range(2):
        moved = jax.tree.map(jnp.zeros_like, params)
        for client in range(data.num_clients):
            own, local = data.client(client), params
            for first in range(0, len(own["y"]), 2):
                local = step(local, own["x"][first : first + 2], own["y"][first : first + 2])
            share = len(own["y"]) / data.client_sizes.sum()
            moved = jax.tree.map(lambda total, leaf, share=share: total + share * leaf, moved, local)
        params = moved
    return params


@pytest.mark.parametrize("num_lanes", [1, 2, 4])
def test_lanes_with_kernels_of_their_own_equal_one_client_after_another(num_lanes, one_by_one):
    state, _ = problems.play(EXPERIMENT, rounds=2, num_lanes=num_lanes)
    moved = tree.norm(jax.tree.map(jnp.subtract, state.device.server.params, one_by_one))
    assert float(moved) < 1e-5
