"""What can be read off an update: words, examples and who is in it.

The attacker is a server, or whoever else sees an update or an aggregate of several. It follows the protocol, and knows the
parameters that clients started from. An update is server - client, so after one local step it points along the gradient of the
client's examples, however long it is. Nothing here asks for its length: a client's learning rate and clipping do not matter.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from fedjax_tx import check, tree
from fedjax_tx.clients import batch_gradient
from fedjax_tx.types import Batch, PyTree, Task


def recover_tokens(table: Float[Array, "vocab width"], count: int) -> Int[Array, " count"]:
    """Returns the tokens that a client most likely trained on: those of the longest rows (arXiv 1805.04049).

    A token that a client does not read leaves its row of the embedding as it was.

    Args:
      table: what an update says of a token embedding, such as ``delta["token_embedding"]["embedding"]``. count: 1 to vocab.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.

    Example:
      >>> recover_tokens(jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), count=2).tolist()
      [1, 2]
    """
    if jnp.ndim(table) != 2:
        check.fail_value("table", "to have shape [vocab, width]", jnp.shape(table))
    check.integer("count", count, low=1, high=table.shape[0])
    return jax.lax.top_k(jnp.linalg.norm(table.astype(jnp.float32), axis=1), count)[1]


def recover_patches(kernel: ArrayLike, positions: ArrayLike, *, cutoff: float = 1e-4) -> Float[np.ndarray, "patches entries"]:
    """Returns the patches of the one image that a Vision Transformer made its step on, by linear algebra.

    Patch p enters as x_p W + e_p, so with the gradient d_p by what enters, that of W is sum_p x_p d_p^T and that of the position
    embedding e_p is d_p itself. Where a network is wider than it has patches, the x_p are what solves that (by least squares;
    cf. arXiv 2112.14087, which reads the position embedding's gradient too). Of several images they are a mixture.

    Args:
      kernel: [entries, width], what an update says of W, such as ``delta["patch_embedding"]["kernel"]``.
      positions: [patches, width], of the patches' positions; behind a class token, all rows but the first of
        ``delta["position_embedding"]["embedding"]``.
      cutoff: > 0; directions of ``positions`` whose singular value is less than so much of the largest are left out.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.

    Example:
      >>> patches, slopes = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
      >>> recover_patches(patches.T @ slopes, slopes).round(3).tolist()
      [[1.0, 2.0], [3.0, 4.0]]
    """
    entering, slopes = np.asarray(kernel, np.float64), np.asarray(positions, np.float64)
    for name, array in {"kernel": entering, "positions": slopes}.items():
        if array.ndim != 2 or array.shape[1] != entering.shape[-1]:
            check.fail_value(name, "to have two axes, the last of the network's width", array.shape)
    check.number("cutoff", cutoff, above=0)
    return np.linalg.lstsq(slopes.T, entering.T, rcond=cutoff)[0]


def membership_scores(task: Task, params: PyTree, frozen: PyTree, update: PyTree, batch: Batch) -> Float[Array, " example"]:
    """Returns how far an update goes along the gradient of each example, larger for examples that it was trained on.

    <update, g> / ||g||, g the gradient of the example's loss at ``params`` (the passive attack of arXiv 1812.00910, with
    a product in place of its network).

    Args:
      task: what was learned. params, frozen: what clients started from. update: of the structure of ``params``.
      batch: columns of the examples in question.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type, or ``update`` is not like ``params``.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.regression(ftx.Model(lambda key: jnp.zeros(2), lambda params, x, key=None: x @ params))
      >>> batch = {"x": jnp.eye(2), "y": jnp.ones(2)}
      >>> membership_scores(task, jnp.zeros(2), (), jnp.array([-0.5, 0.0]), batch).tolist()
      [0.5, 0.0]
    """
    check.instance("task", task, Task, "a Task")
    check.same_tree("update", update, params)
    check.mapping("batch", batch)

    def score(row):
        _, slope = batch_gradient(task, params, frozen, jax.tree.map(lambda leaf: leaf[None], row), jnp.ones(1, bool), None)
        return _product(update, slope) / jnp.maximum(tree.norm(slope), 1e-30)

    return jax.lax.map(score, dict(batch))


def invert_gradient(
    task: Task,
    params: PyTree,
    frozen: PyTree,
    observed: PyTree,
    guess: Batch,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    columns: Sequence[str] = ("x",),
) -> tuple[dict[str, Array], Float[Array, " steps"]]:
    """Looks for examples whose gradient points where an update does: deep leakage from gradients (arXiv 1906.08935).

    min over the examples of the mean over leaves of 1 - cos(gradient(examples), observed): the cosine of arXiv 2003.14053 and not
    the first paper's squared distance, as it asks for no length; and leaf by leaf, since those with small gradients (near the
    inputs, as a rule) tell most. It works where the loss can be differentiated twice: with GELU, not with ReLU.

    Args:
      task: what was learned. params, frozen: what clients started from. observed: an update, of the structure of ``params``.
      guess: a batch to start from, as many examples as are sought; not of zeros, where the gradient of the first layer is 0.
      columns: those of it that are sought, of floating-point numbers; the attacker knows the others.
      optimizer: of the columns, such as ``optax.adam(0.1)``. steps: >= 1.

    Returns: (batch, distance at each step). Fit for ``jit`` and ``vmap``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range, or ``observed`` is not like ``params``.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.regression(ftx.Model(lambda key: jnp.zeros(2), lambda params, x, key=None: x @ params))
      >>> guess = {"x": jnp.array([[1.0, 0.0]]), "y": jnp.ones(1)}
      >>> found, distance = invert_gradient(task, jnp.zeros(2), (), jnp.array([-3.0, -3.0]), guess, optax.sgd(0.5), 50)
      >>> bool(abs(found["x"][0, 0] - found["x"][0, 1]) < 0.01)
      True
    """
    check.instance("task", task, Task, "a Task")
    check.same_tree("observed", observed, params)
    check.instance("optimizer", optimizer, optax.GradientTransformation, "an optax optimiser")
    check.integer("steps", steps, low=1)
    sought = _sought(guess, columns)
    observed = jax.tree.map(jnp.asarray, observed)
    mask = jnp.ones(jax.tree.leaves(guess)[0].shape[0], bool)

    def distance(sought):
        _, slope = batch_gradient(task, params, frozen, {**guess, **sought}, mask, None)
        return jnp.mean(jnp.stack(jax.tree.leaves(jax.tree.map(_one_less_cosine, slope, observed))))

    def step(carry, _):
        sought, state = carry
        value, slope = jax.value_and_grad(distance)(sought)
        updates, state = optimizer.update(slope, state, sought)
        return (optax.apply_updates(sought, updates), state), value

    (sought, _), distances = jax.lax.scan(step, (sought, optimizer.init(sought)), None, steps)
    return {**guess, **sought}, distances


def _one_less_cosine(left: Array, right: Array) -> Float[Array, ""]:
    """1 - the cosine of two leaves, with a derivative at 0 too."""
    squares = jnp.vdot(left, left) * jnp.vdot(right, right)
    return 1 - jnp.vdot(left, right) / jnp.sqrt(squares + 1e-30)


def _product(left: PyTree, right: PyTree) -> Float[Array, ""]:
    """The inner product over all leaves, in float32."""
    leaves = jax.tree.map(lambda a, b: jnp.vdot(a.astype(jnp.float32), b.astype(jnp.float32)), left, right)
    return sum(jax.tree.leaves(leaves), jnp.float32(0))


def _sought(guess: Batch, columns: Sequence[str]) -> dict[str, Array]:
    check.mapping("guess", guess)
    if isinstance(columns, str) or not columns:
        check.fail_type("columns", "names of columns", columns)
    for name in columns:
        if name not in guess:
            check.fail_value("columns", f"to be among {sorted(guess)}", name)
        if not jnp.issubdtype(jnp.result_type(guess[name]), jnp.floating):
            check.fail_type(f"guess[{name!r}] of columns", "floating-point numbers", jnp.result_type(guess[name]))
    return {name: jnp.asarray(guess[name]) for name in columns}
