"""Sweeps: each cell is its single run, whatever the pieces; resumption; what is refused; loops keep one trip count."""

import dataclasses
import json

import jax
import jax.extend
import numpy as np
import optax
import problems
import pytest
from jax.sharding import Mesh

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx.simulation import auto
from fedjax_tx.simulation.rounds import RoundState
from fedjax_tx.simulation.settings import init_settings, run_settings, stack_settings
from fedjax_tx.training import pieces as pieces_module
from fedjax_tx.training import width
from fedjax_tx.training.pieces import Piece, split_group

ONE_DEVICE = Mesh(jax.devices()[:1], ("device",))

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: COMPILED.append(event) if "backend_compile" in event else None
)

EXECUTION = ftx.Execution(num_lanes=2, rounds_per_call=2)
ROUNDS = 3
TEST = problems.ragged_clients((2, 3), seed=1)


def make_scaffold(hyper):
    return ftx.algorithms.scaffold(problems.LOGISTIC, client_learning_rate=hyper["client_lr"])


def make_private(hyper):
    aggregator = agg.chain(agg.clip_norm(hyper["clip"]), agg.fixed_mean(6), agg.gaussian_noise(hyper["noise"]))
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=aggregator)


def make_mime(hyper):
    return ftx.algorithms.mime(problems.LOGISTIC, optax.sgd(hyper["lr"], momentum=0.9))


def make_fed_nova(hyper):
    return ftx.algorithms.fed_nova(problems.LOGISTIC, optax.sgd(hyper["lr"], hyper["momentum"]))


def make_fed_dyn(hyper):
    return ftx.algorithms.fed_dyn(problems.LOGISTIC, optax.sgd(0.1), hyper["alpha"])


def make_adaptive(hyper):
    return ftx.algorithms.adaptive_fed_prox(problems.LOGISTIC, optax.sgd(0.1), hyper["mu"], change=0.5, patience=1)


TEXT = ftx.tasks.freeze(problems.text_task(), trainable="*mlp*")


def make_decoder(hyper):
    return ftx.algorithms.fed_avg(TEXT, optax.sgd(hyper["client_lr"]), optax.adam(hyper["server_lr"]))


def make_fed_rep(hyper):
    return ftx.algorithms.fed_rep(problems.LOGISTIC, optax.sgd(hyper["lr"]), personal="b")


def make_fed_babu(hyper):
    return ftx.algorithms.fed_babu(problems.LOGISTIC, optax.sgd(hyper["lr"]), personal="b")


def make_apfl(hyper):
    return ftx.algorithms.apfl(problems.LOGISTIC, optax.sgd(0.1), 0.1, hyper["alpha"], alpha_learning_rate=0.1)


def make_p_fed_me(hyper):
    return ftx.algorithms.p_fed_me(problems.LOGISTIC, optax.sgd(0.1), 0.1, hyper["strength"])


def make_per_fed_avg(hyper):
    return ftx.algorithms.per_fed_avg(problems.LOGISTIC, optax.sgd(0.1), hyper["alpha"])


def make_agnostic(hyper):
    return ftx.algorithms.agnostic(problems.LOGISTIC, optax.sgd(0.1), 6, hyper["rate"])


PERSONAL = {
    "fed_rep": (make_fed_rep, {"lr": [0.05, 0.2]}, {}),
    "fed_babu": (make_fed_babu, {"lr": [0.05, 0.2]}, {}),
    "apfl": (make_apfl, {"alpha": [0.2, 0.7]}, {}),
    "p_fed_me": (make_p_fed_me, {"strength": [0.5, 5.0]}, {}),
    "per_fed_avg": (make_per_fed_avg, {"alpha": [0.05, 0.2]}, {}),
    "agnostic": (make_agnostic, {"rate": [0.0, 0.1]}, {}),
}
CASES = {
    **PERSONAL,
    "fed_avg": (problems.make_fed_avg, {"client_lr": [0.05, 0.2, 3e38], "seed": [0, 3]}, {}),
    "scaffold": (make_scaffold, {"client_lr": [0.05, 0.2]}, {}),
    "noise": (make_private, {"clip": [0.05, 0.5], "noise": [0, 0.5], "seed": [4]}, {"cohorts": ftx.data.all_clients()}),
    "two passes": (make_mime, {"lr": [0.05, 0.2]}, {}),
    "fed_nova": (make_fed_nova, {"lr": [0.05, 0.2], "momentum": [0.5]}, {}),
    "fed_dyn": (make_fed_dyn, {"alpha": [0.1, 1.0]}, {}),
    "adaptive_fed_prox": (make_adaptive, {"mu": [0.0, 2.0]}, {}),
    "decoder": (
        make_decoder,
        {"client_lr": [0.1, 0.4], "server_lr": [0.01]},
        {"train": problems.text_clients(), "cohorts": ftx.data.uniform_cohorts(2)},
    ),
}


def experiment_of(name):
    make_algorithm, grid, changes = CASES[name]
    hyper = {parameter: values[0] for parameter, values in grid.items() if parameter != "seed"}
    changes = {"cohorts": ftx.data.uniform_cohorts(3), **changes}
    return problems.experiment(make_algorithm, hyper={**hyper}, **changes), grid


def single(experiment, cell, **settings):
    """The history of the run that a cell stands for."""
    hyper = {name: cell.get(name, value) for name, value in experiment.hyper.items()}
    one = dataclasses.replace(experiment, hyper=hyper, seed=cell.get("seed", experiment.seed))
    return ftx.run(one, ROUNDS, **{"execution": EXECUTION, "evaluate_every": 2, "progress": False, **settings}).history


def sweep(experiment, grid, **settings):
    settings = {"rounds": ROUNDS, "execution": EXECUTION, "evaluate_every": 2, "progress": False, **settings}
    return ftx.sweep(experiment, grid=grid, **settings)


def assert_same_history(left, right):
    assert [list(line) for line in left] == [list(line) for line in right]
    for ours, theirs in zip(left, right, strict=True):
        for name, value in ours.items():
            if isinstance(value, float):
                np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
            else:
                assert value == theirs[name], name


@pytest.fixture(scope="module")
def swept():
    """FedAvg over three rates and two seeds, all of a seed side by side."""
    experiment, grid = experiment_of("fed_avg")
    return sweep(experiment, grid, evaluate={"test": TEST}, settings_at_once=3)


# ---- a cell is its single run


SLOW_TO_COMPILE = ("noise", "scaffold", "two passes", "decoder", "fed_nova", "fed_dyn", "adaptive_fed_prox", *PERSONAL)
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_TO_COMPILE else name for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_each_cell_is_its_single_run(name):
    experiment, grid = experiment_of(name)
    evaluate = {"test": experiment.train} if name in ("fed_avg", "scaffold", *PERSONAL) else {}
    result = sweep(experiment, grid, evaluate=evaluate, settings_at_once=9)
    assert len(result.settings) == np.prod([len(values) for values in grid.values()])
    for cell, history in zip(result.settings, result.history, strict=True):
        assert_same_history(history, single(experiment, cell, evaluate=evaluate))
    losses = {str(history[0]) for history in result.history}
    assert len(losses) > 1


def test_a_setting_that_diverges_harms_no_other(swept):
    diverged = {cell["client_lr"] for cell, lines in zip(swept.settings, swept.history, strict=True) if lines[0]["not_finite"]}
    assert diverged == {3e38}
    assert [cell for cell in swept.settings if cell["seed"] == 3] == [{"client_lr": lr, "seed": 3} for lr in (0.05, 0.2, 3e38)]


@pytest.mark.slow
def test_a_seed_names_the_cohorts_too_unless_told_otherwise(swept):
    experiment, grid = experiment_of("fed_avg")
    shared = sweep(experiment, grid, evaluate={"test": TEST}, vary_cohort=False, settings_at_once=6)
    examples = [[line["examples"] for line in lines] for lines in shared.history]
    assert examples == [examples[0]] * len(examples)
    varied = {tuple(line["examples"] for line in lines) for lines in swept.history}
    assert len(varied) == 2
    own = [number for number, cell in enumerate(shared.settings) if cell["seed"] == experiment.seed]
    for number in own:
        assert_same_history(shared.history[number], swept.history[number])
        assert shared.history[number][0]["train/loss"] != shared.history[number - 1][0]["train/loss"]


@pytest.mark.slow
def test_seeds_side_by_side_are_single_runs_where_no_cohort_and_no_order_depends_on_them():
    local = ftx.data.LocalWork(batch_size=2, epochs=2, shuffle=False)
    experiment = problems.experiment(make_private, hyper={"clip": 0.5, "noise": 0.5}, local=local)
    result = sweep(experiment, {"seed": [0, 1, 2]}, vary_cohort=False, settings_at_once=3)
    for cell, history in zip(result.settings, result.history, strict=True):
        assert_same_history(history, single(experiment, cell))


def test_a_sweep_starts_from_given_parameters():
    params = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    experiment, _ = experiment_of("fed_avg")
    result = sweep(experiment, {"client_lr": [0.05, 0.2]}, init_params=params, settings_at_once=2)
    for cell, history in zip(result.settings, result.history, strict=True):
        assert_same_history(history, single(experiment, cell, init_params=params))


# ---- pieces


@pytest.mark.parametrize("at_once", [1, 2, "auto"])
def test_pieces_change_nothing(swept, at_once):
    experiment, grid = experiment_of("fed_avg")
    result = sweep(experiment, grid, evaluate={"test": TEST}, settings_at_once=at_once)
    assert result.settings == swept.settings
    for ours, theirs in zip(result.history, swept.history, strict=True):
        assert_same_history(ours, theirs)


@pytest.mark.parametrize(
    ("at_once", "pieces"),
    [(1, [[0], [1], [2], [3], [4]]), (3, [[0, 1, 2], [3, 4, 4]]), (4, [[0, 1, 2], [3, 4, 4]]), (9, [[*range(5)]])],
)
def test_pieces_have_one_width_and_fill_up_little(at_once, pieces):
    assert [piece.numbers for piece in split_group(Piece([*range(5)], 0), at_once, 1)] == pieces


def test_on_several_devices_pieces_are_as_wide_as_all_of_them_together():
    pieces = split_group(Piece([*range(5)], 0), 2, 2)
    assert [piece.numbers for piece in pieces] == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert [piece.numbers for piece in split_group(Piece([*range(5)], 0), 9, 2)] == [[0, 1, 2, 3, 4, 4]]
    assert [piece.numbers for piece in split_group(Piece([*range(5)], 0), 1, 4)] == [[0, 1, 2, 3], [4, 4, 4, 4]]


def saved_choice(directory, name="settings_at_once"):
    return json.loads((directory / "sweep.json").read_text())["execution"][name]


@pytest.mark.slow
def test_as_many_settings_run_side_by_side_as_fit(tmp_path, monkeypatch):
    experiment, _ = experiment_of("fed_avg")
    grid = {"client_lr": [0.1, 0.2, 0.3, 0.4]}
    needed = {}
    fits_memory, program_fits = width.fits_memory, width.program_fits

    def noted(setup, piece):
        def bytes_noted(compiled, num_devices):
            memory = compiled.memory_analysis()
            needed[len(piece.numbers)] = memory.output_size_in_bytes + memory.temp_size_in_bytes
            return program_fits(compiled, num_devices)

        monkeypatch.setattr(width, "program_fits", bytes_noted)
        return fits_memory(setup, piece)

    monkeypatch.setattr(width, "fits_memory", noted)
    monkeypatch.setattr(width, "seconds_a_setting", lambda setup, piece: 1 / len(piece.numbers))
    for free, expected in ((1e9, 4), (0, 1)):
        monkeypatch.setattr(auto, "free_bytes", lambda devices, free=free: free)
        sweep(experiment, grid, run_dir=tmp_path / f"{expected}")
        assert saved_choice(tmp_path / f"{expected}") == expected
    assert needed.keys() == {2, 4}
    assert needed[2] > 36 * 2  # so many bytes has a vector of parameters
    monkeypatch.setattr(auto, "free_bytes", lambda devices: needed[2] / auto.MEMORY_SHARE)
    sweep(experiment, grid, run_dir=tmp_path / "some")
    assert saved_choice(tmp_path / "some") == 2


@pytest.mark.parametrize(("together", "alone", "expected"), [(1.0, 2.0, 3), (2.0, 1.0, 1)])
def test_settings_run_one_after_another_where_that_is_faster(tmp_path, monkeypatch, together, alone, expected):
    experiment, _ = experiment_of("fed_avg")
    times = {3: together, 1: alone}
    monkeypatch.setattr(width, "seconds_a_setting", lambda setup, piece: times[len(piece.numbers)])
    sweep(experiment, {"client_lr": [0.1, 0.2, 0.3]}, run_dir=tmp_path)
    assert saved_choice(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [({1: [3], 4: [2]}, 4), ({1: [1, 1], 4: [2, 2]}, 1), ({1: [3, 3], 4: [5, 2]}, 4)],  # the last: first timed at a busy moment
)
def test_a_sweep_has_the_lanes_that_are_best_for_its_settings(tmp_path, monkeypatch, seconds, expected):
    experiment = problems.experiment(problems.make_fed_avg, hyper={"client_lr": 0.1})
    told = {lanes: iter(values) for lanes, values in seconds.items()}
    monkeypatch.setattr(width, "seconds_a_setting", lambda setup, piece: next(told[setup.round_fn.num_lanes]))
    execution = ftx.Execution(rounds_per_call=2)
    sweep(experiment, {"client_lr": [0.1, 0.2, 0.3]}, execution=execution, settings_at_once=3, run_dir=tmp_path)
    assert saved_choice(tmp_path, "num_lanes") == expected


def test_another_sweep_of_other_values_compiles_nothing():
    experiment, _ = experiment_of("fed_avg")
    sweep(experiment, {"client_lr": [0.1, 0.2]}, evaluate={"test": TEST}, settings_at_once=2)
    compiled, programs = len(COMPILED), run_settings.jitted._cache_size()
    other = dataclasses.replace(experiment, seed=11)
    sweep(other, {"client_lr": [1, 0.5], "seed": [1, 2]}, evaluate={"test": TEST}, settings_at_once=2)
    assert (len(COMPILED), run_settings.jitted._cache_size()) == (compiled, programs)


# ---- what is batched


def loops(jaxpr):
    """All ``while`` equations of a program, inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from loops(inner)


def program(name):
    experiment, grid = experiment_of(name)
    cells = [dict(zip(grid, values, strict=True)) for values in zip(*grid.values(), strict=False)]
    round_fn = ftx.make_round(experiment, EXECUTION)
    settings = stack_settings(experiment.hyper, cells, 0, 1)
    shapes = experiment.train.num_clients, 2, len(cells)
    device = init_settings(experiment.make_algorithm, *shapes, ONE_DEVICE, settings, None, round_fn.columns)
    state = RoundState(device, experiment.cohorts.init(experiment.train.num_clients), 0, 0)
    maker, batch_sizes, _, _, *rest, _ = round_fn.arguments(state, round_fn.plan(state, 1))
    given = maker, batch_sizes, len(cells), ONE_DEVICE, settings
    return device, lambda num_rounds: run_settings(*given, rest[0], num_rounds, *rest[2:])


def selects_by_setting(loop):
    """Whether a loop asks for each setting if it goes on: then all do while one does, and every step selects."""
    return loop.params["cond_jaxpr"].out_avals[0].shape != ()


@pytest.mark.parametrize("name", ["fed_avg", "scaffold", "two passes", pytest.param("decoder", marks=pytest.mark.slow)])
def test_every_loop_keeps_one_trip_count_for_all_settings(name):
    _, run = program(name)
    found = list(loops(jax.make_jaxpr(run)(np.int32(1)).jaxpr))
    assert len(found) >= 4  # rounds, ticks, starts, finishes
    assert not any(map(selects_by_setting, found))
    batched = jax.make_jaxpr(jax.vmap(run))(np.array([1, 2], np.int32))
    assert any(map(selects_by_setting, loops(batched.jaxpr)))  # this is how it would show


def test_settings_share_what_is_frozen():
    device, _ = program("decoder")
    frozen = jax.eval_shape(TEXT.init, jax.random.key(0))[1]
    assert jax.tree.map(np.shape, device.server.frozen) == jax.tree.map(np.shape, frozen)
    assert jax.tree.leaves(frozen)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(device.server.params)} == {1}


# ---- the directory


class Killed(Exception):
    """Stands for a kill."""


def killed_after(monkeypatch, pieces):
    """The sweep dies after some pieces; returns the list of pieces begun."""
    begun, run_piece = [], pieces_module.run_piece

    def dying(setup, piece, *rest):
        if len(begun) == pieces:
            raise Killed
        begun.append(piece.numbers)
        return run_piece(setup, piece, *rest)

    monkeypatch.setattr(pieces_module, "run_piece", dying)
    return begun


def test_a_sweep_that_was_killed_goes_on_after_its_last_piece(swept, tmp_path, monkeypatch):
    experiment, grid = experiment_of("fed_avg")
    settings = {"evaluate": {"test": TEST}, "settings_at_once": 2, "run_dir": tmp_path}
    with monkeypatch.context() as patch:
        assert killed_after(patch, 2) == [] and pytest.raises(Killed, sweep, experiment, grid, **settings)
    with monkeypatch.context() as patch:
        begun = killed_after(patch, None)
        result = sweep(experiment, grid, **settings)
    assert begun == [[1, 3], [5, 5]]
    for ours, theirs in zip(result.history, swept.history, strict=True):
        assert_same_history(ours, theirs)
    with monkeypatch.context() as patch:
        begun = killed_after(patch, 0)
        again = sweep(experiment, grid, **{**settings, "settings_at_once": "auto"})
    assert begun == []
    for ours, theirs in zip(again.history, result.history, strict=True):
        assert_same_history(ours, theirs)


def test_a_setting_whose_lines_were_cut_short_runs_again_and_only_that(swept, tmp_path, monkeypatch):
    experiment, grid = experiment_of("fed_avg")
    settings = {"evaluate": {"test": TEST}, "settings_at_once": 2, "run_dir": tmp_path}
    sweep(experiment, grid, **settings)
    path = tmp_path / "settings.jsonl"
    whole = path.read_bytes()
    assert whole.count(b"\n") == ROUNDS * len(swept.settings)
    path.write_bytes(whole[:-10])
    begun = killed_after(monkeypatch, None)
    result = sweep(experiment, grid, **settings)
    assert begun == [[5, 5]]
    assert path.read_bytes().count(b"\n") == ROUNDS * len(swept.settings)
    for ours, theirs in zip(result.history, swept.history, strict=True):
        assert_same_history(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"seed": [1, 2]}}, r"grid is \['client_lr'\] there and \['seed'\] here"),
        ({"grid": {"client_lr": [0.05, 0.2], "seed": [1, 2]}}, r"grid is .* and \['client_lr', 'seed'\] here"),
        ({"rounds": 4}, "rounds is 3 there and 4 here"),
        ({"vary_cohort": False}, "vary_cohort is True there and False here"),
        ({"evaluate": {"test": TEST}}, "evaluate.test.checksum is None there"),
    ],
    ids=str,
)
def test_a_directory_of_another_sweep_is_refused_by_what_differs(kept, changes, message):
    experiment, _ = experiment_of("fed_avg")
    with pytest.raises(ValueError, match=message):
        sweep(experiment, **{"grid": {"client_lr": [0.05, 0.2]}, "run_dir": kept, **changes})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    experiment, _ = experiment_of("fed_avg")
    directory = tmp_path_factory.mktemp("sweeps")
    sweep(experiment, {"client_lr": [0.05, 0.2]}, run_dir=directory)
    return directory


def test_the_value_that_the_grid_replaces_does_not_matter_to_the_directory(kept):
    experiment, _ = experiment_of("fed_avg")
    other = dataclasses.replace(experiment, hyper={"client_lr": 7.0})
    assert sweep(other, {"client_lr": [0.05, 0.2]}, run_dir=kept).settings == [{"client_lr": 0.05}, {"client_lr": 0.2}]


# ---- results


def result_of(rows):
    cells = [{name: value for name, value in row.items() if "/" not in name} for row in rows]
    lines = [[{"round": 1, **{name: value for name, value in row.items() if "/" in name}}] for row in rows]
    return ftx.SweepResult(cells, lines)


ROWS = [
    {"lr": 0.1, "seed": 0, "test/loss": 3.0},
    {"lr": 0.1, "seed": 1, "test/loss": 1.0},
    {"lr": 0.2, "seed": 0, "test/loss": 1.5},
    {"lr": 0.2, "seed": 1, "test/loss": 1.6},
    {"lr": 0.3, "seed": 0, "test/loss": 0.1},
    {"lr": 0.3, "seed": 1, "test/loss": float("nan")},
]


def test_the_best_settings_are_those_of_the_best_mean_over_seeds():
    result = result_of(ROWS)
    assert result.best("test/loss") == {"lr": 0.2}
    assert result.best("test/loss", mode="max") == {"lr": 0.1}
    assert result_of(ROWS[:2]).best("test/loss") == {"lr": 0.1}
    seeds = result_of([{"seed": 5, "test/loss": 1.0}, {"seed": 6, "test/loss": 0.5}])
    assert seeds.best("test/loss") == {"seed": 6}


def test_the_best_of_nothing_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"expected metric to be one of 'test/loss' \(did you mean 'test/loss'\?\), got 'loss'"):
        result_of(ROWS).best("loss")
    with pytest.raises(ValueError, match="expected mode to be one of 'min', 'max', got 'low'"):
        result_of(ROWS).best("test/loss", mode="low")
    with pytest.raises(ValueError, match="expected metric to be finite in all seeds of at least one setting, got 'test/loss'"):
        result_of(ROWS[4:]).best("test/loss")


def test_the_table_has_a_row_for_each_setting(swept):
    pandas = pytest.importorskip("pandas")
    table = swept.table
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 6 and list(table.columns[:2]) == ["client_lr", "seed"]
    for row, lines in zip(table.to_dict("records"), swept.history, strict=True):
        np.testing.assert_equal(row["test/loss"], lines[-1]["test/loss"])


def test_the_rows_are_the_grid_and_the_last_metrics(swept):
    assert [{name: row[name] for name in ("client_lr", "seed")} for row in swept.rows] == swept.settings
    assert {"train/loss", "test/loss", "test/loss/client_p50", "server/update_norm"} <= set(swept.rows[0])
    assert swept.rows[2]["test/loss"] == swept.history[2][-1]["test/loss"]


# ---- what is refused


def test_cohorts_that_read_metrics_are_refused(unchecked):
    source = ftx.data.all_clients()._replace(reads_metrics=True)
    message = r"expected the experiment's cohorts that read no metrics of clients, .*, got 'all_clients\(\)'"
    with pytest.raises(ValueError, match=message):
        sweep(problems.experiment(cohorts=source), {"client_lr": [0.1]})


def test_a_value_that_the_algorithm_refuses_is_told_before_anything_compiles(unchecked):
    compiled = len(COMPILED)
    with pytest.raises(ValueError, match="expected client_learning_rate > 0, got -1.0"):
        sweep(problems.experiment(make_scaffold), {"client_lr": [0.1, -1.0]})
    assert len(COMPILED) == compiled


def test_a_hyperparameter_called_seed_is_not_mistaken_for_the_experiments(unchecked):
    experiment = problems.experiment(hyper={"client_lr": 0.1, "seed": 1})
    with pytest.raises(ValueError, match="that says whether the experiment's or the hyperparameter is meant, got 'seed'"):
        sweep(experiment, {"seed": [1]})
