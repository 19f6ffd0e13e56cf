"""A data set that trains in a blink."""

import pytest
import torch

from crest.lab.data.image_data import ImageData


@pytest.fixture
def data():
    """Sixty train and thirty test images of 4 x 4 pixels whose brightest corner is their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.randint(100, (90, 1, 4, 4), generator=generator)
    images[torch.arange(90), 0, 0, labels] += 150
    images = images.to(torch.uint8)
    return ImageData(
        "digits", images[:60], labels[:60], images[60:], labels[60:], ("a", "b", "c"), flip=False
    )
