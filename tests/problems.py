"""Small problems that several tests share: ragged clients, a logistic regression, a one-layer decoder, a recording client."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_tx as ftx
from fedjax_tx.algorithms.fed_avg import model_evaluation

SIZES = (5, 0, 1, 9, 3, 7)


def ragged_clients(sizes=SIZES, seed: int = 0) -> ftx.data.FederatedDataset:
    """Clients of the given sizes; ids are strings, so that an id is never mistaken for an index."""
    generator = np.random.default_rng(seed)
    rows = sum(sizes)
    columns = {
        "x": generator.normal(size=(rows, 2)).astype(np.float32),
        "y": generator.integers(0, 3, rows).astype(np.int32),
        "row": np.arange(rows, dtype=np.int32),
    }
    return ftx.data.FederatedDataset.from_offsets(columns, np.append(0, np.cumsum(sizes)), [f"c{i}" for i in range(len(sizes))])


def text_clients(sizes=(2, 1, 3), seed: int = 0) -> ftx.data.FederatedDataset:
    tokens = np.random.default_rng(seed).integers(0, 8, (sum(sizes), 5)).astype(np.int32)
    return ftx.data.FederatedDataset.from_offsets({"tokens": tokens}, np.append(0, np.cumsum(sizes)))


def init_logistic(key):
    return {"w": 0.1 * jax.random.normal(key, (2, 3)), "b": jnp.zeros(3)}


LOGISTIC = ftx.tasks.classification(ftx.Model(init_logistic, lambda p, x, *, key=None: x @ p["w"] + p["b"]))
"""Softmax regression of two features on three classes."""


def low_rank_logits(params, x, *, key=None):
    head = params["head"]
    adapted = (x @ head["lora"]["lora_a"]) @ head["lora"]["lora_b"] if "lora" in head else 0.0
    return x @ head["kernel"] + adapted + head["bias"]


def init_head(key):
    return {"head": {"kernel": 0.1 * jax.random.normal(key, (2, 3)), "bias": jnp.zeros(3)}}


ADAPTED = ftx.tasks.classification(ftx.models.lora(ftx.Model(init_head, low_rank_logits), rank=2))
LOW_RANK = ftx.tasks.freeze(ADAPTED, "*lora*")
"""The same with low-rank adapters, of which only they are trained."""


def make_fed_avg(hyper):
    """FedAvg with momentum at the client; ``hyper`` holds ``client_lr``."""
    return ftx.algorithms.fed_avg(LOGISTIC, client_optimizer=optax.sgd(hyper["client_lr"], momentum=0.9))


def text_task(**options):
    return ftx.tasks.next_token(ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4, **options))


def experiment(make_algorithm=make_fed_avg, **changes) -> ftx.Experiment:
    """FedAvg on all ragged clients, two epochs in batches of 2, unless said otherwise."""
    settings = {
        "hyper": {"client_lr": 0.1},
        "train": ragged_clients(),
        "cohorts": ftx.data.all_clients(),
        "local": ftx.data.LocalWork(batch_size=2, epochs=2),
        "seed": 3,
    }
    return ftx.Experiment(make_algorithm, **{**settings, **changes})


def play(experiment, rounds: int, num_lanes: int = 2, rounds_per_call: int = 1):
    """Runs some rounds; returns the last state and all infos."""
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, rounds_per_call=rounds_per_call))
    state, infos = round_fn.init(), []
    while state.round < rounds:
        state, more = round_fn.run(state, min(rounds_per_call, rounds - state.round))
        infos += more
    return state, infos


def one_pass(trainer, aggregator=None, broadcast=None, combine=None, params=None, extra=(), work=None):
    """An algorithm of one pass; the server holds ``params`` and puts the aggregate into ``extra`` where combine is None."""

    def keep(state, aggregate, key):
        return (state, {}) if combine is None else combine(state, aggregate, key)

    training = ftx.Pass(
        trainer,
        ftx.aggregation.nothing() if aggregator is None else aggregator,
        (lambda state: state.params) if broadcast is None else broadcast,
        keep,
        work,
    )
    start = {"w": jnp.zeros(2)} if params is None else params
    return ftx.FederatedAlgorithm(
        lambda key, init_params: ftx.ServerState(start, (), (), extra), (training,), model_evaluation(LOGISTIC)
    )


def recorder(num_slots: int, **changes) -> ftx.ClientTrainer:
    """A client that writes down, at its own step numbers, random numbers and rows; its metrics tell them."""

    def start(broadcast, info, state):
        return {"drawn": jnp.zeros(num_slots), "rows": jnp.zeros(num_slots, jnp.int32), "at": jnp.int32(0), "state": state}

    def step(broadcast, info, local, batch, mask, key):
        at = local["at"]
        return {
            "drawn": local["drawn"].at[at].set(jax.random.uniform(key)),
            "rows": local["rows"].at[at].set(jnp.where(mask, batch["row"] + 1, 0).sum()),
            "at": at + 1,
            "state": local["state"],
        }

    def finish(broadcast, info, local):
        numbers = {
            f"{name}{i}": (local[name][i].astype(jnp.float32), jnp.ones(()))
            for i in range(num_slots)
            for name in ("drawn", "rows")
        }
        numbers["started"] = (jax.random.uniform(info.key), jnp.ones(()))
        return ftx.ClientResult({}, ftx.clients.client_weight(info), local["state"], numbers)

    trainer = ftx.ClientTrainer(lambda broadcast, key: (), start, step, finish)
    return trainer._replace(**changes)
