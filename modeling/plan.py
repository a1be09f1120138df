"""How much memory, time, money and energy a pre-training run takes, for each way of sharding it.

    septet plan --preset 7b --machine 8xH100 --tokens 140B

Parameters are counted on the real architecture. Memory of weights, gradients and optimizer is arithmetic; activations
follow Korthikanti et al. 2022 ("Reducing Activation Recomputation"); floating-point operations are 6 per parameter and
token and 12 x layers x width x length for attention (Kaplan et al. 2020, Hoffmann et al. 2022). Utilisation, prices and
watts are assumptions that you can set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from septet.data.errors import UserError, run_cli, suggestion
from septet.data.manifest import write_json


@dataclass(frozen=True)
class Device:
    """An accelerator: dense bf16 peak in TFLOP/s, memory in GiB and board power in W, as its maker states them."""

    peak_tflops: float
    memory_gib: float
    watts: float
    dollars_per_hour: float
    """an assumption: order of magnitude of public clouds' on-demand prices"""


DEVICES = {
    "A100": Device(312, 80, 400, 2.0),  # NVIDIA A100 80GB SXM data sheet
    "H100": Device(989, 80, 700, 3.0),  # NVIDIA H100 SXM data sheet, without sparsity
    "H200": Device(989, 141, 700, 4.0),  # NVIDIA H200 SXM data sheet, without sparsity
    "B200": Device(2250, 180, 1000, 6.0),  # NVIDIA Blackwell architecture brief, without sparsity
    "RTX4090": Device(165, 24, 450, 0.5),  # NVIDIA Ada architecture paper, FP32 accumulation
}
# Bytes a parameter: float32 weights, float32 gradients, and the optimizer's states in float32.
OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "rmsprop": 1, "muon": 1}  # muon: on matrices; AdamW's two on the rest
SHARDING = ("ddp", "fsdp2", "fsdp2+activation checkpointing")
RESERVED_GIB = 2.0  # CUDA context, communication buffers and fragmentation: an assumption


@dataclass(frozen=True)
class PlanConfig:
    preset: str = "7b"
    """tiny, nano, small, base, 1b, 7b"""
    machine: str = "8xH100"
    """number of devices and kind, for example 8xH100 or 64xA100"""
    tokens: str = "140B"
    """how many tokens, with K, M, B or T"""
    sequence_length: int = 4096
    """tokens a sequence"""
    micro_batch_size: int = 1
    """sequences that one device reads at once"""
    vocab_size: int = 65536
    """tokens in the vocabulary"""
    optimizer: Literal["muon", "adamw", "adam", "rmsprop"] = "muon"
    """as in pretrain"""
    utilisation: float = 0.4
    """share of the peak that the model's own operations reach: an assumption until measured"""
    dollars_per_device_hour: float | None = None
    """price; default: the table's assumption"""
    output: Path | None = None
    """also write the plan as JSON here"""


def run(config: PlanConfig) -> dict[str, Any]:
    """Prints a row for each sharding and names the cheapest that fits; returns the plan.

    Raises:
        UserError: an unknown preset, machine or unit.
    """
    devices, device = _machine(config.machine)
    tokens = _tokens(config.tokens)
    shape = count(config.preset, config.vocab_size, config.sequence_length)
    price = device.dollars_per_hour if config.dollars_per_device_hour is None else config.dollars_per_device_hour
    flops_per_token = 6 * shape["parameters"] + 12 * shape["layers"] * shape["width"] * config.sequence_length
    plans = []
    for sharding in SHARDING:
        memory = memory_gib(shape, config, sharding, devices)
        slower = 4 / 3 if "checkpointing" in sharding else 1.0  # one more forward pass for every forward and backward
        rate = devices * device.peak_tflops * 1e12 * config.utilisation / flops_per_token / slower
        days = tokens / rate / 86400
        plans.append(
            {
                "sharding": sharding,
                "memory_gib": {name: round(value, 2) for name, value in memory.items()},
                "total_gib": round(sum(memory.values()), 2),
                "fits": sum(memory.values()) <= device.memory_gib,
                "tokens_per_second": round(rate),
                "days": round(days, 2),
                "dollars": round(days * 24 * devices * price),
                "kilowatt_hours": round(days * 24 * devices * device.watts / 1000),
            }
        )
    fitting = [plan for plan in plans if plan["fits"]]
    best = min(fitting, key=lambda plan: plan["dollars"], default=None)
    result = {"parameters": shape["parameters"], "flops_per_token": flops_per_token, "plans": plans, "best": best}
    _show(config, device, devices, result)
    if config.output:
        write_json(config.output, result)
    return result


def count(preset: str, vocab_size: int, sequence_length: int) -> dict[str, int]:
    """Parameters of the real model by role, counted on the meta device, and the shape that the formulas need."""
    import torch

    from septet.modeling.modeling_septet import SeptetForCausalLM
    from septet.modeling.optim import parameter_groups
    from septet.modeling.presets import preset_config

    config = preset_config(preset, vocab_size=vocab_size, max_position_embeddings=sequence_length)
    with torch.device("meta"):
        model = SeptetForCausalLM(config)
    groups = parameter_groups(model, 0.1)
    matrices = sum(p.numel() for group in groups if group["matrices"] for p in group["params"])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "matrices": matrices,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "attention_width": config.num_attention_heads * config.head_dim,
        "key_value_width": config.num_key_value_heads * config.head_dim,
        "feed_forward": config.intermediate_size,
    }


def memory_gib(shape: dict[str, int], config: PlanConfig, sharding: str, devices: int) -> dict[str, float]:
    """GiB on one device by component."""
    gib = 2**30
    shards = 1 if sharding == "ddp" else devices
    others = shape["parameters"] - shape["matrices"]
    states = OPTIMIZER_STATES[config.optimizer] * shape["matrices"]
    states += (2 if config.optimizer == "muon" else OPTIMIZER_STATES[config.optimizer]) * others
    positions = config.micro_batch_size * config.sequence_length
    # Saved for the backward pass in bf16, a position and layer: two norms' inputs, the attention's input, q, k, v, its
    # output, the feed-forward's input, gate, up and their product. Attention weights are not kept (fused kernels).
    per_layer = (
        4 * shape["width"] + 2 * shape["attention_width"] + 2 * shape["key_value_width"] + 4 * shape["feed_forward"]
    )
    layers = shape["layers"]
    kept = shape["width"] * layers + per_layer if "checkpointing" in sharding else per_layer * layers
    gathered = 0.0 if shards == 1 else 2 * 2 * (shape["matrices"] / layers + others) / gib  # two blocks whole, in bf16
    return {
        "weights": 4 * shape["parameters"] / shards / gib,
        "gradients": 4 * shape["parameters"] / shards / gib,
        "optimizer": 4 * states / shards / gib,
        "activations": 2 * positions * kept / gib,
        "logits": 4 * min(1024, positions) * config.vocab_size * 2 / gib,  # one chunk and its gradient, float32
        "gathered": gathered,
        "reserved": RESERVED_GIB,
    }


def _show(config: PlanConfig, device: Device, devices: int, result: dict[str, Any]) -> None:
    print(f"plan: {config.preset}, {result['parameters'] / 1e9:.2f} G parameters, {config.tokens} tokens on {config.machine} "
          f"({device.memory_gib:.0f} GiB each), {config.utilisation:.0%} of the peak assumed")  # fmt: skip
    print(f"  {'sharding':<32}{'GiB a device':>14}{'fits':>6}{'tokens/s':>12}{'days':>9}{'dollars':>12}{'kWh':>10}")
    for plan in result["plans"]:
        print(
            f"  {plan['sharding']:<32}{plan['total_gib']:>14.1f}{'yes' if plan['fits'] else 'no':>6}"
            f"{plan['tokens_per_second']:>12,}{plan['days']:>9.1f}{plan['dollars']:>12,}{plan['kilowatt_hours']:>10,}"
        )
        print("    " + ", ".join(f"{name} {value:.1f}" for name, value in plan["memory_gib"].items()))
    best = result["best"]
    print(
        f"  cheapest that fits: {best['sharding']}"
        if best
        else "  nothing fits: take more devices, or a smaller preset"
    )


def _machine(name: str) -> tuple[int, Device]:
    match = re.fullmatch(r"(\d+)x(\w+)", name)
    if not match:
        raise UserError(
            f"machine {name!r}: is a number, an x and a kind, as in 8xH100; known kinds: {', '.join(DEVICES)}"
        )
    if match.group(2) not in DEVICES:
        raise UserError(
            f"machine {name!r}: the kind {match.group(2)!r} is unknown; {suggestion(match.group(2), DEVICES)}"
        )
    return int(match.group(1)), DEVICES[match.group(2)]


def _tokens(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)([KMBT]?)", text)
    if not match:
        raise UserError(f"--tokens {text!r}: is a number with K, M, B or T, as in 140B")
    return float(match.group(1)) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[match.group(2)]


if __name__ == "__main__":
    run_cli(run, PlanConfig)
