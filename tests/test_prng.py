"""Randomness from names: the same name gives the same numbers, another name others, and the bits are spread evenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx import prng


def data(key):
    return tuple(jax.random.key_data(key).tolist())


def test_fold_depends_on_every_name_and_on_their_order():
    key = jax.random.key(0)
    folded = [prng.fold(key, *names) for names in (("a",), ("b",), ("a", 1), (1, "a"), (1,), (2,), ("a", 2))]
    assert len({data(one) for one in folded}) == len(folded)
    assert data(prng.fold(key)) == data(key)


def test_fold_takes_traced_numbers():
    key = jax.random.key(0)
    many = jax.vmap(lambda client: prng.fold(key, "client", client))(jnp.arange(3))
    assert data(many[2]) == data(prng.fold(key, "client", 2))


def test_generators_are_named():
    names = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (2**32 - 1, "a", 1)]
    drawn = [prng.host_generator(*name).integers(2**60) for name in names]
    assert len(set(drawn)) == len(names)
    assert drawn[0] == prng.host_generator(0, "a", 1).integers(2**60)


def test_bits_do_not_depend_on_what_is_asked_beside_them():
    clients, epochs = np.array([3, 5, 5]), np.array([0, 0, 7])
    together = prng.host_bits(1, "shuffle", 9, clients, epochs)
    alone = [int(prng.host_bits(1, "shuffle", 9, int(c), int(e))) for c, e in zip(clients, epochs, strict=True)]
    assert together.tolist() == alone
    assert together.dtype == np.uint64


def test_bits_differ_in_every_name_and_do_not_mix_up_their_order():
    grid = prng.host_bits(0, np.arange(50)[:, None], np.arange(50))
    assert len(np.unique(grid)) == 2500
    assert len({int(prng.host_bits(seed, name, 1)) for seed in (0, 1, -1) for name in ("a", "b")}) == 6


@pytest.mark.parametrize("bit", range(0, 64, 9))
def test_each_bit_is_set_half_of_the_time_and_neighbours_agree_by_chance(bit):
    bits = (prng.host_bits(0, "x", np.arange(10000)) >> np.uint64(bit)) & np.uint64(1)
    # 10,000 coins: standard deviation 50.
    assert abs(int(bits.sum()) - 5000) < 250
    assert abs(int((bits[1:] == bits[:-1]).sum()) - 5000) < 250
