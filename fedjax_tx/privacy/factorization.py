"""Factorisations of the running sum, A = B C, by which ``ftx.aggregation.correlated_noise`` correlates noise over rounds.

Three families; C and its inverse are those of the library jax-privacy, but for the tree, which needs no library:

* **BLT**, buffered linear Toeplitz (arXiv 2404.16706, 2408.08868): C_{t,t} = 1, before it C_{t,i} = sum_j w_j d_j^(t-i-1). A few
  buffers of a model's size are all that it remembers, whatever the number of rounds.
* **Banded** Toeplitz (arXiv 2306.08153): C_{t,i} = c_{t-i} for t - i < bands. It remembers the noise of as many rounds, less one.
* **Tree** (arXiv 2103.00039, the first DP-FTRL): the partial sums of a binary tree get independent noise; not optimised, and
  without the variance reduction that its authors add.

A client that takes part at most k times, b or more rounds apart, changes C x by at most the norm of the sum of C's columns
0, b, ..., (k - 1) b, if C is Toeplitz with entries that are not negative and don't grow (arXiv 2405.13763, Theorem 2).

Optimising takes up to minutes, so what was found is kept on disk. A run that is resumed elsewhere, where it is found
anew, may differ in the last bits.
"""

import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tx import check
from fedjax_tx.privacy.accounting import INSTALL
from fedjax_tx.types import Factorization, Participation


def blt_factorization(
    rounds: int,
    min_separation: int = 1,
    max_participations: int | None = None,
    cache_dir: str | Path | None = None,
) -> Factorization:
    """Returns the BLT whose running sums have the least noise in the worst round, with as many buffers as help (up to ten).

    Args:
      rounds: >= 1, for which it is optimised. min_separation, max_participations: as of ``ftx.data.separated_cohorts``.
      cache_dir: where its coefficients are kept; by default ``fedjax_tx/factorizations`` in the user's cache directory
        (``XDG_CACHE_HOME``, or ``~/.cache``). Delete it at any time when no run is under way.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``jax-privacy`` is not installed.

    Example:
      >>> blt = blt_factorization(rounds=1)  # one round: nothing to correlate, nothing to optimise
      >>> blt.sensitivity(1, blt.participation)
      1.0
    """
    rounds, participation = _checked(rounds, min_separation, max_participations, cache_dir)
    library = _library()

    def optimize() -> dict[str, list[float]]:
        best = library.buffered_toeplitz.optimize(n=rounds, min_sep=min_separation, max_participations=max_participations)
        return {"decay": np.asarray(best.buf_decay).tolist(), "scale": np.asarray(best.output_scale).tolist()}

    key = f"blt-{rounds}-{min_separation}-{max_participations}"
    found = {"decay": [], "scale": []} if rounds == 1 else _kept(cache_dir, key, optimize)
    decay, scale = (np.asarray(found[name], np.float32) for name in ("decay", "scale"))
    powers = decay.astype(np.float64) ** np.arange(rounds - 1)[:, None]
    column = np.append(1.0, powers @ scale.astype(np.float64))
    inverse = library.buffered_toeplitz.StreamingMatrixBuilder(buf_decay=decay, output_scale=scale).build_inverse()
    return _toeplitz("blt_factorization", column, participation, inverse)


def banded_factorization(
    rounds: int,
    min_separation: int,
    max_participations: int | None = None,
    bands: int | None = None,
    cache_dir: str | Path | None = None,
) -> Factorization:
    """Returns the banded Toeplitz C whose running sums have the least noise on average over the rounds.

    It is best for clients that take part ``bands`` or more rounds apart: then no two of a client's columns overlap.

    Args:
      bands: >= 1 and <= ``rounds``, by default ``min_separation`` where that is less. Others: as of ``blt_factorization``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``jax-privacy`` is not installed.

    Example:
      >>> independent = banded_factorization(rounds=9, min_separation=1)  # a single band: noise that is new in each round
      >>> independent.sensitivity(9, independent.participation)
      3.0
    """
    rounds, participation = _checked(rounds, min_separation, max_participations, cache_dir)
    bands = min(min_separation, rounds) if bands is None else check.integer("bands", bands, low=1, high=rounds)
    library = _library()

    def optimize() -> dict[str, list[float]]:
        return {"coefficients": np.asarray(library.toeplitz.optimize_banded_toeplitz(rounds, bands)).tolist()}

    found = {"coefficients": [1.0]} if bands == 1 else _kept(cache_dir, f"banded-{rounds}-{bands}", optimize)
    coefficients = np.asarray(found["coefficients"], np.float32)
    column = np.append(coefficients.astype(np.float64), np.zeros(rounds - bands))
    inverse = library.toeplitz.inverse_as_streaming_matrix(jnp.asarray(coefficients))
    return _toeplitz("banded_factorization", column, participation, inverse)


def tree_factorization(rounds: int, min_separation: int = 1, max_participations: int | None = None) -> Factorization:
    """Returns the binary tree over the rounds: a running sum is the sum of the nodes that the round's number has bits.

    A client is in at most k c_j of the nodes of level j, c_j = min(k, ceil(2^j / b)) times in one of them, so that the
    sensitivity is at most the root of k * sum_j c_j; for k = 1 that of the levels' number, which is exact.

    Args: as of ``blt_factorization``.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.

    Example:
      >>> tree = tree_factorization(rounds=1600, max_participations=1)
      >>> round(tree.sensitivity(1600, tree.participation) ** 2)
      11
    """
    rounds, participation = _checked(rounds, min_separation, max_participations)
    levels = rounds.bit_length()

    def init(update):
        return jnp.int32(0), jax.tree.map(lambda leaf: jnp.zeros((levels, *leaf.shape), jnp.float32), update)

    def correlate(noise, state):
        # After round t the nodes in use are the bits of t: the new one takes the place of those below it.
        done, nodes = state
        level = jax.lax.population_count(done ^ (done + 1)) - 1
        below = jnp.arange(levels) < level

        def gone(node):
            return jnp.where(below.reshape(-1, *[1] * (node.ndim - 1)), node, 0)

        row = jax.tree.map(lambda one, node: one - gone(node).sum(0), noise, nodes)
        nodes = jax.tree.map(lambda one, node: (node - gone(node)).at[level].set(one), noise, nodes)
        return row, (done + 1, nodes)

    def sensitivity(rounds, participation):
        times = _times(rounds, participation)
        in_one = [min(times, -(-(2**level) // participation.min_separation)) for level in range(rounds.bit_length())]
        return math.sqrt(times * sum(in_one))

    return _made("tree_factorization", rounds, participation, init, correlate, sensitivity)


def _toeplitz(kind: str, column: np.ndarray, participation: Participation, inverse) -> Factorization:
    """A factorisation by the first column of C, float64 [round], and the library's streaming C^-1."""
    if (column < 0).any() or (np.diff(column) > 1e-7).any():
        check.fail_value(f"the coefficients of {kind}", "to be >= 0 and not to grow", column[:8].tolist())

    def sensitivity(rounds, participation):
        changed = np.zeros(rounds)
        for first in range(_times(rounds, participation)):
            start = first * participation.min_separation
            changed[start:] += column[: rounds - start]
        return float(np.linalg.norm(changed))

    return _made(kind, column.size, participation, inverse.init_multiply, inverse.multiply_next, sensitivity)


def _made(
    kind: str, rounds: int, participation: Participation, init: Callable, correlate: Callable, sensitivity: Callable
) -> Factorization:
    name = f"{kind}({rounds}, {participation.min_separation}, {participation.max_participations})"

    @lru_cache(maxsize=4096)
    def checked(of_rounds: int, of_clients: Participation) -> float:
        if of_rounds > rounds:
            check.fail_value("rounds", f"<= {rounds}, those that {name} is made for", of_rounds)
        return sensitivity(of_rounds, of_clients) if of_rounds else 0.0

    return Factorization(name, rounds, participation, init, correlate, checked)


def _times(rounds: int, participation: Participation) -> int:
    """The most times that a client takes part in so many rounds."""
    possible = -(-rounds // participation.min_separation)
    most = participation.max_participations
    return possible if most is None else min(most, possible)


def _checked(
    rounds: int, min_separation: int, max_participations: int | None, cache_dir: str | Path | None = None
) -> tuple[int, Participation]:
    rounds = check.integer("rounds", rounds, low=1)
    min_separation = check.integer("min_separation", min_separation, low=1)
    if max_participations is not None:
        max_participations = check.integer("max_participations", max_participations, low=1)
    check.instance("cache_dir", cache_dir, (str, Path, type(None)), "a path")
    return rounds, Participation(min_separation, max_participations)


def _kept(cache_dir: str | Path | None, name: str, optimize: Callable[[], dict]) -> dict[str, list[float]]:
    """What ``optimize`` found the first time, by the installed version of the library."""
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax_tx" / "factorizations"
    directory = Path(cache_dir)
    path = directory / f"{name}-{importlib.metadata.version('jax-privacy')}.json"
    if not path.exists():
        found = json.dumps(optimize())
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as file:
            file.write(found)
        os.replace(file.name, path)  # whole or not at all, should two processes look for it at once
    return json.loads(path.read_text())


def _library():
    try:
        import jax_privacy.matrix_factorization
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"expected jax-privacy, which optimises factorisations: {INSTALL}") from error
    return jax_privacy.matrix_factorization
