"""Flower's simulation (PyTorch): an actor of Ray a core, one thread each; strategy FedAvg without evaluation.

A round's clients come to as many nodes as there are clients in it, for the simulation looks at every node it has ten times a
second; which client a node is, its message says. Actors read the work once and keep their network. Clients go largest first.
"""

import functools
import os
import sys
from operator import attrgetter

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from models_torch import client_rows, make_columns, make_network, make_optimizer, read_network, train_epoch
from turns import read_arguments, turns
from works import ROUNDS, read

# ---- a client, in an actor


@functools.cache
def actor_state(path: str, name: str):
    torch.set_num_threads(1)
    work = read(path, name)
    network = make_network(work)
    return work, make_columns(work), network, make_optimizer(network.parameters())


def train(message: Message, context) -> Message:
    config = message.content["config"]
    work, columns, network, optimizer = actor_state(config["path"], config["name"])
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    rows = client_rows(work, columns, config["client"])
    train_epoch(network, optimizer, rows, work.batch_size)
    content = {"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord({"num-examples": len(rows[0])})}
    return Message(content=RecordDict(content), reply_to=message)


client_app = ClientApp()
client_app.train()(train)


# ---- the server


class FixedCohorts(FedAvg):
    """FedAvg over the work's cohorts; a round begins when it is asked for."""

    def __init__(self, work, read_params):
        super().__init__(fraction_evaluate=0.0)
        self.work, self.read_params, self.params = work, read_params, None
        self.numbers = turns(("flwr", "ray", "torch"), lambda: read_params(self.params))

    def configure_train(self, server_round, arrays, config, grid):
        self.params = arrays
        number = next(self.numbers, None)
        if number is None:
            sys.exit()  # of the server's thread; the strategy has no other way to end early
        cohort = self.work.cohorts[number]
        cohort = cohort[(-self.work.sizes[cohort]).argsort(kind="stable")].tolist()
        messages = []
        for node, client in zip(sorted(grid.get_nodes(), key=attrgetter("registered_at")), cohort, strict=True):
            known = {"path": sys.argv[1], "name": self.work.name, "client": client}
            content = RecordDict({"arrays": arrays, "config": ConfigRecord(known)})
            messages.append(Message(content=content, message_type="train", dst_node_id=node.node_id))
        return messages


def main() -> None:
    work, cores = read_arguments(), len(os.sched_getaffinity(0))
    network = make_network(work)

    def read_params(arrays):
        network.load_state_dict(arrays.to_torch_state_dict())
        return read_network(network)

    server_app = ServerApp()

    @server_app.main()
    def serve(grid, context):
        FixedCohorts(work, read_params).start(grid, ArrayRecord(network.state_dict()), num_rounds=ROUNDS + 1)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=work.cohorts.shape[1],
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": cores}},
    )


if __name__ == "__main__":
    # What actors are sent must belong to a module that they can import, lest it be copied with all that it holds.
    import with_flower

    with_flower.main()
