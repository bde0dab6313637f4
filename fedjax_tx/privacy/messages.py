"""What a client's own noise promises it (``ftx.aggregation.local_noise``), towards who sees each of its messages.

Neighbours: one client's data, and any other data in its place: two messages of norm at most s may be 2 s apart. Each round in
which the client took part counts in full, for who sees messages knows who sent them: no sampling amplifies.
"""

from fedjax_tx import check
from fedjax_tx.privacy.accounting import epsilon


def epsilon_of_messages(noise_multiplier: float, rounds: int, delta: float, accountant: str = "pld") -> float:
    """Returns epsilon of a client's messages after some rounds; infinite without noise, 0 before the first.

    Args:
      noise_multiplier: z >= 0, standard deviation of a message's noise over the bound on its norm.
      rounds: in which the client takes part, >= 0. delta: between 0 and 1. accountant: ``"pld"`` or ``"rdp"``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``dp-accounting`` is not installed.

    Example:
      >>> round(epsilon_of_messages(10.0, rounds=5, delta=1e-5, accountant="rdp"), 2)
      1.91
    """
    check.number("noise_multiplier", noise_multiplier, low=0)
    return epsilon(noise_multiplier / 2, 1.0, rounds, delta, accountant)
