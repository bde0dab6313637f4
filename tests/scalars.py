"""Problems to be worked out on paper: the model is one number w, an example another number x, the loss (w - x)^2.

Its gradient is 2 (w - x), so a step of rate 1/4 on a batch moves w half the way to the batch's mean.
"""

import jax.numpy as jnp
import numpy as np

import fedjax_tx as ftx

HALF_WAY = 0.25


def model(init=lambda key: {"w": jnp.zeros(())}) -> ftx.Model:
    return ftx.Model(init, lambda params, x, *, key=None: jnp.broadcast_to(params["w"], x.shape))


TASK = ftx.tasks.regression(model(), inputs="x", targets="x")


def clients(*examples, ids=None) -> ftx.data.FederatedDataset:
    """One list of numbers for each client."""
    x = np.array([number for own in examples for number in own], np.float32)
    return ftx.data.FederatedDataset.from_offsets({"x": x}, np.append(0, np.cumsum([len(own) for own in examples])), ids)
