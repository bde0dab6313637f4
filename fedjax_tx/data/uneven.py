"""Uneven systems: clients that do less than they were asked to, clients that leave, and rounds that end before all are done.

Each wraps a cohort source and says of every client which share of its local steps it makes (``Cohort.work_done``). A client that
makes none has dropped out: it contributes nothing, and its state is kept. At which moment it left makes no difference, as the
server has nothing of a client before it is done; so those steps are not computed. In a method of several passes it is away in
all of them: one that leaves between two passes of a round, and is heard in the first, is not modelled.

Whether a client that did a part is heard is the user's choice: FedProx (arXiv 1812.06127) takes what it has (``drop=False``),
FedAvg drops it (``drop=True``). Who is late depends on neither, so that methods are compared on the same rounds. Its weight
stays that of all its examples. Shares of wrappers around wrappers are multiplied.
"""

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from fedjax_tx import check
from fedjax_tx.data.clock import read_durations
from fedjax_tx.data.cohort import check_entries, listed
from fedjax_tx.types import CohortSource


def _uniform_shares(generator: np.random.Generator, count: int) -> np.ndarray:
    return 1 - generator.random(count)  # of (0, 1]: whoever is a straggler makes a step


def with_stragglers(
    cohorts: CohortSource,
    fraction: float,
    work_done: Callable[[np.random.Generator, int], ArrayLike] = _uniform_shares,
    drop: bool = False,
) -> CohortSource:
    """Cohorts of which a fraction, drawn anew each round, does only a part of its local steps, as in FedProx (arXiv 1812.06127).

    Args:
      cohorts: any source. fraction: 0 to 1; of a cohort's clients, that many (rounded) are stragglers.
      work_done: ``work_done(generator, count) -> float [count]``, the share of its steps that each straggler makes; by default
        uniform on 0 to 1. The paper's stop after whole epochs, of 20: ``lambda generator, count: generator.integers(1, 20, count)
        / 20``. (A run is resumed by the function's name.)
      drop: whether stragglers are dropped instead.

    Errors: ``ValueError`` for shares that are none.

    Example:
      >>> from fedjax_tx.data import all_clients
      >>> source = with_stragglers(all_clients(), 0.5, lambda generator, count: [0.25] * count)
      >>> cohort, state = source.select(source.init(4), np.random.default_rng(0), None)
      >>> cohort.work_done.tolist()
      [1.0, 1.0, 0.25, 0.25]
    """
    check.instance("cohorts", cohorts, CohortSource, "a CohortSource")
    fraction = float(check.number("fraction", fraction, low=0, high=1))
    check.function("work_done", work_done)
    check.boolean("drop", drop)

    def share(generator, ids):
        stragglers = generator.choice(ids.size, round(fraction * ids.size), replace=False)
        made = np.ones(ids.size)
        made[stragglers] = 0 if drop else _shares(work_done(generator, stragglers.size), stragglers.size)
        return made

    name = getattr(work_done, "__qualname__", type(work_done).__qualname__)  # objects may be callable too
    told = f"{fraction}, {work_done.__module__}.{name}, drop={drop}"
    return _with_work_done(cohorts, share, f"with_stragglers({cohorts.description}, {told})")


def with_dropout(cohorts: CohortSource, chance: ArrayLike) -> CohortSource:
    """Cohorts of whose clients each drops out with some chance, independently of the others and of other rounds.

    Args:
      cohorts: any source. chance: 0 to 1, a number for all clients or float [client].

    Errors: ``TypeError``, ``ValueError`` for chances that are none, and, when a run starts, for another number of clients.

    Example:
      >>> from fedjax_tx.data import all_clients
      >>> source = with_dropout(all_clients(), [0.0, 1.0, 0.0])
      >>> cohort, state = source.select(source.init(3), np.random.default_rng(0), None)
      >>> cohort.work_done.tolist()
      [1.0, 0.0, 1.0]
    """
    check.instance("cohorts", cohorts, CohortSource, "a CohortSource")
    chances = np.asarray(chance)
    if chances.dtype.kind not in "iuf":
        check.fail_type("chance", "a number, or an array of one for each client", chance)
    if chances.ndim > 1:
        check.fail_value("chance", "to be a number, or of shape [client]", chances.shape)
    for bad in chances[~((chances >= 0) & (chances <= 1))][:1].tolist():
        check.fail_value("chance", "to be 0 to 1", bad)

    def share(generator, ids):
        return (generator.random(ids.size) >= (chances[ids] if chances.ndim else chances)).astype(np.float64)

    told = f"checksum {zlib.crc32(chances.astype(np.float64).tobytes()):08x}" if chances.ndim else f"{float(chances)}"
    size = chances.size if chances.ndim else None
    return _with_work_done(cohorts, share, f"with_dropout({cohorts.description}, {told})", {"chance": size})


def with_deadline(
    cohorts: CohortSource,
    durations: ArrayLike | Callable[[np.random.Generator, np.ndarray], ArrayLike],
    deadline: float | None = None,
    wanted: int | None = None,
    drop: bool = True,
) -> CohortSource:
    """Rounds that end at a deadline, or when as many clients as are wanted are done, whichever comes first.

    With cohorts of more clients than are wanted this is over-selection as at Google (arXiv 1902.01046): 130 % are invited, and
    the first 100 % count. A client that is late by then has done the round's length over its own duration of its steps.

    Args:
      cohorts: any source. durations: how long each client takes for all its local steps, as for ``async_cohorts``.
      deadline: > 0, in the unit of the durations; None: there is none.
      wanted: >= 1; None: all. Of clients that are done at the same time, those that stand first in the cohort count.
      drop: whether who is late is dropped, or sends what it has.

    Errors: ``ValueError`` where neither a deadline nor a number is given; when a run starts with another number of clients than
    of durations; ``TypeError`` or ``ValueError`` for durations that are not finite numbers > 0.

    Example:
      >>> from fedjax_tx.data import all_clients
      >>> source = with_deadline(all_clients(), [2.0, 8.0, 4.0, 5.0], deadline=6.0, wanted=2, drop=False)
      >>> cohort, state = source.select(source.init(4), np.random.default_rng(0), None)
      >>> cohort.work_done.tolist()
      [1.0, 0.5, 1.0, 0.8]
    """
    check.instance("cohorts", cohorts, CohortSource, "a CohortSource")
    draw, num_durations, said = read_durations(durations)
    if deadline is None and wanted is None:
        raise ValueError("expected with_deadline() to be given a deadline, a number of wanted clients, or both, got neither")
    if deadline is not None:
        deadline = float(check.number("deadline", deadline, above=0))
    if wanted is not None:
        check.integer("wanted", wanted, low=1)
    check.boolean("drop", drop)

    def share(generator, ids):
        if not ids.size:
            return np.ones(0)
        spent = draw(generator, ids)
        ranked = np.argsort(spent, kind="stable")
        counted = ranked[: ids.size if wanted is None else wanted]
        end = spent[counted[-1]] if deadline is None else min(spent[counted[-1]], deadline)
        made = np.zeros(ids.size) if drop else np.minimum(end / spent, 1)
        made[counted[spent[counted] <= end]] = 1
        return made

    told = f"{said}, deadline={deadline}, wanted={wanted}, drop={drop}"
    return _with_work_done(cohorts, share, f"with_deadline({cohorts.description}, {told})", {"durations": num_durations})


def _with_work_done(
    cohorts: CohortSource,
    share: Callable[[np.random.Generator, np.ndarray], np.ndarray],
    description: str,
    entries: dict[str, int | None] | None = None,
) -> CohortSource:
    """Cohorts whose clients do ``share(generator, ids)`` of what they did; ``entries``: tables' names and numbers of entries."""

    def init(num_clients):
        for name, size in (entries or {}).items():
            check_entries(name, num_clients if size is None else size, num_clients)
        return cohorts.init(num_clients)

    def select(state, generator, last_client_metrics):
        selected, state = cohorts.select(state, generator, last_client_metrics)
        cohort = listed(selected)
        before = 1.0 if cohort.work_done is None else np.asarray(cohort.work_done)
        return cohort._replace(work_done=before * share(generator, np.asarray(cohort.ids, np.int64))), state

    # Whose work counts is no longer drawn as the accounting of privacy knows it.
    return cohorts._replace(init=init, select=select, description=description, sampling=None)


def _shares(drawn: ArrayLike, count: int) -> np.ndarray:
    shares = np.asarray(drawn, np.float64)
    if shares.shape != (count,):
        check.fail_value("what work_done draws", f"to have {count} entries, one for each straggler", f"of shape {shares.shape}")
    for bad in shares[~((shares >= 0) & (shares <= 1))][:1].tolist():
        check.fail_value("what work_done draws", "to be 0 to 1", bad)
    return shares
