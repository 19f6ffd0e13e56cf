"""Frameworks save at the end of an epoch and in its midst; each run goes on as the unbroken one."""

import warnings

import pytest
import torch
from torch import nn

import crest
from toys import CRITERION, make_loader, make_tensors


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Dropping(nn.Module):
    """Draws from the random states in training."""

    def __init__(self, dropout=0.2):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(20, 8), nn.Dropout(dropout), nn.Linear(8, 5))

    def forward(self, inputs, labels=None):
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self.layers(inputs))


DATA = [
    {"inputs": inputs, "labels": int(label)}
    for inputs, label in zip(*make_tensors(96), strict=True)
]


def hf(folder, *, accumulation=1, resume=None, batch_size=8, dropout=0.2, rank=0, **more):
    from transformers import TrainingArguments

    from crest.adapters.hf_trainer import CoresetTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = CoresetTrainer(
            model=Dropping(dropout),
            args=TrainingArguments(
                str(folder),
                num_train_epochs=4,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                learning_rate=0.05,
                save_strategy="steps",
                save_steps=1,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                **more,
            ),
            train_dataset=DATA,
            coreset={"strategy": crest.OnlineSelection(), "budget": 0.5},
        )
        torch.manual_seed(rank)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trainer_goes_on_from_any_checkpoint(tmp_path, accumulation):
    pytest.importorskip("transformers")
    per_epoch = 6 // accumulation
    unbroken = hf(tmp_path, accumulation=accumulation)
    assert unbroken.state.global_step == unbroken.state.max_steps == 4 * per_epoch
    assert set(unbroken.lr_scheduler.get_last_lr()) == {0.0}  # the schedule ends with the budget
    assert unbroken.coreset_loader.history.updates > 0
    for step in (1, per_epoch, per_epoch + 1, 3 * per_epoch):  # in an epoch, and at its end
        resumed = hf(
            tmp_path / "again", accumulation=accumulation, resume=tmp_path / f"checkpoint-{step}"
        )
        assert resumed.state.global_step == 4 * per_epoch
        assert torch.equal(parameters(resumed.model), parameters(unbroken.model)), step


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    pytest.importorskip("transformers")
    hf(tmp_path, max_steps=1)
    (tmp_path / "checkpoint-1" / "crest_loader_0.pt").unlink()
    with pytest.raises(ValueError, match=r"must have crest_loader_0\.pt.*a CoresetTrainer saved"):
        hf(tmp_path, resume=tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
    ],
)
def test_what_chooses_beside_the_loader_is_refused(tmp_path, options, name):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=f"{name} must be left as it is"):
        hf(tmp_path, **options)


def test_wrong_kinds_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)  # a Trainer without arguments makes a folder
    from crest.adapters.hf_trainer import CoresetTrainer

    with pytest.raises(TypeError, match="coreset must be a dict of options"):
        CoresetTrainer(model=Dropping(), coreset=0.3)
    with pytest.raises(TypeError, match="per_example_loss must be a function"):
        CoresetTrainer(model=Dropping(), per_example_loss="mean")
    with pytest.raises(ValueError, match="compute_loss_func must be left as it is"):
        CoresetTrainer(model=Dropping(), compute_loss_func=CRITERION)


def fit(folder, *, resume=None, epochs=4, batch_size=8, dropout=0.2, world=1, rank=0, logger=False):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from crest.adapters.lightning import CoresetCallback

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(20, 8), nn.Dropout(dropout), nn.Linear(8, 5))

        def train_dataloader(self):
            return make_loader(
                crest.OnlineSelection(),
                model=self.net,
                dataset=torch.utils.data.TensorDataset(*make_tensors(96)),
                batch_size=batch_size,
                budget=0.5,
            )

        def training_step(self, batch, number):
            inputs, labels, weights = batch
            return crest.weighted_mean(CRITERION(self.net(inputs), labels), weights)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    module = Module()
    saves = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=3 - world + 1, save_top_k=-1, save_last=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            max_epochs=epochs,
            logger=logger,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[CoresetCallback(), saves],
        )
        torch.manual_seed(rank)
        trainer.fit(module, ckpt_path=resume)
    return trainer, module


def test_lightning_goes_on_from_any_checkpoint(tmp_path):
    pytest.importorskip("lightning")
    trainer, unbroken = fit(tmp_path)
    assert trainer.global_step == 24
    assert "crest_cost" in trainer.progress_bar_metrics
    for step in (3, 6, 9, 12):  # in an epoch, and at its end
        resumed_trainer, resumed = fit(tmp_path / "again", resume=tmp_path / f"step={step}.ckpt")
        assert resumed_trainer.global_step == 24, step
        assert torch.equal(parameters(resumed), parameters(unbroken)), step


def test_a_callback_without_its_loader_is_refused(tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from crest.adapters.lightning import CoresetCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, callbacks=[CoresetCallback()],
        )  # fmt: skip
        with pytest.raises(TypeError, match="must return a CoresetLoader"):
            trainer.fit(BoringModel())


def accelerated(folder, end, *, stop_at=None, resume=False, batch_size=16):
    from accelerate import Accelerator

    from crest.adapters.accelerate import prepare

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    torch.manual_seed(0)
    net = nn.Linear(20, 5)
    loader = prepare(
        accelerator,
        make_loader(
            crest.OnlineSelection(),
            model=net,
            batch_size=batch_size,
            budget=1.0,
            accumulation_steps=4,
        ),
    )
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
    if resume:
        accelerator.load_state(folder)
    taken = loader.history.steps
    while taken < end:
        for inputs, labels, weights in loader:
            with accelerator.accumulate(model):
                losses = CRITERION(model(inputs), labels)
                accelerator.backward(crest.weighted_mean(losses, weights))
                optimizer.step()
                optimizer.zero_grad()
                taken += accelerator.sync_gradients
            if taken == stop_at:
                accelerator.save_state(folder)
                return None
    return net, taken, loader


def test_accelerate_accumulates_saves_and_goes_on(tmp_path):
    pytest.importorskip("accelerate")
    unbroken, taken, _ = accelerated(tmp_path, 21)
    assert taken == 21  # 25 batches an epoch: the last group of each has one
    accelerated(tmp_path, 21, stop_at=9)
    resumed, _, _ = accelerated(tmp_path, 21, resume=True)
    assert torch.equal(parameters(resumed), parameters(unbroken))


def test_accelerate_and_loader_accumulate_alike():
    accelerate = pytest.importorskip("accelerate")
    from crest.adapters.accelerate import prepare

    with pytest.raises(ValueError, match="accumulation_steps of the loader must be that of"):
        prepare(accelerate.Accelerator(cpu=True), make_loader(accumulation_steps=2))
    with pytest.raises(TypeError, match="loader must be a CoresetLoader"):
        prepare(accelerate.Accelerator(cpu=True), [])


def test_accelerate_and_loader_have_the_same_processes():
    accelerate = pytest.importorskip("accelerate")
    from crest.adapters.accelerate import prepare

    loader = make_loader()
    loader._ranks.world = 2  # as where torch.distributed was started and Accelerate not told
    with pytest.raises(ValueError, match="as many processes as the accelerator has, 1; got 2"):
        prepare(accelerate.Accelerator(cpu=True), loader)
