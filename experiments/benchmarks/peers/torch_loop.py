"""The plain loop in PyTorch: a process a core with one thread each, over which a round's clients are shared out by their sizes.

A process trains its clients one after another and adds up their parameters, weighted; the first process adds up the sums.
Parameters travel as one vector in memory that all share.
"""

import os

import torch
import torch.multiprocessing as processes
from models_torch import client_rows, make_columns, make_network, make_optimizer, read_network, train_epoch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from turns import read_arguments, turns
from works import Work, share_out


def train_share(work: Work, columns, server, total, clients) -> None:
    """Trains some clients from the vector ``server``; writes the weighted sum of their parameters into ``total``."""
    network = make_network(work)
    optimizer = make_optimizer(network.parameters())
    total.zero_()
    for client in clients:
        vector_to_parameters(server.clone(), network.parameters())
        train_epoch(network, optimizer, client_rows(work, columns, client), work.batch_size)
        total.add_(parameters_to_vector(network.parameters()).detach(), alpha=int(work.sizes[client]))


def work_on(pipe, work: Work, columns, server, total) -> None:
    """A process beside the first: trains the clients that it is told."""
    torch.set_num_threads(1)
    while True:
        try:
            clients = pipe.recv()
        except EOFError:
            return
        train_share(work, columns, server, total, clients)
        pipe.send("done")


def main() -> None:
    torch.set_num_threads(1)
    work, cores = read_arguments(), len(os.sched_getaffinity(0))
    network, columns = make_network(work), make_columns(work)
    server = parameters_to_vector(network.parameters()).detach().share_memory_()
    totals = [torch.zeros_like(server).share_memory_() for _ in range(cores)]
    context, pipes = processes.get_context("fork"), []
    for total in totals[1:]:
        ours, theirs = context.Pipe()
        context.Process(target=work_on, args=(theirs, work, columns, server, total), daemon=True).start()
        pipes.append(ours)

    def read_params():
        vector_to_parameters(server.clone(), network.parameters())
        return read_network(network)

    for number in turns(("torch",), read_params):
        cohort = work.cohorts[number]
        first, *others = [cohort[share].tolist() for share in share_out(work.sizes[cohort], cores)]
        for pipe, clients in zip(pipes, others, strict=True):
            pipe.send(clients)
        train_share(work, columns, server, totals[0], first)
        for pipe in pipes:
            pipe.recv()
        server.copy_(sum(totals) / work.examples(number))


if __name__ == "__main__":
    main()
