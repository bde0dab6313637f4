"""The plain loop in JAX: a process a core, over which a round's clients are shared out by their batches; a jitted step.

A process is pinned to its core, so that XLA makes no more threads than that. Its data and the sums of its clients' parameters
stay on its device; a step gives its parameters' memory to the next one's. The last batch is padded and masked, so that one
program serves all clients. The first process adds up the sums.
"""

import multiprocessing
import os

from turns import read_arguments, turns
from works import LEARNING_RATE, Work, share_out


def make_trainer(work: Work):
    """Returns ``train(server, clients)``: the sum of some clients' parameters, weighted, as a dict of arrays on the device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from models_jax import masked_gradient

    gradient, size = masked_gradient(work.name, in_loop=False), work.batch_size
    rows = np.pad(np.arange(work.offsets[-1]), (0, size), mode="edge")
    columns = tuple(jnp.asarray(column) for column in work.columns.values())

    def step(params, columns, rows, count):
        batch = tuple(column[rows] for column in columns)
        slopes = gradient(params, batch, jnp.arange(size) < count)
        return jax.tree.map(lambda p, slope: p - LEARNING_RATE * slope, params, slopes)

    step = jax.jit(step, donate_argnums=0)
    copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))
    add = jax.jit(lambda total, params, weight: jax.tree.map(lambda t, p: t + weight * p, total, params), donate_argnums=0)

    def train(server: dict, clients: list[int]) -> dict:
        server = jax.tree.map(jnp.asarray, server)
        total = jax.tree.map(jnp.zeros_like, server)
        for client in clients:
            params, end = copy(server), work.offsets[client + 1]
            for start in range(work.offsets[client], end, size):
                params = step(params, columns, rows[start : start + size], np.int32(end - start))
            total = add(total, params, np.float32(work.sizes[client]))
        return total

    return train


def work_on(pipe, work: Work, core: int) -> None:
    """A process beside the first: trains the clients that it is told."""
    os.sched_setaffinity(0, {core})
    import jax

    train = make_trainer(work)
    while True:
        try:
            server, clients = pipe.recv()
        except EOFError:
            return
        pipe.send(jax.device_get(train(server, clients)))


def main() -> None:
    work, cores = read_arguments(), sorted(os.sched_getaffinity(0))
    context, pipes = multiprocessing.get_context("spawn"), []
    for core in cores[1:]:
        ours, theirs = context.Pipe()
        context.Process(target=work_on, args=(theirs, work, core), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    os.sched_setaffinity(0, cores[:1])
    import jax

    train, server = make_trainer(work), work.params
    for number in turns(("jax", "jaxlib"), lambda: server):  # noqa: B023  the latest
        cohort = work.cohorts[number]
        first, *others = [cohort[share].tolist() for share in share_out(work.steps(cohort), len(cores))]
        for pipe, clients in zip(pipes, others, strict=True):
            pipe.send((server, clients))
        sums = [jax.device_get(train(server, first)), *(pipe.recv() for pipe in pipes)]
        server = {name: sum(part[name] for part in sums) / work.examples(number) for name in server}


if __name__ == "__main__":
    main()
