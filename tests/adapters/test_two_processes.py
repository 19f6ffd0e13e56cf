"""Frameworks on two processes train as one does on the whole batch, and go on from a checkpoint."""

import importlib

import pytest
import torch

from adapters.test_resumed import accelerated, fit, hf, parameters
from loader.test_ranks import rank_now, same
from processes import run_on


def skip_without(package, adapter):
    """Imports what is needed, too: once here, and not again in each process."""
    pytest.importorskip(package)
    importlib.import_module(f"crest.adapters.{adapter}")


def went_on(resumed, unbroken, loaders):
    """Whether a resumed run ended as the unbroken one, and knew all that it knew."""
    known = [loader.state_dict()["planner"]["memory"] for loader in loaders]
    for name in ("loss", "times_seen", "sketch", "norm"):
        same(*(memory[name] for memory in known))
    return torch.equal(parameters(resumed), parameters(unbroken))


def with_trainer(folder, stops, **options):
    unbroken = hf(folder, rank=rank_now(), **options)
    found = {}
    for step in stops:
        resumed = hf(f"{folder}/again", resume=f"{folder}/checkpoint-{step}", **options)
        loaders = resumed.coreset_loader, unbroken.coreset_loader
        found[step] = went_on(resumed.model, unbroken.model, loaders)
    return parameters(unbroken.model), unbroken.state.global_step, found


def with_lightning(folder, stops, **options):
    trainer, unbroken = fit(folder, rank=rank_now(), **options)
    found = {}
    for step in stops:
        resumed_trainer, resumed = fit(
            f"{folder}/again", resume=f"{folder}/step={step}.ckpt", **options
        )
        loaders = resumed_trainer.train_dataloader, trainer.train_dataloader
        found[step] = went_on(resumed, unbroken, loaders)
    return parameters(unbroken), trainer.global_step, found


def with_accelerate(folder, stops, **options):
    unbroken, taken, loader = accelerated(folder, 12, **options)
    found = {}
    for step in stops:
        accelerated(folder, 12, stop_at=step, **options)
        resumed, _, resumed_loader = accelerated(folder, 12, resume=True, **options)
        found[step] = went_on(resumed, unbroken, (resumed_loader, loader))
    return parameters(unbroken), taken, found


WAYS = {  # three or four steps an epoch: in an epoch, and at its end
    "hf_trainer": ("transformers", with_trainer, (1, 3, 8), {}, 12),
    "lightning": ("lightning", with_lightning, (2, 6, 8), {"world": 2}, 12),
    "accelerate": ("accelerate", with_accelerate, (2, 4, 7), {}, 12),
}


@pytest.mark.parametrize("adapter", WAYS)
def test_a_run_on_two_goes_on_from_its_checkpoints_on_each(tmp_path, adapter):
    package, run, stops, options, steps = WAYS[adapter]
    skip_without(package, adapter)
    for answer in run_on(2, called, run, str(tmp_path), stops, options):
        assert not isinstance(answer, str), answer
        assert answer[1:] == (steps, dict.fromkeys(stops, True))


@pytest.mark.parametrize("adapter", ["hf_trainer", "lightning"])
def test_two_processes_train_as_one_does_on_the_whole_batch(tmp_path, adapter):
    package, run, _, options, _ = WAYS[adapter]
    skip_without(package, adapter)
    plain = {"dropout": 0.0, "batch_size": 16}
    ((alone, _, _),) = run_on(1, called, run, str(tmp_path / "one"), (), plain)
    for answer in run_on(2, called, run, str(tmp_path), (), plain | options | {"batch_size": 8}):
        assert not isinstance(answer, str), answer
        torch.testing.assert_close(answer[0], alone, rtol=1e-4, atol=1e-5)


def called(run, folder, stops, options):
    return run(folder, stops, **options)
