"""The masked language model: how tokens are chosen and hidden, in training and in evaluation; loss and metrics by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_tx.models import encoder
from fedjax_tx.tasks import masked_tokens
from fedjax_tx.types import Model

VOCABULARY, MASK = 50, 49
ECHO = Model(lambda key: {}, lambda params, inputs, *, key=None: jax.nn.one_hot(inputs, VOCABULARY))
ECHO_PADDED = Model(ECHO.init, lambda params, inputs, *, key=None: jax.nn.one_hot(inputs["tokens"], VOCABULARY))


def make(model=ECHO, **options):
    return masked_tokens(model, vocab_size=VOCABULARY, mask_id=MASK, **options)


def draw_tokens(batch: int = 4, time: int = 40) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(2, MASK, (batch, time)), jnp.int32)


def hide(task, tokens, key):
    """What the model read (the echo tells), and what was chosen."""
    outputs = jax.jit(task.apply)({}, (), {"tokens": tokens}, key)
    return np.asarray(outputs["logits"].argmax(-1)), np.asarray(outputs["chosen"])


@pytest.mark.slow
def test_a_rounded_share_of_each_text_is_chosen_and_at_least_one():
    task = make(ECHO_PADDED, pad_id=0, special_ids=[1])
    lengths = jnp.array([0, 1, 4, 10, 40])
    tokens = jnp.where(jnp.arange(40) < lengths[:, None], draw_tokens(5), 0)
    tokens = tokens.at[4, ::2].set(1)  # of 40 tokens 20 may be chosen
    for key in (None, jax.random.key(3)):
        read, chosen = hide(task, tokens, key)
        assert chosen.sum(1).tolist() == [0, 1, 1, 2, 3]  # 0.15 n, at least 1; 1.5 and 0.6 are rounded
        assert not np.any(chosen & np.isin(tokens, [0, 1]))
        np.testing.assert_array_equal(read[~chosen], np.asarray(tokens)[~chosen])


@pytest.mark.parametrize("key", [None, jax.random.key(0)])
def test_eighty_ten_ten(key):
    tokens = draw_tokens(400, 40)
    read, chosen = hide(make(rate=0.5), tokens, key)
    read, tokens, count = read[chosen], np.asarray(tokens)[chosen], 400 * 20
    masked, same = np.mean(read == MASK), np.mean(read == tokens)
    # A replacement is the mask, or what was there, once in 50 each.
    assert abs(masked - (0.8 + 0.1 / 50)) < 5 * np.sqrt(0.16 / count)
    assert abs(same - (0.1 + 0.1 / 50)) < 5 * np.sqrt(0.09 / count)
    other = read[(read != MASK) & (read != tokens)]
    assert abs(other.size / count - 0.1 * 48 / 50) < 5 * np.sqrt(0.09 / count)
    assert set(other) == set(range(MASK))  # 0 and 1, which no text holds, too


def test_every_place_is_chosen_equally_often():
    _, chosen = hide(make(), draw_tokens(2000, 20), jax.random.key(1))
    assert np.all(np.abs(chosen.mean(0) - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 2000))


def test_a_key_draws_anew_and_evaluation_does_not():
    tokens, task = draw_tokens(), make()
    (first, _), (again, _) = hide(task, tokens, None), hide(task, tokens, None)
    np.testing.assert_array_equal(first, again)
    drawn = [hide(task, tokens, jax.random.key(seed))[1] for seed in range(2)]
    assert np.any(drawn[0] != drawn[1])
    rows = [tuple(row) for row in drawn[0]]
    assert len(set(rows)) == len(rows)


@pytest.mark.slow
def test_in_evaluation_a_text_is_masked_alike_wherever_it_stands_and_however_it_is_padded():
    task = make(ECHO_PADDED, pad_id=0)
    tokens = jnp.where(jnp.arange(40) < jnp.array([40, 30, 20, 10])[:, None], draw_tokens(), 0)
    read, chosen = hide(task, tokens, None)
    for order in ([3, 1], [2, 2, 0]):
        moved, its = hide(task, tokens[jnp.array(order)], None)
        np.testing.assert_array_equal(moved, read[order])
        np.testing.assert_array_equal(its, chosen[order])
    longer, its = hide(task, jnp.pad(tokens, [(0, 0), (0, 8)]), None)
    np.testing.assert_array_equal(longer[:, :40], read)
    np.testing.assert_array_equal(its[:, :40], chosen)
    # Another text, even the same tokens in another order, is masked in its own way.
    same_tokens = jnp.tile(tokens[:1, ::-1], (1, 1))
    assert np.any(hide(task, same_tokens, None)[1] != chosen[:1])


def test_narrow_tokens_are_hidden_as_wide_ones_are():
    model = Model(lambda key: {}, lambda params, inputs, *, key=None: jax.nn.one_hot(inputs["tokens"], 258))
    task = masked_tokens(model, vocab_size=258, mask_id=256, pad_id=257, rate=0.5)
    tokens = draw_tokens(2, 10)
    wide, narrow = hide(task, tokens, None), hide(task, tokens.astype(jnp.uint8), None)
    np.testing.assert_array_equal(narrow, wide)
    assert np.any(narrow[0] == 256)


def test_padding_told_by_a_column_is_padding_told_by_a_token():
    tokens = jnp.where(jnp.arange(10) < jnp.array([10, 4])[:, None], draw_tokens(2, 10), 0)
    batch = {"tokens": tokens, "real": tokens != 0}
    for key in (None, jax.random.key(0)):
        outputs = [make(ECHO_PADDED, **told).apply({}, (), batch, key) for told in ({"pad_id": 0}, {"valid": "real"})]
        jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_loss_and_accuracy_by_hand():
    task, batch = make(), {"tokens": jnp.array([[3, 4, 5, 6], [7, 7, 7, 7]])}
    chosen = jnp.array([[True, False, True, False], [False] * 4])
    probabilities = jnp.full((2, 4, VOCABULARY), 1e-3).at[0, 0, 3].set(0.5).at[0, 2, 9].set(0.5).at[0, 2, 5].set(0.25)
    outputs = {"logits": jnp.log(probabilities / probabilities.sum(-1, keepdims=True)), "chosen": chosen}
    value, weight = task.loss(outputs, batch)
    totals = [0.5 + 49e-3, 0.75 + 48e-3]
    np.testing.assert_allclose(value, [(np.log(totals[0] / 0.5) + np.log(totals[1] / 0.25)) / 2, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(weight, [0.5, 0.0])
    accuracy, weight = task.metrics(outputs, batch)["accuracy"]
    np.testing.assert_array_equal(accuracy, [0.5, 0.0])
    np.testing.assert_array_equal(weight, [0.5, 0.0])


@pytest.mark.slow
def test_an_encoder_learns_what_was_hidden():
    """Texts of one repeated token: what is hidden stands beside it."""
    sizes = {"num_layers": 1, "num_heads": 2, "width": 16, "max_length": 8}
    task = masked_tokens(encoder(8, **sizes, head="tokens"), vocab_size=8, mask_id=7, pad_id=0, rate=0.3)
    params, _ = jax.jit(task.init)(jax.random.key(0))
    texts = jnp.where(jnp.arange(8) < 6, jnp.arange(1, 6)[:, None], 0)

    def total(params, key):
        value, weight = task.loss(task.apply(params, (), {"tokens": texts}, key), {"tokens": texts})
        return jnp.sum(value * weight) / jnp.sum(weight)

    optimizer = optax.adam(0.01)

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(total)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), 200)
    (trained, _), _ = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), keys))(params)
    evaluate = jax.jit(total)
    assert evaluate(params, None) > 1.9
    assert evaluate(trained, None) < 0.3


def test_tokens_that_the_vocabulary_lacks_are_named():
    for options in ({"pad_id": VOCABULARY}, {"special_ids": [VOCABULARY]}):
        with pytest.raises(ValueError, match=f"expected .*{next(iter(options))} <= {VOCABULARY - 1}, got {VOCABULARY}"):
            make(**options)
    with pytest.raises(ValueError, match=r"the model's logits of vocab_size=60 tokens, got \(4, 40, 50\)"):
        masked_tokens(ECHO, vocab_size=60, mask_id=MASK).apply({}, (), {"tokens": draw_tokens()}, None)


def test_wrong_columns_are_named():
    with pytest.raises(ValueError, match=r"column 'tokens' of shape \[batch, time\], got \(3,\)"):
        make().apply({}, (), {"tokens": jnp.zeros(3, jnp.int32)}, None)
    with pytest.raises(TypeError, match="column 'tokens' to be integers"):
        make().apply({}, (), {"tokens": jnp.zeros((1, 3))}, None)
