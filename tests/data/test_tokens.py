"""Texts become columns of tokens: padded, counted, and cut with their special tokens kept."""

import json

import numpy as np
import pandas as pd
import pytest

from fedjax_tx.data import FederatedDataset, count_tokens, encode_texts, load_tokenizer

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "un", "##happy", "The", "!"]
PAD, UNK, CLS, SEP, _, THE, CAT, SAT, UN, HAPPY, THE_UPPER, BANG = range(len(PIECES))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path


def test_word_pieces_by_hand(folder):
    columns = encode_texts(load_tokenizer(folder), ["The cat sat!", "unhappy cat", "", "dog"], max_length=8)
    assert columns["tokens"].tolist() == [
        [CLS, THE, CAT, SAT, BANG, SEP],
        [CLS, UN, HAPPY, CAT, SEP, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD],
        [CLS, UNK, SEP, PAD, PAD, PAD],
    ]
    assert columns["valid"].sum(1).tolist() == [6, 5, 2, 3]
    assert (columns["valid"] == (columns["tokens"] != PAD)).all()
    assert columns["tokens"].dtype == np.int32 and columns["valid"].dtype == np.bool_


def test_texts_may_be_a_column_of_pandas(folder):
    texts, tokenizer = ["the cat", "sat"], load_tokenizer(folder)
    want = encode_texts(tokenizer, texts, max_length=8)["tokens"].tolist()
    for kind in (pd.Series(texts), pd.Series(texts, dtype=object), pd.Series(texts, dtype="category"), np.array(texts, object)):
        assert encode_texts(tokenizer, kind, max_length=8)["tokens"].tolist() == want
        assert count_tokens(tokenizer, kind).tolist() == [4, 3]
    with pytest.raises(TypeError, match=r"expected texts\[1\] to be a string, got None|got nan"):
        encode_texts(tokenizer, pd.Series(["the", None], dtype=object), max_length=8)
    for other in ("the cat", {"the": 1}, {"the"}):
        with pytest.raises(TypeError, match="texts"):
            encode_texts(tokenizer, other, max_length=8)


def test_long_texts_are_cut_before_their_last_special_token_if_asked(folder):
    tokenizer, texts = load_tokenizer(folder), ["the cat sat", "cat", "the cat sat dog"]
    columns = encode_texts(tokenizer, texts, max_length=4, truncate=True, pad_to=5)
    assert columns["tokens"].tolist() == [[CLS, THE, CAT, SEP, PAD], [CLS, CAT, SEP, PAD, PAD], [CLS, THE, CAT, SEP, PAD]]
    assert tokenizer.truncation is None
    assert count_tokens(tokenizer, texts).tolist() == [5, 3, 6]
    with pytest.raises(ValueError, match="at most max_length=4 tokens, got 2 of 3 longer than that, the longest of 6"):
        encode_texts(tokenizer, texts, max_length=4)


def test_upper_case_is_kept_where_the_settings_say_so(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert encode_texts(load_tokenizer(folder), ["The the"], max_length=8)["tokens"].tolist() == [[CLS, THE_UPPER, THE, SEP]]


def test_tokenizer_json_is_read_without_its_padding_and_truncation(folder):
    tokenizer = load_tokenizer(folder)
    expected = encode_texts(tokenizer, ["the unhappy cat"], max_length=8)["tokens"].tolist()
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert encode_texts(load_tokenizer(folder), ["the unhappy cat"], max_length=8)["tokens"].tolist() == expected
    with pytest.raises(ValueError, match="expected tokenizer without padding and truncation"):
        encode_texts(tokenizer, ["the"], max_length=8)


def test_columns_make_a_federated_data_set(folder):
    columns = encode_texts(load_tokenizer(folder), ["the cat", "sat", "unhappy"], max_length=8)
    data = FederatedDataset.from_columns({**columns, "label": [0, 1, 2]}, ["b", "a", "b"])
    assert data.client(1)["tokens"].tolist() == [[CLS, THE, CAT, SEP], [CLS, UN, HAPPY, SEP]]


def test_no_text_gives_no_row(folder):
    columns = encode_texts(load_tokenizer(folder), [], max_length=8)
    assert columns["tokens"].shape == columns["valid"].shape == (0, 0)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="expected pad_to >= 5, got 4"):
        encode_texts(tokenizer, ["the cat sat"], max_length=8, pad_to=4)
    with pytest.raises(ValueError, match="expected max_length >= 3, got 2"):
        encode_texts(tokenizer, ["the"], max_length=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="to hold tokenizer.json or vocab.txt"):
        load_tokenizer(tmp_path / "empty")
