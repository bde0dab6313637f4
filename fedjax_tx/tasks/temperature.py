"""Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks".

arXiv 1706.04599, section 4.2: a trained classifier's logits are divided by one number T > 0, fitted by likelihood on data that it
was not trained on. The order of the classes stays, and so does the accuracy.
"""

import jax
import jax.numpy as jnp

from fedjax_tx import check, tree
from fedjax_tx.types import PyTree, Task

NAME = "log_temperature"


def temperature(task: Task) -> Task:
    """Returns the task in which only the temperature is trained, as the parameter ``log_temperature``; it begins at T = 1.

    All of the given task's parameters are frozen, and it is applied as in evaluation, in training too: without dropout. Any
    algorithm can train it; ``ftx.algorithms.fit_temperature`` does so exactly, in a few rounds. To start from the parameters of
    a run: ``init_params={**result.params, "log_temperature": jnp.zeros(())}``, or ``({"log_temperature": jnp.zeros(())},
    result.params)`` where they are no dict.

    Args:
      task: gives ``logits`` [..., class].

    Errors: ``ValueError`` if the task has a parameter ``log_temperature`` already.

    Example:
      >>> from fedjax_tx.types import Model
      >>> from fedjax_tx.tasks import classification
      >>> model = Model(lambda key: {"w": jnp.ones((3, 2))}, lambda params, x, *, key=None: x @ params["w"])
      >>> task = temperature(classification(model))
      >>> _, frozen = task.init(jax.random.key(0))
      >>> task.apply({"log_temperature": jnp.log(2.0)}, frozen, {"x": jnp.ones((1, 3))}, None)["logits"].tolist()
      [[1.5, 1.5]]
    """
    check.instance("task", task, Task, "a Task")
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    if any(isinstance(part, dict) and NAME in part for part in shapes):
        check.fail_value("the task", f"to have no parameter {NAME!r} yet", NAME)

    def split(whole: PyTree) -> tuple[PyTree, PyTree]:
        """The task's trainable and frozen part again."""
        trainable, frozen = shapes
        if not jax.tree.leaves(frozen):
            return whole, frozen
        if isinstance(whole, dict):
            return tree.partition(whole, tree.paths(trainable).__contains__)
        return whole

    def init(key):
        return {NAME: jnp.zeros(())}, tree.join(*task.init(key))

    def apply(trainable, frozen, batch, key):
        outputs = task.apply(*split(frozen), batch, None)
        return {**outputs, "logits": outputs["logits"] * jnp.exp(-trainable[NAME])}

    return task._replace(init=init, apply=apply)
