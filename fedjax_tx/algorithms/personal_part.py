"""Models of which each client keeps some parameters as its own, told by their paths, and shares the rest."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from fedjax_tx import check, tree
from fedjax_tx.clients import ModelBroadcast
from fedjax_tx.tasks.freeze import Paths, match_paths, train_only, trained_paths
from fedjax_tx.types import PyTree, Task


class PersonalPart(NamedTuple):
    """A task whose parameters are of two kinds. What travels is the state of ``shared``.

    whole: the task itself. shared: it trains the shared parameters alone, and freezes the personal ones: at the server these are
    what training began with, and never change. personal: the other way round. paths: of the personal parameters. frozen: what the
    task itself freezes, as shapes.
    """

    whole: Task
    shared: Task
    personal: Task
    paths: Paths
    frozen: PyTree

    def first(self, broadcast: ModelBroadcast) -> PyTree:
        """Returns the personal parameters that training began with."""
        return tree.partition(broadcast.frozen, self.paths.__contains__)[0]

    def for_shared(self, broadcast: ModelBroadcast, own: PyTree) -> ModelBroadcast:
        """Returns what trains the shared parameters beside a client's own."""
        _, others = tree.partition(broadcast.frozen, self.paths.__contains__)
        return ModelBroadcast(broadcast.params, tree.join(own, others))

    def for_personal(self, broadcast: ModelBroadcast, own: PyTree) -> ModelBroadcast:
        """Returns what trains a client's own parameters beside the shared ones."""
        _, others = tree.partition(broadcast.frozen, self.paths.__contains__)
        return ModelBroadcast(own, tree.join(broadcast.params, others))

    def for_whole(self, broadcast: ModelBroadcast, own: PyTree) -> ModelBroadcast:
        """Returns what trains the shared parameters and a client's own."""
        _, others = tree.partition(broadcast.frozen, self.paths.__contains__)
        return ModelBroadcast(tree.join(broadcast.params, own), others if jax.tree.leaves(self.frozen) else self.frozen)


def split_task(task: Task, personal: str | Sequence[str]) -> PersonalPart:
    """Returns a task with the parameters of some paths made personal; ``personal`` are patterns as in ``ftx.tasks.freeze``.

    Errors: ``ValueError`` if a pattern matches no parameter that the task trains, or if nothing is left to share.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> sorted(split_task(ftx.tasks.next_token(model), "head/*").paths)
      [('head', 'kernel')]
    """
    paths = match_paths("personal", task, personal)
    shared = trained_paths(task) - paths
    if not shared:
        check.fail_value("personal", "to leave parameters that clients share", personal)
    _, frozen = jax.eval_shape(task.init, jax.random.key(0))
    return PersonalPart(task, train_only(task, shared), train_only(task, paths), paths, frozen)
