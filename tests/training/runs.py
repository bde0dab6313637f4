"""A small run that keeps state wherever a run can keep some, and what two equal runs have in common."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems

import fedjax_tx as ftx
from fedjax_tx.aggregation.chain import stage


def counting_client(trainer: ftx.ClientTrainer) -> ftx.ClientTrainer:
    """The client also counts the rounds in which it took part, and remembers a random number of the last one."""

    def finish(broadcast, info, local):
        result = trainer.finish(broadcast, info, local)
        state = {"rounds": local.state["rounds"] + 1, "drawn": jax.random.uniform(info.key)}
        return result._replace(state=state)

    return trainer._replace(
        init_state=lambda broadcast, key: {"rounds": jnp.int32(0), "drawn": jax.random.uniform(key)}, finish=finish
    )


def counting_stage():
    """A stage that counts rounds at the server, keeps a random key there, and tells a number that isn't finite."""

    def decode(reduced, totals, state, key):
        return reduced, {"rounds": state["rounds"] + 1, "key": key}, {"endless": jnp.inf * (state["rounds"] + 1)}

    def init(update):
        return {"rounds": jnp.int32(0), "key": jax.random.key(0), "nothing": jnp.zeros((0, 2))}

    def keep(reduced, totals, state, key):
        reduced, new, info = decode(reduced, totals, state, key)
        return reduced, {**new, "nothing": state["nothing"]}, info

    return stage("count()", init=init, decode=keep)


def make_everything(hyper, server_lr=0.1):
    """FedAvg with Adam at the server, error feedback, and state at clients and aggregator."""
    aggregator = ftx.aggregation.chain(ftx.aggregation.top_k(0.5), ftx.aggregation.mean(), counting_stage())
    algorithm = ftx.algorithms.fed_avg(
        problems.LOGISTIC, optax.sgd(hyper["client_lr"], momentum=0.9), optax.adam(server_lr), aggregator
    )
    training = algorithm.passes[0]
    return algorithm._replace(passes=(training._replace(trainer=counting_client(training.trainer)),))


TWO_OF_SIX = ftx.data.uniform_cohorts(2)


def experiment(**changes) -> ftx.Experiment:
    return problems.experiment(make_everything, **{"cohorts": TWO_OF_SIX, **changes})


def run(rounds: int, run_dir: Path | None = None, **changes) -> ftx.RunResult:
    """Evaluates and saves every third round; two rounds in a call at most."""
    settings = {
        "experiment": changes.pop("experiment", None) or experiment(),
        "evaluate": {"test": problems.ragged_clients(seed=1)},
        "execution": ftx.Execution(num_lanes=2, rounds_per_call=2),
        "evaluate_every": 3,
        "progress": False,
    }
    return ftx.run(rounds=rounds, run_dir=run_dir, **{**settings, **changes})


def leaves(state) -> dict[str, np.ndarray]:
    """All arrays of a round state by path; keys as their numbers."""

    def plain(leaf):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {jax.tree_util.keystr(path): plain(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def same_record(left: dict, right: dict) -> bool:
    """Equality of records, in which nan is nan."""
    return list(left) == list(right) and all(
        a == b or (a != a and b != b) for a, b in zip(left.values(), right.values(), strict=True)
    )


def assert_same_run(left: ftx.RunResult, right: ftx.RunResult) -> None:
    """Bit for bit: parameters, every state, history, costs, evaluations of each client, and why it ended."""
    ours, theirs = leaves(left.state), leaves(right.state)
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert len(left.history) == len(right.history)
    for one, other in zip(left.history, right.history, strict=True):
        assert same_record(one, other), (one, other)
    assert (left.ledger, left.stopped) == (right.ledger, right.stopped)
    jax.tree.map(np.testing.assert_array_equal, left.client_metrics, right.client_metrics)


def assert_same_directory(left: Path, right: Path) -> None:
    for name in ("metrics.jsonl", "experiment.json", "summary.json"):
        assert (left / name).read_text() == (right / name).read_text(), name


ROUNDS = 11


def copy(directory: Path, tmp_path: Path) -> Path:
    """A copy of a run directory that a test may spoil."""
    shutil.copytree(directory, tmp_path / "run")
    return tmp_path / "run"


def forget(directory: Path, after: int) -> None:
    """As a kill leaves it: the checkpoints after a round were never written, the records were."""
    for path in (directory / "checkpoints").iterdir():
        if int(path.name) > after:
            shutil.rmtree(path)


def finish_and_compare(directory: Path, whole: tuple[ftx.RunResult, Path]) -> None:
    """Goes on in a directory to the last round: it must be the run that nothing interrupted."""
    result = run(ROUNDS, directory)
    assert_same_run(result, whole[0])
    assert_same_directory(directory, whole[1])
