"""pfl-research (PyTorch): its simulated backend in a process a core, one thread each, with its own balancing by users' sizes.

Processes find one another as pfl-research has it (``PFL_WORKER_ADDRESSES``, over gloo). The first one starts the others; each
begins a round when the first one does. Users' tensors are made beforehand; no evaluation but the one that the library makes in
iteration 0, a warm-up round.
"""

import itertools
import os
import socket
import subprocess
import sys

import numpy as np
import torch
from turns import read_arguments, turns


def start_others(cores: int) -> None:
    """Tells this process its rank, by environment variables, and starts the processes of the other ranks."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(cores)]
    addresses = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    os.environ |= {"PFL_WORKER_ADDRESSES": addresses, "PFL_WORKER_RANK": "0"}
    for rank in range(1, cores):
        environment = {**os.environ, "PFL_WORKER_RANK": str(rank)}
        subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)


if "PFL_WORKER_RANK" not in os.environ:
    start_others(len(os.sched_getaffinity(0)))

# read the variables when they are imported
from models_torch import client_rows, make_columns, make_network, make_optimizer, read_network  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByDatapoints  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.pytorch import PyTorchTensorDataset  # noqa: E402
from pfl.hyperparam.base import NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from works import LEARNING_RATE, ROUNDS, Work  # noqa: E402


class Turns(TrainingProcessCallback):
    """Begins each round when it is asked for; the processes of other ranks follow the first one."""

    def __init__(self, rank: int):
        super().__init__()
        self.rank, self.numbers = rank, iter(())

    def on_train_begin(self, *, model):
        if self.rank == 0:
            self.numbers = turns(("pfl", "torch"), lambda: read_network(model.pytorch_model))
        self.wait()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        return self.wait(), Metrics()

    def wait(self) -> bool:
        """Waits for the next round; returns whether there is none."""
        ends = torch.tensor(self.rank == 0 and next(self.numbers, None) is None)
        torch.distributed.broadcast(ends, 0)
        return bool(ends)


def make_backend(work: Work) -> SimulatedBackend:
    """The users' data in memory, in the order of the cohorts; users are balanced by their numbers of examples."""
    columns = make_columns(work)
    users = [PyTorchTensorDataset(client_rows(work, columns, client), user_id=client) for client in range(len(work.sizes))]
    order = itertools.cycle(work.cohorts.flatten().tolist())
    sizes = dict(enumerate(work.sizes.tolist()))
    data = FederatedDataset(users.__getitem__, order.__next__, user_id_to_weight=sizes)
    return SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])


def main() -> None:
    torch.set_num_threads(1)
    np.random.seed(0)
    work, rank = read_arguments(), int(os.environ["PFL_WORKER_RANK"])
    network = make_network(work)
    network.loss = lambda *batch: network(*batch)
    network.metrics = lambda *batch: {"loss": Weighted(network(*batch).item() * len(batch[0]), len(batch[0]))}
    central = torch.optim.SGD(network.parameters(), lr=1.0)
    model = PyTorchModel(
        network, local_optimizer_create=lambda parameters, lr: make_optimizer(parameters), central_optimizer=central
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            ROUNDS + 1, evaluation_frequency=ROUNDS + 2, train_cohort_size=work.cohorts.shape[1], val_cohort_size=None
        ),
        make_backend(work),
        model,
        NNTrainHyperParams(local_batch_size=work.batch_size, local_num_epochs=1, local_learning_rate=LEARNING_RATE),
        callbacks=[Turns(rank)],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
