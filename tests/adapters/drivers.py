"""The same training in each framework: what was seen in the loop, planned, and filed."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree
from torch.utils.data import DataLoader, Dataset

import crest
from crest.open_region import OpenRegion

N, M, EPOCHS, CLASSES = 48, 4, 2, 3


class Case(NamedTuple):
    driver: str
    form: str = "dict"
    accumulation: int = 1
    workers: int = 0
    world: int = 1


class Output(dict):
    """What models of transformers return: a mapping that has its entries as attributes."""

    @property
    def logits(self):
        return self["logits"]


_pytree.register_pytree_node(  # as transformers does with its own
    Output,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: Output(zip(names, values, strict=True)),
)


class Data(Dataset):
    """Each example knows its number, in its first entry."""

    def __init__(self, form):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(N, 5, generator=generator)
        self.inputs[:, 0] = torch.arange(N) / N
        self.labels = torch.randint(CLASSES, (N,), generator=generator)
        self.form = form

    def __len__(self):
        return N

    def __getitem__(self, index):
        inputs, label = self.inputs[index], int(self.labels[index])
        return (inputs, label) if self.form == "tuple" else {"inputs": inputs, "labels": label}

    def collate(self, items):
        batch = torch.utils.data.default_collate(items)
        if self.form == "BatchEncoding":
            from transformers import BatchEncoding

            return BatchEncoding(batch)
        return tuple(batch) if self.form == "tuple" else batch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, CLASSES)
        self.ids: list[list[int]] = []  # of the examples of each forward pass of training

    def forward(self, inputs, labels=None):
        if self.training and torch.is_grad_enabled():
            self.ids.append((inputs[:, 0] * N).round().long().tolist())
        return Output(logits=self.head(torch.tanh(self.body(inputs))))


def loss_fn(model, batch):
    inputs, labels = batch[:2] if isinstance(batch, tuple) else (batch["inputs"], batch["labels"])
    return functional.cross_entropy(model(inputs).logits, labels, reduction="none")


class Run:
    """A training at fixed parameters, so that what is known of each example can be computed."""

    def __init__(self, case, strategy, epochs=EPOCHS):
        self.case, self.strategy, self.epochs = case, strategy, epochs
        self.data, self.net = Data(case.form), Net()
        self.weights: list[list[float]] = []
        self.planned: list[Any] = []
        self.loader: Any = None
        opened = OpenRegion.open

        def open_and_tell(region_under_way, region):
            self.planned += region.batches
            opened(region_under_way, region)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # frameworks warn of small machines
            OpenRegion.open = open_and_tell
            try:
                getattr(self, case.driver)()
            finally:
                OpenRegion.open = opened

    def make_loader(self, model=None):
        train_loader = DataLoader(
            self.data,
            M,
            shuffle=True,
            num_workers=self.case.workers,
            collate_fn=self.data.collate,
        )
        self.loader = crest.CoresetLoader(
            train_loader,
            self.net if model is None else model,
            loss_fn=loss_fn,
            strategy=self.strategy,
            budget=1.0,
            accumulation_steps=self.case.accumulation,
        )
        return self.loader

    def loss(self, model, batch):
        weights = batch[-1] if isinstance(batch, tuple) else batch["sample_weight"]
        self.weights.append(weights.tolist())
        return crest.weighted_mean(loss_fn(model, batch), weights)

    def optimizer(self, model=None):
        return torch.optim.SGD((model or self.net).parameters(), lr=0.0)

    def plain(self, model=None):
        model = self.net if model is None else model
        loader, optimizer = self.make_loader(model), self.optimizer()
        for _ in range(self.epochs):
            for count, batch in enumerate(loader, start=1):
                (self.loss(model, batch) / self.case.accumulation).backward()
                if count % self.case.accumulation == 0:
                    optimizer.step()
                    optimizer.zero_grad()

    def ddp(self):
        self.plain(nn.parallel.DistributedDataParallel(self.net))

    def accelerate(self):
        from accelerate import Accelerator

        from crest.adapters.accelerate import prepare

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=self.case.accumulation)
        loader = prepare(accelerator, self.make_loader())
        model, optimizer = accelerator.prepare(self.net, self.optimizer())
        for _ in range(self.epochs):
            for batch in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(self.loss(model, batch))
                    optimizer.step()
                    optimizer.zero_grad()

    def hf_trainer(self):
        from transformers import TrainingArguments

        from crest.adapters import hf_trainer

        weighted_mean = hf_trainer.weighted_mean

        def seen(losses, weights):
            self.weights.append(weights.tolist())
            return weighted_mean(losses, weights)

        hf_trainer.weighted_mean = seen
        try:
            with tempfile.TemporaryDirectory() as folder:
                trainer = hf_trainer.CoresetTrainer(
                    model=self.net,
                    args=TrainingArguments(
                        folder,
                        num_train_epochs=self.epochs,
                        per_device_train_batch_size=M,
                        gradient_accumulation_steps=self.case.accumulation,
                        dataloader_num_workers=self.case.workers,
                        learning_rate=0.0,
                        save_strategy="no",
                        report_to=[],
                        disable_tqdm=True,
                        use_cpu=True,
                    ),
                    data_collator=self.data.collate,
                    train_dataset=self.data,
                    coreset={"strategy": self.strategy, "budget": 1.0},
                )
                trainer.train()
                self.loader = trainer.coreset_loader
        finally:
            hf_trainer.weighted_mean = weighted_mean

    def lightning(self):
        from lightning.pytorch import LightningModule, Trainer

        from crest.adapters.lightning import CoresetCallback

        run = self

        class Module(LightningModule):
            def __init__(self):
                super().__init__()
                self.net = run.net

            def train_dataloader(self):
                return run.make_loader()

            def training_step(self, batch, number):
                return run.loss(self.net, batch)

            def configure_optimizers(self):
                return run.optimizer()

        Trainer(
            accelerator="cpu",
            devices=self.case.world,
            strategy="ddp" if self.case.world > 1 else "auto",
            max_epochs=self.epochs,
            accumulate_grad_batches=self.case.accumulation,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[CoresetCallback()],
        ).fit(Module())

    def errors(self):
        """Derivatives of all losses by the logits, computed apart."""
        with torch.no_grad():
            logits = self.net.eval()(self.data.inputs).logits
        return logits.softmax(1) - functional.one_hot(self.data.labels, CLASSES)
