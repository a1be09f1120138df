"""What `septet plan` says of memory against what a training step really takes, component by component.

    python benchmarks/plan_memory.py --output build/plan_memory
    python benchmarks/plan_memory.py --only ddp-2,fsdp2-2

Every configuration runs in processes of its own: two optimizer steps through the modules of `septet pretrain`
(PretrainingLosses, make_optimizer, Accelerate), on random packed rows. On a CPU the peak is exact: torch's profiler sees
every allocation and release of every tensor, those inside of kernels too, and the blocks alive at the highest point are
told apart by their addresses. What it does not see (the interpreter, libraries, MKL's and gloo's own buffers) is in the
resident memory beside it. On a GPU the peak is `torch.cuda.max_memory_allocated`.

FSDP2 on a CPU is for measuring only: Accelerate knows it on accelerators alone, so its state is told that there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MB = 1e6
TOLERANCE = 0.10
PASSING = ("backward", "clip", "update")  # phases whose tensors go, but for gradients and states


@dataclass(frozen=True)
class Case:
    """One run: a shape, what a step reads, and how it lies on the processes."""

    hidden: int = 384
    feed_forward: int = 1024
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 2
    vocab_size: int = 8192
    tied: bool = True
    rows: int = 2
    length: int = 512
    micro_batches: int = 2
    """micro-batches a process reads in a step"""
    optimizer: str = "muon"
    objective: str = "causal"
    layout: str = "DDP"
    checkpointing: bool = False
    processes: int = 1
    mixed: bool = False
    """bfloat16 under autocast"""


CASES = {
    "causal": Case(),
    "one-micro-batch": Case(micro_batches=1),
    "adamw-untied": Case(optimizer="adamw", tied=False, vocab_size=16384),
    "adam-wide": Case(optimizer="adam", hidden=768, feed_forward=2048, heads=12, key_value_heads=4, layers=4, rows=1),
    "rmsprop-deep": Case(optimizer="rmsprop", hidden=256, feed_forward=704, heads=4, layers=16, length=256),
    "long": Case(rows=1, length=2048, layers=3),
    "large-vocabulary": Case(vocab_size=65536, layers=2, rows=1),
    "weights-mostly": Case(optimizer="adamw", layers=16, rows=1, length=128),
    "checkpointing": Case(checkpointing=True, rows=6),
    "mlm": Case(objective="mlm", optimizer="adamw"),
    "joint": Case(objective="joint"),
    "joint-untied-one-micro-batch": Case(objective="joint", tied=False, vocab_size=16384, micro_batches=1),
    "joint-checkpointing": Case(objective="joint", vocab_size=32768, layers=4, checkpointing=True),
    "mixed": Case(mixed=True, layers=4, length=256),
    "mixed-checkpointing": Case(mixed=True, layers=4, rows=4, length=256, checkpointing=True),
    "ddp-2": Case(processes=2, rows=1),
    "ddp-2-adamw": Case(processes=2, rows=1, optimizer="adamw", micro_batches=1),
    "fsdp2-2": Case(processes=2, layout="FSDP2", rows=1),
    "fsdp2-2-adamw-checkpointing": Case(processes=2, layout="FSDP2", optimizer="adamw", checkpointing=True),
    "fsdp2-2-joint": Case(processes=2, layout="FSDP2", objective="joint", optimizer="adamw", vocab_size=32768),
    "fsdp2-2-mixed": Case(processes=2, layout="FSDP2", mixed=True, layers=4, rows=1, length=256),
}


def shape_of(case: Case) -> Any:
    from septet.modeling.configuration_septet import SeptetConfig

    return SeptetConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden,
        intermediate_size=case.feed_forward,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.key_value_heads,
        head_dim=case.hidden // case.heads,
        max_position_embeddings=case.length,
        tie_word_embeddings=case.tied,
        attention_mode="causal" if case.objective in ("causal", "joint") else "bidirectional",
    )


# ---- one process of one case ------------------------------------------------------------------------------------------


class Watch:
    """Every allocation of a CPU tensor between `start` and `stop`, and what the program was doing then."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.phases: list[tuple[int, str]] = []
        self.kinds: dict[int, str] = {}  # address -> what lies there, of what is known in the end

    def phase(self, name: str) -> None:
        self.phases.append((time.time_ns(), name))

    def name(self, kind: str, tensors: Any) -> None:
        for tensor in tensors:
            local = getattr(tensor, "_local_tensor", tensor)
            self.kinds[local.untyped_storage().data_ptr()] = kind

    def peak(self) -> dict[str, Any]:
        """The highest sum of live bytes, by kind and by the phase that it fell into; and each phase's own peak."""
        from torch._C._profiler import _EventType

        events = []

        def walk(node: Any) -> None:
            if node.tag == _EventType.Allocation:
                events.append((node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size))
            for child in node.children:
                walk(child)

        for root in self.profiler.profiler.kineto_results.experimental_event_tree():
            walk(root)
        live: dict[int, tuple[int, str]] = {}
        total = highest = position = 0
        best: dict[int, tuple[int, str]] = {}
        by_phase: dict[str, int] = {}
        phase = ""
        for moment, address, size in sorted(events, key=lambda event: event[0]):
            while position < len(self.phases) and self.phases[position][0] <= moment:
                phase, position = self.phases[position][1], position + 1
                if phase == "inputs":  # what gloo's threads released unseen: nothing holds a buffer between passes
                    for key in [k for k, (_, born) in live.items() if born in PASSING and k not in self.kinds]:
                        total -= live.pop(key)[0]
            if size > 0:
                total += size - live.get(address, (0, ""))[0]  # gloo's threads release unseen
                live[address] = (size, phase)
                if total > by_phase.get(phase, 0):
                    by_phase[phase] = total
                if total > highest:
                    highest, at = total, phase
                    best = dict(live)
            else:
                total -= live.pop(address, (0, ""))[0]
        kinds: dict[str, int] = {}
        born_in = {"weights": "setup", "gradients": "backward", "optimizer": "update"}
        for address, (size, born) in best.items():
            kind = self.kinds.get(address, "")
            if born_in.get(kind) != born:
                kind = {"setup": "buckets and others"}.get(born, f"kept of {born}")
            kinds[kind] = kinds.get(kind, 0) + size
        return {"bytes": highest, "phase": at, "kinds": kinds, "phases": by_phase}


def train(case: Case) -> dict[str, Any]:
    """Two optimizer steps as `septet pretrain` makes them; returns the peak."""
    import torch
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, set_seed

    from septet.modeling import modeling_septet
    from septet.modeling.objectives import OBJECTIVES, Inputs, PretrainingLosses
    from septet.modeling.optim import make_optimizer

    on_cpu = not torch.cuda.is_available()
    plugin = None
    if case.layout == "FSDP2":
        if on_cpu:
            PartialState(cpu=True).distributed_type = DistributedType.MULTI_XPU
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["SeptetDecoderLayer"],
            activation_checkpointing=case.checkpointing,
        )
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if case.mixed else "no", fsdp_plugin=plugin)
    set_seed(0)
    generator = torch.Generator().manual_seed(accelerator.process_index)
    positions = torch.arange(case.length) % (case.length // 2)  # two documents a row, hence a mask

    def reading(rows: int, share: float) -> dict[str, torch.Tensor]:
        ids = torch.randint(16, case.vocab_size, (rows, case.length), generator=generator)
        hidden = torch.rand(ids.shape, generator=generator) >= share
        return {
            "input_ids": ids,
            "position_ids": positions.expand(rows, -1).contiguous(),
            "labels": ids.masked_fill(hidden, -100),
        }

    def make_inputs() -> Inputs:
        causal = {"causal": case.rows, "joint": case.rows // 2}.get(case.objective, 0)
        inputs = Inputs(
            reading(causal, 1.0) if causal else {},
            reading(case.rows - causal, 0.15) if causal < case.rows else {},
        )
        if case.objective == "joint":
            label = torch.full((case.rows - causal, case.length), -100)
            label[:, 0] = 0
            inputs.bidirectional["next_sentence_label"] = label
        return inputs

    watch = Watch()
    if on_cpu:
        watch.profiler.__enter__()
    started, resident_before = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch.phase("setup")
    model = getattr(modeling_septet, OBJECTIVES[case.objective][0])(shape_of(case))
    if case.checkpointing and plugin is None:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    optimizer = make_optimizer(case.optimizer, model, 1e-3, 0.1)
    losses, optimizer = accelerator.prepare(PretrainingLosses(model), optimizer)
    losses.train()
    for micro_batches in (1, case.micro_batches):  # the first step makes the optimizer's states
        for position in range(micro_batches):
            watch.phase("inputs")
            parts = make_inputs().readings()
            for number, part in enumerate(parts):
                is_last = position == micro_batches - 1 and number == len(parts) - 1
                with nullcontext() if is_last or accelerator.is_fsdp2 else accelerator.no_sync(losses):
                    watch.phase("inputs")
                    batch = part.to(accelerator.device)
                    watch.phase("forward")
                    found = losses(batch)
                    loss = sum(found[kind] for kind in sorted(found)) / (case.rows * case.length * micro_batches)
                    watch.phase("backward")
                    accelerator.backward(loss)
                    del found, loss
        watch.phase("clip")
        accelerator.clip_grad_norm_(losses.parameters(), 1.0)
        watch.name("gradients", [p.grad for p in losses.parameters() if p.grad is not None])
        watch.phase("update")
        optimizer.step()
        watch.phase("between")
        optimizer.zero_grad()
    seconds = time.time() - started
    resident = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident_before) * 1024
    if not on_cpu:
        return {"bytes": torch.cuda.max_memory_allocated(), "resident_bytes": resident, "seconds": seconds}
    watch.profiler.__exit__(None, None, None)
    watch.name("weights", losses.parameters())
    plain = getattr(optimizer, "optimizer", optimizer)
    watch.name(
        "optimizer", [t for state in plain.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    )
    return {**watch.peak(), "resident_bytes": resident, "seconds": seconds}


# ---- all of them ------------------------------------------------------------------------------------------------------


def planned(case: Case) -> dict[str, Any]:
    """The plan's bytes for the same: the total, the moment, the components, and all moments' totals."""
    import torch

    from septet.modeling.plan import Layout, Step, highest, moments

    on_cpu = not torch.cuda.is_available()

    shards = case.processes if case.layout == "FSDP2" else 1
    layout = Layout(case.layout, case.processes, shards, 1, case.checkpointing)
    step = Step(case.optimizer, case.objective, case.rows, case.length, case.micro_batches > 1, case.mixed, on_cpu)
    all_moments = moments(shape_of(case), step, layout)
    moment, kinds = highest(all_moments)
    totals = {name: sum(parts.values()) for name, parts in all_moments.items()}
    return {"bytes": sum(kinds.values()), "moment": moment, "kinds": kinds, "moments": totals}


def measured(name: str, case: Case) -> dict[str, Any]:
    """The first rank's peak, from fresh processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = []
    for rank in range(case.processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "5"}
        if case.processes > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.processes),
                "LOCAL_WORLD_SIZE": str(case.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [sys.executable, __file__, "--one", name],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        texts = [rank.communicate(timeout=600) for rank in ranks]
    finally:  # a rank whose peer failed would wait for it
        for rank in ranks:
            rank.kill()
            rank.wait()
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"{name}: a process failed\n" + "\n".join(errors[-3000:] for _, errors in texts))
    return json.loads(texts[0][0].strip().split("\n")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="configurations, separated by commas")
    parser.add_argument("--details", action="store_true", help="components and moments below each line")
    parser.add_argument("--output", type=Path, default=Path("build/plan_memory"), help="folder for plan_memory.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a configuration's own process
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train(CASES[arguments.one])))
        return
    import torch

    names = arguments.only.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        parser.error(f"--only {', '.join(unknown)}: unknown; known: {', '.join(CASES)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "plan_memory.json"
    before = json.loads(file.read_text(encoding="utf-8"))["configurations"] if file.is_file() else []
    rows = {row["name"]: row for row in before if row["name"] not in names}  # those of other calls stay
    print(
        f"{'configuration':31} {'measured':>9} {'planned':>9} {'ratio':>6}   {'in':9} {'planned in':11} {'resident':>9} (MB)",
        flush=True,
    )
    for name in names:
        case = CASES[name]
        real, plan = measured(name, case), planned(case)
        ratio = plan["bytes"] / real["bytes"]
        rows[name] = {"name": name, "case": asdict(case), "measured": real, "planned": plan, "ratio": ratio}
        print(
            f"{name:31} {real['bytes'] / MB:9,.1f} {plan['bytes'] / MB:9,.1f} {ratio:6.3f}   {real.get('phase', ''):9} "
            f"{plan['moment']:11} {real['resident_bytes'] / MB:9,.0f}",
            flush=True,
        )
        if arguments.details:
            for title, parts in (
                ("measured", real.get("kinds", {})),
                ("planned", plan["kinds"]),
                ("measured phases", real.get("phases", {})),
                ("planned moments", plan["moments"]),
            ):
                print(f"    {title:16}", ", ".join(f"{kind} {size / MB:,.1f}" for kind, size in parts.items()))
        machine = {"torch": torch.__version__, "device": platform.processor() or platform.machine()}
        text = json.dumps({"machine": machine, "tolerance": TOLERANCE, "configurations": list(rows.values())}, indent=1)
        file.write_text(text + "\n", encoding="utf-8")
    within = sum(abs(row["ratio"] - 1) <= TOLERANCE for row in rows.values())
    print(f"{within} of {len(rows)} within {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
