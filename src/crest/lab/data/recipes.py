"""Views of images as four integers each, which the device makes inside the step that needs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crest.lab.data.views import ImageViews, draw_moves, move

__all__ = ["Drawing", "ViewRecipes"]


class ViewRecipes(ImageViews):
    """The views of `ImageViews` under the same seed, told instead of made.

    What an item holds is the index of the image, how far the crop is off the middle in rows and
    columns, and 1 if it is mirrored: int64, shape (4,), on the CPU. A batch of m examples is then
    some kilobytes, and where images stay on a GPU nothing else travels.
    """

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the recipe of a view, and the class of its image."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return recipes of several images, drawn together.

        Args:
            indices: Of the images, k of them.

        Returns:
            k pairs as from `__getitem__`.
        """
        recipes = self.of_first(len(indices))
        recipes[:, 0] = torch.as_tensor(indices)
        if self._padding:
            offsets, mirrored = draw_moves(len(indices), self._padding, flip=self._flip)
            recipes[:, 1:3] = offsets.squeeze(2).T - self._padding
            recipes[:, 3:] = mirrored
        return list(zip(recipes.unbind(0), [self._labels[i] for i in indices], strict=True))

    def of_first(self, count: int) -> Tensor:
        """Return `count` recipes of the first image as it is, which draw no random number."""
        return torch.zeros(count, 4, dtype=torch.int64)

    def draw(self, recipes: Tensor) -> Tensor:
        """Make views.

        Args:
            recipes: int64, on the device of the images, shape (k, 4).

        Returns:
            float32, shape (k, channels, size, size).
        """
        images = self._images[recipes[:, 0]]
        if self._padding:
            offsets = (recipes[:, 1:3] + self._padding).T.unsqueeze(2)
            images = move(images, self._padding, offsets, recipes[:, 3:] > 0)
        return self.normalize(images)


class Drawing(nn.Module):
    """A network that takes recipes: first the views, then the network.

    Args:
        network: Takes images.
        views: Makes them; their images are no buffers, so that nothing copies them.
    """

    def __init__(self, network: nn.Module, views: ViewRecipes) -> None:
        super().__init__()
        self.network = network
        self._views = views

    def forward(self, recipes: Tensor) -> Tensor:
        """Return the outputs of the network, for recipes of shape (k, 4) on any device."""
        outputs: Tensor = self.network(self._views.draw(recipes.to(self._views.device)))
        return outputs
