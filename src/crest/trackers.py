"""Where the numbers of a run go: JSON lines, TensorBoard, Weights & Biases, MLflow, or your own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from crest.checks import check, instance

__all__ = ["JsonLines", "MLflow", "TensorBoard", "Tracker", "WandB"]

_PATH = instance(str, Path, text="a path")


@runtime_checkable
class Tracker(Protocol):
    """Takes numbers at a step: two methods, for loggers of any kind.

    Example:
        >>> class Printer:
        ...     def log(self, metrics, step):
        ...         print(step, sorted(metrics))
        ...
        ...     def close(self): ...
        >>> isinstance(Printer(), Tracker)
        True
    """

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Take numbers.

        Args:
            metrics: By name, such as `crest/overhead`.
            step: Optimizer steps taken.
        """
        ...

    def close(self) -> None:
        """Write out what is held back. Yours to call: a loader does not know when a run is over."""
        ...


class JsonLines:
    r"""Writes one JSON object a line: `step` and the numbers. Lines are whole at any time.

    Args:
        path: The file, which is continued; its folder is made.

    Raises:
        TypeError: If it is no path.
        OSError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
        >>> lines = JsonLines(path)
        >>> lines.log({"crest/overhead": 0.02}, step=64)
        >>> path.read_text()
        '{"step": 64, "crest/overhead": 0.02}\n'
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(check("path", path, _PATH))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.open("a").close()  # now, not after the first region

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append a line, see `Tracker.log`; NaN and infinities, which JSON lacks, become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Do nothing: each line was written whole."""


class TensorBoard:
    """Passes numbers on to a `SummaryWriter` of yours.

    Args:
        writer: Of `torch.utils.tensorboard`, or any with `add_scalar(name, value, step)`.

    Raises:
        TypeError: If it has no `add_scalar`.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = _with_method(writer, "add_scalar", "a SummaryWriter")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Pass numbers on, see `Tracker.log`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the writer, which stays yours to close."""
        self._writer.flush()


class WandB:
    """Passes numbers on to a run of Weights & Biases, which stays yours to finish.

    The step is the number `crest/step`: a run counts its own steps, and refuses older ones.

    Args:
        run: What `wandb.init` returned.

    Raises:
        TypeError: If it has no `log`.
    """

    def __init__(self, run: Any) -> None:
        self._run = _with_method(run, "log", "what wandb.init() returned")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Pass numbers on, see `Tracker.log`."""
        self._run.log({**metrics, "crest/step": step})

    def close(self) -> None:
        """Do nothing: the run is yours to finish."""


class MLflow:
    """Passes numbers on to the active run of MLflow, which stays yours to end.

    Args:
        client: The module `mlflow`, or any object with `log_metrics(metrics, step=)`.

    Raises:
        TypeError: If it has no `log_metrics`.
    """

    def __init__(self, client: Any) -> None:
        self._client = _with_method(client, "log_metrics", "the module mlflow")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Pass numbers on, see `Tracker.log`."""
        self._client.log_metrics(metrics, step=step)

    def close(self) -> None:
        """Do nothing: the run is yours to end."""


def _with_method(value: Any, method: str, what: str) -> Any:
    if not callable(getattr(value, method, None)) or isinstance(value, type):
        raise TypeError(
            f"{_ARGUMENT[method]} must be {what}, with a method {method}; got "
            f"{type(value).__name__}."
        )
    return value


_ARGUMENT = {"add_scalar": "writer", "log": "run", "log_metrics": "client"}
