"""Muon in float32.

``torch.optim.Muon`` orthogonalises in bfloat16, which CPUs without bfloat16 units emulate: on
matrices this small it took a tenth of each step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised by Newton-Schulz iterations.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
        Matrices ``[out, in]`` only.
    lr : float
        Multiplied by ``sqrt(max(1, out / in))`` per matrix.
    momentum : float, default 0.95
        Nesterov momentum.
    weight_decay : float, default 0.01
        Decoupled, scaled by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all matrices; equal shapes are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"])
                by_shape.setdefault(parameter.shape, []).append((parameter, update))
            for shape, entries in by_shape.items():
                updates = orthogonalise(torch.stack([update for _, update in entries]))
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for (parameter, _), update in zip(entries, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-rate)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximately ``U V^T`` of each matrix's SVD, by the quintic Newton-Schulz iteration.

    Parameters
    ----------
    matrices : torch.Tensor
        float32 ``[N, out, in]``.
    steps : int, default 5

    Returns
    -------
    torch.Tensor
        ``[N, out, in]`` with singular values near 1.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.mT if tall else x
