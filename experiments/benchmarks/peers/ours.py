"""fedjax_tx as its README tells: a device a core, lanes chosen by measuring.

Work A is the library's decoder, work B its convolutional network; their parameters are renamed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from turns import read_arguments, turns
from works import CLASSES, LEARNING_RATE, Work

import fedjax_tx as ftx

# names in the decoder's stacked layers, and in works.py after l0_, l1_ ...
LAYER_NAMES: dict[tuple[str, ...], str] = {
    ("attention_norm", "scale"): "ln1_g",
    ("attention_norm", "bias"): "ln1_b",
    ("attention", "qkv", "kernel"): "wqkv",
    ("attention", "qkv", "bias"): "bqkv",
    ("attention", "out", "kernel"): "wo",
    ("attention", "out", "bias"): "bo",
    ("mlp_norm", "scale"): "ln2_g",
    ("mlp_norm", "bias"): "ln2_b",
    ("mlp_in", "kernel"): "w1",
    ("mlp_in", "bias"): "b1",
    ("mlp_out", "kernel"): "w2",
    ("mlp_out", "bias"): "b2",
}
OTHER_NAMES: dict[tuple[str, ...], str] = {
    ("token_embedding", "embedding"): "wte",
    ("position_embedding", "embedding"): "wpe",
    ("final_norm", "scale"): "lnf_g",
    ("final_norm", "bias"): "lnf_b",
    ("head", "kernel"): "wout",
}
# ``ftx.models.cnn``'s layers, and in works.py before _w and _b
CNN_NAMES = {"convolution_0": "c1", "convolution_1": "c2", "hidden_0": "d1", "head": "d2"}


def make_model(work: Work, dtype=jnp.float32) -> ftx.Model:
    """The library's model of a work; ``dtype`` is that of its arithmetic."""
    if work.name == "B":
        channels, hidden = [work.params[name].size for name in ("c1_b", "c2_b")], [work.params["d1_b"].size]
        return ftx.models.cnn((28, 28, 1), CLASSES, channels, hidden_sizes=hidden, dtype=dtype)
    (length, width), layers = work.params["wpe"].shape, sum(name.endswith("_wqkv") for name in work.params)
    sizes = {"num_layers": layers, "num_heads": width // 32, "width": width, "max_length": length}
    return ftx.models.decoder(len(work.params["wte"]), **sizes, dtype=dtype)


def make_task(work: Work, dtype=jnp.float32) -> ftx.Task:
    """What is learned in a work."""
    make = ftx.tasks.classification if work.name == "B" else ftx.tasks.next_token
    return make(make_model(work, dtype))


def to_decoder(params: dict) -> dict:
    """Renames the parameters of work A to those of ``ftx.models.decoder``."""
    layers = sum(name.endswith("_wqkv") for name in params)
    tree: dict = {}
    for path, name in OTHER_NAMES.items():
        put(tree, path, params[name])
    for path, name in LAYER_NAMES.items():
        put(tree, ("layers", *path), np.stack([params[f"l{layer}_{name}"] for layer in range(layers)]))
    return tree


def from_decoder(tree: dict) -> dict:
    """The way back."""
    params = {name: get(tree, path) for path, name in OTHER_NAMES.items()}
    for path, name in LAYER_NAMES.items():
        params |= {f"l{layer}_{name}": value for layer, value in enumerate(get(tree, ("layers", *path)))}
    return params


def to_params(work: Work) -> dict:
    """A work's initial parameters as our model has them."""
    if work.name == "A":
        return to_decoder(work.params)
    return {layer: {"kernel": work.params[f"{name}_w"], "bias": work.params[f"{name}_b"]} for layer, name in CNN_NAMES.items()}


def from_params(work: Work, params: dict) -> dict:
    """Parameters of our model by the names of works.py."""
    if work.name == "A":
        return from_decoder(params)
    parts = {"kernel": "w", "bias": "b"}
    return {f"{name}_{parts[key]}": leaf for layer, name in CNN_NAMES.items() for key, leaf in params[layer].items()}


def put(tree: dict, path: tuple[str, ...], value) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def get(tree: dict, path: tuple[str, ...]):
    return functools.reduce(lambda tree, name: tree[name], path, tree)


def make_experiment(work: Work, dtype=jnp.float32) -> ftx.Experiment:
    """Federated averaging on a work's cohorts."""
    task = make_task(work, dtype)
    return ftx.Experiment(
        lambda hyper: ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(hyper["client_lr"])),
        hyper={"client_lr": LEARNING_RATE},
        train=ftx.data.FederatedDataset.from_offsets(work.columns, work.offsets),
        cohorts=ftx.data.fixed_cohorts(work.cohorts),
        local=ftx.data.LocalWork(batch_size=work.batch_size, shuffle=False),
    )


def main() -> None:
    ftx.devices.use_all_cores()
    work = read_arguments()
    round_fn = ftx.make_round(make_experiment(work), ftx.Execution(num_lanes="auto", mesh="auto"))
    state = round_fn.init(init_params=to_params(work))

    def read_params():
        return from_params(work, jax.device_get(state.device.server.params))

    for _ in turns(("fedjax-tx", "jax", "jaxlib"), read_params, lanes=round_fn.num_lanes):
        state, _ = round_fn(state)
        jax.block_until_ready(state.device)


if __name__ == "__main__":
    main()
