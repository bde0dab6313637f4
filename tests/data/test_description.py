"""What is said of who holds what: by hand, at its two ends, and printed."""

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data import FederatedDataset, describe


def of_labels(*clients):
    return FederatedDataset.from_offsets({"y": np.concatenate(clients).astype(np.int32)}, np.cumsum([0, *map(len, clients)]))


def test_a_case_by_hand():
    data = of_labels([7, 7, 7, 7], [], [7, 7, 2, 2], [9, 9])
    told = describe(data)
    assert told.num_empty == 1
    np.testing.assert_allclose(told.sizes, [0, 0.6, 3, 4, 4])
    assert told.labels.classes.tolist() == [2, 7, 9]
    assert told.labels.counts.tolist() == [2, 6, 2]
    np.testing.assert_allclose(told.labels.classes_per_client[[0, 2, 4]], [1, 1, 2])
    # Shares .2, .6, .2 of all against (0, 1, 0), (.5, .5, 0) and (0, 0, 1): distances .4, .3 and .8.
    assert told.labels.skew == pytest.approx((0.4 + 0.3 + 0.8) / 3)
    assert str(told).splitlines() == [
        data.describe(),
        "examples of a client   min 0, 10 % 0.6, median 3, 90 % 4, max 4",
        "1 clients have no example",
        "3 classes, by examples   7: 6, 2: 2, 9: 2",
        "classes of a client   min 1, 10 % 1, median 1, 90 % 1.8, max 2",
        f"label skew   0.500, by chance {told.labels.skew_by_chance:.3f} (0 alike, 1 nothing in common)",
    ]


def test_alike_is_0_and_apart_is_almost_1():
    assert describe(of_labels(*[range(10)] * 30)).labels.skew == pytest.approx(0, abs=1e-12)
    assert describe(of_labels(*[[label] * 3 for label in range(50)])).labels.skew == pytest.approx(1 - 1 / 50)


def test_what_chance_makes_is_told():
    labels = np.random.default_rng(0).integers(10, size=3000)
    told = describe(FederatedDataset.from_columns({"y": labels}, ftx.data.partition_iid(3000, 300, seed=0))).labels
    assert told.skew == pytest.approx(told.skew_by_chance, abs=0.02)
    assert told.skew > 0.2  # ten examples can't have the shares of all
    told = describe(FederatedDataset.from_columns({"y": labels}, ftx.data.partition_iid(3000, 3, seed=0))).labels
    assert max(told.skew, told.skew_by_chance) < 0.05


def test_without_labels_only_sizes_are_told(clients):
    told = describe(clients, labels=None)
    assert told.labels is None and "skew" not in str(told)
    assert told.summary == clients.describe()


@pytest.mark.parametrize("data", [of_labels([]), FederatedDataset.from_offsets({"y": np.zeros(0, np.int32)}, [0])])
def test_nothing_to_describe(data):
    with pytest.raises(ValueError, match="expected data to have at least one"):
        describe(data)


def test_many_classes_take_no_more_memory_than_examples():
    labels = np.arange(100_000) * 20_000
    told = describe(FederatedDataset.from_columns({"y": labels}, np.arange(100_000))).labels
    assert told.skew == pytest.approx(1 - 1e-5) and told.classes.size == 100_000
    assert str(told).startswith("100000 classes, by examples   0: 1, 20000: 1,") and "and 99990 more" in str(told)
