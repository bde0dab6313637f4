"""Any data set of tensorflow-datasets, read by random access (``as_data_source``) without TensorFlow."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import ClientId, Encode, as_column, check_names, decode_text
from fedjax_tx.data.formats.tables import ROWS_AT_ONCE, Table, choose_columns, group_table


def from_tfds(
    name_or_builder: Any,
    client_key: str | Callable[[dict[str, Any]], ClientId],
    *,
    split: str = "train",
    columns: Sequence[str] | None = None,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Groups a split of a tensorflow-datasets data set by client; clients in the order of their ids.

    Nested features are columns ``"outer/inner"``. Features of one shape (numbers, pictures of equal sizes) need nothing; texts
    come to ``encode`` as arrays of strings, what differs in length from example to example (a ``Sequence``, ``Audio``) as arrays
    of lists or arrays; a nested ``Dataset`` is no column. The split is read twice, first for its clients.

    TensorFlow isn't imported, but some of tensorflow-datasets itself needs it: ``Audio`` features, and preparing data sets that
    encode pictures. What was prepared elsewhere as array_record can be read from ``data_dir``.

    Args:
      name_or_builder: such as ``"emnist"``, downloaded and prepared in array_record if it is not yet; or a builder.
      client_key: the feature that names the client of an example; or a function of the example, a flat dict of its features,
        texts as strings (``lambda example: example["audio/filename"].split("_")[1]``).
      split: such as ``"train"`` or ``"train[:10%]"``. columns: which features to take; None: all but ``client_key``.
      data_dir: where tensorflow-datasets keeps its data. encode, directory, progress: see ``from_clients``.

    Raises:
      ModuleNotFoundError: if TensorFlow is needed and not installed.
      TypeError, ValueError: if there is no such feature, a client is neither string nor integer, the data is in a format without
        random access, or a column is not of numbers; see ``from_clients``.

    Example:
      >>> data = from_tfds("emnist", lambda example: example["label"] % 10, columns=["image", "label"])  # doctest: +SKIP
    """
    check.instance("split", split, str, "the name of a split")
    if not callable(client_key):
        check.instance("client_key", client_key, str, "a feature's name or a function")
    if columns is not None:
        check_names("columns", columns)
    if data_dir is not None:
        check.instance("data_dir", data_dir, (str, os.PathLike), "a path or None")
    check_options(encode, directory, progress)
    source, sketch, features, name = _open_sources(name_or_builder, split, data_dir)
    place = f"{split!r} of {name!r}"
    known, dtypes = list(_flatten(source[0])), _flatten(features.np_dtype)
    names = choose_columns(place, known, None if callable(client_key) else client_key, columns)

    def values(examples: Iterable[Any], name: str) -> list[Any]:
        return [decode_text(f"feature {name!r} of {place}", example[name]) for example in examples]

    def read_keys() -> Iterator[np.ndarray]:
        for start in range(0, len(source), ROWS_AT_ONCE):
            rows = list(range(start, min(start + ROWS_AT_ONCE, len(source))))
            if callable(client_key):
                examples = [_flatten(example) for example in source.__getitems__(rows)]
                columns = {name: values(examples, name) for name in known}
                keys = [client_key({name: columns[name][row] for name in known}) for row in range(len(rows))]
            else:
                keys = values(map(_flatten, sketch.__getitems__(rows)), client_key)
            yield as_column([key.item() if isinstance(key, np.generic) else key for key in keys])

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        examples = [_flatten(example) for example in source.__getitems__(rows.tolist())]
        return {name: _with_dtype(as_column(values(examples, name)), dtypes.get(name)) for name in names}

    read_clients, num_clients = group_table(Table(place, read_keys(), take), client_key)
    return from_clients(read_clients, encode=encode, directory=directory, num_clients=num_clients, progress=progress)


def _open_sources(name_or_builder: Any, split: str, data_dir: Any) -> tuple[Any, Any, Any, str]:
    """Returns the examples, the same with pictures left as they are stored (faster), the features, and the data set's name."""
    import tensorflow_datasets as tfds  # slow to import, and only this needs it

    if not isinstance(name_or_builder, (str, tfds.core.DatasetBuilder)):
        check.fail_type("name_or_builder", "a data set's name or a builder of tensorflow_datasets", name_or_builder)
    name = name_or_builder if isinstance(name_or_builder, str) else name_or_builder.name
    try:
        builder = name_or_builder
        if isinstance(builder, str):
            options = {"data_dir": None if data_dir is None else os.fspath(data_dir), "file_format": "array_record"}
            builder = tfds.builder(name, **options)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        _check_split(builder.info.splits, split)
        stored = {
            feature: tfds.decode.SkipDecoding()
            for feature, kind in builder.info.features.items()
            if isinstance(kind, tfds.features.Image)
        }
        return builder.as_data_source(split), builder.as_data_source(split, decoders=stored), builder.info.features, name
    except ModuleNotFoundError as error:
        if "tensorflow" not in str(error):
            raise
        needed = "audio, or pictures that it encodes"
        raise ModuleNotFoundError(f"expected TensorFlow, which tensorflow_datasets needs for {name!r} ({needed})") from error
    except NotImplementedError as error:
        raise ValueError(f"expected {name!r} to be prepared in array_record, got another format: {error}") from error


def _check_split(splits: Any, split: str) -> None:
    try:
        num_examples = splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"expected split to be one of {', '.join(sorted(splits))}, or of parts of them, got {split!r}"
        ) from error
    if num_examples == 0:
        check.fail_value("split", "to have at least one example", split)


def _with_dtype(column: np.ndarray, dtype: Any) -> np.ndarray:
    """A column of numbers as the feature says they are: single ones are read as Python's."""
    return column if dtype is None or column.dtype.kind not in "biufc" else column.astype(dtype, copy=False)


def _flatten(example: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The features of an example by their full names."""
    flat: dict[str, Any] = {}
    for name, value in example.items():
        flat |= _flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
