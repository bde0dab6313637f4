"""The product of rows with a kernel, whose gradient is as fast on a CPU as the product itself.

The kernel's gradient of y = x W is xᵀ g. Where x has several axes of rows, XLA's routine for it on a CPU takes twice as long as
the product: here they are one. It takes as long as the product, then, where W has no more inputs than outputs, and again twice
as long where it has many more. There the gradient is computed as (gᵀ x)ᵀ, with a barrier that keeps XLA from turning this around
again; turning the result costs a pass over W, which pays where the rows are many.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


def product(
    x: Float[Array, "*rows inputs"], kernel: Float[Array, "inputs outputs"], precision=None, out_dtype=None
) -> Float[Array, "*rows outputs"]:
    """Returns x W, with ``precision`` and ``out_dtype`` as ``jnp.matmul`` takes them.

    Example:
      >>> product(jnp.ones((1, 3)), jnp.ones((3, 2))).tolist()
      [[3.0, 3.0]]
    """
    y = _of_rows(x.reshape(-1, x.shape[-1]), kernel, precision, out_dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _of_rows(x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"], precision, out_dtype) -> Array:
    return jnp.matmul(x, kernel, precision=precision, preferred_element_type=out_dtype)


def _is_turned(x: Array, kernel: Array) -> bool:
    """Whether the gradient is sooner computed the other way around: as measured with one core, 1.1 to 1.8 times."""
    (rows, inputs), outputs = x.shape, kernel.shape[1]
    return jax.default_backend() == "cpu" and inputs >= 2 * outputs and 2 * rows >= inputs


def _derivative(precision, out_dtype, primals, tangents):
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    options = {"precision": precision, "preferred_element_type": out_dtype}
    y, parts = _of_rows(x, kernel, precision, out_dtype), []
    if not isinstance(x_dot, SymbolicZero):
        parts.append(jnp.matmul(x_dot, kernel, **options))
    if not isinstance(kernel_dot, SymbolicZero):
        turned = lax.optimization_barrier(kernel_dot.T).T if _is_turned(x, kernel) else kernel_dot
        parts.append(jnp.matmul(x, turned, **options))
    return y, sum(parts[1:], parts[0])


_of_rows.defjvp(_derivative, symbolic_zeros=True)
