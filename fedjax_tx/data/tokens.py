"""From texts to columns of tokens, by the tokenizer that belongs to a pretrained model (the ``tokenizers`` library)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    tokenizer: "Tokenizer", texts: Sequence[str], max_length: int, *, pad_to: int | None = None, pad_id: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns columns ``{"tokens": int32[N, T], "valid": bool[N, T]}`` of N texts, and a report.

    A text of more than ``max_length`` tokens, special ones such as [CLS] and [SEP] included, is cut to that many; special
    tokens stay. T is ``pad_to``, or the length of the longest text that is left.

    Args:
      tokenizer: of ``load_tokenizer``. texts: strings. max_length: the most tokens of a text, at most what the model takes.
      pad_to: T where it must be one number for several calls, at least as many as the longest text that is left has.
      pad_id: the token that fills up; None: the tokenizer's [PAD] or <pad>, or 0. No model here looks at it.

    Returns:
      The columns, and the counts ``{"texts", "truncated", "longest", "unknown"}``: texts, those that were cut, tokens of the
      longest before the cut, and unknown tokens left.

    Errors: ``ValueError`` if ``max_length`` leaves no room beside the special tokens, or a text is longer than ``pad_to``.

    Example:
      >>> from tokenizers import Tokenizer, models, pre_tokenizers
      >>> tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
      >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
      >>> columns, report = encode_texts(tokenizer, ["a b a", "b"], max_length=2)
      >>> columns["tokens"].tolist(), columns["valid"].tolist()
      ([[2, 3], [3, 0]], [[True, True], [True, False]])
      >>> report
      {'texts': 2, 'truncated': 1, 'longest': 3, 'unknown': 0}
    """
    _check_arguments(tokenizer, texts, max_length)
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    longest = max(map(len, ids), default=0)
    cut = [index for index, row in enumerate(ids) if len(row) > max_length]
    for index, row in zip(cut, _encode_cut(tokenizer, [texts[index] for index in cut], max_length), strict=True):
        ids[index] = row
    lengths = np.array([len(row) for row in ids], np.int64)
    least = int(lengths.max(initial=0))
    width = least if pad_to is None else check.integer("pad_to", pad_to, low=max(least, 1))
    fill = _pad_id(tokenizer) if pad_id is None else check.integer("pad_id", pad_id, low=0)
    tokens = np.full((len(ids), width), fill, np.int32)
    for place, row in zip(tokens, ids, strict=True):
        place[: len(row)] = row
    valid = np.arange(width) < lengths[:, None]
    unknown = _count_unknown(tokenizer, tokens[valid])
    return {"tokens": tokens, "valid": valid}, {"texts": len(ids), "truncated": len(cut), "longest": longest, "unknown": unknown}


def _encode_cut(tokenizer: "Tokenizer", texts: list[str], max_length: int) -> list[list[int]]:
    tokenizer.enable_truncation(max_length)
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    finally:
        tokenizer.no_truncation()


def _check_arguments(tokenizer: Any, texts: Any, max_length: Any) -> None:
    from tokenizers import Tokenizer

    check.instance("tokenizer", tokenizer, Tokenizer, "a tokenizers.Tokenizer, as of load_tokenizer")
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        check.fail_value("tokenizer", "without padding and truncation of its own, as of load_tokenizer", "one with")
    if isinstance(texts, str) or not isinstance(texts, (Sequence, np.ndarray)):
        check.fail_type("texts", "a sequence of strings", texts)
    for index, text in enumerate(texts):
        check.instance(f"texts[{index}]", text, str, "a string")
    check.integer("max_length", max_length, low=tokenizer.num_special_tokens_to_add(is_pair=False) + 1)


def _pad_id(tokenizer: "Tokenizer") -> int:
    known = [tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>")]
    return next((index for index in known if index is not None), 0)


def _count_unknown(tokenizer: "Tokenizer", tokens: np.ndarray) -> int:
    index = None if (token := getattr(tokenizer.model, "unk_token", None)) is None else tokenizer.token_to_id(token)
    return 0 if index is None else int((tokens == index).sum())


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
