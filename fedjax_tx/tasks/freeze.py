"""Which parameters clients train; they only read the others."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import jax

from fedjax_tx import check, tree
from fedjax_tx.types import Task


def freeze(task: Task, trainable: str | Sequence[str]) -> Task:
    """Returns the task in which only some parameters are trained; clients read the others and never send them.

    The server holds the frozen part once, and all clients of a round share it. Give pretrained parameters to a run as
    ``init_params``: the whole tree of ``task.init``, or the pair (trainable, frozen) of this task's.

    Args:
      task: one that trains everything, its parameters nested dicts. trainable: patterns of paths such as ``"*lora*"`` or
        ``["head/*", "final_norm/*"]``; names are joined by "/", and "*" stands for any characters, "/" too.

    Errors: ``ValueError`` if a pattern matches no parameter (some are named), or if the task freezes some already.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> from fedjax_tx.tasks import next_token
      >>> adapted = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4, lora_rank=2)
      >>> trainable, frozen = freeze(next_token(adapted), "*lora*").init(jax.random.key(0))
      >>> sorted(trainable["layers"]["mlp_in"]), sorted(frozen["layers"]["mlp_in"])
      (['lora'], ['bias', 'kernel'])
    """
    check.instance("task", task, Task, "a Task")
    patterns = _check_patterns(trainable)
    params, nothing = jax.eval_shape(task.init, jax.random.key(0))
    check.mapping("the task's parameters", params)
    if jax.tree.leaves(nothing):
        raise ValueError("expected a task that freezes nothing yet, got one with frozen parameters")
    paths = sorted("/".join(path) for path in tree.paths(params))
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            some = ", ".join(paths[:: -(-len(paths) // 8)])
            check.fail_value("trainable", f"to match parameters, such as {some}", pattern)

    def is_trained(path: tuple[str, ...]) -> bool:
        return any(fnmatchcase("/".join(path), pattern) for pattern in patterns)

    def init(key):
        params, _ = task.init(key)
        return tree.partition(params, is_trained)

    def apply(trainable, frozen, batch, key):
        return task.apply(tree.join(trainable, frozen), nothing, batch, key)

    return task._replace(init=init, apply=apply)


def _check_patterns(trainable: str | Sequence[str]) -> tuple[str, ...]:
    patterns = (trainable,) if isinstance(trainable, str) else trainable
    check.instance("trainable", patterns, (list, tuple), "a pattern of paths, or a list of them")
    for pattern in patterns:
        check.instance("a pattern of trainable", pattern, str, "a string")
    if not patterns:
        check.fail_value("trainable", "to have at least one pattern", trainable)
    return tuple(patterns)
