"""Spoken digits: which of ten did somebody say? One client a speaker.

The recordings are those of tensorflow-datasets' ``spoken_digit`` (the Free Spoken Digit Dataset 1.0.9, CC BY-SA 4.0): six
speakers say each digit fifty times, at 8 kHz, most in half a second. They come as log-mel features
(``fedjax_tx/data/audio.py``). The speaker is read from a recording's name, such as ``7_jackson_32.wav``; as the data set's
authors suggest, recordings 0 to 4 of each digit are test. The speakers of ``unseen`` stay whole and are never trained on.

tensorflow-datasets downloads and prepares the data on first use, for which it needs TensorFlow, as for all audio; it was not
downloaded where this was written, and is tested with the recordings of ``made_digits``. (``speech_commands``, there too,
does not say who speaks, so it can't be parted by speaker.)
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from fedjax_tx import check
from fedjax_tx.data.audio import log_mel
from fedjax_tx.data.federated import FederatedSplits
from fedjax_tx.data.formats.tfds import from_tfds
from fedjax_tx.data.rows import keep_rows, row_clients

SAMPLING_RATE = 8_000
NUM_BANDS = 32
TEST_RECORDINGS = 5
_FRAME, _HOP = SAMPLING_RATE // 40, SAMPLING_RATE // 100
_NAME = re.compile(r"\d_(?P<speaker>[^_]+)_(?P<number>\d+)\.wav")


class Recording(NamedTuple):
    """One digit as it was said: ``samples`` are whole numbers of 16 bits."""

    name: str
    digit: int
    samples: Int64[np.ndarray, " samples"]


def load(
    name_or_builder: Any = "spoken_digit",
    unseen: Sequence[str] = ("theo",),
    seconds: float = 1.0,
    data_dir: str | os.PathLike[str] | None = None,
) -> FederatedSplits:
    """Returns the speakers as clients: ``.train``, ``.test``, ``.unseen`` and the counts of the ``.report``.

    Columns: ``series`` float32[rows, frames, 32], log-mel features of 25 ms every 10 ms, 0 where ``valid`` bool[rows, frames] is
    False, behind a recording's end; ``y`` int32[rows], the digit; ``number`` int32[rows], which of a speaker's recordings of it.

    Args:
      name_or_builder: the data set's name or a builder of tensorflow-datasets with the features of ``spoken_digit``.
      unseen: speakers who are kept out of training. seconds: what is longer is cut, and counted.
      data_dir: where tensorflow-datasets keeps its data.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if a speaker is unknown, nobody would be left to train on, or a recording's name tells no speaker.
      ModuleNotFoundError: if TensorFlow is needed to prepare the data and not installed.

    Example:
      >>> load(unseen=["lucas"]).train.client_ids.tolist()  # doctest: +SKIP
      ['george', 'jackson', 'nicolas', 'theo', 'yweweler']
    """
    check.instance("unseen", unseen, (list, tuple), "a list of speakers")
    check.number("seconds", seconds, low=_FRAME / SAMPLING_RATE)
    longest = round(seconds * SAMPLING_RATE)
    cut = 0

    def encode(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        nonlocal cut
        lengths = np.array([len(samples) for samples in columns["audio"]])
        cut += int(np.sum(lengths > longest))
        samples = np.zeros((len(lengths), longest), np.float32)
        for row, heard in enumerate(columns["audio"]):
            samples[row, : lengths[row]] = np.asarray(heard[:longest], np.float32) / 32_768
        series = np.asarray(log_mel(samples, SAMPLING_RATE, num_bands=NUM_BANDS, frame_length=_FRAME, hop=_HOP))
        frames = 1 + np.maximum(np.minimum(lengths, longest) - _FRAME, 0) // _HOP
        valid = np.arange(series.shape[1]) < frames[:, None]
        numbers = [int(_parse(name)["number"]) for name in columns["audio/filename"]]
        labels = {"y": np.asarray(columns["label"], np.int32), "number": np.array(numbers, np.int32)}
        return {"series": np.where(valid[..., None], series, 0), "valid": valid, **labels}

    def speaker(example: Mapping[str, Any]) -> str:
        return _parse(example["audio/filename"])["speaker"]

    data = from_tfds(name_or_builder, speaker, encode=encode, data_dir=data_dir, progress=False)
    known = data.client_ids.tolist()
    for name in unseen:
        check.one_of("a speaker of unseen", name, known)
    if set(unseen) >= set(known):
        check.fail_value("unseen", "to leave somebody to train on", unseen)
    held_out, test = np.isin(row_clients(data), list(unseen)), data.columns["number"] < TEST_RECORDINGS
    parts = {"train": ~held_out & ~test, "test": ~held_out & test, "unseen": held_out}
    report = {"speakers": len(known), "recordings": data.num_examples, "recordings cut": cut}
    report |= {f"recordings {name}": int(kept.sum()) for name, kept in parts.items()}
    train, later, whole = (keep_rows(data, kept) for kept in parts.values())
    return FederatedSplits(train, later, whole, report)


def _parse(name: str) -> re.Match[str]:
    found = _NAME.fullmatch(name)
    if found is None:
        check.fail_value("the name of a recording", "to be like 7_jackson_32.wav", name)
    return found


def made_digits(data_dir: str | os.PathLike[str], speakers: Sequence[str] = ("ann", "bob", "eve"), each: int = 7) -> Any:
    """Returns a builder of tensorflow-datasets like ``spoken_digit``, with made recordings: for tests and for a look.

    Args:
      data_dir: where it is prepared, which needs no TensorFlow. speakers: their names. each: recordings of a digit by each.

    Raises:
      TypeError, ValueError: if ``each`` is no integer >= 1.

    Example:
      >>> load(made_digits("made"), unseen=["eve"])  # doctest: +SKIP
    """
    import tensorflow_datasets as tfds  # slow to import, and only this needs it

    check.integer("each", each, low=1)

    class MadeDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            audio = tfds.features.Tensor(shape=(None,), dtype=np.int64)  # what tfds.features.Audio reads
            label, name = tfds.features.ClassLabel(num_classes=10), tfds.features.Text()
            features = tfds.features.FeaturesDict({"audio": audio, "label": label, "audio/filename": name})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for name, digit, samples in _make_recordings(speakers, each):
                yield name, {"audio": samples, "label": digit, "audio/filename": name}

    return MadeDigits(data_dir=os.fspath(data_dir), file_format="array_record")


def _make_recordings(speakers: Sequence[str], each: int) -> Iterator[Recording]:
    """A digit is a pair of tones, higher or lower by speaker, in noise."""
    generator = np.random.default_rng(0)
    for voice, speaker in enumerate(speakers):
        for number in range(each):
            for digit in range(10):
                time = np.arange(generator.integers(2_000, 6_000)) / SAMPLING_RATE
                pitch = (1 + 0.05 * voice) * generator.uniform(0.98, 1.02)
                sound = generator.normal(0, 0.3, len(time))
                for tone in (500 + 130 * (digit % 5), 1_500 + 400 * (digit // 5)):
                    sound += np.sin(2 * np.pi * pitch * tone * time)
                yield Recording(f"{digit}_{speaker}_{number}.wav", digit, (4_000 * sound).astype(np.int64))
