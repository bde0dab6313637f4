"""Splits joined by their clients."""

import numpy as np
import pytest

from fedjax_tx.data import FederatedDataset, make_splits


def dataset(ids, sizes):
    offsets = np.append(0, np.cumsum(sizes))
    names = np.repeat(np.array(ids), sizes)
    return FederatedDataset.from_offsets(
        {"x": np.arange(offsets[-1]), "id": np.array([ord(name) for name in names])}, offsets, ids
    )


def test_test_examples_go_to_their_clients_and_others_are_unseen():
    train, test = dataset(["c", "a", "b"], [1, 2, 3]), dataset(["b", "d", "c", "e"], [2, 1, 1, 2])
    splits = make_splits(train, test)
    assert splits.train is train
    assert splits.test.client_ids.tolist() == ["c", "a", "b"] and splits.test.client_sizes.tolist() == [1, 0, 2]
    assert splits.unseen.client_ids.tolist() == ["d", "e"] and splits.unseen.client_sizes.tolist() == [1, 2]
    for data in splits[1:3]:
        assert data.columns["id"].tolist() == [ord(name) for name in np.repeat(data.client_ids, data.client_sizes)]
    assert sorted([*splits.test.columns["x"], *splits.unseen.columns["x"]]) == [0, 1, 2, 3, 4, 5]
    assert splits.report == {
        "train clients": 3,
        "train clients without test examples": 1,
        "test clients left out, not in train": 0,
        "train examples": 6,
        "test examples": 3,
        "unseen examples": 3,
        "unseen clients": 2,
    }


def test_what_is_in_order_is_not_copied():
    train, test = dataset(["a", "b"], [1, 2]), dataset(["a", "b"], [1, 1])
    splits = make_splits(train, test)
    assert splits.test is test and splits.unseen.num_clients == 0


def test_given_unseen_clients_stay_and_test_clients_not_in_train_are_left_out():
    held_out = dataset(["f"], [4])
    splits = make_splits(dataset(["a"], [1]), dataset(["b", "a"], [1, 1]), held_out)
    assert splits.unseen is held_out and splits.test.client_ids.tolist() == ["a"]
    assert splits.report["test clients left out, not in train"] == 1


def test_other_columns_are_refused():
    other = FederatedDataset.from_columns({"x": np.zeros(1)}, ["a"])
    with pytest.raises(ValueError, match="columns of test to be those of train, .*, got {'x': 'float64'}"):
        make_splits(dataset(["a"], [1]), other)


def test_a_test_set_or_a_training_set_without_clients():
    data = FederatedDataset.from_columns({"x": np.arange(4)}, [0, 0, 1, 1])
    nobody = data.select(np.zeros(0, int))
    splits = make_splits(data, nobody)
    assert splits.test.client_sizes.tolist() == [0, 0] and splits.unseen.num_clients == 0
    assert splits.report["train clients without test examples"] == 2
    splits = make_splits(nobody, data)
    assert splits.test.num_clients == 0 and splits.unseen.client_sizes.tolist() == [2, 2]
