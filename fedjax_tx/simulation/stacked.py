"""One algorithm for many settings: each of its functions, mapped over them, with the settings on the *last* axis.

The executor then runs a sweep as it runs one setting. It reads few numbers of a client itself (weights and flags); in a sweep
they have the settings' axis and nothing else, so that broadcasting lines them up with the last axis of everything else.

Why last: a batch is the same in all settings. The product of a batch with a weight matrix [inputs, outputs]
becomes one with [inputs, outputs * settings], and what stands around it runs over a long innermost axis. With the settings
first, as a vmap of the whole program would have it, the product is one small product a setting: on a CPU, for a logistic
regression in 16 settings, several times slower.

What clients only read (``frozen``) is kept once where the settings share a seed, and so is the randomness.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_tx import check
from fedjax_tx.simulation.last_axis import map_last
from fedjax_tx.simulation.round import resolve
from fedjax_tx.types import ClientInfo, ClientTrainer, FederatedAlgorithm, MakeAlgorithm, Pass, ServerState, Totals


class Settings(NamedTuple):
    """What differs among runs side by side, and what they share of the same kind.

    varied: ``{name: value[setting]}``. shared: ``{name: value}``. seed: one for all, or [setting].
    """

    varied: Mapping[str, Any]
    shared: Mapping[str, Any]
    seed: Any


class Axes(NamedTuple):
    """Where server states and keys have their settings: on the last axis, or nowhere (None) where all settings share them."""

    server: ServerState
    key: int | None


def settings_axes(seed: Any) -> Axes:
    """Returns the axes of settings with this seed, or these seeds."""
    own = -1 if np.ndim(seed) else None
    return Axes(ServerState(-1, own, -1, -1), own)


def stack_algorithm(make_algorithm: MakeAlgorithm, num_settings: int, settings: Settings) -> FederatedAlgorithm:
    """Returns the algorithm whose every array has its settings on the last axis; its ``init`` is that of one setting.

    Its broadcast is the whole server state: which parts of a method's own broadcast differ among settings, nobody knows.
    """
    axes = settings_axes(settings.seed)

    def of(hyper) -> FederatedAlgorithm:
        return resolve(make_algorithm, {**settings.shared, **hyper})

    def over(get_pass: Callable[[FederatedAlgorithm], Pass], function: Callable, in_axes: tuple) -> Callable:
        """``function(pass, *arguments)``, mapped over the settings."""

        def one(hyper, *arguments):
            return function(get_pass(of(hyper)), *arguments)

        mapped = map_last(one, (-1, *in_axes), num_settings)
        return lambda *arguments: mapped(settings.varied, *arguments)

    example = of({name: value[0] for name, value in settings.varied.items()})

    def stacked(a_pass: Pass, get_pass: Callable[[FederatedAlgorithm], Pass]) -> Pass:
        return _stack_pass(a_pass, lambda *rest: over(get_pass, *rest), axes)

    passes = tuple(stacked(a_pass, partial(_nth_pass, number)) for number, a_pass in enumerate(example.passes))
    evaluation = stacked(example.evaluation, lambda one: one.evaluation)
    return example._replace(passes=passes, evaluation=evaluation)


def _nth_pass(number: int, algorithm: FederatedAlgorithm) -> Pass:
    return algorithm.passes[number]


def _stack_pass(a_pass: Pass, over: Callable[..., Callable], axes: Axes) -> Pass:
    """A pass of all settings; ``over`` maps a function of one setting's pass."""
    server, key = axes
    info = ClientInfo(None, None, None, None, None, None, key, None)  # type: ignore[arg-type]
    totals = Totals(-1, -1, None, None)  # type: ignore[arg-type]

    def init_state(one: Pass, state, key):
        return one.trainer.init_state(one.broadcast(state), key)

    def start(one: Pass, state, *rest):
        return one.trainer.start(one.broadcast(state), *rest)

    def step(one: Pass, state, *rest):
        return one.trainer.step(one.broadcast(state), *rest)

    def finish(one: Pass, state, *rest):
        return one.trainer.finish(one.broadcast(state), *rest)

    def combine(one: Pass, state, aggregate, key):
        new, info = one.combine(state, aggregate, key)
        for before, after in zip(*map(jax.tree.leaves, (state.frozen, new.frozen)), strict=True):
            if before is not after:
                check.fail_value("combine", "to leave what is frozen as it is", new.frozen)
        return new._replace(frozen=()), info

    all_combined = over(combine, (server, -1, key))

    def combine_all(state, aggregate, key):
        new, info = all_combined(state, aggregate, key)
        return new._replace(frozen=state.frozen), info

    trainer = ClientTrainer(
        over(init_state, (server, key)),
        over(start, (server, info, -1)),
        over(step, (server, info, -1, None, None, key)),
        over(finish, (server, info, -1)),
    )
    aggregator = a_pass.aggregator._replace(
        encode=over(lambda one, *rest: one.aggregator.encode(*rest), (-1, -1, -1, -1, key, key)),
        receive=over(lambda one, *rest: one.aggregator.receive(*rest), (-1, -1)),
        decode=over(lambda one, *rest: one.aggregator.decode(*rest), (-1, totals, -1, key)),
    )
    return a_pass._replace(trainer=trainer, aggregator=aggregator, broadcast=lambda state: state, combine=combine_all)
