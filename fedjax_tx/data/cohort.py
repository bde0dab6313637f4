"""Cohort sources: who takes part in each round."""

import zlib
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.types import Cohort, CohortSource, Sampling


def uniform_cohorts(clients_per_round: int) -> CohortSource:
    """Draws ``clients_per_round`` clients uniformly without replacement, anew each round.

    Errors: ``ValueError`` when a run starts with fewer clients than that.

    Example:
      >>> source = uniform_cohorts(2)
      >>> ids, state = source.select(source.init(3), np.random.default_rng(0), None)
      >>> ids.size
      2
    """
    check.integer("clients_per_round", clients_per_round, low=1)

    def init(num_clients):
        if clients_per_round > num_clients:
            check.fail_value("clients_per_round", f"<= {num_clients}, the number of clients", clients_per_round)
        return np.int64(num_clients)

    def select(state, generator, last_client_metrics):
        return generator.choice(int(state), clients_per_round, replace=False), state

    description = f"uniform_cohorts(clients_per_round={clients_per_round})"
    sampling = Sampling(size=clients_per_round)
    return CohortSource(init, select, lambda num_clients: clients_per_round, description, sampling=sampling)


def weighted_cohorts(clients_per_round: int, weights: ArrayLike, *, exact: bool = False) -> CohortSource:
    """Draws distinct clients by ``weights``, such as their sizes, anew each round.

    Clients are drawn one after another, each in proportion to the weights of those that are left. Of a cohort that is a small
    part of all, chances to come are then in proportion to weights; of a larger one they are more alike (of weights 6, 5, 4, 3
    and 2 the first is among three clients in 76 % of the rounds, not in 90 %). With ``exact`` client k comes with the chance
    m n_k / sum_j n_j, for m clients a round and weights n_k, and ``mean(weighted=False)`` estimates the mean over all examples,
    as the weighted mean does of uniform cohorts (the two schemes of arXiv 1812.06127), but no client outweighs the others of
    its cohort. Nobody comes twice: for whom that chance is above 1 always comes, and the others share what is left.

    Args:
      clients_per_round: >= 1. weights: [client], finite and >= 0, at least ``clients_per_round`` of them > 0.
      exact: whether chances are in proportion to weights (systematic sampling of a random order), or draws one after another.

    Errors: ``TypeError``, ``ValueError`` for weights that aren't such; when a run starts, for another number of clients.

    Example:
      >>> source = weighted_cohorts(2, [5, 0, 1])
      >>> ids, state = source.select(source.init(3), np.random.default_rng(0), None)
      >>> sorted(ids.tolist())
      [0, 2]
    """
    check.integer("clients_per_round", clients_per_round, low=1)
    shares = shares_of(weights, "clients_per_round", clients_per_round)
    chances = _chances(shares, clients_per_round) if check.boolean("exact", exact) else None

    def init(num_clients):
        check_entries("weights", shares.size, num_clients)
        return np.int64(num_clients)

    def select(state, generator, last_client_metrics):
        if chances is None:
            return generator.choice(shares.size, clients_per_round, replace=False, p=shares), state
        # The clients' chances side by side, in a random order, have the length m: of the points u, u + 1, ... none has two.
        order = generator.permutation(np.flatnonzero(chances))
        ends = np.append(np.cumsum(chances[order])[:-1], clients_per_round)
        points = generator.random() + np.arange(clients_per_round)
        return order[np.searchsorted(ends, points, side="right")], state

    checksum = zlib.crc32(shares.tobytes())
    how = f"clients_per_round={clients_per_round}{', exact=True' if exact else ''}"
    description = f"weighted_cohorts({how}, checksum {checksum:08x})"
    return CohortSource(init, select, lambda num_clients: clients_per_round, description)


def _chances(shares: np.ndarray, drawn: int) -> np.ndarray:
    """The chance of each client to be among ``drawn``: in proportion to its share, but of those who then always come 1."""
    chances = drawn * shares
    while (chances > 1).any():
        always = chances >= 1
        rest = np.where(always, 0, shares)
        chances = np.where(always, 1, (drawn - always.sum()) * rest / (rest.sum() or 1))
    return chances


def shares_of(weights: ArrayLike, name: str, drawn: int) -> np.ndarray:
    """Returns checked weights over their sum, float64 [client]; ``drawn`` clients, as ``name`` says, can be drawn by them."""
    array = np.asarray(weights)
    if array.dtype.kind not in "iuf":
        check.fail_type("weights", "an array of numbers, one for each client", weights)
    if array.ndim != 1:
        check.fail_value("weights", "to have shape [client]", array.shape)
    for weight in array[~np.isfinite(array) | (array < 0)][:1].tolist():
        check.fail_value("weights", "to be finite and >= 0", weight)
    if (array > 0).sum() < drawn:
        check.fail_value(name, f"<= {(array > 0).sum()}, the clients of positive weight", drawn)
    return array / array.sum(dtype=np.float64)


def check_entries(name: str, entries: int, num_clients: int) -> None:
    """Refuses a table that has not one entry for each client."""
    if entries != num_clients:
        check.fail_value(name, f"to have {num_clients} entries, one for each client", f"{entries} entries")


def all_clients() -> CohortSource:
    """Takes every client in every round.

    Example:
      >>> all_clients().max_clients(7)
      7
    """

    def select(state, generator, last_client_metrics):
        return np.arange(int(state)), state

    def everybody(num_clients):
        return num_clients

    return CohortSource(np.int64, select, everybody, "all_clients()", sampling=Sampling(rate=1.0))


def poisson_cohorts(rate: float, max_clients: int | None = None) -> CohortSource:
    """Takes each client with probability ``rate``, independently of the others and of other rounds; nobody may come.

    Poisson sampling is what the privacy amplification of DP-FedAvg (arXiv 1710.06963) and its accountants assume: behind it
    stands a mean over a fixed denominator, such as ``ftx.aggregation.fixed_mean(rate * num_clients)``.

    Args:
      rate: 0 < rate <= 1.
      max_clients: the most clients of a round, the capacity of the compiled program. By default the least number that a round
        exceeds with probability at most 1e-9. A draw of more is cut to a uniformly chosen part of that size: a client then comes
        a little less often, and no longer independently of the others, so keep ``max_clients`` far above ``rate * num_clients``.

    Example:
      >>> source = poisson_cohorts(0.5)
      >>> ids, state = source.select(source.init(6), np.random.default_rng(0), None)
      >>> ids.tolist(), source.max_clients(1000)
      ([1, 2, 5], 595)
    """
    rate = float(check.number("rate", rate, above=0, high=1))
    if max_clients is not None:
        check.integer("max_clients", max_clients, low=1)

    def capacity(num_clients):
        return least_capacity(num_clients, rate) if max_clients is None else min(max_clients, num_clients)

    def select(state, generator, last_client_metrics):
        # So many come, and every set of so many is as likely: what a draw costs grows with it, not with the population.
        count, most = int(generator.binomial(int(state), rate)), capacity(int(state))
        drawn = generator.choice(int(state), count, replace=False, shuffle=False)
        return np.sort(drawn if count <= most else generator.choice(drawn, most, replace=False)), state

    description = f"poisson_cohorts(rate={rate}, max_clients={max_clients})"
    return CohortSource(np.int64, select, capacity, description, sampling=Sampling(rate=rate))


@cache
def least_capacity(num_clients: int, rate: float, chance: float = 1e-9) -> int:
    """Returns the least m >= 1 with P[Binomial(num_clients, rate) > m] <= chance.

    Example:
      >>> least_capacity(2, 0.5, chance=0.25), least_capacity(2, 0.5, chance=0.24)
      (1, 2)
    """
    if rate >= 1:
        return num_clients
    # log P[k] = log P[0] + sum of log ratios of neighbours; the tail is summed from its small end.
    count = np.arange(num_clients)
    ratios = np.log((num_clients - count) / (count + 1)) + np.log(rate) - np.log1p(-rate)
    log_chances = num_clients * np.log1p(-rate) + np.append(0, np.cumsum(ratios))
    above = np.append(np.cumsum(np.exp(log_chances)[:0:-1])[::-1], 0)  # above[m] = P[> m]
    return max(1, int(np.argmax(above <= chance)))


def fixed_cohorts(ids: np.ndarray | list) -> CohortSource:
    """Takes the clients listed for each round: ``ids[round, client]`` (or a list of lists of differing lengths).

    Entries are client indices. After the last row it starts again with the first.

    Errors: ``TypeError`` for entries that aren't integers, ``ValueError`` for no row, or for an index out of range when the
    run starts.

    Example:
      >>> fixed_cohorts([[0, 1], [2]]).max_clients(3)
      2
    """
    if not isinstance(ids, (np.ndarray, list, tuple)):
        check.fail_type("ids", "an integer array [round, client] or a list of lists of client indices", ids)
    rows = [_indices(f"ids[{number}]", row) for number, row in enumerate(ids)]
    if not rows:
        check.fail_value("ids", "to have at least one round", ids)

    def init(num_clients):
        for number, row in enumerate(rows):
            if row.size and not 0 <= row.min() <= row.max() < num_clients:
                check.fail_value(f"ids[{number}]", f"to hold client indices in 0..{num_clients - 1}", row.tolist())
        return np.int64(0)

    def select(state, generator, last_client_metrics):
        return rows[int(state) % len(rows)], state + 1

    checksum = zlib.crc32(np.concatenate([np.append(row, -1) for row in rows]).tobytes())
    description = f"fixed_cohorts({len(rows)} rounds, checksum {checksum:08x})"
    repeats = any(np.unique(row).size < row.size for row in rows)
    return CohortSource(init, select, lambda num_clients: max(row.size for row in rows), description, repeats=repeats)


def with_covariates(cohorts: CohortSource, **tables: ArrayLike) -> CohortSource:
    """Cohorts whose clients bring what ``tables`` say of each: client i the row ``table[i]``, under the table's name.

    A trainer finds it in ``info.covariates``, a task in the batches of training: a column that is alike in all rows of a client.
    A round is sent the rows of its own clients, never the table. Evaluation has none of it.

    Args:
      cohorts: any source. tables: [client, ...] arrays of numbers, such as ``class_counts=`` for ``ftx.tasks.fed_lc``.

    Errors: ``TypeError``, ``ValueError`` for tables that aren't such, and, when a run starts, for another number of clients.

    Example:
      >>> source = with_covariates(fixed_cohorts([[1, 0]]), class_counts=[[5, 0], [2, 3]])
      >>> cohort, state = source.select(source.init(2), np.random.default_rng(0), None)
      >>> cohort.covariates["class_counts"].tolist()
      [[2, 3], [5, 0]]
    """
    check.instance("cohorts", cohorts, CohortSource, "a CohortSource")
    arrays = {name: _table(name, table) for name, table in tables.items()}
    if not arrays:
        raise ValueError("expected with_covariates() to be given a table, such as class_counts=..., got none")

    def init(num_clients):
        for name, array in arrays.items():
            if len(array) != num_clients:
                check.fail_value(name, f"to have {num_clients} rows, one for each client", f"{len(array)} rows")
        return cohorts.init(num_clients)

    def select(state, generator, last_client_metrics):
        selected, state = cohorts.select(state, generator, last_client_metrics)
        cohort = listed(selected)
        own = {name: array[np.asarray(cohort.ids, np.int64)] for name, array in arrays.items()}
        return cohort._replace(covariates={**cohort.covariates, **own}), state

    told = ", ".join(f"{name} checksum {zlib.crc32(array.tobytes()):08x}" for name, array in arrays.items())
    return cohorts._replace(init=init, select=select, description=f"with_covariates({cohorts.description}, {told})")


def _table(name: str, table: ArrayLike) -> np.ndarray:
    array = np.asarray(table)
    if array.dtype.kind not in "iuf" or array.ndim < 1:
        check.fail_type(name, "an array of numbers with a row for each client", table)
    return np.ascontiguousarray(array.astype(np.float32 if array.dtype.kind == "f" else np.int32))


def as_cohort(selected: Cohort | ArrayLike, num_clients: int, max_clients: int) -> Cohort:
    """Returns what a source selected as a checked ``Cohort`` with all fields filled in."""
    cohort = listed(selected)
    ids = _indices("the cohort's ids", cohort.ids)
    if ids.size > max_clients:
        check.fail_value("the cohort's size", f"<= {max_clients}, its source's max_clients", ids.size)
    if ids.size and not 0 <= ids.min() <= ids.max() < num_clients:
        check.fail_value("the cohort's ids", f"in 0..{num_clients - 1}", ids.tolist())
    version = np.zeros(ids.size, np.int32) if cohort.version is None else _indices("the cohort's version", cohort.version)
    covariates = {name: np.asarray(value) for name, value in cohort.covariates.items()}
    work_done = np.ones(ids.size) if cohort.work_done is None else np.asarray(cohort.work_done, np.float64)
    for name, value in {"version": version, "work_done": work_done, **covariates}.items():
        if value.shape[:1] != ids.shape:
            check.fail_value(f"the cohort's {name}", f"to have {ids.size} rows, one for each client", value.shape)
    for share in work_done[~((work_done >= 0) & (work_done <= 1))][:1].tolist():
        check.fail_value("the cohort's work_done", "to be 0 to 1", share)
    return Cohort(ids, version, covariates, work_done)


def listed(selected: Cohort | ArrayLike) -> Cohort:
    """Returns what a source selected, a ``Cohort`` or just client indices, as a ``Cohort``."""
    return selected if isinstance(selected, Cohort) else Cohort(np.asarray(selected))


def _indices(name: str, row) -> np.ndarray:
    array = np.asarray(row)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        check.fail_type(name, "a list of client indices", row)
    return array.astype(np.int64)
