"""What DP-SGD at the client promises for a single example of it (``ftx.algorithms.dp_sgd``), towards everybody.

Neighbours: a client's data, and the same with one example that has no gradient in its place, so that numbers of examples are no
secret. All that other clients do, and all rounds in which the client took part, may be known; that it is not always drawn
amplifies nothing, for the server knows when it came.

Every noisy step counts as if it were seen. How batches are made decides what a step costs:

* drawn (``LocalWork(expected_batch=b)``): an example comes with chance min(1, b / n), Poisson sampling. A step is the Gaussian
  mechanism on a sample, as in the accounting of cohorts; so is the room of a batch, ``batch_size``.
* cut from epochs: an example comes once an epoch, so an epoch is one Gaussian mechanism, and shuffling amplifies nothing here.
  Accounting for shuffled batches as if they had been drawn promises too much (arXiv 2403.17673).
"""

import numpy as np

from fedjax_tx import check
from fedjax_tx.privacy.accounting import ACCOUNTANTS, epsilon
from fedjax_tx.types import LocalWork


def epsilon_of_examples(
    noise_multiplier: float, local: LocalWork, num_examples: int, rounds: int, delta: float, accountant: str = "pld"
) -> float:
    """Returns epsilon of one example of a client that trains by DP-SGD; infinite without noise, 0 before the first round.

    Args:
      noise_multiplier: z >= 0, standard deviation of the noise on a batch's sum over the clipping norm of an example.
      local: of the client; ``steps`` or ``epochs`` is one number. num_examples: of the client, >= 1.
      rounds: in which it takes part, >= 0. delta: between 0 and 1, well under one over the number of examples.
      accountant: ``"pld"`` or ``"rdp"``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> drawn, cut = LocalWork(batch_size=80, steps=10, expected_batch=8), LocalWork(batch_size=8, epochs=1)
      >>> [round(epsilon_of_examples(2.0, work, 80, rounds=5, delta=1e-4, accountant="rdp"), 1) for work in (drawn, cut)]
      [1.6, 4.8]
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    check.instance("local", local, LocalWork, "a LocalWork")
    num_examples = check.integer("num_examples", num_examples, low=1)
    rounds = check.integer("rounds", rounds, low=0)
    check.one_of("accountant", accountant, ACCOUNTANTS)
    own = {name: _of_one_client(f"local.{name}", getattr(local, name)) for name in ("epochs", "steps")}
    if local.expected_batch is None:
        per_epoch = -(-num_examples // local.batch_size)
        appearances = own["epochs"] if local.steps is None else -(-own["steps"] // per_epoch)  # of one example in a round
        return epsilon(noise_multiplier, 1.0, rounds * appearances, delta, accountant)
    room = {} if local.batch_size >= num_examples else {"population": num_examples, "max_clients": local.batch_size}
    if room and accountant != "pld":
        check.fail_value("accountant", f"to be 'pld' where a batch has less room ({local.batch_size}) than examples", accountant)
    rate = min(1.0, local.expected_batch / num_examples)
    return epsilon(noise_multiplier, rate, rounds * own["steps"], delta, accountant, **room)


def _of_one_client(name: str, value: int | np.ndarray | None) -> int:
    """The count of one client, 0 for None; an array, one for each client, is refused."""
    if isinstance(value, np.ndarray):
        check.fail_type(name, "an integer, that of one client", value)
    return value or 0
