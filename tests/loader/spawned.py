"""Data for workers that are spawned, each of which imports this module: torch alone."""

import torch
from torch.utils.data import Dataset


class Noisy(Dataset):
    """Draws a new view at every read."""

    def __init__(self, n=400):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(n, 20, generator=generator)
        self.targets = (self.inputs @ torch.randn(20, 5, generator=generator)).argmax(1)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index] + 0.1 * torch.randn(20), int(self.targets[index])
