"""Data that the task or a device can't use is refused by column and value before anything compiles; the rest makes NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.clients import batch_gradient
from fedjax_tx.simulation import evaluate, rounds
from fedjax_tx.simulation.columns import refuse_values

ONE_LANE = ftx.Execution(num_lanes=1)
HOST = ftx.Execution(num_lanes=1, placement="host")


@pytest.fixture
def nothing_runs(monkeypatch):
    """No program of rounds or of states is reached."""

    class Unreached:
        """Tells the shapes of results only."""

        def __init__(self, program):
            self.eval_shape = program.eval_shape

        def __call__(self, *arguments, **options):
            raise AssertionError("a program was asked for")

    for module, name in ((rounds, "run_rounds"), (rounds, "init_state"), (evaluate, "run_evaluation")):
        monkeypatch.setattr(module, name, Unreached(getattr(module, name)))


def with_column(name, value, row=7, data=None):
    data = problems.ragged_clients() if data is None else data
    columns = {**data.columns, name: data.columns[name].copy()}
    columns[name][row] = value
    return ftx.data.FederatedDataset(columns, data.offsets, data.client_ids)


def rounds_of(train, execution, task=problems.LOGISTIC):
    algorithm = ftx.algorithms.fed_avg(task, optax.sgd(0.1))
    return ftx.make_round(problems.experiment(algorithm, train=train), execution)


@pytest.mark.parametrize("execution", [ONE_LANE, HOST, ftx.Execution()], ids=["device", "host", "auto"])
@pytest.mark.parametrize(("label", "told"), [(-1, -1), (3, 3), (-100, -100)])
def test_a_label_of_no_class_is_refused(label, told, execution, nothing_runs):
    with pytest.raises(ValueError, match=rf"^expected column 'y' to hold classes in 0\.\.2, those of .*, got {told}$"):
        rounds_of(with_column("y", label), execution)


@pytest.mark.parametrize("execution", [ONE_LANE, HOST], ids=["device", "host"])
def test_an_evaluation_set_is_looked_at_too(execution, nothing_runs):
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.2, those of the model's logits, got 3"):
        ftx.make_evaluation(problems.experiment(), with_column("y", 3), execution)


def test_so_is_the_data_of_a_sweep(nothing_runs):
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.2, those of the model's logits, got 3"):
        ftx.sweep(problems.experiment(train=with_column("y", 3)), 1, {"client_lr": [0.1]}, progress=False)


def test_a_token_that_the_model_lacks_is_refused(nothing_runs):
    for token in (8, -1):
        train = with_column("tokens", token, (2, 1), problems.text_clients())
        with pytest.raises(ValueError, match=rf"column 'tokens' to hold classes in 0\.\.7, those of .*, got {token}$"):
            rounds_of(train, ONE_LANE, problems.text_task())


TASKS = {
    "freeze": ftx.tasks.freeze(problems.LOGISTIC, "w"),
    "class_weighted": ftx.tasks.class_weighted(problems.LOGISTIC, [1.0, 2.0, 3.0]),
    "logit_adjusted": ftx.tasks.logit_adjusted(problems.LOGISTIC, [1, 2, 3]),
    "temperature": ftx.tasks.temperature(problems.LOGISTIC),
}
ALGORITHMS = {
    **{name: ftx.algorithms.fed_avg(task, optax.sgd(0.1)) for name, task in TASKS.items()},
    "ditto": ftx.algorithms.ditto(problems.LOGISTIC, optax.sgd(0.1), 0.1, 0.1),
    "ifca": ftx.algorithms.ifca(problems.LOGISTIC, optax.sgd(0.1), num_clusters=2),
    "per_fed_avg": ftx.algorithms.per_fed_avg(problems.LOGISTIC, optax.sgd(0.1), personal_learning_rate=0.1),
    "fed_per": ftx.algorithms.fed_per(problems.LOGISTIC, optax.sgd(0.1), personal="b"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_stands_around_a_task_passes_its_labels_on(name):
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.2"):
        ftx.make_round(problems.experiment(ALGORITHMS[name], train=with_column("y", 3)), ONE_LANE)


def test_a_task_that_names_no_labels_may_hold_what_it_likes():
    task = problems.LOGISTIC._replace(labels=())
    rounds_of(with_column("y", -1), ONE_LANE, task)


# ---- integers beyond int32


def test_integers_that_a_device_lacks_are_refused(nothing_runs):
    for value in (3_000_000_000, -3_000_000_000):
        data = problems.ragged_clients().map(lambda columns: {**columns, "row": columns["row"].astype(np.int64)})
        with pytest.raises(
            ValueError, match=f"^expected column 'row' to hold integers that int32 can, as devices do, got {value}$"
        ):
            rounds_of(with_column("row", value, data=data), ONE_LANE)
        with pytest.raises(ValueError, match="column 'row' to hold integers that int32 can"):
            ftx.make_evaluation(problems.experiment(train=data), with_column("row", value, data=data))
        assert rounds_of(data, ONE_LANE)


class _Unread(np.memmap):
    """A memory-mapped column that must not be read."""

    def min(self, *arguments, **options):
        raise AssertionError("the column was read")

    max = min


def mapped(tmp_path, data, kind=np.memmap):
    data.save(tmp_path / "data")
    opened = ftx.data.FederatedDataset.open(tmp_path / "data")
    columns = {name: column.view(kind) for name, column in opened.columns.items()}
    return ftx.data.FederatedDataset(columns, opened.offsets, opened.client_ids)


def test_columns_that_fit_are_not_read():
    columns = {name: column.view(_Unread) for name, column in problems.ragged_clients().columns.items()}
    refuse_values(columns, {})
    with pytest.raises(AssertionError, match="was read"):
        refuse_values(columns, {"y": 3})


def test_memory_mapped_data_of_the_host_is_looked_at_call_by_call(tmp_path):
    train = mapped(tmp_path, with_column("y", 3, row=0), _Unread)  # of client 0
    experiment = problems.experiment(train=train, cohorts=ftx.data.fixed_cohorts([[2, 3], [0, 3]]))
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=1, placement="host", rounds_per_call=1))
    state, _ = round_fn.run(round_fn.init(), 1, then=0)
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.2, those of the model's logits, got 3"):
        round_fn(state)
    evaluate = ftx.make_evaluation(experiment, train, HOST)
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.2"):
        evaluate(state)


def test_memory_mapped_data_of_the_device_is_looked_at_first(tmp_path, nothing_runs):
    with pytest.raises(ValueError, match=r"column 'y' to hold classes in 0\.\.2"):
        rounds_of(mapped(tmp_path, with_column("y", 3)), ONE_LANE)


# ---- strings


def test_a_column_of_strings_is_refused_with_the_experiment():
    data = problems.ragged_clients()
    columns = {**data.columns, "name": np.array(["a"] * data.num_examples)}
    with pytest.raises(
        TypeError, match=r"^expected column 'name' of train to be of numbers, as train\.map can make of it, got .*<U1"
    ):
        problems.experiment(train=ftx.data.FederatedDataset(columns, data.offsets, data.client_ids))


# ---- what slips through


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_a_label_of_no_class_makes_loss_and_gradient_nan(label):
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    batch = {"x": jnp.ones((2, 2)), "y": jnp.array([0, label])}
    (loss, _), slope = batch_gradient(problems.LOGISTIC, params, (), batch, jnp.ones(2, bool), None)
    assert np.isnan(loss) and all(np.isnan(leaf).any() for leaf in jax.tree.leaves(slope))


def test_a_client_with_such_labels_is_left_out_and_named():
    task = problems.LOGISTIC._replace(labels=())
    round_fn = rounds_of(with_column("y", -1), ONE_LANE, task)  # of client 3
    state, info = round_fn(round_fn.init())
    assert info.not_finite.tolist() == [3]
    assert finite(state.device.server)
