"""The region under way: what is left of it, and its batches, fetched one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from crest.data_view import DataView
from crest.history import History
from crest.ranks import Ranks
from crest.reader import Reader, Request
from crest.strategies.protocol import MiniBatch, Region

__all__ = ["OpenRegion"]


class OpenRegion:
    """Fetches the batches of a region in order, and nothing beyond its end.

    Args:
        reader: Reads what the dataset gives, with the workers of the user's loader.
        examples: Holds the views that were selected.
        history: Is told the seconds.
        ranks: The processes that share each batch.
        trains_on_held: Whether views that are held are trained on, or read anew.
    """

    def __init__(
        self,
        reader: Reader,
        examples: DataView,
        history: History,
        ranks: Ranks,
        *,
        trains_on_held: bool,
    ) -> None:
        self._reader = reader
        self._examples = examples
        self._history = history
        self._trains_on_held = trains_on_held
        self._ranks = ranks
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
        return self._ranks.batch(self._region.batches[self._cursor - 1]) if self._cursor else None

    @property
    def all_of_last(self) -> Tensor:
        """Examples of the batch that was handed out last, of all processes, int64, shape (k,)."""
        return self._region.batches[self._cursor - 1].indices

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
            put it: the part of this process.
        """
        planned = self._ranks.batch(self._region.batches[self._cursor])
        seed = self._ranks.seed(self._seeds[self._cursor])
        # Taken away until the batch is counted: an error, an interrupt or a worker that dies in
        # between leaves no stream, and the next one is opened at the cursor.
        stream, self._stream = self._stream, None
        if self._region.held and self._trains_on_held:
            batch = self._examples.held_batch(planned.indices, seed)
        else:
            with self._history.timed_on_host("data"):
                stream = stream or self._open_stream()
                batch = next(stream)
        self._cursor += 1
        self._stream = stream
        return planned, batch

    def drop(self) -> None:
        """Give up what is left of the region."""
        if not self.is_used_up:
            self._begin(Region([]), [])

    def begin_epoch(self, worker_seed: int) -> None:
        """Read with new workers from here on, see `Reader.begin_epoch`.

        Args:
            worker_seed: What their seeds are drawn from.
        """
        self._close_stream()
        for reader in (self._reader, self._examples.reader):
            reader.begin_epoch(self._ranks.seed(worker_seed))

    def end_epoch(self) -> None:
        """End the workers with the loop, as those of a DataLoader."""
        self._close_stream()
        for reader in (self._reader, self._examples.reader):
            reader.end_epoch()

    def _close_stream(self) -> None:
        if self._reader.has_workers:  # the dataset itself is no copy that could be out of date
            self._stream = None

    def _begin(self, region: Region, seeds: list[int]) -> None:
        self._region, self._seeds = region, seeds
        self._cursor = 0
        self._stream = None

    def _open_stream(self) -> Iterator[Any]:
        unseeded = not self._region.seeded and not self._reader.has_workers
        rest = slice(self._cursor, None)
        return self._reader.stream(
            [
                Request(
                    self._ranks.batch(batch).indices.tolist(),
                    None if unseeded else self._ranks.seed(seed),
                    collate=True,
                )
                for batch, seed in zip(self._region.batches[rest], self._seeds[rest], strict=True)
            ]
        )

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
