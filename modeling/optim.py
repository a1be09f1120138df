"""Optimizers and schedules by name: parameters grouped by role, and one learning rate for every width and depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim.adamw import adamw

from septet.data.errors import UserError
from septet.modeling.modeling_septet import REFERENCE_WIDTH

OPTIMIZERS = ("muon", "adamw", "adam", "rmsprop")
SCHEDULES = ("constant", "linear", "cosine", "wsd")

REFERENCE_LAYERS = 4
"""The preset `nano`'s, for which (and for `REFERENCE_WIDTH`) learning rates are given as they are."""


# ---- Muon


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz for matrices (Jordan et al. 2024), AdamW for everything else.

    A parameter group with `"matrices": True` gets Muon's update, any other AdamW's. The orthogonal update is scaled by
    0.2 sqrt(max(rows, columns)), which gives it the typical root mean square of AdamW's (Liu et al. 2025, "Muon is
    Scalable for LLM Training"), so that one learning rate and one weight decay serve both.

    Processes share the work: each matrix is orthogonalised by one of them, whole, and sent to the others. How a matrix
    lies in their memories is looked up at each step, since Accelerate swaps parameters after construction:

    - an ordinary tensor is the same on all processes (DDP): each deals with its part of the matrices, an all-gather;
    - a DTensor sharded by rows (FSDP2; HSDP, within each replica): shards travel to the process that deals with their
      matrix and back, two all-to-alls; the momentum stays sharded;
    - any other DTensor (tensor parallelism, alone or with FSDP2): each process gathers and orthogonalises it whole.

    All processes must call `step` together, with gradients for the same parameters.

    `torch.optim.Muon` orthogonalises in bfloat16 wherever it runs; on a CPU without fast bfloat16 that is a hundred
    times slower than float32, which is why this one chooses by device. Nor does it share its work.

    Raises (in `step`):
        UserError: a group of matrices holds something else, such as the flat pieces of DeepSpeed's ZeRO.
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
        # "fused" tells `load_state_dict` that AdamW's step counts lie on the parameters' device.
        super().__init__(params, {**defaults, "matrices": False, "fused": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                for chunk, layout in _chunks(parameters):
                    self._muon(chunk, layout, group)
            elif parameters:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameters: list[nn.Parameter], layout: _Layout, group: dict[str, Any]) -> None:
        """One step of matrices of one shape that lie in one way."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [_local(self.state[p]["momentum"]) for p in parameters]
        gradients = [_local_gradient(p) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
        updates = _orthogonalized_together(nesterov, parameters[0], layout)

        weights = [_local(p) for p in parameters]
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(
            weights, [u.to(w.dtype) for u, w in zip(updates, weights, strict=True)], alpha=-group["lr"] * scale
        )

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            [_local(p) for p in parameters],
            [_local_gradient(p) for p in parameters],
            [_local(state["exp_avg"]) for state in states],
            [_local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )


def orthogonalized(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values are driven to between 0.7 and 1.2.

    Newton-Schulz with the quintic coefficients of Jordan et al. 2024, in bfloat16 on accelerators, float32 on a CPU.

    Args:
        matrix: (rows, columns), or several of them, (n, rows, columns).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(_working_dtype(matrix))
    x = x.reshape(-1, *x.shape[-2:])
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    if x.dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]:
        # All iterates are a polynomial of x x' times x, so only small squares need be multiplied: a quarter to a third less
        # time from columns = 2.7 rows on (1 thread). Singular values below 3e-4 of the largest come out less exactly,
        # and bfloat16 would not do: its errors in x x' grow with each step.
        gram, product = x @ x.mT, None
        for step in range(steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else product @ factor
            if step < steps - 1:
                gram = factor @ gram @ factor
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrix.shape)


def _working_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "cpu" else torch.bfloat16


# ---- How processes share Muon's work


class _Layout(NamedTuple):
    """How a matrix lies in the processes' memories, and the group of those that share its work."""

    kind: str
    """"whole" on every process, "rows" divided, or any "other" way"""
    group: Any
    size: int
    rank: int


def _layout(parameter: torch.Tensor) -> _Layout:
    kind, group = "whole", None  # torch's default group
    if isinstance(parameter, DTensor):
        divided = [i for i, placement in enumerate(parameter.placements) if placement != Replicate()]
        mesh = parameter.device_mesh
        if not divided and mesh.ndim == 1:
            group = mesh.get_group(0)
        elif len(divided) == 1 and parameter.placements[divided[0]] == Shard(0):
            kind, group = "rows", mesh.get_group(divided[0])
        else:
            return _Layout("other", None, 1, 0)
    if not (dist.is_available() and dist.is_initialized()):
        return _Layout(kind, None, 1, 0)
    return _Layout(kind, group, dist.get_world_size(group), dist.get_rank(group))


def _chunks(parameters: list[nn.Parameter]) -> Iterator[tuple[list[nn.Parameter], _Layout]]:
    """Matrices of one shape and layout, as many as the processes deal with at once.

    A process orthogonalises one matrix at a time, or a stack of small ones. On a CPU (1 thread, float32) stacks save 10 to
    40 % of the time up to 64 x 192, make no difference at 192 x 192, and lose up to 10 % from 192 x 512 on, where a stack
    does not stay in the cache: hence half a MiB. On accelerators the bound is ours, untuned: it spares launches of
    kernels that are too small to fill the device.
    """
    alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.ndim != 2:
            raise UserError(
                f"a parameter of shape {list(parameter.shape)}; Muon needs whole matrices, and DeepSpeed's ZeRO gives flat "
                "pieces of them; take --optimizer adamw there, or shard by FSDP2"
            )
        alike[(parameter.shape, parameter.dtype, _layout(parameter))].append(parameter)
    for (shape, _, layout), members in alike.items():
        most_elements = 2**17 if members[0].device.type == "cpu" else 2**24
        size = layout.size * max(1, most_elements // shape.numel())
        for start in range(0, len(members), size):
            yield members[start : start + size], layout


def _orthogonalized_together(matrices: list[torch.Tensor], like: torch.Tensor, layout: _Layout) -> list[torch.Tensor]:
    """This process's parts of the orthogonalised matrices, from its parts of the matrices.

    Every matrix is dealt with by one process of the layout's group: rank r by the r-th block of `each` matrices.

    Args:
        matrices: n tensors, the local part of each, all (rows here, columns).
        like: one of the parameters, for its whole shape and its placement.
    """
    if layout.kind == "other":
        return [_orthogonalized_by_all(matrix, like) for matrix in matrices]
    stack = torch.stack(matrices).to(_working_dtype(matrices[0]))  # (n, rows here, C)
    if layout.size == 1:
        return list(orthogonalized(stack))
    each = -(-len(stack) // layout.size)
    blocks = [len(block) for block in (stack[r * each : (r + 1) * each] for r in range(layout.size))]
    mine = slice(layout.rank * each, (layout.rank + 1) * each)
    if layout.kind == "whole":
        part = stack.new_zeros(each, *stack.shape[1:])
        part[: blocks[layout.rank]] = orthogonalized(stack[mine])
        gathered = stack.new_empty(layout.size * each, *stack.shape[1:])
        dist.all_gather_into_tensor(gathered, part, group=layout.group)
        return list(gathered[: len(stack)])

    # Rows are divided as torch.chunk does it: the last processes may have fewer, or none.
    total_rows, columns = like.shape
    most = -(-total_rows // layout.size)
    rows = [min(max(total_rows - r * most, 0), most) for r in range(layout.size)]
    here = [n * stack.shape[1] * columns for n in blocks]  # elements of each block that lie here
    there = [blocks[layout.rank] * n * columns for n in rows]  # elements of this process's block that lie elsewhere
    received = stack.new_empty(sum(there))
    dist.all_to_all_single(received, stack.flatten(), there, here, group=layout.group)
    shards = [part.view(blocks[layout.rank], n, columns) for part, n in zip(received.split(there), rows, strict=True)]
    whole = orthogonalized(torch.cat(shards, dim=1))  # (matrices of this process, R, C)
    returned = torch.empty_like(stack)
    sent = torch.cat([shard.flatten() for shard in whole.split(rows, dim=1)])
    dist.all_to_all_single(returned.view(-1), sent, here, there, group=layout.group)
    return list(returned)


def _orthogonalized_by_all(matrix: torch.Tensor, like: DTensor) -> torch.Tensor:
    """Gathers one matrix on every process and cuts this process's part out of the result; nothing is shared."""
    mesh, shape, stride = like.device_mesh, like.shape, like.stride()
    whole = DTensor.from_local(matrix, mesh, like.placements, run_check=False, shape=shape, stride=stride).full_tensor()
    same_everywhere = DTensor.from_local(orthogonalized(whole), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return same_everywhere.redistribute(placements=like.placements).to_local()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local_gradient(parameter: torch.Tensor) -> torch.Tensor:
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return _local(gradient)


# ---- Parameters by role, and one learning rate for every width and depth


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters by role: the layers' "matrices", "embeddings" (tied ones are also the output), "heads" (an output of its
    own, and every task's head), and "vectors" (norms and biases, which do not decay). Empty roles are left out.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    roles: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "heads": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            roles["vectors"].append(parameter)
        elif ".layers." in f".{name}":
            roles["matrices"].append(parameter)
        else:
            roles["embeddings" if id(parameter) in embeddings else "heads"].append(parameter)
    return [
        {
            "params": parameters,
            "role": role,
            "matrices": role == "matrices",
            "weight_decay": 0.0 if role == "vectors" else weight_decay,
        }
        for role, parameters in roles.items()
        if parameters
    ]


def learning_rate_scale(role: str, optimizer: str, width: int, layers: int) -> float:
    """What multiplies a role's learning rate, so that the rate that is best for `nano` (192 wide, 4 layers) serves others.

    - "matrices" under Muon: 1 / sqrt(width). What a layer does changes alike at every width when the spectral norm of its
      update is as sqrt(rows / columns) (Yang, Simon & Bernstein 2023; Bernstein & Newhouse 2024), a constant for shapes in
      proportion; the norm of Muon's grows as sqrt(max(rows, columns)). Under Adam's kin: 1 / width (Yang et al. 2022, muP).
    - "matrices" of more layers: 1 / sqrt(layers). The layers' changes add up in the residual stream (Yang et al. 2024,
      depth-muP; Dey et al. 2025 scale the branches too, which an architecture isomorphic to Llama's does not).
    - "heads": 1 / sqrt(width); ours: muP's 1 / width kept the best rate in place at a higher loss, and no scaling moved it.
    - "embeddings" and "vectors": as it is (muP). So also tied embeddings, though they are heads as well: scaled by
      1 / sqrt(width) they ended 0.03 nats higher.

    It takes matrices that start as `_init_weights` has it, with 1 / sqrt(width) too. Choices said to be ours were measured at
    32 to 128 wide; `benchmarks/transfer.py` checks that states change alike from 96 to 768 wide, and sweeps rates.
    """
    wider, deeper = width / REFERENCE_WIDTH, layers / REFERENCE_LAYERS
    if role == "matrices":
        return deeper**-0.5 / (wider**0.5 if optimizer == "muon" else wider)
    return wider**-0.5 if role == "heads" else 1.0


def make_optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float, embedding_rate: float = 1.0
) -> torch.optim.Optimizer:
    """One of `OPTIMIZERS` over a model's parameter groups, each with its share of the learning rate.

    Decay is made independent of the share: a weight loses `learning_rate * weight_decay` of itself a step whatever its
    width, so that its memory of past updates is equally long (Wang & Aitchison 2024).

    Args:
        embedding_rate: what further multiplies the learning rate of all but the layers' matrices.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown; known: {', '.join(OPTIMIZERS)}")
    if not 0 < embedding_rate < math.inf:
        raise UserError(f"--embedding-rate {embedding_rate:g}: must be above 0; 1 is the learning rate itself")
    groups = parameter_groups(model, weight_decay)
    for group in groups:
        scale = learning_rate_scale(group["role"], name, model.config.hidden_size, model.config.num_hidden_layers)
        scale *= 1.0 if group["role"] == "matrices" else embedding_rate
        group["lr"], group["weight_decay"] = scale * learning_rate, group["weight_decay"] / scale
    if name == "muon":
        return Muon(groups, lr=learning_rate)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    if name == "adam":  # decay decoupled, as for all here, it is AdamW
        return torch.optim.Adam(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True, decoupled_weight_decay=True)
    return RMSprop(groups, lr=learning_rate, alpha=0.95)


class RMSprop(torch.optim.RMSprop):
    """torch's, but that its decay takes from the weights what AdamW's does, and adds nothing to the gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * decay)
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


# ---- Schedules


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, decay_share: float = 0.2
) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up, then constant, linear or cosine to 0, or stable ("wsd", Hu et al. 2024) and a last linear decay.

    Each group keeps its own peak. From the end of the warm-up on the rates are those of transformers' `get_scheduler`, and
    the last step's is the last above 0; but the first step's, which is 0 there and would be lost, is
    1 / (warmup_steps + 1) of the peak, and a decay that would begin within the warm-up does not jump.

    Args:
        decay_share: of the steps, at the end, in which "wsd" decays, to the nearest whole step.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown; known: {', '.join(SCHEDULES)}")
    decay_steps = max(1, round(decay_share * total_steps) if name == "wsd" else total_steps - warmup_steps)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup_steps + 1))
        left = 1.0 if name == "constant" else min(1.0, max(0.0, (total_steps - step) / decay_steps))
        return min(rise, 0.5 - 0.5 * math.cos(math.pi * left) if name == "cosine" else left)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def set_step(schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Puts a schedule, and its optimizer's rates, where `step` calls of `schedule.step()` would have put them.

    So a checkpoint needs no state of the schedule, and a run may go on from another's step under a schedule of its own.
    The peaks are those that the schedule was made with, whatever rates a loaded optimizer state brought along.
    """
    schedule.last_epoch, schedule._step_count = step, step + 1
    rates = [peak * factor(step) for peak, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate, peak in zip(schedule.optimizer.param_groups, rates, schedule.base_lrs, strict=True):
        group["lr"], group["initial_lr"] = rate, peak
    schedule._last_lr = rates
