"""Both works' networks in plain JAX, by the names that works.py gives the parameters; sizes are read off these.

A  x = wte[tokens] + wpe;  x += Attention(LN1(x));  x += gelu(LN2(x) W1 + b1) W2 + b2;  logits = LN(x) Wout
B  convolution 3 x 3, relu, convolution 3 x 3, relu, maximum of 2 x 2 pixels, dense, relu, dense
"""

import jax
import jax.numpy as jnp

HEAD_WIDTH = 32


def layer_norm(x, gain, bias):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * gain + bias


def attention(q, k, v):
    """Causal attention over [batch, time, head, width]."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / HEAD_WIDTH**0.5
    weights = jax.nn.softmax(jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def transformer(params, tokens):
    """Returns the logits [batch, time, vocab] for tokens [batch, time]."""
    batch, time = tokens.shape
    x = params["wte"][tokens] + params["wpe"][:time]
    heads = (batch, time, x.shape[-1] // HEAD_WIDTH, HEAD_WIDTH)
    for layer in range(sum(name.endswith("_wqkv") for name in params)):
        p = {name.removeprefix(f"l{layer}_"): value for name, value in params.items() if name.startswith(f"l{layer}_")}
        h = layer_norm(x, p["ln1_g"], p["ln1_b"])
        q, k, v = (part.reshape(heads) for part in jnp.split(h @ p["wqkv"] + p["bqkv"], 3, axis=-1))
        attended = attention(q, k, v)
        x = x + attended.reshape(x.shape) @ p["wo"] + p["bo"]
        h = layer_norm(x, p["ln2_g"], p["ln2_b"])
        x = x + jax.nn.gelu(h @ p["w1"] + p["b1"], approximate=True) @ p["w2"] + p["b2"]
    return layer_norm(x, params["lnf_g"], params["lnf_b"]) @ params["wout"]


def xla_convolution(x, kernel):
    """A valid convolution by XLA's own operation, fast where a program is a step."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def product_convolution(x, kernel):
    """The same as one matrix product, of patches [all pixels, patch]: in a loop on a CPU XLA's operation is 20 times slower."""
    height, width, inputs, outputs = kernel.shape
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    patches = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    flat = jnp.concatenate(patches, axis=-1).reshape(-1, height * width * inputs)
    return (flat @ kernel.reshape(-1, outputs)).reshape(len(x), rows, columns, outputs)


def conv_net(params, x, convolution):
    """Returns the logits [batch, classes] for images [batch, 28, 28, 1]; ``convolution`` is one of the two above."""
    x = jax.nn.relu(convolution(x, params["c1_w"]) + params["c1_b"])
    x = jax.nn.relu(convolution(x, params["c2_w"]) + params["c2_b"])
    batch, height, width, channels = x.shape
    x = jnp.max(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
    x = jax.nn.relu(x.reshape(batch, -1) @ params["d1_w"] + params["d1_b"])
    return x @ params["d2_w"] + params["d2_b"]


def cross_entropy(logits, labels):
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def transformer_losses(params, tokens):
    """Returns the loss of each row [batch] of tokens [batch, time + 1]: the mean over its positions."""
    return jnp.mean(cross_entropy(transformer(params, tokens[:, :-1]), tokens[:, 1:]), axis=-1)


def make_losses(name: str, in_loop: bool):
    """Returns ``losses(params, *columns) -> [batch]`` of a work; ``in_loop`` tells whether a loop inside a program calls it."""
    if name == "A":
        return transformer_losses
    convolution = product_convolution if in_loop else xla_convolution
    return lambda params, x, y: cross_entropy(conv_net(params, x, convolution), y)


def masked_gradient(name: str, in_loop: bool):
    """Returns ``gradient(params, columns, mask)`` of the mean loss over the rows where ``mask`` is 1."""
    losses = make_losses(name, in_loop)

    def loss(params, columns, mask):
        return jnp.sum(jnp.where(mask, losses(params, *columns), 0.0)) / jnp.maximum(jnp.sum(mask), 1)

    return jax.grad(loss)
