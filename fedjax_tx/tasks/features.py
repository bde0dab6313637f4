"""A task whose outputs hold, beside the logits, what enters the model's head: what contrastive methods compare."""

import jax

from fedjax_tx import check, tree
from fedjax_tx.types import PyTree, Task


def with_features(task: Task, head: str = "head") -> Task:
    """Returns the task whose ``apply`` gives ``features`` [batch, ..., width] beside the outputs it had.

    They are the inputs of the head, a dense layer: those of ``ftx.models.features``. The model runs once for both.

    Args:
      task: of one of ``ftx.models``; its parameters may be frozen in part. head: the layer's path, names joined by "/".

    Errors: ``ValueError`` if the parameters have no such layer (a decoder with tied embeddings has no head), or, in use, if the
      model does something else with the layer's output than to return it.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_tx.models import mlp
      >>> from fedjax_tx.tasks import classification
      >>> task = with_features(classification(mlp(4, 3, (8,))))
      >>> params, frozen = task.init(jax.random.key(0))
      >>> outputs = task.apply(params, frozen, {"x": jnp.zeros((2, 4))}, None)
      >>> outputs["logits"].shape, outputs["features"].shape
      ((2, 3), (2, 8))
    """
    check.instance("task", task, Task, "a Task")
    check.instance("head", head, str, "a string")
    path = tuple(head.split("/"))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    kernels = [layer["kernel"] for part in shapes if (layer := _find(part, path)) is not None and "kernel" in layer]
    if not kernels:
        check.fail_value("head", "to be the path of a dense layer among the task's parameters", head)
    width, size = kernels[0].shape

    def apply(trainable, frozen, batch, key):
        outputs = task.apply(*_opened(trainable, frozen, path), batch, key)
        both = outputs["logits"]
        if both.shape[-1] != size + width:
            check.fail_value("the model", f"to return the {size} outputs of {head!r}, and its {width} inputs", both.shape)
        return {**outputs, "logits": both[..., :size], "features": both[..., size:]}

    return task._replace(apply=apply)


def _find(branch: PyTree, path: tuple[str, ...]) -> dict | None:
    """The dict at a path of nested dicts, None where there is none."""
    for name in path:
        if not isinstance(branch, dict) or name not in branch:
            return None
        branch = branch[name]
    return branch if isinstance(branch, dict) else None


def _opened(trainable: PyTree, frozen: PyTree, path: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """The parameters with a mark at the head by which the models' dense layer hands on what enters it, too."""

    def mark(layer):
        return {**layer, "both": {}}

    if _find(trainable, path) is not None:
        return tree.change(trainable, path, mark), frozen
    return trainable, tree.change(frozen, path, mark)
