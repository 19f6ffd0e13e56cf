"""Online selection: settings, each part of which can be set or switched off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crest.checks import check_fields, number, one_of, optional, whole, word_or
from crest.strategies.coresets import resolve_num_candidates
from crest.strategies.online.planner import OnlinePlanner
from crest.strategies.protocol import Planner, Task
from crest.strategies.registry import register_strategy

__all__ = ["OnlineSelection"]


@register_strategy(
    "online",
    line="By what training itself shows, seen without a line in the loop, as the data asks",
    needs=("losses", "outputs"),
    style=("#cc79a7", "--"),
    unselected="the first pass is random, and later ones where nothing tells what to choose",
)
@dataclass(frozen=True, kw_only=True)
class OnlineSelection:
    """Select from what training itself shows, which costs no pass of its own.

    Nothing has to be told: the loader sees outputs and gradients in the loop by itself. The first
    pass is random. From then on, at the start of each region, the strategy reads the situation from
    what was seen, and says in the records of the history what it does:

    - how many labels are wrong (`noise`), and how likely each one is (see
      `crest.watching.audit`). After two passes those more likely wrong than right are left out
      (`left_out`), but for some that are looked at again, and the others come in with the chance
      that they are right. Up to 5 % labels count as clean;
    - whether classes are unbalanced (`imbalance`), and then draws rare ones more often
      (class-balanced sampling), and suspects none;
    - which `rule` picks m of r candidates: a cover of the gradients that training showed (Eq. (5)
      of CREST on the derivatives by the outputs of Salaun et al., 2023), in expectation over which
      labels are right; chance where classes are few or unbalanced, or where the cover would pick
      more wrong labels than there are.

    Where a part cannot apply it is left out: without classes nothing is balanced or suspected, and
    for sequences the loss alone is remembered.

    Args:
        rule: How candidates are picked. `"auto"` as told above; `"cover"`, `"chance"`, or `"norm"`,
            a draw by the root of the norm of remembered gradients, for one of the three throughout.
        noise: Share of labels that are any other class, in [0, 1). `"auto"` estimates it, and which
            classes are labelled as which others; 0 leaves nothing out.
        balance: How far classes are balanced, from 0, in proportion to the data, to 1, all alike.
            None: 1 where the largest class has three times the examples of the smallest or more.
        num_candidates: r, in [m, n]. None: four mini-batches, or n if that is less. A mini-batch of
            more than 64 is covered in parts, so that time grows with m and not with its square.
        second_look: Share of what is left out that is trained on again in a pass, in [0, 1].
        if_unseen: What to do where nothing of training can be seen: `"error"`, or `"go on"` with
            random batches and one warning.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> OnlineSelection(noise=0).rule
        'auto'
    """

    rule: Literal["auto", "cover", "norm", "chance"] = "auto"
    noise: float | Literal["auto"] = "auto"
    balance: float | None = None
    num_candidates: int | None = None
    second_look: float = 0.1
    if_unseen: Literal["error", "go on"] = "error"

    def __post_init__(self) -> None:
        check_fields(self, _RULES)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        r = resolve_num_candidates(self.num_candidates, task, batches=4)
        return OnlinePlanner(self, task, r)


_RULES = {
    "rule": one_of("auto", "cover", "norm", "chance"),
    "noise": word_or("auto", number(0, 1, below=True)),
    "balance": optional(number(0, 1)),
    "num_candidates": optional(whole(1)),
    "second_look": number(0, 1),
    "if_unseen": one_of("error", "go on"),
}
