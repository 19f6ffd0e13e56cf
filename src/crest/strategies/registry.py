"""The one list of strategies: each registers itself, and tells what others must know of it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from crest.checks import ArgumentTypeError, boolean, check, check_choice, instance
from crest.strategies.protocol import Strategy

__all__ = [
    "NEEDS",
    "THIS_PAPER",
    "Need",
    "Paper",
    "StrategyEntry",
    "find_strategy",
    "make_strategy",
    "register_strategy",
    "registered_strategies",
    "word_of",
]

Need = Literal["passes", "losses", "outputs", "validation_loader", "lr"]

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "passes": "forward passes of its own",
        "losses": "losses of training",
        "outputs": "outputs of training",
        "validation_loader": "a validation loader",
        "lr": "the learning rate",
    }
)

_FOLLOWED = ("budget", "lr", "num_steps")  # what a run knows


class Paper(NamedTuple):
    """Where a strategy is from.

    Attributes:
        title: Of the paper.
        authors: Family names with commas between.
        venue: Conference, journal or archive.
        year: Of the publication.
    """

    title: str
    authors: str
    venue: str
    year: int

    @property
    def short(self) -> str:
        """Authors, venue and year, such as "Yang et al., ICML 2023"."""
        first, *others = self.authors.split(", ")
        return f"{first}{' et al.' if others else ''}, {self.venue} {self.year}"


THIS_PAPER = Paper(  # the one that this library implements
    "Towards Sustainable Learning: Coresets for Data-efficient Deep Learning",
    "Yang, Kang, Mirzasoleiman",
    "ICML",
    2023,
)


@dataclass(frozen=True, kw_only=True)
class StrategyEntry:
    """What is known of a strategy beside what it does, see `register_strategy`.

    Attributes:
        word: What it is called on the command line, in records and by `strategy=`.
        make: Makes it, from fields as keywords.
        settings: The dataclass that is made.
        line: What it does, in one line.
        needs: What it must be given or do, keys of `NEEDS`.
        paper: Where it is from, None if from here.
        follows: Fields that are those of the run unless told otherwise, with what they follow.
        takes_all_steps: Whether its budget is always 1.
        compresses_schedule: Whether the learning-rate schedule ends with the budget.
        is_baseline: Whether others are compared with it, and not it with random batches.
        style: Colour and line in figures, None for the next that is free.
        unselected: Why some of its steps may be on random batches, if a report shall say so.
    """

    word: str
    make: Callable[..., Any]
    settings: type[Any]
    line: str
    needs: tuple[Need, ...]
    paper: Paper | None
    follows: Mapping[str, str]
    takes_all_steps: bool
    compresses_schedule: bool
    is_baseline: bool
    style: tuple[str, str] | None
    unselected: str

    @property
    def option_types(self) -> dict[str, Any]:
        """Type of each of its settings by name, those of a group such as advanced ones among them.

        A group is a field that is a dataclass itself.
        """
        types = _field_types(self.settings)
        for group, kind in _groups(self.settings).items():
            del types[group]
            types |= _field_types(kind)
        return types

    @property
    def fields(self) -> list[str]:
        """Names of its settings, as `option_types` has them."""
        return list(self.option_types)

    def with_options(self, options: Mapping[str, Any], **more: Any) -> Strategy:
        """Make it with some settings.

        Args:
            options: Values by name, as `option_types` has them.
            **more: Other arguments, such as a `validation_loader`.

        Returns:
            The strategy.
        """
        groups = {
            group: kind(**{name: options[name] for name in _field_types(kind) if name in options})
            for group, kind in _groups(self.settings).items()
        }
        own = {name: options[name] for name in _field_types(self.settings) if name in options}
        strategy: Strategy = self.make(**own, **groups, **more)
        return strategy

    @property
    def needs_validation(self) -> bool:
        """Whether it is made with a `validation_loader`."""
        return "validation_loader" in self.needs

    @property
    def needs_in_words(self) -> str:
        """What it needs, with commas between; empty if nothing."""
        return ", ".join(NEEDS[need] for need in self.needs)

    def followed(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Give the fields that follow a run.

        Args:
            run: What is known of it, of `budget`, `lr` and `num_steps`.

        Returns:
            Fields by name.
        """
        return {field: run[name] for field, name in self.follows.items() if name in run}


_ENTRIES: dict[str, StrategyEntry] = {}

_Make = TypeVar("_Make", bound=Callable[..., Any])


def register_strategy(
    word: str,
    *,
    line: str | None = None,
    needs: tuple[Need, ...] = (),
    paper: Paper | None = None,
    follows: Mapping[str, str] = MappingProxyType({}),
    takes_all_steps: bool = False,
    compresses_schedule: bool = True,
    is_baseline: bool = False,
    style: tuple[str, str] | None = None,
    unselected: str = "",
) -> Callable[[_Make], _Make]:
    """Give a strategy a word, by which loaders, the command line and reports know it.

    Put it above the dataclass of a strategy, or call it with a function that makes one and is
    annotated with what it returns.

    Args:
        word: Small letters, digits and underscores, beginning with a letter.
        line: What it does, in one line. None: the first line of its docstring.
        needs: What it must be given or do, of `"passes"` (forward passes of its own), `"losses"`
            and `"outputs"` (of training, see `CoresetLoader.observe`), `"validation_loader"` (an
            argument of that name) and `"lr"`.
        paper: Where it is from. None: from here.
        follows: Fields that are the `"budget"`, the peak `"lr"` or the `"num_steps"` of a run
            unless told otherwise: names of fields to these words.
        takes_all_steps: Whether it trains on all batches whatever the budget.
        compresses_schedule: Whether the learning-rate schedule of an experiment ends with the
            budget. False: it is that of full training, and stops early.
        is_baseline: Whether others are compared with it. False: reports say what it gains over
            random batches, and `crest compare --time-matched` gives these as many seconds.
        style: Colour and line of matplotlib in figures. None: the next that is free.
        unselected: Why a run may train on random batches in part, for strategies whose records
            tell what was `selected`; reports then say so.

    Returns:
        A decorator that registers what it is given and gives it back.

    Raises:
        TypeError: If an argument is of a wrong kind, or what is registered makes no dataclass, or
            one with fields that lack a default.
        ValueError: If the word is taken or no word, or a name is unknown.

    Example:
        >>> from crest import Random
        >>> register_strategy("by_chance", is_baseline=True)(Random) is Random
        True
        >>> _ENTRIES.pop("by_chance").line
        'Shuffled passes over the data, every weight 1'
    """
    _check_arguments(word, line, needs, paper, style, unselected)
    for name, value in (
        ("takes_all_steps", takes_all_steps),
        ("compresses_schedule", compresses_schedule),
        ("is_baseline", is_baseline),
    ):
        check(name, value, boolean())

    def register(make: _Make) -> _Make:
        settings = _settings_of(make)
        entry = StrategyEntry(
            word=word,
            make=make,
            settings=settings,
            line=_first_line(make) if line is None else line,
            needs=tuple(needs),
            paper=paper,
            follows=MappingProxyType(dict(follows)),
            takes_all_steps=takes_all_steps,
            compresses_schedule=compresses_schedule,
            is_baseline=is_baseline,
            style=style,
            unselected=unselected,
        )
        for field, name in follows.items():
            check_choice(f"field of {settings.__name__} in follows", field, entry.fields)
            check_choice(f"follows[{field!r}]", name, _FOLLOWED)
        _check_defaults(entry)
        taken = _ENTRIES.get(word)
        # The same name again is the same strategy, from a cell or a file that was run again.
        if taken is not None and _full_name(taken.make) != _full_name(make):
            raise ValueError(
                f"word must be a new one; got {word!r}, which is {_full_name(taken.make)}."
            )
        _ENTRIES[word] = entry
        return make

    return register


def registered_strategies() -> dict[str, StrategyEntry]:
    """List all strategies that have a word.

    Returns:
        What is known of each, by word: first those that reports compare with random batches, then
        the baselines; those of papers by year, the others last.

    Example:
        >>> next(iter(registered_strategies()))
        'crest'
    """
    by_year = sorted(
        _ENTRIES.values(),
        key=lambda entry: (entry.is_baseline, entry.paper.year if entry.paper else math.inf),
    )
    return {entry.word: entry for entry in by_year}


def find_strategy(word: str) -> StrategyEntry:
    """Look a strategy up.

    Args:
        word: As it was registered.

    Returns:
        What is known of it.

    Raises:
        ValueError: If no strategy has that word; suggests the closest.
    """
    known = registered_strategies()
    check_choice("strategy", word, known)
    return known[word]


def word_of(make: Callable[..., Any]) -> str:
    """Look up the word of a class, or of another function that makes a strategy.

    Args:
        make: As it was registered.

    Returns:
        The word.

    Raises:
        ValueError: If it was not registered.

    Example:
        >>> from crest import GreedyMiniBatch
        >>> word_of(GreedyMiniBatch)
        'greedy'
    """
    for word, entry in _ENTRIES.items():
        if entry.make == make:
            return word
    raise ValueError(f"{_full_name(make)} must be registered; it has no word.")


def make_strategy(word: str, **run: Any) -> Strategy:
    """Make a strategy with its defaults, by word.

    Args:
        word: As it was registered.
        **run: What its fields may follow, of `budget`, `lr` and `num_steps`.

    Returns:
        The strategy.

    Raises:
        ValueError: If no strategy has that word, or it needs more than a word.

    Example:
        >>> make_strategy("craig", budget=0.2).subset_fraction
        0.2
    """
    entry = find_strategy(word)
    if entry.needs_validation:
        name = f"{entry.settings.__module__.partition('.')[0]}.{entry.make.__qualname__}"
        raise ValueError(
            f"strategy must be an object where it needs a validation loader; got {word!r}. Write "
            f"strategy={name}(validation_loader=...), a DataLoader over held-out examples."
        )
    return entry.with_options(entry.followed(run))


def _check_arguments(
    word: Any, line: Any, needs: Any, paper: Any, style: Any, unselected: Any
) -> None:
    text = instance(str, text="a string")
    check("word", word, text, 'Write register_strategy("word") above the class.')
    if not re.fullmatch("[a-z][a-z0-9_]*", word):
        raise ValueError(
            "word must be small letters, digits and underscores, beginning with a letter; got "
            f"{word!r}."
        )
    if line is not None:
        check("line", line, text)
    check("unselected", unselected, text)
    check("needs", needs, instance(tuple, list, text="a tuple of words"))
    for need in needs:
        check_choice("needs", need, NEEDS)
    if paper is not None:
        check("paper", paper, instance(Paper, text="a Paper"))
    if style is not None and not (len(style) == 2 and all(isinstance(of, str) for of in style)):
        raise ArgumentTypeError(f"style must be a colour and a line, two strings; got {style!r}.")


def _settings_of(make: Any) -> type[Any]:
    """Tell the dataclass that is made, by a class or by a function annotated with it."""
    made = make
    if not isinstance(make, type):
        try:
            made = typing.get_type_hints(make).get("return")
        except (NameError, TypeError):  # of a class that is local to another function; no function
            made = None
    if not (isinstance(made, type) and dataclasses.is_dataclass(made)):
        raise ArgumentTypeError(
            "a registered strategy must be a dataclass, whose fields are its settings, or a "
            f"function annotated with one; got {make!r}. Write @dataclass(frozen=True) below."
        )
    if not callable(getattr(made, "start", None)):
        raise ArgumentTypeError(
            f"a registered strategy must have start(task); {made.__name__} has none."
        )
    return made


def _check_defaults(entry: StrategyEntry) -> None:
    """Refuse fields that a word would leave open."""
    needed = [
        name
        for name, parameter in inspect.signature(entry.make).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and not (name == "validation_loader" and entry.needs_validation)
    ]
    if needed:
        raise ArgumentTypeError(
            f"fields of a registered strategy must have defaults, as a word tells none; "
            f"{entry.make.__qualname__} asks for {', '.join(needed)}."
        )


def _first_line(make: Any) -> str:
    return (inspect.getdoc(make) or "").partition("\n")[0].removesuffix(".")


def _full_name(make: Any) -> str:
    return f"{make.__module__}.{make.__qualname__}"


def _field_types(settings: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def _groups(settings: type[Any]) -> dict[str, type[Any]]:
    """Find the fields that are dataclasses themselves."""
    return {
        name: hint
        for name, hint in _field_types(settings).items()
        if isinstance(hint, type) and dataclasses.is_dataclass(hint)
    }
