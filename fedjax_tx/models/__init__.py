"""Networks as two pure functions: ``Model(init, apply)``. Flax NNX stays inside this package."""

from fedjax_tx.models.adapters import adapters
from fedjax_tx.models.cnn import cnn
from fedjax_tx.models.convolution import convolve
from fedjax_tx.models.decoder import decoder
from fedjax_tx.models.describe import Costs, describe
from fedjax_tx.models.encoder import encoder
from fedjax_tx.models.extras import add_extras
from fedjax_tx.models.features import features
from fedjax_tx.models.generate import generate
from fedjax_tx.models.lora import lora, merge_lora
from fedjax_tx.models.mlp import logistic_regression, mlp
from fedjax_tx.models.prefix import prefix
from fedjax_tx.models.pretrained import load_bert, load_gpt2, load_vit, minilm_folder, save_bert, save_gpt2, save_vit
from fedjax_tx.models.recurrent import recurrent
from fedjax_tx.models.resnet import resnet
from fedjax_tx.models.tabular import tabular
from fedjax_tx.models.time_series import time_series
from fedjax_tx.models.vit import vit

__all__ = [
    "Costs",
    "adapters",
    "add_extras",
    "cnn",
    "convolve",
    "decoder",
    "describe",
    "encoder",
    "features",
    "generate",
    "load_bert",
    "load_gpt2",
    "load_vit",
    "logistic_regression",
    "lora",
    "merge_lora",
    "minilm_folder",
    "mlp",
    "prefix",
    "recurrent",
    "resnet",
    "save_bert",
    "save_gpt2",
    "save_vit",
    "tabular",
    "time_series",
    "vit",
]
