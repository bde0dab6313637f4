"""One round of a work, one client and one batch after another, each batch as it is: what every system must equal."""

import jax
import jax.numpy as jnp
import numpy as np
from models_jax import make_losses
from works import LEARNING_RATE, Work


def reference_round(work: Work, number: int = 0) -> dict[str, np.ndarray]:
    """Returns the server's parameters after one round from the initial ones; averages are taken in float64."""
    losses = make_losses(work.name, in_loop=False)
    gradient = jax.jit(jax.grad(lambda params, columns: jnp.mean(losses(params, *columns))))
    total = {name: np.zeros(value.shape) for name, value in work.params.items()}
    for client in work.cohorts[number]:
        params = work.params
        for start in range(work.offsets[client], work.offsets[client + 1], work.batch_size):
            rows = slice(start, min(start + work.batch_size, work.offsets[client + 1]))
            slopes = gradient(params, tuple(column[rows] for column in work.columns.values()))
            params = {name: params[name] - LEARNING_RATE * np.asarray(slopes[name]) for name in params}
        for name, value in params.items():
            total[name] += work.sizes[client] * value.astype(np.float64)
    return {name: (value / work.examples(number)).astype(np.float32) for name, value in total.items()}
