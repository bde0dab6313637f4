"""Pieces of a sweep: settings that run side by side, from their first round to their last."""

import time
from collections.abc import Mapping
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
from fedjax_tx.training import records
from fedjax_tx.training.progress import Reporter, make_reporter
from fedjax_tx.training.run import SECONDS_A_CALL, round_record, summarise_sets, until_due
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


def run_pieces(setup: Setup, pieces: list[Piece], done: dict, directory: Path | None, progress: bool) -> None:
    """Runs the pieces that are not done yet, and adds their histories to ``done``."""
    left = [piece for piece in pieces if not done.keys() >= set(piece.numbers)]
    before = (len(pieces) - len(left)) * setup.rounds
    reporter = make_reporter(len(pieces) * setup.rounds, before, progress)
    try:
        if before:
            reporter.say(f"going on after {len(done)} of {len(setup.cells)} settings")
        for number, piece in enumerate(left):
            shown = ", ".join(str(setup.cells[one]) for one in dict.fromkeys(piece.numbers))
            reporter.say(f"settings side by side, medians below: {shown}")
            histories = run_piece(setup, piece, reporter, before + number * setup.rounds)
            new = {one: lines for one, lines in zip(piece.numbers, histories, strict=True) if one not in done}
            done.update(new)
            if directory is not None:
                lines = [{"setting": one, **line} for one, lines in new.items() for line in lines]
                records.append_lines(directory / "settings.jsonl", lines)
                records.flush(directory / "settings.jsonl")
    finally:
        reporter.close()


def run_piece(setup: Setup, piece: Piece, reporter: Reporter, rounds_before: int) -> list[list[dict[str, Any]]]:
    """The histories of the settings of a piece."""
    round_fn, settings = setup.round_fn, piece_settings(setup, piece)
    state = first_state(setup, piece)
    histories: list[list[dict[str, Any]]] = [[] for _ in piece.numbers]
    pace = 1
    while state.round < setup.rounds:
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
