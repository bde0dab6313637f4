"""What attacks share: who attacks, and that an attack is on every pass."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fedjax_tx import check
from fedjax_tx.types import ClientInfo, FederatedAlgorithm, Pass, PyTree

Attackers = Sequence[int] | np.ndarray


def attackers_of(algorithm: FederatedAlgorithm, attackers: Attackers) -> Callable[[ClientInfo], Bool[Array, ""]]:
    """Returns whether a client is an attacker; checks what all attacks are given."""
    check.instance("algorithm", algorithm, FederatedAlgorithm, "a FederatedAlgorithm")
    ids = np.asarray(attackers)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        check.fail_type("attackers", "a list of client indices", attackers)
    if ids.size and ids.min() < 0:
        check.fail_value("attackers", "to be client indices >= 0", int(ids.min()))
    return lambda info: jnp.isin(info.id, ids.astype(np.int32))


def in_every_pass(algorithm: FederatedAlgorithm, spoil: Callable[[Pass], Pass]) -> FederatedAlgorithm:
    """Returns the algorithm with each of its passes spoiled; its evaluation is not."""
    return algorithm._replace(passes=tuple(spoil(a_pass) for a_pass in algorithm.passes))


def map_floats(function: Callable[..., Array], update: PyTree, *others: PyTree) -> PyTree:
    """``function`` of each floating-point leaf, in its dtype; other leaves as they are."""

    def leaf(own, *rest):
        return function(own, *rest).astype(own.dtype) if jnp.issubdtype(own.dtype, jnp.floating) else own

    return jax.tree.map(leaf, update, *others)
