"""An aggregator for each part of an update.

An update is a dict of parts; SCAFFOLD's, say, holds the model's difference, averaged by weight, and the change of the client's
control variate, which is not. ``parts(delta=mean(), control=population_mean())`` gives each part an aggregator of its own, chains
included; a part is aggregated exactly as it would be alone.

What is sent carries, beside each part's message, the client's weight in that part and whether it counts there, so that every part
is decoded with totals of its own. Where a part is averaged by weight, it is weighed as it becomes a summand: at the client if the
server need not see its message, so that the server still needs nothing but sums; else as the message is received.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check, prng, tree
from fedjax_tx.aggregation.chain import as_is, check_complete
from fedjax_tx.types import Aggregator, Linear, PyTree, Rows, Stacked, Totals


class _Sent(NamedTuple):
    """By part: the message (once received: the summand), the client's weight, and 1 where that weight is positive."""

    parts: dict[str, PyTree]
    weights: dict[str, Array]
    clients: dict[str, Array]


def parts(**aggregators: Aggregator) -> Aggregator:
    """Gives each part of an update an aggregator of its own.

    The state and the clients' states are dicts by part. A client takes part if it does in any of the parts. A part in which
    nobody does gives 0 and keeps its state, unless its aggregator releases something then (``releases_empty``). What the
    aggregators report is merged; a name that several of them report becomes ``part/name``. Where each part has noise, and
    all of it is new in each round or correlated by one factorisation, the noise multiplier of all is (sum_i z_i^-2)^-1/2.

    Args:
      aggregators: one for each part of the updates, by the part's name.

    Errors: ``ValueError`` if no part is given, if one of them is only a stage, or if one lets the server see only sums while
    another must see each client's message; and, once the updates are known, if their parts are others, by name.

    Example:
      >>> import fedjax_tx as ftx
      >>> both = parts(delta=ftx.aggregation.mean(), control=ftx.aggregation.total())
      >>> updates = {"delta": jnp.array([1.0, 4.0]), "control": jnp.array([1.0, 4.0])}
      >>> update, _, _ = ftx.aggregation.aggregate(both, updates, jnp.array([2.0, 1.0]))
      >>> float(update["delta"]), float(update["control"])
      (2.0, 5.0)
    """
    if not aggregators:
        raise ValueError("expected parts() to be given an aggregator for each part, such as parts(delta=mean()), got none")
    made = {name: check_complete(f"parts({name}=...)", one) for name, one in aggregators.items()}
    _refuse_hidden(made)
    all_at_client = all(one.receive is as_is for one in made.values())
    stacked = any(isinstance(one.reduce, Stacked) for one in made.values())
    return Aggregator(
        init=lambda update: {name: made[name].init(part) for name, part in _checked(made, update).items()},
        init_client=lambda update: {name: made[name].init_client(part) for name, part in _checked(made, update).items()},
        encode=_encode(made),
        receive=as_is if all_at_client else _receive(made),
        reduce=Stacked() if stacked else Linear(),
        decode=_decode(made),
        releases_empty=any(one.releases_empty for one in made.values()),
        name=f"parts({', '.join(f'{name}={one.name}' for name, one in made.items())})",
        **_joint_noise(list(made.values())),
        sums_only=any(one.sums_only for one in made.values()),
        max_clients=min((one.max_clients for one in made.values() if one.max_clients is not None), default=None),
    )


def _encode(made: Mapping[str, Aggregator]) -> Callable:
    def encode(update, weight, shared, client_state, client_key, round_key):
        messages, weights, states = {}, {}, {}
        for name, part in _checked(made, update).items():
            one = made[name]
            keys = prng.fold(client_key, "part", name), prng.fold(round_key, "part", name)
            message, weights[name], states[name] = one.encode(part, weight, shared[name], client_state[name], *keys)
            messages[name] = _summand(one, message, weights[name]) if one.receive is as_is else message
        clients = {name: (own > 0).astype(jnp.int32) for name, own in weights.items()}
        return _Sent(messages, weights, clients), reduce(jnp.maximum, weights.values()), states

    return encode


def _receive(made: Mapping[str, Aggregator]) -> Callable:
    def receive(message, shared):
        def summand(name, part):
            one = made[name]
            if one.receive is as_is:
                return part
            return _summand(one, one.receive(part, shared[name]), message.weights[name])

        return message._replace(parts={name: summand(name, part) for name, part in message.parts.items()})

    return receive


def _decode(made: Mapping[str, Aggregator]) -> Callable:
    def decode(reduced, totals, state, key):
        aggregates, states, said = {}, {}, {}
        for name, one in made.items():
            own, own_totals = _own_share(name, one, reduced, totals)
            part_key = prng.fold(key, "part", name)
            aggregate, new, said[name] = one.decode(own, own_totals, state[name], part_key)
            if not one.releases_empty:
                somebody = own_totals.weight > 0
                aggregate = jax.tree.map(lambda leaf, some=somebody: jnp.where(some, leaf, 0), aggregate)
                new = tree.where(somebody, new, state[name])
            aggregates[name], states[name] = aggregate, new
        return aggregates, states, _merged(said)

    return decode


def _joint_noise(made: list[Aggregator]) -> dict:
    """The noise of all parts as one Gaussian mechanism, of multiplier (sum_i z_i^-2)^-1/2; nothing unless all are of one kind."""
    joint, factorization = made[0].noise_multiplier, made[0].factorization
    for one in made[1:]:
        noise = one.noise_multiplier
        if joint is None or noise is None or one.factorization != factorization:
            return {}
        zero = not isinstance(noise, jax.core.Tracer) and noise == 0
        joint = 0.0 if zero else joint * noise / (joint**2 + noise**2) ** 0.5
    return {"noise_multiplier": joint, "factorization": factorization}


def _own_share(name: str, one: Aggregator, reduced: _Sent | Rows, totals: Totals) -> tuple[PyTree, Totals]:
    """What one part's ``decode`` gets: its sum or its rows, and totals of its own."""
    if isinstance(reduced, _Sent):
        return reduced.parts[name], totals._replace(weight=reduced.weights[name], clients=reduced.clients[name])
    sent = reduced.summands
    weights = jnp.where(reduced.valid, sent.weights[name], 0)
    own_totals = totals._replace(weight=weights.sum(), clients=(weights > 0).sum())
    if isinstance(one.reduce, Stacked):
        return Rows(sent.parts[name], weights, weights > 0), own_totals

    def add(rows):
        valid = reduced.valid.reshape(-1, *[1] * (rows.ndim - 1))
        return jnp.where(valid, rows, 0).sum(0, dtype=rows.dtype)

    return jax.tree.map(add, sent.parts[name]), own_totals


def _summand(one: Aggregator, value: PyTree, weight: Array) -> PyTree:
    """What a client adds to a part's sum, or the row it fills."""
    return tree.summand(value, weight, one.reduce.weighted) if isinstance(one.reduce, Linear) else value


def _merged(said: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    often = Counter(name for told in said.values() for name in told)
    return {f"{part}/{name}" if often[name] > 1 else name: value for part, told in said.items() for name, value in told.items()}


def _checked(made: Mapping[str, Aggregator], update: PyTree) -> dict[str, PyTree]:
    """Returns the update's parts in the order of the aggregators; refuses others than those, by name."""
    check.mapping("an update aggregated by parts()", update)
    for name in made:
        if name not in update:
            raise ValueError(f"expected the update to have the part {name!r} that parts() was given, got {sorted(update)}")
    for name in update:
        if name not in made:
            raise ValueError(f"expected parts() to be given an aggregator for the update's part {name!r}, got {sorted(made)}")
    return {name: update[name] for name in made}


def _refuse_hidden(made: Mapping[str, Aggregator]) -> None:
    """Refuses a part that must see each client's message beside one of which the server sees only sums: they travel together."""
    hiding = [f"{name}={one.name}" for name, one in made.items() if one.sums_only]
    for name, one in made.items():
        if hiding and (one.receive is not as_is or isinstance(one.reduce, Stacked)):
            raise ValueError(f"expected each client's message for {name}={one.name}, but {hiding[0]} shows the server only sums")
