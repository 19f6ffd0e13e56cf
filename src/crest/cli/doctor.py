"""`crest doctor`: looks a run over before it is trained."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import crest
from crest.cli.machine import find_device
from crest.cli.training import FIELDS, add_options
from crest.cli.user_code import import_user_code
from crest.cli.words import listed, positive
from crest.lab.data.datasets import load_dataset
from crest.lab.run.planning import plan_runs
from crest.lab.run.training import count_steps, make_untrained_loader
from crest.strategies import OnlineSelection, registered_strategies
from crest.strategies.registry import word_of

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the whole.
    """
    parser = commands.add_parser(
        "doctor",
        help="look a run over before it is trained: what is observed, when it selects, the cost",
        description="DATA may also be MODULE:FUNCTION or FILE.py:FUNCTION, a function of yours "
        "that returns a CoresetLoader.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        default=word_of(OnlineSelection),
        help=f"{listed(registered_strategies())} (default: {word_of(OnlineSelection)})",
    )
    parser.add_argument(
        "--num-steps",
        type=positive,
        metavar="N",
        help="optimizer steps of the whole run (default: known for DATA, unknown for a function)",
    )
    parser.set_defaults(command=_doctor)
    add_options(parser)


def _doctor(chosen: argparse.Namespace) -> None:
    place, colon, function = chosen.data.rpartition(":")
    if colon:
        loader, num_steps = _call(place, function), None
    else:
        loader, num_steps = _from_lab(chosen)
    print(crest.doctor(loader, num_steps=chosen.num_steps or num_steps))


def _call(place: str, function: str) -> crest.CoresetLoader:
    """Get the loader that a function of the user makes."""
    import_user_code(place)
    module = importlib.import_module(Path(place).stem if place.endswith(".py") else place)
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{place} must have a function {function!r}; it has none.")
    loader = make()
    if not isinstance(loader, crest.CoresetLoader):
        raise ValueError(
            f"{function} of {place} must return a CoresetLoader; got {type(loader).__name__}."
        )
    return loader


def _from_lab(chosen: argparse.Namespace) -> tuple[crest.CoresetLoader, int]:
    (settings,) = plan_runs(
        chosen.data,
        [chosen.strategy],
        [0],
        options=dict(chosen.option),
        device=find_device(chosen.device),
        **{name: getattr(chosen, name) for name in FIELDS},
    )
    data = load_dataset(
        chosen.data, chosen.data_dir, image_size=chosen.image_size, network=settings.network
    )
    return make_untrained_loader(settings, data), count_steps(settings, data)
