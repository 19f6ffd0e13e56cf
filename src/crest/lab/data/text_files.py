"""Reads SNLI and SST-2 from local files."""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from crest.lab.data.text_data import TextData
from crest.lab.networks.pretrained import check_weights, folder_of
from crest.lab.optional import require

__all__ = ["load_text_files"]

_PADDING, _UNKNOWN, _SEPARATOR = 0, 1, 2  # words follow
_MAX_WORDS = 64  # of a text; SNLI pairs have 22 on average
_MAX_PIECES = 128  # of a pre-trained network
_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")
_NLI = ("entailment", "neutral", "contradiction")


class _Source(NamedTuple):
    folder: str
    train: str
    test: str
    classes: tuple[str, ...]
    labels: tuple[str, ...]  # of the classes, in the file
    origin: str


class _Cut(NamedTuple):
    train: Tensor  # as in `TextData`, and so below
    test: Tensor
    vocabulary_size: int
    padding: int
    separator: int
    weights: Path | None = None


class _Text(NamedTuple):
    label: int
    sentences: tuple[str, ...]


_SOURCES = {
    "snli": _Source(
        "snli_1.0",
        "snli_1.0_train.jsonl",
        "snli_1.0_test.jsonl",
        _NLI,
        _NLI,
        "https://nlp.stanford.edu/projects/snli/snli_1.0.zip",
    ),
    "snli_part": _Source(
        "snli",
        "train_20k.tsv.xz",
        "test.tsv.xz",
        _NLI,
        _NLI,
        "https://nlp.stanford.edu/projects/snli: pairs, in lines of label, premise and hypothesis",
    ),
    "sst2": _Source(
        "sst2",
        "train.tsv.xz",
        "test.tsv.xz",
        ("negative", "positive"),
        ("0", "1"),
        "https://gluebenchmark.com/tasks (lines of label and sentence)",
    ),
}


def load_text_files(name: str, data_dir: Path, network: str | None = None) -> TextData:
    """Read SNLI in its official form, or a part of it, or SST-2, from tables packed with xz.

    Args:
        name: `"snli"`, DIR/snli_1.0/*.jsonl, without the pairs that have no gold label;
            `"snli_part"`, DIR/snli/*.tsv.xz; or `"sst2"`, DIR/sst2/*.tsv.xz.
        data_dir: DIR.
        network: A pre-trained network has texts cut into the pieces of its own tokenizer, see
            `lab.networks.pretrained.folder_of`; otherwise they are cut into lower-case words, known
            if they come twice in the train part.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If files are missing; says which and where they come from.
        ImportError: If a pre-trained network lacks a package.
        ValueError: If a file is damaged; names it and the line. Or if a tokenizer cannot pad.
    """
    source = _SOURCES[name]
    folder = data_dir / source.folder
    missing = [file for file in (source.train, source.test) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name} needs the files {', '.join(missing)}; looked in {folder}. They come from "
            f"{source.origin}; name the folder that holds {source.folder} with --data-dir."
        )
    train, test = (list(_read(folder / file, source)) for file in (source.train, source.test))
    labels = [torch.tensor([text.label for text in part]) for part in (train, test)]
    weights = None if network is None else folder_of(network, data_dir)
    cut = _in_words(train, test) if weights is None else _in_pieces(weights, train, test)
    return TextData(
        name=name,
        train_tokens=cut.train,
        train_labels=labels[0],
        test_tokens=cut.test,
        test_labels=labels[1],
        classes=source.classes,
        vocabulary_size=cut.vocabulary_size,
        padding=cut.padding,
        separator=cut.separator,
        weights=cut.weights,
    )


def _in_words(train: list[_Text], test: list[_Text]) -> _Cut:
    counts = Counter(word for text in train for words in _words(text) for word in words)
    kept = sorted(word for word, count in counts.items() if count > 1)
    numbers = {word: number for number, word in enumerate(kept, start=_SEPARATOR + 1)}
    tokens = [_pad((_number(text, numbers) for text in part), _PADDING) for part in (train, test)]
    return _Cut(tokens[0], tokens[1], _SEPARATOR + 1 + len(numbers), _PADDING, _SEPARATOR)


def _in_pieces(folder: Path, train: list[_Text], test: list[_Text]) -> _Cut:
    check_weights(folder)
    transformers = require("transformers", "a pre-trained network", extra="text")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    padding, separator = tokenizer.pad_token_id, tokenizer.sep_token_id
    if padding is None:
        raise ValueError(
            f"the tokenizer in {folder} must have a token that fills. Set its pad_token to a token "
            "that no text holds, and save it again."
        )
    longest = min(_MAX_PIECES, tokenizer.model_max_length)
    tokens = []
    for part in (train, test):
        columns = [list(column) for column in zip(*(text.sentences for text in part), strict=True)]
        rows = tokenizer(*columns, truncation=True, max_length=longest)["input_ids"]
        tokens.append(_pad(rows, padding))
    separator = padding if separator is None else separator
    return _Cut(tokens[0], tokens[1], len(tokenizer), padding, separator, folder)


def _read(path: Path, source: _Source) -> Iterator[_Text]:
    try:
        lines = _lines(path)
        for number, line in enumerate(lines, start=1):
            label, *sentences = line
            if label == "-" and path.suffix == ".jsonl":
                continue  # the annotators did not agree
            if label not in source.labels or not sentences:
                expected = ", ".join(source.labels)
                raise ValueError(f"entry {number} has the label {label!r}, none of {expected}")
            yield _Text(source.labels.index(label), tuple(sentences))
    except (ValueError, KeyError, EOFError, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} must be a text file as published: {error}. Get it again from {source.origin}."
        ) from error


def _lines(path: Path) -> Iterator[list[str]]:
    """Give label and sentences of each line."""
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                yield [entry["gold_label"], entry["sentence1"], entry["sentence2"]]
        return
    with lzma.open(path, "rt", encoding="utf-8") as file:
        width = len(next(file, "").split("\t"))  # of the header
        for line in file:
            cells = line.rstrip("\n").split("\t")
            if len(cells) != width:
                raise ValueError(f"a line has {len(cells)} columns, its header {width}")
            yield cells


def _words(text: _Text) -> list[list[str]]:
    return [_WORD.findall(sentence.lower()) for sentence in text.sentences]


def _number(text: _Text, numbers: dict[str, int]) -> list[int]:
    row: list[int] = []
    for words in _words(text):
        row += [_SEPARATOR] if row else []
        row += [numbers.get(word, _UNKNOWN) for word in words]
    return row[:_MAX_WORDS]


def _pad(rows: Iterable[list[int]], padding: int) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.int32) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)
