"""What a pre-training run needs before it is started: memory by component, days, money and energy.

    septet plan --preset 7b --machine 8xH100 --tokens 140B

Parameters, optimizer states and the activations of a layer are counted on the model itself, without its memory. Peaks
come from data sheets; what is assumed beyond them is printed with the plan.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from septet.data.errors import UserError, run_cli, suggestion
from septet.data.manifest import SCHEMA_VERSION, code_version, identity, write_json

GIB = 2**30
USABLE_SHARE = 0.92  # an assumption: the rest goes to the driver's context, communication and fragmentation
LOGITS_CHUNK = 1024  # positions whose logits are held at once, see `modeling_septet.chunked_linear_cross_entropy`


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
    mixed: bool = True
    """computes in bfloat16 under autocast; float32 otherwise"""


# Data sheets head their columns with the peak at 2:4 sparsity; these are the dense halves.
DEVICES = {
    "A100": Device(312.0, 79.2, 400, 1.5, "NVIDIA A100 80 GB (SXM) data sheet"),
    "H100": Device(989.4, 79.2, 700, 2.5, "NVIDIA H100 (SXM) data sheet"),
    "H200": Device(989.4, 139.8, 700, 3.5, "NVIDIA H200 (SXM) data sheet"),
    "RTX4090": Device(165.2, 23.6, 450, 0.4, "NVIDIA Ada GPU architecture white paper"),
    "cpu": Device(
        0.096, 8.0, 10, 0.05, "one core: 2 AVX2 multiply-adds x 8 float32 x 2 operations x 3 GHz; memory assumed", False
    ),
}


@dataclass(frozen=True)
class PlanConfig:
    preset: str = "7b"
    """shape of the model: tiny, nano, small, base, 1b, 7b"""
    machine: str = "8xH100"
    """<number>x<device>; devices: A100, H100, H200, RTX4090, cpu (a core)"""
    tokens: str = "140B"
    """tokens to train on, as 140B, 2.5T, 300M or a plain number; 140B is 20 a parameter of the 7B"""
    sequence_length: int = 4096
    """tokens in a sequence"""
    micro_batch_size: int = 1
    """sequences that one process reads at once"""
    tokens_per_step: int = 524_288
    """tokens of one optimizer step over all processes"""
    vocab_size: int = 65536
    """number of tokens in the vocabulary"""
    optimizer: Literal["muon", "adamw", "adam", "rmsprop"] = "muon"
    """muon: Muon for the layers' matrices, AdamW for the rest"""
    utilisation: float = 0.4
    """assumed share of the peak that is reached, recomputation counted as work"""
    price_per_device_hour: float | None = None
    """US dollars; default: the table's assumption"""
    output: Path | None = None
    """a JSON file for the plan"""


@dataclass(frozen=True)
class Layout:
    """How the model lies on the devices."""

    name: str
    sharded: bool
    """FSDP2: weights, gradients and optimizer states divided among the devices (ZeRO 3, Rajbhandari et al. 2020)"""
    checkpointing: bool
    """a layer keeps its input alone and is computed again in the backward pass (Chen et al. 2016)"""


# In order of preference where the computing is the same: less communication first.
LAYOUTS = (
    Layout("DDP", False, False),
    Layout("FSDP2", True, False),
    Layout("DDP + activation checkpointing", False, True),
    Layout("FSDP2 + activation checkpointing", True, True),
)


def run(config: PlanConfig) -> dict[str, Any]:
    """Prints the plan and returns it.

    Raises:
        UserError: an unknown preset or machine, a number that is none, or a model that fits in no layout.
    """
    count, name = parse_machine(config.machine)
    plan = make_plan(config, count, name)
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


def make_plan(config: PlanConfig, count: int, device_name: str) -> dict[str, Any]:
    """The plan as plain data; see `run`. `choice` is the cheapest layout that fits, or None."""
    from septet.modeling.presets import preset_config

    device, tokens = DEVICES[device_name], parse_count(config.tokens)
    for field in ("sequence_length", "micro_batch_size", "tokens_per_step", "utilisation", "vocab_size"):
        if getattr(config, field) <= 0:
            flag = f"--{field.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(config, field)}: must be above 0; leave it out for its default")
    if config.utilisation > 1:
        raise UserError(f"--utilisation {config.utilisation:g}: is a share of the peak, at most 1; give one like 0.4")
    price = device.price_per_hour if config.price_per_device_hour is None else config.price_per_device_hour
    length = config.sequence_length
    shape = preset_config(config.preset, vocab_size=config.vocab_size, max_position_embeddings=length)
    accumulates = config.tokens_per_step > config.micro_batch_size * length * count
    flops = training_flops_per_token(shape, length)
    layouts = []
    for layout in LAYOUTS:
        if layout.sharded and count == 1:
            continue
        memory = memory_bytes(
            shape, config.optimizer, layout, device, count, config.micro_batch_size, length, accumulates
        )
        computed = flops + layout.checkpointing * recomputed_flops_per_token(shape, length)
        rate = count * device.peak_tflops * 1e12 * config.utilisation / computed
        hours = tokens / rate / 3600
        total = sum(memory.values()) / GIB
        layouts.append(
            {
                "name": layout.name if count > 1 else layout.name.replace("DDP", "one device"),
                "memory_gib": {part: size / GIB for part, size in memory.items()},
                "total_gib": total,
                "fits": total <= USABLE_SHARE * device.memory_gib,
                "flops_per_token": flops,
                "computed_flops_per_token": computed,
                "tokens_per_second": rate,
                "days": hours / 24,
                "us_dollars": hours * count * price,
                "kilowatt_hours": hours * count * device.watts / 1000,
            }
        )
    fitting = [layout for layout in layouts if layout["fits"]]
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": code_version(),
        "config": identity(config),
        "num_parameters": sum(p.numel() for p in meta_model(shape).parameters()),
        "tokens": tokens,
        "training_flops": tokens * flops,
        "usable_gib": USABLE_SHARE * device.memory_gib,
        "layouts": layouts,
        "choice": min(fitting, key=lambda layout: layout["us_dollars"])["name"] if fitting else None,
        "sources": [
            f"peak: {device.peak_tflops:g} TFLOP/s dense, {device.memory_gib:g} GiB, {device.watts:g} W: {device.source}",
            "FLOPs: 6 a weight that multiplies, and 12 x layers x heads x head_dim x length for attention (Chowdhery et "
            "al. 2022, PaLM, appendix B; the whole square, since the mask of packed documents hides but saves nothing)",
            "activations: what autograd keeps of one layer, counted on tensors without memory (by hand: Korthikanti et "
            "al. 2022), times the layers; with checkpointing one layer and the inputs of all",
        ],
        "assumptions": [
            f"{config.utilisation:.0%} of the peak is reached in every layout, communication hidden; measure yours",
            f"{price:g} US dollars a device and hour; set --price-per-device-hour",
            f"{USABLE_SHARE:.0%} of the memory is usable, and kernels keep no more than the CPU's do: memory is counted, not measured",
            "energy is the devices' board power alone, without hosts and cooling",
        ],
    }


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


def training_flops_per_token(shape: Any, sequence_length: int) -> int:
    """Forward and backward pass: 6 a weight that multiplies (the input embedding does not), and attention."""
    weights = _layer_matrices(shape) + shape.vocab_size * shape.hidden_size
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


def layer_activation_bytes(shape: Any, batch: int, length: int, weight_bytes: int, residual_bytes: int) -> int:
    """Bytes that autograd keeps of one layer's forward pass on `batch` packed sequences of `length` tokens.

    Counted by running the layer on fake tensors: every distinct storage saved for the backward pass, without weights
    and without the mask and the rotary angles, which all layers share.

    Args:
        weight_bytes: 2 where matrices multiply in bfloat16, 4 in float32.
        residual_bytes: 4 where hidden states and norms stay float32 (autocast), 2 where all is bfloat16 (FSDP2).
    """
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode

    from septet.modeling.modeling_septet import SeptetDecoderLayer

    dtypes = {2: torch.bfloat16, 4: torch.float32}
    shape._attn_implementation = "sdpa"
    with FakeTensorMode():
        layer = SeptetDecoderLayer(shape, 0).train()
        for module in layer.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                dtype = dtypes[weight_bytes if weight.ndim == 2 else residual_bytes]
                setattr(module, name, nn.Parameter(torch.empty(weight.shape, dtype=dtype)))
        residual = torch.empty(batch, length, shape.hidden_size, dtype=dtypes[residual_bytes], requires_grad=True)
        angles = torch.empty(batch, length, 1, shape.head_dim, dtype=residual.dtype)
        mask = torch.ones(batch, 1, length, length, dtype=torch.bool)
        shared = {tensor.untyped_storage()._cdata for tensor in (*layer.parameters(), angles, mask)}
        saved: dict[int, Any] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim > 1:  # not a norm's weight, cast
                saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        amp = torch.autocast("cpu", dtype=torch.bfloat16, enabled=weight_bytes == 2)
        with amp, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(residual, attention_mask=mask, position_embeddings=(angles, angles), is_causal=True)
        return sum(storage.nbytes() for key, storage in saved.items() if key not in shared)


def memory_bytes(
    shape: Any, optimizer: str, layout: Layout, device: Device, count: int, batch: int, length: int, accumulates: bool
) -> dict[str, int]:
    """Bytes a device by component at the highest point, the start of a later micro-batch's backward pass.

    Weights, gradients and states are float32; products are bfloat16 where the device is `mixed`.

    Args:
        accumulates: a process reads several micro-batches a step; FSDP2 then holds whole bfloat16 gradients until the
            last one, since `no_sync` leaves out the reduction.
    """
    model = meta_model(shape)
    parameters = sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    root = parameters - layer * shape.num_hidden_layers  # embeddings, output head and last norm
    compute_bytes = 2 if device.mixed else 4
    ranks = count if layout.sharded else 1
    memory = {
        "weights": 4 * parameters // ranks,
        "gradients": 4 * parameters // ranks,
        "optimizer": optimizer_state_bytes(optimizer, model) // ranks,
    }
    if layout.sharded:
        # Two layers at a time, one computing and one on its way, and the root; in the backward pass their gradients too.
        gathered = compute_bytes * (2 * layer + root)
        whole_gradients = compute_bytes * (parameters if accumulates else layer + root)
        memory["working copies"] = gathered + whole_gradients
    else:
        casts = compute_bytes * (_layer_matrices(shape) + shape.vocab_size * shape.hidden_size) if device.mixed else 0
        memory["working copies"] = casts + (4 * parameters if count > 1 else 0)  # autocast's cache; DDP's buckets
    residual_bytes = compute_bytes if layout.sharded else 4
    one_layer = layer_activation_bytes(shape, batch, length, compute_bytes, residual_bytes)
    inputs = shape.num_hidden_layers * batch * length * shape.hidden_size * residual_bytes
    memory["activations"] = one_layer + inputs if layout.checkpointing else one_layer * shape.num_hidden_layers
    # Logits in float32 and one temporary of their size; or, at the end, the head's gradient scaled out of place.
    chunk = min(LOGITS_CHUNK, batch * length)
    memory["logits and head"] = shape.vocab_size * (4 * shape.hidden_size + max(4 * shape.hidden_size, 8 * chunk))
    return memory


# ---- words ------------------------------------------------------------------------------------------------------------


def parse_machine(text: str) -> tuple[int, str]:
    """`8xH100` -> (8, "H100"); `cpu` -> (1, "cpu")."""
    match = re.fullmatch(r"(?:(\d+)x)?(\w+)", text)
    known = {name.lower(): name for name in DEVICES}
    if not match or match[2].lower() not in known or match[1] == "0":
        device = text.partition("x")[2] if re.match(r"\d+x", text) else text
        raise UserError(f"machine {text!r}: must be <number>x<device>, as in 8xH100; {suggestion(device, DEVICES)}")
    return int(match[1] or 1), known[match[2].lower()]


def parse_count(text: str) -> int:
    """`140B` -> 140,000,000,000; K, M, B and T are powers of a thousand."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.replace(",", "").replace("_", "").upper())
    if not match or not float(match[1]):
        raise UserError(f"{text!r}: is no number of tokens; give one like 140B, 2.5T, 300M or 1000000")
    return round(float(match[1]) * 1000 ** " KMBT".index(match[2] or " "))


def table(plan: dict[str, Any]) -> str:
    """The plan as text, a column a layout."""
    config, layouts = plan["config"], plan["layouts"]
    rows = [["", *(layout["name"] for layout in layouts)]]
    for part in layouts[0]["memory_gib"]:
        rows.append([f"{part}, GiB a device", *(f"{layout['memory_gib'][part]:,.2f}" for layout in layouts)])
    rows.append(["total, GiB a device", *(f"{layout['total_gib']:,.2f}" for layout in layouts)])
    rows.append([f"fits {plan['usable_gib']:.1f} GiB", *("yes" if layout["fits"] else "no" for layout in layouts)])
    units = {
        "tokens a second": "tokens_per_second",
        "days": "days",
        "US dollars": "us_dollars",
        "kWh": "kilowatt_hours",
    }
    for title, key in units.items():
        values = [layout[key] for layout in layouts]
        rows.append([title, *(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"plan: {config['preset']}, {plan['num_parameters']:,} parameters, {plan['tokens']:,} tokens on {config['machine']}: "
        f"{plan['training_flops']:.3g} FLOPs",
        *("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows),
        *(f"source      {text}" for text in plan["sources"]),
        *(f"assumption  {text}" for text in plan["assumptions"]),
        f"plan: the cheapest that fits: {plan['choice'] or 'none'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(run, PlanConfig)
