"""What is learned: a model becomes a ``Task`` by naming the columns of a batch, the loss and the metrics.

Losses and metrics come as (value[batch], weight[batch]): an example's mean and how much of an example it stands for. An
example without any real target has value 0 and weight 0, so that averages and gradients stay finite.
"""

from fedjax_tx.tasks.freeze import freeze
from fedjax_tx.tasks.supervised import classification, next_token, regression

__all__ = ["classification", "freeze", "next_token", "regression"]
