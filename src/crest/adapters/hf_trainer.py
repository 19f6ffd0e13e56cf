"""Hugging Face Trainer: weights in its loss, budget in its schedule, state in its checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from crest.batches import weighted_mean
from crest.checks import check, function, instance, optional
from crest.loader import CoresetLoader

__all__ = ["CoresetTrainer", "CoresetTrainerMixin"]

_ADDED = ("sample_weight", "sample_index")
_TAKEN = ("collate_fn", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor")


class CoresetTrainerMixin:
    """Trains on a `CoresetLoader`: `class Mine(CoresetTrainerMixin, Trainer)`.

    Steps and schedule follow from its short epochs. The loss is the weighted mean of one loss per
    example, averaged over accumulation. Each checkpoint has the state of the loader, and
    `train(resume_from_checkpoint=...)` goes on from it; nothing is skipped (`ignore_data_skip`).
    `coreset_loader` is that of the training under way. Where the trainer logs its loss
    (`logging_steps`, `report_to`), it logs what a `crest.Tracker` gets of the last region, too.

    Args:
        *args: Of the trainer.
        coreset: Options of the `CoresetLoader`, such as `{"strategy": "online", "budget": 0.3}`.
        per_example_loss: Gives one loss per example of logits and labels, shape (m,). None:
            cross-entropy of logits of shape (m, c).
        **kwargs: Of the trainer.

    Raises:
        ValueError: If the trainer is to group, pack or dispatch examples, or to average losses.
    """

    coreset_loader: CoresetLoader | None = None
    args: Any
    model: Any
    add_callback: Any
    _train_batch_size: int

    def __init__(
        self,
        *args: Any,
        coreset: Mapping[str, Any] | None = None,
        per_example_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        check("coreset", coreset, optional(instance(Mapping, text="a dict of options")))
        self._coreset = dict(coreset or {})
        self._latest = _Latest()
        check("per_example_loss", per_example_loss, optional(function()))
        super().__init__(*args, **kwargs)
        _refuse(self, self.args)
        smooth = {"reduction": "none", "label_smoothing": self.args.label_smoothing_factor}
        cross_entropy: Any = functools.partial(functional.cross_entropy, **smooth)
        self._per_example = per_example_loss or cross_entropy
        self.args.ignore_data_skip = True
        self.model_accepts_loss_kwargs = False  # so that it divides by the steps of accumulation
        self.add_callback(_SavesLoader(self))

    def get_train_dataloader(self) -> Any:
        """Make the loader of a training run."""
        base: Any = super().get_train_dataloader()  # type: ignore[misc]
        taken = {name: getattr(base, name) for name in _TAKEN}
        taken["drop_last"] = self.args.dataloader_drop_last
        plain = DataLoader(base.dataset, self._train_batch_size, shuffle=True, **taken)
        args = self.args
        options = {
            "loss_fn": lambda model, batch: self._outputs_and_losses(model, dict(batch))[1],
            "accumulation_steps": args.gradient_accumulation_steps,
            "seed": args.seed if args.data_seed is None else args.data_seed,
        }
        self.coreset_loader = CoresetLoader(plain, self.model, **(options | self._coreset))
        self.coreset_loader._ledger.tell_also(self._latest)
        return self.coreset_loader

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as ever, beside the loss also numbers of the last region."""
        told = self._latest.metrics if "loss" in logs else {}
        super().log({**logs, **told}, *args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, **kw: Any) -> Any:
        """Average the losses of a batch with its weights; of one without, as Trainer does."""
        if "sample_weight" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, **kw)  # type: ignore[misc]
        fields = {name: inputs[name] for name in inputs if name not in _ADDED}
        outputs, losses = self._outputs_and_losses(model, fields)
        loss = weighted_mean(losses, inputs["sample_weight"])
        return (loss, outputs) if return_outputs else loss

    def _outputs_and_losses(self, model: nn.Module, fields: dict[str, Any]) -> tuple[Any, Tensor]:
        if "labels" not in fields:
            raise ValueError(
                f"batches must have labels; got {', '.join(fields)}. Name them so, and let "
                "model.forward take them or set remove_unused_columns=False."
            )
        labels = fields.pop("labels")
        outputs = model(**fields)
        return outputs, self._per_example(outputs.logits, labels)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None or self.coreset_loader is None:
            return
        files = [_file(checkpoint, rank) for rank in (self.args.process_index, 0)]
        path = next((file for file in files if file.exists()), None)
        if path is None:
            raise ValueError(
                f"the checkpoint must have {files[-1].name}; {checkpoint} has none. Resume from "
                "one that a CoresetTrainer saved."
            )
        self.coreset_loader.load_state_dict(torch.load(path, weights_only=True))


class CoresetTrainer(CoresetTrainerMixin, Trainer):
    """`transformers.Trainer` on coresets, see `CoresetTrainerMixin`."""


class _Latest:
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.metrics = metrics

    def close(self) -> None: ...


class _SavesLoader(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = _file(f"{args.output_dir}/checkpoint-{state.global_step}", args.process_index)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self._trainer.coreset_loader.state_dict(), path)


def _file(folder: str, rank: int) -> Path:
    return Path(folder) / f"crest_loader_{rank}.pt"


def _refuse(trainer: Any, args: Any) -> None:
    found = {
        "compute_loss_func": trainer.compute_loss_func is not None,
        "train_sampling_strategy": args.train_sampling_strategy != "random",
        "packing": getattr(args, "packing", False),  # of TRL
        "dispatch_batches": args.accelerator_config.dispatch_batches,
        "split_batches": args.accelerator_config.split_batches,
    }
    for name, is_set in found.items():
        if is_set:
            raise ValueError(
                f"{name} must be left as it is by default: the CoresetLoader chooses and shares "
                "the examples, and per_example_loss= gives their losses; got it set."
            )
