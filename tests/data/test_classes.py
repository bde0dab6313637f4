"""Class counts and resampling: by hand, by what must stay, and by the shares that are to be drawn."""

import numpy as np
import problems
import pytest

from fedjax_tx.data import FederatedDataset, class_counts, oversample_classes, sample_classes


def of_labels(*clients) -> FederatedDataset:
    """Clients with these labels; the column ``row`` numbers the rows."""
    labels = np.concatenate([np.asarray(own, np.int64) for own in clients])
    offsets = np.append(0, np.cumsum([len(own) for own in clients]))
    return FederatedDataset.from_offsets(
        {"y": labels, "row": np.arange(labels.size)}, offsets, [f"c{i}" for i in range(len(clients))]
    )


SKEWED = of_labels([0] * 7 + [2] * 2 + [1], [], [1], [0, 1, 1, 0, 1], [2] * 3)


def test_counts_by_hand():
    want = [[7, 1, 2], [0, 0, 0], [0, 1, 0], [2, 3, 0], [0, 0, 3]]
    np.testing.assert_array_equal(class_counts(SKEWED, 3), want)
    np.testing.assert_array_equal(class_counts(SKEWED, 4), np.pad(want, ((0, 0), (0, 1))))


def test_labels_that_are_no_classes_are_refused_with_the_value():
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.1, got 2"):
        class_counts(SKEWED, 2)
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.2, got -1"):
        class_counts(of_labels([0, -1]), 3)


def check_kept(old: FederatedDataset, new: FederatedDataset) -> np.ndarray:
    """Clients are who they were and hold their own rows only; returns how often each row is there."""
    assert new.client_ids.tolist() == old.client_ids.tolist()
    for client in range(old.num_clients):
        assert set(new.client(client)["row"]) <= set(old.client(client)["row"])
    np.testing.assert_array_equal(new.columns["y"], old.columns["y"][new.columns["row"]])
    return np.bincount(new.columns["row"], minlength=old.num_examples)


def test_oversampling_at_each_client_makes_its_classes_equal():
    new = oversample_classes(SKEWED, seed=1)
    np.testing.assert_array_equal(class_counts(new, 3), [[7, 7, 7], [0, 0, 0], [0, 1, 0], [3, 3, 0], [0, 0, 3]])
    repeats = check_kept(SKEWED, new)
    np.testing.assert_array_equal(repeats[:7], np.ones(7))
    assert sorted(repeats[7:9]) == [3, 4]
    assert repeats[9] == 7


def test_oversampling_over_all_makes_the_totals_equal():
    new = oversample_classes(SKEWED, seed=1, within="all")
    np.testing.assert_array_equal(class_counts(new, 3).sum(0), [9, 9, 9])
    repeats = check_kept(SKEWED, new)
    for label, least in ((0, 1), (1, 1), (2, 1)):
        own = repeats[SKEWED.columns["y"] == label]
        assert own.min() >= least
        assert own.max() - own.min() <= 1


def test_what_is_balanced_stays():
    balanced = of_labels([0, 1, 1, 0], [2, 2], [1])
    new = oversample_classes(balanced, seed=3)
    np.testing.assert_array_equal(new.columns["row"], balanced.columns["row"])


@pytest.mark.parametrize("resample", [oversample_classes, sample_classes])
@pytest.mark.parametrize("within", ["client", "all"])
def test_the_seed_names_the_result(resample, within):
    first, again, other = (resample(SKEWED, seed=seed, within=within).columns["row"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_sampling_keeps_sizes_and_owners():
    for within in ("client", "all"):
        new = sample_classes(SKEWED, seed=2, within=within)
        check_kept(SKEWED, new)
        np.testing.assert_array_equal(new.client_sizes, SKEWED.client_sizes)


@pytest.mark.parametrize(
    ("power", "shares"), [(0.0, [1 / 3] * 3), (0.5, [2 / 3, 2 / 9, 1 / 9]), (1.0, [36 / 41, 4 / 41, 1 / 41])]
)
def test_classes_are_drawn_in_proportion_to_a_power_of_their_number(power, shares):
    data = of_labels([0, 1], [0] * 3600 + [1] * 400 + [2] * 100)
    new = sample_classes(data, seed=0, power=power)
    drawn = class_counts(new, 3)[1] / 4100
    np.testing.assert_allclose(drawn, shares, atol=4 * 0.5 / np.sqrt(4100))  # four standard deviations at most
    if power < 1:
        assert np.abs(drawn - np.array([36, 4, 1]) / 41).max() > 0.1  # the shares that it had would be seen to differ
    own = np.bincount(new.client(1)["row"] - 2, minlength=4100)[:3600]
    assert own.max() < 12  # within a class all are drawn alike


def test_numbers_of_all_clients_decide_where_they_are_to():
    # Class 1 is rare at the first client and frequent over all: half of the first one's draws by its own numbers, few by all.
    data = of_labels([0] * 900 + [1] * 100, [1] * 9900)
    own, overall = (class_counts(sample_classes(data, seed=0, within=within), 2)[0] for within in ("client", "all"))
    assert abs(own[1] - 500) < 64
    # 900 examples of weight 1 / 900 against 100 of weight 1 / 10 000: 100 to 1.
    assert abs(overall[1] - 1000 / 101) < 13


def test_nothing_is_resampled_to_nothing():
    empty = of_labels([], [])
    assert (
        oversample_classes(empty, seed=0).client_sizes.tolist() == sample_classes(empty, seed=0).client_sizes.tolist() == [0, 0]
    )
    ragged = problems.ragged_clients()
    assert sample_classes(ragged, seed=0).columns["x"].dtype == np.float32
