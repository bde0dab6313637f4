"""FedProx's Synthetic(alpha, beta): its moments, what alpha and beta do, the split."""

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data.sources import synthetic


def client_means(splits):
    """The mean input of each client, [client, feature], and how many examples it is of."""
    train = splits.train
    means = [train.client(client)["x"].mean(0) for client in range(train.num_clients)]
    return np.array(means, np.float64), train.client_sizes


@pytest.fixture(scope="module")
def many():
    """The data of twenty seeds: 600 clients."""
    return [ftx.data.load("synthetic", alpha=1.0, beta=2.0, seed=seed) for seed in range(20)]


def test_sizes_are_50_and_a_log_normal_number(many):
    sizes = np.concatenate([splits.train.client_sizes + splits.test.client_sizes for splits in many])
    assert sizes.min() == 50
    logs = np.log(sizes - 50 + 0.5)  # floor takes a half on average
    tail = logs[logs > 3]  # where floor is no matter: P[N(4, 2) > 3] = 0.6915, and the mean beyond is 4 + 2 * 0.3521 / 0.6915
    assert tail.size / sizes.size == pytest.approx(0.6915, abs=4 * np.sqrt(0.6915 * 0.3085 / 600))
    assert tail.mean() == pytest.approx(5.018, abs=0.24)
    assert np.median(logs) == pytest.approx(4, abs=4 * 2 * 1.2533 / np.sqrt(600))


def test_nine_tenths_of_each_client_are_train(many):
    for splits in many[:3]:
        total = splits.train.client_sizes + splits.test.client_sizes
        np.testing.assert_array_equal(splits.train.client_sizes, np.floor(0.9 * total))
        assert splits.train.client_ids.tolist() == splits.test.client_ids.tolist() == list(range(30))
        assert splits.unseen.num_clients == 0
        assert splits.report == {"train": splits.train.num_examples, "test": splits.test.num_examples}


def test_inputs_vary_within_a_client_as_a_power_of_the_feature(many):
    x = max((splits.train.client(client)["x"] for splits in many for client in range(30)), key=len)
    assert len(x) > 10_000
    np.testing.assert_allclose(x.var(0, dtype=np.float64), np.arange(1, 61) ** -1.2, rtol=6 * np.sqrt(2 / len(x)))
    correlation = np.corrcoef(x.T.astype(np.float64)) - np.eye(60)
    assert np.abs(correlation).max() < 6 / np.sqrt(len(x))


def test_means_of_clients_have_beta_as_a_standard_deviation(many):
    """The mean of v_k over its 60 entries is B_k and a 60th of variance 1: 4 + 1/60, were beta a variance 2 + 1/60."""
    means = np.concatenate([client_means(splits)[0] for splits in many])
    of_client = means.mean(1)
    assert of_client.var() == pytest.approx(4 + 1 / 60, rel=4 * np.sqrt(2 / 600))
    within = means - of_client[:, None]
    assert (within**2).sum(1).mean() / 59 == pytest.approx(1, rel=0.04)  # and little more of the examples' own


def test_labels_are_those_of_a_linear_model_of_the_clients_own():
    """A client's classes are told apart by planes, which another client's planes do not do."""
    data = ftx.data.load("synthetic", alpha=0.0, beta=0.0, seed=1).train
    large = np.argsort(data.client_sizes)[-2:].tolist()
    fits = [fit(data.client(client)) for client in large]
    own = [
        np.mean(predict(fit, data.client(client)) == data.client(client)["y"]) for client, fit in zip(large, fits, strict=True)
    ]
    other = [
        np.mean(predict(fits[1 - number], data.client(large[number])) == data.client(large[number])["y"]) for number in (0, 1)
    ]
    assert min(own) > 0.8 > 0.5 > max(other)


def test_iid_clients_share_a_model_and_a_mean():
    data = ftx.data.load("synthetic", iid=True, seed=1).train
    large = np.argsort(data.client_sizes)[-2:].tolist()
    fits = [fit(data.client(client)) for client in large]
    assert np.mean(predict(fits[0], data.client(large[1])) == data.client(large[1])["y"]) > 0.65
    means, sizes = client_means(ftx.data.load("synthetic", iid=True, seed=1))
    assert np.abs(means * np.sqrt(sizes)[:, None] / np.arange(1, 61) ** -0.6).max() < 5
    wide = synthetic.load(3.0, 3.0, iid=True, seed=1).train
    np.testing.assert_array_equal(wide.columns["x"], data.columns["x"])


def test_alpha_changes_no_label_and_beta_does():
    """What u_k adds is the same for all classes."""
    first, second, third = (synthetic.load(alpha, beta, seed=3) for alpha, beta in ((0.0, 1.0), (5.0, 1.0), (0.0, 2.0)))
    np.testing.assert_array_equal(first.train.columns["x"], second.train.columns["x"])
    np.testing.assert_array_equal(first.train.columns["y"], second.train.columns["y"])
    assert not np.array_equal(first.train.columns["y"], third.train.columns["y"])


def test_the_seed_names_the_data():
    first, again, other = (synthetic.load(seed=seed).train for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.columns["x"], again.columns["x"])
    assert first.num_examples != other.num_examples


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": -1.0}, ValueError, "expected alpha >= 0, got -1.0"),
        ({"beta": "wide"}, TypeError, "expected beta to be a number, got 'wide'"),
        ({"iid": 1}, TypeError, "expected iid to be True or False, got 1"),
        ({"seed": -1}, ValueError, "expected seed >= 0, got -1"),
        ({"gamma": 1.0}, TypeError, "expected the options of 'synthetic' to be among alpha, beta, iid, seed, got gamma"),
    ],
)
def test_what_is_refused(options, error, message, unchecked):
    with pytest.raises(error, match=message):
        ftx.data.load("synthetic", **options)


def fit(columns):
    """Least squares to one-hot labels."""
    x = np.column_stack([columns["x"], np.ones(len(columns["y"]))])
    return np.linalg.lstsq(x, np.eye(10)[columns["y"]], rcond=None)[0]


def predict(weights, columns):
    return np.argmax(np.column_stack([columns["x"], np.ones(len(columns["y"]))]) @ weights, axis=1)
