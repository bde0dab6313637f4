"""Which parameters clients train; they only read the others."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import jax

from fedjax_tx import check, tree
from fedjax_tx.types import Task

Paths = frozenset[tuple[str, ...]]


def freeze(task: Task, trainable: str | Sequence[str]) -> Task:
    """Returns the task in which only some parameters are trained; clients read the others and never send them.

    The server holds the frozen part once, and all clients of a round share it. Give pretrained parameters to a run as
    ``init_params``: the whole tree of ``task.init``, or the pair (trainable, frozen) of this task's.

    Args:
      task: its parameters nested dicts; what it freezes already stays frozen. trainable: patterns of paths such as ``"*lora*"``
        or ``["head/*", "final_norm/*"]``; names are joined by "/", and "*" stands for any characters, "/" too.

    Errors: ``ValueError`` if a pattern matches no parameter that the task trains (some are named).

    Example:
      >>> from fedjax_tx.models import decoder
      >>> from fedjax_tx.tasks import next_token
      >>> adapted = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4, lora_rank=2)
      >>> trainable, frozen = freeze(next_token(adapted), "*lora*").init(jax.random.key(0))
      >>> sorted(trainable["layers"]["mlp_in"]), sorted(frozen["layers"]["mlp_in"])
      (['lora'], ['bias', 'kernel'])
    """
    return train_only(task, match_paths("trainable", task, trainable))


def match_paths(name: str, task: Task, patterns: str | Sequence[str]) -> Paths:
    """Returns the paths of the parameters that a task trains and that match one of the patterns of the argument ``name``."""
    check.instance("task", task, Task, "a Task")
    patterns = _check_patterns(name, patterns)
    paths = trained_paths(task)
    joined = {"/".join(path): path for path in sorted(paths)}
    for pattern in patterns:
        if not any(fnmatchcase(one, pattern) for one in joined):
            some = ", ".join(list(joined)[:: -(-len(joined) // 8)])
            check.fail_value(name, f"to match parameters, such as {some}", pattern)
    return frozenset(path for one, path in joined.items() if any(fnmatchcase(one, pattern) for pattern in patterns))


def trained_paths(task: Task) -> Paths:
    """Returns the paths of the parameters that a task trains."""
    params, frozen = jax.eval_shape(task.init, jax.random.key(0))
    check.mapping("the task's parameters", tree.join(params, frozen))  # a pair where a path is trained and frozen
    return frozenset(tree.paths(params))


def train_only(task: Task, paths: Paths) -> Task:
    """Returns the task in which only the parameters at ``paths`` are trained, of those that it trains."""
    trained = trained_paths(task)
    _, before = jax.eval_shape(task.init, jax.random.key(0))

    def init(key):
        params, frozen = task.init(key)
        chosen, rest = tree.partition(params, paths.__contains__)
        return chosen, tree.join(rest, frozen)

    def apply(trainable, frozen, batch, key):
        whole = tree.join(trainable, frozen)
        if not jax.tree.leaves(before):
            return task.apply(whole, before, batch, key)
        return task.apply(*tree.partition(whole, trained.__contains__), batch, key)

    return task._replace(init=init, apply=apply)


def _check_patterns(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else given
    check.instance(name, patterns, (list, tuple), "a pattern of paths, or a list of them")
    for pattern in patterns:
        check.instance(f"a pattern of {name}", pattern, str, "a string")
    if not patterns:
        check.fail_value(name, "to have at least one pattern", given)
    return tuple(patterns)
