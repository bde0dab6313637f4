"""Who holds what: ways to deal examples that have no owners among clients, alike or unevenly.

Each is a pure function that returns the client of each example, int32[examples], for ``FederatedDataset.from_columns(columns,
clients)``. Every example goes to exactly one client, and the seed names the result. Nothing is drawn again until it fits: each
docstring says how small a client can get, and why.

"Federated Learning on Non-IID Data Silos" (arXiv 2102.02079) tells the kinds of skew apart. From iid to one class a client there
is one knob, the alpha of ``partition_dirichlet``: infinity to 0.
"""

import heapq

import numpy as np
from jaxtyping import Float, Int, Int32, Int64
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.data.federated import plain_array
from fedjax_tx.prng import host_generator


def partition_iid(num_examples: int, num_clients: int, *, seed: int) -> Int32[np.ndarray, " examples"]:
    """Deals examples at random. Sizes differ by one at most, so no client is smaller than num_examples // num_clients.

    Errors: ``TypeError``, ``ValueError`` for numbers that aren't >= 1, or more clients than examples.

    Example:
      >>> np.bincount(partition_iid(10, 3, seed=0)).tolist()
      [4, 3, 3]
    """
    _check_numbers(num_examples, num_clients, seed)
    sizes = _equal_sizes(num_examples, num_clients)
    return host_generator(seed, "partition", "iid").permutation(np.repeat(np.arange(num_clients, dtype=np.int32), sizes))


def partition_dirichlet(labels: ArrayLike, num_clients: int, alpha: float, *, seed: int) -> Int32[np.ndarray, " examples"]:
    """Gives each client shares of the classes that it draws from a Dirichlet distribution (arXiv 1909.06335).

    A client's shares are q ~ Dir(alpha p), p being those of all examples that are left, and its examples follow q. What a class
    can't give is drawn anew among the others, which ends since a class runs out each time. Clients choose in random order.

    Sizes differ by one at most, so no client is smaller than examples // num_clients. (Where each *class* is dealt among clients
    by Dir(a), as in arXiv 1905.12022, sizes differ too; that a is about this alpha divided by the number of classes.)

    Args:
      labels: [example], integers, booleans or strings. num_clients: at most as many as examples.
      alpha: 0 to infinity. Infinity: examples are dealt at random. 0: a client has one class, and another one only as far as
        its class runs out.
      seed: names the draws.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such.

    Example:
      >>> labels = np.repeat([0, 1, 2], 4)
      >>> clients = partition_dirichlet(labels, 3, 0.0, seed=0)
      >>> [labels[clients == client].tolist() for client in range(3)]
      [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]]
    """
    classes = _read_classes(labels)
    _check_numbers(classes.size, num_clients, seed)
    check.number("alpha", 0.0 if isinstance(alpha, float) and alpha == np.inf else alpha, low=0)
    generator = host_generator(seed, "partition", "dirichlet")
    left = np.bincount(classes)
    counts = np.zeros((num_clients, left.size), np.int64)
    sizes = _equal_sizes(classes.size, num_clients)
    for client in generator.permutation(num_clients):
        while needed := int(sizes[client] - counts[client].sum()):
            given = np.minimum(_draw_classes(needed, left, float(alpha), generator), left)
            counts[client] += given
            left = left - given
    return _deal_classes(classes, counts, generator)


def partition_shards(
    labels: ArrayLike, num_clients: int, shards_per_client: int = 2, *, seed: int
) -> Int32[np.ndarray, " examples"]:
    """Cuts each class into shards and gives each client as many of them, at random (arXiv 1602.05629, "pathological").

    The paper cuts the examples, sorted by class, into equal shards, so that a shard at a border has two classes. Here a class
    has a whole number of shards, in proportion to its size and at least one, so that a client never has more classes than shards.
    Shards of a class differ by one example at most, and none is empty: a client has at least ``shards_per_client`` examples.

    Args:
      labels: [example], integers, booleans or strings.
      num_clients, shards_per_client: of their product, the number of shards, there are at least as many as classes and at most
        as many as examples. seed: names who gets which.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such.

    Example:
      >>> labels = np.repeat([0, 1, 2], [2, 4, 6])
      >>> clients = partition_shards(labels, 3, 2, seed=0)
      >>> [labels[clients == client].tolist() for client in range(3)]
      [[0, 0, 2, 2], [1, 1, 1, 1], [2, 2, 2, 2]]
    """
    classes = _read_classes(labels)
    _check_numbers(classes.size, num_clients, seed)
    check.integer("shards_per_client", shards_per_client, low=1)
    sizes, num_shards = np.bincount(classes), num_clients * shards_per_client
    if not sizes.size <= num_shards <= classes.size:
        expected = f"that makes {sizes.size} to {classes.size} shards for {num_clients} clients"
        check.fail_value("shards_per_client", f"{expected}, one for each class to one for each example", shards_per_client)
    generator = host_generator(seed, "partition", "shards")
    shards = _share_out(sizes, num_shards)
    class_of_shard = np.repeat(np.arange(sizes.size), shards)
    size_of_shard = np.concatenate(
        [_equal_sizes(size, parts) for size, parts in zip(sizes.tolist(), shards.tolist(), strict=True)]
    )
    counts = np.zeros((num_clients, sizes.size), np.int64)
    np.add.at(counts, (generator.permutation(num_shards) % num_clients, class_of_shard), size_of_shard)
    return _deal_classes(classes, counts, generator)


def partition_quantity(
    num_examples: int, num_clients: int, alpha: float, *, seed: int, min_size: int = 1
) -> Int32[np.ndarray, " examples"]:
    """Deals examples at random, but to clients of very different sizes (arXiv 2102.02079): shares of them ~ Dir(alpha).

    Each client first gets ``min_size`` examples; only the rest is dealt by these shares, so that no draw is ever too small.

    Args:
      num_examples, num_clients: how many. alpha: > 0; large: equal sizes, small: one client has nearly all. seed: names the
        draws. min_size: >= 0, and at most num_examples / num_clients.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such.

    Example:
      >>> np.bincount(partition_quantity(1000, 5, 0.5, seed=0, min_size=10)).tolist()
      [26, 59, 20, 483, 412]
    """
    _check_numbers(num_examples, num_clients, seed)
    alpha = float(check.number("alpha", alpha, above=0))
    check.integer("min_size", min_size, low=0, high=num_examples // num_clients)
    generator = host_generator(seed, "partition", "quantity")
    shares = _dirichlet(np.full(num_clients, alpha), generator)
    ends = np.rint(np.cumsum(shares) * (num_examples - num_clients * min_size)).astype(np.int64)
    ends[-1] = num_examples - num_clients * min_size
    sizes = np.diff(ends, prepend=0) + min_size
    return generator.permutation(np.repeat(np.arange(num_clients, dtype=np.int32), sizes))


def partition_features(
    features: ArrayLike, num_clients: int, strength: float = 1.0, *, seed: int, labels: ArrayLike | None = None
) -> Int32[np.ndarray, " examples"]:
    """Gives clients examples that look alike: of each class (if there are labels) neighbours along one direction of the features.

    An example's score is its feature, or of several their first principal component. Examples are sorted by strength * score +
    sqrt(1 - strength²) * noise, both of variance 1, and cut into equal runs: client 0 has the lowest scores. With labels this is
    done within each class, so that clients have all classes alike but see different examples of them: p(x | y) differs, p(y)
    doesn't. (arXiv 2102.02079 adds other noise to each client's features instead; this leaves examples as they are.)

    Sizes differ by one at most, so no client is smaller than examples // num_clients.

    Args:
      features: [example] or [example, ...], finite numbers: an age, a brightness, pixels.
      num_clients: at most as many as examples. strength: 0 (at random) to 1 (sorted), the correlation of a place with the score.
      seed: names the noise. labels: [example], integers, booleans or strings.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such.

    Example:
      >>> partition_features([7.0, 1.0, 3.0, 5.0], 2, seed=0).tolist()
      [1, 0, 0, 1]
      >>> partition_features([7.0, 1.0, 3.0, 5.0], 2, seed=0, labels=[0, 1, 1, 0]).tolist()
      [1, 0, 1, 0]
    """
    array = np.asarray(features)
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        check.fail_type("features", "an array of numbers with a row an example", features)
    _check_numbers(len(array), num_clients, seed)
    flat = array.reshape(len(array), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        check.fail_value("features", "to be finite", flat[~np.isfinite(flat)][0].item())
    strength = float(check.number("strength", strength, low=0, high=1))
    classes = np.zeros(len(array), np.int64) if labels is None else _read_classes(labels)
    if classes.size != len(array):
        check.fail_value("labels", f"to have {len(array)} entries, one for each row of features", classes.size)
    noise = host_generator(seed, "partition", "features").standard_normal(len(array))
    key = strength * _first_component(flat) + np.sqrt(1 - strength**2) * noise
    order = np.lexsort((key, classes))
    sizes = np.bincount(classes)
    place = np.empty(len(array))  # within the class, 0 to 1
    place[order] = (np.arange(len(array)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 0.5) / np.repeat(sizes, sizes)
    clients = np.empty(len(array), np.int32)
    clients[np.argsort(place, kind="stable")] = np.repeat(np.arange(num_clients), _equal_sizes(len(array), num_clients))
    return clients


def partition_by(keys: ArrayLike, *, min_size: int = 1) -> Int32[np.ndarray, " examples"]:
    """Makes a client of each key, such as a writer, a hospital or a town; keys of few examples share one.

    As long as the smallest client has fewer than ``min_size`` examples it is joined with the next smallest, so that this ends
    when one is left, at the latest. Clients are numbered in the order of their first keys.

    Args:
      keys: [example], integers, booleans or strings. min_size: 1 to the number of examples.

    Errors: ``TypeError``, ``ValueError`` for arguments that aren't such.

    Example:
      >>> partition_by(["Rome", "Bari", "Rome", "Pisa", "Bari"], min_size=2).tolist()
      [1, 0, 1, 0, 0]
    """
    key = _read_classes(keys, "keys")
    check.integer("min_size", min_size, low=1, high=key.size)
    groups = [(int(size), [number]) for number, size in enumerate(np.bincount(key))]
    heapq.heapify(groups)
    while groups[0][0] < min_size:
        (size, members), (other_size, others) = heapq.heappop(groups), heapq.heappop(groups)
        heapq.heappush(groups, (size + other_size, sorted(members + others)))
    client_of_key = np.empty(key.max() + 1, np.int32)
    for client, members in enumerate(sorted(members for _, members in groups)):
        client_of_key[members] = client
    return client_of_key[key]


def _check_numbers(num_examples: int, num_clients: int, seed: int) -> None:
    check.integer("num_examples", num_examples, low=1)
    check.integer("num_clients", num_clients, low=1, high=num_examples)
    check.integer("seed", seed, low=0)


def _read_classes(labels: ArrayLike, name: str = "labels") -> Int64[np.ndarray, " examples"]:
    """Numbers the distinct labels 0, 1, 2 ..."""
    array = plain_array(name, np.asarray(labels))
    if array.dtype.kind not in "biuU":
        check.fail_type(name, "an array of integers, booleans or strings", labels)
    if array.ndim != 1 or not array.size:
        check.fail_value(name, "of shape [example], with at least one", array.shape)
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _equal_sizes(total: int, parts: int) -> Int64[np.ndarray, " parts"]:
    return np.full(parts, total // parts, np.int64) + (np.arange(parts) < total % parts)


def _dirichlet(concentration: Float[np.ndarray, " entries"], generator: np.random.Generator) -> Float[np.ndarray, " entries"]:
    return generator.dirichlet(np.maximum(concentration, np.finfo(np.float64).tiny))  # 0 has no distribution


def _draw_classes(
    needed: int, left: Int[np.ndarray, " classes"], alpha: float, generator: np.random.Generator
) -> Int[np.ndarray, " classes"]:
    """How many examples of each class a client wants, of those that are left."""
    if alpha == np.inf:
        return generator.multivariate_hypergeometric(left, needed)
    there = np.flatnonzero(left)
    wanted, pool = np.zeros_like(left), left[there] / left.sum()
    if alpha == 0:
        wanted[generator.choice(there, p=pool)] = needed
    else:
        wanted[there] = generator.multinomial(needed, _dirichlet(alpha * pool, generator))
    return wanted


def _share_out(sizes: Int[np.ndarray, " classes"], total: int) -> Int[np.ndarray, " classes"]:
    """How many of ``total`` shards each class is cut into: one, and one more wherever they are largest."""
    shards = np.ones_like(sizes)
    for _ in range(total - sizes.size):
        shards[np.argmax(sizes / shards)] += 1
    return shards


def _deal_classes(
    classes: Int[np.ndarray, " examples"], counts: Int[np.ndarray, "clients classes"], generator: np.random.Generator
) -> Int32[np.ndarray, " examples"]:
    """Deals each class at random, so that a client has as many of it as ``counts`` says."""
    clients = np.empty(classes.size, np.int32)
    order = np.lexsort((generator.random(classes.size), classes))
    clients[order] = np.repeat(np.tile(np.arange(len(counts)), counts.shape[1]), counts.T.ravel())
    return clients


def _first_component(features: Float[np.ndarray, "examples entries"]) -> Float[np.ndarray, " examples"]:
    """The first principal component, of variance 1, its largest weight positive; of one feature, the feature itself."""
    centred = features - features.mean(0)
    wide = features.shape[1] > len(features)  # the smaller of the two matrices of products has the same component
    vector = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)[1][:, -1]
    direction = centred.T @ vector if wide else vector
    score = centred @ direction * np.sign(direction[np.argmax(np.abs(direction))])
    return score / max(score.std(), np.finfo(np.float64).tiny)
