"""Local work of one client, shared by algorithms."""

from fedjax_tx.clients.gradient import full_gradient, start_loss
from fedjax_tx.clients.local import ModelBroadcast, client_weight, local_evaluation, local_sgd, whole_data
from fedjax_tx.clients.objective import add_metrics, batch_gradient, batch_loss, batch_metrics, masked_mean, no_metrics
from fedjax_tx.clients.private import private_gradient
from fedjax_tx.clients.tuned import small_batches, tuned_evaluation

__all__ = [
    "ModelBroadcast",
    "add_metrics",
    "batch_gradient",
    "batch_loss",
    "batch_metrics",
    "client_weight",
    "full_gradient",
    "local_evaluation",
    "local_sgd",
    "masked_mean",
    "no_metrics",
    "private_gradient",
    "small_batches",
    "start_loss",
    "tuned_evaluation",
    "whole_data",
]
