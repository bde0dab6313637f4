"""Features beside the logits: what enters the head, of trained and of frozen heads, at the cost of one run of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_tx as ftx

MODEL = ftx.models.mlp(4, 3, (8,))
BATCH = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32), "y": jnp.zeros(5, jnp.int32)}
TASK = ftx.tasks.classification(MODEL)


@pytest.mark.parametrize("trained", ["*", "head/*", "hidden*"])
def test_the_head_makes_the_logits_of_the_features(trained):
    task = ftx.tasks.with_features(ftx.tasks.freeze(TASK, trained))
    trainable, frozen = task.init(jax.random.key(0))
    outputs, params = task.apply(trainable, frozen, BATCH, None), {**trainable, **frozen}
    np.testing.assert_array_equal(outputs["features"], ftx.models.features(MODEL).apply(params, BATCH["x"]))
    logits = outputs["features"] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, outputs["logits"], rtol=1e-5, atol=1e-6)


def test_the_compiled_model_runs_once():
    def flops(task):
        params, frozen = task.init(jax.random.key(0))
        return jax.jit(task.apply).lower(params, frozen, BATCH, None).compile().cost_analysis()["flops"]

    assert flops(ftx.tasks.with_features(TASK)) < 1.05 * flops(TASK)


@pytest.mark.parametrize("head", ["tail", "head/kernel"])
def test_a_head_that_is_none_is_refused(head):
    with pytest.raises(ValueError, match=f"expected head to be the path of a dense layer .*, got '{head}'"):
        ftx.tasks.with_features(TASK, head=head)
