"""One table over all algorithms: each row declares the laws that its theorem gives; a law that it does not declare fails.

A new method is one more row. A row may bring data, cohorts and local work of its own (``changes``), its own task, and the setting
at which it is federated averaging (``limit``), with the averaging to compare with where that has another task.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import algorithms

RATE = 0.1
COHORTS = ftx.data.fixed_cohorts([[3, 0, 1], [1, 5, 2], [4, 1, 3]])  # client 1 holds no data
TASK = problems.LOGISTIC
LOW_RANK = ftx.tasks.freeze(problems.ADAPTED, ["*lora*", "*bias"])
BIAS_ONLY = ftx.tasks.freeze(TASK, "b")
WEIGHTS_ONLY = ftx.tasks.freeze(TASK, "w")
ADAPTERS_ONLY = ftx.tasks.freeze(LOW_RANK, "*lora*")
MEAN_OF_MODELS = TASK._replace(
    apply=lambda models, frozen, batch, key: TASK.apply(jax.tree.map(lambda leaf: leaf.mean(0), models), frozen, batch, key)
)
"""What plain SGD would train of IFCA's stacked models: with one of them, that one."""


def fed_avg(hyper):
    return algorithms.fed_avg(TASK, optax.sgd(RATE))


def fed_avg_of_equals(hyper):
    """FedAvg in which clients count alike, whatever their size: two of each cohort of ``COHORTS`` hold data."""
    return algorithms.fed_avg(TASK, optax.sgd(RATE), aggregator=ftx.aggregation.fixed_mean(2))


def fed_avgm(hyper):
    return algorithms.fed_avgm(TASK, optax.sgd(RATE), momentum=hyper["momentum"])


def adaptive(method):
    """An adaptive server; with ``tau`` and its rate alike and large, and v from 0, it divides by nothing that matters."""

    def make(hyper):
        options = {"server_learning_rate": hyper["rate"], "beta1": hyper["beta1"], "tau": hyper["tau"]}
        return method(TASK, optax.sgd(RATE), initial_accumulator=0.0, **options)

    return make


def fed_prox(hyper):
    return algorithms.fed_prox(TASK, optax.sgd(RATE), hyper["mu"])


def fed_nova(hyper):
    return algorithms.fed_nova(TASK, optax.sgd(RATE, momentum=0.5))


def fed_avg_of_momentum(hyper):
    return algorithms.fed_avg(TASK, optax.sgd(RATE, momentum=0.5))


def fed_nova_of_sgd(hyper):
    return algorithms.fed_nova(TASK, optax.sgd(RATE))


def fed_dyn(hyper):
    return algorithms.fed_dyn(TASK, optax.sgd(RATE), 0.5)


def fed_exp(hyper):
    return algorithms.fed_exp(TASK, optax.sgd(RATE))


def fed_sam(hyper):
    return algorithms.fed_sam(TASK, optax.sgd(RATE), hyper["rho"])


def dp_sgd(hyper):
    return algorithms.dp_sgd(TASK, optax.sgd(RATE), hyper["clip"], hyper["z"], 1)


def diloco(hyper):
    return algorithms.diloco(TASK, optax.sgd(RATE, hyper["inner"]), hyper["rate"], momentum=hyper["outer"])


def reptile(hyper):
    return algorithms.reptile(TASK, optax.sgd(RATE), hyper["rate"])


def fed_ac(hyper):
    return algorithms.fed_ac(TASK, RATE, hyper["mu"], local_steps=4)


def adaptive_fed_prox(hyper):
    return algorithms.adaptive_fed_prox(TASK, optax.sgd(RATE), hyper["mu"], change=hyper["change"], patience=1)


def apply_with_features(*given):
    outputs = TASK.apply(*given)
    return {**outputs, "features": outputs["logits"]}


def moon(hyper):
    return algorithms.moon(TASK._replace(apply=apply_with_features), optax.sgd(RATE), hyper["mu"])


def scaffold(hyper):
    return algorithms.scaffold(TASK, RATE)


def mime(hyper):
    return algorithms.mime(TASK, optax.sgd(RATE, hyper["momentum"]))


def mime_lite(hyper):
    return algorithms.mime_lite(TASK, optax.sgd(RATE, hyper["momentum"]))


def q_fed_avg(hyper):
    return algorithms.q_fed_avg(TASK, optax.sgd(RATE), hyper["q"], 1 / RATE)


def ifca(hyper):
    return algorithms.ifca(TASK, optax.sgd(RATE), num_clusters=2)


def ifca_of_one(hyper):
    """One cluster; its parameters keep their leading axis."""
    return algorithms.ifca(TASK, optax.sgd(RATE), num_clusters=1)


def ditto(hyper):
    return algorithms.ditto(TASK, optax.sgd(RATE), 0.1, 0.5)


def fine_tune(hyper):
    return algorithms.fine_tune(TASK, optax.sgd(RATE, momentum=0.5))


def apfl(hyper):
    return algorithms.apfl(TASK, optax.sgd(RATE), 0.1, hyper["alpha"], alpha_learning_rate=0.05)


def p_fed_me(hyper):
    return algorithms.p_fed_me(TASK, optax.sgd(RATE), 0.1, hyper["strength"], personal_steps=3)


def p_fed_me_of_one_step(hyper):
    """The personal model is one step from the server's, and the client goes all the way to it."""
    return algorithms.p_fed_me(TASK, optax.sgd(0.5), RATE, 2.0, personal_steps=1)


def per_fed_avg(method):
    def make(hyper):
        return method(TASK, optax.sgd(RATE), hyper["alpha"])

    return make


def agnostic(hyper):
    return algorithms.agnostic(TASK, optax.sgd(RATE), 6, hyper["rate"])


def fed_per(hyper):
    return algorithms.fed_per(TASK, optax.sgd(RATE), personal="b")


def fed_rep(hyper):
    """Biases are personal, adapters travel, the kernel is frozen."""
    work = ftx.data.LocalWork(batch_size=3, epochs=1)
    return algorithms.fed_rep(LOW_RANK, optax.sgd(RATE), "*bias", personal_optimizer=optax.adam(RATE), personal_work=work)


def fed_babu(hyper):
    return algorithms.fed_babu(TASK, optax.sgd(RATE), personal="w", tuning_steps=0)


def fed_buff(hyper):
    return algorithms.fed_buff(TASK, optax.sgd(RATE), max_staleness=3)


def fed_async(hyper):
    return algorithms.fed_async(TASK, optax.sgd(RATE), 3, hyper["alpha"], mu=hyper["mu"])


def delayed_nesterov(hyper):
    return algorithms.delayed_nesterov(TASK, optax.sgd(RATE), 3, hyper["rate"], hyper["momentum"], momentum_every=2)


def adapted(hyper):
    """FedAvg that trains the bias alone; the weights are frozen."""
    return algorithms.fed_avg(BIAS_ONLY, optax.sgd(RATE))


def fed_avg_of_adapters(hyper):
    return algorithms.fed_avg(LOW_RANK, optax.sgd(RATE))


def fed_ex_lora(hyper):
    return algorithms.fed_ex_lora(LOW_RANK, optax.sgd(RATE))


def het_lora(hyper):
    return algorithms.het_lora(LOW_RANK, optax.sgd(RATE), [1, 2, 1, 2, 1, 2])


HEADED = ftx.tasks.classification(
    ftx.Model(lambda key: jax.tree.map(lambda leaf: -30 * leaf, problems.init_head(key)), problems.low_rank_logits)
)
"""Softmax regression that starts out too sure of itself."""


def ccvr(hyper):
    """What enters the head is the input."""
    features = ftx.Model(problems.init_head, lambda params, x, *, key=None: x)
    return algorithms.ccvr(HEADED, features, optax.adam(RATE), samples_per_class=50, num_steps=50, batch_size=20)


def fit_temperature(hyper):
    return algorithms.fit_temperature(HEADED)


def aggregated_by(*stages):
    """FedAvg with stages of aggregation."""

    def make(hyper):
        return algorithms.fed_avg(TASK, optax.sgd(RATE), aggregator=ftx.aggregation.chain(*stages))

    return make


def private(hyper):
    stages = ftx.aggregation.clip_norm(hyper["clip"]), ftx.aggregation.fixed_mean(2), ftx.aggregation.gaussian_noise(hyper["z"])
    return algorithms.fed_avg(TASK, optax.sgd(RATE), aggregator=ftx.aggregation.chain(*stages))


def centered_clip(hyper):
    return algorithms.fed_avg(TASK, optax.sgd(RATE), aggregator=ftx.aggregation.centered_clip(hyper["clip"]))


def identical_clients() -> ftx.data.FederatedDataset:
    own = problems.ragged_clients((4,)).columns
    columns = {name: np.concatenate([column] * 6) for name, column in own.items()}
    return ftx.data.FederatedDataset.from_offsets(columns, np.arange(0, 25, 4))


class Row(NamedTuple):
    """make(hyper): the method. laws: those that hold. hyper, changes: of its experiments.

    limit: changes by which it becomes federated averaging, None where it is that or has no such setting. fed_avg: what it
    becomes. task, rate: what plain SGD would train, and how fast.
    """

    make: Callable[[Any], ftx.FederatedAlgorithm]
    laws: set[str]
    hyper: dict[str, float] = {}
    changes: dict[str, Any] = {}
    limit: dict[str, Any] | None = None
    fed_avg: Callable[[Any], ftx.FederatedAlgorithm] = fed_avg
    task: ftx.Task = TASK
    rate: float = RATE


# lanes, order: neither the lanes (one for each client, or one for all), nor the rounds in a call, nor the order of the cohort
# change the server or the clients' states.
# empty: a round to which nobody comes leaves the parameters. finite: all states and metrics are, with a client without data too.
# learns: the mean over clients of the loss that evaluation reports falls. limit: it is federated averaging at the row's limit.
# fed_avg: it is federated averaging as it stands. memoryless: a round depends on nothing but the parameters before it.
# single: with cohorts of one and the same client, whose steps are on all its data, it is plain SGD. rests: at the optimum of the
# pooled loss it stays there, though each client makes several steps on all its data. leaves: who drops out is as if it had not
# come, to the server and in its own state. resumes: stopped and gone on with, it is the run that was not, bit for bit. sweeps: a
# setting of a sweep is its run alone.
EVERY = {"lanes", "order", "empty", "finite", "learns", "leaves", "resumes", "sweeps"}
ALL = {"cohorts": ftx.data.all_clients()}
WHOLE = {**ALL, "local": ftx.data.LocalWork(batch_size=9)}
ALIKE = {**ALL, "train": identical_clients(), "local": ftx.data.LocalWork(batch_size=2, epochs=2, shuffle=False)}
FOUR_STEPS = {"local": ftx.data.LocalWork(batch_size=9, steps=4)}
UNTUNED = {"hyper": {"alpha": 0.0}, "local": ftx.data.LocalWork(batch_size=1, epochs=2)}

STALE = ftx.data.async_cohorts(np.arange(1.0, 7.0), concurrency=3, buffer_size=2, max_staleness=3)

TABLE = {
    "fed_avg": Row(fed_avg, EVERY | {"fed_avg", "memoryless", "single"}),
    "fed_avgm": Row(fed_avgm, EVERY | {"limit"}, {"momentum": 0.5}, limit={"hyper": {"momentum": 0.0}}),
    **{
        method.__name__: Row(
            adaptive(method),
            EVERY | {"limit"},
            {"rate": 0.05, "beta1": 0.5, "tau": 0.01},
            limit={"hyper": {"rate": 1e6, "beta1": 0.0, "tau": 1e6}},
        )
        for method in (algorithms.fed_adam, algorithms.fed_adagrad, algorithms.fed_yogi, algorithms.fed_ams)
    },
    "fed_prox": Row(fed_prox, EVERY | {"limit", "memoryless"}, {"mu": 2.0}, limit={"hyper": {"mu": 0.0}}),
    # Clients of one size make equally many steps.
    "fed_nova": Row(fed_nova, EVERY | {"limit", "memoryless"}, limit=ALIKE, fed_avg=fed_avg_of_momentum),
    "fed_nova of sgd": Row(fed_nova_of_sgd, EVERY | {"limit", "memoryless", "single"}, limit=ALIKE),
    # A price that starts at 0 and never moves.
    "adaptive_fed_prox": Row(
        adaptive_fed_prox, EVERY | {"limit"}, {"mu": 2.0, "change": 0.5}, limit={"hyper": {"mu": 0.0, "change": 0.0}}
    ),
    # A client that always comes alone finds the server where it left it: no features are nearer to one than to the other.
    "moon": Row(moon, EVERY | {"limit", "single"}, {"mu": 1.0}, limit={"hyper": {"mu": 0.0}}),
    "fed_dyn": Row(fed_dyn, EVERY),
    # Of clients who all move alike, the mean of the squares is the square of the mean.
    "fed_exp": Row(fed_exp, EVERY | {"limit", "memoryless", "single"}, changes=ALL, limit=ALIKE),
    "fed_sam": Row(fed_sam, EVERY | {"limit", "memoryless"}, {"rho": 0.1}, limit={"hyper": {"rho": 0.0}}),
    # Batches of one are divided by one.
    "dp_sgd": Row(
        dp_sgd,
        EVERY | {"limit", "memoryless"},
        {"clip": 0.5, "z": 0.1},
        changes={"local": ftx.data.LocalWork(batch_size=4, steps=3, expected_batch=1.5)},
        limit={"hyper": {"clip": 1e9, "z": 0.0}, "local": ftx.data.LocalWork(batch_size=1, epochs=2)},
    ),
    "diloco": Row(
        diloco,
        EVERY | {"limit"},
        {"inner": 0.5, "rate": 0.7, "outer": 0.5},
        limit={"hyper": {"inner": 0.0, "rate": 1.0, "outer": 0.0}},
    ),
    "reptile": Row(
        reptile, EVERY | {"limit", "memoryless"}, {"rate": 0.5}, limit={"hyper": {"rate": 1.0}}, fed_avg=fed_avg_of_equals
    ),
    "fed_ac": Row(fed_ac, EVERY | {"limit"}, {"mu": 0.5}, limit={"hyper": {"mu": 1 / RATE}}),
    # Of clients who all hold the same, every control variate is the server's.
    "scaffold": Row(scaffold, EVERY | {"limit"}, limit=ALIKE),
    "mime": Row(mime, EVERY | {"limit", "rests"}, {"momentum": 0.5}, limit={"hyper": {"momentum": 0.0}, **WHOLE}),
    "mime of sgd": Row(mime, EVERY | {"limit", "memoryless", "single", "rests"}, {"momentum": 0.0}, limit=WHOLE),
    "mime_lite": Row(mime_lite, EVERY | {"limit"}, {"momentum": 0.5}, limit={"hyper": {"momentum": 0.0}}),
    "q_fed_avg": Row(
        q_fed_avg, EVERY | {"limit", "memoryless"}, {"q": 1.0}, limit={"hyper": {"q": 0.0}}, fed_avg=fed_avg_of_equals
    ),
    "q_fed_avg at 0": Row(q_fed_avg, EVERY | {"memoryless", "single"}, {"q": 0.0}),
    "ifca": Row(ifca, EVERY | {"memoryless"}, task=MEAN_OF_MODELS),
    "ifca of one": Row(ifca_of_one, EVERY | {"fed_avg", "memoryless", "single"}, task=MEAN_OF_MODELS),
    "ditto": Row(ditto, EVERY | {"fed_avg", "memoryless", "single"}),
    "apfl": Row(apfl, EVERY | {"fed_avg", "memoryless", "single"}, {"alpha": 0.5}),
    "p_fed_me": Row(p_fed_me, EVERY | {"memoryless"}, {"strength": 5.0}),
    "p_fed_me of one step": Row(p_fed_me_of_one_step, EVERY | {"fed_avg", "memoryless", "single"}),
    **{
        method.__name__: Row(per_fed_avg(method), EVERY | {"memoryless", "limit"}, {"alpha": 0.1}, limit=UNTUNED)
        for method in (algorithms.per_fed_avg, algorithms.per_fed_avg_fo, algorithms.per_fed_avg_hf)
    },
    "agnostic": Row(
        agnostic, EVERY | {"limit", "single"}, {"rate": 0.01}, limit={"hyper": {"rate": 0.0}}, fed_avg=fed_avg_of_equals
    ),
    # The server's parameters stay what they were.
    "fine_tune": Row(fine_tune, EVERY | {"memoryless", "rests"}),
    "fed_per": Row(fed_per, EVERY, task=WEIGHTS_ONLY),
    "fed_rep": Row(fed_rep, EVERY, task=ADAPTERS_ONLY),
    "fed_babu": Row(fed_babu, EVERY | {"limit", "memoryless", "single"}, limit={}, fed_avg=adapted, task=BIAS_ONLY),
    "fed_async": Row(
        fed_async,
        EVERY | {"limit"},
        {"alpha": 0.6, "mu": 0.5},
        changes={"cohorts": STALE},
        limit={"hyper": {"alpha": 1.0, "mu": 0.0}, "cohorts": COHORTS},
    ),
    # Each step goes half the way of an update.
    "delayed_nesterov": Row(
        delayed_nesterov,
        EVERY | {"limit"},
        {"rate": 1.0, "momentum": 0.5},
        changes={"cohorts": STALE},
        limit={"hyper": {"rate": 2.0, "momentum": 0.0}, "cohorts": COHORTS},
    ),
    "fed_buff": Row(fed_buff, EVERY | {"limit", "single"}, changes={"cohorts": STALE}, limit={"cohorts": COHORTS}),
    "frozen weights": Row(adapted, EVERY | {"memoryless", "single"}, task=BIAS_ONLY),
    # Of clients who all hold the same, the mean of the products is the product of the means.
    "fed_ex_lora": Row(
        fed_ex_lora,
        EVERY - {"sweeps"} | {"limit", "single"},
        changes=ALL,
        limit=ALIKE,
        fed_avg=fed_avg_of_adapters,
        task=LOW_RANK,
    ),
    "het_lora": Row(het_lora, EVERY | {"memoryless", "single"}, changes=ALL, task=LOW_RANK),
    # After training: the head on what all clients tell of their features; one number, at its optimum.
    "ccvr": Row(ccvr, EVERY | {"memoryless"}, changes=ALL, task=HEADED),
    "fit_temperature": Row(fit_temperature, EVERY | {"memoryless", "rests"}, changes=ALL, task=ftx.tasks.temperature(HEADED)),
    "dp": Row(
        private,
        EVERY - {"empty", "learns"} | {"limit", "memoryless"},
        {"clip": 0.5, "z": 20.0},
        limit={"hyper": {"clip": 1e9, "z": 0.0}},
        fed_avg=fed_avg_of_equals,
    ),
    "top_k": Row(aggregated_by(ftx.aggregation.top_k(0.4), ftx.aggregation.mean()), EVERY),
    "top_k of all": Row(
        aggregated_by(ftx.aggregation.top_k(1.0), ftx.aggregation.mean()), EVERY | {"fed_avg", "memoryless", "single"}
    ),
    "drive": Row(aggregated_by(ftx.aggregation.drive(), ftx.aggregation.mean()), EVERY | {"memoryless"}),
    "integers": Row(aggregated_by(ftx.aggregation.integer_mean(8.0, 2.0**-20, 6)), EVERY | {"memoryless", "single"}),
    "median": Row(aggregated_by(ftx.aggregation.median()), EVERY | {"memoryless", "single"}),
    # Far out it clips nothing, wherever its centre is.
    "centered_clip": Row(
        centered_clip, EVERY | {"limit"}, {"clip": 0.1}, limit={"hyper": {"clip": 1e9}}, fed_avg=fed_avg_of_equals
    ),
    "mixing": Row(
        aggregated_by(ftx.aggregation.nearest_neighbor_mixing(1), ftx.aggregation.median()),
        EVERY | {"memoryless", "single"},
        changes=ALL,
    ),
    "krum": Row(aggregated_by(ftx.aggregation.krum(1)), EVERY | {"memoryless", "single"}, changes=ALL),
}


def experiment(row: Row, make=None, **changes) -> ftx.Experiment:
    return problems.experiment(make or row.make, **{"hyper": row.hyper, "cohorts": COHORTS, **row.changes, **changes})


def rounds_of(experiment, rounds: int = 3, num_lanes: int = 3, rounds_per_call: int = 3, start=None, **execution):
    """Runs some rounds (from the parameters ``start``): (round function, state, infos)."""
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, rounds_per_call=rounds_per_call, **execution))
    state, infos = round_fn.init(), []
    if start is not None:
        state = with_params(state, start)
    while state.round < rounds:
        state, more = round_fn.run(state, min(rounds_per_call, rounds - state.round))
        infos += more
    return round_fn, state, infos


def with_params(state, params):
    server = state.device.server
    return state._replace(device=state.device._replace(server=server._replace(params=params)))


def params_of(experiment, **options):
    return rounds_of(experiment, **options)[1].device.server.params


def close(left, right) -> bool:
    floats = [leaf for leaf in jax.tree.leaves((left, right)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    half = len(floats) // 2
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=2e-5) for a, b in zip(floats[:half], floats[half:], strict=True)
    )


def lanes(row):
    side_by_side, one_by_one = rounds_of(experiment(row))[1], rounds_of(experiment(row), num_lanes=1, rounds_per_call=1)[1]
    kept = [(state.device.server, state.device.clients, state.device.encoders) for state in (side_by_side, one_by_one)]
    return close(*kept)


def order(row):
    plain = experiment(row)

    def select(state, generator, last_client_metrics):
        selected, state = plain.cohorts.select(state, generator, last_client_metrics)
        cohort = selected if isinstance(selected, ftx.Cohort) else ftx.Cohort(np.asarray(selected))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[::-1], cohort), state

    reverse = experiment(row, cohorts=plain.cohorts._replace(select=select))
    kept = [(state.device.server, state.device.clients) for _, state, _ in (rounds_of(plain), rounds_of(reverse))]
    return close(*kept)


def empty(row):
    source = experiment(row).cohorts

    def select(state, generator, last_client_metrics):
        own, number = state
        selected, own = source.select(own, generator, last_client_metrics)
        return np.zeros(0, np.int64) if number == 1 else selected, (own, number + 1)

    nobody = source._replace(init=lambda num_clients: (source.init(num_clients), 0), select=select)
    round_fn, state, (info,) = rounds_of(experiment(row, cohorts=nobody), rounds=1)
    after, (said,) = round_fn.run(state, 1)
    assert (info.empty, said.empty) == (False, True)
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state.device.server.params), jax.tree.leaves(after.device.server.params), strict=True)
    )


def finite(row):
    _, state, infos = rounds_of(experiment(row))
    leaves = [leaf for leaf in jax.tree.leaves(state.device) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    told = [number for info in infos for number in [*info.metrics.values(), *info.server.values()]]
    return all(np.isfinite(leaf).all() for leaf in [*leaves, *told])


def learns(row):
    own = experiment(row)
    evaluate = ftx.make_evaluation(own, own.train)

    def mean_loss(state):
        value, weight = evaluate(state)["loss"]
        return value[weight > 0].mean()

    round_fn, state, _ = rounds_of(own)
    for _ in range(2):
        state, _ = round_fn.run(state, 3)
    return mean_loss(state) < 0.98 * mean_loss(round_fn.init())


def limit(row):
    if row.limit is None:
        return False
    changes = {**row.changes, **row.limit}
    return close(params_of(experiment(row, **changes)), params_of(experiment(row, row.fed_avg, **{**changes, "hyper": {}})))


def is_fed_avg(row):
    # FedAvg that looks away where a row's clients start from old models: it gives them the current one.
    blind = fed_avg({})._replace(max_version=row.make(row.hyper).max_version)
    ours, theirs = params_of(experiment(row)), params_of(experiment(row, lambda hyper: blind, hyper={}))
    if row.make is ifca_of_one:
        ours = jax.tree.map(lambda leaf: leaf[0], ours)
    return close(ours, theirs)


def memoryless(row):
    round_fn, straight, _ = rounds_of(experiment(row))
    _, first, _ = rounds_of(experiment(row), rounds=1)
    fresh = with_params(round_fn.init(), first.device.server.params)
    anew, _ = round_fn.run(first._replace(device=fresh.device), 2)
    return close(straight.device.server.params, anew.device.server.params)


def mean_loss_of(row, columns):
    batch = {name: jnp.asarray(column) for name, column in columns.items()}

    def loss(params, frozen):
        value, weight = row.task.loss(row.task.apply(params, frozen, batch, None), batch)
        return (weight * value).sum() / weight.sum()

    return loss


def plain_sgd(row, columns, start, rate, steps):
    slope = jax.grad(mean_loss_of(row, columns))
    frozen = start.device.server.frozen

    def step(_, params):
        return jax.tree.map(lambda leaf, g: leaf - rate * g, params, slope(params, frozen))

    return jax.jit(lambda params: jax.lax.fori_loop(0, steps, step, params))(start.device.server.params)


def single(row):
    largest = int(np.argmax(experiment(row).train.client_sizes))
    # The last round is never played: it makes room for as many clients as ``rests`` needs, so that one program serves both.
    own = experiment(row, cohorts=ftx.data.fixed_cohorts([[largest]] * 3 + [range(6)]), **FOUR_STEPS)
    round_fn, state, _ = rounds_of(own)
    plain = plain_sgd(row, own.train.client(largest), round_fn.init(), row.rate, 3 * 4)
    return close(state.device.server.params, plain)


def rests(row):
    own = experiment(row, cohorts=ftx.data.all_clients(), **FOUR_STEPS)
    start = ftx.make_round(own, ftx.Execution(num_lanes=3, rounds_per_call=3)).init()
    optimum = plain_sgd(row, own.train.columns, start, 1.0, 3000)
    return close(params_of(own, start=optimum), optimum)


def written_down(*cohorts):
    """A source of cohorts written down: in each round ids, and shares of the work that is done."""

    def select(state, generator, last_client_metrics):
        ids, shares = cohorts[int(state)]
        return ftx.Cohort(np.array(ids), work_done=np.array(shares, float)), state + 1

    return ftx.data.all_clients()._replace(init=lambda num_clients: np.int64(0), select=select)


def leaves(row):
    before, after = ([0, 3, 4], [1, 1, 1]), ([3, 5, 4], [1, 0.5, 1])
    left = written_down(before, ([5, 0, 3, 4], [1, 0, 1, 0]), after)
    absent = written_down(before, ([5, 3], [1, 1]), after)
    (_, one, said), (_, other, want) = (rounds_of(experiment(row, cohorts=source)) for source in (left, absent))
    assert said[1].dropped.tolist() == [0, 4] and said[1].num_clients == want[1].num_clients == 2
    assert said[1].metrics == pytest.approx(want[1].metrics, rel=1e-4)
    return close(one.device, other.device)


def resumes(row):
    own, options = experiment(row), {"execution": ftx.Execution(num_lanes=3, rounds_per_call=1), "progress": False}
    with tempfile.TemporaryDirectory() as directory:
        ftx.run(own, 1, run_dir=directory, **options)
        resumed = ftx.run(own, 3, run_dir=directory, **options)
    straight = ftx.run(own, 3, **options)
    assert resumed.history == straight.history and resumed.ledger == straight.ledger
    pairs = zip(*(jax.tree.leaves(run.state.device) for run in (resumed, straight)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def sweeps(row):
    own = experiment(row)
    grid = {"seed": [own.seed, own.seed + 1], **{name: [value, value + 0.1] for name, value in [*row.hyper.items()][:1]}}
    try:
        swept = ftx.sweep(own, 3, grid, {"all": own.train}, settings_at_once=4, vary_cohort=False, progress=False)
    except ValueError as error:  # settings share what is frozen, so a method that changes it is refused
        if "expected combine to leave what is frozen as it is" in str(error):
            return False
        raise
    for cell, history in zip(swept.settings, swept.history, strict=True):
        if cell["seed"] == own.seed:  # another seed of such a sweep has other cohorts when alone
            hyper = {name: cell.get(name, value) for name, value in row.hyper.items()}
            alone = ftx.run(experiment(row, hyper=hyper), 3, {"all": own.train}, evaluate_every=10, progress=False)
            for ours, theirs in zip(history, alone.history, strict=True):
                assert ours.pop("not_finite") == theirs.pop("not_finite")
                assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    return len({history[-1]["all/loss"] for history in swept.history}) == len(swept.settings)


LAWS = {
    "lanes": lanes,
    "order": order,
    "empty": empty,
    "finite": finite,
    "learns": learns,
    "limit": limit,
    "fed_avg": is_fed_avg,
    "memoryless": memoryless,
    "single": single,
    "rests": rests,
    "leaves": leaves,
    "resumes": resumes,
    "sweeps": sweeps,
}
# What always runs, by row: most laws of the methods that others are made of; of some others those that share one compiled
# program, or that by which they are another row. All else is slow tests.
MOST = set(LAWS) - {"leaves", "resumes", "sweeps"}  # elsewhere are some of these that always run
ONE_PROGRAM = {"order", "empty", "finite", "limit", "memoryless"}
ALWAYS = {
    **dict.fromkeys(["fed_avg", "scaffold"], MOST),
    **dict.fromkeys(["fed_prox", "fed_adam", "fed_avgm", "mime of sgd", "mime_lite", "q_fed_avg at 0"], ONE_PROGRAM),
    **dict.fromkeys(["frozen weights", "drive", "integers", "median", "mime", "ifca", "q_fed_avg"], ONE_PROGRAM),
    **dict.fromkeys(["ditto", "dp", "fed_buff", "fed_ex_lora", "het_lora", "top_k", "krum"], ONE_PROGRAM),
    **dict.fromkeys(["ifca of one", "top_k of all"], {"fed_avg"}),
}
ROWS = [
    pytest.param(name, law, id=f"{name}-{law}", marks=[] if law in ALWAYS.get(name, set()) else [pytest.mark.slow])
    for name in TABLE
    for law in LAWS
]


@pytest.mark.parametrize(("name", "law"), ROWS)
def test_a_law_holds_where_it_is_declared_and_fails_where_it_is_not(name, law):
    row = TABLE[name]
    assert LAWS[law](row) == (law in row.laws)


def test_every_row_declares_known_laws_and_lacks_one():
    assert ALWAYS.keys() <= TABLE.keys()
    for row in TABLE.values():
        assert row.laws < set(LAWS)


@pytest.mark.slow
def test_every_row_is_over_a_mesh_what_it_is_on_one_device():
    script = Path(__file__).parent / "table_on_mesh.py"  # in a process with two devices: here is one
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(TABLE, True)
