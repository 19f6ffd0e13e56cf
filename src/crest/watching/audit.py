"""How many labels are wrong, how they came about, and which they are, read off training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LabelNoise",
    "Predictions",
    "estimate_label_noise",
    "score_labels",
    "wrong_label_chance",
]

_SUREST = 0.05  # share of the predictions that are looked at, of all and of each class
_ENOUGH, _MOST = 250, 0.2  # at least so many, as long as they are no larger share
_FEWEST = 50  # of these, for a share to mean something
_FEWEST_OF_CLASS = 10
_KNOWS = 1 / 3  # of the certainty beyond chance that labels allow; a model with less tells nothing
_MOST_WRONG = 0.75  # of the share that labels by chance have, and a model that has learned nothing
_TIE = 1e-3  # of ranks, kept in half precision
_CONFUSED = 2.0  # times as often one way as the other: a model's own confusions may be so uneven
_ERRORS = 2.0  # standard errors beyond that, for labels to be moved on purpose
_ALWAYS = 0.01  # share of labels of any class that a ranking allows for: none would rank nothing


class Predictions(NamedTuple):
    """What training showed of some examples, smoothed over the times that they were seen.

    Attributes:
        given: Class of the label, shape (k,).
        other: Its strongest rival, shape (k,).
        p_given: Probability of `given`, shape (k,).
        p_other: Probability of `other`, shape (k,).
        behind: Share of the other classes that are likelier than `given`, shape (k,).
        num_classes: C.
    """

    given: Tensor
    other: Tensor
    p_given: Tensor
    p_other: Tensor
    behind: Tensor
    num_classes: int

    @property
    def predicted(self) -> Tensor:
        """The likeliest class, shape (k,)."""
        return torch.where(self.p_other > self.p_given, self.other, self.given).long()


class LabelNoise(NamedTuple):
    """Estimates of how labels came to be wrong.

    Attributes:
        share: Of wrong labels, in [0, 1].
        uniform: Share of labels that are any other class, each as likely.
        pairs: True class times C plus the class that it is labelled as, where one class is
            labelled as another beyond that, sorted, int64, shape (pairs,).
        rates: Share of the true class that is labelled so, shape (pairs,).
    """

    share: float
    uniform: float
    pairs: Tensor
    rates: Tensor

    @classmethod
    def of_any_class(cls, share: float) -> LabelNoise:
        """Say that a share of the labels is any other class."""
        return cls(share, share, torch.empty(0, dtype=torch.int64), torch.empty(0))

    def rate_of(self, true: Tensor, given: Tensor, num_classes: int) -> Tensor:
        """Look up how often a class is labelled as another beyond chance, shape of `true`."""
        if not len(self.pairs):
            return torch.zeros(true.shape)
        wanted = true.long() * num_classes + given.long()
        place = torch.searchsorted(self.pairs, wanted).clamp(max=len(self.pairs) - 1)
        return torch.where(self.pairs[place] == wanted, self.rates[place], 0.0)


def estimate_label_noise(seen: Predictions) -> LabelNoise | None:
    """Estimate how many labels are wrong from where the model is surest.

    Surest predictions are as the anchor points of Patrini et al. (CVPR 2017): what contradicts them
    is a mistake of the labels, or of the model. The two differ in kind. A wrong label of *any*
    class is as often behind the middle of the other classes, in the order of their probabilities,
    as before it; a model's own mistakes are before it. So twice the share behind the middle is the
    share of such labels (the thought by which Storey, 2002, counts true null hypotheses among
    p-values). And labels that were moved from one class to *another one* go one way, where a
    model's confusions go both: what a class is labelled as beyond twice the way back, and beyond
    two standard errors, was moved. Labels swapped both ways are not told from what a model
    confuses.

    A model that has learned little so far, in a long warm-up say, has no sure predictions: its own
    mistakes are anywhere in that order, and look as if all labels were wrong. Surest predictions
    that claim less than a third of what the estimate would allow tell nothing, and neither does an
    estimate of three quarters or more of what labels by chance would have.

    Args:
        seen: Of k examples.

    Returns:
        The estimate; None if there are too few examples, or the model knows too little.
    """
    k, c = len(seen.given), seen.num_classes
    count = max(int(_SUREST * k), min(_ENOUGH, int(_MOST * k)))
    if count < _FEWEST:
        return None
    certainty = torch.maximum(seen.p_given, seen.p_other)
    order = certainty.argsort(descending=True)
    surest = order[:count]
    rank, middle = seen.behind[surest].double() * (c - 1), c / 2
    half = (rank > middle + _TIE).double() + 0.5 * ((rank - middle).abs() <= _TIE).double()
    contradicted = float((seen.p_other > seen.p_given)[surest].double().mean())
    uniform = min(2 * float(half.mean()), contradicted)  # ranks are averages, and lag behind
    pairs, rates, shares = _moved_labels(seen, order, uniform / max(c - 1, 1))
    share = min(uniform + float(rates @ shares), 1.0)
    by_chance = 1 - 1 / c
    claimed = float(certainty[surest].mean()) - 1 / c
    if c > 1 and (share > _MOST_WRONG * by_chance or claimed < _KNOWS * (1 - share) * by_chance):
        return None
    return LabelNoise(share, uniform, pairs, rates)


def _moved_labels(seen: Predictions, order: Tensor, chance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pairs of classes of which one is labelled as the other.

    Args:
        seen: Of k examples.
        order: The k examples, surest first.
        chance: Rate of each wrong class in labels of any class.

    Returns:
        Pairs and rates as of `LabelNoise`, and the share of the true class among all predictions.
    """
    c = seen.num_classes
    order = order[seen.predicted[order].argsort(stable=True)]  # by class, surest first
    predicted = seen.predicted[order]
    totals = predicted.bincount(minlength=c)
    place = torch.arange(len(order)) - (totals.cumsum(0) - totals)[predicted]
    top = place < (_SUREST * totals).clamp(min=_FEWEST_OF_CLASS)[predicted]
    predicted, given = predicted[top], seen.given[order[top]].long()
    sizes = predicted.bincount(minlength=c).clamp(min=1)
    pairs, counts = (predicted * c + given)[given != predicted].unique(return_counts=True)
    true, label = pairs // c, pairs % c
    reverse = label * c + true
    back_count = torch.zeros_like(counts)
    if len(pairs):
        spot = torch.searchsorted(pairs, reverse).clamp(max=len(pairs) - 1)
        back_count = torch.where(pairs[spot] == reverse, counts[spot], 0)
    there, back = counts / sizes[true], back_count / sizes[label]
    error = (there / sizes[true] + back / sizes[label]).sqrt()
    moved = there - _CONFUSED * back > _ERRORS * error
    rates = (there - back - chance)[moved].clamp(min=0)
    return pairs[moved], rates, (totals / totals.sum())[true[moved]]


def wrong_label_chance(seen: Predictions, noise: LabelNoise) -> Tensor:
    """Compute how likely each label is wrong, given how labels come to be wrong (Bayes' rule).

    A model that is trained on wrong labels predicts them too. Its probabilities of two classes, the
    given one and its rival, are taken apart into those of the true classes; then the label is wrong
    if it is one of any class, or was moved from the rival. Small losses are learned first (Arpit et
    al., ICML 2017), and margins rank labels (Pleiss et al., NeurIPS 2020): this uses both, and is
    a probability.

    Args:
        seen: Of k examples.
        noise: As estimated.

    Returns:
        In [0, 1], float32, shape (k,).
    """
    c = seen.num_classes
    each = noise.uniform / max(c - 1, 1)
    leaves = torch.zeros(c).index_add_(0, noise.pairs // c, noise.rates)
    stays = (1 - noise.uniform - leaves).clamp(min=1e-3)
    given, other = seen.given.long(), seen.other.long()
    moved = noise.rate_of(other, given, c)
    is_other = ((seen.p_other - each) / (stays[other] - each).clamp(min=1e-3)).clamp(0, 1)
    is_given = (
        (seen.p_given - each - moved * is_other) / (stays[given] - each).clamp(min=1e-3)
    ).clamp(0, 1)
    wrong = each * (1 - is_given) + moved * is_other
    return wrong / (wrong + stays[given] * is_given).clamp(min=1e-12)


def score_labels(seen: Predictions, noise: LabelNoise | None) -> Tensor:
    """Score labels so that those that look wrong come first.

    The chance to be right ranks labels of any class as the smoothed loss does, and labels moved to
    another class as the margin does, or better (docs/results/default.md).

    Args:
        seen: Of k examples.
        noise: As estimated; None: unknown.

    Returns:
        The chance that each label is right, in a data set of which at least 1 % are any class;
        (1 + margin) / 2 where the noise is unknown; in [0, 1], low = suspicious, float32, shape
        (k,).
    """
    if noise is None:
        return ((1 + seen.p_given - seen.p_other) / 2).clamp(0, 1)
    return 1 - wrong_label_chance(seen, noise._replace(uniform=max(noise.uniform, _ALWAYS)))
