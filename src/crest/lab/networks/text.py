"""Networks for rows of tokens, by name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from crest.checks import check_choice
from crest.lab.networks.pretrained import PRETRAINED, Pretrained, cut, is_folder

__all__ = ["TEXT_NETWORKS", "build_text_network", "check_text_network"]

TEXT_NETWORKS = ("bag", "encoder", *PRETRAINED)

_WIDTH = 128  # of word vectors and hidden layers
_LAYERS, _HEADS = 2, 4  # of the encoder
_POSITIONS = 64  # that it tells apart; a text is cut there


def check_text_network(name: str) -> None:
    """Refuse a network that is neither known nor a folder.

    Args:
        name: One of `TEXT_NETWORKS`, or the folder of a pre-trained network.

    Raises:
        ValueError: If it is neither.
    """
    if not (isinstance(name, str) and is_folder(name)):
        check_choice("network for text", name, [*TEXT_NETWORKS, "a folder such as ./model"])


def build_text_network(
    name: str,
    *,
    num_classes: int,
    vocabulary_size: int,
    padding: int,
    separator: int,
    weights: Path | None = None,
) -> nn.Module:
    """Make a network with new weights from torch's global generator, or with pre-trained ones.

    Args:
        name: `"bag"`, mean word vectors of both sentences and one hidden layer; `"encoder"`, a
            transformer of two layers whose outputs are averaged; `"roberta"`, the paper's network
            for SNLI, `"minilm"`, or the folder of another, of which the last layers alone are new.
        num_classes: Outputs c.
        vocabulary_size: Token numbers are below this.
        padding: The token that fills.
        separator: The token between the two sentences of a pair.
        weights: Folder of the pre-trained network; None for one that is trained from scratch.

    Returns:
        A module from tokens (m, length) to logits (m, c), whose last layer is linear.

    Raises:
        FileNotFoundError: If pre-trained files are missing; says which and where they come from.
        ImportError: If a pre-trained network lacks the package transformers.
        ValueError: If the name is unknown, network and tokens do not belong together, or files of
            weights are not whole.
    """
    check_text_network(name)
    if (name in PRETRAINED or is_folder(name)) is not (weights is not None):
        raise ValueError(
            f"network and tokens must belong together; got {name} and tokens of "
            f"{'words' if weights is None else weights}."
        )
    if weights is not None:
        return Pretrained(weights, num_classes, padding)
    network = _Bag if name == "bag" else _Encoder
    return network(num_classes, vocabulary_size, padding, separator)


class _Bag(nn.Module):
    """Mean word vectors u and v of both sentences; a hidden layer sees u, v, |u - v| and u v."""

    def __init__(
        self, num_classes: int, vocabulary_size: int, padding: int, separator: int
    ) -> None:
        super().__init__()
        self._padding = padding
        self._separator = separator
        self.words = nn.Embedding(vocabulary_size, _WIDTH)
        self.hidden = nn.Linear(4 * _WIDTH, _WIDTH)
        self.head = nn.Linear(_WIDTH, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (m, length) to logits (m, c)."""
        separators = tokens == self._separator
        is_word = (tokens != self._padding) & ~separators
        in_second = separators.cumsum(1) > 0
        vectors = self.words(tokens)
        means = []
        for mask in (is_word & ~in_second, is_word & in_second):
            total = (vectors * mask.unsqueeze(2)).sum(1)
            means.append(total / mask.sum(1, keepdim=True).clamp_min(1))
        first, second = means
        features = torch.cat([first, second, (first - second).abs(), first * second], dim=1)
        logits: Tensor = self.head(functional.relu(self.hidden(features)))
        return logits


class _Encoder(nn.Module):
    """A small transformer (Vaswani et al. 2017), its layers normalized first, and a mean of it.

    Positions and sentences have vectors of their own, added to those of words. A batch is as long
    as its longest text, whatever the rows were padded to.
    """

    def __init__(
        self, num_classes: int, vocabulary_size: int, padding: int, separator: int
    ) -> None:
        super().__init__()
        self._padding = padding
        self._separator = separator
        self.words = nn.Embedding(vocabulary_size, _WIDTH)
        self.positions = nn.Embedding(_POSITIONS, _WIDTH)
        self.sentences = nn.Embedding(2, _WIDTH)
        for embedding in (self.words, self.positions, self.sentences):
            nn.init.normal_(embedding.weight, std=_WIDTH**-0.5)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 2 * _WIDTH, dropout=0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, _LAYERS, norm=nn.LayerNorm(_WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(_WIDTH, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (m, length) to logits (m, c)."""
        tokens = cut(tokens[:, :_POSITIONS], self._padding)
        is_second = (tokens == self._separator).cumsum(1) > 0
        places = torch.arange(tokens.shape[1], device=tokens.device)
        vectors = self.words(tokens) + self.positions(places) + self.sentences(is_second.long())
        is_word = tokens != self._padding
        is_word[:, 0] = True  # of an empty text: attention needs something to look at
        encoded = self.layers(vectors, src_key_padding_mask=~is_word) * is_word.unsqueeze(2)
        logits: Tensor = self.head(encoded.sum(1) / is_word.sum(1, keepdim=True))
        return logits
