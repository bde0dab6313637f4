"""What models check before anything compiles: their sizes, and the arrays that they are called with."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool

from fedjax_tx import check


def check_sizes(**sizes: int) -> None:
    """Raises unless every size is an integer >= 1.

    Example:
      >>> check_sizes(width=8)
    """
    for name, value in sizes.items():
        check.integer(name, value, low=1)


def check_dtype(dtype) -> None:
    """Raises unless ``dtype`` is float32 or bfloat16.

    Example:
      >>> check_dtype("bfloat16")
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        check.fail_type("dtype", "a dtype", dtype)
    check.one_of("dtype", name, ("float32", "bfloat16"))


def check_rate(name: str, value) -> float:
    """Returns a rate as a float, 0 <= rate < 1.

    Example:
      >>> check_rate("dropout", 0.1)
      0.1
    """
    rate = float(check.number(name, value, low=0.0))
    if rate >= 1.0:
        check.fail_value(name, "< 1", rate)
    return rate


def check_tokens(tokens, max_length: int, name: str = "tokens") -> None:
    """Raises unless ``tokens`` are integers [batch, time] with time <= max_length.

    Example:
      >>> check_tokens(jnp.zeros((1, 3), jnp.int32), max_length=4)
    """
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        check.fail_type(name, "integers", jnp.result_type(tokens))
    if jnp.ndim(tokens) != 2:
        check.fail_value(name, "of shape [batch, time]", jnp.shape(tokens))
    if jnp.shape(tokens)[1] > max_length:
        check.fail_value(name, f"of at most max_length={max_length} positions", jnp.shape(tokens)[1])


def read_inputs(inputs, needed: str, optional: tuple[str, ...] = ()) -> dict[str, Array]:
    """Returns a model's inputs by name: a lone array is the one that is ``needed``.

    Errors: ``ValueError`` naming what is missing or unknown.

    Example:
      >>> sorted(read_inputs({"tokens": jnp.zeros(3), "valid": jnp.ones(3)}, "tokens", ("valid",)))
      ['tokens', 'valid']
    """
    if not isinstance(inputs, Mapping):
        return {needed: inputs}
    known = (needed, *optional)
    if needed not in inputs:
        check.fail_value("the model's inputs", f"to have {needed!r}", sorted(inputs))
    for name in inputs:
        check.one_of("the names of the model's inputs", name, known)
    return dict(inputs)


def read_valid(inputs: Mapping[str, Array], shape: tuple[int, ...]) -> Bool[Array, "batch time"] | None:
    """Returns where ``inputs["valid"]``, booleans or integers of the given shape, is not 0; None where there is none.

    Example:
      >>> read_valid({"valid": jnp.array([[1, 0]])}, (1, 2)).tolist()
      [[True, False]]
    """
    valid = inputs.get("valid")
    if valid is None:
        return None
    dtype = jnp.result_type(valid)
    if dtype != jnp.bool_ and not jnp.issubdtype(dtype, jnp.integer):
        check.fail_type("valid", "booleans or integers", dtype)
    if jnp.shape(valid) != shape:
        check.fail_value("valid", f"of shape {shape}", jnp.shape(valid))
    return jnp.asarray(valid) != 0
