"""What a pre-training run needs before it is started: memory by component, days, money and energy.

    septet plan --preset 7b --machine 8xH100 --tokens 140B

Parameters, optimizer states and what a layer keeps and uses are counted on the model itself, without its memory; the
highest point of a step is found by going through its moments. `benchmarks/plan_memory.py` holds that against real steps.
Peaks come from data sheets; what is assumed beyond them is printed with the plan.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from septet.data.errors import UserError, run_cli, suggestion
from septet.data.manifest import SCHEMA_VERSION, code_version, identity, write_json

GIB = 2**30
USABLE_SHARE = 0.92  # an assumption: the rest goes to the driver's context, communication and fragmentation
LOGITS_CHUNK = 1024  # positions whose logits are held at once, see `modeling_septet.chunked_linear_cross_entropy`
MASK_PROBABILITY = 0.15  # `septet pretrain`'s default
DEVICES_PER_NODE = 8  # of HGX and DGX machines; `4x8xH100` says otherwise


@dataclass(frozen=True)
class Device:
    """One accelerator, or one core of a CPU."""

    peak_tflops: float
    """dense matrix products: bfloat16 with float32 sums, or float32 where `mixed` is false; 10^12 a second"""
    memory_gib: float
    watts: float
    price_per_hour: float
    """US dollars; an assumption of ours, prices differ several times between providers"""
    source: str
    utilisation: float
    """share of the peak that is reached, recomputation counted as work"""
    utilisation_source: str
    mixed: bool = True
    """computes in bfloat16 under autocast; float32 otherwise"""


# Data sheets head their columns with the peak at 2:4 sparsity; these are the dense halves. Utilisations are published
# ones of FSDP at 7 to 8 G parameters: MosaicML's llm-foundry (scripts/train/benchmarking, 7b) counts model FLOPs and,
# where it recomputes, hardware FLOPs; torchtitan (benchmarks, December 2024, Llama 3.1 8B) gives 33 to 39 %.
HOPPER = "7b of llm-foundry on 8 H100: 46 % at 2,048 tokens, 54 % at 4,096 recomputing; torchtitan's 8B: 33 to 39 %"
DEVICES = {
    "A100": Device(312.0, 79.2, 400, 1.5, "NVIDIA A100 80 GB (SXM) data sheet", 0.5,
                   "7b of llm-foundry on 8 A100: 64 % at 2,048 tokens, 73 % at 4,096 recomputing; a margin of ours below"),
    "H100": Device(989.4, 79.2, 700, 2.5, "NVIDIA H100 (SXM) data sheet", 0.4, HOPPER),
    "H200": Device(989.4, 139.8, 700, 3.5, "NVIDIA H200 (SXM) data sheet", 0.4, HOPPER),
    "RTX4090": Device(165.2, 23.6, 450, 0.4, "NVIDIA Ada GPU architecture white paper", 0.4, "ours, as the H100's"),
    "cpu": Device(0.096, 8.0, 10, 0.05,
                  "one core: 2 AVX2 multiply-adds x 8 float32 x 2 operations x 3 GHz; memory assumed", 0.4, "ours", False),
}  # fmt: skip


@dataclass(frozen=True)
class PlanConfig:
    preset: str = "7b"
    """shape of the model: tiny, nano, small, base, 1b, 7b"""
    machine: str = "8xH100"
    """<devices>x<device>, as 8xH100 or 32xH100 (4 nodes of 8), or <nodes>x<devices a node>x<device>, as 4x4xA100;
    devices: A100, H100, H200, RTX4090, cpu (a core)"""
    tokens: str = "140B"
    """tokens to train on, as 140B, 2.5T, 300M or a plain number; 140B is 20 a parameter of the 7B"""
    objective: Literal["causal", "mlm", "mlm_nsp", "joint"] = "causal"
    """as in `septet pretrain`; joint reads half of each micro-batch causally and half in both directions"""
    sequence_length: int = 4096
    """tokens in a sequence"""
    micro_batch_size: int | None = None
    """sequences that one process reads at once; default: 1 (joint 2). The plan says how many would fit"""
    tokens_per_step: int = 524_288
    """tokens of one optimizer step over all processes"""
    vocab_size: int = 65536
    """number of tokens in the vocabulary"""
    optimizer: Literal["muon", "adamw", "adam", "rmsprop"] = "muon"
    """muon: Muon for the layers' matrices, AdamW for the rest"""
    utilisation: float | None = None
    """share of the peak that is reached, recomputation counted as work; default: the device's, from published runs"""
    price_per_device_hour: float | None = None
    """US dollars; default: the table's assumption"""
    output: Path | None = None
    """a JSON file for the plan"""


@dataclass(frozen=True)
class Step:
    """What one process reads and keeps in a step, whatever the layout."""

    optimizer: str
    objective: str
    rows: int
    """sequences of a micro-batch"""
    length: int
    accumulates: bool
    """a process reads several micro-batches a step, so that gradients are there while it reads"""
    mixed: bool
    """bfloat16 under autocast"""
    on_cpu: bool

    def readings(self) -> list[tuple[int, float]]:
        """(rows, share of their tokens that are targets) of each pass through the model and back; joint makes two."""
        if self.objective == "causal":
            return [(self.rows, 1.0)]
        if self.objective == "joint":
            causal = max(1, self.rows // 2)
            return [(causal, 1.0), (max(1, self.rows - causal), MASK_PROBABILITY)]
        return [(self.rows, MASK_PROBABILITY)]


@dataclass(frozen=True)
class Layout:
    """How the model lies on the devices."""

    kind: Literal["DDP", "FSDP2", "HSDP"]
    """DDP: a copy each. FSDP2: weights, gradients and states divided among all (ZeRO stage 3, Rajbhandari et al. 2020;
    `septet pretrain` refuses DeepSpeed's own). HSDP: divided within a node, a copy each node"""
    count: int
    """devices"""
    shards: int = 1
    """ranks that share one copy"""
    tensor: int = 1
    """ranks that share each matrix (Shoeybi et al. 2019, Megatron-LM)"""
    recomputes: bool = False
    """activation checkpointing: a layer keeps its input alone and runs again in the backward pass (Chen et al. 2016)"""

    @property
    def name(self) -> str:
        kind = "one device" if self.count == 1 else self.kind
        return kind + (f" + TP {self.tensor}" if self.tensor > 1 else "") + (", recomputing" if self.recomputes else "")


def layouts(nodes: int, per_node: int) -> list[Layout]:
    """What `septet pretrain` offers on a machine, in order of preference where the price is the same: less
    communication, and less of it between nodes, first."""
    count = nodes * per_node
    found = [Layout("DDP", count)]
    if nodes > 1 and per_node > 1:
        found.append(Layout("HSDP", count, per_node))
    if count > 1:
        found.append(Layout("FSDP2", count, count))
    if per_node % 2 == 0 and count > 2:
        found.append(Layout("FSDP2", count, count // 2, 2))
    return [replace(layout, recomputes=recomputes) for recomputes in (False, True) for layout in found]


def run(config: PlanConfig) -> dict[str, Any]:
    """Prints the plan and returns it.

    Raises:
        UserError: an unknown preset or machine, a number that is none, or a model that fits in no layout.
    """
    nodes, per_node, name = parse_machine(config.machine)
    plan = make_plan(config, nodes, per_node, name)
    if config.output is not None:
        try:
            write_json(config.output, plan)
        except OSError as error:
            raise UserError(f"{config.output}: cannot be written ({error.strerror}); give another --output") from error
    print(table(plan), flush=True)
    if plan["choice"] is None:
        least = min(plan["layouts"], key=lambda layout: layout["total_gib"])
        raise UserError(
            f"{config.preset} on {config.machine}: needs at least {least['total_gib']:.1f} GiB a device "
            f"({least['name']}), there are {plan['usable_gib']:.1f}; give a smaller --micro-batch-size or "
            "--sequence-length, or more devices"
        )
    return plan


def make_plan(config: PlanConfig, nodes: int, per_node: int, device_name: str) -> dict[str, Any]:
    """The plan as plain data; see `run`. `choice` is the cheapest layout that fits, or None."""
    from septet.modeling.presets import preset_config

    device, tokens, count = DEVICES[device_name], parse_count(config.tokens), nodes * per_node
    rows, length = check_numbers(config), config.sequence_length
    utilisation = config.utilisation or device.utilisation
    price = device.price_per_hour if config.price_per_device_hour is None else config.price_per_device_hour
    shape = preset_config(config.preset, vocab_size=config.vocab_size, max_position_embeddings=length)
    model = meta_model(shape)
    usable = USABLE_SHARE * device.memory_gib
    flops = training_flops_per_token(shape, length, config.objective)
    state_bytes = 4 * sum(p.numel() for p in model.parameters()) + optimizer_state_bytes(config.optimizer, model)
    planned = []
    for layout in layouts(nodes, per_node):
        processes = count // layout.tensor

        def memory(rows: int, layout: Layout = layout, processes: int = processes) -> tuple[str, dict[str, int]]:
            accumulates = config.tokens_per_step > rows * length * processes
            step = Step(config.optimizer, config.objective, rows, length, accumulates, device.mixed, not device.mixed)
            return highest(moments(shape, step, layout))

        # The copy that is written in the background lies in the host's memory, which is a CPU's own.
        staged = state_bytes / GIB / (layout.shards * layout.tensor)
        reserved = 0.0 if device.mixed else staged
        moment, parts = memory(rows)
        total = sum(parts.values()) / GIB
        largest = 0
        for power in range(1 if config.objective == "joint" else 0, 13):
            if sum(memory(2**power)[1].values()) / GIB + reserved > usable:
                break
            largest = 2**power
        computed = flops + layout.recomputes * recomputed_flops_per_token(shape, length)
        rate = count * device.peak_tflops * 1e12 * utilisation / computed
        hours = tokens / rate / 3600
        planned.append(
            {
                "name": layout.name,
                "memory_gib": {part: size / GIB for part, size in parts.items()},
                "highest_in": moment,
                "total_gib": total,
                "fits": total + reserved <= usable,
                "largest_micro_batch": largest,
                "host_gib_per_node": staged * per_node,
                "computed_flops_per_token": computed,
                "tokens_per_second": rate,
                "days": hours / 24,
                "us_dollars": hours * count * price,
                "kilowatt_hours": hours * count * device.watts / 1000,
            }
        )
    fitting = [layout for layout in planned if layout["fits"]]
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": code_version(),
        "config": identity(config),
        "nodes": nodes,
        "devices_per_node": per_node,
        "micro_batch_size": rows,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "training_flops": tokens * flops,
        "checkpoint_gib": state_bytes / GIB,
        "usable_gib": usable,
        "layouts": planned,
        "choice": min(fitting, key=lambda layout: layout["us_dollars"])["name"] if fitting else None,
        "sources": [
            f"peak: {device.peak_tflops:g} TFLOP/s dense, {device.memory_gib:g} GiB, {device.watts:g} W: {device.source}",
            f"utilisation: {device.utilisation_source}",
            "FLOPs: 6 a weight that multiplies, 12 x layers x heads x head_dim x length for attention (PaLM, appendix B)",
            "memory: counted on the model without its weights, for the highest moment of a step; measured on CPUs",
        ],
        "assumptions": [
            f"{utilisation:.0%} of the peak in every layout, communication hidden; set --utilisation to what you measure",
            f"{price:g} US dollars a device and hour; set --price-per-device-hour",
            f"{USABLE_SHARE:.0%} of the memory is usable; kernels keep no more than a CPU's (a GPU's keep less)",
            "several documents a row, hence a mask; energy is the devices' board power, without hosts and cooling",
            "FSDP2 reduces its gradients after every micro-batch; + TP was not run: its head holds whole logits",
        ],
    }


def check_numbers(config: PlanConfig) -> int:
    """Raises a `UserError` for a number out of range; returns the sequences of a micro-batch."""
    for field in ("sequence_length", "micro_batch_size", "tokens_per_step", "utilisation", "vocab_size"):
        value = getattr(config, field)
        if value is not None and value <= 0:
            raise UserError(f"--{field.replace('_', '-')} {value}: must be above 0; leave it out for its default")
    if config.utilisation is not None and config.utilisation > 1:
        raise UserError(f"--utilisation {config.utilisation:g}: is a share of the peak, at most 1; give one like 0.4")
    least = 2 if config.objective == "joint" else 1
    rows = least if config.micro_batch_size is None else config.micro_batch_size
    if rows < least:
        raise UserError(f"--micro-batch-size {rows}: joint splits it between two readings; give at least 2")
    return rows


# ---- counts -----------------------------------------------------------------------------------------------------------


def meta_model(shape: Any) -> Any:
    """A `SeptetForCausalLM` of this configuration that takes no memory."""
    import torch

    from septet.modeling.modeling_septet import SeptetForCausalLM

    with torch.device("meta"):
        return SeptetForCausalLM(shape)


def optimizer_state_bytes(optimizer: str, model: Any) -> int:
    """Bytes of the states that an optimizer of `optim.make_optimizer` keeps, in float32.

    Muon keeps one tensor a matrix of the layers; AdamW (for the rest) and Adam keep two a parameter, RMSprop one, and
    these three a step count of 4 bytes a tensor.
    """
    from septet.modeling.optim import parameter_groups

    total = 0
    for group in parameter_groups(model, 0.0):
        by_muon = optimizer == "muon" and group["matrices"]
        tensors = 1 if by_muon or optimizer == "rmsprop" else 2
        total += sum(4 * tensors * p.numel() + (0 if by_muon else 4) for p in group["params"])
    return total


def training_flops_per_token(
    shape: Any,
    sequence_length: int,
    objective: str = "causal",
    mask_probability: float = MASK_PROBABILITY,
    joint_causal_share: float = 0.5,
) -> float:
    """Forward and backward pass: 6 a weight that multiplies (the input embedding does not), and attention.

    The head multiplies at targets alone: at every place of a sequence that is read causally, at `mask_probability` of the
    places of one that is masked. Recomputation is not counted. Attention is the whole square, since the mask of packed documents hides
    but saves nothing (Chowdhery et al. 2022, PaLM, appendix B).
    """
    causal = {"causal": 1.0, "joint": joint_causal_share}.get(objective, 0.0)
    targets = causal + (1 - causal) * mask_probability
    weights = _layer_matrices(shape) + targets * shape.vocab_size * shape.hidden_size
    return 6 * weights + 3 * _attention_flops(shape, sequence_length)


def recomputed_flops_per_token(shape: Any, sequence_length: int) -> int:
    """What activation checkpointing adds: the layers' forward pass but for the last product, whose input suffices."""
    last = shape.num_hidden_layers * shape.intermediate_size * shape.hidden_size
    return 2 * (_layer_matrices(shape) - last) + _attention_flops(shape, sequence_length)


def _layer_matrices(shape: Any) -> int:
    return sum(p.numel() for p in meta_model(shape).model.layers.parameters() if p.ndim == 2)


def _attention_flops(shape: Any, sequence_length: int) -> int:
    """Scores and weighted values of one token in the forward pass: 2 products of 2 x heads x head_dim x length."""
    return 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * sequence_length


class Sizes(NamedTuple):
    """Numbers of a model that its memory follows from."""

    parameters: int
    layer: int
    """parameters of a layer"""
    matrices: int
    """of them those in matrices"""
    table: int
    """of the input embedding, or of the output head"""
    states: int
    """bytes of the optimizer's"""


@lru_cache(maxsize=64)
def _sizes(shape_json: str, optimizer: str) -> Sizes:
    from septet.modeling.configuration_septet import SeptetConfig

    model = meta_model(SeptetConfig.from_dict(json.loads(shape_json)))
    layer = list(model.model.layers[0].parameters())
    return Sizes(
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in layer),
        sum(p.numel() for p in layer if p.ndim == 2),
        model.lm_head.weight.numel(),
        optimizer_state_bytes(optimizer, model),
    )


class LayerBytes(NamedTuple):
    """What one layer takes beyond its weights."""

    kept: int
    """between its forward and its backward pass, the input included where it is kept, the output not"""
    forward: int
    """at the highest point of the forward pass, with its input and output"""
    backward: int
    """at the highest point of the backward pass, the output's gradient and a new one of a weight included"""


def layer_bytes(
    shape: Any, rows: int, length: int, weight_bytes: int = 4, residual_bytes: int = 4, tensor: int = 1
) -> LayerBytes:
    """Bytes of a layer on `rows` packed sequences of `length` tokens, counted by running it on fake tensors.

    The mask and the rotary angles, which all layers share, are left out.

    Args:
        weight_bytes: 2 where matrices multiply in bfloat16, 4 in float32.
        residual_bytes: 4 where hidden states and norms stay float32 (autocast), 2 where all is bfloat16 (FSDP2).
        tensor: ranks that share each matrix; each has its share of the heads and of the feed-forward.
    """
    return _layer_bytes(shape.to_json_string(), rows, length, weight_bytes, residual_bytes, tensor)


@lru_cache(maxsize=256)
def _layer_bytes(
    shape_json: str, rows: int, length: int, weight_bytes: int, residual_bytes: int, tensor: int
) -> LayerBytes:
    import weakref

    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.modeling_septet import SeptetDecoderLayer

    class Live(TorchDispatchMode):
        """Bytes of the storages alive. (torch's own MemTracker does this for whole modules, by categories; one number
        is wanted here.)"""

        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[int, int] = {}
            self.total = self.highest = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            outputs = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(outputs):
                if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self.sizes:
                    storage = leaf.untyped_storage()
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.total += storage.nbytes()
                    weakref.finalize(storage, self.release, storage._cdata)
            self.highest = max(self.highest, self.total)
            return outputs

        def release(self, key: int) -> None:
            self.total -= self.sizes.pop(key)

    shape = SeptetConfig.from_dict(json.loads(shape_json))
    shape.num_attention_heads //= tensor
    shape.num_key_value_heads //= tensor
    shape.intermediate_size //= tensor
    shape._attn_implementation = "sdpa"
    dtypes = {2: torch.bfloat16, 4: torch.float32}
    with FakeTensorMode(), Live() as live:
        layer = SeptetDecoderLayer(shape, 0).train()
        for module in layer.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                dtype = dtypes[weight_bytes if weight.ndim == 2 else residual_bytes]
                setattr(module, name, nn.Parameter(torch.empty(weight.shape, dtype=dtype)))
        for weight in layer.parameters():
            weight.grad = torch.empty_like(weight)
        dtype = dtypes[residual_bytes]
        leaf = torch.empty(rows, length, shape.hidden_size, dtype=dtype, requires_grad=True)
        angles = torch.empty(rows, length, 1, shape.head_dim, dtype=dtype)
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool)
        before = live.total
        live.highest = 0
        residual = leaf * 1  # not a leaf: it goes if nothing keeps it
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weight_bytes == 2):
            output = layer(residual, attention_mask=mask, position_embeddings=(angles, angles), is_causal=True)
        forward = live.highest - before
        del residual
        kept = live.total - before - output.nbytes
        live.highest = 0
        gradient = torch.empty_like(output)
        output.backward(gradient)
        return LayerBytes(kept, forward, live.highest - before - output.nbytes)


def moments(shape: Any, step: Step, layout: Layout) -> dict[str, dict[str, int]]:
    """Bytes a device by component at each moment of a step that may be its highest.

    The moments: `forward`, in the last layer; `loss`, when the cross-entropy is computed; `head`, when its gradients are
    scaled; `last layer` and `first layer`, in their backward passes; `embedding`, when the input embedding's gradient is
    made; `reduction`, when FSDP2 reduces those of the embedding and the head; `update`, in the optimizer's step. Weights,
    gradients and states are float32. A reading is a pass of some rows through the model and back; the later one of two
    finds the gradients of the earlier one there.
    """
    sizes = Sizes(*(size // layout.tensor for size in _sizes(shape.to_json_string(), step.optimizer)))
    num_layers, hidden, tied = shape.num_hidden_layers, shape.hidden_size, shape.tie_word_embeddings
    sharded = layout.shards > 1
    compute_bytes = 2 if step.mixed else 4
    residual_bytes = compute_bytes if sharded else 4
    gradient_bytes = compute_bytes if sharded else 4  # of a gradient before it is reduced
    table = sizes.table * gradient_bytes
    root = sizes.parameters - num_layers * sizes.layer
    copies = 0
    if not sharded and layout.count > 1:
        copies = 4 * sizes.parameters  # DDP's buckets
    casts = 2 * num_layers * sizes.matrices if step.mixed and not sharded else 0  # autocast's cache

    found: dict[str, dict[str, int]] = {}

    def note(name: str, gradients: int, activations: int, temporaries: int, copied: int = 0) -> None:
        parts = {
            "weights": 4 * sizes.parameters // layout.shards,
            "gradients": gradients // layout.shards,
            "optimizer": sizes.states // layout.shards,
            "copies": copies + copied,
            "activations": activations,
            "temporaries": temporaries,
        }
        if name not in found or sum(parts.values()) > sum(found[name].values()):
            found[name] = parts

    whole = 4 * sizes.parameters
    gathered_root = compute_bytes * root if sharded else 0
    gathered = gathered_root + 2 * compute_bytes * sizes.layer if sharded else 0
    # Of a layer's gradients one copy, and on accelerators the flat one of the layer before, on its way.
    unreduced = (1 if step.on_cpu else 2) * compute_bytes * sizes.layer if sharded else 0
    last_gathered = compute_bytes * sizes.layer if sharded else 0  # the flat buffer of the last gathering is held
    pending = table * int(tied or sharded)  # the head's gradient waits for its use as input embedding, or for FSDP2
    complete = 0 if tied or sharded else 4 * sizes.table
    for index, (rows, share) in enumerate(step.readings()):
        has_gradients = step.accumulates or index > 0
        start = whole if has_gradients else 0
        layer = layer_bytes(shape, rows, step.length, compute_bytes, residual_bytes, layout.tensor)
        tokens = rows * step.length
        inputs = tokens * hidden * residual_bytes
        norm = tokens * (8 * hidden + 4)  # the last one: its input and what it made of it, in float32
        shared = tokens * (step.length + 2 * residual_bytes * shape.head_dim + 3 * 8)  # mask, angles, ids
        per_layer = inputs if layout.recomputes else layer.kept
        kept = shared + norm + num_layers * per_layer
        targets = round(tokens * share)
        # The chunked loss keeps the gradients of the hidden states and of the head. The logits of a chunk: under autocast
        # in bfloat16, in float32, and their gradient in bfloat16, with the head's weight (FSDP2's is bfloat16 already) and a
        # product of its size in bfloat16, which a CPU casts to float32 to add it.
        loss = targets * hidden * compute_bytes + 4 * sizes.table
        scaled = loss + (2 * sizes.table if step.mixed else 0)
        chunk = min(LOGITS_CHUNK, targets) * shape.vocab_size
        logits = (8 * chunk + ((2 if sharded else 4) + 4 * step.on_cpu) * sizes.table) if step.mixed else 4 * chunk
        if layout.tensor > 1:  # the head, called as a module: the logarithms of all probabilities
            loss = 4 * targets * shape.vocab_size
            scaled = 2 * loss
            logits = (2 + 4 if step.mixed else 4) * targets * shape.vocab_size
        states = inputs + targets * compute_bytes * hidden
        note("loss", start, kept, loss + logits + states, gathered_root + last_gathered + casts)
        held = casts // num_layers if layout.recomputes else casts
        if not layout.recomputes:  # else the backward pass begins with such a forward pass
            note("forward", start, kept - norm - layer.kept, layer.forward, gathered + casts)
        note("head", start, kept, loss + scaled, gathered_root + last_gathered + held)
        own = max(layer.backward, layer.forward if layout.recomputes else 0)
        for name, left in (("last layer", num_layers - 1), ("first layer", 0)):
            gradients = whole if has_gradients else complete + 4 * sizes.layer * (num_layers - 1 - left)
            note(name, gradients, shared + per_layer * left, own + pending, gathered + unreduced + held)
        gradients = whole if has_gradients else whole - 4 * sizes.table
        note("embedding", gradients, 0, table + inputs + pending, gathered_root)
    if sharded:
        note("reduction", whole, 0, 2 * gradient_bytes * root, gathered_root)
    note("update", whole, 0, update_bytes(shape, step, layout, sizes))
    return found


def update_bytes(shape: Any, step: Step, layout: Layout, sizes: Sizes) -> int:
    """Temporaries of the optimizer's step.

    The fused Adams need none. RMSprop needs one of a parameter, or of all where they are dealt with together (torch's
    default on accelerators). Muon deals with as many matrices at a time as there are ranks that share its work (see
    `optim.Muon`), small ones in stacks.
    """
    if step.optimizer == "rmsprop":
        largest = max(sizes.table, shape.intermediate_size * shape.hidden_size // layout.tensor)
        return 4 * (largest if step.on_cpu else sizes.parameters) // layout.shards
    if step.optimizer != "muon":
        return 0
    work_bytes, stacked = (4, 2**17) if step.on_cpu else (2, 2**24)  # see `optim._chunks`
    heads, key_values = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
    hidden, wide = shape.hidden_size, shape.intermediate_size
    sides = [(heads, hidden), (hidden, heads), *[(key_values, hidden)] * 2, *[(wide, hidden)] * 2, (hidden, wide)]
    most = 0
    for (side, other), each_layer in Counter(sides).items():
        short, long = sorted((side, other))
        matrix, grams = (
            short * long,
            (3 if step.on_cpu and long >= 2 * short else 2) * short**2,
        )  # `optim.orthogonalized`
        if layout.tensor > 1:  # each rank gathers one matrix after the other, and keeps the shards of all updates
            together = min(each_layer * shape.num_hidden_layers, max(1, stacked // matrix))
            shards = 2 * 4 * together * matrix // (layout.tensor * layout.shards)
            most = max(most, shards + work_bytes * (4 * matrix + grams))
            continue
        ranks = layout.shards if layout.shards > 1 else layout.count
        together = min(each_layer * shape.num_hidden_layers, ranks * max(1, stacked // matrix))
        mine = -(-together // ranks)
        here = together * matrix // layout.shards
        orthogonalizing = mine * (2 * matrix + grams)
        if ranks == 1:
            needed = 4 * here + work_bytes * (here + orthogonalizing)
        elif layout.shards == 1:
            needed = 4 * here + work_bytes * (here + mine * matrix + max(orthogonalizing, ranks * mine * matrix))
        else:
            needed = 4 * here + work_bytes * (here + 2 * mine * matrix + max(orthogonalizing, here + mine * matrix))
        updates = 4 * here if work_bytes == 2 else 0  # in the weights' type again
        most = max(most, needed, (4 + work_bytes) * here + updates)
    return most


def highest(found: dict[str, dict[str, int]]) -> tuple[str, dict[str, int]]:
    """The moment that takes most, with its components."""
    return max(found.items(), key=lambda item: sum(item[1].values()))


# ---- words ------------------------------------------------------------------------------------------------------------


def parse_machine(text: str) -> tuple[int, int, str]:
    """Nodes, devices a node and the device: `8xH100` -> (1, 8, "H100"), `32xH100` -> (4, 8, "H100"), `4x4xA100` ->
    (4, 4, "A100"), `cpu` -> (1, 1, "cpu")."""
    match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?([A-Za-z]\w*)", text)
    known = {name.lower(): name for name in DEVICES}
    if not match or match[3].lower() not in known or "0" in (match[1], match[2]):
        device = re.sub(r"^(\d+x)*", "", text)
        raise UserError(
            f"machine {text!r}: must be <devices>x<device>, as 8xH100, or <nodes>x<devices a node>x<device>, as 4x8xH100; "
            + suggestion(device, DEVICES)
        )
    name, first = known[match[3].lower()], int(match[1] or 1)
    if match[2]:
        return first, int(match[2]), name
    if name == "cpu" or first <= DEVICES_PER_NODE:
        return 1, first, name
    if first % DEVICES_PER_NODE:
        raise UserError(
            f"machine {text!r}: more than {DEVICES_PER_NODE} devices must be whole nodes of {DEVICES_PER_NODE}; give "
            f"{first // DEVICES_PER_NODE * DEVICES_PER_NODE}x{name}, or the nodes by themselves, as 4x4x{name}"
        )
    return first // DEVICES_PER_NODE, DEVICES_PER_NODE, name


def parse_count(text: str) -> int:
    """`140B` -> 140,000,000,000; K, M, B and T are powers of a thousand."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.replace(",", "").replace("_", "").upper())
    if not match or not float(match[1]):
        raise UserError(f"{text!r}: is no number of tokens; give one like 140B, 2.5T, 300M or 1000000")
    return round(float(match[1]) * 1000 ** " KMBT".index(match[2] or " "))


def table(plan: dict[str, Any]) -> str:
    """The plan as text of at most 120 columns, a row a layout."""
    config, planned = plan["config"], plan["layouts"]
    memory = [["GiB a device", *planned[0]["memory_gib"], "total", "fits", "highest in"]]
    money = [["", "largest micro batch", "tokens a second", "days", "US dollars", "kWh", "host GiB a node"]]
    for layout in planned:
        parts = [f"{size:,.2f}" for size in (*layout["memory_gib"].values(), layout["total_gib"])]
        memory.append([layout["name"], *parts, "yes" if layout["fits"] else "no", layout["highest_in"]])
        values = [layout[key] for key in ("tokens_per_second", "days", "us_dollars", "kilowatt_hours")]
        shown = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        largest = str(layout["largest_micro_batch"] or "none")
        money.append([layout["name"], largest, *shown, f"{layout['host_gib_per_node']:,.1f}"])
    lines = [
        f"plan: {config['preset']}, {plan['num_parameters']:,} parameters, {plan['tokens']:,} tokens on "
        f"{config['machine']}: {plan['training_flops']:.3g} FLOPs",
        f"plan: {config['objective']}, {config['optimizer']}, micro-batches of {plan['micro_batch_size']} x "
        f"{config['sequence_length']:,} tokens; {plan['usable_gib']:.1f} GiB of a device are usable",
        f"plan: a checkpoint takes {plan['checkpoint_gib']:,.1f} GiB of disk and, while it is written in the background, "
        "the host memory below",
    ]
    for rows in (memory, money):
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    for name in ("sources", "assumptions"):
        lines += [
            line
            for text in plan[name]
            for line in textwrap.wrap(text, 120, initial_indent=f"{name[:-1]:12}", subsequent_indent=" " * 12)
        ]
    return "\n".join([*lines, f"plan: the cheapest that fits: {plan['choice'] or 'none'}"])


if __name__ == "__main__":
    run_cli(run, PlanConfig)
