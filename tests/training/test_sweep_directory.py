"""The directory of a sweep: it goes on in the midst of a piece, bit for bit, and another grid finds what is done."""

import importlib
import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import problems
import pytest
import runs
from test_damage import DAMAGES, full
from test_sweep import assert_same_history

import fedjax_tx as ftx
from fedjax_tx.simulation import RoundState
from fedjax_tx.simulation.settings import run_settings
from fedjax_tx.training import checkpoint, piece_store, pieces
from fedjax_tx.training.sweep_directory import cell_key, open_sweep, save_sweep

RATES = [0.05, 0.1, 0.2, 0.4, 3e38]  # in two pieces of three, the last filled up
ROUNDS = 7
TEST = problems.ragged_clients((2, 3), seed=1)


class Died(Exception):
    """Stands for a kill."""


def sweep(run_dir=None, when=None, happens=None, rates=RATES, **settings):
    """A sweep in whose cohort source something happens the ``when``-th time that it selects; (its result, how often it did).

    Rounds are evaluated after 3 and 6, so calls of two rounds end after 3, 5, 6 and 7 at the latest.
    """
    drawn, source = [], ftx.data.uniform_cohorts(3)

    def select(*arguments):
        drawn.append(1)
        if len(drawn) == when:
            happens()
        return source.select(*arguments)

    experiment = problems.experiment(cohorts=source._replace(select=select))
    common = {
        "grid": {"client_lr": rates},
        "evaluate": {"test": TEST},
        "execution": ftx.Execution(num_lanes=2, rounds_per_call=2),
        "evaluate_every": 3,
        "settings_at_once": 3,
        "progress": False,
    }
    result = ftx.sweep(experiment, ROUNDS, run_dir=run_dir, **{**common, **settings})
    return result, len(drawn)


def die():
    raise Died


def press():
    os.kill(os.getpid(), signal.SIGINT)


def assert_same_sweep(left, right):
    """Bit for bit."""
    assert left.settings == right.settings
    for ours, theirs in zip(left.history, right.history, strict=True):
        assert len(ours) == len(theirs) == ROUNDS
        assert all(map(runs.same_record, ours, theirs))


def under_way(directory):
    """The folder of checkpoints of the piece under way."""
    (folder,) = (path for path in (directory / "pieces").iterdir() if not path.name.endswith("-damaged"))
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def whole():
    """What nothing interrupted."""
    return sweep()[0]


def save_often(patch):
    """A checkpoint after every call."""
    patch.setattr(piece_store, "SECONDS_BETWEEN", 0.0)
    patch.setattr(piece_store, "TIMES_ITS_OWN", 0.0)


@pytest.fixture(scope="module")
def died(whole, tmp_path_factory):
    """The directory of a sweep that died in the sixth round of its second piece, with a checkpoint after every call."""
    directory = tmp_path_factory.mktemp("sweeps") / "died"
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch)
        with pytest.raises(Died):
            sweep(directory, ROUNDS + 6, die)
    return directory


@pytest.fixture
def stopped(died, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(died, tmp_path / "stopped")
    return tmp_path / "stopped"


# ---- in the midst of a piece


def test_a_sweep_that_died_in_a_piece_goes_on_there_and_compiles_nothing_anew(whole, stopped, capsys):
    assert sorted(int(path.name) for path in under_way(stopped).iterdir())[1] == 5
    of_another = piece_store.open_piece(stopped, {"settings": ["another"]})
    of_another.save(RoundState((), np.zeros(3), 0, 6), [[]], now=True)
    programs = run_settings.jitted._cache_size()
    result, drawn = sweep(stopped, progress=True)
    assert drawn == 2  # rounds 6 and 7
    assert_same_sweep(result, whole)
    assert "going on after 3 of 5 settings" in (said := capsys.readouterr().out) and "going on after their round 5" in said
    assert run_settings.jitted._cache_size() == programs
    assert not (stopped / "pieces").exists()
    again, drawn = sweep(stopped)
    assert drawn == 0
    assert_same_sweep(again, whole)


@pytest.mark.slow
def test_it_may_die_again_and_again(whole, tmp_path, monkeypatch):
    save_often(monkeypatch)
    results, deaths = [], 0
    while not results:
        try:
            results.append(sweep(tmp_path, 5, die)[0])
        except Died:
            deaths += 1
            assert deaths < ROUNDS  # every life gets two rounds on at least
    assert deaths >= 3
    assert_same_sweep(results[0], whole)


@pytest.mark.parametrize("when", [4, ROUNDS, 2 * ROUNDS])
def test_ctrl_c_ends_after_the_rounds_under_way_and_the_same_call_goes_on(whole, tmp_path, capsys, when):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        sweep(tmp_path, when, press, progress=True)
    text = r"interrupted after round (\d) of these settings; all is saved in '(.*)': the same call goes on from there"
    told = re.fullmatch(text, str(caught.value))
    ended = int(told[1]) + (ROUNDS if when > ROUNDS else 0)
    assert when <= ended <= when + 1 and told[2] == str(tmp_path)
    assert told[0] in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    result, drawn = sweep(tmp_path)
    assert drawn == 2 * ROUNDS - ended
    assert_same_sweep(result, whole)


def test_a_schedulers_sigterm_ends_it_with_a_checkpoint_too(whole, tmp_path):
    with pytest.raises(SystemExit) as caught:
        sweep(tmp_path, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert caught.value.code == 128 + signal.SIGTERM
    result, drawn = sweep(tmp_path)
    assert 2 * ROUNDS - 5 <= drawn <= 2 * ROUNDS - 4
    assert_same_sweep(result, whole)


def test_without_a_directory_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt) as caught:
        sweep(None, 2, press)
    assert str(caught.value) == ""


def test_checkpoints_come_seldom(tmp_path, monkeypatch):
    now, written = [0.0], []

    def write(folder, state, notes):
        written.append(now[0])
        now[0] += 1.0 if len(written) < 3 else 10.0

    monkeypatch.setattr(piece_store, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(piece_store, "_write", write)
    store = piece_store.open_piece(tmp_path, {"settings": ["a"]})
    for second in range(1000):
        now[0] = max(now[0], float(second))
        store.save(None, [[]])
    assert written == [30, 81, 132, 642]  # 30 s, and then 50 times as long as one takes
    store.save(None, [[]], now=True)
    assert written[4:] == [999]
    assert not os.listdir(tmp_path)


def test_a_full_disk_is_told_in_words_and_the_same_call_goes_on(whole, stopped, monkeypatch):
    save_often(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(OSError, match=r"could not write the checkpoint after round 6: No space .*: after round 5\)"):
            sweep(stopped)
    result, drawn = sweep(stopped)
    assert drawn == 2
    assert_same_sweep(result, whole)


# ---- checkpoints of no use

damage = DAMAGES["a missing manifest"]


def test_of_a_damaged_checkpoint_the_one_before_is_used(whole, stopped):
    damage(under_way(stopped) / "5")
    with pytest.warns(UserWarning, match=r"checkpoint 5 in '.*' is damaged .*goes on from checkpoint [34]"):
        result, drawn = sweep(stopped)
    assert 3 <= drawn <= 4
    assert_same_sweep(result, whole)


def damage_all(directory):
    for path in under_way(directory).iterdir():
        damage(path)


def replace_by_another(directory):
    own = under_way(directory).parent
    other = piece_store.open_piece(directory.parent, {"settings": ["another"]})
    other.save(RoundState((), np.zeros(3), 0, 6), [[]], now=True)
    shutil.rmtree(own)
    under_way(directory.parent).parent.rename(own)


@pytest.mark.parametrize(
    ("spoil", "why"), [(damage_all, "all are damaged: 5 .*; [34] "), (replace_by_another, "it is one of other settings")]
)
def test_without_a_checkpoint_of_use_the_settings_begin_anew(whole, stopped, monkeypatch, spoil, why):
    spoil(stopped)
    save_often(monkeypatch)  # whose checkpoints have smaller numbers
    told = rf"no checkpoint in '.*' is of use \(.*{why}.*it was moved to '.*-damaged', and its settings begin anew"
    with pytest.warns(UserWarning, match=told), pytest.raises(Died):
        sweep(stopped, 4, die)
    assert max(int(path.name) for path in under_way(stopped).iterdir()) == 3
    result, drawn = sweep(stopped)
    assert drawn == 4 and not (stopped / "pieces").exists()
    assert_same_sweep(result, whole)


# ---- another grid


def begun_in(monkeypatch):
    """The list of pieces that will begin, by their rates."""
    begun, run_piece = [], pieces.run_piece

    def noted(setup, piece, *rest):
        begun.append([setup.cells[number]["client_lr"] for number in piece.numbers])
        return run_piece(setup, piece, *rest)

    monkeypatch.setattr(pieces, "run_piece", noted)
    return begun


@pytest.fixture(scope="module")
def finished(whole, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweeps") / "finished"
    sweep(directory)
    return directory


def test_a_grown_grid_runs_its_new_settings_only(whole, finished, tmp_path, monkeypatch):
    directory = shutil.copytree(finished, tmp_path / "grown")
    begun = begun_in(monkeypatch)
    grown = [0.3, *reversed(RATES), 0.5, 0.6]
    result, drawn = sweep(directory, rates=grown)
    assert drawn == ROUNDS and begun == [[0.3, 0.5, 0.6]]
    assert [cell["client_lr"] for cell in result.settings] == grown
    assert_same_sweep(ftx.SweepResult(result.settings[5:0:-1], result.history[5:0:-1]), whole)
    for ours, theirs in zip(result.history, sweep(rates=grown)[0].history, strict=True):
        assert_same_history(ours, theirs)
    for other in (RATES[:2], np.array(RATES, np.float32), grown):  # all done, as they are computed with
        part, drawn = sweep(directory, rates=other)
        assert drawn == 0 and len(part.history) == len(other)
    assert_same_sweep(sweep(directory, rates=RATES)[0], whole)


def test_settings_under_way_go_on_in_a_grown_grid_that_has_them_side_by_side(tmp_path, monkeypatch):
    save_often(monkeypatch)
    grid = {"client_lr": RATES[:3], "seed": [0, 4]}
    with pytest.raises(Died):
        sweep(tmp_path, ROUNDS + 6, die, grid=grid)
    grown, drawn = sweep(tmp_path, grid={**grid, "seed": [0, 4, 5]})
    assert drawn == 2 + ROUNDS
    old = [number for number, cell in enumerate(grown.settings) if cell["seed"] != 5]
    kept = ftx.SweepResult([grown.settings[number] for number in old], [grown.history[number] for number in old])
    assert_same_sweep(kept, sweep(grid=grid)[0])


def test_seeds_may_be_added_and_change_places(tmp_path, monkeypatch):
    begun = begun_in(monkeypatch)
    grid = {"client_lr": RATES[:3], "seed": [4]}
    first, _ = sweep(tmp_path, grid=grid)
    result, drawn = sweep(tmp_path, grid={"seed": [0, 4], "client_lr": RATES[:3]})
    assert drawn == ROUNDS and begun == [RATES[:3], RATES[:3]]
    assert result.settings[3:] == [{"seed": 4, "client_lr": rate} for rate in RATES[:3]]
    for number in range(3):
        assert all(map(runs.same_record, result.history[3 + number], first.history[number]))
        assert result.history[number] != first.history[number]


@pytest.mark.slow
def test_numbers_of_another_type_are_other_settings(tmp_path):
    first, drawn = sweep(tmp_path, rates=[1, 2, 3])
    assert drawn == ROUNDS
    more, drawn = sweep(tmp_path, rates=[0.5, 1, 2])
    assert drawn == ROUNDS
    for rates, result in (([1, 2, 3], first), ([0.5, 1, 2], more)):
        again, drawn = sweep(tmp_path, rates=rates)
        assert drawn == 0
        assert_same_sweep(again, result)


def test_another_program_is_refused_whatever_the_type_of_its_numbers(tmp_path):
    whole, broken = [{"a": 1, "seed": 0}, {"a": 2, "seed": 0}], [{"seed": 0, "a": 0.5}, {"seed": 0, "a": 1.0}]

    def opened(cells, program):
        description = {"grid": ["a", "seed"], "program": program, "made_with": "this"}
        found = open_sweep(tmp_path, description, cells, 1)
        save_sweep(tmp_path, description, cells, found, {})
        return found.left

    assert opened(whole, "of integers") == opened(broken, "of floats") == opened(whole, "of integers") == [0, 1]
    for cells in (whole, broken):
        with pytest.raises(ValueError, match="but program is 'of .*' there and 'another' here"):
            opened(cells, "another")


def test_given_parameters_are_told_apart(finished):
    params = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="first_params is None there and '.*' here"):
        sweep(finished, init_params=params)


def test_two_processes_do_not_share_a_directory(tmp_path):
    def again():
        with pytest.raises(ValueError, match="expected run_dir to be no other running process's"):
            sweep(tmp_path)
        raise Died

    with pytest.raises(Died):
        sweep(tmp_path, 2, again)


def test_a_setting_is_named_by_its_numbers_as_they_are_computed_with():
    assert cell_key({"a": 0.1, "seed": 2**32 - 1}) == cell_key({"seed": 2**32 - 1, "a": float(np.float32(0.1))})
    assert cell_key({"a": 0.1}) == cell_key({"a": 0.1 + 1e-12})
    others = [{"a": 1}, {"a": 1.0}, {"a": 1.0 + 1e-6}, {"b": 1}, {"a": 1, "seed": 0}, {"a": 1, "seed": 1}]
    assert len({cell_key(cell) for cell in others}) == len(others)


def test_a_setting_that_comes_twice_is_kept_once(tmp_path):
    result, _ = sweep(tmp_path, rates=RATES[:3] * 2)
    assert (tmp_path / "settings.jsonl").read_text().count("\n") == 3 * ROUNDS
    again, drawn = sweep(tmp_path, rates=RATES[:3] * 2)
    assert drawn == 0 and len(again.history) == 6
    for number in range(6):
        assert all(map(runs.same_record, again.history[number], result.history[number % 3]))


def test_what_was_chosen_for_a_grid_is_chosen_again_for_another_by_what_is_left_of_it(finished, tmp_path, monkeypatch):
    directory = shutil.copytree(finished, tmp_path / "grown")
    module = importlib.import_module("fedjax_tx.training.sweep")
    asked, choose_width = [], module.choose_width

    def noted(setup, group, execution, at_once):
        asked.append((len(group.numbers), execution.rounds_per_call, at_once))
        return choose_width(setup, group, execution, 3)

    monkeypatch.setattr(module, "choose_width", noted)
    auto = {"settings_at_once": "auto", "execution": ftx.Execution(num_lanes=2)}
    sweep(directory, **auto)
    assert asked == [(5, 2, 3)]
    for _ in range(2):
        sweep(directory, rates=[*RATES, 0.6, 0.7, 0.8], **{**auto, "execution": ftx.Execution(num_lanes=2, rounds_per_call=2)})
    assert asked[1:] == [(3, 2, "auto"), (3, 2, 3)]
    assert json.loads((directory / "sweep.json").read_text())["left"] == [5, 6, 7]
