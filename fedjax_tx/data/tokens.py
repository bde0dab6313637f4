"""From texts to columns of tokens, by the tokenizer that belongs to a pretrained model (the ``tokenizers`` library)."""

import json
import os
from collections.abc import Collection, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from fedjax_tx import check

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, VOCABULARY, SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"


def load_tokenizer(folder: str | os.PathLike[str]) -> "Tokenizer":
    """Returns the tokenizer of a folder, without the padding and truncation that may be stored in it.

    It is read from ``tokenizer.json``, or else from a BERT's ``vocab.txt`` (one word piece a line), in lower case unless
    ``tokenizer_config.json`` says ``"do_lower_case": false``.

    Errors: ``ValueError`` if the folder has neither.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "vocab.txt").write_text("[PAD]\\n[UNK]\\n[CLS]\\n[SEP]\\n[MASK]\\nhello\\nwor\\n##ld\\n")
      >>> load_tokenizer(folder).encode("Hello world").tokens
      ['[CLS]', 'hello', 'wor', '##ld', '[SEP]']
    """
    # Not at the top: it is slow to import, and only texts need it.
    from tokenizers import Tokenizer
    from tokenizers.implementations import BertWordPieceTokenizer

    path = Path(check.instance("folder", folder, (str, os.PathLike), "a path"))
    if (path / TOKENIZER).is_file():
        tokenizer = Tokenizer.from_file(str(path / TOKENIZER))
    elif (path / VOCABULARY).is_file():
        settings = _read_json(path / SETTINGS)
        lowercase = check.boolean(f"do_lower_case of {SETTINGS}", settings.get("do_lower_case", True))
        tokenizer = Tokenizer.from_str(BertWordPieceTokenizer(str(path / VOCABULARY), lowercase=lowercase).to_str())
    else:
        check.fail_value("folder", f"to hold {TOKENIZER} or {VOCABULARY}", str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode_texts(
    tokenizer: "Tokenizer",
    texts: Collection[str],
    max_length: int,
    *,
    truncate: bool = False,
    pad_to: int | None = None,
    pad_id: int | None = None,
) -> dict[str, np.ndarray]:
    """Returns the columns ``{"tokens": int32[N, T], "valid": bool[N, T]}`` of N texts; T is ``pad_to``, or the longest's length.

    Args:
      tokenizer: of ``load_tokenizer``. texts: strings, in a list, an array or a column of pandas.
      max_length: the most tokens of a text, special ones such as [CLS] and [SEP] included; at most what the model takes.
      truncate: whether longer texts are cut to that many, special tokens kept; else they are an error.
      pad_to: T where it must be one number for several calls, at least the longest's length.
      pad_id: the token that fills up; None: the tokenizer's [PAD] or <pad>. Where it has none, it is 0, which may be a token of
        texts too: tasks then know padding by ``valid="valid"`` alone.

    Errors: ``ValueError`` telling how many texts are too long; or if ``max_length`` leaves no room beside the special tokens.

    Example:
      >>> from tokenizers import Tokenizer, models, pre_tokenizers
      >>> tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
      >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
      >>> columns = encode_texts(tokenizer, ["a b a", "b"], max_length=2, truncate=True)
      >>> columns["tokens"].tolist(), columns["valid"].tolist()
      ([[2, 3], [3, 0]], [[True, True], [True, False]])
    """
    listed = _read_texts(tokenizer, texts)
    check.integer("max_length", max_length, low=tokenizer.num_special_tokens_to_add(is_pair=False) + 1)
    check.boolean("truncate", truncate)
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(listed)]
    cut = [index for index, row in enumerate(ids) if len(row) > max_length]
    if cut and not truncate:
        found = f"{len(cut)} of {len(ids)} longer than that, the longest of {max(map(len, ids))} (truncate=True cuts them)"
        raise ValueError(f"expected texts of at most max_length={max_length} tokens, got {found}")
    for index, row in zip(cut, _encode_cut(tokenizer, [listed[index] for index in cut], max_length), strict=True):
        ids[index] = row
    longest = max(map(len, ids), default=0)
    width = longest if pad_to is None else check.integer("pad_to", pad_to, low=max(longest, 1))
    fill = _pad_id(tokenizer) if pad_id is None else check.integer("pad_id", pad_id, low=0)
    tokens = np.full((len(ids), width), fill, np.int32)
    for place, row in zip(tokens, ids, strict=True):
        place[: len(row)] = row
    lengths = np.array([len(row) for row in ids], np.int64)
    return {"tokens": tokens, "valid": np.arange(width) < lengths[:, None]}


def count_tokens(tokenizer: "Tokenizer", texts: Collection[str]) -> Int64[np.ndarray, " text"]:
    """Returns how many tokens each text has, special ones included, before anything is cut: what to choose ``max_length`` by.

    Example:
      >>> from tokenizers import Tokenizer, models, pre_tokenizers
      >>> tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
      >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
      >>> count_tokens(tokenizer, ["a b a", "b"]).tolist()
      [3, 1]
    """
    listed = _read_texts(tokenizer, texts)
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(listed)], np.int64)


def _encode_cut(tokenizer: "Tokenizer", texts: list[str], max_length: int) -> list[list[int]]:
    tokenizer.enable_truncation(max_length)
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    finally:
        tokenizer.no_truncation()


def _read_texts(tokenizer: Any, texts: Any) -> list[str]:
    from tokenizers import Tokenizer

    check.instance("tokenizer", tokenizer, Tokenizer, "a tokenizers.Tokenizer, as of load_tokenizer")
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        check.fail_value("tokenizer", "without padding and truncation of its own, as of load_tokenizer", "one with")
    if isinstance(texts, (str, bytes, Mapping, Set)) or not isinstance(texts, Collection):
        check.fail_type("texts", "a sequence of strings", texts)
    return [check.instance(f"texts[{index}]", text, str, "a string") for index, text in enumerate(texts)]


def _pad_id(tokenizer: "Tokenizer") -> int:
    known = [tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>")]
    return next((index for index in known if index is not None), 0)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
