"""What a loader tells of its examples: a table, and a page."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from crest.checks import SEED, check, function, instance, optional, plain
from crest.data_checks import check_indices
from crest.data_view import DataView
from crest.example_table import as_frame, example_columns, write_table
from crest.feed import Feed
from crest.history import History
from crest.ledger import Ledger
from crest.looking.observer import Observer
from crest.page.facts import gallery_groups, run_facts
from crest.page.pictures import Pictures
from crest.page.write import PAGE_NAME, write_page, write_record
from crest.randomness import preserved_random_state
from crest.reader import Reader, place
from crest.strategies.protocol import Knows, Planner

__all__ = ["Insight"]

_MOST_BYTES = 2_500_000  # of pictures on a page, which shall stay below 5 MB
_PACKAGES = {str(__package__): "crest-coresets", "torch": "torch", "numpy": "numpy"}


class Insight:
    """The part of a loader that tells what it did and found."""

    observer: Observer
    history: History
    _dataset_length: int
    _settings: dict[str, Any]
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
        2019); `label_score`, how likely the label is right, with `record=True` the mean of that and
        (1 + aum) / 2, which alone it is where too little is known, and `mistakenness`, 1 less that;
        `is_label_issue`, for labels that are more likely wrong than right; `given_label` and
        `predicted_label`; `left_out_since`, a step. Unknown are NaN, and -1 of integers; rows that
        are not `observed` have no scores.

        Of several processes each knows what all have trained on, and what training showed them up
        to the last region or the end of the last epoch. One may ask alone.

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
        # The last batch may not have been trained on yet.
        if watch is not None and watch.handed_out > 1 and not columns["observed"].any():
            warnings.warn(
                f"nothing of training was seen, and there are no scores. {self._feed.explain()}",
                stacklevel=2,
            )
        return as_frame(columns)

    def report(
        self,
        folder: str | Path,
        *,
        curve: Sequence[Mapping[str, float]] | None = None,
        classes: Sequence[str] | None = None,
        show: Callable[[Any], Any] | None = None,
    ) -> Path:
        """Write a page of what was selected, what it cost, and what was found.

        `report.html` needs no network and no other file; `report.json` is what `crest report` puts
        several runs side by side from. What the page knows of examples is what `examples()` does;
        `record=True` in the loader adds their histories and the loss of training. Of several
        processes let one write it.

        Args:
            folder: It is made; files of an earlier report are replaced.
            curve: What the loop measured, such as `{"step": 100, "accuracy": 0.8}`, accuracies as
                fractions; `loss` and `seconds` are drawn, too.
            classes: Name of each class. None: `dataset.classes`, or numbers.
            show: `show(item)` gives what to draw of an item of the data set: an image, a text, or
                numbers. None: its inputs.

        Returns:
            The page.

        Raises:
            TypeError: If an argument is of a wrong kind.
            ValueError: If a point of the curve has no step.
            OSError: If the folder cannot be written to.
        """
        folder = Path(check("folder", folder, instance(str, Path, text="a path")))
        check("show", show, optional(function()))
        points = _checked_curve(curve)
        names = _checked_classes(classes, getattr(self._train_loader.dataset, "classes", None))
        columns = self._columns()
        groups = gallery_groups(columns)
        items, notes = self._pictures({i for group in groups for i in group["indices"]}, show)
        run = run_facts(
            folder.resolve().name,
            self._settings,
            self.history,
            self._ledger,
            columns,
            classes=names,
            curve=points,
            items=items,
            groups=groups,
            notes=[*notes, *self._what_is_missing(columns)],
            versions={
                **{name: version(package) for name, package in _PACKAGES.items()},
                "python": platform.python_version(),
            },
        )
        write_record(run, folder)
        return write_page([run], run["verdict"], folder / PAGE_NAME)

    def _pictures(
        self, indices: set[int], show: Callable[[Any], Any] | None
    ) -> tuple[dict[int, dict[str, Any]], list[str]]:
        """Read examples and draw them; one that cannot be read is said to be so."""
        pictures, failures = Pictures(), []
        reader = Reader(DataLoader(self._train_loader.dataset))  # here: a few items need no worker
        with preserved_random_state(self.observer.device):
            for index in sorted(indices):
                try:
                    item = reader.items(torch.tensor([index]), [index], 1)[index]
                    pictures.add(index, item if show is None else show(item))
                except Exception as error:  # of the data set, whatever it is
                    failures.append(f"{type(error).__name__}: {error}")
                    pictures.fail(index, failures[-1])
        notes = ["Pictures are views as training reads them, augmented where it augments."]
        if failures:
            notes.append(f"{len(failures)} examples cannot be drawn, the first with {failures[0]}")
        return pictures.encoded(_MOST_BYTES), notes

    def _what_is_missing(self, columns: dict[str, np.ndarray[Any, Any]]) -> list[str]:
        if not self.history.steps:
            return ["Nothing was trained yet."]
        if not columns["observed"].any():
            why = "record=True in the loader has every example recorded."
            if self._ledger.record is not None:
                why = self._feed.explain()
            return [f"What training showed of the examples is not known. {why}"]
        missing = []
        if self._ledger.record is None:
            missing.append("Histories of examples are kept with record=True in the loader.")
        if np.isnan(columns["label_score"]).all():
            missing.append("There are no classes to tell suspicious labels by.")
        return missing

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


def _checked_curve(curve: Any) -> list[dict[str, float]]:
    """Take the points of a curve."""
    given = check("curve", [] if curve is None else curve, instance(list, tuple, text="a list"))
    points = []
    for point in given:
        try:
            points.append({str(name): float(plain(value)) for name, value in point.items()})
            points[-1]["step"]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(
                f'curve must be a list of points such as {{"step": 100, "accuracy": 0.8}}; got '
                f"{point!r:.60}."
            ) from None
    return points


def _checked_classes(given: Any, of_dataset: Any) -> list[str]:
    """Take the names of classes, from the data set if they were not given."""
    if given is not None:
        check("classes", given, instance(list, tuple, text="a list of names"))
        return [str(name) for name in given]
    is_list = isinstance(of_dataset, (list, tuple))
    return [str(name) for name in of_dataset] if is_list else []
