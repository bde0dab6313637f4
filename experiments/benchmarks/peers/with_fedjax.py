"""FedJAX: its federated averaging over in-memory clients; ``for_each_client`` as jit (one device) or pmap (a device a core).

Its algorithm shuffles and fills up last batches from the beginning; ``StoredOrder`` hands it padded and masked batches instead,
which its gradients know. Argument after the work: jit or pmap.
"""

import os
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0)) if 'pmap' in sys.argv else 1}"
# before JAX starts
import fedjax  # noqa: E402
import jax  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402
from fedjax.core.models import grad  # noqa: E402
from models_jax import make_losses  # noqa: E402
from turns import read_arguments, turns  # noqa: E402
from works import LEARNING_RATE, Work  # noqa: E402


class StoredOrder(fedjax.ClientDataset):
    """A client whose training batches keep the stored order; the last one is padded."""

    def shuffle_repeat_batch(self, hparams):
        return self.padded_batch(batch_size=hparams.batch_size)


def make_algorithm(work: Work):
    losses = make_losses(work.name, in_loop=False)

    def batch_losses(params, batch, rng):
        return losses(params, *(batch[name] for name in work.columns))

    return fed_avg.federated_averaging(
        grad(batch_losses),
        client_optimizer=fedjax.optimizers.sgd(LEARNING_RATE),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch_size),
    )


def main() -> None:
    work, backend = read_arguments(), sys.argv[3]
    bounds = zip(work.offsets[:-1], work.offsets[1:], strict=True)
    clients = [StoredOrder({name: column[a:b] for name, column in work.columns.items()}) for a, b in bounds]
    with fedjax.for_each_client_backend(backend):
        algorithm = make_algorithm(work)
    state, key = algorithm.init(work.params), jax.random.PRNGKey(0)
    versions = ("fedjax", "jax", "jaxlib")
    for number in turns(versions, lambda: jax.device_get(state.params), backend=backend):  # noqa: B023  the latest
        cohort = [(client, clients[client], key) for client in work.cohorts[number].tolist()]
        state, _ = algorithm.apply(state, cohort)
        jax.block_until_ready(state.params)


if __name__ == "__main__":
    main()
