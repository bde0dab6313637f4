"""Clients with quadratic losses, f_i(x) = a_i / 2 ||x - b_i||^2, as a data set and a task like any other."""

import jax.numpy as jnp
import numpy as np

import fedjax_tx as ftx

CURVATURES = (0.2, 1.0, 3.0)
CENTRES = ((2.0, -1.0), (0.0, 1.0), (-1.0, 3.0))


def quadratic_clients(curvatures=CURVATURES, centres=CENTRES, sizes=None) -> ftx.data.FederatedDataset:
    """Client i holds ``sizes[i]`` (by default 1) equal rows of its a_i and b_i."""
    sizes = np.ones(len(curvatures), int) if sizes is None else np.asarray(sizes)
    columns = {
        "a": np.repeat(np.asarray(curvatures, np.float32), sizes),
        "b": np.repeat(np.asarray(centres, np.float32), sizes, axis=0),
    }
    return ftx.data.FederatedDataset.from_offsets(columns, np.append(0, np.cumsum(sizes)))


def task(start=(1.0, 1.0)) -> ftx.Task:
    """Minimise the quadratics' mean over x, from ``start``."""

    def apply(trainable, frozen, batch, key):
        return {"error": trainable["x"] - batch["b"]}

    def loss(outputs, batch):
        value = batch["a"] / 2 * jnp.square(outputs["error"]).sum(1)
        return value, jnp.ones_like(value)

    return ftx.Task(lambda key: ({"x": jnp.asarray(start)}, ()), apply, loss, lambda outputs, batch: {})


def gradient(client: int, x: np.ndarray, curvatures=CURVATURES, centres=CENTRES) -> np.ndarray:
    """The gradient of f_client at x, in float64."""
    return curvatures[client] * (x - np.asarray(centres[client]))


def play(
    make_algorithm, rounds: int, steps: int, cohorts=None, train=None, hyper=None, batch_size: int = 1, rounds_per_call=None
):
    """Runs some rounds of ``steps`` local steps, all clients unless said otherwise: (state, info of the last round)."""
    experiment = ftx.Experiment(
        make_algorithm,
        hyper={} if hyper is None else hyper,
        train=quadratic_clients() if train is None else train,
        cohorts=ftx.data.all_clients() if cohorts is None else ftx.data.fixed_cohorts(cohorts),
        local=ftx.data.LocalWork(batch_size=batch_size, steps=steps, shuffle=False),
    )
    rounds_per_call = rounds if rounds_per_call is None else rounds_per_call
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=2, rounds_per_call=rounds_per_call))
    state, info = round_fn.init(), None
    while state.round < rounds:
        state, infos = round_fn.run(state, rounds_per_call)
        info = infos[-1]
    return state, info
