"""What is learned: a model becomes a ``Task`` by naming the columns of a batch, the loss and the metrics.

Losses and metrics come as (value[batch], weight[batch]): an example's mean and how much of an example it stands for. An
example without any real target has value 0 and weight 0, so that averages and gradients stay finite.
"""

from fedjax_tx.tasks.features import with_features
from fedjax_tx.tasks.freeze import freeze
from fedjax_tx.tasks.imbalance import (
    class_weighted,
    effective_number_weights,
    fed_lc,
    fed_rs,
    focal,
    inverse_frequency_weights,
    logit_adjusted,
)
from fedjax_tx.tasks.masked import masked_tokens
from fedjax_tx.tasks.supervised import classification, next_token, regression
from fedjax_tx.tasks.temperature import temperature

__all__ = [
    "class_weighted",
    "classification",
    "effective_number_weights",
    "fed_lc",
    "fed_rs",
    "focal",
    "freeze",
    "inverse_frequency_weights",
    "logit_adjusted",
    "masked_tokens",
    "next_token",
    "regression",
    "temperature",
    "with_features",
]
