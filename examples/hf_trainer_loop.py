"""Hugging Face Trainer: fewer steps an epoch, and everything else as ever."""

import tempfile

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

import crest
from crest.adapters.hf_trainer import CoresetTrainer


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 4)

    def forward(self, inputs, labels=None):
        return SequenceClassifierOutput(logits=self.layer(inputs))


torch.manual_seed(0)
data = [{"inputs": torch.randn(10), "labels": i % 4} for i in range(800)]
with tempfile.TemporaryDirectory() as folder:
    trainer = CoresetTrainer(
        model=Classifier(),
        args=TrainingArguments(
            folder, num_train_epochs=4, per_device_train_batch_size=16, report_to=[], use_cpu=True
        ),
        train_dataset=data,
        coreset={"strategy": crest.OnlineSelection(), "budget": 0.5},
    )
    trainer.train()
print(f"{trainer.state.global_step} steps, {trainer.coreset_loader.history.updates} selections")
