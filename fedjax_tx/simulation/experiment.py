"""An experiment: what is computed. How it runs is an ``Execution``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedjax_tx import check
from fedjax_tx.data import FederatedDataset
from fedjax_tx.types import CohortSource, FederatedAlgorithm, LocalWork, MakeAlgorithm


@dataclass(frozen=True, eq=False, kw_only=True)
class Experiment:
    """A federated method on data, with everything that decides its result.

    Args:
      make_algorithm: ``make_algorithm(hyper) -> FederatedAlgorithm``, or an algorithm. Experiments that share it and the
        shapes of their data share the compiled program, whatever their ``hyper`` and ``seed``.
      hyper: numbers that a study varies, by name; traced, so changing one compiles nothing.
      train: the clients and their examples. cohorts: who takes part in each round. local: how much a client trains.
      seed: names all randomness: parameters, cohorts, data orders, dropout, noise.

    Example:
      >>> import fedjax_tx as ftx, numpy as np, optax
      >>> train = ftx.data.FederatedDataset.from_columns({"tokens": np.zeros((4, 5), np.int32)}, [0, 0, 1, 1])
      >>> task = ftx.tasks.next_token(ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4))
      >>> def make_algorithm(hyper):
      ...     return ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"]))
      >>> experiment = Experiment(
      ...     make_algorithm, hyper={"client_lr": 0.1}, train=train, cohorts=ftx.data.all_clients(),
      ...     local=ftx.data.LocalWork(batch_size=2))
      >>> experiment.train.num_clients
      2
    """

    make_algorithm: MakeAlgorithm = field(kw_only=False)
    hyper: Mapping[str, Any] = field(default_factory=dict)
    train: FederatedDataset
    cohorts: CohortSource
    local: LocalWork
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.make_algorithm, FederatedAlgorithm) and not callable(self.make_algorithm):
            check.fail_type("make_algorithm", "a function of hyper, or a FederatedAlgorithm", self.make_algorithm)
        for name, value in check.mapping("hyper", self.hyper).items():
            _check_hyper(f"hyper[{name!r}]", value)
        check.instance("train", self.train, FederatedDataset, "a FederatedDataset")
        check.instance("cohorts", self.cohorts, CohortSource, "a CohortSource such as ftx.data.uniform_cohorts(8)")
        check.instance("local", self.local, LocalWork, "a LocalWork")
        check.integer("seed", self.seed, low=0, high=2**32 - 1)
        if self.train.num_examples == 0:
            raise ValueError("expected train to hold at least one example, got 0")
        for name, column in self.train.columns.items():
            if column.dtype.kind not in "biufc":
                check.fail_type(f"column {name!r} of train", "of numbers, as train.map can make of it", column.dtype)


def _check_hyper(name: str, value: Any) -> None:
    """It is computed with in 32 bits, where too large a number would be another."""
    check.number(name, value)
    limits = np.iinfo(np.int32) if np.asarray(value).dtype.kind in "iu" else np.finfo(np.float32)
    if not limits.min <= value <= limits.max:
        check.fail_value(name, f"to lie in {limits.min}..{limits.max}, as {limits.dtype} does", value)
