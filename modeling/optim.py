"""Optimizers and schedules by name, with parameters grouped by role."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("muon", "adamw", "adam", "rmsprop")
SCHEDULES = ("constant", "linear", "cosine", "wsd")


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz for matrices (Jordan et al. 2024), AdamW for everything else.

    A parameter group with `"matrices": True` gets Muon's update, any other AdamW's. The orthogonal update is scaled by
    0.2 sqrt(max(rows, columns)), which gives it the typical root mean square of AdamW's (Liu et al. 2025, "Muon is
    Scalable for LLM Training"), so that one learning rate and one weight decay serve both.

    `torch.optim.Muon` orthogonalises in bfloat16 wherever it runs; on a CPU without fast bfloat16 that is a hundred
    times slower than float32, which is why this one chooses by device.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon if group["matrices"] else self._adam
                parameter.add_(update(parameter, group), alpha=-group["lr"])
        return loss

    def _muon(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        nesterov = parameter.grad.lerp(state["momentum"], group["momentum"])
        return orthogonalized(nesterov).to(parameter.dtype) * (0.2 * max(parameter.shape) ** 0.5)

    def _adam(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step = state["step"].item()
        state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - beta2)
        denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        return state["exp_avg"] / (1 - beta1**step) / denominator


def orthogonalized(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values are driven to between 0.7 and 1.2.

    Newton-Schulz with the quintic coefficients of Jordan et al. 2024, in bfloat16 on accelerators, float32 on a CPU.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.float() if matrix.device.type == "cpu" else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Three roles: the layers' matrices, embeddings with output heads, and vectors (which do not decay)."""
    matrices, embeddings, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = vectors if parameter.ndim < 2 else matrices if ".layers." in f".{name}" else embeddings
        role.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "matrices": True},
        {"params": embeddings, "weight_decay": weight_decay, "matrices": False},
        {"params": vectors, "weight_decay": 0.0, "matrices": False},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(name: str, model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """One of `OPTIMIZERS` over a model's parameter groups."""
    groups = parameter_groups(model, weight_decay)
    if name == "muon":
        return Muon(groups, lr=learning_rate)
    for group in groups:
        group.pop("matrices")
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=learning_rate, alpha=0.95)
    raise ValueError(f"optimizer {name!r} is unknown; known: {', '.join(OPTIMIZERS)}")


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, decay_share: float = 0.2
) -> torch.optim.lr_scheduler.LRScheduler:
    """transformers' schedules: a linear warm-up, then constant, linear, cosine, or stable and a last linear decay."""
    from transformers import get_scheduler

    names = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine", "wsd": "warmup_stable_decay"}
    if name not in names:
        raise ValueError(f"schedule {name!r} is unknown; known: {', '.join(SCHEDULES)}")
    specific = None
    if name == "wsd":
        decay_steps = max(1, int(total_steps * decay_share))
        specific = {"num_decay_steps": decay_steps, "decay_type": "linear", "min_lr_ratio": 0.0}
    return get_scheduler(names[name], optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=specific)
