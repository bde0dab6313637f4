"""Bad clients: any algorithm in which some clients do not do what they should, to see what its aggregation bears.

An attack takes an algorithm and gives it back with attackers among its clients, who are told by their indices in the training
data. What attackers do is done in every pass of a round; they are evaluated as honest clients are, and keep their states
honestly. ``label_flip`` spoils the data that they train on; ``sign_flip`` and ``gaussian`` what they send. By ``alie`` and
``inner_product`` they act together and know what all honest clients of the round send: these updates are held side by side, and
all that the aggregator does to them is done at the server, after the attack.

``canaries`` harm nobody: they measure what noise hides (``ftx.audit``). Attacks on privacy, by whoever sees an update or a sum of
several, take what is seen, and no algorithm: ``recover_tokens``, ``recover_patches``,
``membership_scores`` and ``invert_gradient``.

Floating-point parts of a message are attacked; integers stay. A client's weight stays what it is too: where
examples weigh, as in ``mean()``, a bad client has the weight of its examples. An update that is not finite never gets as far as
the aggregator.
"""

from fedjax_tx.attacks.alone import gaussian, label_flip, sign_flip
from fedjax_tx.attacks.canary import canaries, canary_direction
from fedjax_tx.attacks.reading import invert_gradient, membership_scores, recover_patches, recover_tokens
from fedjax_tx.attacks.together import alie, inner_product

__all__ = [
    "alie",
    "canaries",
    "canary_direction",
    "gaussian",
    "inner_product",
    "invert_gradient",
    "label_flip",
    "membership_scores",
    "recover_patches",
    "recover_tokens",
    "sign_flip",
]
