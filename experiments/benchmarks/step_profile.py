"""Where does a training step's time go? Work A's step against bare matrix products, and with its parts exchanged.

Question: how near is one step of local SGD to the time of its matrix products alone, and would gradients written by hand help?
Work A's step: decoder of 2 layers, width 128, 4 heads, 64 tokens, 96 symbols (429,568 parameters), batch 8, plain SGD.

The floor makes the step's matrix products, forward and backward, and its update of the parameters, and nothing in between: no
norm, softmax, activation, loss or lookup. The other rows are the library's step with parts exchanged for ``written_gradients``,
for optax's cross-entropy, for JAX's attention, also with a mask that is added; and, to show what is left to gain, without
activation or softmax.
All are run in turn, a few steps each; ratios are within a turn. At L lanes the time is that of one lane's step: of all over L.
It is processor time, which is wall-clock on one core that nothing else uses, and is little disturbed by what else runs.

Command: taskset -c 0 python experiments/benchmarks/step_profile.py
Time: about 8 minutes on one CPU core, most of it compiling. Score: the table it prints.
"""

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
import written_gradients
from flax import nnx

import fedjax_tx as ftx
from fedjax_tx.models import attention
from fedjax_tx.models.product import product

LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Settings:
    """What is measured.

    lanes: how many clients step at once, each with its own parameters; 0 is one client without a lane axis. repeats: turns; the
    median is shown, and the lowest and highest. steps: in a row, a turn. out: a JSON file for the figures.
    """

    lanes: tuple[int, ...] = (0, 4)
    repeats: int = 11
    steps: int = 4
    smoke: bool = False
    out: Path | None = None
    batch_size: int = 8
    model: dict[str, Any] = field(
        default_factory=lambda: {"vocab_size": 96, "num_layers": 2, "num_heads": 4, "width": 128, "max_length": 64}
    )


# ---- the library's step, whole or with parts exchanged


def make_loss(cross_entropy: Callable) -> Callable:
    """Returns the loss of ``ftx.tasks.next_token`` by another cross-entropy."""

    def loss(outputs, batch):
        value = cross_entropy(outputs["logits"], batch["tokens"][:, 1:]).mean(1)
        return value, jnp.ones_like(value)

    return loss


def written_norm(layer, x):
    """Flax's layer norm, its gradient written out."""
    return written_gradients.layer_norm(x, layer.scale[...], layer.bias[...])


def written_lookup(layer, tokens):
    """Flax's embedding, its gradient a matrix product."""
    return written_gradients.look_up(layer.embedding[...], tokens)


def added_mask(attend: Callable) -> Callable:
    """Returns causal attention whose mask is a bias, by ``attend``'s own options."""

    def attend_masked(query, key, value, *, implementation, **options):
        time = query.shape[1]
        bias = jnp.where(jnp.tril(jnp.ones((time, time), bool)), 0.0, -1e30)
        return attend(query, key, value, bias=bias[None, None], implementation=implementation)

    return attend_masked


def no_softmax(query, key, value, **options):
    """The two products of attention, with nothing between them."""
    return jnp.einsum("bhts,bshd->bthd", jnp.einsum("bthd,bshd->bhts", query, key), value)


NORM = (nnx.LayerNorm, "__call__", written_norm)
LOOKUP = (nnx.Embed, "__call__", written_lookup)
WRITTEN_LOSS = make_loss(written_gradients.cross_entropy)
OPTAX_LOSS = make_loss(optax.softmax_cross_entropy_with_integer_labels)
# By row: attributes to exchange, and the loss in place of the task's.
ROWS: dict[str, tuple[list, Callable | None]] = {
    "the library": ([], None),
    "written layer norm": ([NORM], None),
    "written cross-entropy": ([], WRITTEN_LOSS),
    "optax's cross-entropy": ([], OPTAX_LOSS),
    "embedding by a product": ([LOOKUP], None),
    "all three written": ([NORM, LOOKUP], WRITTEN_LOSS),
    "written GELU": ([(jax.nn, "gelu", lambda x, approximate: written_gradients.gelu(x))], None),
    "JAX's attention": ([(attention, "attend", jax.nn.dot_product_attention)], None),
    "added mask": ([(attention, "attend", added_mask(jax.nn.dot_product_attention))], None),
    "no activation": ([(jax.nn, "gelu", lambda x, approximate: x)], None),
    "no softmax": ([(attention, "attend", no_softmax)], None),
}


@contextmanager
def exchanged(parts: list) -> Iterator[None]:
    """While it lasts, attributes are others: (owner, name, value)."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(mock.patch.object(*part))
        yield


def make_step(settings: Settings, other_loss: Callable | None) -> Callable:
    """Returns ``step(params, tokens[batch, time + 1]) -> params``, one step of SGD on the library's task, or by another loss."""
    task = ftx.tasks.next_token(ftx.models.decoder(**settings.model))
    task = task._replace(loss=other_loss) if other_loss else task

    def loss(params, tokens):
        return ftx.clients.batch_loss(task, params, (), {"tokens": tokens}, jnp.ones(len(tokens), bool), None)[0]

    return lambda params, tokens: descend(params, jax.grad(loss)(params, tokens))


def descend(params, gradient):
    return jax.tree.map(lambda leaf, slope: leaf - LEARNING_RATE * slope, params, gradient)


# ---- the floor


def make_floor(settings: Settings) -> Callable:
    """Returns ``step(params, inputs[batch, time, width])``: the products of a step and their gradients, and the update."""
    num_heads = settings.model["num_heads"]

    def products(params, x):
        for index in range(settings.model["num_layers"]):
            layer = jax.tree.map(lambda leaf: leaf[index], params["layers"])  # noqa: B023
            heads = [part.reshape(*x.shape[:2], num_heads, -1) for part in jnp.split(product(x, layer["qkv"]), 3, axis=-1)]
            x = product(no_softmax(*heads).reshape(x.shape), layer["out"])
            x = product(product(x, layer["mlp_in"]), layer["mlp_out"])
        return product(x, params["head"])

    def step(params, x):
        # By the inputs too: the embeddings' gradient needs it.
        outputs, pull_back = jax.vjp(products, params, x)
        gradient, slope = pull_back(1e-6 * outputs)
        return descend(params, gradient), slope

    return step


def floor_params(settings: Settings) -> dict:
    """Random matrices of the model's shapes, small enough that products of products stay near 1."""
    model, generator = settings.model, np.random.default_rng(0)
    width, layers = model["width"], model["num_layers"]
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "mlp_in": (width, 4 * width), "mlp_out": (4 * width, width)}

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape) / np.sqrt(shape[-2]), jnp.float32)

    return {"layers": {name: draw(layers, *shape) for name, shape in shapes.items()}, "head": draw(width, model["vocab_size"])}


# ---- measuring


def compiled(step: Callable, params, inputs, lanes: int) -> Callable[[], Any]:
    """Returns a call that makes the steps of all lanes in a row; ``inputs[step, lane, ...]``, without a lane axis for 0 lanes."""
    if lanes:
        params = jax.tree.map(lambda leaf: jnp.stack([leaf] * lanes), params)
        step = jax.vmap(step)
    run = jax.jit(lambda params, inputs: jax.lax.scan(step, params, inputs)).lower(params, inputs).compile()
    return lambda: jax.block_until_ready(run(params, inputs))


def make_runs(settings: Settings, lanes: int) -> dict[str, Callable[[], Any]]:
    """Returns a compiled call for each row of the table."""
    model, generator = settings.model, np.random.default_rng(1)
    shape = (settings.steps, *([lanes] if lanes else []), settings.batch_size)
    x = jnp.asarray(0.1 * generator.standard_normal((*shape, model["max_length"], model["width"])), jnp.float32)
    tokens = jnp.asarray(generator.integers(0, model["vocab_size"], (*shape, model["max_length"] + 1)), jnp.int32)
    runs = {"bare products": compiled(make_floor(settings), floor_params(settings), x, lanes)}
    params = jax.jit(ftx.models.decoder(**model).init)(jax.random.key(0))
    for name, (parts, other_loss) in ROWS.items():
        with exchanged(parts):
            step = make_step(settings, other_loss)
            runs[name] = compiled(lambda params, tokens: (step(params, tokens), None), params, tokens, lanes)  # noqa: B023
    return runs


def measure(settings: Settings, lanes: int) -> dict[str, list[float]]:
    """Returns, by row and turn, the milliseconds of one step of one lane."""
    runs = make_runs(settings, lanes)
    milliseconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, settings.repeats):  # turn -1 warms up
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn >= 0:
                milliseconds[name].append(1e3 * (time.process_time() - began) / settings.steps / max(1, lanes))
    return milliseconds


def main(settings: Settings) -> dict:
    """Measures and prints the table."""
    if settings.smoke:
        small = {"vocab_size": 96, "num_layers": 1, "num_heads": 2, "width": 16, "max_length": 16}
        settings = Settings((2,), 2, 2, True, settings.out, 2, small)
    figures = {str(lanes): measure(settings, lanes) for lanes in settings.lanes}
    report(settings, figures)
    if settings.out is not None:
        settings.out.write_text(json.dumps(figures, indent=2))
    return figures


def report(settings: Settings, figures: dict) -> None:
    """Prints a Markdown table: of each row the median, its range, and the ratio to the library's step within a turn."""
    print(f"\n{platform.machine()}, {jax.device_count()} {jax.devices()[0].platform} device(s), {settings.repeats} turns;")
    print("milliseconds of one step of one lane (min–max), and the ratio to the library's step\n")
    print("| step | " + " | ".join("no lanes" if lanes == "0" else f"{lanes} lanes" for lanes in figures) + " |")
    print("|---" * (1 + len(figures)) + "|")
    for name in ("bare products", *ROWS):
        cells = []
        for rows in figures.values():
            times, ratio = np.array(rows[name]), np.median(np.array(rows[name]) / np.array(rows["the library"]))
            cells.append(f"{np.median(times):.1f} ({times.min():.1f}–{times.max():.1f}), {ratio:.2f} ×")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
