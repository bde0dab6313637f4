"""Every public argument of every public function, with a wrong type and a wrong value where there is one.

A script, run by ``test_arguments.py`` in a process of its own: under pytest the checker of annotations would answer first. It
prints a JSON list of [function, argument, what was given, the error's type, its message, programs compiled meanwhile].
"""

import inspect
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import problems
import tokenizers
from safetensors.numpy import save_file

import fedjax_tx as ftx

TASK, SGD, DATA = problems.LOGISTIC, optax.sgd(0.1), problems.ragged_clients()
MODEL = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
HEADED = ftx.tasks.classification(
    MODEL._replace(init=lambda key: {"head": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "heads": jnp.zeros(3)})
)
ADAPTED = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4, lora_rank=1)
LOW_RANK = problems.LOW_RANK
HONEST = ftx.algorithms.fed_avg(TASK, SGD)
EXPERIMENT = problems.experiment()
BUDGET = ftx.privacy.Budget(delta=1e-5)
TREE = ftx.privacy.tree_factorization(rounds=3)
NOISY = ftx.aggregation.chain(ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(2), ftx.aggregation.gaussian_noise(1.0))
READ = {"task": TASK, "params": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}, "frozen": ()}
READ_BATCH = {"x": jnp.ones((1, 2)), "y": jnp.zeros(1, int)}
METRICS = {"loss": (np.ones(2), np.ones(2))}
HISTORY = [{"round": 1, "train/loss": 1.0}]
COLUMNS = {"client_lr": [0.1, 1.0], "mu": [0, 0], "test/loss": [2.0, 1.0]}
BERT = {"model_type": "bert", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
BERT |= {"intermediate_size": 8, "max_position_embeddings": 4}
GPT2 = {"model_type": "gpt2", "vocab_size": 8, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 4}
VIT = {"model_type": "vit", "image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 1}
VIT |= {"num_attention_heads": 1, "intermediate_size": 8}
FOLDERS = {name: tempfile.mkdtemp() for name in ("bert", "gpt2", "vit")}
for name, config in (("bert", BERT), ("gpt2", GPT2), ("vit", VIT)):
    (Path(FOLDERS[name]) / "config.json").write_text(json.dumps(config))
    save_file({}, f"{FOLDERS[name]}/model.safetensors")
TOKENIZER = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
FRAME = pd.DataFrame({"who": ["a"], "x": [1]})
UPDATES = {"w": jnp.ones((2, 3))}
ELSEWHERE = f"{tempfile.mkdtemp()}/curves.png"

task, optimizer, count, text, folder = {"task": ["logistic"]}, ["sgd"], ["4", 0], [3], [3, ELSEWHERE]
server = {"server_optimizer": optimizer}
rate = ["fast", -1.0]
aggregator = ["mean", ftx.aggregation.clip_norm(1.0)]
beta = ["high", -0.1, 1.0]
spending = {"sampling_rate": [*rate, 2.0], "rounds": ["4", -1], "delta": [*rate, 0.0, 1.0], "accountant": [3, "moments"]}
limits = {**dict.fromkeys(["rounds", "min_separation", "max_participations"], count), "cache_dir": [3]}
adaptive = {
    **task,
    **dict.fromkeys(["tau", "initial_accumulator", "server_learning_rate"], rate),
    "client_optimizer": optimizer,
    "beta1": beta,
    "aggregator": aggregator,
}
layers = {
    **dict.fromkeys(["num_layers", "num_heads", "width", "mlp_width"], count),
    "activation": [3, "relu"],
    "layer_norm_epsilon": ["small", 0.0],
    "dropout": ["much", 1.0],
    "dtype": [3, jnp.int32],
    "implementation": [3, "xlaa"],
    "unroll": ["yes"],
}
columns = [*text, [], ["x", 3], ["x", "x"]]
arithmetic = {"dropout": ["much", 1.0], "dtype": [3, jnp.int32], "implementation": [3, "xlaa"], "unroll": ["yes"]}
config = [3, {}, {"model_type": "t5"}]
labelled = {"data": [DATA.columns, ftx.data.take_part(DATA, 0, 2)], "labels": [3, "label"]}
attacked = {"algorithm": ["fed_avg"], "attackers": [3, [0.5], [-1], [[0]]]}
seed = {"seed": [0.5, -1]}
kinds = [3, [], [0.5, 1.0], [[0, 1]]]
loaded = {"encode": [3], "directory": [3], "progress": ["no"]}
classes = [["many", "few"], [1.0, -1.0], [0.0, 0.0], [[1.0, 2.0]]]

averaged = {**task, **server, "client_optimizer": optimizer, "aggregator": aggregator}
own_part = {**averaged, "personal": [3, [], "haed/*", "head*"]}
meta = {**averaged, "personal_learning_rate": rate, "tuning_steps": ["1", -1]}

TABLE = {
    ftx.EarlyStop: (
        {"metric": "test/loss", "patience": 1},
        {"metric": text, "mode": [1, "low"], "target": ["low", float("nan")], "patience": count},
    ),
    ftx.Execution: (
        {},
        {
            **dict.fromkeys(["num_lanes", "rounds_per_call"], [1.5, 0, "many"]),
            "taper": [1.5, -1, "often"],
            "mesh": [2, "many", jax.sharding.Mesh(np.array([[jax.devices()[0]]]), ("model", "clients"))],
            "placement": [2, "disk"],
            "debug": ["yes"],
        },
    ),
    ftx.Experiment: (
        {"make_algorithm": problems.make_fed_avg, "train": DATA, "cohorts": ftx.data.all_clients(), "local": EXPERIMENT.local},
        {
            "make_algorithm": [3],
            "hyper": [3, {3: 1.0}, *({"client_lr": value} for value in ("fast", float("inf"), 3_000_000_000, 1e39))],
            "train": [DATA.columns],
            "cohorts": [[0, 1]],
            "local": [8],
            "seed": [0.5, -1, 2**32],
        },
    ),
    ftx.audit: (
        {"experiment": EXPERIMENT, "rounds": 1, "privacy": BUDGET, "canaries": 20, "norm": 1.0},
        {
            "experiment": [3],
            "rounds": count,
            "privacy": [8.0],
            "canaries": ["20", 19],
            "norm": rate,
            "confidence": [*rate, 1.0],
            "reference": [3, {"of_no_name": 1.0}],
            "init_params": [{"b": jnp.zeros(3)}],
            "execution": [4],
        },
    ),
    ftx.load_run: ({"run_dir": ELSEWHERE}, {"run_dir": [3, "nowhere"]}),
    ftx.make_evaluation: ({"experiment": EXPERIMENT, "dataset": DATA}, {"experiment": [3], "dataset": [3], "execution": [4]}),
    ftx.make_round: ({"experiment": EXPERIMENT}, {"experiment": [3], "execution": [4]}),
    ftx.run: (
        {"experiment": EXPERIMENT, "rounds": 1, "evaluate": {"test": DATA}},
        {
            "experiment": [3],
            "rounds": count,
            "evaluate": [DATA, {"test": 3}, {"train": DATA}],
            "init_params": [{"b": jnp.zeros(3)}, {"b": jnp.zeros(3), "w": jnp.zeros((3, 3))}],
            "execution": [4],
            "run_dir": [3, "gs://bucket/run"],
            "evaluate_every": count,
            "checkpoint_every": count,
            "early_stop": ["test/loss", ftx.EarlyStop("elsewhere/loss", patience=1)],
            "keep_best": [3, "elsewhere/loss", "test/acuracy"],
            "callback": [3],
            "privacy": [8.0],
            "config": [3, {"f": len}],
            "progress": ["no"],
        },
    ),
    ftx.summarise: ({"name": "test", "metrics": METRICS}, {"name": text, "metrics": [3]}),
    ftx.sweep: (
        {"experiment": EXPERIMENT, "rounds": 1, "grid": {"client_lr": [0.1]}, "evaluate": {"test": DATA}},
        {
            "experiment": [3],
            "rounds": count,
            "grid": [3, {}, {"client_rate": [0.1]}, {"client_lr": 0.1}, {"client_lr": []}, {"client_lr": ["fast"]}]
            + [{"client_lr": [float("inf")]}, {"seed": [0.5]}, {"seed": [-1]}],
            "evaluate": [DATA, {"test": 3}, {"train": DATA}],
            "init_params": [{"b": jnp.zeros(3)}, {"b": jnp.zeros(3), "w": jnp.zeros((3, 3))}],
            "execution": [4, ftx.Execution(debug=True), ftx.Execution(placement="host")],
            "run_dir": [3],
            "evaluate_every": count,
            "settings_at_once": count,
            "vary_cohort": ["no"],
            "progress": ["no"],
        },
    ),
    ftx.data.FederatedDataset: (
        {"columns": DATA.columns, "offsets": DATA.offsets, "client_ids": DATA.client_ids},
        {"columns": [3, {}], "offsets": [[0, 25], np.array([0, 24])], "client_ids": [3, np.arange(2)], "part": [3]},
    ),
    ftx.data.LocalWork: (
        {"batch_size": 2, "epochs": 1},
        {"batch_size": count, "epochs": [0.5, 0], "steps": [0.5, 0], "shuffle": ["yes"], "expected_batch": [*rate, 1.0]},
    ),
    ftx.data.all_clients: ({}, {}),
    ftx.devices.use_all_cores: ({}, {}),
    ftx.privacy.Budget: (
        {"delta": 1e-5},
        {"delta": [*rate, 0, 1.0], "epsilon": rate, "accountant": [3, "moments"]}
        | {"private_metrics": ["yes"], "max_metric": [*rate, 0.0], "metrics_noise": [*rate, 0.0]},
    ),
    ftx.privacy.with_private_metrics: (
        {"algorithm": ftx.algorithms.fed_avg(TASK, SGD, aggregator=NOISY), "expected_clients": 2},
        {
            "algorithm": ["fed_avg", HONEST, ftx.algorithms.mime(TASK, SGD)],
            **dict.fromkeys(["expected_clients", "max_metric", "metrics_noise"], [*rate, 0.0]),
        },
    ),
    ftx.privacy.spending: (
        {"budget": BUDGET, "aggregators": [NOISY], "cohorts": ftx.data.uniform_cohorts(2), "num_clients": 6},
        {
            "budget": [3],
            "aggregators": [[], [ftx.aggregation.mean()]],
            "cohorts": [3, ftx.data.fixed_cohorts([[0]])],
            "num_clients": count,
        },
    ),
    ftx.privacy.audit_aggregator: (
        {"aggregator": NOISY, "canary": UPDATES, "delta": 1e-5},
        {
            "aggregator": aggregator,
            "canary": [{}, {"w": jnp.zeros(2, int)}, {"w": jnp.zeros(2)}],
            "delta": [*rate, 1.0],
            "clients": count,
            "trials": ["8", 7],
            "confidence": [*rate, 1.0],
            **seed,
        },
    ),
    ftx.privacy.epsilon_lower_bound: (
        {"scores_in": [1.0, 2.0, 1.0, 2.0], "scores_out": [0.0] * 4, "delta": 1e-5},
        {
            **dict.fromkeys(["scores_in", "scores_out"], [["high", "low"], [1.0] * 3, [1.0, np.inf, 1.0, 1.0]]),
            "delta": [*rate, 1.0],
            "method": [3, "gdp"],
            "confidence": [*rate, 1.0],
        },
    ),
    ftx.privacy.affordable_rounds: (
        {"spent": float, "target": 1.0, "rounds": 3},
        {"spent": [3], "target": rate, "rounds": ["4", -1]},
    ),
    ftx.privacy.epsilon: (
        {"noise_multiplier": 1.0, "sampling_rate": 0.1, "rounds": 2, "delta": 1e-5},
        {"noise_multiplier": rate, **spending, "population": [*count, 9], "max_clients": [*count, 9]},
    ),
    ftx.privacy.epsilon_of_fixed_cohorts: (
        {"noise_multiplier": 1.0, "clients_per_round": 2, "population": 10, "rounds": 2, "delta": 1e-5},
        {
            **{"noise_multiplier": rate, "clients_per_round": count, "population": [*count, 1]},
            **{name: spending[name] for name in ("rounds", "delta")},
        },
    ),
    ftx.privacy.epsilon_of_correlated_noise: (
        {"noise_multiplier": 1.0, "factorization": TREE, "rounds": 2, "delta": 1e-5},
        {
            **{"noise_multiplier": rate, "factorization": [3], "participation": [3]},
            **{name: spending[name] for name in ("rounds", "delta", "accountant")},
        },
    ),
    ftx.privacy.blt_factorization: ({"rounds": 1}, limits),
    ftx.privacy.banded_factorization: ({"rounds": 3, "min_separation": 1}, {**limits, "bands": [*count, 4]}),
    ftx.privacy.tree_factorization: ({"rounds": 3}, {name: limits[name] for name in list(limits)[:3]}),
    ftx.privacy.epsilon_of_examples: (
        {"noise_multiplier": 1.0, "local": EXPERIMENT.local, "num_examples": 3, "rounds": 2, "delta": 1e-5},
        {
            **{"noise_multiplier": rate, "local": [8, ftx.data.LocalWork(2, steps=np.array([1]))], "num_examples": count},
            **{name: spending[name] for name in ("rounds", "delta", "accountant")},
        },
    ),
    **dict.fromkeys(
        [ftx.privacy.epsilon_of_skellam, ftx.privacy.epsilon_of_discrete_gaussian],
        (
            {"noise_multiplier": 1.0, "max_norm": 1.0, "resolution": 0.1, "size": 4, "clients_per_round": 2, "population": 4}
            | {"rounds": 2, "delta": 1e-5},
            {
                **{"noise_multiplier": rate, "max_norm": rate, "resolution": rate, "size": count, "clients_per_round": count},
                **{"population": [*count, 1], "rounds": spending["rounds"], "delta": spending["delta"]},
            },
        ),
    ),
    ftx.privacy.epsilon_of_messages: (
        {"noise_multiplier": 1.0, "rounds": 2, "delta": 1e-5},
        {"noise_multiplier": rate, **{name: spending[name] for name in ("rounds", "delta", "accountant")}},
    ),
    ftx.privacy.calibrate_noise: (
        {"target_epsilon": 1.0, "sampling_rate": 0.1, "rounds": 2, "delta": 1e-5},
        {"target_epsilon": [*rate, 0], **spending, "population": [*count, 9], "max_clients": [*count, 9]},
    ),
    ftx.privacy.calibrate_noise_of_fixed_cohorts: (
        {"target_epsilon": 1.0, "clients_per_round": 2, "population": 10, "rounds": 2, "delta": 1e-5},
        {
            **{"target_epsilon": [*rate, 0], "clients_per_round": count, "population": [*count, 1]},
            **{"rounds": count, "delta": spending["delta"]},
        },
    ),
    ftx.devices.use_compilation_cache: ({}, {"directory": [3]}),
    ftx.data.async_cohorts: (
        {"durations": [1.0, 2.0], "concurrency": 2, "buffer_size": 1, "max_staleness": 3},
        {"durations": [["slow"], [1.0, 0.0]], "concurrency": count, "buffer_size": count, "max_staleness": ["4", -1]},
    ),
    ftx.data.class_counts: ({"data": DATA, "num_classes": 3}, {**labelled, "num_classes": count}),
    ftx.data.oversample_classes: ({"data": DATA, "seed": 0}, {**labelled, "seed": [0.5, -1], "within": [3, "clients"]}),
    ftx.data.sample_classes: (
        {"data": DATA, "seed": 0},
        {**labelled, "seed": [0.5, -1], "within": [3, "clients"], "power": ["half", -1.0, 2.0]},
    ),
    ftx.data.concatenate: ({"parts": [DATA, DATA]}, {"parts": [3, [], [DATA, 3]]}),
    ftx.data.keep_rows: (
        {"data": DATA, "kept": np.ones(DATA.num_examples, bool)},
        {"data": [3], "kept": [[True], np.ones(2, bool), np.zeros(DATA.num_examples, int)]},
    ),
    ftx.data.row_clients: ({"data": DATA}, {"data": [3]}),
    ftx.data.split_rows: (
        {"data": DATA, "shares": [0.5, 0.5], "seed": 0},
        {"data": [3, ftx.data.take_part(DATA, 0, 2)], "shares": [3, [], ["half"], [0.5, 0.4], [1.5, -0.5]], **seed},
    ),
    ftx.data.describe: ({"data": DATA}, labelled),
    ftx.data.partition_iid: (
        {"num_examples": 4, "num_clients": 2, "seed": 0},
        {"num_examples": count, "num_clients": [*count, 5], **seed},
    ),
    ftx.data.partition_dirichlet: (
        {"labels": [0, 1, 0], "num_clients": 2, "alpha": 1.0, "seed": 0},
        {"labels": kinds, "num_clients": [*count, 4], "alpha": [*rate, float("nan")], **seed},
    ),
    ftx.data.partition_shards: (
        {"labels": [0, 1, 0, 1], "num_clients": 2, "seed": 0},
        {"labels": kinds, "num_clients": [*count, 5], "shards_per_client": [*count, 3], **seed},
    ),
    ftx.data.partition_quantity: (
        {"num_examples": 4, "num_clients": 2, "alpha": 1.0, "seed": 0},
        {"num_examples": count, "num_clients": [*count, 5], "alpha": [*rate, 0.0], "min_size": ["1", -1, 3], **seed},
    ),
    ftx.data.partition_features: (
        {"features": [0.5, 1.0, 2.0], "num_clients": 2, "seed": 0},
        {
            "features": [3.0, ["low", "high"], [float("nan"), 1.0, 1.0]],
            "num_clients": [*count, 4],
            "strength": [*rate, 2.0],
            "labels": [*kinds, [0, 1]],
            **seed,
        },
    ),
    ftx.data.partition_by: ({"keys": ["a", "b"]}, {"keys": kinds, "min_size": [*count, 3]}),
    ftx.data.with_covariates: (
        {"cohorts": ftx.data.all_clients(), "counts": [1, 2]},
        {"cohorts": [[0, 1]], "tables": []},
    ),
    ftx.data.with_stragglers: (
        {"cohorts": ftx.data.all_clients(), "fraction": 0.5},
        {"cohorts": [[0, 1]], "fraction": ["half", 1.5], "work_done": [0.5], "drop": ["yes"]},
    ),
    ftx.data.with_dropout: (
        {"cohorts": ftx.data.all_clients(), "chance": 0.5},
        {"cohorts": [[0, 1]], "chance": ["half", 1.5, [-0.5], [[0.5]]]},
    ),
    ftx.data.with_deadline: (
        {"cohorts": ftx.data.all_clients(), "durations": [1.0, 2.0], "wanted": 1},
        {
            "cohorts": [[0, 1]],
            "durations": [["slow"], [1.0, 0.0]],
            "deadline": ["soon", 0.0],
            "wanted": count,
            "drop": ["yes"],
        },
    ),
    ftx.data.fixed_cohorts: ({"ids": [[0]]}, {"ids": [3, [], [[0.5]]]}),
    ftx.data.load: ({"name": "shakespeare"}, {"name": [3, "shakespear"], "options": []}),
    ftx.data.from_clients: (
        {"read_clients": lambda start: [("a", {"x": [1]})]},
        {**loaded, "read_clients": [3], "num_clients": ["4", -1]},
    ),
    ftx.data.from_fedjax_sqlite: ({"path": ELSEWHERE}, {**loaded, "path": [3], "columns": [3, "x", []]}),
    ftx.data.from_folders: ({"folder": ELSEWHERE}, {**loaded, "folder": [3], "read_file": [3], "pattern": [3]}),
    ftx.data.from_hugging_face: (
        {"dataset": FRAME, "client_key": "who"},
        {**loaded, "dataset": [3], "client_key": [3], "columns": [3, "x", []]},
    ),
    ftx.data.from_parquet: (
        {"path": ELSEWHERE, "client_key": "who"},
        {**loaded, "path": [3], "client_key": [3], "columns": [3, "x", []]},
    ),
    ftx.data.from_leaf: ({"folder": ELSEWHERE}, {**loaded, "folder": [3]}),
    ftx.data.from_pandas: (
        {"frame": FRAME, "client_key": "who"},
        {**loaded, "frame": [3], "client_key": [3, "whom"], "columns": [3, "x", [], ["y"]]},
    ),
    ftx.data.from_tfds: (
        {"name_or_builder": "none", "client_key": "who"},
        {**loaded, "name_or_builder": [3], "client_key": [3], "split": [3], "columns": [3, "x", []], "data_dir": [3]},
    ),
    ftx.data.from_tff_hdf5: ({"path": ELSEWHERE}, {**loaded, "path": [3], "columns": [3, "x", []]}),
    ftx.data.make_splits: (
        {"train": DATA, "test": DATA},
        dict.fromkeys(["train", "test", "unseen"], [3, ftx.data.take_part(DATA, 0, 2)]),
    ),
    ftx.data.gather_parts: ({"data": DATA}, {"data": [DATA.columns, ftx.data.take_part(DATA, 0, 2)]}),
    ftx.data.take_part: (
        {"data": DATA, "index": 0, "num_parts": 2},
        {"data": [DATA.columns, ftx.data.take_part(DATA, 0, 2)], "index": [0.5, 2], "num_parts": count},
    ),
    ftx.processes.join: (
        {"coordinator": "127.0.0.1:1234", "num_processes": 2, "process_id": 0},
        {
            "coordinator": [3, "localhost", None],
            "num_processes": [*count, None],
            "process_id": ["0", 2, -1, None],
            "timeout_seconds": count,
        },
    ),
    ftx.data.poisson_cohorts: ({"rate": 0.5}, {"rate": ["often", 1.5], "max_clients": count}),
    ftx.data.available_cohorts: (
        {"clients_per_round": 1, "availability": [0.5, 1.0]},
        {"clients_per_round": count, "availability": [["often"], 0.5, [[[1.0]]], np.zeros((0, 2)), [0.5, 1.5]]},
    ),
    ftx.data.power_of_choice_cohorts: (
        {"clients_per_round": 1, "candidates": 2, "weights": [1.0, 2.0]},
        {"clients_per_round": [*count, 3], "candidates": [*count, 3], "weights": [["big"], [1.0, -1.0]]},
    ),
    ftx.data.separated_cohorts: (
        {"clients_per_round": 1, "min_separation": 2},
        dict.fromkeys(["clients_per_round", "min_separation", "max_participations"], count),
    ),
    ftx.data.uniform_cohorts: ({"clients_per_round": 2}, {"clients_per_round": count}),
    ftx.data.weighted_cohorts: (
        {"clients_per_round": 1, "weights": [1.0, 2.0]},
        {"clients_per_round": [*count, 3], "weights": [["big"], [1.0, -1.0]], "exact": ["yes"]},
    ),
    ftx.models.adapters: ({"model": MODEL, "size": 1}, {"model": [3], "size": count, "where": [3, [], "haed"]}),
    ftx.models.add_extras: ({"params": {}, "model": ADAPTED, "key": jax.random.key(0)}, {"model": [3, MODEL], "key": [3]}),
    ftx.models.cnn: (
        {"input_shape": (8, 8, 1), "num_classes": 2},
        {
            "input_shape": [3, (8,), (8, 8, 0)],
            "num_classes": count,
            "channels": [3, [], [0]],
            "kernel_size": [*count, 9],
            "pool": ["2", (1, 2, 2), (0, 1)],
            "padding": [3, "same"],
            "hidden_sizes": [3, [0]],
            "summary": [3, "max"],
            "dtype": [3, jnp.int32],
        },
    ),
    ftx.models.logistic_regression: (
        {"input_shape": 4, "num_classes": 2},
        {"input_shape": ["4", 0, (4, 0)], "num_classes": count, "dtype": [3, jnp.int32]},
    ),
    ftx.models.mlp: (
        {"input_shape": 4, "num_classes": 2},
        {"input_shape": ["4", 0, (4, 0)], "num_classes": count, "hidden_sizes": [3, [0]], "dtype": [3, jnp.int32]},
    ),
    ftx.models.recurrent: (
        {"vocab_size": 4, "num_classes": 2},
        {
            **dict.fromkeys(["vocab_size", "num_classes", "width", "num_layers", "embedding_width"], count),
            "num_features": [3],
            "cell": [3, "lstmm"],
            "dtype": [3, jnp.int32],
        },
    ),
    ftx.models.describe: (
        {"model": MODEL, "inputs": np.ones((1, 3), np.int32)},
        {"model": [3], "inputs": [{}, np.float32(3)]},
    ),
    ftx.models.resnet: (
        {"input_channels": 3, "num_classes": 2},
        {
            **dict.fromkeys(["input_channels", "num_classes", "num_groups"], count),
            "depth": ["20", 2, 21],
            "width": [*count, 12],
            "dtype": [3, jnp.int32],
        },
    ),
    ftx.models.convolve: (
        {"x": np.ones((1, 5, 2)), "kernel": np.ones((3, 2, 2))},
        {
            "x": [np.ones((5, 2))],
            "kernel": [np.ones((3, 1, 2)), np.ones((3, 3, 2, 2)), np.ones((3, 2, 2), np.int32)],
            "stride": count,
            "padding": [3, "same", [(1, 1), (1, 1)], [(-1, 0)]],
        },
    ),
    ftx.models.decoder: (
        {"vocab_size": 8},
        {
            **dict.fromkeys(["vocab_size", "num_layers", "num_heads", "width", "max_length", "mlp_width"], count),
            "dropout": ["much", 1.0],
            "tie_embeddings": ["yes"],
            "positions": [3, "rotated"],
            "num_kv_heads": ["2", 0, 3],
            "dtype": [3, jnp.int32],
            "implementation": [3, "xlaa"],
            "unroll": ["yes"],
            "lora_rank": ["4", -1],
            "lora_alpha": ["4", -1.0],
        },
    ),
    ftx.models.encoder: (
        {"vocab_size": 8, "num_classes": 2},
        {
            **layers,
            **dict.fromkeys(["vocab_size", "max_length", "num_classes"], count),
            "head": [3, "class"],
            "pool": [3, "max"],
            **dict.fromkeys(["pooler", "tie_embeddings", "normalise"], ["yes"]),
            "num_segments": ["2", -1],
            "norm": [3, "before"],
        },
    ),
    ftx.models.features: ({"model": MODEL}, {"model": [3], "head": [3, "haed"]}),
    ftx.models.vit: (
        {"image_size": 8, "patch_size": 4, "num_classes": 2},
        {
            **layers,
            **dict.fromkeys(["patch_size", "num_classes", "channels"], count),
            "image_size": ["8", 0, 6, (8, 8, 8)],
            "pool": [3, "max"],
        },
    ),
    ftx.models.time_series: (
        {"channels": 2, "num_classes": 2},
        {
            **layers,
            **dict.fromkeys(["channels", "max_length", "patch_length", "num_classes"], count),
            "horizon": [4],
            "positions": [3, "learnt"],
        },
    ),
    ftx.models.tabular: (
        {"num_numeric": 2, "categories": [3], "num_outputs": 1},
        {**layers, "num_numeric": ["2", -1], "categories": [3, ["a"], [0]], "num_outputs": count},
    ),
    ftx.models.generate: (
        {"model": MODEL, "params": {}, "prompt": jnp.array([1]), "num_tokens": 1, "key": jax.random.key(0), "max_length": 4},
        {
            "model": [3],
            "prompt": [np.array([0.5]), np.array([], np.int32)],
            "num_tokens": count,
            "key": [3],
            "max_length": count,
            "temperature": ["hot", 0.0],
        },
    ),
    ftx.models.lora: (
        {"model": MODEL, "rank": 1},
        {"model": [3], "rank": count, "alpha": ["4", -1.0], "where": [3, [], "haed"]},
    ),
    ftx.models.prefix: ({"model": MODEL, "length": 1}, {"model": [3], "length": count, "where": [3, [], "haed"]}),
    ftx.models.merge_lora: ({"params": {}}, {"params": [3, {}], "lora_alpha": ["4", -1.0]}),
    ftx.data.count_tokens: ({"tokenizer": TOKENIZER, "texts": ["a"]}, {"tokenizer": [3], "texts": ["a", [3]]}),
    ftx.data.encode_texts: (
        {"tokenizer": TOKENIZER, "texts": ["a"], "max_length": 2},
        {"tokenizer": [3], "texts": ["a", [3]], "max_length": count, "truncate": ["yes"]}
        | {"pad_to": count, "pad_id": ["0", -1]},
    ),
    ftx.data.log_mel: (
        {"samples": np.zeros((1, 400), np.float32), "sampling_rate": 8000},
        {
            "samples": [[0.0], np.zeros((1, 400), np.int32), np.zeros((1, 10), np.float32)],
            "sampling_rate": count,
            **dict.fromkeys(["num_bands", "frame_length", "hop"], count),
            "low": ["deep", -1.0],
            "high": ["sharp", 5000.0],
        },
    ),
    ftx.data.load_tokenizer: ({"folder": ELSEWHERE}, {"folder": folder}),
    ftx.models.load_bert: (
        {"folder": FOLDERS["bert"], "head": "classes", "num_classes": 2, "key": jax.random.key(0)},
        {
            "folder": folder,
            "head": [3, "regression"],
            "num_classes": count,
            "key": [3],
            "pool": [3, "max"],
            "pooler": ["yes"],
            "normalise": ["yes", True],
            **arithmetic,
        },
    ),
    ftx.models.load_gpt2: ({"folder": FOLDERS["gpt2"]}, {"folder": folder, **arithmetic}),
    ftx.models.load_vit: (
        {"folder": FOLDERS["vit"], "num_classes": 2, "key": jax.random.key(0)},
        {"folder": folder, "num_classes": count, "key": [3], **arithmetic},
    ),
    ftx.models.minilm_folder: ({}, {}),
    ftx.models.save_bert: (
        {"folder": ELSEWHERE, "params": {}, "config": BERT},
        {"folder": [3], "params": [3, {}], "config": config},
    ),
    ftx.models.save_gpt2: (
        {"folder": ELSEWHERE, "params": {}, "config": GPT2},
        {"folder": [3], "params": [3, {}], "config": config},
    ),
    ftx.models.save_vit: (
        {"folder": ELSEWHERE, "params": {}, "config": VIT},
        {"folder": [3], "params": [3, {}], "config": config},
    ),
    ftx.tasks.next_token: ({"model": MODEL}, {"model": [3], "pad_id": ["0", -1], "valid": text, "column": text}),
    ftx.tasks.classification: (
        {"model": MODEL},
        {"model": [3], "inputs": columns, "labels": text, "num_classes": ["4", 1], "num_bins": count},
    ),
    ftx.tasks.class_weighted: ({"task": TASK, "weights": [1.0, 2.0]}, {**task, "weights": classes, "labels": text}),
    ftx.tasks.effective_number_weights: ({"counts": [1, 2], "beta": 0.5}, {"counts": classes, "beta": [*rate, 1.0]}),
    ftx.tasks.fed_lc: ({"task": TASK, "tau": 1.0}, {**task, "tau": rate}),
    ftx.tasks.fed_rs: ({"task": TASK, "alpha": 0.5}, {**task, "alpha": [*rate, 1.5]}),
    ftx.tasks.focal: ({"task": TASK, "gamma": 2.0}, {**task, "gamma": rate, "labels": text}),
    ftx.tasks.inverse_frequency_weights: ({"counts": [1, 2]}, {"counts": classes}),
    ftx.tasks.logit_adjusted: ({"task": TASK, "counts": [1, 2]}, {**task, "counts": [*classes, [1, 0]], "tau": rate}),
    ftx.tasks.masked_tokens: (
        {"model": MODEL, "vocab_size": 8, "mask_id": 7},
        {
            "model": [3],
            "vocab_size": count,
            "mask_id": ["7", 8],
            "pad_id": ["0", -1, 8],
            "valid": text,
            "special_ids": [3, ["a"], [-1], [8]],
            "rate": ["often", 0.0, 1.0],
            "column": text,
        },
    ),
    ftx.tasks.regression: ({"model": MODEL}, {"model": [3], "inputs": columns, "targets": text}),
    ftx.tasks.temperature: ({"task": TASK}, task),
    ftx.tasks.with_features: ({"task": HEADED}, {**task, "head": [3, "heads"]}),
    ftx.tasks.freeze: ({"task": TASK, "trainable": "*"}, {**task, "trainable": [3, []]}),
    ftx.algorithms.agnostic: (
        {"task": TASK, "client_optimizer": SGD, "num_clients": 6, "mixture_learning_rate": 0.1},
        {**task, **server, "client_optimizer": optimizer, "num_clients": count, "mixture_learning_rate": rate},
    ),
    ftx.algorithms.apfl: (
        {"task": TASK, "client_optimizer": SGD, "personal_learning_rate": 0.1},
        {**averaged, **dict.fromkeys(["personal_learning_rate", "alpha_learning_rate"], rate), "alpha": ["half", -0.1, 1.1]},
    ),
    ftx.algorithms.ccvr: (
        {"task": HEADED, "features": MODEL, "optimizer": SGD},
        {
            **task,
            "features": [3],
            "optimizer": optimizer,
            **dict.fromkeys(["samples_per_class", "num_steps", "batch_size"], count),
            "head": [3, "heads"],
            **dict.fromkeys(["inputs", "labels"], text),
        },
    ),
    ftx.algorithms.fed_babu: (
        {"task": HEADED, "client_optimizer": SGD},
        {**own_part, "tuning_optimizer": optimizer, "tuning_steps": ["1", -1]},
    ),
    ftx.algorithms.fed_per: ({"task": HEADED, "client_optimizer": SGD}, own_part),
    ftx.algorithms.fed_rep: (
        {"task": HEADED, "client_optimizer": SGD},
        {**own_part, "personal_optimizer": optimizer, "personal_work": [8]},
    ),
    ftx.algorithms.fine_tune: ({"task": TASK, "client_optimizer": SGD}, {**task, "client_optimizer": optimizer}),
    ftx.algorithms.fit_temperature: ({"task": TASK}, task),
    ftx.algorithms.dp_sgd: (
        {"task": TASK, "client_optimizer": SGD, "clip_norm": 1.0, "noise_multiplier": 1.0, "denominator": 2.0},
        {**averaged, "clip_norm": rate, "noise_multiplier": rate, "denominator": [*rate, 0.0]},
    ),
    ftx.algorithms.ditto: (
        {"task": TASK, "client_optimizer": SGD, "personal_learning_rate": 0.1, "proximal_strength": 0.1},
        {**averaged, "personal_learning_rate": rate, "proximal_strength": rate},
    ),
    ftx.algorithms.fed_avg: (
        {"task": TASK, "client_optimizer": SGD},
        {**task, **server, "client_optimizer": optimizer, "aggregator": aggregator},
    ),
    ftx.algorithms.fed_avgm: (
        {"task": TASK, "client_optimizer": SGD},
        {**task, "client_optimizer": optimizer, "server_learning_rate": rate, "momentum": beta, "aggregator": aggregator},
    ),
    ftx.algorithms.fed_adagrad: ({"task": TASK, "client_optimizer": SGD, "server_learning_rate": 0.1}, adaptive),
    **dict.fromkeys(
        [ftx.algorithms.fed_adam, ftx.algorithms.fed_yogi, ftx.algorithms.fed_ams],
        ({"task": TASK, "client_optimizer": SGD, "server_learning_rate": 0.1}, {**adaptive, "beta2": beta}),
    ),
    ftx.algorithms.fed_prox: (
        {"task": TASK, "client_optimizer": SGD, "mu": 0.1},
        {**task, **server, "client_optimizer": optimizer, "mu": rate, "aggregator": aggregator},
    ),
    ftx.algorithms.fed_nova: (
        {"task": TASK, "client_optimizer": SGD},
        averaged,
    ),
    ftx.algorithms.fed_dyn: (
        {"task": TASK, "client_optimizer": SGD, "alpha": 0.1},
        {**task, "client_optimizer": optimizer, "alpha": [*rate, 0.0]},
    ),
    ftx.algorithms.fed_exp: (
        {"task": TASK, "client_optimizer": SGD},
        {**task, "client_optimizer": optimizer, "epsilon": rate},
    ),
    ftx.algorithms.fed_sam: (
        {"task": TASK, "client_optimizer": SGD, "rho": 0.1},
        {**task, **server, "client_optimizer": optimizer, "rho": rate, "aggregator": aggregator},
    ),
    ftx.algorithms.diloco: (
        {"task": TASK, "client_optimizer": SGD},
        {**task, "client_optimizer": optimizer, "server_learning_rate": rate, "momentum": beta, "aggregator": aggregator},
    ),
    ftx.algorithms.reptile: (
        {"task": TASK, "client_optimizer": SGD, "server_learning_rate": 0.1},
        {**task, "client_optimizer": optimizer, "server_learning_rate": rate, "aggregator": aggregator},
    ),
    ftx.algorithms.fed_ac: (
        {"task": TASK, "client_learning_rate": 0.1, "strong_convexity": 0.1, "local_steps": 1},
        {**task, "client_learning_rate": rate, "strong_convexity": [*rate, 11.0], "local_steps": count, "aggregator": aggregator},
    ),
    ftx.algorithms.adaptive_fed_prox: (
        {"task": TASK, "client_optimizer": SGD},
        {
            **task,
            **server,
            "client_optimizer": optimizer,
            "mu": rate,
            "aggregator": aggregator,
            "change": rate,
            "patience": count,
        },
    ),
    ftx.algorithms.moon: (
        {"task": TASK, "client_optimizer": SGD, "mu": 1.0},
        {**task, **server, "client_optimizer": optimizer, "mu": rate, "aggregator": aggregator, "temperature": [*rate, 0.0]},
    ),
    ftx.algorithms.fed_async: (
        {"task": TASK, "client_optimizer": SGD, "max_staleness": 2},
        {
            **task,
            "client_optimizer": optimizer,
            "max_staleness": ["4", -1],
            "server_learning_rate": [*rate, 0.0, 1.5],
            "staleness_weight": [0.5],
            "mu": rate,
            "aggregator": aggregator,
        },
    ),
    ftx.algorithms.delayed_nesterov: (
        {"task": TASK, "client_optimizer": SGD, "max_staleness": 2, "server_learning_rate": 0.7},
        {
            **task,
            "client_optimizer": optimizer,
            "max_staleness": ["4", -1],
            "server_learning_rate": [*rate, 0.0],
            "momentum": beta,
            "momentum_every": count,
            "momentum_between": [*rate, 0.5],
            "aggregator": aggregator,
        },
    ),
    ftx.algorithms.fed_buff: (
        {"task": TASK, "client_optimizer": SGD, "max_staleness": 2},
        {**averaged, "max_staleness": ["4", -1], "staleness_weight": [0.5]},
    ),
    ftx.algorithms.ifca: (
        {"task": TASK, "client_optimizer": SGD, "num_clusters": 2},
        {**task, **server, "client_optimizer": optimizer, "num_clusters": count},
    ),
    ftx.algorithms.mime: ({"task": TASK, "base_optimizer": SGD}, {**task, "base_optimizer": optimizer}),
    ftx.algorithms.mime_lite: ({"task": TASK, "base_optimizer": SGD}, {**task, "base_optimizer": optimizer}),
    ftx.algorithms.optax_server: ({"optimizer": SGD}, {"optimizer": optimizer}),
    ftx.algorithms.fed_ex_lora: (
        {"task": LOW_RANK, "client_optimizer": SGD},
        {"task": ["logistic", TASK], "client_optimizer": optimizer, "lora_alpha": rate},
    ),
    ftx.algorithms.het_lora: (
        {"task": LOW_RANK, "client_optimizer": SGD, "ranks": [1, 2]},
        {"task": ["logistic", TASK], "client_optimizer": optimizer, "ranks": [0.5, [0.5], [], [0]], "norm_weighted": ["no"]},
    ),
    ftx.algorithms.p_fed_me: (
        {"task": TASK, "client_optimizer": SGD, "personal_learning_rate": 0.1, "proximal_strength": 1.0},
        {**averaged, **dict.fromkeys(["personal_learning_rate", "proximal_strength"], rate), "personal_steps": count},
    ),
    **{
        method: ({"task": TASK, "client_optimizer": SGD, "personal_learning_rate": 0.1}, meta)
        for method in (ftx.algorithms.per_fed_avg, ftx.algorithms.per_fed_avg_fo)
    },
    ftx.algorithms.per_fed_avg_hf: (
        {"task": TASK, "client_optimizer": SGD, "personal_learning_rate": 0.1},
        {**meta, "delta": rate},
    ),
    ftx.algorithms.q_fed_avg: (
        {"task": TASK, "client_optimizer": SGD, "q": 1.0, "lipschitz": 1.0},
        {**task, "client_optimizer": optimizer, "q": rate, "lipschitz": rate},
    ),
    ftx.algorithms.scaffold: (
        {"task": TASK, "client_learning_rate": 0.1},
        {**task, **server, "client_learning_rate": rate, "aggregator": aggregator},
    ),
    ftx.aggregation.adaptive_clip: (
        {"quantile": 0.5},
        {
            "behind": [],
            "quantile": ["half", 1.5],
            "first_norm": [*rate, 0.0],
            "learning_rate": rate,
            "count_share": [*rate, 0.0, 1.0],
        },
    ),
    ftx.aggregation.aggregate: (
        {"aggregator": ftx.aggregation.mean(), "stacked_updates": UPDATES, "weights": [1.0, 1.0]},
        {
            "aggregator": ["mean"],
            "stacked_updates": [{"w": jnp.ones((3, 1))}],
            "weights": [["a", "b"], [1.0, -1.0]],
            "key": [3],
        },
    ),
    ftx.aggregation.bulyan: ({"num_byzantine": 1}, {"num_byzantine": ["1", -1]}),
    ftx.aggregation.centered_clip: ({"max_norm": 1.0}, {"max_norm": rate, "num_iterations": count}),
    ftx.aggregation.chain: ({}, {"stages": []}),
    ftx.aggregation.check_complete: ({"name": "aggregator", "aggregator": ftx.aggregation.mean()}, {"aggregator": [3]}),
    ftx.aggregation.check_max_clients: (
        {"aggregator": ftx.aggregation.integer_mean(1.0, 0.5, 4), "clients": 3},
        {"clients": [5]},
    ),
    ftx.aggregation.clip_layers: (
        {"max_norm": 1.0},
        {"max_norm": [*rate, 0.0, {}, {3: 1.0}, {"*": "fast"}, {"a": 1.0, "*": -1.0}]},
    ),
    ftx.aggregation.clip_norm: ({"max_norm": 1.0}, {"max_norm": rate}),
    ftx.aggregation.correlated_noise: (
        {"noise_multiplier": 1.0, "factorization": TREE},
        {"noise_multiplier": rate, "factorization": [3]},
    ),
    ftx.aggregation.drive: ({}, {}),
    ftx.aggregation.quantize: ({"bits": 4}, {"bits": ["4", 3, 4.0], "bucket_size": count}),
    ftx.aggregation.fixed_mean: ({"denominator": 1.0}, {"denominator": rate, "max_weight": [*rate, 0.0]}),
    ftx.aggregation.gaussian_noise: ({"noise_multiplier": 1.0}, {"noise_multiplier": rate}),
    ftx.aggregation.geometric_median: ({}, {"num_iterations": count, "smoothing": ["little", 0.0]}),
    ftx.aggregation.integer_mean: (
        {"max_value": 1.0, "resolution": 0.5, "max_clients": 4},
        {"max_value": rate, "resolution": rate, "max_clients": [*count, 2**31]},
    ),
    ftx.aggregation.krum: ({"num_byzantine": 1}, {"num_byzantine": ["1", -1]}),
    **dict.fromkeys(
        [ftx.aggregation.discrete_gaussian_mean, ftx.aggregation.skellam_mean],
        (
            {"noise_multiplier": 1.0, "num_clients": 2, "resolution": 0.1},
            {"noise_multiplier": rate, "num_clients": count, "resolution": rate},
        ),
    ),
    ftx.aggregation.rotate: ({}, {}),
    ftx.aggregation.rounded_norm: ({"norm": 1.0, "size": 4}, {"norm": rate, "size": count}),
    ftx.aggregation.local_noise: ({"noise_multiplier": 1.0}, {"noise_multiplier": rate}),
    ftx.aggregation.mean: ({}, {"weighted": ["yes"]}),
    ftx.aggregation.median: ({}, {}),
    ftx.aggregation.multi_krum: (
        {"num_byzantine": 1, "num_selected": 2},
        {"num_byzantine": ["1", -1], "num_selected": count},
    ),
    ftx.aggregation.nearest_neighbor_mixing: ({"num_byzantine": 1}, {"num_byzantine": ["1", -1]}),
    ftx.aggregation.nothing: ({}, {}),
    ftx.aggregation.parts: ({}, {"aggregators": []}),
    ftx.aggregation.population_mean: ({}, {}),
    ftx.aggregation.stage: ({"name": "halve()"}, {"name": text, "functions": []}),
    ftx.aggregation.top_k: ({"fraction": 0.5}, {"fraction": ["half", 0.0, 1.5], "error_feedback": ["yes"]}),
    ftx.aggregation.total: ({}, {}),
    ftx.aggregation.trimmed_mean: ({"fraction": 0.1}, {"fraction": ["half", -0.1, 0.5]}),
    ftx.aggregation.zero_norm: ({"max_norm": 1.0}, {"max_norm": rate}),
    ftx.attacks.alie: ({"algorithm": HONEST, "attackers": [0]}, {**attacked, "deviations": rate}),
    ftx.attacks.canaries: (
        {"algorithm": HONEST, "attackers": [0], "norm": 1.0},
        {**attacked, "norm": rate, "weight": rate, **seed},
    ),
    ftx.attacks.canary_direction: ({"like": UPDATES, "client": 0}, {"like": [{}], "client": ["0", -1], **seed}),
    ftx.attacks.gaussian: ({"algorithm": HONEST, "attackers": [0], "stddev": 1.0}, {**attacked, "stddev": rate}),
    ftx.attacks.inner_product: ({"algorithm": HONEST, "attackers": [0], "scale": 1.0}, {**attacked, "scale": rate}),
    ftx.attacks.invert_gradient: (
        {**READ, "observed": READ["params"], "guess": READ_BATCH, "optimizer": SGD, "steps": 1},
        {
            **task,
            "observed": [{"w": jnp.zeros((2, 3))}],
            "guess": [3],
            "optimizer": optimizer,
            "steps": count,
            "columns": ["x", [], ["z"], ["y"]],
        },
    ),
    ftx.attacks.membership_scores: (
        {**READ, "update": READ["params"], "batch": READ_BATCH},
        {**task, "update": [{"w": jnp.zeros((2, 3))}], "batch": [3]},
    ),
    ftx.attacks.recover_patches: (
        {"kernel": np.ones((4, 3)), "positions": np.ones((2, 3))},
        {"kernel": [np.ones(3)], "positions": [np.ones((2, 4))], "cutoff": rate},
    ),
    ftx.attacks.recover_tokens: (
        {"table": jnp.ones((3, 2)), "count": 1},
        {"table": [jnp.ones(3)], "count": ["1", 0, 4]},
    ),
    ftx.attacks.label_flip: (
        {"algorithm": HONEST, "attackers": [0], "num_classes": 3},
        {**attacked, "num_classes": ["3", 1], "labels": text},
    ),
    ftx.attacks.sign_flip: ({"algorithm": HONEST, "attackers": [0]}, {**attacked, "scale": rate}),
    ftx.clients.full_gradient: ({"task": TASK}, task),
    ftx.clients.local_evaluation: ({"task": TASK}, {**task, "personal_model": [3]}),
    ftx.clients.local_sgd: (
        {"task": TASK, "optimizer": SGD},
        {**task, "optimizer": optimizer, "change_gradient": [3], "gradient": [3]},
    ),
    ftx.clients.private_gradient: (
        {"clip_norm": 1.0, "noise_multiplier": 1.0, "denominator": 2.0},
        {"clip_norm": rate, "noise_multiplier": rate, "denominator": [*rate, 0.0]},
    ),
    ftx.clients.small_batches: ({"local": EXPERIMENT.local}, {"local": [8]}),
    ftx.clients.tuned_evaluation: (
        {"task": TASK, "optimizer": SGD, "steps": 1},
        {**task, "optimizer": optimizer, "steps": ["1", -1]},
    ),
    ftx.clients.start_loss: ({"task": TASK}, task),
    ftx.clients.whole_data: ({"local": EXPERIMENT.local}, {"local": [8]}),
    ftx.report.plot_clients: (
        {"data": DATA, "path": ELSEWHERE},
        {**labelled, "path": [3, "clients.xyz"], "title": text},
    ),
    ftx.report.plot_curves: (
        {"history": HISTORY, "path": ELSEWHERE},
        {"history": [3, [{"round": 1}]], "path": [3], "title": text},
    ),
    ftx.report.plot_heatmap: (
        {"table": COLUMNS, "path": ELSEWHERE, "x": "client_lr", "y": "mu", "metric": "test/loss"},
        {"table": [3], "path": [3, "heat.xyz"], **dict.fromkeys(["x", "y", "metric"], [3, "none"]), "title": text},
    ),
}

ANY_VALUE = {
    "frozen": "of attacks that read updates: whatever the task takes",
    "params": "whatever the model takes",
    "state": "whatever the aggregator's init or an earlier call gave",
    "name": "of check_complete: only shown",
    "aggregator": "of check_max_clients: the executor's",
}
"""Arguments without rows where the table gives none, and why."""


def public_functions() -> dict[str, object]:
    """Functions and records that users call, by name; not what runs inside compiled code, nor plain tuples of functions."""
    inside = {"add_metrics", "batch_gradient", "batch_loss", "batch_metrics", "client_weight", "masked_mean", "no_metrics"}
    found = {}
    for module in (
        ftx,
        ftx.data,
        ftx.devices,
        ftx.processes,
        ftx.models,
        ftx.tasks,
        ftx.algorithms,
        ftx.aggregation,
        ftx.clients,
        ftx.attacks,
        ftx.privacy,
        ftx.report,
    ):
        for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("fedjax_tx") and callable(value)
            if ours and not hasattr(value, "_fields") and name not in inside:
                found[name_of(value)] = value
    return found


def name_of(function) -> str:
    """Its part of the library and its name: ``data.describe`` is not ``models.describe``."""
    return f"{function.__module__.split('.')[1]}.{function.__name__}"


def arguments_of(function) -> list[str]:
    """Names of a function's arguments."""
    return list(inspect.signature(function).parameters)


def main() -> None:
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    told = []
    for function, (given, wrong) in TABLE.items():
        for argument, values in wrong.items():
            for value in values:
                before, kind, message = len(compiled), "", ""
                try:
                    function(**{**given, argument: value})
                except Exception as error:  # what it is, the test judges
                    kind, message = type(error).__name__, str(error)
                told.append([name_of(function), argument, repr(value), kind, message, len(compiled) - before])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
