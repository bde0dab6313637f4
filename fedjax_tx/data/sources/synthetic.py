"""FedProx's Synthetic(alpha, beta) (arXiv 1812.06127): 30 clients, 10 classes, a linear model of each client's own.

For client k, with standard deviations (not variances) alpha and beta, as in its authors' generator::

    u_k ~ N(0, alpha)     W_k ~ N(u_k, 1) [60, 10]     b_k ~ N(u_k, 1) [10]     y = argmax(x W_k + b_k)
    B_k ~ N(0, beta)      v_k ~ N(B_k, 1) [60]         x ~ N(v_k, diag(1^-1.2, 2^-1.2, ..., 60^-1.2))
    size n_k = 50 + floor(exp(N(4, 2)));   the first floor(0.9 n_k) examples are train, the others test

What makes clients differ: their models, since W_k and b_k are drawn for each client at any alpha; and their inputs, the more the
larger beta is. u_k shifts all ten logits alike, by u_k (1 + sum of x), so **alpha changes no label**; that is how the
generator is, and the paper's results are on it. Numbers are ours, not those of NumPy's generator of that time.
"""

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits
from fedjax_tx.prng import host_generator

NUM_CLIENTS = 30
NUM_FEATURES = 60
NUM_CLASSES = 10
TRAIN_SHARE = 0.9


def load(alpha: float = 1.0, beta: float = 1.0, *, iid: bool = False, seed: int = 0) -> FederatedSplits:
    """Returns 30 clients with columns ``x`` float32[rows, 60] and ``y`` int32[rows]; ``.unseen`` has no client.

    Args:
      alpha, beta: >= 0, the standard deviations above. iid: all clients share one W and b ~ N(0, 1), and v_k = 0: the paper's
        Synthetic-IID; alpha and beta play no part then. seed: names all draws.

    Raises:
      TypeError, ValueError: if an argument is of another kind, or < 0.

    Example:
      >>> data = load(alpha=1.0, beta=1.0, seed=0)
      >>> data.train.num_clients, int(data.train.client_sizes.min()), data.report
      (30, 45, {'train': 4043, 'test': 462})
    """
    alpha, beta = (float(check.number(name, value, low=0)) for name, value in (("alpha", alpha), ("beta", beta)))
    check.boolean("iid", iid)
    check.integer("seed", seed, low=0)
    sizes = 50 + np.floor(host_generator(seed, "synthetic", "sizes").lognormal(4, 2, NUM_CLIENTS)).astype(np.int64)
    shared = _draw_model(host_generator(seed, "synthetic", "shared"), 0.0) if iid else None
    clients = [_draw_client(seed, client, int(size), alpha, beta, shared) for client, size in enumerate(sizes)]
    ends = np.floor(TRAIN_SHARE * sizes).astype(np.int64)
    train = _join([(x[:end], y[:end]) for (x, y), end in zip(clients, ends, strict=True)])
    test = _join([(x[end:], y[end:]) for (x, y), end in zip(clients, ends, strict=True)])
    return FederatedSplits(train, test, test.select([]), {"train": train.num_examples, "test": test.num_examples})


def _draw_model(generator: np.random.Generator, mean: float) -> tuple[np.ndarray, np.ndarray]:
    return generator.normal(mean, 1, (NUM_FEATURES, NUM_CLASSES)), generator.normal(mean, 1, NUM_CLASSES)


def _draw_client(
    seed: int, client: int, size: int, alpha: float, beta: float, shared: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The examples of one client; what it draws depends on its number and the seed alone, alpha and beta only scale it."""
    generator = host_generator(seed, "synthetic", "client", client)
    weights, bias = _draw_model(generator, alpha * generator.standard_normal())
    mean = generator.normal(beta * generator.standard_normal(), 1, NUM_FEATURES)
    if shared is not None:
        (weights, bias), mean = shared, np.zeros(NUM_FEATURES)
    deviations = np.arange(1, NUM_FEATURES + 1) ** (-1.2 / 2)
    x = mean + deviations * generator.standard_normal((size, NUM_FEATURES))
    return x.astype(np.float32), np.argmax(x @ weights + bias, axis=1).astype(np.int32)


def _join(clients: list[tuple[np.ndarray, np.ndarray]]) -> FederatedDataset:
    x, y = (np.concatenate(column) for column in zip(*clients, strict=True))
    return FederatedDataset.from_offsets({"x": x, "y": y}, np.cumsum([0, *(len(labels) for _, labels in clients)]))
