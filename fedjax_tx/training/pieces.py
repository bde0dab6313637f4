"""Pieces of a sweep: settings that run side by side, from their first round to their last."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_tx import tree
from fedjax_tx.simulation import Experiment, RoundFunction, RoundInfo, RoundState
from fedjax_tx.simulation.evaluate import EvaluationPlan
from fedjax_tx.simulation.rounds import Plan, read_infos
from fedjax_tx.simulation.settings import evaluate_settings, init_settings, run_settings, stack_settings
from fedjax_tx.simulation.stacked import Settings
from fedjax_tx.training.interrupt import delayed_interrupt, interruption
from fedjax_tx.training.piece_store import PieceStore, open_piece, remove_pieces
from fedjax_tx.training.progress import Reporter, make_reporter
from fedjax_tx.training.run import SECONDS_A_CALL, round_record, summarise_sets, until_due
from fedjax_tx.training.sweep_directory import History, append_done, cell_key
from fedjax_tx.types import PyTree


class Piece(NamedTuple):
    """Settings that run side by side: their numbers, and the seed that names their cohorts and data orders."""

    numbers: list[int]
    seed: int


class Setup(NamedTuple):
    """A sweep ready to go. mesh: the devices that share the settings of a piece equally; ``round_fn`` is that of each."""

    experiment: Experiment
    cells: list[dict[str, Any]]
    rounds: int
    evaluate_every: int
    init_params: PyTree
    round_fn: RoundFunction
    evaluations: Mapping[str, EvaluationPlan]
    vary_cohort: bool
    mesh: Mesh


def split_group(group: Piece, at_once: int, num_devices: int) -> list[Piece]:
    """Pieces of at most ``at_once`` settings a device, all of one width, which one program serves.

    The last is filled up with its last setting again; the width is the least that takes as many pieces, so that little is.
    """
    width = even_width(len(group.numbers), at_once, num_devices) * num_devices
    starts = range(0, len(group.numbers), width)
    pieces = [group.numbers[start : start + width] for start in starts]
    return [Piece(numbers + numbers[-1:] * (width - len(numbers)), group.seed) for numbers in pieces]


def even_width(num_settings: int, at_once: int, num_devices: int) -> int:
    """The least number of settings a device that takes as many pieces as ``at_once`` would."""
    num_pieces = -(-num_settings // (at_once * num_devices))
    return -(-num_settings // (num_pieces * num_devices))


def run_pieces(setup: Setup, pieces: list[Piece], done: dict[str, History], directory: Path | None, progress: bool) -> None:
    """Runs the pieces that are not done yet, and adds their histories to ``done``, by ``cell_key``."""
    keys = [cell_key(cell) for cell in setup.cells]
    left = [piece for piece in pieces if not done.keys() >= {keys[number] for number in piece.numbers}]
    before, known = (len(pieces) - len(left)) * setup.rounds, sum(key in done for key in keys)
    reporter = make_reporter(len(pieces) * setup.rounds, before, progress)
    try:
        if known:
            reporter.say(f"going on after {known} of {len(keys)} settings")
        with delayed_interrupt(directory is not None) as interrupted:
            for number, piece in enumerate(left):
                shown = ", ".join(str(setup.cells[one]) for one in dict.fromkeys(piece.numbers))
                reporter.say(f"settings side by side, medians below: {shown}")
                store = open_piece(directory, _facts(setup, piece))
                histories = run_piece(setup, piece, store, reporter, before + number * setup.rounds, interrupted)
                if len(histories[0]) == setup.rounds:
                    _keep(setup, piece, histories, done, directory)
                    store.remove()
                if interrupted():
                    raise interruption(interrupted(), _say_interrupted(reporter, len(histories[0]), directory))
        if directory is not None:
            remove_pieces(directory)
    finally:
        reporter.close()


def _facts(setup: Setup, piece: Piece) -> dict[str, Any]:
    """What says which piece it is, whatever the grid."""
    settings = [cell_key(setup.cells[number]) for number in piece.numbers]
    return {"settings": settings, "seed": piece.seed, "devices": setup.mesh.size}


def _keep(setup: Setup, piece: Piece, histories: list[History], done: dict[str, History], directory: Path | None) -> None:
    """Adds the histories of a finished piece to those that are done, on the disk too."""
    cells = [setup.cells[number] for number in piece.numbers]
    finished = {cell_key(cell): (cell, history) for cell, history in zip(cells, histories, strict=True)}
    new = {key: pair for key, pair in finished.items() if key not in done}
    if directory is not None:
        append_done(directory, list(new.values()))
    done.update({key: history for key, (_, history) in new.items()})


def _say_interrupted(reporter: Reporter, rounds: int, directory: Path | None) -> str:
    where = f"all is saved in {str(directory)!r}: the same call goes on from there"
    text = f"interrupted after round {rounds} of these settings; {where}"
    reporter.say(text)
    return text


def run_piece(
    setup: Setup, piece: Piece, store: PieceStore, reporter: Reporter, rounds_before: int, interrupted: Callable[[], int]
) -> list[History]:
    """The histories of the settings of a piece; those until now, if it was interrupted."""
    round_fn, settings = setup.round_fn, piece_settings(setup, piece)
    state, histories = store.find(first_state(setup, piece))
    if state.round:
        reporter.say(f"going on after their round {state.round}")
    pace = 1
    while state.round < setup.rounds and not interrupted():
        count = min(pace, round_fn.rounds_per_call, until_due(state.round, setup.rounds, setup.evaluate_every))
        began = time.perf_counter()
        state, infos = _run_rounds(setup, settings, state, count, len(piece.numbers))
        seconds = time.perf_counter() - began
        pace = max(1, int(SECONDS_A_CALL / (seconds / count)))
        for history, of_setting in zip(histories, infos, strict=True):
            history += [round_record(info) for info in of_setting]
        if state.round % setup.evaluate_every == 0 or state.round == setup.rounds:
            for number, evaluated in enumerate(_evaluate(setup, settings, state, len(piece.numbers))):
                histories[number][-1].update(evaluated)
        examples = sum(info.num_examples for of_setting in infos for info in of_setting)
        last = [history[-1] for history in histories]
        medians = {name: float(np.median([line[name] for line in last])) for name in last[0] if "/" in name}
        reporter.update({"round": rounds_before + state.round, **medians}, examples / seconds)
        if state.round < setup.rounds:
            store.save(state, histories)
    if state.round < setup.rounds:
        store.save(state, histories, now=True)
    return histories


def piece_settings(setup: Setup, piece: Piece) -> Settings:
    """The hyperparameters and seeds of a piece, an equal share to each device."""
    cells = [setup.cells[number] for number in piece.numbers]
    own_seeds = "seed" in cells[0] and not setup.vary_cohort
    seed = [cell["seed"] for cell in cells] if own_seeds else piece.seed
    return stack_settings(setup.experiment.hyper, cells, seed, setup.mesh.size)


def first_state(setup: Setup, piece: Piece) -> RoundState:
    """The state before round 0 of a piece."""
    maker, population = setup.experiment.make_algorithm, setup.experiment.train.num_clients
    shapes = population, setup.round_fn.works[0].batch_size, len(piece.numbers) // setup.mesh.size
    settings = piece_settings(setup, piece)
    device = init_settings(maker, *shapes, setup.mesh, settings, setup.init_params, setup.round_fn.columns)
    return RoundState(device, setup.experiment.cohorts.init(population), piece.seed, 0)


def arguments(setup: Setup, settings: Settings, state: RoundState, plan: Plan, num_settings: int) -> tuple:
    """The arguments of ``run_settings`` for the rounds of a plan."""
    maker, batch_sizes, _, _, first_round, num_rounds, *rest, _ = setup.round_fn.arguments(state, plan)
    return maker, batch_sizes, num_settings // setup.mesh.size, setup.mesh, settings, first_round, num_rounds, *rest


def _run_rounds(
    setup: Setup, settings: Settings, state: RoundState, count: int, num_settings: int
) -> tuple[RoundState, list[list[RoundInfo]]]:
    """Runs some rounds of every setting; gives for each setting what there is to see of them."""
    plan = setup.round_fn.plan(state, count)
    device, output = run_settings(*arguments(setup, settings, state, plan, num_settings))
    output = jax.device_get(output)
    infos = [read_infos(state.round, plan, tree.take(output, number)) for number in range(num_settings)]
    return RoundState(device, plan.source_state, state.seed, state.round + count), infos


def _evaluate(setup: Setup, settings: Settings, state: RoundState, num_settings: int) -> list[dict[str, float]]:
    """What the history of each setting says of an evaluation."""
    maker, population = setup.experiment.make_algorithm, setup.experiment.train.num_clients
    scores = {}
    for name, plan in setup.evaluations.items():
        shapes = plan.batch_size, population, num_settings // setup.mesh.size
        given = (plan.rows, plan.columns, plan.schedule)
        scores[name] = evaluate_settings(maker, *shapes, setup.mesh, settings, state.device, *given)
    scores = jax.device_get(scores)
    return [summarise_sets(tree.take(scores, number)) for number in range(num_settings)]
