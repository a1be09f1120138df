"""Pre-train a model on a packed set: next tokens, masked tokens, next sentences, or both readings on one checkpoint.

    accelerate launch --config_file accelerate_configs/cpu.yaml -m septet.modeling.pretrain \\
        --preset nano --data build/packed --output runs/pretrain --objective joint --steps 400

The batch is stated in tokens. A run that was stopped, however it was stopped, goes on with --resume and ends with the
same weights, byte for byte, on the same number of processes, threads and torch build.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, fingerprint, identity, read_json, write_json, write_manifest

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class PretrainConfig:
    preset: str = "7b"
    """shape of the model: tiny, nano, small, base, 1b, 7b; vocabulary and length come from --data"""
    data: Path = Path("build/packed")
    """what `septet pack` wrote"""
    output: Path = Path("runs/pretrain")
    """the run's directory: step_<n>/ checkpoints, metrics.jsonl, loss.png, final/"""
    objective: Literal["causal", "mlm", "mlm_nsp", "joint"] = "causal"
    """causal: next token (GPT). mlm: masked tokens; mlm_nsp: and next sentence (BERT). joint: all on one checkpoint"""
    steps: int | None = None
    """optimizer steps; or give --tokens"""
    tokens: int | None = None
    """tokens to train on; or give --steps"""
    tokens_per_step: int = 524_288
    """tokens of one optimizer step over all processes; gradient accumulation follows from it"""
    micro_batch_size: int = 8
    """sequences that one process reads at once; as many as fit into its memory"""
    learning_rate: float = 3e-3
    """peak; one rate serves Muon's matrices and AdamW's other parameters (see septet.modeling.optim)"""
    optimizer: Literal["muon", "adamw", "adam", "rmsprop"] = "muon"
    """muon: Muon for the layers' matrices, AdamW for the rest"""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "wsd"
    """after the warm-up; wsd: stable, then a linear decay over the last fifth"""
    warmup_share: float = 0.05
    """share of the steps in which the learning rate rises from 0"""
    weight_decay: float = 0.1
    """decoupled, on matrices and embeddings"""
    max_gradient_norm: float = 1.0
    """gradients are scaled down to this norm; 0 leaves them"""
    mask_probability: float = 0.15
    """share of tokens to be found again in mlm, mlm_nsp and joint (Devlin et al. 2019)"""
    joint_causal_share: float = 0.5
    """share of each batch's sequences that joint reads causally"""
    z_loss_weight: float = 0.0
    """weight of log(Z)^2, which keeps logits from drifting; 1e-4 in PaLM"""
    mixture: dict[str, float] = field(default_factory=dict)
    """weight by language or language/source, as in `--mixture en 1 fr 1 zh 1`; what is not named is
    left out; default: as much as there is of each"""
    max_epochs: dict[str, float] = field(default_factory=dict)
    """how often the run may go through each source: by language/source, language or "all", as in
    `--max-epochs all 4 fr 2`; default: no limit"""
    save_every: int = 500
    """steps between checkpoints"""
    keep: int = 2
    """checkpoints kept; older ones go"""
    validate_every: int = 500
    """steps between validations; one always comes at the end"""
    validation_sequences: int = 64
    """sequences a language in a validation"""
    log_every: int = 10
    """steps between lines in metrics.jsonl and at the tracker"""
    tracker: str | None = None
    """a tracker of Accelerate's, for example tensorboard or trackio; it must be installed"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    seed: int = 0
    """of the initialisation, the order, the masks and dropout"""
    resume: bool = False
    """go on from the newest whole checkpoint; start if there is none; say so if the run is finished"""


def run(config: PretrainConfig) -> Path:
    """Trains to the end and leaves `final/`; returns the run's directory.

    Raises:
        UserError: see `plan_steps`, `start_run` and `PackedDataset`; and when a loss or gradient is not finite.
    """
    output = Path(config.output)
    if is_finished(config):
        return output

    import numpy as np
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from tqdm import tqdm
    from transformers.utils import logging

    from septet.data.pack import load_tokenizer, token_byte_lengths
    from septet.data.packed import PackedDataset
    from septet.modeling import checkpoint, keep_freed_memory, modeling_septet
    from septet.modeling.objectives import OBJECTIVES, PretrainingLosses, Vocabulary, make_inputs
    from septet.modeling.optim import make_optimizer, make_schedule
    from septet.modeling.presets import preset_config

    keep_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # ---- what the run is: data, shape, steps
    accelerator = Accelerator(log_with=config.tracker, project_dir=output if config.tracker else None)
    data = PackedDataset(config.data, "train", config.mixture, config.seed)
    total_steps, micro_batches = plan_steps(config, data.sequence_length, accelerator.num_processes)
    total_samples = total_steps * config.tokens_per_step // data.sequence_length
    data.check_epochs(total_samples, config.max_epochs)
    accelerator.print(
        "pretrain: times through each source: "
        + ", ".join(f"{name} {epochs:.2f}" for name, epochs in data.epochs(total_samples).items())
    )
    tokenizer = load_tokenizer(config.data / "tokenizer")
    counts = data.manifest["counts"]
    model_class, trained_heads = OBJECTIVES[config.objective]
    set_seed(config.seed)
    model_config = preset_config(
        config.preset,
        vocab_size=counts["vocab_size"],
        max_position_embeddings=data.sequence_length,
        attention_mode="causal" if config.objective in ("causal", "joint") else "bidirectional",
        trained_heads=trained_heads,
        **counts["special_ids"],
    )
    model = getattr(modeling_septet, model_class)(model_config)
    if config.activation_checkpointing:
        getattr(
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )()  # its name from 5.23 on

    # ---- where it starts
    environment = {
        "torch": torch.__version__,
        "num_processes": accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "device": str(accelerator.device.type),
        "mixed_precision": accelerator.mixed_precision,
    }
    with accelerator.main_process_first():
        resume_from = start_run(config, environment, is_main=accelerator.is_main_process)
    done_steps, seconds_before = 0, 0.0
    if resume_from is not None:
        done_steps, path = resume_from
        model = getattr(modeling_septet, model_class).from_pretrained(path, dtype=torch.float32)
        seconds_before = checkpoint.load_state(path)["seconds"]
        accelerator.print(f"pretrain: going on from {path}")
    losses = PretrainingLosses(model, config.z_loss_weight)
    optimizer = make_optimizer(config.optimizer, model, config.learning_rate, config.weight_decay)
    schedule = make_schedule(config.schedule, optimizer, math.ceil(config.warmup_share * total_steps), total_steps)
    if resume_from is not None:
        checkpoint.load_optimizer(optimizer, path)
        schedule.load_state_dict(checkpoint.load_state(path)["schedule"])
    losses, optimizer = accelerator.prepare(losses, optimizer)
    vocabulary = Vocabulary.of(tokenizer)
    byte_lengths = torch.tensor(token_byte_lengths(tokenizer), device=accelerator.device)
    validation = PackedDataset(config.data, "validation", seed=config.seed)
    metrics = MetricsFile(output, done_steps, enabled=accelerator.is_main_process)
    if config.tracker:
        accelerator.init_trackers(
            "septet", {k: v for k, v in identity(config).items() if isinstance(v, int | float | str)}
        )

    # ---- the steps
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    sequences_per_step = micro_batches * config.micro_batch_size
    num_parameters = sum(p.numel() for p in model.parameters())
    accelerator.print(
        f"pretrain: {num_parameters:,} parameters, {total_steps:,} steps of {config.tokens_per_step:,} tokens "
        f"({micro_batches} micro-batches on {num_processes} process(es))"
    )
    started = last_logged = time.time()
    last_logged_step = done_steps
    bar = tqdm(
        total=total_steps, initial=done_steps, desc="pretrain", unit=" steps", disable=not accelerator.is_main_process
    )
    for step in range(done_steps, total_steps):
        losses.train()
        # Micro-batch m of step n holds the same samples, masks and dropout whoever computes it.
        mine = []
        for m in range(rank, micro_batches, num_processes):
            samples = step * sequences_per_step + m * config.micro_batch_size + np.arange(config.micro_batch_size)
            generator = np.random.default_rng([config.seed, step, m])
            arguments = (vocabulary, generator, config.mask_probability, config.joint_causal_share)
            mine.append((m, make_inputs(config.objective, data.batch(samples), *arguments)))
        kinds = sorted(mine[0][1].targets)
        targets = torch.tensor(
            [sum(inputs.targets[kind] for _, inputs in mine) for kind in kinds], device=accelerator.device
        )
        targets = dict(zip(kinds, accelerator.reduce(targets, "sum").tolist(), strict=True))

        sums = torch.zeros(len(kinds), dtype=torch.float64, device="cpu")
        for position, (m, inputs) in enumerate(mine):
            torch.manual_seed(hash((config.seed, step, m)))  # dropout; a tuple of ints hashes alike in every process
            is_last = position == len(mine) - 1
            with nullcontext() if is_last else accelerator.no_sync(losses):
                parts = losses(inputs.to(accelerator.device))
                # Summed losses, divided once by the targets of the whole step; DDP averages over processes, hence the factor.
                loss = sum(parts[kind] / max(targets[kind], 1) for kind in kinds) * num_processes
                accelerator.backward(loss)
            sums += torch.stack([parts[kind].detach().double().cpu() for kind in kinds])
        sums = accelerator.reduce(sums.to(accelerator.device, torch.float32), "sum").tolist()
        means = {kind: total / max(targets[kind], 1) for kind, total in zip(kinds, sums, strict=True)}
        norm = accelerator.clip_grad_norm_(losses.parameters(), config.max_gradient_norm or math.inf)
        norm = float(norm)
        if not (math.isfinite(norm) and all(math.isfinite(value) for value in means.values())):
            raise UserError(
                f"step {step}: loss {means}, gradient norm {norm}; a step needs finite ones, and the optimizer has not "
                "stepped; lower --learning-rate, or look at the batch, and go on with --resume"
            )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.update()
        bar.set_postfix({kind: f"{value:.3f}" for kind, value in means.items()}, refresh=False)

        # ---- once in a while: log, validate, save
        done = step + 1
        is_end = done == total_steps
        if done % config.log_every == 0 or is_end:
            now = time.time()
            rate = (done - last_logged_step) * config.tokens_per_step / (now - last_logged)
            last_logged, last_logged_step = now, done
            row = {
                "step": done,
                "tokens": done * config.tokens_per_step,
                "loss": round(sum(means.values()), 5),
                **{f"loss_{kind}": round(value, 5) for kind, value in means.items()},
                "gradient_norm": round(norm, 5),
                "learning_rate": schedule.get_last_lr()[0],
                "tokens_per_second": round(rate, 1),
                "seconds": round(seconds_before + now - started, 2),
                "peak_memory_gib": round(peak_memory_gib(), 3),
            }
            metrics.write(row)
            accelerator.log({k: v for k, v in row.items() if k != "step"}, step=done)
        if done % config.validate_every == 0 or is_end:
            paused = time.time()
            scores = validate(
                accelerator, losses, validation, config, vocabulary, byte_lengths, config.validation_sequences
            )
            metrics.write({"step": done, "tokens": done * config.tokens_per_step, "validation": scores})
            last_logged += time.time() - paused
        if (done % config.save_every == 0 or is_end) and accelerator.is_main_process:
            state = {
                "schedule": schedule.state_dict(),
                "seconds": seconds_before + time.time() - started,
                "environment": environment,
            }
            plain_optimizer = getattr(optimizer, "optimizer", optimizer)
            checkpoint.save_checkpoint(output, done, model, tokenizer, plain_optimizer, state, config)
            checkpoint.rotate(output, config.keep)
            metrics.plot()
        accelerator.wait_for_everyone()
    bar.close()

    # ---- the end: `final/` and the manifest of the whole run
    if accelerator.is_main_process:
        checkpoint.save_model(model, tokenizer, output / "final")
        final = metrics.rows()
        counts = {
            "num_parameters": num_parameters,
            "steps": total_steps,
            "tokens": total_steps * config.tokens_per_step,
            "environment": environment,
            "validation": next((row["validation"] for row in reversed(final) if "validation" in row), {}),
            "training_seconds": round(seconds_before + time.time() - started, 1),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        }
        finish_run(output, config, counts)
        for lang, score in counts["validation"].items():
            shown = ", ".join(f"{name} {value:.3f}" for name, value in score.items())
            print(f"pretrain: validation {lang}: {shown}")
        print(f"pretrain: done in {counts['training_seconds'] / 60:.1f} minutes; the model is {output / 'final'}")
    if config.tracker:
        accelerator.end_training()
    accelerator.wait_for_everyone()
    return output


def plan_steps(config: PretrainConfig, sequence_length: int, num_processes: int) -> tuple[int, int]:
    """(optimizer steps, micro-batches a step over all processes).

    Raises:
        UserError: neither or both of --steps and --tokens; or tokens a step that do not divide into micro-batches.
    """
    if (config.steps is None) == (config.tokens is None):
        raise UserError("give exactly one of --steps and --tokens: how long to train")
    for name in ("tokens_per_step", "micro_batch_size", "save_every", "log_every", "validate_every", "keep"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}; it must be at least 1")
    if config.objective == "joint" and config.micro_batch_size < 2:
        raise UserError("--micro-batch-size 1; joint splits each micro-batch between two readings; give at least 2")
    unit = config.micro_batch_size * sequence_length * num_processes
    if config.tokens_per_step % unit:
        nearest = max(1, round(config.tokens_per_step / unit)) * unit
        raise UserError(
            f"--tokens-per-step {config.tokens_per_step:,} is not a multiple of micro batch × sequence length × processes "
            f"= {config.micro_batch_size} × {sequence_length} × {num_processes} = {unit:,}; the nearest that is: {nearest:,}"
        )
    micro_batches = config.tokens_per_step // (config.micro_batch_size * sequence_length)
    steps = config.steps if config.steps is not None else math.ceil(config.tokens / config.tokens_per_step)
    if steps < 1:
        raise UserError(f"{steps} steps; give at least 1")
    return steps, micro_batches


def is_finished(config: PretrainConfig) -> bool:
    """Whether `output` holds this run, finished; with --resume that is said and fine, without it refused."""
    output = Path(config.output)
    if (output / FILE_NAME).is_file():
        if not config.resume:
            raise UserError(
                f"{output}: holds a finished run; choose another --output, or pass --resume to leave it as it is"
            )
        same_run(config, read_json(output / RUN_FILE))
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"pretrain: {output} is finished", flush=True)
        return True
    if output.exists() and any(output.iterdir()) and not config.resume:
        raise UserError(
            f"{output}: holds a run or other files; choose another --output, or pass --resume to go on with it"
        )
    return False


def same_run(config: PretrainConfig, before: Mapping[str, Any]) -> None:
    """Raises a `UserError` that names the first option, or the data, that differ from the run's start."""
    now = identity(config)
    for key in sorted(now.keys() | before["config"].keys()):
        if now.get(key) != before["config"].get(key):
            raise UserError(
                f"{config.output}: was started with {key} = {before['config'].get(key)!r}, now {now.get(key)!r}; "
                "go on with the old value, or choose another --output"
            )
    digest = fingerprint(config.data)
    if digest != before["data_sha256"]:
        raise UserError(
            f"{config.data}: has changed since {config.output} was started (sha256 {before['data_sha256'][:12]} then, "
            f"{digest[:12]} now); give the old data, or choose another --output"
        )


def start_run(config: PretrainConfig, environment: dict[str, Any], is_main: bool) -> tuple[int, Path] | None:
    """Writes down what the run is, or checks that it is the same run; returns the checkpoint to go on from.

    Raises:
        UserError: --resume with other options or data than the run was started with; the message names the difference.
    """
    from septet.modeling import checkpoint

    output = Path(config.output)
    if not (output / RUN_FILE).is_file():
        if is_main:
            output.mkdir(parents=True, exist_ok=True)
            described = {
                "config": identity(config),
                "data_sha256": fingerprint(config.data),
                "environment": environment,
            }
            write_json(output / RUN_FILE, described)
        return None
    before = read_json(output / RUN_FILE)
    same_run(config, before)
    if is_main and environment != before["environment"]:
        changed = {
            k: (before["environment"].get(k), v) for k, v in environment.items() if before["environment"].get(k) != v
        }
        print(f"pretrain: the environment differs from the start ({changed}): same samples, weights equal only nearly")
    return checkpoint.newest_whole(output)


def finish_run(output: Path, config: PretrainConfig, counts: dict[str, Any]) -> None:
    """The run's own manifest, last: it lists `final/` and the curves, not the checkpoints (they have their own)."""
    listed = [*(output / "final").rglob("*"), output / METRICS_FILE, output / RUN_FILE]
    inputs = {"data": {"path": config.data, "sha256": fingerprint(config.data)}}
    write_manifest(output, "pretrain", config, inputs, counts, counts["training_seconds"], listed)


def validate(
    accelerator: Any,
    losses: Any,
    data: Any,
    config: PretrainConfig,
    vocabulary: Any,
    byte_lengths: Any,
    sequences_per_language: int,
) -> dict[str, dict[str, float]]:
    """Held-out scores by language: mean loss in nats a target, and bits per byte of text where the model reads causally.

    Bits per byte do not depend on the tokenizer: nats of all targets / ln 2 / bytes of their text.
    """
    import numpy as np
    import torch

    from septet.modeling.objectives import make_inputs

    losses.eval()
    langs = np.asarray(data.data["lang"][:])
    out: dict[str, dict[str, float]] = {}
    for lang in sorted(set(langs)):
        rows = np.flatnonzero(langs == lang)[:sequences_per_language]
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for start in range(0, len(rows), config.micro_batch_size):
            index = start // config.micro_batch_size
            if index % accelerator.num_processes != accelerator.process_index:
                continue
            batch = data.read(rows[start : start + config.micro_batch_size])
            objectives = {"joint": ("causal", "mlm_nsp")}.get(config.objective, (config.objective,))
            for objective in objectives:
                generator = np.random.default_rng([config.seed, index])
                inputs = make_inputs(objective, batch, vocabulary, generator, config.mask_probability, 0.5)
                with torch.no_grad(), accelerator.autocast():
                    parts = accelerator.unwrap_model(losses)(inputs.to(accelerator.device))
                for kind, value in parts.items():
                    sums[kind] = sums.get(kind, 0.0) + float(value)
                    counts[kind] = counts.get(kind, 0.0) + inputs.targets[kind]
                if "causal" in parts:
                    labels = inputs.causal["labels"]
                    seen = byte_lengths[labels[labels >= 0].to(byte_lengths.device)].sum()
                    counts["bytes"] = counts.get("bytes", 0.0) + float(seen)
        kinds = [kind for kind in ("causal", "mlm", "nsp") if kind in make_kinds(config.objective)]
        numbers = [sums.get(k, 0.0) for k in kinds] + [counts.get(k, 0.0) for k in [*kinds, "bytes"]]
        reduced = accelerator.reduce(torch.tensor(numbers, device=accelerator.device), "sum").tolist()
        out[lang] = {f"loss_{k}": reduced[i] / max(reduced[len(kinds) + i], 1) for i, k in enumerate(kinds)}
        if "causal" in kinds:
            out[lang]["bits_per_byte"] = reduced[0] / math.log(2) / max(reduced[-1], 1)
        out[lang] = {name: round(value, 5) for name, value in out[lang].items()}
    return out


def make_kinds(objective: str) -> tuple[str, ...]:
    """The losses that an objective has."""
    kinds = {"causal": ("causal",), "mlm": ("mlm",), "mlm_nsp": ("mlm", "nsp"), "joint": ("causal", "mlm", "nsp")}
    return kinds[objective]


def peak_memory_gib() -> float:
    """The process's peak: resident memory on a CPU, allocated memory on an accelerator."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class MetricsFile:
    """`metrics.jsonl`: one row a logged step, one a validation; rows past the resumed step are dropped on opening."""

    def __init__(self, output: Path, done_steps: int, enabled: bool):
        self.path, self.enabled = Path(output) / METRICS_FILE, enabled
        if enabled:
            kept = [row for row in self.rows() if row["step"] <= done_steps]
            text = "".join(json.dumps(row) + "\n" for row in kept)
            aside = self.path.with_suffix(".tmp")
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, self.path)

    def rows(self) -> list[dict[str, Any]]:
        """All rows; a line that a kill cut short is left out."""
        rows = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").split("\n"):
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue
        return rows

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        if self.enabled:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")

    def plot(self) -> None:
        """Draws `loss.png`: the training losses and the held-out bits per byte by language."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        rows = self.rows()
        train = [row for row in rows if "loss" in row]
        held_out = [row for row in rows if "validation" in row]
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
        for name in sorted({key for row in train for key in row if key.startswith("loss_")}):
            left.plot([row["step"] for row in train], [row[name] for row in train], label=name.removeprefix("loss_"))
        left.set(xlabel="step", ylabel="training loss (nats per target)")
        measure = "bits_per_byte"
        if held_out and not any(measure in score for score in held_out[-1]["validation"].values()):
            measure = "loss_mlm"
        for lang in sorted({lang for row in held_out for lang in row["validation"]}):
            points = [(row["step"], row["validation"][lang][measure]) for row in held_out if lang in row["validation"]]
            right.plot(*zip(*points, strict=True), marker="o", label=lang)
        right.set(xlabel="step", ylabel=f"held-out {measure.replace('_', ' ')}")
        for axis in (left, right):
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend()
        aside = self.path.with_name(".loss.png")
        figure.savefig(aside, dpi=110)
        pyplot.close(figure)
        os.replace(aside, self.path.with_name("loss.png"))


if __name__ == "__main__":
    run_cli(run, PretrainConfig)
