"""Reads the situation from what training showed, and plans what to train on next."""

from __future__ import annotations

import logging
import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from crest.pool import Deck
from crest.strategies.online.rules import class_shares, draw_by_norm, pick_cover, repeats
from crest.strategies.protocol import Examples, MiniBatch, Region, Task
from crest.watching.audit import (
    LabelNoise,
    estimate_label_noise,
    score_labels,
    wrong_label_chance,
)
from crest.watching.examples import ExampleMemory

if TYPE_CHECKING:
    from crest.strategies.online.settings import OnlineSelection

__all__ = ["OnlinePlanner", "Situation"]

_log = logging.getLogger(__name__)

_RANDOM_STEPS = 64  # planned at once: a loop of which nothing is seen hears of it soon
_PATIENCE = 1.5  # passes until examples that were not seen are missed
_CLEAN = 0.05  # estimated share of wrong labels up to which labels count as clean
_TRUSTED = 2  # passes after which doubt is strong enough to leave examples out
_SETTLED = 0.8  # of the estimate before: where it falls faster, the model still learns
_DOUBT = 0.5  # chance of a wrong label beyond which an example is left out
_UNBALANCED = 3.0  # times the examples of the smallest class
_FEW_CLASSES = 4  # up to here p - y has so few dimensions that a cover is a search for the hardest
_CHASES = 1.2  # times the doubt of candidates: beyond it they are drawn by chance
_EXPONENT = 0.5  # of the norm, by which candidates may be drawn
_CANDIDATES_AT_ONCE = 2**14  # whose sketches are picked from together


class Situation(NamedTuple):
    """What was found, and what is done about it.

    Attributes:
        rule: `"cover"`, `"norm"` or `"chance"`.
        noise: Estimated share of wrong labels, None if unknown.
        imbalance: Examples of the largest class over those of the smallest, 1 without classes.
        balance: How far classes are balanced, in [0, 1].
    """

    rule: str
    noise: float | None
    imbalance: float
    balance: float


class OnlinePlanner:
    """What online selection carries from one region to the next.

    Args:
        settings: Of the strategy.
        task: Sizes and randomness of the run.
        num_candidates: r.
    """

    def __init__(self, settings: OnlineSelection, task: Task, num_candidates: int) -> None:
        self._settings = settings
        self._task = task
        self._num_candidates = num_candidates
        self._memory = ExampleMemory(task.num_examples)
        self._deck = Deck(task.num_examples, task.generator)
        self._device = torch.device("cpu")  # where gradients come from, and are picked by
        self._drawn = 0  # examples planned so far
        self._left_out = torch.zeros(task.num_examples, dtype=torch.bool)
        self._doubt = torch.zeros(task.num_examples)  # chance that a label is wrong
        self._noise: LabelNoise | None = None
        self._gave_up = False
        self._has_warned = False
        self._said: tuple[Any, ...] = ()

    @property
    def active(self) -> Tensor:
        """Which examples are not left out, bool, shape (n,)."""
        return ~self._left_out

    @property
    def _pass(self) -> int:
        return self._drawn // self._task.num_examples

    def observe(self, indices: Tensor, losses: Tensor) -> None:
        """Hear the losses of a mini-batch that was trained on."""
        self._memory.tell(indices, losses)

    def remember(self, indices: Tensor, errors: Tensor) -> None:
        """Hear the derivatives of its losses by the outputs."""
        self._memory.tell_errors(indices, errors)
        self._device = errors.device

    @property
    def first_selected_step(self) -> int:
        """After the first pass, which is random."""
        return self._task.steps_of_a_pass

    def knowledge(self) -> dict[str, Tensor]:
        """Tell what is known of each example, see `Knows`."""
        memory = self._memory
        memory.take_in()
        known = {"num_observations": memory.times_seen, "smoothed_loss": memory.loss}
        if memory.num_outputs > 1 and memory.is_cross_entropy:
            rows = memory.known.nonzero().squeeze(1)
            score = torch.full((len(memory.given),), math.nan)
            score[rows] = score_labels(memory.predictions(rows, memory.num_outputs), self._noise)
            known |= {
                "given_label": memory.given,
                "predicted_label": memory.given.where(memory.margin >= 0, memory.other),
                "p_given": memory.p_given,
                "p_other": memory.p_other,
                "label_score": score,
                "is_label_issue": self._left_out,
            }
        return {name: values.clone() for name, values in known.items()}

    def next_region(self, examples: Examples, step: int) -> Region:
        """Read the situation and plan what follows.

        Args:
            examples: The data set; only its clock is asked for.
            step: Optimizer steps taken so far.

        Returns:
            Random mini-batches in the first pass, selected ones after it.

        Raises:
            ValueError: If nothing was seen and that is an error.
        """
        n = self._task.num_examples
        if not self._drawn and not self._task.is_preview:
            _log.info(
                "the first pass is random; selection begins with step %d",
                self.first_selected_step + 1,
            )
        self._memory.take_in()
        known = self._memory.known
        unknown = n - int(known.sum())
        if self._drawn and unknown == n and not self._task.is_preview:
            self._nothing_seen()
        with examples.timed("select"):
            late = self._drawn >= _PATIENCE * n
            if self._gave_up or (unknown and not late) or unknown > n // 2:
                batches = self._random_batches()
                record: dict[str, Any] = {"updated": False, "selected": False}
            else:
                situation = self._read_situation(known)
                batches = self._selected_batches(situation)
                tells = situation.rule != "chance" or situation.balance > 0
                selects = tells or bool(self._doubt.any())
                record = {
                    "updated": selects,
                    "selected": selects,
                    "left_out": int(self._left_out.sum()),
                    **situation._asdict(),
                }
        self._drawn += sum(len(batch) for batch in batches)
        return Region([MiniBatch.unweighted(batch) for batch in batches], record=record)

    def _nothing_seen(self) -> None:
        what = f"nothing of training was seen so far. {self._task.explain_silence()}"
        if self._settings.if_unseen == "error":
            raise ValueError(f"OnlineSelection needs what training computes; {what}")
        self._gave_up = True
        _log.info("selection is off, and batches are random: %s", what)
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"selection is off, and batches are random: {what}", UserWarning, stacklevel=6
            )

    def _read_situation(self, known: Tensor) -> Situation:
        settings, memory = self._settings, self._memory
        imbalance, balance = 1.0, 0.0
        noise, before = None, self._noise
        rows = known.nonzero().squeeze(1)
        seen = None
        if memory.num_outputs > 1 and memory.is_cross_entropy:
            seen = memory.predictions(rows, memory.num_outputs)
            counts = memory.given[known].bincount()
            counts = counts[counts > 0]
            imbalance = float(counts.max()) / float(counts.min())
            balance = 1.0 if imbalance >= _UNBALANCED else 0.0
            if settings.balance is not None:
                balance = settings.balance
            if settings.noise != "auto":
                noise = LabelNoise.of_any_class(settings.noise)
            elif imbalance < _UNBALANCED:  # else rare classes are contradicted, right or wrong
                # As long as nothing is left out: what is left out would be missed.
                noise = self._noise if self._left_out.any() else estimate_label_noise(seen)
        self._doubt = torch.zeros(len(known))
        is_clean = noise is None or (noise.share <= _CLEAN and settings.noise == "auto")
        if seen is not None and noise is not None and not is_clean:
            self._doubt[rows] = wrong_label_chance(seen, noise)
        self._noise = noise
        share = None if noise is None else noise.share
        is_settled = settings.noise != "auto" or (
            share is not None and before is not None and share > _SETTLED * before.share
        )
        self._left_out = (self._doubt > _DOUBT) & (self._pass >= _TRUSTED and is_settled)
        situation = Situation(self._choose_rule(balance), share, imbalance, balance)
        self._say(situation)
        return situation

    def _choose_rule(self, balance: float) -> str:
        memory = self._memory
        if not memory.num_outputs:
            return "chance"  # losses alone
        if self._settings.rule != "auto":
            return self._settings.rule
        if balance > 0 or memory.num_outputs <= _FEW_CLASSES:
            return "chance"
        return "cover"

    def _say(self, situation: Situation) -> None:
        said = (situation.rule, round(situation.noise or 0.0, 2), situation.balance)
        if said != self._said and not self._task.is_preview:
            self._said = said
            noise = "unknown" if situation.noise is None else f"{situation.noise:.1%}"
            _log.info(
                "selection by %s; wrong labels: %s, %d examples left out; classes 1:%.0f, "
                "balanced by %g",
                situation.rule,
                noise,
                int(self._left_out.sum()),
                situation.imbalance,
                situation.balance,
            )

    def _random_batches(self) -> list[Tensor]:
        """Draw the mini-batches of a pass that come next, some of them: then look again."""
        task = self._task
        left = task.num_examples - self._drawn % task.num_examples
        steps = min(math.ceil(left / (task.batch_size * task.batches_per_step)), _RANDOM_STEPS)
        return [self._deck.draw(task.batch_size) for _ in range(steps * task.batches_per_step)]

    def _selected_batches(self, situation: Situation) -> list[Tensor]:
        """Cut a pass over what is in play into groups of candidates, and pick from each."""
        m = self._task.batch_size
        candidates = self._candidates(situation)
        r = self._num_candidates if situation.rule != "chance" else m
        r = max(min(r, len(candidates)), m)
        accumulated = self._task.batches_per_step
        count = max(len(candidates) // r // accumulated, 1) * accumulated
        while len(candidates) < count * r:  # a pool smaller than a step
            candidates = torch.cat([candidates, candidates])
        groups = candidates[: count * r].view(count, r)
        picks = [
            pick
            for some in groups.split(max(_CANDIDATES_AT_ONCE // r, 1))
            for pick in some.gather(1, self._pick(situation.rule, some, m))
        ]
        if situation.rule == "cover" and self._chases_doubt(torch.cat(picks), groups):
            picks = list(groups[:, :m])
        again = self._again(count * m)
        ends = [k * len(again) // count for k in range(count + 1)]
        return [  # in place of what was picked last
            torch.cat([pick[: m - (end - start)], again[start:end]])
            for pick, start, end in zip(picks, ends[:-1], ends[1:], strict=True)
        ]

    def _chases_doubt(self, picks: Tensor, candidates: Tensor) -> bool:
        """Tell whether picks hold clearly more labels that are likely wrong than candidates do."""
        picked, offered = (float(self._doubt[some].mean()) for some in (picks, candidates))
        return picked > _CHASES * offered

    def _candidates(self, situation: Situation) -> Tensor:
        """List one pass over what is in play, in random order, rare classes more than once.

        Once examples are left out, each of the others comes in with the chance that its label is
        right.

        Args:
            situation: Says how far classes are balanced.

        Returns:
            Example indices, int64.
        """
        generator = self._task.generator
        pool = (~self._left_out).nonzero().squeeze(1)
        rates = torch.ones(len(pool))
        if situation.balance > 0:
            given = self._memory.given[pool].long()
            _, classes, counts = given.unique(return_inverse=True, return_counts=True)
            rates = class_shares(counts, situation.balance)[classes]
        if self._left_out.any():
            rates = rates * (1 - self._doubt[pool])
        if situation.balance > 0 or self._left_out.any():
            pool = pool.repeat_interleave(repeats(rates, generator))
        if len(pool) < self._task.batch_size:  # hardly a label is trusted
            pool = torch.arange(self._task.num_examples)
        return pool[torch.randperm(len(pool), generator=generator)]

    def _again(self, drawn: int) -> Tensor:
        """Choose what is looked at again of what is left out, in random order.

        Args:
            drawn: Examples of the region.

        Returns:
            Example indices, at most half of `drawn`.
        """
        out = self._left_out.nonzero().squeeze(1)
        passes = drawn / self._task.num_examples
        count = min(round(self._settings.second_look * passes * len(out)), drawn // 2)
        return out[torch.randperm(len(out), generator=self._task.generator)[:count]]

    def _pick(self, rule: str, groups: Tensor, size: int) -> Tensor:
        if rule == "chance":
            return torch.arange(size).expand(len(groups), size)
        if rule == "cover":
            return pick_cover(self._expected_errors(groups).to(self._device), size).cpu()
        norms = self._memory.norm[groups].nan_to_num(nan=1.0)
        return draw_by_norm(norms, size, _EXPONENT, self._task.generator)

    def _expected_errors(self, groups: Tensor) -> Tensor:
        """Derivatives by the outputs, as far as labels are likely right.

        A label that is wrong by chance q is the rival with that chance: p - y in expectation.

        Args:
            groups: Example indices, shape (groups, r).

        Returns:
            Float32, shape (groups, r, d).
        """
        memory = self._memory
        errors = memory.sketch[groups].float()
        if not self._doubt.any():
            return errors
        doubt = self._doubt[groups].unsqueeze(-1)
        classes = memory.sketch_of_classes()
        given, other = memory.given[groups].long(), memory.other[groups].long()
        return errors + doubt * (classes[given] - classes[other])

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, and where in the pass the run is."""
        return {
            "memory": self._memory.state_dict(),
            "deck": self._deck.state_dict(),
            "drawn": self._drawn,
            "left_out": self._left_out.clone(),
            "gave_up": self._gave_up,
            "noise": None if self._noise is None else tuple(self._noise),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._memory.load_state_dict(state["memory"])
        self._deck.load_state_dict(state["deck"])
        self._drawn = state["drawn"]
        self._left_out = state["left_out"].clone()
        self._gave_up = state["gave_up"]
        noise = state["noise"]
        self._noise = None if noise is None else LabelNoise(*noise)
