"""The fingerprint of what is computed: equal for equal programs, different for whatever would change a result."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.simulation.fingerprint import fingerprint, metric_names

MODEL = ftx.models.logistic_regression(2, 3)
TABLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def frozen_features(table):
    """A model with a table in it that nobody trains."""
    return ftx.Model(MODEL.init, lambda params, x, *, key=None: MODEL.apply(params, x, key=key) + x @ jnp.asarray(table))


def made(task=None, lr=0.1, server=None, **changes):
    algorithm = ftx.algorithms.fed_avg(task or ftx.tasks.classification(MODEL), optax.sgd(lr), server, **changes)
    return problems.experiment(algorithm, hyper={})


def begin_elsewhere(key):
    return {"head": {**MODEL.init(key)["head"], "bias": jnp.ones(3)}}


def with_metric(scale):
    task = ftx.tasks.classification(MODEL)
    return task._replace(metrics=lambda out, batch: {"odd": (scale * jnp.ones(batch["y"].shape), jnp.ones(batch["y"].shape))})


PAIRS = {
    "a client's learning rate": (lambda: made(lr=0.1), lambda: made(lr=0.2)),
    "the server's optimizer": (lambda: made(server=optax.adam(0.1)), lambda: made(server=optax.adam(0.1, b1=0.8))),
    "a clipping norm": (
        lambda: made(aggregator=ftx.aggregation.chain(ftx.aggregation.clip_norm(1.0), ftx.aggregation.mean())),
        lambda: made(aggregator=ftx.aggregation.chain(ftx.aggregation.clip_norm(2.0), ftx.aggregation.mean())),
    ),
    "a metric": (lambda: made(with_metric(1.0)), lambda: made(with_metric(2.0))),
    "a table in the model": (
        lambda: made(ftx.tasks.classification(frozen_features(TABLE))),
        lambda: made(ftx.tasks.classification(frozen_features(TABLE.T.reshape(2, 3)))),
    ),
    "the signs of a table in the model": (
        lambda: made(ftx.tasks.classification(frozen_features(TABLE))),
        lambda: made(ftx.tasks.classification(frozen_features(-TABLE))),
    ),
    "where a table has no end": (
        lambda: made(ftx.tasks.classification(frozen_features(np.where(TABLE > 3, -np.inf, TABLE)))),
        lambda: made(ftx.tasks.classification(frozen_features(np.where(TABLE > 4, -np.inf, TABLE)))),
    ),
    "how parameters are drawn": (
        lambda: made(),
        lambda: made(ftx.tasks.classification(MODEL._replace(init=begin_elsewhere))),
    ),
    "the batch size": (
        lambda: made(),
        lambda: problems.experiment(
            ftx.algorithms.fed_avg(ftx.tasks.classification(MODEL), optax.sgd(0.1)), hyper={},
            local=ftx.data.LocalWork(batch_size=3, epochs=2),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_made_anew_is_the_same_and_another_is_another(name):
    one, other = PAIRS[name]
    assert fingerprint(one()) == fingerprint(one())
    assert fingerprint(one()) != fingerprint(other())


def test_hyperparameters_seeds_data_amounts_of_work_and_names_of_functions_do_not_count():
    def make_under_another_name(hyper):
        return problems.make_fed_avg(hyper)

    expected = fingerprint(problems.experiment())
    for other in (
        problems.experiment(hyper={"client_lr": 0.3}),
        problems.experiment(seed=9),
        problems.experiment(train=problems.ragged_clients((2, 2))),
        problems.experiment(make_under_another_name),
        problems.experiment(local=ftx.data.LocalWork(batch_size=2, epochs=np.array([1, 2, 1, 1, 3, 1]))),
    ):
        assert fingerprint(other) == expected


def test_a_constant_that_another_machine_rounded_otherwise_is_the_same():
    nudged = np.nextafter(TABLE, np.float32(np.inf), dtype=np.float32)
    one, other = (made(ftx.tasks.classification(frozen_features(table))) for table in (TABLE + 1, nudged + 1))
    assert fingerprint(one) == fingerprint(other)


def test_another_process_finds_the_same_whatever_the_order_of_its_sets():
    script = (
        "import problems; from fedjax_tx.simulation.fingerprint import fingerprint; print(fingerprint(problems.experiment()))"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == fingerprint(problems.experiment())


def test_metrics_of_training_are_told_without_a_run():
    assert metric_names(made(with_metric(1.0))) == ["loss"]
    result = ftx.run(made(with_metric(1.0)), 1, progress=False, execution=ftx.Execution(num_lanes=1))
    told = [name.removeprefix("train/") for name in result.history[0] if name.startswith("train/")]
    assert sorted(told) == metric_names(made(with_metric(1.0)))
