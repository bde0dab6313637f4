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
    frozen = ftx.tasks.freeze(ftx.tasks.freeze(TASK, ["head/kernel", "hidden*"]), "hidden*")
    task = ftx.tasks.with_features(frozen if trained == "hidden*" else ftx.tasks.freeze(TASK, trained))
    trainable, frozen = task.init(jax.random.key(0))
    outputs, params = task.apply(trainable, frozen, BATCH, None), {**trainable, **frozen}
    np.testing.assert_array_equal(outputs["features"], ftx.models.features(MODEL).apply(params, BATCH["x"]))
    logits = outputs["features"] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, outputs["logits"], rtol=1e-5, atol=1e-6)


def test_the_model_runs_once_forward_and_backward():
    def flops(task):
        params, frozen = task.init(jax.random.key(0))

        def read(params):
            return sum(jnp.sin(output).sum() for output in task.apply(params, frozen, BATCH, None).values())

        return jax.jit(jax.grad(read)).lower(params).compile().cost_analysis()["flops"]

    assert flops(ftx.tasks.with_features(TASK)) < 1.3 * flops(TASK)  # more sines, but no product more


def test_a_model_that_does_not_return_its_heads_output_is_refused():
    model = ftx.Model(MODEL.init, lambda params, x, *, key=None: MODEL.apply(params, x, key=key)[..., :2])
    task = ftx.tasks.with_features(ftx.tasks.classification(model))
    with pytest.raises(ValueError, match=r"expected the model to return the 3 outputs of 'head', and its 8 inputs, got \(5, 2\)"):
        task.apply(*task.init(jax.random.key(0)), BATCH, None)


@pytest.mark.parametrize("head", ["tail", "head/kernel"])
def test_a_head_that_is_none_is_refused(head):
    with pytest.raises(ValueError, match=f"expected head to be the path of a dense layer .*, got '{head}'"):
        ftx.tasks.with_features(TASK, head=head)
