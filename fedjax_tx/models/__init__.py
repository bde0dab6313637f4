"""Networks as two pure functions: ``Model(init, apply)``. Flax NNX stays inside this package."""

from fedjax_tx.models.decoder import decoder
from fedjax_tx.models.generate import generate
from fedjax_tx.models.lora import add_lora, lora, merge_lora

__all__ = ["add_lora", "decoder", "generate", "lora", "merge_lora"]
