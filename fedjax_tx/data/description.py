"""Who holds what, in words: the sizes of clients, the classes, and how far clients' shares of them are from each other's.

``ftx.report.plot_clients`` draws it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fedjax_tx import check
from fedjax_tx.data.classes import clients_of_rows, read_labels
from fedjax_tx.data.federated import FederatedDataset

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
MOST_CLASSES = 10
_SHUFFLE_SEED = 0


class Labels(NamedTuple):
    """The classes of a data set, over all clients and at each.

    classes, counts [class]: the labels that are there, sorted, and how many examples have each. classes_per_client: quantiles,
    over the clients that have examples. skew: 0 to 1, the mean over these clients of the total variation distance, half the sum
    of |p_c(client) - p_c(all)|, of their shares of the classes from those of all examples. skew_by_chance: what it is after the
    same labels are shuffled among all examples, since small clients differ by chance alone.
    """

    classes: Int[np.ndarray, " classes"]
    counts: Int[np.ndarray, " classes"]
    classes_per_client: Float[np.ndarray, " quantiles"]
    skew: float
    skew_by_chance: float

    def __str__(self) -> str:
        order = np.argsort(-self.counts, kind="stable")[:MOST_CLASSES]
        listed = ", ".join(f"{self.classes[index]}: {self.counts[index]:,}" for index in order)
        more = f", and {len(self.classes) - len(order)} more" if len(self.classes) > len(order) else ""
        return "\n".join(
            [
                f"{len(self.classes)} classes, by examples   {listed}{more}",
                _line("classes of a client", self.classes_per_client),
                f"label skew   {self.skew:.3f}, by chance {self.skew_by_chance:.3f} (0 alike, 1 nothing in common)",
            ]
        )


class Description(NamedTuple):
    """What ``describe`` tells; ``print`` shows it. sizes: quantiles of clients' sizes. labels: None if there are none."""

    summary: str
    num_empty: int
    sizes: Float[np.ndarray, " quantiles"]
    labels: Labels | None

    def __str__(self) -> str:
        lines = [self.summary, _line("examples of a client", self.sizes)]
        lines += [f"{self.num_empty:,} clients have no example"] if self.num_empty else []
        return "\n".join(lines + ([] if self.labels is None else [str(self.labels)]))


def describe(data: FederatedDataset, *, labels: str | None = "y") -> Description:
    """Returns who holds what, to be printed: sizes of clients, classes, and how uneven clients' shares of the classes are.

    ``FederatedDataset.describe`` is its first line. What a way to deal examples did, such as ``partition_dirichlet``, is seen
    here as numbers and by ``ftx.report.plot_clients`` as a picture.

    Args:
      data: a whole data set with at least one client. labels: the column of classes, integers [example]; None: sizes only.

    Errors: ``TypeError``, ``ValueError`` if the column is missing or holds no integers; for a data set that is only a part.

    Example:
      >>> data = FederatedDataset.from_offsets({"y": np.array([1, 0, 1, 1])}, [0, 3, 4])
      >>> print(describe(data))
      2 clients, 4 examples, 1/2/3 (min/median/max) a client, y: int64
      examples of a client   min 1, 10 % 1.2, median 2, 90 % 2.8, max 3
      2 classes, by examples   1: 3, 0: 1
      classes of a client   min 1, 10 % 1.1, median 1.5, 90 % 1.9, max 2
      label skew   0.167, by chance 0.167 (0 alike, 1 nothing in common)
    """
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    data.refuse_part()
    if not data.num_clients:
        check.fail_value("data", "to have at least one client", data)
    sizes = data.client_sizes
    counted = None if labels is None else _count_labels(data, labels)
    return Description(data.describe(), int((sizes == 0).sum()), np.quantile(sizes, QUANTILES), counted)


def _count_labels(data: FederatedDataset, labels: str) -> Labels:
    values = read_labels(data, labels)
    if not values.size:
        check.fail_value("data", "to have at least one example", data)
    classes, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    clients, shares = clients_of_rows(data), counts / counts.sum()
    held, skew = _compare(clients, numbers, shares)
    shuffled = np.random.default_rng(_SHUFFLE_SEED).permutation(numbers)
    return Labels(classes, counts, np.quantile(held, QUANTILES), skew, _compare(clients, shuffled, shares)[1])


def _compare(
    clients: Int[np.ndarray, " rows"], numbers: Int[np.ndarray, " rows"], shares: Float[np.ndarray, " classes"]
) -> tuple[Int[np.ndarray, " held"], float]:
    """How many classes each client with examples holds, and their mean distance from ``shares``.

    Only pairs of a client and a class that are there take memory: a class that a client lacks adds its share to the distance.
    """
    pairs, counts = np.unique(clients * shares.size + numbers, return_counts=True)
    owner = np.unique(pairs // shares.size, return_inverse=True)[1]
    expected = shares[pairs % shares.size]
    own = counts / np.bincount(owner, weights=counts)[owner]
    distance = (1 + np.bincount(owner, weights=np.abs(own - expected) - expected)) / 2
    return np.bincount(owner), max(float(distance.mean()), 0.0)


def _line(name: str, quantiles: Float[np.ndarray, " quantiles"]) -> str:
    low, tenth, median, ninetieth, high = (f"{value:,.1f}".removesuffix(".0") for value in quantiles)
    return f"{name}   min {low}, 10 % {tenth}, median {median}, 90 % {ninetieth}, max {high}"
