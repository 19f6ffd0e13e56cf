"""Every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Many tests are too small for threads, which wait for each other where cores are shared."""
    torch.set_num_threads(1)
