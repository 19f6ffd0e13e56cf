"""Two processes, each of which trains on its own half of each batch; torchrun does as well."""

import tempfile
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import crest

WORLD = 2


def train(rank):
    torch.manual_seed(0)
    criterion = nn.CrossEntropyLoss(reduction="none")
    data = TensorDataset(torch.randn(800, 10), torch.randint(4, (800,)))
    model = DistributedDataParallel(nn.Linear(10, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = crest.CoresetLoader(  # 16 examples a process, no DistributedSampler
        DataLoader(data, batch_size=16, shuffle=True),
        model,
        loss_fn=criterion,
        strategy=crest.OnlineSelection(),
        budget=0.5,
    )
    for _ in range(4):
        for x, y, weights in loader:
            optimizer.zero_grad()
            crest.weighted_mean(criterion(model(x), y), weights).backward()
            optimizer.step()
    if rank == 0:
        print(f"{loader.history.steps} steps of 32, {loader.history.updates} selections")


def run(rank, store):
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    train(rank)  # its model goes before the group that it sends by, or torch may stand still
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        address = (Path(folder) / "store").as_uri()
        multiprocessing.start_processes(run, (address,), WORLD, start_method="fork")
