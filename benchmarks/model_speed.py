"""Septet beside transformers' own Qwen3 and Llama: training, prefill, decoding and the memory of a training step.

    python benchmarks/model_speed.py --output build/speed
    python benchmarks/model_speed.py --sizes 16m --what train,decode --compiled

Both models of a pair have the same shapes, weights, data type, attention (sdpa), batch and optimiser, and are timed in
turns, round by round; a figure is the median over the rounds, a ratio the median of the rounds' ratios. Septet trains
with `skip_logits=True`; everything else is each model's default. Memory is the peak of a process of its own, less what
stood there before the step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# hidden, feed-forward, layers, heads, key/value heads, head_dim, vocabulary; training batch and length
SIZES = {
    "2m": (192, 512, 4, 6, 2, 32, 4096, 16, 256),
    "16m": (384, 1024, 6, 6, 2, 64, 16384, 8, 512),
    "135m": (576, 1536, 30, 9, 3, 64, 49152, 2, 512),
}
MEMORY_SHAPE = (384, 1024, 6, 6, 2, 64, 65536, 8, 512)
# For an accelerator: the 1b preset, and four layers of the 7b (the vocabulary's share shrinks to what a layer group has).
GPU_SIZES = {
    "1b": (2048, 6144, 20, 16, 8, 128, 65536, 8, 2048),
    "7b-4-layers": (4096, 13312, 4, 32, 8, 128, 65536, 4, 4096),
}
PEERS = ("qwen3", "llama")
DTYPES = ("float32", "bfloat16")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2m,16m,135m", help=f"of {', '.join([*SIZES, *GPU_SIZES])}")
    parser.add_argument("--peers", default="qwen3,llama")
    parser.add_argument("--what", default="train,prefill,decode,memory")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each pair, after one that is not timed")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens decoded after a prompt of 32")
    parser.add_argument("--compiled", action="store_true", help="torch.compile both models' forward passes")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the share of it that training reaches")
    parser.add_argument("--output", type=Path, default=Path("build/speed"), help="folder for speed.json and speed.md")
    parser.add_argument(
        "--one-step", help=argparse.SUPPRESS
    )  # a memory measurement's own process: septet-qwen3, qwen3, …
    return parser.parse_args(arguments)


def make(name: str, shape: tuple[int, ...], device: str, dtype: str) -> Any:
    """`septet-qwen3` and `qwen3` have equal weights, so have `septet-llama` and `llama`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.modeling_septet import SeptetForCausalLM

    hidden, feed_forward, layers, heads, key_value_heads, head_dim, vocabulary, _, length = shape
    fields = {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_value_heads, "head_dim": head_dim,
        "max_position_embeddings": max(length, 1024), "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    kind = name.removeprefix("septet-")
    if name.startswith("septet"):
        model = SeptetForCausalLM._from_config(
            SeptetConfig(**fields, qk_norm=kind == "qwen3"), attn_implementation="sdpa", dtype=getattr(torch, dtype)
        )
    else:
        config = (Qwen3Config if kind == "qwen3" else LlamaConfig)(**fields)
        model_class = Qwen3ForCausalLM if kind == "qwen3" else LlamaForCausalLM
        model = model_class._from_config(config, attn_implementation="sdpa", dtype=getattr(torch, dtype))
    return model.to(device)


def pair(peer: str, shape: tuple[int, ...], device: str, dtype: str) -> tuple[Any, Any]:
    """Septet and its peer with the same weights."""
    ours, theirs = make(f"septet-{peer}", shape, device, dtype), make(peer, shape, device, dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def timed(run: Any, device: str) -> float:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(ours: Any, theirs: Any, work: float, rounds: int, device: str) -> dict[str, float]:
    """Runs both in turns. `work` is what one run does (tokens), so that the figures are a rate."""
    pairs = []
    for index in range(rounds + 1):
        gc.collect()
        seconds = {}
        for run in (ours, theirs) if index % 2 else (theirs, ours):  # whoever is second may find the caches warm
            seconds[run] = timed(run, device)
        if index:
            pairs.append((seconds[ours], seconds[theirs]))
    return {
        "septet_tokens_per_second": work / statistics.median(s for s, _ in pairs),
        "peer_tokens_per_second": work / statistics.median(p for _, p in pairs),
        "ratio": statistics.median(p / s for s, p in pairs),
        "ratio_low": min(p / s for s, p in pairs),
        "ratio_high": max(p / s for s, p in pairs),
    }


def train_step(model: Any, ids: Any, forward: Any = None) -> Any:
    """A closure that does one optimiser step; the loss is checked once by the caller."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()
    options = {"skip_logits": True} if model.config.model_type == "septet" else {}
    forward = model if forward is None else forward

    def step() -> float:
        loss = forward(input_ids=ids, labels=ids, use_cache=False, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def measure(size: str, peer: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    import torch
    from transformers import CompileConfig

    shape = {**SIZES, **GPU_SIZES}[size]
    vocabulary, batch, length = shape[6:]
    ids = torch.randint(16, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(options.device)
    results = {}

    def compiled(model: Any) -> Any:
        return torch.compile(model) if options.compiled else model

    for what in options.what.split(","):
        ours, theirs = pair(peer, shape, options.device, options.dtype)
        if what == "train":
            steps = [train_step(m, ids, compiled(m)) for m in (ours, theirs)]
            results[what] = compare(*steps, batch * length, options.rounds, options.device)
            if options.peak_tflops:
                parameters = sum(p.numel() for p in ours.parameters())
                attention = 6 * shape[2] * length * shape[3] * shape[5]  # causal: half of 12 layers x length x width
                flops = (6 * parameters + attention) * 1e-12
                for who in ("septet", "peer"):
                    rate = results[what][f"{who}_tokens_per_second"]
                    results[what][f"{who}_model_flop_utilisation"] = rate * flops / options.peak_tflops
        elif what == "prefill":
            ours.eval(), theirs.eval()

            def prefill(model: Any) -> Any:
                run = compiled(model)

                def once() -> None:
                    with torch.inference_mode():
                        run(input_ids=ids, logits_to_keep=1)

                return once

            results[what] = compare(prefill(ours), prefill(theirs), batch * length, options.rounds, options.device)
        elif what == "decode":
            ours.eval(), theirs.eval()
            for rows in (1, 8):
                prompt = ids.flatten()[: rows * 32].view(rows, 32)

                def decode(model: Any, prompt: Any = prompt) -> Any:
                    extra: dict[str, Any] = {}
                    if options.compiled:  # transformers compiles decoding on accelerators alone unless told so
                        compile_config = CompileConfig(mode="default", dynamic=False)
                        compile_config._compile_all_devices = True
                        extra = {"cache_implementation": "static", "compile_config": compile_config}
                    count = options.new_tokens

                    def once() -> Any:
                        return model.generate(
                            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, min_new_tokens=count,
                            do_sample=False, **extra,
                        )  # fmt: skip

                    return once

                first, second = decode(ours), decode(theirs)
                if options.dtype == "float32" and not torch.equal(first(), second()):
                    raise SystemExit(f"{size}, {peer}: the two models generate different tokens; nothing to compare")
                results[f"{what} {rows}"] = compare(
                    first, second, rows * options.new_tokens, options.rounds, options.device
                )
        elif what == "memory" and size == options.sizes.split(",")[0]:  # it has a shape of its own
            mine, other = (one_step_apart(n, options) for n in (f"septet-{peer}", peer))
            results[what] = {"septet_mib": mine, "peer_mib": other, "ratio": mine / other}
        del ours, theirs
        gc.collect()
        if options.device != "cpu":
            torch.cuda.empty_cache()
    return results


def one_step_apart(name: str, options: argparse.Namespace) -> float:
    """MiB that a training step with the large vocabulary adds, in a process of its own."""
    command = [sys.executable, __file__, "--one-step", name, "--device", options.device, "--dtype", options.dtype]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def one_step(name: str, device: str, dtype: str) -> None:
    """Prints the MiB that two training steps add to the process at their peak."""
    import resource

    import torch

    vocabulary, batch, length = MEMORY_SHAPE[6:]
    ids = torch.randint(16, vocabulary, (batch, length)).to(device)
    model = make(name, MEMORY_SHAPE, device, dtype)
    step = train_step(model, ids)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device != "cpu":
        before = torch.cuda.memory_allocated() / 2**20
    step(), step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device != "cpu":
        after = torch.cuda.max_memory_allocated() / 2**20
    print(after - before)


def hardware(device: str) -> str:
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads"


def table(results: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| size | peer | measured | Septet | peer | ratio (range of the rounds) |", "|---|---|---|---|---|---|"]
    for size, by_peer in results["sizes"].items():
        for peer, figures in by_peer.items():
            for what, f in figures.items():
                if what == "memory":
                    values = f"{f['septet_mib']:.0f} MiB | {f['peer_mib']:.0f} MiB | {f['ratio']:.2f}"
                else:
                    values = (
                        f"{f['septet_tokens_per_second']:,.0f} tokens/s | {f['peer_tokens_per_second']:,.0f} tokens/s | "
                        f"{f['ratio']:.2f} ({f['ratio_low']:.2f} to {f['ratio_high']:.2f})"
                    )
                lines.append(f"| {size} | {peer} | {what} | {values} |")
    return "\n".join(lines)


def main() -> None:
    options = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if options.one_step:
        one_step(options.one_step, options.device, options.dtype)
        return
    results = {
        "command": " ".join(["python", "benchmarks/model_speed.py", *sys.argv[1:]]),
        "hardware": hardware(options.device), "torch": torch.__version__, "transformers": transformers.__version__,
        "dtype": options.dtype, "compiled": options.compiled, "rounds": options.rounds, "sizes": {},
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    for size in options.sizes.split(","):
        for peer in options.peers.split(","):
            results["sizes"].setdefault(size, {})[peer] = measure(size, peer, options)
            print(table({"sizes": {size: {peer: results["sizes"][size][peer]}}}).split("\n", 2)[2], flush=True)
            (options.output / "speed.json").write_text(json.dumps(results, indent=2) + "\n")
    (options.output / "speed.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
