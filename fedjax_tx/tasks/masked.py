"""Guessing tokens that were hidden: the masked language model of BERT (arXiv:1810.04805), section 3.1.

Of a text's n tokens max(1, round(rate * n)) are chosen at random. A chosen token is replaced by the mask token (80 %), by a
token drawn from the whole vocabulary (10 %), or left as it is (10 %); the model is asked for all chosen ones.

In training a step's key draws the choice anew. In evaluation, which has no key, it comes from the text itself: the same text is
masked in the same way wherever it stands, so that the loss can be compared between rounds and does not depend on batching.
"""

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt32

from fedjax_tx import check
from fedjax_tx.tasks.parts import check_arguments, check_padding, cross_entropy, is_right, mean_of_real, read_real, read_tokens
from fedjax_tx.types import Batch, Model, Task

MASKED, REPLACED = 0.8, 0.1


class _Vocabulary(NamedTuple):
    size: int
    mask_id: int
    never_chosen: tuple[int, ...]


def masked_tokens(
    model: Model,
    *,
    vocab_size: int,
    mask_id: int,
    pad_id: int | None = None,
    valid: str | None = None,
    special_ids: Collection[int] = (),
    rate: float = 0.15,
    column: str = "tokens",
) -> Task:
    """Returns the task of guessing hidden tokens from those on both sides, by cross-entropy.

    Args:
      model: ``apply(params, inputs, key=) -> logits[batch, time, vocab_size]``; inputs are tokens [batch, time], or where
        padding is told a dict of them and ``valid`` [batch, time], as ``ftx.models.encoder(..., head="tokens")`` takes them.
      vocab_size: how many tokens there are, from which replacements are drawn.
      mask_id: the token that hides another.
      pad_id: the token that fills up short texts; the model does not see it, and it is never chosen. Or
      valid: the column [batch, time] that is True or 1 where a token is no padding, as ``ftx.data.encode_texts`` makes it. With
        neither there is no padding.
      special_ids: tokens that are never chosen, such as those of the beginning and the end of a text.
      rate: 0 < rate < 1, the share of a text's tokens that are chosen; at least one is, where the text has any.
      column: the batch's column of integers [batch, time].

    Loss and ``accuracy`` are means over an example's chosen tokens, and the weight is their share of ``time``. ``apply`` gives
    ``chosen`` [batch, time] beside ``logits``.

    Raises:
      TypeError, ValueError: an argument is of the wrong type or has an impossible value; in use, the batch lacks the
        column, the column is not of integers [batch, time], or the model has another number of tokens.

    Example:
      >>> from fedjax_tx.models import encoder
      >>> task = masked_tokens(encoder(vocab_size=10, head="tokens"), vocab_size=10, mask_id=9, pad_id=0)
      >>> params, frozen = task.init(jax.random.key(0))
      >>> batch = {"tokens": jnp.array([[5, 6, 7, 8, 0], [0, 0, 0, 0, 0]])}
      >>> value, weight = task.loss(task.apply(params, frozen, batch, None), batch)
      >>> weight.round(1).tolist()  # one token of five, and none
      [0.20..., 0.0]
    """
    check_arguments(model, column=column)
    check.integer("vocab_size", vocab_size, low=1)
    check.integer("mask_id", mask_id, low=0, high=vocab_size - 1)
    check_padding(pad_id, valid)
    if pad_id is not None:
        check.integer("pad_id", pad_id, high=vocab_size - 1)
    check.instance("special_ids", special_ids, (list, tuple, set, frozenset), "a list of tokens")
    for token in special_ids:
        check.integer("a token of special_ids", token, low=0, high=vocab_size - 1)
    if float(check.number("rate", rate, above=0.0)) >= 1.0:
        check.fail_value("rate", "< 1", rate)
    vocabulary = _Vocabulary(vocab_size, mask_id, tuple(sorted({*special_ids})))

    def init(key):
        return model.init(key), ()

    def apply(trainable, frozen, batch, key):
        tokens = _read(batch, column)
        real = read_real(batch, tokens, pad_id, valid)
        if key is None:
            hidden, chosen = _hide(tokens, real, jax.random.key(0), _text_names(tokens, real), vocabulary, rate)
        else:
            mask_key, key = jax.random.split(key)
            names = jnp.arange(tokens.shape[0], dtype=jnp.uint32)
            hidden, chosen = _hide(tokens, real, mask_key, names, vocabulary, rate)
        inputs = hidden if pad_id is None and valid is None else {"tokens": hidden, "valid": real}
        logits = model.apply(trainable, inputs, key=key)
        if logits.shape[-1] != vocab_size:
            check.fail_value("the model's logits", f"of vocab_size={vocab_size} tokens", logits.shape)
        return {"logits": logits, "chosen": chosen}

    def loss(outputs, batch):
        return mean_of_real(cross_entropy(outputs["logits"], _read(batch, column)), outputs["chosen"])

    def metrics(outputs, batch):
        return {"accuracy": mean_of_real(is_right(outputs["logits"], _read(batch, column)), outputs["chosen"])}

    return Task(init=init, apply=apply, loss=loss, metrics=metrics, labels=(column,))


def _read(batch: Batch, column: str) -> Int[Array, "batch time"]:
    tokens = read_tokens(batch, column)
    if tokens.ndim != 2:
        check.fail_value(f"column {column!r}", "of shape [batch, time]", tokens.shape)
    return tokens


def _text_names(tokens: Int[Array, "batch time"], real: Bool[Array, "batch time"]) -> UInt32[Array, " batch"]:
    """A number for each text, of its real tokens and their places: padding at the end changes nothing."""
    places = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.uint32)
    # Odd multipliers (of xxHash) mix modulo 2³²; a sum over places is the same in any batch and however long the padding is.
    words = (tokens.astype(jnp.uint32) + jnp.uint32(0x9E3779B1)) * (places * jnp.uint32(0x85EBCA77) | 1)
    words = (words ^ (words >> 15)) * jnp.uint32(0xC2B2AE3D)
    return jnp.sum(jnp.where(real, words ^ (words >> 13), 0), axis=1, dtype=jnp.uint32)


def _hide(
    tokens: Int[Array, "batch time"],
    real: Bool[Array, "batch time"],
    key: Key[Array, ""],
    names: UInt32[Array, " batch"],
    vocabulary: _Vocabulary,
    rate: float,
) -> tuple[Int[Array, "batch time"], Bool[Array, "batch time"]]:
    """Returns (what the model reads, which tokens were chosen); each text draws from ``key`` folded with its name."""

    def hide(tokens, real, name):
        may_be = jnp.all(jnp.stack([real, *[tokens != token for token in vocabulary.never_chosen]]), axis=0)
        order_key, fate_key, token_key = jax.random.split(jax.random.fold_in(key, name), 3)
        order = jnp.where(may_be, jax.random.uniform(order_key, tokens.shape), jnp.inf)
        count = jnp.maximum(1, jnp.round(rate * jnp.sum(may_be))).astype(jnp.int32)
        chosen = may_be & (jnp.argsort(jnp.argsort(order)) < count)
        fate = jax.random.uniform(fate_key, tokens.shape)
        drawn = jax.random.randint(token_key, tokens.shape, 0, vocabulary.size)
        other = jnp.where(fate < MASKED, vocabulary.mask_id, jnp.where(fate < MASKED + REPLACED, drawn, tokens))
        return jnp.where(chosen, other, tokens), chosen

    return jax.vmap(hide)(tokens, real, names)
