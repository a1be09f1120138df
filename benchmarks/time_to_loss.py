"""How long `septet pretrain` needs to the loss that transformers' Llama ends with, trained as its run_clm example does.

    python benchmarks/time_to_loss.py tune    --corpus build/corpus --tokenizer build/tokenizer --output build/ttl
    python benchmarks/time_to_loss.py measure --corpus build/corpus --tokenizer build/tokenizer --output build/ttl \\
        --peer-seconds 600 --seeds 3

Both sides get the same text, tokenizer, sequence length, number of parameters (to within 2 %), threads and precision.
The peer is `LlamaForCausalLM` under `Trainer`: texts concatenated and cut into blocks, AdamW with its defaults, a
cosine that ends with the time budget. `tune` chooses its learning rate, batch and warm-up on a small grid. The number
of steps that fill a budget comes from a short timing run, and is written down with the result.

A run of Septet has a budget and a schedule of its own. `measure` tries budgets, each 1.25 times the next smaller one,
until the peer's final loss lies between the final losses of two neighbours; the time to that loss is interpolated
between them, in the logarithm of time. Seed *n* of Septet is compared with seed *n* of the peer.

Seconds are wall-clock from before the first step to after the last; start-up, validation and saving are left out on
both sides. The loss is nats per token over the same held-out blocks for both, by one function, after training; the
peer's curve, at each eighth of its steps, is kept with its run. Each run happens in a process of its own and leaves a
file in `OUTPUT/runs`; a run whose file is there is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# hidden, feed-forward, layers, heads, key/value heads, head_dim; neither side ties its head to its embedding
SHAPES = {"3m": (192, 512, 4, 6, 2, 32), "10m": (320, 896, 6, 10, 2, 32)}
# The peer's grid: every learning rate with every batch (sequences), then these warm-ups (shares) with the best of them.
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
BATCHES = (2, 4, 8, 16, 32)
FIRST_WARMUP, OTHER_WARMUPS = 0.05, (0.0, 0.02, 0.1)
# What `septet pretrain` is given beside data, shape and length of the run; the rest are its defaults.
SEPTET_OPTIONS: dict[str, Any] = {
    "micro_batch_size": 8, "tokens_per_step": 2048, "learning_rate": 3e-3, "schedule": "linear", "warmup_share": 0.02,
}  # fmt: skip
SHARES = tuple(round(1.25**exponent, 4) for exponent in range(-14, 5))  # budgets of Septet in the peer's seconds
FIRST_SHARE = 1.25**-7  # a fifth, nearly
CURVE_BLOCKS = 64  # held-out blocks of the points of the peer's curve
TIMED_STEPS = 24  # of a timing run, whose first third is not counted


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "measure", "table", "one-run"), help="one-run: for its own processes")
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"), help="what `septet corpus` wrote")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/tokenizer"), help="what `septet tokenizer` wrote")
    parser.add_argument("--output", type=Path, default=Path("build/time_to_loss"))
    parser.add_argument("--size", choices=sorted(SHAPES), default="3m", help="parameters, about")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--peer-seconds", type=float, default=600.0, help="training time of a run of the peer")
    parser.add_argument("--tune-seconds", type=float, default=150.0, help="training time of a run of `tune`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no", help="of both sides")
    parser.add_argument(
        "--validation-blocks", type=int, default=512, help="held-out blocks, evenly from every language"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="OPTION=VALUE", help="options of `septet pretrain`, over the recipe's"
    )
    parser.add_argument("--request", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# ---- data: the same documents for both sides


def blocks(options: argparse.Namespace, split: str, keep_languages: bool = False) -> Any:
    """The split's documents, tokenised, concatenated and cut into blocks as run_clm's `group_texts` does it.

    With `keep_languages` each language is concatenated apart, and a column tells it.
    """
    from datasets import load_dataset, load_from_disk

    from septet.data.pack import load_tokenizer

    place = options.output / f"blocks-{split}"
    if place.is_dir():
        return load_from_disk(str(place))
    length, tokenizer = options.sequence_length, load_tokenizer(options.tokenizer)
    files = sorted(str(path) for path in (options.corpus / split).glob("*.jsonl.gz"))
    documents = load_dataset("json", data_files=files, split="train")

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [[tokenizer.bos_token_id, *each, tokenizer.eos_token_id] for each in ids]}

    def group_texts(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        joined = [token for ids in batch["input_ids"] for token in ids]
        cut = [joined[start : start + length] for start in range(0, len(joined) - length + 1, length)]
        columns: dict[str, list[Any]] = {"input_ids": cut, "labels": cut}
        return {**columns, "lang": batch["lang"][:1] * len(cut)} if keep_languages else columns

    tokenized = documents.map(tokenize, batched=True, remove_columns=[c for c in documents.column_names if c != "lang"])
    if keep_languages:
        from datasets import concatenate_datasets

        languages = sorted(set(tokenized["lang"]))
        parts = [tokenized.filter(lambda row, lang=lang: row["lang"] == lang) for lang in languages]
        grouped = concatenate_datasets([part.map(group_texts, batched=True, batch_size=None) for part in parts])
    else:
        grouped = tokenized.map(group_texts, batched=True, remove_columns=tokenized.column_names)
    with tempfile.TemporaryDirectory(dir=options.output) as aside:
        grouped.save_to_disk(str(Path(aside) / "set"))
        os.replace(Path(aside) / "set", place)
    return load_from_disk(str(place))


def packed_set(options: argparse.Namespace) -> Path:
    """The same corpus as `septet pack` packs it."""
    from septet.data.manifest import FILE_NAME
    from septet.data.pack import PackConfig, run

    place = options.output / "packed"
    if not (place / FILE_NAME).is_file():
        run(PackConfig(options.corpus, options.tokenizer, place, options.sequence_length, method="concatenate"))
    return place


def evaluate(model: Any, options: argparse.Namespace, num_blocks: int) -> dict[str, Any]:
    """Nats per token over so many held-out blocks, every token but a block's first, and bits per byte by language."""
    import numpy as np
    import torch

    from septet.data.pack import load_tokenizer, token_byte_lengths

    data = blocks(options, "validation", keep_languages=True).with_format("numpy")
    byte_lengths = torch.tensor(token_byte_lengths(load_tokenizer(options.tokenizer)))
    langs = np.asarray(data["lang"][:])
    share = min(1.0, num_blocks / len(data))
    nats: dict[str, float] = {}
    tokens: dict[str, int] = {}
    size: dict[str, int] = {}
    model.eval()
    for lang in sorted(set(langs.tolist())):
        rows = np.flatnonzero(langs == lang)
        rows = rows[np.linspace(0, len(rows) - 1, max(1, round(share * len(rows)))).astype(int)]
        for start in range(0, len(rows), 8):
            ids = torch.from_numpy(np.stack([data[int(row)]["input_ids"] for row in rows[start : start + 8]]))
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits.float()
            targets = ids[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum")
            nats[lang] = nats.get(lang, 0.0) + loss.item()
            tokens[lang] = tokens.get(lang, 0) + len(targets)
            size[lang] = size.get(lang, 0) + int(byte_lengths[targets].sum())
    return {
        "loss": sum(nats.values()) / sum(tokens.values()),
        "bits_per_byte": {lang: nats[lang] / math.log(2) / size[lang] for lang in nats},
        "held_out_tokens": sum(tokens.values()),
    }


# ---- one run, in its own process


def fields(options: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        **dict(zip((*names, "head_dim"), SHAPES[options.size], strict=True)),
        "vocab_size": vocab_size, "max_position_embeddings": options.sequence_length, "tie_word_embeddings": False,
    }  # fmt: skip


def train_peer(request: dict[str, Any], options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """`Trainer` on `LlamaForCausalLM`, with what run_clm leaves at its defaults; the schedule is the cosine."""
    import torch
    import transformers
    from transformers import LlamaConfig, TrainingArguments

    from septet.data.pack import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer)
    transformers.set_seed(request["seed"])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = transformers.LlamaForCausalLM(LlamaConfig(**fields(options, len(tokenizer)), **special))

    class Clock(transformers.TrainerCallback):
        """Wall-clock from before the first batch is read to after the last step, the evaluations left out."""

        seconds, curve, losses = 0.0, [], []  # type: ignore[var-annotated]

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            self.seconds += now - self.started
            done = state.global_step
            if request["timing"] and done == TIMED_STEPS // 3:
                self.seconds = 0.0
            if not request["timing"] and done * 8 // state.max_steps > (done - 1) * 8 // state.max_steps:
                was_training = model.training
                self.curve.append([round(self.seconds, 1), evaluate(model, options, CURVE_BLOCKS)["loss"]])
                model.train(was_training)
            self.started = time.perf_counter()

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(scratch), max_steps=request["steps"], per_device_train_batch_size=request["batch"],
        learning_rate=request["learning_rate"], lr_scheduler_type="cosine",
        warmup_steps=math.ceil(request["warmup"] * request["steps"]), seed=request["seed"],
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        bf16=options.mixed_precision == "bf16",
    )  # fmt: skip
    data = blocks(options, "train")
    collate = transformers.default_data_collator
    transformers.Trainer(model, arguments, collate, train_dataset=data, callbacks=[clock]).train()
    tokens_per_step = request["batch"] * options.sequence_length
    return {"model": model, "seconds": clock.seconds, "tokens_per_step": tokens_per_step, "curve": clock.curve}


def train_septet(request: dict[str, Any], options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """`septet pretrain` with the recipe, a shape of this benchmark in the place of a preset."""
    from transformers import AutoModelForCausalLM

    from septet.modeling import presets, register
    from septet.modeling.pretrain import PretrainConfig, run
    from septet.modeling.watch import METRICS_FILE

    register()
    os.environ["ACCELERATE_MIXED_PRECISION"] = options.mixed_precision
    shape = fields(options, 0)
    presets.PRESETS["benchmark"] = {
        k: v for k, v in shape.items() if k not in ("vocab_size", "max_position_embeddings")
    }
    steps = request["steps"]
    config = PretrainConfig(
        preset="benchmark", data=packed_set(options), output=scratch / "run", objective="causal", steps=steps,
        seed=request["seed"], save_every=steps, validate_every=steps, validation_sequences=1,
        log_every=TIMED_STEPS // 3 if request["timing"] else steps, **request["options"],
    )  # fmt: skip
    run(config)
    rows = [json.loads(line) for line in (config.output / METRICS_FILE).read_text().split("\n") if line]
    logged = [row for row in rows if "loss" in row]
    # The last step's row is written before the validation and the saving that follow it.
    seconds = logged[-1]["seconds"] - (logged[0]["seconds"] if request["timing"] else 0.0)
    model = AutoModelForCausalLM.from_pretrained(config.output / "final")
    tokens = logged[-1]["tokens"] - (logged[0]["tokens"] if request["timing"] else 0)
    counted = steps - (logged[0]["step"] if request["timing"] else 0)
    return {"model": model, "seconds": seconds, "tokens_per_step": tokens / counted, "curve": []}


def one_run(options: argparse.Namespace) -> None:
    """Does what the request says and writes the result beside it, last of all."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    request = json.loads(options.request.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        train = {"peer": train_peer, "septet": train_septet}[request["who"]]
        trained = train(request, options, Path(scratch))
        model = trained.pop("model")
        counted = request["steps"] - (TIMED_STEPS // 3 if request["timing"] else 0)
        result = {
            **request, **trained, "tokens": round(counted * trained["tokens_per_step"]),
            "parameters": sum(p.numel() for p in model.parameters()), "threads": options.threads,
            "mixed_precision": options.mixed_precision, "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__, "transformers": transformers.__version__,
        }  # fmt: skip
        result["tokens_per_second"] = result["tokens"] / result["seconds"]
        if not request["timing"]:
            result.update(evaluate(model, options, options.validation_blocks))
    aside = options.request.with_suffix(".tmp")
    aside.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(aside, options.request.with_suffix(".json"))


# ---- runs by name


class Runs:
    """The runs of one size, number of threads and precision. A run that is on the disk is read, any other is done."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.directory = options.output / "runs" / f"{options.size}-{options.threads}t-{options.mixed_precision}"
        self.directory.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, request: dict[str, Any], timing: bool = False) -> dict[str, Any]:
        """The run's result; its request must be the one that the name stood for before."""
        path = self.directory / f"{name}.json"
        request = {**request, "timing": timing}
        if path.is_file():
            result = json.loads(path.read_text())
            changed = {key for key, value in request.items() if key != "steps" and result.get(key) != value}
            if changed:
                raise SystemExit(
                    f"{path}: is a run with another {', '.join(sorted(changed))}; move it away to do it anew"
                )
            return result
        todo = path.with_suffix(".request")
        todo.write_text(json.dumps(request))
        passed = [
            f"--{key.replace('_', '-')}={getattr(self.options, key)}"
            for key in (
                "corpus", "tokenizer", "output", "size", "sequence_length", "threads", "mixed_precision",
                "validation_blocks",
            )
        ]  # fmt: skip
        threads = {name: str(self.options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [sys.executable, __file__, "one-run", f"--request={todo}", *passed],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{name}: the run failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        todo.unlink()
        result = json.loads(path.read_text())
        if not timing:
            told = f"{result['loss']:.4f} nats per token after {result['seconds']:.0f} s, {result['tokens']:,} tokens"
            print(f"{name}: {told}", flush=True)
        return result

    def steps_in(self, seconds: float, who: str, setting: dict[str, Any], name: str) -> int:
        """Optimizer steps that fill so many seconds, by a timing run of this setting."""
        request = {"who": who, "seed": 0, "steps": TIMED_STEPS, **setting}
        timing = self.get(f"timing-{name}", request, timing=True)
        return max(10, round(seconds * timing["tokens_per_second"] / timing["tokens_per_step"]))

    def peer(self, seconds: float, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        """A run of the peer."""
        batch = setting["batch"]
        timed = {"batch": batch, "learning_rate": LEARNING_RATES[0], "warmup": 0.0}
        steps = self.steps_in(seconds, "peer", timed, f"peer-batch{batch}")
        name = f"peer-{seconds:g}s-batch{batch}-lr{setting['learning_rate']:g}-warmup{setting['warmup']:g}-seed{seed}"
        return self.get(name, {"who": "peer", "seed": seed, "steps": steps, "budget": seconds, **setting})

    def septet(self, seconds: float, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        """A run of Septet."""
        steps = self.steps_in(seconds, "septet", {"options": setting}, "septet")
        request = {"who": "septet", "seed": seed, "steps": steps, "budget": seconds, "options": setting}
        return self.get(f"septet-{seconds:g}s-seed{seed}", request)


def tune(runs: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """The peer's best setting by held-out loss: learning rates and batches on a grid, then warm-ups.

    The rates are gone through from the middle outwards, and a batch's search ends where the loss turns; so does the
    search among batches.
    """
    tried: list[tuple[float, dict[str, Any]]] = []

    def loss_of(batch: int, rate: float, warmup: float) -> float:
        setting = {"batch": batch, "learning_rate": rate, "warmup": warmup}
        tried.append((runs.peer(options.tune_seconds, setting, seed=0)["loss"], setting))
        return tried[-1][0]

    def best_rate(batch: int) -> float:
        losses = {rate: loss_of(batch, rate, FIRST_WARMUP) for rate in LEARNING_RATES[1:4]}
        best = min(losses, key=lambda rate: losses[rate])
        if best == LEARNING_RATES[1]:
            losses[LEARNING_RATES[0]] = loss_of(batch, LEARNING_RATES[0], FIRST_WARMUP)
        elif best == LEARNING_RATES[3]:
            losses[LEARNING_RATES[4]] = loss_of(batch, LEARNING_RATES[4], FIRST_WARMUP)
        return min(losses.values())

    before = math.inf
    for batch in BATCHES:
        now = best_rate(batch)
        if now > before:
            break
        before = now
    setting = min(tried, key=lambda pair: pair[0])[1]
    for warmup in OTHER_WARMUPS:
        loss_of(setting["batch"], setting["learning_rate"], warmup)
    best = min(tried, key=lambda pair: pair[0])[1]
    result = {"setting": best, "tried": [{"loss": loss, **setting} for loss, setting in tried]}
    (runs.directory / "tuned.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"the peer's best setting: {best}", flush=True)
    return best


def time_to(goal: float, tried: dict[float, dict[str, Any]], quantity: str) -> float | None:
    """Where the loss passes `goal`, between two neighbouring budgets; None if no two of them enclose it."""
    ordered = sorted(tried.values(), key=lambda run: run["budget"])
    for shorter, longer in itertools.pairwise(ordered):
        if shorter["loss"] > goal >= longer["loss"]:
            share = (shorter["loss"] - goal) / (shorter["loss"] - longer["loss"])
            return math.exp((1 - share) * math.log(shorter[quantity]) + share * math.log(longer[quantity]))
    return None


def search(runs: Runs, peer: dict[str, Any], setting: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Tries neighbouring budgets of Septet until the peer's final loss lies between two of them."""
    tried: dict[float, dict[str, Any]] = {}
    index = min(range(len(SHARES)), key=lambda i: abs(SHARES[i] - FIRST_SHARE))
    while time_to(peer["loss"], tried, "seconds") is None:
        budget = round(SHARES[index] * options.peer_seconds, 1)
        tried[budget] = runs.septet(budget, setting, peer["seed"])
        index += -1 if tried[budget]["loss"] <= peer["loss"] else 1
        if not 0 <= index < len(SHARES):
            raise SystemExit(f"seed {peer['seed']}: no budget from {SHARES[0]} to {SHARES[-1]} of the peer's fits")
    seconds = time_to(peer["loss"], tried, "seconds")
    tokens = time_to(peer["loss"], tried, "tokens")
    assert seconds is not None and tokens is not None
    return {
        "seed": peer["seed"], "loss": peer["loss"], "peer_seconds": peer["seconds"], "septet_seconds": seconds,
        "ratio": seconds / peer["seconds"], "peer_tokens": peer["tokens"], "septet_tokens": tokens,
        "token_ratio": tokens / peer["tokens"], "bits_per_byte": peer["bits_per_byte"],
        "parameters": [peer["parameters"], next(iter(tried.values()))["parameters"]],
        "budgets": {f"{b:g}": run["loss"] for b, run in sorted(tried.items())},
    }  # fmt: skip


def measure(runs: Runs, options: argparse.Namespace) -> None:
    """All seeds; writes the table and the figures."""
    tuned = runs.directory / "tuned.json"
    if not tuned.is_file():
        raise SystemExit(f"{tuned}: is missing; run `tune` first with the same --output, --size and --threads")
    peer_setting = json.loads(tuned.read_text())["setting"]
    septet_setting = {**SEPTET_OPTIONS, **{k: json.loads(v) for k, v in (each.split("=", 1) for each in options.set)}}
    seeds = []
    for seed in range(options.seeds):
        peer = runs.peer(options.peer_seconds, peer_setting, seed)
        seeds.append(search(runs, peer, septet_setting, options))
        first, second = seeds[-1]["parameters"]
        if abs(second / first - 1) > 0.02:
            raise SystemExit(f"the peer has {first:,} parameters, Septet {second:,}; they must be equal to within 2 %")
        write(runs, peer_setting, septet_setting, seeds, options)
    print(table(json.loads((runs.directory / "time_to_loss.json").read_text())))


def write(runs: Runs, peer: Any, septet: Any, seeds: list[dict[str, Any]], options: argparse.Namespace) -> None:
    results = {
        "command": " ".join(["python", "benchmarks/time_to_loss.py", *sys.argv[1:]]), "size": options.size,
        "threads": options.threads, "mixed_precision": options.mixed_precision, "peer": peer, "septet": septet,
        "sequence_length": options.sequence_length, "hardware": hardware(), "seeds": seeds,
        "ratio": spread([s["ratio"] for s in seeds]), "token_ratio": spread([s["token_ratio"] for s in seeds]),
    }  # fmt: skip
    (runs.directory / "time_to_loss.json").write_text(json.dumps(results, indent=2) + "\n")
    (runs.directory / "time_to_loss.md").write_text(table(results) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "lowest": min(values), "highest": max(values)}


def hardware() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n") if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def table(results: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| seed | the peer's final loss (bits per byte) | peer, s | Septet, s | ratio "
        "| peer, tokens | Septet, tokens | ratio |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for s in results["seeds"]:
        by_language = ", ".join(f"{lang} {value:.3f}" for lang, value in s["bits_per_byte"].items())
        lines.append(
            f"| {s['seed']} | {s['loss']:.4f} ({by_language}) | {s['peer_seconds']:.0f} | {s['septet_seconds']:.0f} "
            f"| {s['ratio']:.3f} | {s['peer_tokens']:,} | {s['septet_tokens']:,.0f} | {s['token_ratio']:.3f} |"
        )
    time_, tokens = results["ratio"], results["token_ratio"]
    lines.append(
        f"| mean (lowest to highest) | | | | {time_['mean']:.3f} ({time_['lowest']:.3f} to {time_['highest']:.3f}) | | "
        f"| {tokens['mean']:.3f} ({tokens['lowest']:.3f} to {tokens['highest']:.3f}) |"
    )
    return "\n".join(lines)


def main() -> None:
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.what == "one-run":
        return one_run(options)
    runs = Runs(options)
    if options.what == "table":
        print(table(json.loads((runs.directory / "time_to_loss.json").read_text())))
        return None
    blocks(options, "train"), blocks(options, "validation", keep_languages=True), packed_set(options)
    tune(runs, options) if options.what == "tune" else measure(runs, options)
    return None


if __name__ == "__main__":
    main()
