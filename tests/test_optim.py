"""Muon on several processes against one, AdamW against torch's, the rule of the learning rates, and the schedules.

Ranks are this file, started once each (`python test_optim.py CHECK ...`); they talk by gloo. What a rank compares with is an
optimizer over whole parameters that shares nothing, in its own memory.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from septet.data.errors import UserError
from septet.modeling import optim
from septet.modeling.optim import (
    SCHEDULES,
    Muon,
    learning_rate_scale,
    make_optimizer,
    make_schedule,
    orthogonalized,
    parameter_groups,
    set_step,
)

SECONDS = 100


class Net(nn.Module):
    """Matrices of several shapes: more of one than there are ranks, tall, wide, and of fewer rows than ranks times rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        shapes = [*[(10, 6)] * 5, (6, 10), (6, 10), (4, 6), (7, 7)]
        self.matrices = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.others = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in [(11, 6), (6,)])


def muon_of(net: nn.Module) -> Muon:
    groups = [{"params": list(net.matrices), "matrices": True}, {"params": list(net.others), "matrices": False}]
    return Muon(groups, lr=0.1, weight_decay=0.2)


def gradients(step: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    for parameter in Net().parameters():
        yield torch.randn(parameter.shape, generator=generator)


def alone(steps: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The parameters and Muon's momenta after some steps by one process, by the formula, matrix after matrix."""
    net = Net()
    momenta = [torch.zeros_like(p) for p in net.matrices]
    others = torch.optim.AdamW(net.others.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.2)
    for step in range(steps):
        for parameter, gradient in zip(net.parameters(), gradients(step), strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for parameter, momentum in zip(net.matrices, momenta, strict=True):
                momentum.mul_(0.95).add_(parameter.grad, alpha=0.05)
                direction = orthogonalized(0.05 * parameter.grad + 0.95 * momentum)
                parameter.mul_(1 - 0.1 * 0.2).sub_(0.1 * 0.2 * max(parameter.shape) ** 0.5 * direction)
        others.step()
    return [p.detach() for p in net.parameters()], momenta


# What a rank does


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def steps_equal_those_of_one_process(net: nn.Module, optimizer: Muon) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.tensor import DTensor, Replicate

    before = [whole(p).detach().clone() for p in net.parameters()]
    state = get_optimizer_state_dict(net, optimizer)["state"]
    assert state.keys() == {name for name, _ in net.named_parameters()}
    for old, parameter in zip(before, net.parameters(), strict=True):
        assert torch.equal(whole(parameter), old), "making the state moved a parameter"
    optimizer.state.clear()

    for step in range(3):
        for parameter, gradient in zip(net.parameters(), gradients(step), strict=True):
            if isinstance(parameter, DTensor):
                mesh = parameter.device_mesh
                everywhere = DTensor.from_local(gradient, mesh, [Replicate()] * mesh.ndim)
                parameter.grad = everywhere.redistribute(placements=parameter.placements)
            else:
                parameter.grad = gradient
        optimizer.step()
    parameters, momenta = alone(3)
    for mine, expected in zip(net.parameters(), parameters, strict=True):
        torch.testing.assert_close(whole(mine).detach(), expected, rtol=1e-4, atol=1e-5)
    for parameter, expected in zip(net.matrices, momenta, strict=True):
        momentum = optimizer.state[parameter]["momentum"]
        assert type(momentum) is (DTensor if isinstance(parameter, DTensor) else torch.Tensor)
        torch.testing.assert_close(whole(momentum), expected)


def number_orthogonalised() -> tuple[list[int], object]:
    """A list that gets the number of matrices of each call, and the patch that makes it so."""
    counted: list[int] = []

    def counting(matrix: torch.Tensor) -> torch.Tensor:
        counted.append(matrix.shape[0] if matrix.ndim == 3 else 1)
        return orthogonalized(matrix)

    return counted, patch.object(optim, "orthogonalized", counting)


def orthogonalised_in_a_step(optimizer: torch.optim.Optimizer) -> int:
    """How many matrices all ranks together orthogonalise in one step."""
    import torch.distributed as dist

    counted, patched = number_orthogonalised()
    with patched:
        optimizer.step()
    total = torch.tensor(sum(counted))
    dist.all_reduce(total)
    return int(total)


def replicated(ranks: int) -> None:
    import torch.distributed as dist

    net = Net()
    optimizer = muon_of(net)
    steps_equal_those_of_one_process(net, optimizer)
    for parameter in net.parameters():
        copies = [torch.empty_like(parameter) for _ in range(ranks)]
        dist.all_gather(copies, parameter.detach())
        assert all(torch.equal(copy, copies[0]) for copy in copies), "the ranks have drifted apart"
    assert orthogonalised_in_a_step(optimizer) == len(net.matrices), "a matrix was orthogonalised twice"


def sharded(ranks: int) -> None:
    from torch.distributed.fsdp import fully_shard

    net = Net()
    optimizer = muon_of(net)  # before the parameters are swapped, as with Accelerate
    positions = {id(p): i for i, p in enumerate(net.parameters())}
    groups = [[positions[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    fully_shard(net)
    swapped = list(net.parameters())
    for group, members in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [swapped[i] for i in members]
    steps_equal_those_of_one_process(net, optimizer)
    assert orthogonalised_in_a_step(optimizer) == len(net.matrices)


def in_two_dimensions(ranks: int) -> None:
    """HSDP; and placements of tensor parallelism, by columns, and by rows under FSDP2 by rows (strided)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    hsdp = Net()
    fully_shard(hsdp, mesh=mesh)
    optimizer = muon_of(hsdp)
    steps_equal_those_of_one_process(hsdp, optimizer)
    assert orthogonalised_in_a_step(optimizer) == 2 * len(hsdp.matrices), "once in each replica"

    for placement, with_fsdp in itertools.product((Shard(0), Shard(1)), (False, True)):
        net = Net()
        for parameters in (net.matrices, net.others):
            for i, parameter in enumerate(parameters):
                here = [placement if parameter.ndim == 2 else Replicate()]
                parameters[i] = nn.Parameter(distribute_tensor(parameter.detach(), mesh["inner"], here))
        if with_fsdp:
            fully_shard(net, mesh=mesh["outer"])
        steps_equal_those_of_one_process(net, muon_of(net))


CHECKS = {check.__name__: check for check in (replicated, sharded, in_two_dimensions)}


# The tests


@pytest.mark.parametrize(
    ("checks", "count"), [(("replicated", "sharded"), 2), (("sharded",), 3), (("in_two_dimensions",), 4)]
)
def test_ranks_do_what_one_process_does(checks: tuple[str, ...], count: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = []
    for rank in range(count):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        log = (tmp_path / f"{rank}.log").open("w")
        ranks.append(subprocess.Popen([sys.executable, __file__, *checks], env=environment, stdout=log, stderr=log))
    finished_by = time.monotonic() + SECONDS
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
            assert time.monotonic() < finished_by, f"not done after {SECONDS} s"
            time.sleep(0.05)
    finally:  # a rank whose peer failed would wait for it
        for rank in ranks:
            rank.kill()
            rank.wait()
    logs = [(tmp_path / f"{rank}.log").read_text()[-4000:] for rank in range(count)]
    assert [rank.returncode for rank in ranks] == [0] * count, [
        log for rank, log in zip(ranks, logs, strict=True) if rank.returncode > 0
    ]


def test_one_process_follows_the_formula_and_stacks() -> None:
    net = Net()
    steps_equal_those_of_one_process(net, muon_of(net))
    counted, patched = number_orthogonalised()
    with patched:
        muon = muon_of(net)
        muon.step()
    assert counted == [5, 2, 1, 1]
    stack = torch.randn(3, 12, 7)
    torch.testing.assert_close(orthogonalized(stack)[1], orthogonalized(stack[1]))
    assert torch.equal(orthogonalized(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (8, 9), (1, 5)])
@pytest.mark.parametrize("smallest", [1.0, 1e-6])
def test_the_short_way_is_newton_schulz(shape: tuple[int, int], smallest: float) -> None:
    u, _, vt = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    singular = torch.logspace(0, math.log10(smallest), min(shape))
    x = (u * singular @ vt).double()
    matrix = x.float()
    x = x / x.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    torch.testing.assert_close(orthogonalized(matrix), x.float(), rtol=0, atol=1e-3)


def test_matrices_in_pieces_are_refused() -> None:
    flat = nn.Parameter(torch.ones(12))
    flat.grad = torch.ones(12)
    with pytest.raises(UserError, match=r"shape \[12\].*--optimizer adamw"):
        Muon([{"params": [flat], "matrices": True}], lr=0.1).step()


def test_a_saved_state_goes_on() -> None:
    straight, stopped = Net(), Net()
    optimizers = [muon_of(straight), muon_of(stopped)]
    for step in range(4):
        if step == 2:
            state = optimizers[1].state_dict()
            optimizers[1] = muon_of(stopped)
            optimizers[1].load_state_dict(state)
        for net, optimizer in zip((straight, stopped), optimizers, strict=True):
            for parameter, gradient in zip(net.parameters(), gradients(step), strict=True):
                parameter.grad = gradient
            optimizer.step()
    for one, other in zip(straight.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)


def model_of(config, **fields):
    from septet.modeling.modeling_septet import SeptetForPreTraining

    return SeptetForPreTraining(type(config)(**{**config.to_dict(), "layer_types": None, **fields}))


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_one_role(config, tied: bool) -> None:
    model = model_of(config, tie_word_embeddings=tied)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {group["role"]: group for group in parameter_groups(model, 0.1)}
    roles = {role: [names.pop(id(p)) for p in group["params"]] for role, group in groups.items()}
    assert names == {}
    assert roles["embeddings"] == ["model.embed_tokens.weight"]
    assert roles["heads"] == ([] if tied else ["lm_head.weight"]) + ["nsp_head.weight"]
    assert len(roles["matrices"]) == 7 * model.config.num_hidden_layers
    assert all("norm" in name or name.endswith(".bias") for name in roles["vectors"])
    assert {role: group["weight_decay"] for role, group in groups.items()} == {
        "matrices": 0.1, "embeddings": 0.1, "heads": 0.1, "vectors": 0.0,
    }  # fmt: skip
    assert [group["matrices"] for group in groups.values()] == [role == "matrices" for role in groups]


def test_at_nano_a_rate_is_what_it_says_and_decay_is_the_same_everywhere(config) -> None:
    for name in optim.OPTIMIZERS:
        for role in ("matrices", "embeddings", "heads", "vectors"):
            assert learning_rate_scale(role, name, 192, 4) == 1.0
        wide = make_optimizer(name, model_of(config, hidden_size=384), 0.01, 0.1)
        for group in wide.param_groups:
            expected = 0.0 if group["role"] == "vectors" else 0.01 * 0.1
            assert group["lr"] * group["weight_decay"] == pytest.approx(expected)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_decay_takes_from_the_weights_what_it_says_whatever_the_gradient(name: str, config) -> None:
    """One step with decay and one without differ by rate x decay x weight, in the matrices and the embeddings."""
    moved = {}
    for decay in (0.0, 0.1):
        torch.manual_seed(0)
        model = model_of(config)
        before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.grad = 1e-4 * torch.randn(weight.shape, generator=generator)
        make_optimizer(name, model, 0.01, decay).step()
        moved[decay] = {key: weight.detach() for key, weight in model.named_parameters()}
    for key, weight in before.items():
        expected = 0.01 * 0.1 * weight if weight.ndim > 1 else torch.zeros_like(weight)
        torch.testing.assert_close(moved[0.0][key] - moved[0.1][key], expected, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_of_embeddings_that_is_none_is_refused(rate: float, config) -> None:
    with pytest.raises(UserError, match="--embedding-rate .*: must be above 0"):
        make_optimizer("muon", model_of(config), 0.01, 0.1, rate)


def test_an_update_changes_what_a_matrix_does_equally_at_every_width() -> None:
    """The spectral condition (Yang et al. 2023): the update's norm, over sqrt(rows / columns), is that of every width."""
    changes = []
    for width in (48, 192, 768):
        matrix = nn.Parameter(torch.zeros(width, width))
        matrix.grad = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
        rate = learning_rate_scale("matrices", "muon", width, 4)
        Muon([{"params": [matrix], "matrices": True}], lr=rate).step()
        changes.append(torch.linalg.matrix_norm(matrix.detach(), 2).item())
    assert max(changes) / min(changes) < 1.1


def change_of_states(config, width: int, ruled: bool) -> float:
    """By how much eight steps change the hidden states before the last layer, as a root mean square."""
    torch.manual_seed(0)
    fields = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": 4}
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 96, "head_dim": 32}
    model = model_of(config, vocab_size=384, **fields, **heads)
    optimizer = make_optimizer("muon", model, 3e-3, 0.0)
    if not ruled:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
    ids = torch.randint(16, 384, (8, 32), generator=torch.Generator().manual_seed(0))

    def states() -> torch.Tensor:
        with torch.no_grad():
            return model.model(ids, output_hidden_states=True).hidden_states[-2]

    before = states()
    for _ in range(8):
        model(ids, labels=ids.roll(1, 0), skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (states() - before).square().mean().sqrt().item()


def test_a_model_changes_equally_at_every_width(config) -> None:
    """The coordinate check of Yang et al. 2022; `benchmarks/transfer.py --coordinates` does it on text."""
    ruled, others = ([change_of_states(config, width, rule) for width in (96, 192, 384)] for rule in (True, False))
    assert max(ruled) / min(ruled) < 1.35
    assert max(others) / min(others) > 1.6


# Schedules


def rates(schedule, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return found


def two_groups() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.3, 0.1)])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(10, 100), (0, 7), (1, 1)])
def test_schedules_are_transformers_after_the_warm_up(name: str, warmup: int, total: int) -> None:
    from transformers import get_scheduler

    kind = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}.get(name, name)
    decay = {"num_decay_steps": max(1, round(0.2 * total)), "decay_type": "linear"} if name == "wsd" else None
    theirs = rates(get_scheduler(kind, two_groups(), warmup, total, scheduler_specific_kwargs=decay), total)
    ours = rates(make_schedule(name, two_groups(), warmup, total), total)
    torch.testing.assert_close(torch.tensor(ours[warmup:]), torch.tensor(theirs[warmup:]))
    for step in range(warmup):  # never lost, never at the peak
        assert ours[step] == pytest.approx([peak * (step + 1) / (warmup + 1) for peak in (0.3, 0.1)])
    assert min(rate for pair in ours for rate in pair) > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_set_step_is_as_having_stepped_there(name: str) -> None:
    for step in (0, 1, 9, 30, 49):
        stepped, put = (make_schedule(name, two_groups(), 5, 50) for _ in range(2))
        rates(stepped, step)
        put.optimizer.param_groups[0].update(lr=9.0, initial_lr=9.0)  # as a loaded state might
        set_step(put, step)
        assert put.state_dict() == stepped.state_dict()
        assert rates(put, 50 - step) == rates(stepped, 50 - step)


def test_a_decay_starts_at_another_runs_checkpoint() -> None:
    for start, end in ((1000, 1200), (1000, 1100), (7, 22), (900, 1300)):
        branched = make_schedule("wsd", two_groups(), 5, end, decay_share=(end - start) / end)
        set_step(branched, start)
        found = rates(branched, end - start)
        length = end - start
        assert found[0] == [0.3, 0.1]
        assert found[1] == pytest.approx([0.3 * (length - 1) / length, 0.1 * (length - 1) / length])
        assert found[-1] == pytest.approx([0.3 / length, 0.1 / length])


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for check in sys.argv[1:]:
        CHECKS[check](int(os.environ["WORLD_SIZE"]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
