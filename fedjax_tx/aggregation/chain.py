"""Stages of aggregation, one after another.

``chain(clip_norm(1.0), top_k(0.01), mean())`` reads in the order in which an update travels. Stages up to the one that reduces
encode at the client, in that order; the server undoes them in reverse, once as each message is received and once as the reduced
value is decoded. Stages after the reduction work on the aggregate: noise, for example. Behind a stage that changes all clients'
rows, such as nearest-neighbour mixing, everything happens at the server, row by row.

What can't work is refused when the chain is built, by the stages' names: no reduction, or two; a stage that must see each message
beside one that lets the server see only sums; one that reads the update behind one that packed it; noise where one client's
influence has no bound, as behind rows that are mixtures of several clients', however short each is clipped; clipping behind the
reduction, where it would clip nothing, and noise in front of it, which would be scaled for a summand and added to a mean.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array

from fedjax_tx import check, prng
from fedjax_tx.aggregation.at_server import aggregate_rows
from fedjax_tx.types import Aggregator, Factorization, Stacked


def chain(*stages: Aggregator) -> Aggregator:
    """Returns some stages as one aggregator.

    Args:
      stages: in the order in which an update travels; exactly one of them reduces (such as ``mean()``).

    Errors: ``ValueError`` naming the stages, if they can't follow each other.

    Example:
      >>> import fedjax_tx as ftx, jax.numpy as jnp
      >>> clipped = chain(ftx.aggregation.clip_norm(1.0), ftx.aggregation.mean())
      >>> update, _, _ = ftx.aggregation.aggregate(clipped, {"w": jnp.array([3.0, 0.5])}, [1.0, 1.0])
      >>> float(update["w"])
      0.75
    """
    for number, stage in enumerate(stages):
        check.instance(f"stages[{number}]", stage, Aggregator, "an Aggregator")
    stages = _join_behind_rows(stages)
    reducer = _find_reduction(stages)
    stages, bound = _calibrate(stages)
    _refuse_other_side(stages, reducer)
    before = stages[: reducer + 1]
    _refuse_hidden(before)
    _refuse_packed(before)

    def encode(update, weight, shared, client_state, client_key, round_key):
        states = []
        for number, stage in enumerate(before):
            keys = prng.fold(client_key, "stage", number), prng.fold(round_key, "stage", number)
            update, weight, state = stage.encode(update, weight, shared[number], client_state[number], *keys)
            states.append(state)
        return update, weight, tuple(states)

    def receive(message, shared):
        for number in reversed(range(len(before))):
            message = before[number].receive(message, shared[number])
        return message

    def decode(reduced, totals, state, key):
        info, states = {}, list(state)
        for number in [*reversed(range(len(before))), *range(len(before), len(stages))]:
            stage_key = prng.fold(key, "stage", number)
            reduced, states[number], said = stages[number].decode(reduced, totals, state[number], stage_key)
            info.update(said)
        return reduced, tuple(states), info

    return Aggregator(
        init=lambda update: tuple(stage.init(update) for stage in stages),
        init_client=lambda update: tuple(stage.init_client(update) for stage in before),
        encode=encode,
        receive=as_is if all(stage.receive is as_is for stage in before) else receive,
        reduce=stages[reducer].reduce,
        decode=decode,
        releases_empty=any(stage.releases_empty for stage in stages),
        name=f"chain({', '.join(stage.name for stage in stages)})",
        sensitivity=lambda entering: bound,
        noise_multiplier=_joint_noise(stages),
        factorization=_correlation(stages),
        sums_only=any(stage.sums_only for stage in before),
        reads_update=any(stage.reads_update for stage in before),
        max_clients=min((stage.max_clients for stage in stages if stage.max_clients is not None), default=None),
    )


def behind_rows(change_rows: Callable, rest: Aggregator, name: str) -> Aggregator:
    """Returns ``rest`` behind a change of the rows: what it does at the client happens at the server, with the changed rows.

    Errors: ``ValueError``, once the updates are known, if ``rest`` must remember something of each client.
    """

    def init_client(update):
        if jax.tree.leaves(rest.init_client(update)):
            raise ValueError(f"expected what stands behind {name} to remember nothing of a client, got {rest.name}")
        return ()

    def decode(reduced, totals, state, key):
        rows, said = change_rows(reduced, prng.fold(key, "rows"))
        aggregate, state, info = aggregate_rows(rest, rows, totals, state, prng.fold(key, "rest"))
        return aggregate, state, {**said, **info}

    return stage(
        name,
        init=rest.init,
        init_client=init_client,
        reduce=Stacked(),
        decode=decode,
        releases_empty=rest.releases_empty,
        reads_update=False,
        max_clients=rest.max_clients,
    )


def check_complete(name: str, aggregator: Aggregator) -> Aggregator:
    """Returns ``aggregator`` if it is one, and can work alone: it reduces, and waits for no other stage's bound.

    Errors: ``TypeError``, ``ValueError`` that begin with ``expected NAME``.

    Example:
      >>> import fedjax_tx as ftx
      >>> check_complete("aggregator", ftx.aggregation.mean()).name
      'mean()'
    """
    check.instance(name, aggregator, Aggregator, "an Aggregator")
    if aggregator.reduce is None:
        check.fail_value(name, f"to reduce, such as chain({aggregator.name}, mean())", aggregator.name)
    return aggregator if aggregator.reduce is not None and aggregator.calibrate is None else chain(aggregator)


def check_max_clients(aggregator: Aggregator, clients: int) -> None:
    """Raises ``ValueError`` naming the aggregator if it can't take the messages of so many clients.

    Example:
      >>> import fedjax_tx as ftx
      >>> check_max_clients(ftx.aggregation.integer_mean(1.0, 0.5, max_clients=4), 5)
      Traceback (most recent call last):
      ...
      ValueError: expected the clients of a round <= 4 for integer_mean(1.0, 0.5, 4), got 5
    """
    most = aggregator.max_clients
    if most is not None and clients > most:
        check.fail_value("the clients of a round", f"<= {most} for {aggregator.name}", clients)


def as_is(message, shared):
    """Returns the message: the ``receive`` of stages that need not see it one client at a time."""
    return message


def no_state(update):
    """Returns ``()``: the ``init`` and ``init_client`` of stages that remember nothing."""
    return ()


def unchanged(update, weight, shared, client_state, client_key, round_key):
    """Returns update, weight and state as they are: the ``encode`` of stages that do nothing at the client."""
    return update, weight, client_state


def passed_on(reduced, totals, state, key):
    """Returns the reduced value as it is: the ``decode`` of stages that have nothing to undo."""
    return reduced, state, {}


def stage(name: str, **functions) -> Aggregator:
    """Returns an aggregator that does nothing but what is given: the short way to write a stage.

    Example:
      >>> stage("halve()", decode=lambda reduced, totals, state, key: (reduced / 2, state, {})).name
      'halve()'
    """
    check.instance("name", name, str, "a string")
    idle = {"encode": unchanged, "receive": as_is, "reduce": None, "decode": passed_on}
    return Aggregator(**{"init": no_state, "init_client": no_state, **idle, "name": name, **functions})


def _join_behind_rows(stages: tuple[Aggregator, ...]) -> tuple[Aggregator, ...]:
    """The stages, with one that changes rows and all that stands behind it as one."""
    for number, stage in enumerate(stages):
        if stage.change_rows is not None:
            before, behind = stages[:number], stages[number + 1 :]
            if not any(one.reduce is not None for one in behind):
                raise ValueError(f"expected {stage.name} before a stage that reduces, such as chain({stage.name}, median())")
            rest = chain(*behind)
            if rest.sums_only:
                raise ValueError(f"expected each client's message for {stage.name}, but {rest.name} shows the server only sums")
            _refuse_noise_behind_rows(stage, behind, rest)
            return (*before, behind_rows(stage.change_rows, rest, f"{stage.name}, {', '.join(one.name for one in behind)}"))
    return stages


def _refuse_noise_behind_rows(stage: Aggregator, behind: tuple[Aggregator, ...], rest: Aggregator) -> None:
    """Refuses noise scaled to the bound on one row where a client is in several rows, and moves others in and out of them."""
    if rest.noise_multiplier is not None or any(one.calibrate is not None for one in behind):
        raise ValueError(
            f"expected no noise behind {stage.name}, which lets one client change the rows of others: "
            f"what it changes in all has no bound that noise could be scaled to, got {rest.name}"
        )


def _find_reduction(stages: tuple[Aggregator, ...]) -> int:
    reducers = [number for number, stage in enumerate(stages) if stage.reduce is not None]
    names = ", ".join(stage.name for stage in stages)
    if not reducers:
        raise ValueError(f"expected one stage of chain({names}) to reduce, such as mean(), got none")
    if len(reducers) > 1:
        both = " and ".join(stages[number].name for number in reducers)
        raise ValueError(f"expected one stage of a chain to reduce, got {both}")
    return reducers[0]


def _calibrate(stages: tuple[Aggregator, ...]) -> tuple[tuple[Aggregator, ...], float | Array | None]:
    """Follows the bound on one client's influence through the stages; makes those that need it."""
    bound, made = None, []
    for number, stage in enumerate(stages):
        if stage.calibrate is not None:
            if bound is None:
                before = ", ".join(earlier.name for earlier in stages[:number]) or "nothing"
                raise ValueError(
                    f"expected what comes before {stage.name} to bound the influence of one client, got {before}; "
                    "for example chain(clip_norm(1.0), fixed_mean(100), gaussian_noise(1.0))"
                )
            stage = stage.calibrate(bound)
        bound = stage.sensitivity(bound)
        made.append(stage)
    return tuple(made), bound


def _joint_noise(stages: tuple[Aggregator, ...]) -> float | Array | None:
    """The noise of all stages together, over the one bound: their variances add up."""
    squares = [stage.noise_multiplier**2 for stage in stages if stage.noise_multiplier is not None]
    return sum(squares) ** 0.5 if squares else None


def _correlation(stages: tuple[Aggregator, ...]) -> Factorization | None:
    """How the noise is correlated over rounds; noise of another stage beside it would not be accounted for."""
    noisy = [stage for stage in stages if stage.noise_multiplier is not None]
    for stage in noisy:
        if stage.factorization is not None and len(noisy) > 1:
            raise ValueError(f"expected {stage.name} to be the only noise of a chain, got {', '.join(one.name for one in noisy)}")
    return noisy[0].factorization if noisy else None


def _refuse_other_side(stages: tuple[Aggregator, ...], reducer: int) -> None:
    """Refuses stages of the client behind the reduction, and of the aggregate in front: there their bounds would be false."""
    reduction = stages[reducer].name
    for stage in stages[:reducer]:
        if stage.encode is unchanged and stage.receive is as_is and stage.decode is not passed_on:
            raise ValueError(f"expected {stage.name} behind {reduction}, since it changes the aggregate, got it in front")
    for stage in stages[reducer + 1 :]:
        if stage.encode is not unchanged:
            raise ValueError(f"expected {stage.name} in front of {reduction}, since it works at the client, got it behind")


def _refuse_hidden(before: tuple[Aggregator, ...]) -> None:
    """Refuses stages that must see each client's message where the server sees only sums."""
    hiding = [stage.name for stage in before if stage.sums_only]
    for stage in before:
        if hiding and (stage.receive is not as_is or isinstance(stage.reduce, Stacked)):
            raise ValueError(f"expected each client's message for {stage.name}, but {hiding[0]} shows the server only sums")


def _refuse_packed(before: tuple[Aggregator, ...]) -> None:
    """Refuses stages that read the update behind one that has packed it into a message of another form."""
    packed = None
    for stage in before:
        if packed is not None and stage.reads_update:
            raise ValueError(f"expected {stage.name} before {packed}, which packs the update into a message of another form")
        if stage.receive is not as_is:
            packed = stage.name
