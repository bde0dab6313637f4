"""What is read off an update, by hand: words, examples, and who is in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from fedjax_tx import attacks, tree
from fedjax_tx.clients import batch_gradient

PARAMS = {"w": jnp.array([[0.3, -0.2, 0.1], [0.5, 0.4, -0.6]]), "b": jnp.array([0.1, 0.0, -0.1])}
BATCH = {"x": jnp.array([[1.0, -2.0], [0.5, 3.0], [-1.5, 0.2]]), "y": jnp.array([0, 2, 1])}


@jax.jit
def masked_gradient(mask):
    return batch_gradient(problems.LOGISTIC, PARAMS, (), BATCH, mask, None)[1]


def gradient_of(rows):
    return jax.device_get(masked_gradient(np.isin(np.arange(3), rows)))


def test_words_are_those_of_the_longest_rows():
    table = jnp.array([[0.0, 0.1], [0.0, 0.0], [-3.0, 0.0], [2.0, 2.0], [0.0, -1.0]])
    assert attacks.recover_tokens(table, 3).tolist() == [2, 3, 4]
    assert attacks.recover_tokens(-0.01 * table, 3).tolist() == [2, 3, 4]


def test_patches_are_solved_for_and_those_alike_come_out_alike():
    generator = np.random.default_rng(0)
    patches, slopes = generator.normal(size=(4, 2)), generator.normal(size=(4, 6))
    observed = 0.1 * patches.T @ slopes, 0.1 * slopes
    np.testing.assert_allclose(attacks.recover_patches(*observed), patches, rtol=1e-5)
    # Two patches that are alike have slopes alike: no inverse, but the same answer.
    patches[1], slopes[1] = patches[0], slopes[0]
    np.testing.assert_allclose(attacks.recover_patches(patches.T @ slopes, slopes), patches, rtol=1e-5)


def test_a_score_is_the_product_with_the_example_s_direction():
    update = gradient_of([0, 1])
    scores = attacks.membership_scores(problems.LOGISTIC, PARAMS, (), update, BATCH)
    for row, score in enumerate(scores):
        own = gradient_of([row])
        product = sum(float((update[name] * own[name]).sum()) for name in own)
        assert float(score) == pytest.approx(product / float(tree.norm(own)), rel=1e-5)
    # An update along one example's gradient goes along no other as far.
    alone = attacks.membership_scores(problems.LOGISTIC, PARAMS, (), gradient_of([2]), BATCH)
    assert int(jnp.argmax(alone)) == 2 and float(alone[2]) == pytest.approx(float(tree.norm(gradient_of([2]))), rel=1e-5)


def test_an_example_is_found_again_in_its_gradient_whatever_its_length():
    observed = gradient_of([1])
    # Of one example the answer is known: the row of the weights over the bias, dl/dw_c = x dl/db_c.
    np.testing.assert_allclose(observed["w"][:, 0] / observed["b"][0], BATCH["x"][1], rtol=1e-5)
    clipped = jax.tree.map(lambda leaf: 0.01 * leaf, observed)
    guess = {"x": jnp.ones((1, 2)), "y": BATCH["y"][1:2]}
    found, distances = attacks.invert_gradient(problems.LOGISTIC, PARAMS, (), clipped, guess, optax.adam(0.1), 1000)
    np.testing.assert_allclose(found["x"][0], BATCH["x"][1], atol=0.02)
    np.testing.assert_array_equal(found["y"], guess["y"])
    assert distances.shape == (1000,) and distances[-1] < 1e-4 < distances[0]
