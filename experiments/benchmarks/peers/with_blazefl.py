"""BlazeFL (PyTorch): its pool of threads, or of processes that share memory, one a core, over one server.

Clients are handed out largest first. Argument after the work: threads or processes.
"""

import multiprocessing
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from blazefl.core import ProcessPoolClientTrainer, ThreadPoolClientTrainer
from blazefl.core.client_trainer import IPCMode
from blazefl.core.utils import SHMHandle, deserialize_model, serialize_model
from models_torch import client_rows, make_columns, make_network, make_optimizer, read_network, train_epoch
from turns import read_arguments, turns

CORES = len(os.sched_getaffinity(0))
WORK = read_arguments()
COLUMNS = make_columns(WORK)


@dataclass
class Uplink:
    """What a client sends: its parameters as one vector, and its number of examples."""

    params: torch.Tensor
    examples: int


@dataclass
class Downlink:
    params: torch.Tensor


def train(client: int, params: torch.Tensor) -> Uplink:
    torch.set_num_threads(1)
    network = make_network(WORK)
    deserialize_model(network, params)
    train_epoch(network, make_optimizer(network.parameters()), client_rows(WORK, COLUMNS, client), WORK.batch_size)
    return Uplink(serialize_model(network), int(WORK.sizes[client]))


class Threads(ThreadPoolClientTrainer[Uplink, Downlink]):
    def __init__(self):
        self.num_parallels, self.device, self.device_count = CORES, "cpu", 0
        self.cache, self.stop_event = [], threading.Event()

    def worker(self, cid, device, payload, stop_event):
        return train(cid, payload.params)

    def uplink_package(self):
        packages, self.cache = self.cache, []
        return packages


class Processes(ProcessPoolClientTrainer[Uplink, Downlink, int]):
    def __init__(self):
        self.num_parallels, self.device, self.device_count = CORES, "cpu", 0
        self.share_dir, self.ipc_mode, self.cache = Path(), IPCMode.SHARED_MEMORY, []
        self.stop_event = multiprocessing.Manager().Event()
        self.buffer = serialize_model(make_network(WORK))

    def get_client_config(self, cid):
        return cid

    def prepare_uplink_package_buffer(self):
        return Uplink(self.buffer.clone(), 0)

    @staticmethod
    def worker(config, payload, device, stop_event, *, shm_buffer=None):
        trained = train(config, payload.params)
        shm_buffer.params.copy_(trained.params)
        return Uplink(SHMHandle(), trained.examples)

    uplink_package = Threads.uplink_package


class Server:
    """The part of the server: what it sends, and the weighted average of what comes back."""

    def __init__(self):
        self.network = make_network(WORK)

    def downlink_package(self) -> Downlink:
        return Downlink(serialize_model(self.network))

    def global_update(self, packages: list[Uplink]) -> None:
        total = sum(package.examples for package in packages)
        average = torch.zeros_like(packages[0].params)
        for package in packages:
            average.add_(package.params, alpha=package.examples / total)
        deserialize_model(self.network, average)


def main() -> None:
    torch.set_num_threads(1)
    server, kind = Server(), sys.argv[3]
    trainer = Threads() if kind == "threads" else Processes()
    for number in turns(("blazefl", "torch"), lambda: read_network(server.network), pool=kind):
        cohort = WORK.cohorts[number]
        order = (-WORK.sizes[cohort]).argsort(kind="stable")
        trainer.local_process(server.downlink_package(), cohort[order].tolist())
        server.global_update(trainer.uplink_package())


if __name__ == "__main__":
    main()
