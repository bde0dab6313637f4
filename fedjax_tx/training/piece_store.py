"""How far the piece of a sweep under way is: a checkpoint of all its settings, with their histories until then.

Each piece has a folder of its own, named by its settings: a sweep that deals out its settings in other pieces neither reads nor
harms it. It is written seldom: a kill should lose little, and a sweep of quick rounds notice nothing.
"""

import json
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_tx.simulation import RoundState
from fedjax_tx.training import checkpoint
from fedjax_tx.training.directory import writing
from fedjax_tx.training.sweep_directory import History

SECONDS_BETWEEN = 30.0  # so much is lost, and the rounds of one call
TIMES_ITS_OWN = 50.0  # a checkpoint comes no sooner than this times the seconds that the last took: at most 2% of a sweep


class PieceStore(NamedTuple):
    """Where a piece leaves how far it is.

    ``find(first)`` gives the state and the histories to go on from, given the state before round 0; ``save(state, histories)``
    writes a checkpoint if one is due, or ``now=True``; ``remove()`` deletes all of it.
    """

    find: Callable[[RoundState], tuple[RoundState, list[History]]]
    save: Callable[..., None]
    remove: Callable[[], None]


def open_piece(directory: Path | None, facts: Mapping[str, Any]) -> PieceStore:
    """Returns the store of a piece in the directory of its sweep; ``facts``, plain values, say which piece it is."""
    fresh: list[History] = [[] for _ in facts["settings"]]
    if directory is None:
        return PieceStore(lambda first: (first, fresh), lambda state, histories, now=False: None, lambda: None)
    folder = directory / "pieces" / f"{zlib.crc32(json.dumps(facts).encode()):08x}"
    due = [time.monotonic() + SECONDS_BETWEEN]

    def find(first):
        found = _read(folder, facts, first)
        return (first, fresh) if found is None else found

    def save(state, histories, now=False):
        began = time.monotonic()
        if now or began >= due[0]:
            _write(folder, state, {"piece": facts, "histories": histories})
            ended = time.monotonic()
            due[0] = ended + max(SECONDS_BETWEEN, TIMES_ITS_OWN * (ended - began))

    return PieceStore(find, save, partial(shutil.rmtree, folder, ignore_errors=True))


def remove_pieces(directory: Path) -> None:
    """Deletes what pieces left that were dealt out otherwise before."""
    shutil.rmtree(directory / "pieces", ignore_errors=True)


def _write(folder: Path, state: RoundState, notes: dict[str, Any]) -> None:
    checkpoints = folder / "checkpoints"
    what = f"the checkpoint after round {state.round}"
    with writing(what, folder), closing(checkpoint.open_checkpoints(checkpoints, keep=2)) as manager:
        if state.round > checkpoint.last_round(checkpoints):
            checkpoint.save(manager, state, notes)


def _read(folder: Path, facts: Mapping[str, Any], first: RoundState) -> tuple[RoundState, list[History]] | None:
    """The last whole checkpoint of a piece; a folder that has none of it is named and moved aside."""
    if not (folder / "checkpoints").is_dir():
        return None
    try:
        with closing(checkpoint.open_checkpoints(folder / "checkpoints", keep=2)) as manager:
            saved = checkpoint.read_last(manager)
        if saved is None:
            return None
        if saved.notes["ledger"].get("piece") != facts:
            raise ValueError("it is one of other settings")
        state, notes = checkpoint.rebuild(first, saved)
        return state, notes["histories"]
    except ValueError as error:
        aside = folder.with_name(f"{folder.name}-damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        told = (
            f"no checkpoint in {str(folder)!r} is of use ({error}); it was moved to {str(aside)!r}, and its settings begin anew"
        )
        warnings.warn(told, stacklevel=2)
        return None
