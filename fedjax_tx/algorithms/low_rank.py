"""What methods for low-rank adapters share: where the adapters of a task are."""

import functools

import jax

from fedjax_tx import check, tree
from fedjax_tx.types import PyTree, Task

Path = tuple[str, ...]


def low_rank_layers(task: Task) -> tuple[Path, ...]:
    """Returns the paths of the layers of which a task trains ``lora_a`` and ``lora_b`` and freezes the kernel.

    Errors: ``ValueError`` if there is none, or naming a layer of which it trains something else.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> task = ftx.tasks.freeze(ftx.tasks.next_token(ftx.models.lora(model, 2, where="*mlp*")), "*lora*")
      >>> low_rank_layers(task)
      (('layers', 'mlp_in'), ('layers', 'mlp_out'))
    """
    check.instance("task", task, Task, "a Task")
    trained, frozen = (tree.paths(part) if isinstance(part, dict) else set() for part in _shapes(task))
    layers = tuple(sorted({path[:-2] for path in trained | frozen if path[-2:-1] == ("lora",)}))
    for layer in layers:
        if {(*layer, "lora", "lora_a"), (*layer, "lora", "lora_b")} - trained or (*layer, "kernel") not in frozen:
            expected = "to train lora_a and lora_b and to freeze the kernel beside them, as freeze(task, '*lora*') does"
            check.fail_value("the task", expected, "/".join(layer))
    if not layers:
        check.fail_value("the task", "to train adapters, as freeze(task, '*lora*') where its model is of ftx.models.lora", task)
    return layers


def branch(params: PyTree, path: Path) -> PyTree:
    """Returns what is at a path of nested dicts.

    Example:
      >>> branch({"a": {"x": 1}}, ("a", "x"))
      1
    """
    return functools.reduce(lambda part, name: part[name], path, params)


def _shapes(task: Task) -> tuple[PyTree, PyTree]:
    return jax.eval_shape(task.init, jax.random.key(0))
