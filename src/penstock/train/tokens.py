"""Text as the tokens of a Hugging Face directory's tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import ConfigError, DataError
from penstock.models.hugging_face.files import BESIDE_WEIGHTS, TOKENIZER_FILE
from penstock.train.data import Corpus, Symbols

_PIECE = 1 << 16
"""Characters that are tokenised at a time, up to the next end of a line: pieces go to all cores."""
_NO_TOKENIZER = ("generation_config.json",)


@cache
def read_tokenizer(path: Path) -> Any | None:
    """Returns the tokenizer of a directory, None where it has none.

    Raises:
        ConfigError: one in another form than tokenizer.json, or a damaged one.
    """
    if not path.is_dir():
        return None
    file = path / TOKENIZER_FILE
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(
                f"{file} is no tokenizer ({error}); save it again, or take it away to train on bytes"
            ) from error
    other = next((name for name in BESIDE_WEIGHTS if name not in _NO_TOKENIZER and (path / name).is_file()), None)
    if other is not None:
        raise ConfigError(
            f"{path} has {other} and no {TOKENIZER_FILE}; make that once by "
            f'AutoTokenizer.from_pretrained("{path}").save_pretrained("{path}")'
        )
    return None


def tokenized(corpus: Corpus, tokenizer: Any) -> Corpus:
    """Returns the same text as tokens; none is added at beginnings and ends.

    Raises:
        DataError: a text of which no token is left.
    """
    train, held_out = (_tokens(text.tobytes(), tokenizer) for text in (corpus.train, corpus.held_out))
    if not len(train) or not len(held_out):
        raise DataError("the tokenizer makes no token of the text; give other text with --data.paths")
    return replace(corpus, train=train, held_out=held_out, unit="token")


def _tokens(text: bytes, tokenizer: Any) -> Symbols:
    characters = text.decode(errors="ignore")  # where bytes were held out from, a character may be cut
    pieces = []
    at = 0
    while at < len(characters):
        end = characters.find("\n", at + _PIECE) + 1 or len(characters)
        pieces.append(characters[at:end])
        at = end
    encoded = tokenizer.encode_batch(pieces, add_special_tokens=False)
    found: npt.NDArray[np.int32] = np.concatenate([np.asarray(each.ids, dtype=np.int32) for each in encoded] or [_NONE])
    return found


_NONE = np.zeros(0, dtype=np.int32)
