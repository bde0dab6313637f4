"""Columns of Arrow, which Parquet files and Hugging Face's data sets are made of, as arrays."""

from typing import Any

import numpy as np

from fedjax_tx.data.formats.columns import as_column


def to_array(column: Any) -> np.ndarray:
    """Returns an Arrow column as an array of numbers if rows have one shape and none is missing; else of Python's objects."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if array.null_count == 0:
        numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if numbers or pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return array.to_numpy(zero_copy_only=False)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            lengths = pc.unique(pc.list_value_length(array)).to_pylist()
            values = to_array(array.flatten())
            if len(lengths) == 1 and values.dtype.kind in "biufc":
                return values.reshape(len(array), lengths[0], *values.shape[1:])
    return as_column(array.to_pylist())
