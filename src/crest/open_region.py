"""The region under way: what is left of it, and its batches, fetched one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crest.data_view import DataView
from crest.history import History
from crest.reader import Reader, Request
from crest.strategies.protocol import MiniBatch, Region

__all__ = ["OpenRegion"]


class OpenRegion:
    """Fetches the batches of a region in order, and nothing beyond its end.

    Args:
        reader: Reads what the dataset gives, with the workers of the user's loader.
        examples: Holds the views that were selected.
        history: Is told the seconds.
        trains_on_held: Whether views that are held are trained on, or read anew.
    """

    def __init__(
        self, reader: Reader, examples: DataView, history: History, *, trains_on_held: bool
    ) -> None:
        self._reader = reader
        self._examples = examples
        self._history = history
        self._trains_on_held = trains_on_held
        self._region = Region([])
        self._seeds: list[int] = []
        self._cursor = 0  # batches handed out
        self._stream: Iterator[Any] | None = None

    @property
    def is_used_up(self) -> bool:
        """Whether every batch was handed out."""
        return self._cursor == len(self._region.batches)

    @property
    def last(self) -> MiniBatch | None:
        """The batch that was handed out last, None before the first."""
        return self._region.batches[self._cursor - 1] if self._cursor else None

    def open(self, region: Region) -> None:
        """Begin a region.

        Args:
            region: What the strategy planned.
        """
        self._begin(region, self._examples.draw_seeds(len(region.batches)))

    def fetch(self) -> tuple[MiniBatch, Any]:
        """Fetch the next batch.

        Returns:
            Which examples it holds and their weights, and the collated batch, where the dataset
            put it.
        """
        planned, seed = self._region.batches[self._cursor], self._seeds[self._cursor]
        if self._region.held and self._trains_on_held:
            batch = self._examples.held_batch(planned.indices, seed)
        else:
            with self._history.timed_on_host("data"):
                batch = self._next_in_stream()
        self._cursor += 1
        return planned, batch

    def _begin(self, region: Region, seeds: list[int]) -> None:
        self._region, self._seeds = region, seeds
        self._cursor = 0
        self._stream = None

    def _next_in_stream(self) -> Any:
        if self._stream is None:
            unseeded = not self._region.seeded and not self._reader.has_workers
            rest = slice(self._cursor, None)
            self._stream = self._reader.stream(
                [
                    Request(batch.indices.tolist(), None if unseeded else seed, collate=True)
                    for batch, seed in zip(
                        self._region.batches[rest], self._seeds[rest], strict=True
                    )
                ]
            )
        return next(self._stream)

    def state_dict(self) -> dict[str, Any]:
        """Return what is left of the region, as tensors and primitives."""
        rest = slice(self._cursor, None)
        return {
            "indices": [batch.indices for batch in self._region.batches[rest]],
            "weights": [batch.weights for batch in self._region.batches[rest]],
            "seeds": self._seeds[rest],
            "held": self._region.held,
            "seeded": self._region.seeded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        batches = [
            MiniBatch(indices, weights)
            for indices, weights in zip(state["indices"], state["weights"], strict=True)
        ]
        region = Region(batches, held=state["held"], seeded=state["seeded"])
        self._begin(region, list(state["seeds"]))
