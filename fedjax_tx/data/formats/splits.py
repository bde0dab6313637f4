"""Splits that come as data sets of their own, such as a file for training and one for testing, joined by their clients."""

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits, describe_array


def make_splits(train: FederatedDataset, test: FederatedDataset, unseen: FederatedDataset | None = None) -> FederatedSplits:
    """Returns ``.train``, ``.test`` of the same clients in the same order, ``.unseen`` and a ``.report`` of counts.

    A client of ``train`` that ``test`` lacks has no test example. Clients that only ``test`` has are unseen; where ``unseen`` is
    given, as for Stack Overflow's held-out users, they are left out. ``test`` is copied to memory if its order differs.

    Args:
      train, test, unseen: whole data sets with the same columns; clients are the same where their ids are.

    Raises:
      TypeError: if one is not a ``FederatedDataset``.
      ValueError: if their columns differ, or one holds only a part of its rows.

    Example:
      >>> train = FederatedDataset.from_columns({"x": np.arange(3)}, ["a", "a", "b"])
      >>> splits = make_splits(train, FederatedDataset.from_columns({"x": np.arange(2)}, ["b", "c"]))
      >>> splits.test.client_ids.tolist(), splits.test.client_sizes.tolist(), splits.unseen.client_ids.tolist()
      (['a', 'b'], [0, 1], ['c'])
    """
    for name, data in (("train", train), ("test", test), ("unseen", unseen)):
        if data is not None:
            check.instance(name, data, FederatedDataset, "a FederatedDataset")
            if data.part is not None:
                check.fail_value(name, "to hold all its rows", f"part {data.part.number}")
            _check_columns(name, data, train)
    numbers = {client_id: number for number, client_id in enumerate(test.client_ids.tolist())}
    found = np.array([numbers.pop(client_id, -1) for client_id in train.client_ids.tolist()], np.int64)
    others = np.array(list(numbers.values()), np.int64)
    left_out = 0 if unseen is None else len(others)
    if unseen is None:
        unseen = test.select(others)
    if not np.array_equal(found, np.arange(test.num_clients)):
        test = _in_order(test, found, train.client_ids)
    report = {
        "train clients": train.num_clients,
        "train clients without test examples": int(np.sum(test.client_sizes == 0)),
        "test clients left out, not in train": left_out,
    }
    for name, data in (("train", train), ("test", test), ("unseen", unseen)):
        report[f"{name} examples"] = data.num_examples
    return FederatedSplits(train, test, unseen, report | {"unseen clients": unseen.num_clients})


def _in_order(test: FederatedDataset, found: np.ndarray, client_ids: np.ndarray) -> FederatedDataset:
    held = test.select(found[found >= 0])
    sizes = np.zeros(len(found), np.int64)
    sizes[found >= 0] = held.client_sizes
    return FederatedDataset(held.columns, np.append(0, np.cumsum(sizes)), client_ids)


def _check_columns(name: str, data: FederatedDataset, train: FederatedDataset) -> None:
    have, want = ({key: describe_array(column) for key, column in some.columns.items()} for some in (data, train))
    if have != want:
        check.fail_value(f"the columns of {name}", f"to be those of train, {want}", have)
