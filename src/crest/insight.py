"""What a loader tells of its examples: a table, and a page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from crest.checks import SEED, check, instance
from crest.data_checks import check_indices
from crest.data_view import DataView
from crest.example_table import as_frame, example_columns, write_table
from crest.feed import Feed
from crest.ledger import Ledger
from crest.looking.observer import Observer
from crest.reader import Reader, place
from crest.strategies.protocol import Knows, Planner

__all__ = ["Insight"]


class Insight:
    """The part of a loader that tells what it did and found."""

    observer: Observer
    _dataset_length: int
    _examples: DataView
    _feed: Feed
    _ledger: Ledger
    _planner: Planner
    _train_loader: DataLoader[Any]

    def examples(self, path: str | Path | None = None) -> Any:
        """List what is known of each example, one row each.

        How often it was trained on is known with every strategy. What training showed of it is
        known where the strategy learns from that, and of all of it with `record=True`. Columns:
        `index`; `times_trained`, and of these `times_selected`; `num_observations`, `observed`;
        `last_loss` and `smoothed_loss`; `aum`, the mean margin (Pleiss et al., NeurIPS 2020, on
        probabilities); `forgotten`, how often a right prediction turned wrong (Toneva et al., ICLR
        2019); `label_score`, (1 + aum) / 2, and `mistakenness`, 1 less that; `is_label_issue`, for
        as many of the lowest scores as labels are estimated to be wrong; `given_label` and
        `predicted_label`; `left_out_since`, a step. Unknown are NaN, and -1 of integers; rows that
        are not `observed` have no scores.

        Args:
            path: Where to write the table as well, `.csv` or `.parquet`.

        Returns:
            A pandas `DataFrame` where pandas is installed, else a dict of NumPy columns, shape
            (n,).

        Raises:
            TypeError: If `path` is no path.
            ImportError: If Parquet is asked for and pyarrow is missing.
            ValueError: If `path` ends otherwise.

        Example:
            >>> import torch, crest
            >>> from torch.utils.data import DataLoader, TensorDataset
            >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
            >>> model = torch.nn.Linear(4, 2)
            >>> criterion = torch.nn.CrossEntropyLoss(reduction="none")
            >>> loader = crest.CoresetLoader(
            ...     DataLoader(data, 8), model, loss_fn=criterion, record=True
            ... )
            >>> for inputs, targets, weights in loader:
            ...     crest.weighted_mean(criterion(model(inputs), targets), weights).backward()
            >>> int(loader.examples()["times_trained"].sum()) == 8 * len(loader)
            True
        """
        columns = self._columns()
        if path is not None:
            write_table(columns, path)
        watch = self._feed.watch
        if watch is not None and watch.handed_out and not columns["observed"].any():
            warnings.warn(
                f"nothing of training was seen, and there are no scores. {self._feed.explain()}",
                stacklevel=2,
            )
        return as_frame(columns)

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[Any]:
        """Read views of any examples, as training would.

        Args:
            batches: Example indices of each batch, int64.
            seed: Seeds the views; the random states stay as they are.

        Returns:
            The batches without weights, on the device of the model.

        Raises:
            TypeError: If an argument is of a wrong kind.
            ValueError: If one is out of its range.
        """
        check("batches", batches, instance(list, tuple, text="a list of tensors"))
        for indices in batches:
            check_indices("batches", indices, self._dataset_length)
        seed = check("seed", seed, SEED)
        stream = Reader(self._train_loader, worker_seed=seed).batches(batches, seed)
        return (place(batch, self.observer.device) for batch in stream)

    def _columns(self) -> dict[str, np.ndarray[Any, Any]]:
        self._feed.settle()
        knowledge = self._planner.knowledge() if isinstance(self._planner, Knows) else {}
        return example_columns(self._ledger, knowledge, self._examples.labels)
