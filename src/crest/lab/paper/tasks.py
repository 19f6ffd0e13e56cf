"""Data sets and networks of Table 4 with the settings of Table 6, at three scales."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from crest.lab.data.datasets import load_dataset
from crest.lab.data.image_data import ImageData
from crest.lab.data.protocol import LabelledData

__all__ = ["SCALES", "PaperTask", "load_task"]


@dataclass(frozen=True)
class PaperTask:
    """One row of Table 4, or what stands in for it.

    Args:
        title: As the paper calls it.
        data: See `RunSettings`, as all fields below that are not told otherwise.
        network: As there.
        epochs: Of full training.
        batch_size: m.
        lr: Peak learning rate.
        weight_decay: The paper is silent; 5e-4 for images, that of AdamW in torch for text.
        optimizer: As there.
        error_threshold: tau.
        interval_multiplier: h.
        subset_share: r / n.
        curvature: Parameters of the quadratic model.
        half_resolution: Whether each two by two pixels are averaged.
        num_examples: Train and test examples that are kept, evenly spread; None for all.
        evaluations: How often test accuracy is measured.
    """

    title: str
    data: str
    network: str
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    error_threshold: float = 0.05
    interval_multiplier: float = 1.0
    subset_share: float = 0.01
    curvature: str = "trainable"
    half_resolution: bool = False
    num_examples: tuple[int, int] | None = None
    evaluations: int = 20

    @property
    def stand_in(self) -> str:
        """What is trained, in words."""
        part = "" if self.num_examples is None else f"{self.num_examples[0]:,} examples of "
        pixels = " at half the resolution" if self.half_resolution else ""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return (
            f"{self.network} on {part}{self.data}{pixels}, {epochs} in batches of {self.batch_size}"
        )


# Momentum 0.9, warm-up and drops of Section 5 are those of `optimizer="sgd"`. SGD-dagger and Random
# are equal on SNLI in Table 1, so that the learning rate must have been constant there.
_PAPER = {
    "cifar10": PaperTask("CIFAR-10 - ResNet-20", "cifar10", "resnet20"),
    "cifar100": PaperTask(
        "CIFAR-100 - ResNet-18",
        "cifar100",
        "resnet18",
        error_threshold=0.01,
        interval_multiplier=10.0,
    ),
    "tinyimagenet": PaperTask(
        "TinyImageNet - ResNet-50", "tinyimagenet", "resnet50", error_threshold=0.005
    ),
    "snli": PaperTask(
        "SNLI - RoBERTa (finetune)",
        "snli",
        "roberta",
        epochs=8,
        batch_size=32,
        lr=1e-5,
        weight_decay=0.01,
        optimizer="adamw",
        interval_multiplier=4.0,
        subset_share=0.005,
        curvature="head",
    ),
}

# All images, m, r and learning rate of the paper; a tenth of its epochs on a quarter of its pixels,
# so that a short run takes half a minute on one core, and one of CREST or of full training some.
_SMALL_IMAGES = {"network": "resnet8", "epochs": 20, "half_resolution": True, "evaluations": 10}
_SMALL_TEXT = {"data": "snli_part", "network": "bag", "lr": 1e-3, "evaluations": 10}

_SMOKE_IMAGES = {
    **{"data": "digits", "network": "mlp", "epochs": 2, "batch_size": 16, "evaluations": 2},
    "subset_share": 0.04,
}
_SMOKE_TEXT = {
    **{"data": "snli_part", "network": "bag", "lr": 1e-3, "epochs": 2, "evaluations": 2},
    **{"num_examples": (1600, 200), "subset_share": 0.08},
}


def _replaced(images: dict[str, object], text: dict[str, object]) -> dict[str, PaperTask]:
    return {
        name: dataclasses.replace(task, **(text if name == "snli" else images))  # type: ignore[arg-type]
        for name, task in _PAPER.items()
    }


SCALES: dict[str, dict[str, PaperTask]] = {
    "smoke": _replaced(_SMOKE_IMAGES, _SMOKE_TEXT),
    "small": _replaced(_SMALL_IMAGES, _SMALL_TEXT),
    "paper": _PAPER,
}


def load_task(task: PaperTask, data_dir: Path) -> LabelledData:
    """Read the data of a task.

    Args:
        task: One of `SCALES`.
        data_dir: Folder of the files; each reader says what it expects there.

    Returns:
        Train and test examples, as many as the task takes.

    Raises:
        FileNotFoundError: If data or weights are missing; says which and where they come from.
    """
    # Images of TinyImageNet are 64 x 64; those of a small network are as small as CIFAR's.
    image_size = 64 if task.network == "resnet50" else 32
    try:
        data = load_dataset(task.data, data_dir, image_size=image_size, network=task.network)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} Or leave it out: --tasks takes some of {', '.join(_PAPER)}."
        ) from error
    if isinstance(data, ImageData) and task.half_resolution:
        data = data.halve()
    if task.num_examples is None:
        return data
    smaller: LabelledData = data.every(*task.num_examples)
    return smaller
