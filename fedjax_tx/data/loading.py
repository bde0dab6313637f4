"""The data sets that ship with the library, by name."""

import inspect
from collections.abc import Callable
from typing import Any

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedSplits
from fedjax_tx.data.sources import activity, driving, fleet, heart, presidents, shakespeare, spoken_digits, synthetic

_SOURCES: dict[str, Callable[..., FederatedSplits]] = {
    "activity": activity.load,
    "driving": driving.load,
    "fleet": fleet.load,
    "heart": heart.load,
    "presidents": presidents.load,
    "shakespeare": shakespeare.load,
    "spoken_digits": spoken_digits.load,
    "synthetic": synthetic.load,
}


def load(name: str, **options: Any) -> FederatedSplits:
    """Returns a data set as ``.train``, ``.test``, ``.unseen`` and a ``.report`` of counts.

    Args:
      name: one of
        ``"activity"``: which exercise the wearer of a smartwatch does, one client a person;
        ``"driving"``: whether somebody drives normally, drowsily or aggressively, one client a driver;
        ``"fleet"``: where a simulated vehicle will be in four seconds, one client a vehicle;
        ``"heart"``: whether a patient has heart disease, one client a hospital;
        ``"presidents"``: in which period a passage of an annual message was written, one client a president;
        ``"shakespeare"``: next-character prediction, one client a role of a play;
        ``"spoken_digits"``: which digit somebody says, one client a speaker;
        ``"synthetic"``: FedProx's Synthetic(alpha, beta).
      **options: what the source of that name takes, see ``fedjax_tx.data.sources``.

    Raises:
      ValueError: if ``name`` is unknown.
      TypeError: if an option is unknown, or ``name`` is not a string.

    Example:
      >>> load("shakespeare", sequence_length=64).train.num_clients  # doctest: +SKIP
      1058
    """
    check.instance("name", name, str, "a string")
    source = _SOURCES[check.one_of("name", name, tuple(_SOURCES))]
    known = list(inspect.signature(source).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"expected the options of {name!r} to be among {', '.join(known)}, got {', '.join(unknown)}")
    return source(**options)
