"""Your own strategy: crest compare digits --import THIS_FILE --strategies large_losses,random."""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.strategies.protocol import MiniBatch, Region


@crest.register_strategy("large_losses", needs=("losses",))
@dataclass(frozen=True)
class LargeLosses:
    """Random mini-batches of the examples whose last loss was among the largest."""

    share: float = 0.5

    def start(self, task):
        return Planner(task, max(int(self.share * task.num_examples), task.batch_size))


class Planner:
    def __init__(self, task, count):
        self.task, self.count = task, count
        self.losses = torch.full((task.num_examples,), torch.inf)  # what is unknown comes first

    def observe(self, indices, losses):
        self.losses[indices] = losses.cpu()

    def next_region(self, examples, step):
        order = torch.randperm(self.count, generator=self.task.generator)
        largest = self.losses.topk(self.count).indices[order].split(self.task.batch_size)
        return Region([MiniBatch.unweighted(m) for m in largest[: self.task.batches_per_step]])

    def state_dict(self):
        return {"losses": self.losses.clone()}

    def load_state_dict(self, state):
        self.losses = state["losses"]


if __name__ == "__main__":
    data = DataLoader(TensorDataset(torch.randn(1000, 20), torch.randint(5, (1000,))), 25)
    model, criterion = torch.nn.Linear(20, 5), torch.nn.CrossEntropyLoss(reduction="none")
    loader = crest.CoresetLoader(data, model, loss_fn=criterion, strategy="large_losses")
    for inputs, targets, _ in loader:  # and train, as in any loop
        loader.observe(criterion(model(inputs), targets))
    print(loader)
