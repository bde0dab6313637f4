"""Validation of what users pass in: every message names the thing, its value and what was expected.

A wrong type raises ``TypeError``, a wrong value ``ValueError``, always before anything compiles. Numbers that JAX traces
(the hyperparameters of a sweep) have no value to look at yet and pass.
"""

import difflib
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import jax
import numpy as np


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def fail_type(name: str, expected: str, value: Any) -> NoReturn:
    """Raises ``TypeError("expected NAME to be EXPECTED, got VALUE (TYPE)")``."""
    raise TypeError(f"expected {name} to be {expected}, got {_show(value)} ({type(value).__name__})")


def fail_value(name: str, expected: str, value: Any) -> NoReturn:
    """Raises ``ValueError("expected NAME EXPECTED, got VALUE")``."""
    raise ValueError(f"expected {name} {expected}, got {_show(value)}")


def integer(name: str, value: Any, *, low: int | None = None, high: int | None = None) -> int:
    """Returns ``value`` as an int if it is a whole number (not a bool) with ``low <= value <= high``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        fail_type(name, "an integer", value)
    value = int(value)
    if low is not None and value < low:
        fail_value(name, f">= {low}", value)
    if high is not None and value > high:
        fail_value(name, f"<= {high}", value)
    return value


def counts(name: str, value: Any) -> int | np.ndarray:
    """Returns ``value`` if it is an integer >= 1, or a one-dimensional array of integers >= 0, one for each client."""
    if not isinstance(value, (np.ndarray, jax.Array)):
        return integer(name, value, low=1)
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        fail_type(name, "an integer or an array of integers", f"an array of {array.dtype}")
    if array.ndim != 1:
        fail_value(name, "to be an integer or an array with one entry for each client", f"an array of shape {array.shape}")
    if array.size and array.min() < 0:
        fail_value(name, "to have entries >= 0", int(array.min()))
    return array.astype(np.int64)


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> Any:
    """Returns ``value`` if it is a finite real scalar, ``above < value < below`` and ``low <= value <= high``; tracers pass."""
    if isinstance(value, jax.core.Tracer):
        return value
    scalar = isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0 and value.dtype.kind in "fiu"
    if isinstance(value, (bool, np.bool_)) or not (scalar or isinstance(value, numbers.Real)):
        fail_type(name, "a number", value)
    plain = float(value)
    if not math.isfinite(plain):
        fail_value(name, "to be finite", plain)
    if above is not None and not plain > above:
        fail_value(name, f"> {above:g}", plain)
    if low is not None and plain < low:
        fail_value(name, f">= {low:g}", plain)
    if high is not None and plain > high:
        fail_value(name, f"<= {high:g}", plain)
    if below is not None and not plain < below:
        fail_value(name, f"< {below:g}", plain)
    return value


def boolean(name: str, value: Any) -> bool:
    """Returns ``value`` if it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        fail_type(name, "True or False", value)
    return bool(value)


def instance(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
    """Returns ``value`` if it is an instance of ``kinds``; ``expected`` says in words what that is."""
    if not isinstance(value, kinds):
        fail_type(name, expected, value)
    return value


def function(name: str, value: Any) -> Callable:
    """Returns ``value`` if it can be called."""
    if not callable(value):
        fail_type(name, "a function", value)
    return value


def one_of(name: str, value: Any, options: Collection[Any]) -> Any:
    """Returns ``value`` if it is one of ``options``; a near miss is suggested."""
    if isinstance(value, (list, dict, set)) or not any(value is option or value == option for option in options):
        near = difflib.get_close_matches(str(value), [str(option) for option in options], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        fail_value(name, f"to be one of {', '.join(repr(option) for option in options)}{hint}", value)
    return value


def key(name: str, value: Any) -> Any:
    """Returns ``value`` if it is one JAX key, as ``jax.random.key`` makes them."""
    if not (hasattr(value, "dtype") and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)):
        fail_type(name, "a JAX key made by jax.random.key", value)
    if value.ndim != 0:
        fail_value(name, "to be a single key", f"keys of shape {value.shape}")
    return value


def mapping(name: str, value: Any) -> Mapping:
    """Returns ``value`` if it is a mapping with string keys."""
    if not isinstance(value, Mapping):
        fail_type(name, "a dict", value)
    for key in value:
        if not isinstance(key, str):
            fail_type(f"the keys of {name}", "strings", key)
    return value


def same_tree(name: str, value: Any, expected: Any) -> None:
    """Raises if the pytree ``value`` differs from ``expected`` in structure, or a leaf in shape or dtype, naming the leaf."""
    have = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(value)}
    want = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    for path in sorted(want.keys() - have.keys()):
        raise ValueError(f"expected {name} to have a leaf {path}, which is missing")
    for path in sorted(have.keys() - want.keys()):
        raise ValueError(f"expected {name} to have no leaf {path}, got one of shape {np.shape(have[path])}")
    for path, leaf in want.items():
        if np.shape(have[path]) != tuple(leaf.shape):
            fail_value(f"{name}{path}", f"of shape {tuple(leaf.shape)}", np.shape(have[path]))
        dtype = jax.numpy.result_type(have[path])
        if dtype != leaf.dtype:
            fail_value(f"{name}{path}", f"of dtype {leaf.dtype}", str(dtype))
