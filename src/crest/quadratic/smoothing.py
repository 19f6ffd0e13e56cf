"""Moving averages of gradient and curvature, Eq. (8) and (9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["SmoothedMoments"]


class SmoothedMoments:
    """Exponential averages over selection rounds, with bias correction as in Adam.

    Note:
        The averages advance once a round l, not once a step. Eq. (9) is a root of averaged squares
        and so never negative: negative curvature enters with its size.

        Where the number of parameters changes, as when layers are unfrozen, they start anew.

    Args:
        betas: beta_1 for the gradient and beta_2 for the curvature, each in [0, 1); 0 keeps the
            newest round alone.
    """

    def __init__(self, betas: tuple[float, float]) -> None:
        self.betas = betas
        self.round = 0
        self._curvature_round = 0
        self._gradient: Tensor | None = None
        self._squared_diagonal: Tensor | None = None

    def update(self, gradient: Tensor, hessian_diagonal: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take in one round.

        Args:
            gradient: g of the round's coresets, shape (q,).
            hessian_diagonal: diag(H) of the round's coresets, shape (q,). None: that of the rounds
                before stays, or 0.

        Returns:
            The smoothed gradient, Eq. (8), and the smoothed curvature, Eq. (9), both shape (q,).
        """
        if self._gradient is None or len(self._gradient) != len(gradient):
            self.round = self._curvature_round = 0
            self._gradient = torch.zeros_like(gradient)
            self._squared_diagonal = torch.zeros_like(gradient)
        assert self._squared_diagonal is not None
        self._gradient = self._gradient.to(gradient.device)
        self._squared_diagonal = self._squared_diagonal.to(gradient.device)
        beta_1, beta_2 = self.betas
        self.round += 1
        self._gradient.lerp_(gradient, 1 - beta_1)
        if hessian_diagonal is not None:
            self._curvature_round += 1
            self._squared_diagonal.lerp_(hessian_diagonal.square(), 1 - beta_2)
        squared = self._squared_diagonal
        if self._curvature_round:
            squared = squared / (1 - beta_2**self._curvature_round)
        return self._gradient / (1 - beta_1**self.round), squared.sqrt()

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on, as tensors and primitives."""
        return {
            "round": self.round,
            "curvature_round": self._curvature_round,
            "gradient": _clone(self._gradient),
            "squared_diagonal": _clone(self._squared_diagonal),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.round = state["round"]
        self._curvature_round = state["curvature_round"]
        self._gradient = _clone(state["gradient"])
        self._squared_diagonal = _clone(state["squared_diagonal"])


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
