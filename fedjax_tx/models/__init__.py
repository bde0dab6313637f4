"""Networks as two pure functions: ``Model(init, apply)``. Flax NNX stays inside this package."""

from fedjax_tx.models.adapters import adapters
from fedjax_tx.models.convolution import convolve
from fedjax_tx.models.decoder import decoder
from fedjax_tx.models.encoder import encoder
from fedjax_tx.models.features import features
from fedjax_tx.models.generate import generate
from fedjax_tx.models.lora import add_lora, lora, merge_lora
from fedjax_tx.models.prefix import prefix

__all__ = [
    "adapters",
    "add_lora",
    "convolve",
    "decoder",
    "encoder",
    "features",
    "generate",
    "lora",
    "merge_lora",
    "prefix",
]
