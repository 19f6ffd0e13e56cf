"""Lightning: return the loader from `train_dataloader`; its callback logs what selection costs."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.adapters.lightning import CoresetCallback

criterion = nn.CrossEntropyLoss(reduction="none")


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(10, 4)

    def train_dataloader(self):  # here, as the processes of the run are known by now
        data = TensorDataset(torch.randn(800, 10), torch.randint(4, (800,)))
        plain = DataLoader(data, batch_size=16, shuffle=True)
        return crest.CoresetLoader(
            plain, self.net, loss_fn=criterion, strategy=crest.OnlineSelection(), budget=0.5
        )

    def training_step(self, batch, number):
        x, y, weights = batch
        return crest.weighted_mean(criterion(self.net(x), y), weights)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


torch.manual_seed(0)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = Trainer(
    accelerator="cpu",
    max_epochs=4,
    callbacks=[CoresetCallback()],
    enable_model_summary=False,
    **quiet,
)
trainer.fit(Classifier())
print(f"{trainer.global_step} steps, {trainer.train_dataloader.history.updates} selections")
