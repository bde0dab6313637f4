"""Randomness derived from names: the seed, the round, the client, the pass, the step, never from where a client runs.

On the device these are JAX keys folded with the names. On the host, where cohorts are drawn and data orders shuffled, they are
NumPy generators seeded by the names, and a counter-based hash that gives each (client, epoch, example) its own 64 random bits.
"""

import zlib

import jax
import numpy as np
from jaxtyping import Array, Int, Key, UInt


def root(seed: int | np.integer | np.ndarray | UInt[Array, "..."]) -> Key[Array, "..."]:
    """Returns the key of a seed; of each, where ``seed`` is an array of them.

    Example:
      >>> root(np.array([0, 1], np.uint32)).shape
      (2,)
    """
    return jax.vmap(jax.random.key)(seed) if np.ndim(seed) else jax.random.key(seed)


def fold(key: Key[Array, "..."], *names: int | str | Int[Array, ""]) -> Key[Array, "..."]:
    """Returns ``key`` (each, where it is an array) folded with each name in turn; a string counts by its CRC-32.

    Example:
      >>> key = jax.random.key(0)
      >>> bool((fold(key, "round", 3) == jax.random.fold_in(fold(key, "round"), 3)).all())
      True
    """
    if key.ndim:
        return jax.vmap(lambda one: fold(one, *names))(key)
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key


def host_generator(seed: int, *names: int | str) -> np.random.Generator:
    """Returns a NumPy generator named by ``seed`` and ``names``.

    Example:
      >>> int(host_generator(0, "cohort", 5).integers(100)) == int(host_generator(0, "cohort", 5).integers(100))
      True
    """
    words = [zlib.crc32(name.encode()) if isinstance(name, str) else int(name) for name in names]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(seed), *words])))


def host_bits(seed: int | np.ndarray, *names: int | str | np.ndarray) -> np.ndarray:
    """Returns 64 random bits for each combination of ``names`` (integers, strings or integer arrays, broadcast together).

    Each name goes through the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), chained. ``seed`` may be the bits of names
    that come first.

    Example:
      >>> int(host_bits(host_bits(0, "shuffle"), 3)) == int(host_bits(0, "shuffle", 3))
      True
    """
    bits: np.ndarray = seed if isinstance(seed, np.ndarray) else np.asarray(seed % 2**64, np.uint64)
    with np.errstate(over="ignore"):  # once: entering it costs as much as mixing a few words
        for name in names:
            word = np.asarray(zlib.crc32(name.encode()) if isinstance(name, str) else name).astype(np.uint64)
            bits = _mix(np.asarray(bits ^ _mix(word)))
    return bits


def _mix(word: np.ndarray) -> np.ndarray:
    word = np.asarray(word + np.uint64(0x9E3779B97F4A7C15))
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(word ^ (word >> np.uint64(31)))  # NumPy turns arrays without axes into scalars
