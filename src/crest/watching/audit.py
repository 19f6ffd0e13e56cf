"""How many labels are wrong, how they came about, and which they are, read off training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LabelNoise", "Predictions", "estimate_label_noise", "wrong_label_chance"]

_SUREST = 0.05  # share of the predictions that are looked at, of all and of each class
_FEWEST = 50  # of these, for a share to mean something
_CONFUSED = 2.0  # times as often one way as the other: a model's own confusions may be so uneven
_ERRORS = 2.0  # standard errors beyond that, for labels to be moved on purpose


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

    def averaged(self, new: LabelNoise, share: float) -> LabelNoise:
        """Move towards another estimate.

        Args:
            new: The other.
            share: Of it, in [0, 1].

        Returns:
            The average.
        """
        pairs, place = torch.cat([self.pairs, new.pairs]).unique(return_inverse=True)
        rates = torch.zeros(len(pairs))
        rates.index_add_(0, place, torch.cat([(1 - share) * self.rates, share * new.rates]))
        return LabelNoise(
            (1 - share) * self.share + share * new.share,
            (1 - share) * self.uniform + share * new.uniform,
            pairs,
            rates,
        )

    def rate_of(self, true: Tensor, given: Tensor, num_classes: int) -> Tensor:
        """Look up how often a class is labelled as another beyond chance, shape of `true`."""
        if not len(self.pairs):
            return torch.zeros(true.shape)
        wanted = true.long() * num_classes + given.long()
        place = torch.searchsorted(self.pairs, wanted).clamp(max=len(self.pairs) - 1)
        return torch.where(self.pairs[place] == wanted, self.rates[place], 0.0)


def estimate_label_noise(seen: Predictions, weights: Tensor | None = None) -> LabelNoise | None:
    """Estimate how many labels are wrong from where the model is surest.

    Surest predictions are as the anchor points of Patrini et al. (CVPR 2017): what contradicts them
    is a mistake of the labels, or of the model. The two differ in kind. A wrong label of *any* class
    is as often behind the middle of the other classes, in the order of their probabilities, as
    before it; a model's own mistakes are before it. So twice the share behind the middle is the
    share of such labels (the thought by which Storey, 2002, counts true null hypotheses among
    p-values). And labels that were moved from one class to *another one* go one way, where a model's
    confusions go both: what a class is labelled as beyond twice the way back, and beyond two
    standard errors, was moved. Labels swapped both ways are not told from what a model confuses.

    Args:
        seen: Of k examples.
        weights: How many examples each stands for, shape (k,). None: one.

    Returns:
        The estimate; None if there are too few examples.
    """
    k, c = len(seen.given), seen.num_classes
    if int(_SUREST * k) < _FEWEST:
        return None
    weights = torch.ones(k) if weights is None else weights.float()
    sureness = torch.maximum(seen.p_given, seen.p_other)
    order = sureness.argsort(descending=True)
    surest = order[weights[order].cumsum(0) <= _SUREST * float(weights.sum())]
    rank, middle = seen.behind[surest].double() * (c - 1), c / 2
    half = (rank > middle + 1e-3).double() + 0.5 * ((rank - middle).abs() <= 1e-3).double()
    uniform = min(2 * float((half * weights[surest]).sum() / weights[surest].sum()), 1.0)
    pairs, rates, shares = _moved_labels(seen, weights, order, uniform / max(c - 1, 1))
    share = min(uniform + float((rates * shares).sum()), 1.0)
    return LabelNoise(share, uniform, pairs, rates)


def _moved_labels(
    seen: Predictions, weights: Tensor, order: Tensor, chance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pairs of classes of which one is labelled as the other.

    Args:
        seen: Of k examples.
        weights: Shape (k,).
        order: The k examples, surest first.
        chance: Rate of each wrong class in labels of any class.

    Returns:
        Pairs and rates as of `LabelNoise`, and the share of the true class among all predictions.
    """
    c = seen.num_classes
    predicted = seen.predicted[order]
    by_class = predicted.argsort(stable=True)
    rows = order[by_class]
    predicted, w = predicted[by_class], weights[rows].double()
    totals = torch.zeros(c, dtype=torch.float64).index_add_(0, predicted, w)
    before = totals.cumsum(0) - totals
    place = w.cumsum(0) - before[predicted]  # weight of the surest of its class up to here
    top = place <= torch.clamp(_SUREST * totals, min=10.0)[predicted]
    predicted, given, w = predicted[top], seen.given[rows][top].long(), w[top]
    sizes = torch.zeros(c, dtype=torch.float64).index_add_(0, predicted, w)
    pairs, inverse = (predicted * c + given)[given != predicted].unique(return_inverse=True)
    counts = torch.zeros(len(pairs), dtype=torch.float64)
    counts.index_add_(0, inverse, w[given != predicted])
    true, label = pairs // c, pairs % c
    there = counts / sizes[true]
    if not len(pairs):
        return pairs, there.float(), there.float()
    reverse = label * c + true
    spot = torch.searchsorted(pairs, reverse).clamp(max=len(pairs) - 1)
    back = torch.where(pairs[spot] == reverse, counts[spot] / sizes[label].clamp(min=1), 0.0)
    error = (there / sizes[true] + back / sizes[label].clamp(min=1)).sqrt()
    moved = there - _CONFUSED * back - _ERRORS * error > 0
    rates = (there - back - chance)[moved].clamp(min=0)
    return pairs[moved], rates.float(), (totals / totals.sum())[true[moved]].float()


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
