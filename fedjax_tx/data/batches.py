"""Batches that are drawn: each example comes with a chance of its own, as the accountants of DP-SGD assume (arXiv 1607.00133).

A client of n examples that expects b of them in a batch takes each with chance min(1, b / n), in every step anew, whoever else
comes (Poisson sampling). Where more come than a batch has room for, a uniformly chosen part of them stays, which accountants can
take into account (arXiv 2508.15089). All is drawn on the host from names, so a batch depends on nothing but the seed, the round,
the client and its step.
"""

import numpy as np

from fedjax_tx import prng
from fedjax_tx.types import LocalWork


def steps_of(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (client, step) of every step of clients that make ``spans`` [client] of them.

    Example:
      >>> client, step = steps_of(np.array([2, 1]))
      >>> client.tolist(), step.tolist()
      ([0, 0, 1], [0, 1, 0])
    """
    client = np.repeat(np.arange(spans.size), spans)
    return client, np.arange(client.size) - np.repeat(np.cumsum(spans) - spans, spans)


def draw_batches(
    ids: np.ndarray, first_rows: np.ndarray, sizes: np.ndarray, steps: np.ndarray, work: LocalWork, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the batches of clients [client].

    Args:
      ids: name the randomness. first_rows, sizes: where their examples lie, and how many. steps: how many batches; a client of 0
        holds the place of one, which is empty. work: ``expected_batch`` and ``batch_size``. bits: random, of seed and round.

    Returns: (rows, first, count): rows of the data, batch after batch, and for each batch where among them it begins and how many
    it has. An empty batch points at a row of its own client.
    """
    client, step = steps_of(np.maximum(steps, 1))
    asked = np.where(steps > 0, sizes, 0)[client]
    batch = np.repeat(np.arange(client.size), asked)
    example = np.arange(batch.size) - np.repeat(np.cumsum(asked) - asked, asked)
    drawn = prng.host_bits(prng.host_bits(bits, ids[client], step)[batch], example)
    chance = np.minimum(1, work.expected_batch / np.maximum(sizes, 1))
    came = (drawn >> np.uint64(11)) * 2.0**-53 < chance[client[batch]]
    batch, example, drawn = batch[came], example[came], drawn[came]
    count = np.bincount(batch, minlength=client.size)
    if (count > work.batch_size).any():  # those of the lowest bits stay: a uniform part
        ranked = np.lexsort((drawn, batch))
        batch, example = batch[ranked], example[ranked]
        stays = np.arange(batch.size) - (np.cumsum(count) - count)[batch] < work.batch_size
        batch, example, count = batch[stays], example[stays], np.minimum(count, work.batch_size)
    width = np.where(steps[client] > 0, np.maximum(count, 1), 0)
    first = np.cumsum(width) - width
    rows = np.repeat(first_rows[client], width)
    rows[first[batch] + np.arange(batch.size) - (np.cumsum(count) - count)[batch]] += example
    return rows, first, count
