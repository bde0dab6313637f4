"""Clients by hand: local SGD on the softmax regression of ``problems``, in float64 NumPy, from the formulas alone.

Parameters are one vector: the three biases, then the weights [feature, class] row by row, as leaves are ordered.
"""

import numpy as np

BATCH_SIZE, EPOCHS = 2, 2
"""Of ``work()``: batches in stored order, the last of an epoch may be short."""


def work():
    import fedjax_tx as ftx

    return ftx.data.LocalWork(batch_size=BATCH_SIZE, epochs=EPOCHS, shuffle=False)


def as_vector(params) -> np.ndarray:
    return np.concatenate([np.asarray(params["b"], np.float64), np.asarray(params["w"], np.float64).ravel()])


def gradient(vector: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy: softmax - one-hot, summed into biases and against x into weights."""
    logits = x @ vector[3:].reshape(-1, 3) + vector[:3]
    chances = np.exp(logits - logits.max(1, keepdims=True))
    errors = chances / chances.sum(1, keepdims=True) - np.eye(3)[y]
    return np.concatenate([errors.mean(0), (x.T @ errors / len(x)).ravel()])


def delta(vector: np.ndarray, data, client: int, rate: float) -> np.ndarray:
    """server - client after the client's local steps of plain SGD at ``rate``."""
    own, local = data.client(int(client)), vector.copy()
    x, y = np.asarray(own["x"], np.float64), np.asarray(own["y"])
    for _ in range(EPOCHS):
        for first in range(0, len(y), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            local = local - rate * gradient(local, x[batch], y[batch])
    return vector - local
