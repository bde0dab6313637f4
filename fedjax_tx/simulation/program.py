"""The executor's programs: ``jax.jit``, and on an NVIDIA GPU loops that need no host.

Where XLA does not know a loop's length as it compiles, it asks the host before each turn, and the host launches the turn's
operations one after another. XLA can record loops as a CUDA graph, which the GPU goes through alone, but doesn't unless told to.

On an H200 a plain loop of a CNN's steps takes 0.78 of the time so, of a decoder's 0.96, of a logistic regression's 1.6 times it
(``experiments/benchmarks/accelerator.py``). With other processes at work on the host a decoder's took a quarter of the time, and
a round of a logistic regression, whose ticks are several loops, a third.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.errors import JaxRuntimeError

_FLAG = "xla_gpu_enable_command_buffer"
# What a graph may hold; a loop becomes one if it holds nothing else. Not collectives, which wait for other devices.
_COMMANDS = (
    *("FUSION", "CUBLAS", "CUBLASLT", "CUDNN", "CUSTOM_CALL", "CONVOLUTION"),
    *("DYNAMIC_SLICE_FUSION", "DYNAMIC_SLICE_COPY_FUSION", "CONDITIONAL", "WHILE"),
)


class Program:
    """``jax.jit(function, **options)`` as it is best for the kind of device that JAX turns out to have.

    Example:
      >>> double = Program(lambda x, times: jax.lax.fori_loop(0, times, lambda _, y: 2 * y, x), static_argnames="times")
      >>> int(double(1, 3))
      8
    """

    def __init__(self, function: Callable, **options: Any):
        self._function, self._options = function, options

    @functools.cached_property
    def jitted(self) -> Any:
        """The function that ``jax.jit`` made; not before it is needed, since this starts JAX."""
        return jax.jit(self._function, compiler_options=compiler_options(), **self._options)

    def __call__(self, *arguments: Any) -> Any:
        return self.jitted(*arguments)

    def eval_shape(self, *arguments: Any) -> Any:
        """As that of a jitted function: the shapes of the results; a call with the same arguments does not trace again."""
        return self.jitted.eval_shape(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As that of a jitted function: the lowered program, which can be compiled and asked for its memory."""
        return self.jitted.lower(*arguments)


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """Returns XLA's options for programs that are mostly loops; None where JAX's own are best, or ``XLA_FLAGS`` has a say.

    Example:
      >>> compiler_options() is None  # on a CPU
      True
    """
    if jax.default_backend() != "gpu" or _FLAG in os.environ.get("XLA_FLAGS", ""):
        return None
    return {_FLAG: known_commands()}


def known_commands() -> str:
    """Returns the commands of a graph that this version of XLA knows, as its option takes them.

    Example:
      >>> "WHILE" in known_commands().split(",")
      True
    """

    def is_known(command: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={_FLAG: command}).lower().compile()
        except JaxRuntimeError as error:
            if command in str(error):
                return False
            raise
        return True

    return ",".join(filter(is_known, _COMMANDS))
