"""Classes of examples: how often each client has them, and data sets in which rare ones are drawn more often.

Resampling repeats rows: a pure function from a data set to one with the same columns and clients, the same for the same seed.
``class_counts`` before and after says what it did. It is for training data only.
"""

from typing import Literal

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset


def class_counts(data: FederatedDataset, num_classes: int, *, labels: str = "y") -> np.ndarray:
    """Returns how many examples of each class each client has, int64[client, class].

    Args:
      data: a whole data set. num_classes: labels are 0 to num_classes - 1. labels: the column of integers [num_examples].

    Errors: ``TypeError``, ``ValueError`` if the column is missing or holds anything else; for a data set that is only a part.

    Example:
      >>> data = FederatedDataset.from_offsets({"y": np.array([1, 0, 1, 1])}, [0, 3, 4])
      >>> class_counts(data, 2).tolist()
      [[1, 2], [0, 1]]
    """
    check.integer("num_classes", num_classes, low=2)
    values = read_labels(data, labels)
    for value in values[(values < 0) | (values >= num_classes)][:1].tolist():
        check.fail_value(f"column {labels!r}", f"to hold classes in 0..{num_classes - 1}", value)
    cells = clients_of_rows(data) * num_classes + values
    return np.bincount(cells, minlength=data.num_clients * num_classes).reshape(data.num_clients, num_classes)


def oversample_classes(
    data: FederatedDataset, *, seed: int, within: Literal["client", "all"] = "client", labels: str = "y"
) -> FederatedDataset:
    """Repeats examples until every class that is there is there equally often.

    Every example is kept; it is repeated as often as any other of its class, but for a remainder that the seed chooses.

    Args:
      data: a whole data set. seed: names what is repeated once more than the rest.
      within: ``"client"``: at each client, every class that it has comes as often as its most frequent one. ``"all"``: over
        all clients together, so that a client keeps examples of its own classes, and one of rare classes grows.
      labels: the column of classes.

    Errors: ``TypeError``, ``ValueError`` as ``class_counts`` does.

    Example:
      >>> data = FederatedDataset.from_offsets({"y": np.array([1, 0, 1, 1])}, [0, 3, 4])
      >>> class_counts(oversample_classes(data, seed=0), 2).tolist()
      [[2, 2], [0, 1]]
      >>> class_counts(oversample_classes(data, seed=0, within="all"), 2).tolist()
      [[3, 2], [0, 1]]
    """
    check.integer("seed", seed, low=0)
    group, kind = _groups(data, within, labels)
    sizes = np.bincount(group)
    target = np.zeros(kind.max(initial=0) + 1, np.int64)
    np.maximum.at(target, kind, sizes[group])
    wanted = target[kind]
    rank = _random_ranks(group, sizes, np.random.default_rng(seed))
    repeats = wanted // sizes[group] + (rank < wanted % sizes[group])
    rows = np.repeat(np.arange(data.num_examples), repeats)
    sizes_now = np.bincount(clients_of_rows(data), weights=repeats, minlength=data.num_clients).astype(np.int64)
    return _take_rows(data, rows, np.append(0, np.cumsum(sizes_now)))


def sample_classes(
    data: FederatedDataset, *, seed: int, power: float = 0.0, within: Literal["client", "all"] = "client", labels: str = "y"
) -> FederatedDataset:
    """Draws as many examples as each client has, with replacement, rare classes more often.

    Kang et al., "Decoupling Representation and Classifier", arXiv 1910.09217, eq. 1: a class is drawn in proportion to n^power,
    then an example of it. Clients keep their sizes, so that a run costs what it did.

    Args:
      data: a whole data set. seed: names the draws. power: 0 to 1; 0 draws all classes alike, 1 as they come.
      within: whether n counts the class at the ``"client"``, or at ``"all"`` of them together (then an example is drawn in
        proportion to n^(power - 1), from its own client's). labels: the column of classes.

    Errors: ``TypeError``, ``ValueError`` as ``class_counts`` does.

    Example:
      >>> data = FederatedDataset.from_offsets({"y": np.array([0] * 1 + [1] * 999)}, [0, 1000])
      >>> class_counts(sample_classes(data, seed=0), 2).tolist()
      [[473, 527]]
    """
    check.integer("seed", seed, low=0)
    check.number("power", power, low=0, high=1)
    group, _ = _groups(data, within, labels)
    ends = np.cumsum(np.bincount(group).astype(np.float64)[group] ** (power - 1))
    begins = np.append(0.0, ends)[data.offsets]  # where each client's share of the line begins
    client = clients_of_rows(data)
    points = begins[client] + np.random.default_rng(seed).random(data.num_examples) * (begins[client + 1] - begins[client])
    rows = np.searchsorted(ends, points, side="right")
    return _take_rows(data, np.clip(rows, data.offsets[client], data.offsets[client + 1] - 1), data.offsets)


def _groups(data: FederatedDataset, within: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, which examples it shares a class with, and which of these groups are to become equal: two numberings."""
    check.one_of("within", within, ("client", "all"))
    _, label = np.unique(read_labels(data, labels), return_inverse=True)
    kind = clients_of_rows(data) if within == "client" else np.zeros_like(label)
    return kind * (label.max(initial=0) + 1) + label, kind


def _random_ranks(group: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random order of the rows within each group: 0, 1, 2 ..."""
    order = np.lexsort((generator.random(group.size), group))
    starts = np.cumsum(sizes) - sizes
    rank = np.empty_like(group)
    rank[order] = np.arange(group.size) - starts[group[order]]
    return rank


def _take_rows(data: FederatedDataset, rows: np.ndarray, offsets: np.ndarray) -> FederatedDataset:
    columns = {name: column[rows] for name, column in data.columns.items()}
    return FederatedDataset(columns, np.asarray(offsets, np.int64), data.client_ids)


def clients_of_rows(data: FederatedDataset) -> np.ndarray:
    """Returns the index of the client of each row."""
    return np.repeat(np.arange(data.num_clients), data.client_sizes)


def read_labels(data: FederatedDataset, labels: str) -> np.ndarray:
    """Returns the column of labels, int64[row], or says what is wrong with it."""
    check.instance("data", data, FederatedDataset, "a FederatedDataset")
    data.refuse_part()
    check.instance("labels", labels, str, "the name of a column")
    check.one_of("labels", labels, list(data.columns))
    values = data.columns[labels]
    if values.dtype.kind not in "biu":
        check.fail_type(f"column {labels!r}", "integers or booleans", f"{values.dtype}")
    if values.ndim != 1:
        check.fail_value(f"column {labels!r}", "to have one label an example", values.shape)
    return np.asarray(values, np.int64)
