"""How many settings of a sweep run side by side on a device, and on how many lanes each: chosen by measuring.

The programs in question are timed for some ticks of the first round. First one setting a device against as many as there are:
a large model falls out of a CPU's caches where many run side by side, a small one hardly notices that they are many. Then more
lanes, four times as many each time, until they bring nothing more. What doesn't fit into memory is no choice.
"""

import itertools
from typing import Literal

import jax

from fedjax_tx.simulation.auto import expected_seconds, program_fits
from fedjax_tx.simulation.rounds import Plan, RoundState, build_round
from fedjax_tx.simulation.settings import run_settings
from fedjax_tx.training.pieces import Piece, Setup, arguments, even_width, first_state, piece_settings
from fedjax_tx.types import Execution

_PROBE_SECONDS, _REPEATS = 0.05, 3
_MORE_LANES = 4


def choose_width(setup: Setup, group: Piece, execution: Execution, at_once: int | Literal["auto"]) -> tuple[Setup, int]:
    """Returns the setup with its lanes, and how many settings of the group run side by side on a device."""
    lanes = 1 if execution.num_lanes == "auto" else execution.num_lanes
    setup = with_lanes(setup, lanes, execution)
    widest = even_width(len(group.numbers), len(group.numbers), setup.mesh.size)
    if at_once != "auto" and execution.num_lanes != "auto":
        return setup, at_once
    seconds = None
    if at_once == "auto":
        at_once, seconds = _choose_settings(setup, group, widest)
    if execution.num_lanes == "auto":
        setup = _choose_lanes(setup, _piece_of(setup, group, min(at_once, widest)), execution, seconds)
    return setup, at_once


def with_lanes(setup: Setup, num_lanes: int, execution: Execution) -> Setup:
    """The setup with another number of lanes a setting."""
    old = setup.round_fn
    return setup._replace(round_fn=build_round(old.experiment, old.columns, num_lanes, execution))


def _piece_of(setup: Setup, group: Piece, width: int) -> Piece:
    """A piece of ``width`` settings a device, like those to come; a group that is too small comes again and again."""
    number = width * setup.mesh.size
    return Piece((group.numbers * number)[:number], group.seed)


def _choose_settings(setup: Setup, group: Piece, widest: int) -> tuple[int, float | None]:
    """As many settings a device as fit, or one if that is faster: (how many, seconds of a round of one setting)."""
    width = widest
    while width > 1 and not fits_memory(setup, _piece_of(setup, group, width)):
        width //= 2
    if width == 1:
        return 1, None
    together, alone = (seconds_a_setting(setup, _piece_of(setup, group, one)) for one in (width, 1))
    return (width, together) if together <= alone else (1, alone)


def _choose_lanes(setup: Setup, piece: Piece, execution: Execution, seconds: float | None) -> Setup:
    """The setup with as many lanes as bring something; ``seconds`` are those of one lane, where they are known."""
    most = setup.experiment.cohorts.max_clients(setup.experiment.train.num_clients)
    best = seconds_a_setting(setup, piece) if seconds is None else seconds
    for lanes in itertools.takewhile(lambda lanes: lanes <= most, (_MORE_LANES**power for power in itertools.count(1))):
        wider = with_lanes(setup, lanes, execution)
        if not fits_memory(wider, piece):
            break
        found = seconds_a_setting(wider, piece)
        if found >= best:  # the machine may have been busy with other work just then: both once more
            best, found = (seconds_a_setting(one, piece) for one in (setup, wider))
        if found >= best:
            break
        setup, best = wider, found
    return setup


def seconds_a_setting(setup: Setup, piece: Piece) -> float:
    """Returns the seconds that a round of each setting of a piece is expected to take."""
    settings, number = piece_settings(setup, piece), len(piece.numbers)
    state = first_state(setup, piece)
    device = state.device

    def run(plan: Plan) -> None:
        nonlocal device  # the program takes it over
        device, _ = run_settings(*arguments(setup, settings, state._replace(device=device), plan, number))
        jax.block_until_ready(device)

    return expected_seconds(setup.round_fn.plan(state, 1), run, _PROBE_SECONDS, _REPEATS) / number


def fits_memory(setup: Setup, piece: Piece) -> bool:
    """Whether the program of a piece fits into memory; its states are among its results."""
    population, seed = setup.experiment.train.num_clients, piece.seed
    device = jax.eval_shape(lambda: first_state(setup, piece).device)
    state = RoundState(device, setup.experiment.cohorts.init(population), seed, 0)
    given = arguments(setup, piece_settings(setup, piece), state, setup.round_fn.plan(state, 1), len(piece.numbers))
    return program_fits(run_settings.lower(*given).compile(), setup.mesh.size)
