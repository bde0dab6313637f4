"""What a ``config.json`` says, read strictly: a value that the models here do not have is an error that names it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_tx import check
from fedjax_tx.models.pretrained.tensors import CONFIG, check_folder, read_config

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""Names of Hugging Face, and ours: the tanh form has two names there."""

# What the shared keys must say where they are there: no model is built from less than its whole, plain weights.
_PLAIN: dict[str, tuple] = {"pruned_heads": ({}, None), "quantization_config": (None,), "add_cross_attention": (False,)}


def config_of(name: str, given: Any) -> dict[str, Any]:
    """Returns ``given`` where it is the content of a ``config.json``, else what that file of the folder ``given`` says.

    Example:
      >>> config_of("config", {"model_type": "bert"})
      {'model_type': 'bert'}
    """
    if isinstance(given, Mapping):
        return dict(check.mapping(name, given))
    if not isinstance(given, (str, Path)):
        check.fail_type(name, f"the content of a {CONFIG} or a folder with one", given)
    return read_config(check_folder(name, given))


def check_settings(config: Mapping[str, Any], family: str, supported: Mapping[str, tuple]) -> None:
    """Raises unless the config is of ``family``, and each key of ``supported`` that it has is one of the values there.

    Example:
      >>> check_settings({"model_type": "bert", "is_decoder": False}, "bert", {"is_decoder": (False,)})
    """
    supported = {"model_type": (family,), **_PLAIN, **supported}
    if "model_type" not in config:
        check.fail_value(f"the {CONFIG}", f"to have 'model_type': {family!r}", sorted(config))
    for key, options in supported.items():
        if key in config:
            check.one_of(f"{key} of the {CONFIG}", config[key], options)


def size(config: Mapping[str, Any], key: str) -> int:
    """Returns an integer >= 1 that the config must have.

    Example:
      >>> size({"hidden_size": 8}, "hidden_size")
      8
    """
    if key not in config:
        check.fail_value(f"the {CONFIG}", f"to have {key!r}", sorted(config))
    return check.integer(f"{key} of the {CONFIG}", config[key], low=1)


def labels(config: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Returns the names of the classes as a config holds them: its own if they are as many, else LABEL_0 and so on.

    Example:
      >>> labels({}, 2)["id2label"]
      {'0': 'LABEL_0', '1': 'LABEL_1'}
    """
    names = config.get("id2label") or {}
    if len(names) != num_classes:
        names = {str(index): f"LABEL_{index}" for index in range(num_classes)}
    return {"id2label": names, "label2id": {label: int(index) for index, label in names.items()}}


def saved(config: Mapping[str, Any], architecture: str, **changes: Any) -> dict[str, Any]:
    """Returns the config to be written beside float32 tensors of an architecture.

    Example:
      >>> saved({"torch_dtype": "float16"}, "BertModel")
      {'architectures': ['BertModel'], 'dtype': 'float32'}
    """
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "transformers_version", "_name_or_path")}
    return {**kept, **changes, "architectures": [architecture], "dtype": "float32"}
