"""What an experiment's programs compute, in eight letters: lest a run be resumed with another algorithm."""

import dataclasses
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.data.schedule import Schedule, make_schedule, plan_capacity
from fedjax_tx.simulation.experiment import Experiment
from fedjax_tx.simulation.round import init_state, one_round, pass_work, resolve, run_evaluation_uncompiled
from fedjax_tx.simulation.rounds import hyper_arrays
from fedjax_tx.types import Cohort, LocalWork, MakeAlgorithm

# What JAX prints of functions: where they are in memory, and what they are called.
_NAMES = re.compile(r" at 0x[0-9a-f]+|\bname=\S+")


def fingerprint(experiment: Experiment) -> str:
    """Returns a checksum of what is computed: of the first state, of a round of one client, and of its evaluation.

    Models, losses, metrics, optimizers, aggregators and every constant in them count (mu, a clipping norm, a frozen encoder);
    ``hyper``, the seed, the data and the names of functions don't. It is the same wherever the versions of JAX and of this
    library are; nothing is compiled or run.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> train = ftx.data.FederatedDataset.from_columns({"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}, [0, 0, 1, 1])
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 4))
      >>> def told(lr):
      ...     algorithm = ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(lr))
      ...     work = ftx.data.LocalWork(batch_size=2)
      ...     return fingerprint(ftx.Experiment(algorithm, train=train, cohorts=ftx.data.all_clients(), local=work))
      >>> told(0.1) == told(0.1), told(0.1) == told(0.3)
      (True, False)
    """
    return _fingerprint(*_essence(experiment))[0]


def metric_names(experiment: Experiment) -> list[str]:
    """Returns the names of the metrics that clients report as they train; nothing is compiled or run."""
    return sorted(_fingerprint(*_essence(experiment))[1])


def _essence(experiment: Experiment) -> tuple:
    """What of an experiment its programs depend on."""
    algorithm = resolve(experiment.make_algorithm, experiment.hyper)
    works = [pass_work(a_pass, experiment.local) for a_pass in (*algorithm.passes, algorithm.evaluation)]
    hyper = tuple((name, array.dtype) for name, array in hyper_arrays(experiment.hyper).items())
    columns = tuple((name, column.shape[1:], column.dtype) for name, column in experiment.train.columns.items())
    return experiment.make_algorithm, hyper, tuple(map(_same_for_all, works)), columns


def _same_for_all(work: LocalWork) -> LocalWork:
    """Work without how much of it there is, which is the schedule's."""
    return dataclasses.replace(work, epochs=1) if work.steps is None else dataclasses.replace(work, steps=1)


@lru_cache(maxsize=4)
def _fingerprint(maker: MakeAlgorithm, hyper: tuple, works: tuple[LocalWork, ...], columns: tuple) -> tuple[str, tuple]:
    """(fingerprint, names of metrics), given the hyperparameters' types, the passes' work, and what a row looks like."""
    values = {name: np.zeros((), dtype) for name, dtype in hyper}
    rows = {name: np.zeros((1, *shape), dtype) for name, shape, dtype in columns}
    batch_sizes = tuple(work.batch_size for work in works)
    *schedules, scored = map(_schedule_one, works)
    seed = np.uint32(0)

    def run_one(hyper, state, columns, schedules):
        return one_round(resolve(maker, hyper), batch_sizes[:-1], jax.random.key(0), state, columns, schedules, 1)

    def score_one(*arguments):
        return run_evaluation_uncompiled(maker, batch_sizes[-1], 1, *arguments)

    first = partial(init_state, maker, 1, batch_sizes[0])
    begun, state = jax.make_jaxpr(first, return_shape=True)(values, seed, None, rows)
    trained, (_, output) = jax.make_jaxpr(run_one, return_shape=True)(values, state, rows, schedules)
    programs = (
        begun,
        trained,
        jax.make_jaxpr(score_one)(values, seed, state, np.zeros(1, np.int32), rows, scored),
    )
    checksum = 0
    for text in (text for program in programs for text in _texts(program)):
        checksum = zlib.crc32(text.encode(), checksum)
    return f"{checksum:08x}", tuple(output.metrics)


def _schedule_one(work: LocalWork) -> Schedule:
    """The schedule of one client of one example."""
    capacity = plan_capacity(np.ones(1, np.int64), work, 1, 1)
    return make_schedule(as_cohort(Cohort(np.zeros(1, np.int64)), 1, 1), np.array([0, 1]), work, capacity, 0, 0)


def _texts(program: ClosedJaxpr) -> Iterator[str]:
    """A program's operations, and the constants that they read."""
    yield _NAMES.sub("", str(program))
    yield from map(_describe, _constants(program))


def _constants(value: Any) -> Iterator[Any]:
    if isinstance(value, ClosedJaxpr):
        yield from value.consts
        yield from _constants(value.jaxpr)
    elif isinstance(value, Jaxpr):
        for equation in value.eqns:
            yield from _constants(tuple(equation.params.values()))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _constants(one)


def _describe(constant: Any) -> str:
    """Four digits of norms that see values, places and signs: another machine may have rounded the constant otherwise."""
    if jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key):
        constant = jax.random.key_data(constant)
    given = np.asarray(constant).astype(np.float64).ravel()
    values, endless = np.where(np.isfinite(given), given, 0), np.where(np.isfinite(given), 0, given)
    places = np.arange(1, values.size + 1)
    beside = values + np.linalg.norm(values) * places / max(np.linalg.norm(places), 1.0)
    norms = [f"{np.linalg.norm(one):.4g}" for one in (values, values * places, beside)]
    return f"{norms} {zlib.crc32(endless.tobytes()):08x}"
