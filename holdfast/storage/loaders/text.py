"""Text columns become token ids, with whatever tokeniser the caller brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from holdfast.errors import InvalidInput

__all__ = ["TextTokenizer", "Tokenize"]

Tokenize: TypeAlias = Callable[[list[str]], Mapping[str, Any]]
"""Takes the texts of a batch; gives one array, or one list of lists, with rows first, for each name."""

_IGNORED_LABEL = -100
"""What losses leave out, by torch's and Hugging Face's convention."""


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Adds what tokenisers make of a batch's text columns.

    Lists of different lengths are padded to the longest of the batch: ``input_ids`` with the tokeniser's ``pad_token_id``,
    ``token_type_ids`` with its ``pad_token_type_id`` (0 where it has none), ``labels`` with -100, everything else with 0; on
    the left where its ``padding_side`` is ``"left"``.

    Args:
        tokenize: For each column, what takes its texts; a Hugging Face tokeniser is one.
        keep_text: Keep the column itself beside the tokens.

    Raises:
        InvalidInput: ``tokenize`` is no mapping, or one of its values can't be called.
    """

    tokenize: Mapping[str, Tokenize]
    keep_text: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tokenize, Mapping):
            raise InvalidInput(
                f"tokenize maps each text column to a function: {{'text': tokenizer}}, not {type(self.tokenize).__name__}"
            )
        for column, function in self.tokenize.items():
            if not callable(function):
                raise InvalidInput(
                    f"tokenize[{column!r}] must take a list of texts, but {type(function).__name__} can't be called"
                )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its tokens.

        Raises:
            InvalidInput: A column is not there, is not text, or has a missing value; or a tokeniser gives something
                that has not one entry a row, or a name that is taken.
        """
        done = dict(batch)
        for column in self.tokenize:
            if column not in batch:
                raise InvalidInput(
                    f"there is no column {column!r} to tokenize; the batch has {', '.join(batch)}"
                )
            if not self.keep_text:
                del done[column]
        for column, function in self.tokenize.items():
            texts = _texts(column, batch[column])
            for name, values in self._tokens(column, function, texts).items():
                if name in done:
                    raise InvalidInput(
                        f"tokenize[{column!r}] gives {name!r}, and so does another column: wrap it in a function that gives "
                        "other names"
                    )
                done[name] = values
        return done

    def _tokens(self, column: str, function: Tokenize, texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
        given = function(texts)
        if not isinstance(given, Mapping):
            raise InvalidInput(
                f"tokenize[{column!r}] must give a mapping from name to arrays, not {type(given).__name__}"
            )
        tokens = {}
        for name, values in given.items():
            if len(values) != len(texts):
                raise InvalidInput(
                    f"tokenize[{column!r}] gives {len(values)} entries of {name!r} for {len(texts)} texts"
                )
            tokens[str(name)] = _rectangular(column, str(name), values, function)
        return tokens


def _texts(column: str, values: Any) -> list[str]:
    texts = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            what = "is missing" if text is None else f"is {type(text).__name__}, not text"
            raise InvalidInput(
                f"column {column!r} can't be tokenized: the value of row {row} of the batch {what}"
            )
    return texts


def _rectangular(column: str, name: str, values: Any, function: Tokenize) -> np.ndarray[Any, Any]:
    """One array with rows first, padded where the rows are lists of different lengths."""
    if not isinstance(values, (list, tuple)):
        return np.asarray(values)  # NumPy's, or a tensor of torch, JAX or TensorFlow
    rows: Sequence[np.ndarray[Any, Any]] = [np.asarray(row) for row in values]
    if any(row.ndim != 1 or (row.size and row.dtype.kind not in "biuf") for row in rows):
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise InvalidInput(f"tokenize[{column!r}] gives {name!r} of different shapes: {error}") from error
        if array.dtype.kind not in "biuf":
            raise InvalidInput(f"tokenize[{column!r}] gives {name!r} as {array.dtype}, which are no numbers")
        return array
    longest = max((len(row) for row in rows), default=0)
    dtype = np.result_type(*(row.dtype for row in rows if row.size)) if longest else np.dtype(np.int64)
    padded = np.full((len(rows), longest), _padding(name, function), dtype=dtype)
    left = getattr(function, "padding_side", "right") == "left"
    for target, row in zip(padded, rows, strict=True):
        if left:
            target[longest - len(row) :] = row
        else:
            target[: len(row)] = row
    return padded


def _padding(name: str, function: Tokenize) -> int:
    if name == "labels":
        return _IGNORED_LABEL
    attribute = {"input_ids": "pad_token_id", "token_type_ids": "pad_token_type_id"}.get(name, "")
    return int(getattr(function, attribute, None) or 0)
