"""Pre-train a model on a packed set: next tokens, masked tokens, next sentences, or both readings on one checkpoint.

    accelerate launch --config_file accelerate_configs/cpu.yaml -m septet.modeling.pretrain \\
        --preset nano --data build/packed --output runs/pretrain --objective joint --steps 400

The batch is stated in tokens. A run that was stopped, however it was stopped, goes on with --resume and ends with the
same weights, byte for byte, on the same number of processes, threads and torch build (on a GPU as far as its kernels add
in a fixed order); on another number it reads the same samples in the same order, and its losses agree to rounding.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from septet.data.errors import UserError, run_cli
from septet.data.manifest import identity, read_json
from septet.modeling.machine import Readers, StopSignal, describe_environment, make_accelerator
from septet.modeling.start import agreed_start, alone_at, finish_run, is_finished
from septet.modeling.steps import plan_steps
from septet.modeling.validation import samples, validate


@dataclass(frozen=True)
class PretrainConfig:
    preset: str = "7b"
    """shape of the model: tiny, nano, small, base, 1b, 7b; vocabulary and length come from --data"""
    data: Path = Path("build/packed")
    """what `septet pack` wrote"""
    output: Path = Path("runs/pretrain")
    """the run's directory: step_<n>/ checkpoints, metrics.jsonl, pictures, final/"""
    objective: Literal["causal", "mlm", "mlm_nsp", "joint"] = "causal"
    """causal: next token (GPT). mlm: masked tokens; mlm_nsp: and next sentence (BERT). joint: all on one checkpoint"""
    steps: int | None = None
    """optimizer steps; or give --tokens"""
    tokens: int | None = None
    """tokens to train on; or give --steps"""
    tokens_per_step: int = 524_288
    """tokens of one optimizer step over all processes; gradient accumulation follows from it"""
    batch_schedule: dict[int, int] = field(default_factory=dict)
    """tokens per step from a step on, as in `--batch-schedule 0 131072 2000 262144 6000 524288`"""
    length_schedule: dict[int, int] = field(default_factory=dict)
    """tokens of a sequence from a step on, as in `--length-schedule 0 512 4000 2048`: packed sequences are cut into
    pieces of so many"""
    micro_batch_size: int = 8
    """packed sequences that one process reads at once; as many as fit into its memory"""
    learning_rate: float = 3e-3
    """peak for the layers' matrices, of `nano`, from which that of other shapes follows (septet.modeling.optim)"""
    embedding_rate: float | None = None
    """what multiplies it for embeddings, heads and vectors; default: 10 with muon, 1 with the others"""
    optimizer: Literal["muon", "adamw", "adam", "rmsprop"] = "muon"
    """muon: Muon for the layers' matrices, AdamW for the rest"""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "wsd"
    """after the warm-up, which all have; wsd: stable, then a linear decay"""
    warmup_share: float = 0.05
    """share of the steps in which the learning rate rises from 0"""
    decay_share: float = 0.2
    """share of the steps, at the end, in which wsd's learning rate falls to 0"""
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
    init_from: Path | None = None
    """a model folder (a run's final/, `septet import`) whose weights the run starts from; its shape goes before --preset"""
    branch_from: Path | None = None
    """a checkpoint of another run, step_<n>/, to go on from at step n with its optimizer: to start a decay there, say"""
    skip_spikes: bool = False
    """leave out the optimizer step of a batch whose loss or gradient is a spike; it is logged either way"""
    spike_threshold: float = 6.0
    """standard deviations above the mean of the last 128 steps that make a spike"""
    save_every: int = 500
    """steps between checkpoints"""
    keep: int = 2
    """newest checkpoints kept; older ones go"""
    keep_every: int = 0
    """steps between checkpoints that stay for good; 0: none"""
    keep_best: bool = False
    """keep the checkpoint with the lowest held-out loss too (of those saved at a validation)"""
    on_save_error: Literal["stop", "go_on"] = "stop"
    """when a checkpoint cannot be written (a full disk): stop, or say so and try again at the next"""
    validate_every: int = 500
    """steps between validations, with samples of text; one always comes at the end"""
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
    allow_changes: tuple[str, ...] = ()
    """with --resume: options that may differ from the run's start, as in `--allow-changes learning_rate data`"""


def run(config: PretrainConfig, stop_after: int | None = None) -> Path:
    """Trains to the end and leaves `final/`; returns the run's directory.

    Args:
        stop_after: step after which to return, without an end (`septet certify --replay`).

    Raises:
        UserError: see `plan_steps`, `start_run`, `PackedDataset` and `Checkpoints`; and when a loss or gradient is not
            finite.
    """
    output = Path(config.output)
    with alone_at(output), StopSignal() as stop:
        return train(config, stop, stop_after)


def train(config: PretrainConfig, stop: StopSignal, stop_after: int | None) -> Path:
    """What `run` does once it is the only one there; read from top to bottom, this is the loop."""
    output = Path(config.output)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and is_finished(config):  # before anything heavy is imported
        return output

    import numpy as np
    import torch
    from tqdm import tqdm
    from transformers.utils import logging

    from septet.data.pack import load_tokenizer, token_byte_lengths
    from septet.data.packed import PackedDataset
    from septet.modeling import keep_freed_memory, watch
    from septet.modeling.checkpoint import (
        Checkpoints,
        load_optimizer,
        load_state,
        load_tensors,
        plain_names,
        write_final,
    )
    from septet.modeling.energy import EnergyMeter
    from septet.modeling.objectives import PretrainingLosses, Vocabulary, make_inputs
    from septet.modeling.optim import make_optimizer, make_schedule, set_step
    from septet.modeling.pictures import draw
    from septet.modeling.plan import training_flops_per_token

    keep_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # ---- what the run is: data, steps, model
    accelerator = make_accelerator(config)
    readers = Readers.of(accelerator)
    data = PackedDataset(config.data, "train", config.mixture, config.seed)
    steps = plan_steps(config, data.sequence_length, readers.count)
    data.check_epochs(steps.samples_before(steps.total), config.max_epochs)
    tokenizer = load_tokenizer(config.data / "tokenizer")
    model_config = describe_model(config, data)
    environment = describe_environment(accelerator)
    start = agreed_start(config, environment, steps, accelerator)
    if start is None:
        return output
    model = build_model(config, model_config, accelerator, init=start.checkpoint is None)
    losses = PretrainingLosses(model, config.z_loss_weight)
    if accelerator.parallelism_config is not None and accelerator.parallelism_config.tp_enabled:
        losses.tp_size = accelerator.parallelism_config.tp_size  # Accelerate asks what it prepares
    embedding_rate = config.embedding_rate
    if embedding_rate is None:
        embedding_rate = 10.0 if config.optimizer == "muon" else 1.0
    optimizer = make_optimizer(config.optimizer, model, config.learning_rate, config.weight_decay, embedding_rate)
    warmup_steps = math.ceil(config.warmup_share * steps.total)
    schedule = make_schedule(config.schedule, optimizer, warmup_steps, steps.total, config.decay_share)
    losses, optimizer = accelerator.prepare(losses, optimizer)
    model = accelerator.unwrap_model(losses, keep_torch_compile=False).model  # its parameters may be sharded now
    if model_config.tie_word_embeddings and len({id(m.weight) for m in (model.model.embed_tokens, model.lm_head)}) > 1:
        raise UserError("the machine file unties embedding and head: leave fsdp_cpu_ram_efficient_loading out of it")
    plain_optimizer = getattr(optimizer, "optimizer", optimizer)

    # ---- where it starts
    done_steps, link, seconds_before, joules_before = 0, data.fingerprint, 0.0, 0.0
    spikes, seen = watch.Spikes(config.spike_threshold), watch.SeenSources(data)
    if start.checkpoint is not None:
        done_steps, state = start.step, load_state(start.checkpoint)
        many = accelerator.num_processes > 1
        load_tensors(plain_names(model), start.checkpoint, many)
        load_optimizer(model, plain_optimizer, start.checkpoint, many)
        set_step(schedule, done_steps)
        link, seconds_before, joules_before = state["rows_sha256"], state["seconds"], state.get("joules")
        spikes.load(state["spikes"])
        seen.load(state["seen"])
        accelerator.print(f"pretrain: going on from {start.checkpoint}")
    checkpoints = Checkpoints(output, tokenizer, config)
    vocabulary = Vocabulary.of(tokenizer)
    byte_lengths = torch.tensor(token_byte_lengths(tokenizer), device=accelerator.device)
    validation = PackedDataset(config.data, "validation", seed=config.seed)
    is_main = accelerator.is_main_process
    metrics, spike_log, sample_log = (
        watch.MetricsFile(output, done_steps, is_main, name)
        for name in (watch.METRICS_FILE, watch.SPIKES_FILE, watch.SAMPLES_FILE)
    )
    opening = watch.first_tokens(validation)
    if config.tracker:
        accelerator.init_trackers(
            "septet", {k: v for k, v in identity(config).items() if isinstance(v, int | float | str)}
        )

    flops_per_token = cache(
        lambda length: training_flops_per_token(
            model.config, length, config.objective, config.mask_probability, config.joint_causal_share
        )
    )

    def utilisation(tokens_per_second: float, length: int) -> float | None:
        flops = flops_per_token(length)
        where = (accelerator.num_processes, accelerator.device, accelerator.mixed_precision)
        share = watch.utilisation(tokens_per_second, flops, *where)
        return None if share is None else round(share, 4)

    def joules() -> float | None:
        """Of the first process's machine, over all parts of the run; None if a part was not counted."""
        spent = energy.joules()
        return None if spent is None or joules_before is None else round(joules_before + spent, 1)

    num_parameters = sum(p.numel() for p in model.parameters())
    accelerator.print(
        f"pretrain: {num_parameters:,} parameters, {steps.total:,} steps of {steps.tokens(done_steps):,} tokens "
        f"({steps.micro_batches(done_steps)} micro-batches on {accelerator.num_processes} process(es))"
    )
    epochs = data.epochs(steps.samples_before(steps.total))
    accelerator.print(
        "pretrain: times through each source: " + ", ".join(f"{name} {times:.2f}" for name, times in epochs.items())
    )

    # ---- the steps
    started = last_logged = time.time()
    energy = EnergyMeter()
    last_logged_step = done_steps
    bar = tqdm(total=steps.total, initial=done_steps, desc="pretrain", unit=" steps", disable=not is_main)
    for step in range(done_steps, steps.total):
        losses.train()
        # Micro-batch m of step n holds the same samples, masks and dropout whoever computes it.
        mine, read, before = [], np.zeros(steps.samples(step), dtype=np.int64), steps.samples_before(step)
        for m in range(readers.rank, steps.micro_batches(step), readers.count):
            places = m * config.micro_batch_size + np.arange(config.micro_batch_size)
            batch = data.batch(before + places)
            read[places] = batch.rows
            generator = np.random.default_rng([config.seed, step, m])
            arguments = (vocabulary, generator, config.mask_probability, config.joint_causal_share)
            mine.append((m, make_inputs(config.objective, batch.cut(steps.sequence_length(step)), *arguments)))
        # One exchange: targets of each loss, whether to stop, whether a save failed, and the rows that were really read.
        kinds = sorted(mine[0][1].targets)
        counted = [sum(inputs.targets[kind] for _, inputs in mine) for kind in kinds]
        once = int(readers.speaks)  # processes that read the same count it once
        told = np.concatenate([np.multiply(counted, once), [stop.asked, checkpoints.error is not None], read * once])
        told = accelerator.reduce(torch.from_numpy(told.astype(np.int64)).to(accelerator.device), "sum").tolist()
        targets = dict(zip(kinds, told, strict=False))
        stop_asked, save_failed = told[len(kinds)], told[len(kinds) + 1]
        rows = np.asarray(told[len(kinds) + 2 :], dtype="<i8")
        if save_failed:
            settle(checkpoints, config, accelerator)
        link = hashlib.sha256(link.encode() + rows.tobytes()).hexdigest()
        seen.add(rows)

        sums = read_and_differentiate(accelerator, readers, losses, mine, targets, (config.seed, step))
        sums = accelerator.reduce((sums * readers.speaks).to(accelerator.device, torch.float32), "sum").tolist()
        means = {kind: total / max(targets[kind], 1) for kind, total in zip(kinds, sums, strict=True)}
        norm = accelerator.clip_grad_norm_(losses.parameters(), config.max_gradient_norm or math.inf)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not (math.isfinite(norm) and all(math.isfinite(value) for value in means.values())):
            optimizer.zero_grad()  # clipping has spread what is not finite over all gradients
            read_and_differentiate(accelerator, readers, losses, mine, targets, (config.seed, step))
            where = watch.first_not_finite(losses, *(inputs.to(accelerator.device) for _, inputs in mine))
            with suppress(UserError):  # this is the news
                checkpoints.wait()
            raise UserError(
                f"step {step}: loss {means}, gradient norm {norm}; {where}; a step needs finite ones, and the optimizer "
                "has not stepped; look at the batch, or go on from the last checkpoint with --resume, a lower "
                "--learning-rate and --allow-changes learning_rate"
            )
        spike = spikes.check(sum(means.values()), norm)
        if spike:
            loss, sources = sum(means.values()), seen.of(rows)
            spike_log.write(watch.spike_row(step + 1, spike, loss, norm, rows, sources, config.skip_spikes))
        # Each role has a rate of its own, and all go through the same shares of them.
        learning_rate = config.learning_rate * schedule.get_last_lr()[0] / schedule.base_lrs[0]
        if not (spike and config.skip_spikes):
            optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.update()
        bar.set_postfix({kind: f"{value:.3f}" for kind, value in means.items()}, refresh=False)

        # ---- once in a while: log, validate, save
        done = step + 1
        is_end = done == steps.total
        if done % config.log_every == 0 or is_end:
            now = time.time()
            rate = (steps.tokens_before(done) - steps.tokens_before(last_logged_step)) / (now - last_logged)
            last_logged, last_logged_step = now, done
            row = {
                "step": done,
                "tokens": steps.tokens_before(done),
                "loss": round(sum(means.values()), 5),
                **{f"loss_{kind}": round(value, 5) for kind, value in means.items()},
                "gradient_norm": round(norm, 5),
                "learning_rate": learning_rate,
                "sequence_length": steps.sequence_length(step),
                "tokens_per_second": round(rate, 1),
                "utilisation": utilisation(rate, steps.sequence_length(step)),
                "seconds": round(seconds_before + now - started, 2),
                "joules": joules(),
                "stalled_seconds": round(checkpoints.stalled_seconds, 3),
                "peak_memory_gib": round(watch.peak_memory_gib(), 3),
                "seen": seen.state(),
                "rows_sha256": link[:16],
            }
            metrics.write(row)
            accelerator.log(watch.flat(row), step=done)
        score = None
        if done % config.validate_every == 0 or is_end:
            paused = time.time()
            scores = validate(accelerator, readers, losses, validation, config, vocabulary, byte_lengths)
            score = sum(sum(v for k, v in s.items() if k != "bits_per_byte") for s in scores.values())
            row = {"step": done, "tokens": steps.tokens_before(done), "validation": scores}
            metrics.write(row)
            accelerator.log(watch.flat(row), step=done)
            sample_log.write(
                {"step": done, **samples(config, losses, tokenizer, vocabulary, opening, accelerator.device)}
            )
            for module in losses.modules() if accelerator.is_fsdp2 else ():
                if hasattr(module, "reshard"):  # weights are left gathered, and the optimizer knows their shards
                    module.reshard()
            last_logged += time.time() - paused
        if done % config.save_every == 0 or is_end or stop_asked:
            state = {
                "seconds": seconds_before + time.time() - started,
                "joules": joules(),
                "environment": environment,
                "samples": steps.samples_before(done),
                "rows_sha256": link,
                "seen": seen.state(),
                "spikes": spikes.state(),
            }
            settle(checkpoints, config, accelerator)
            after = None if is_end else partial(draw, output, data.mixture)  # the end draws by itself
            checkpoints.save(done, model, plain_optimizer, state, score, after)
        if stop_asked and not is_end:
            is_saved = settle(checkpoints, config, accelerator)
            what = "is saved" if is_saved else "could not be saved: the newest checkpoint is an older one"
            raise UserError(f"stopped by a signal after step {done}, which {what}; go on with --resume")
        if done == stop_after:
            checkpoints.wait()
            return output
    bar.close()
    checkpoints.wait()

    # ---- the end: `final/` and the manifest of the whole run
    if is_main:
        write_final(output, output / f"step_{steps.total}")
        draw(output, data.mixture)
        counts = {
            "num_parameters": num_parameters,
            "steps": steps.total,
            "tokens": steps.tokens_before(steps.total),
            "environment": environment,
            "validation": next((row["validation"] for row in reversed(metrics.rows()) if "validation" in row), {}),
            "training_seconds": round(seconds_before + time.time() - started, 1),
            "training_joules": joules(),
            "peak_memory_gib": round(watch.peak_memory_gib(), 3),
        }
        finish_run(output, config, counts)
        for lang, score in counts["validation"].items():
            shown = ", ".join(f"{name} {value:.3f}" for name, value in score.items())
            print(f"pretrain: validation {lang}: {shown}")
        print(f"pretrain: done in {counts['training_seconds'] / 60:.1f} minutes; the model is {output / 'final'}")
    accelerator.wait_for_everyone()
    if config.tracker:
        accelerator.end_training()
    return output


def describe_model(config: PretrainConfig, data: Any) -> Any:
    """The run's `SeptetConfig`: the shape of --preset, or of the model or checkpoint that it begins with, as the run's own
    newest checkpoint has it; the vocabulary and length of the packed set.

    Raises:
        UserError: there is no such preset; or --init-from is no Septet folder, or it or --branch-from is not of the packed
            set's tokenizer.
    """
    from septet.modeling.checkpoint import require_model_folder
    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.objectives import OBJECTIVES
    from septet.modeling.presets import preset_config

    counts = data.manifest["counts"]
    fields = {
        "attention_mode": "causal" if config.objective in ("causal", "joint") else "bidirectional",
        "trained_heads": OBJECTIVES[config.objective][1],
    }
    origin = config.init_from or config.branch_from
    if origin is None:
        shape = {"vocab_size": counts["vocab_size"], "max_position_embeddings": data.sequence_length}
        return preset_config(config.preset, **shape, **fields, **counts["special_ids"])
    own = sorted(Path(config.output).glob("step_*/config.json"), key=lambda path: int(path.parent.name[5:]))
    folder = own[-1].parent if own else require_model_folder(origin)  # which may be gone once the run has saved
    if read_json(folder / "config.json").get("model_type") != "septet":
        raise UserError(f"--init-from {folder}: is no Septet model; `septet import` makes one of a Llama or Qwen3")
    model_config = SeptetConfig.from_pretrained(folder, **fields)
    if config.init_from is None:  # a branch may go on with longer sequences
        model_config.max_position_embeddings = max(model_config.max_position_embeddings, data.sequence_length)
    check_belongs(folder, model_config, config.data, data)
    return model_config


def build_model(config: PretrainConfig, model_config: Any, accelerator: Any, init: bool) -> Any:
    """The model on this process, before Accelerate shards it; the same first weights on every process.

    Args:
        init: False leaves the weights as they come, since a checkpoint will fill them.
    """
    import torch
    from accelerate.utils import set_seed
    from transformers.initialization import no_init_weights

    from septet.modeling import modeling_septet
    from septet.modeling.objectives import OBJECTIVES

    model_class = getattr(modeling_septet, OBJECTIVES[config.objective][0])
    set_seed(config.seed)
    layout = accelerator.parallelism_config
    if config.init_from is not None and init:
        model, found = model_class.from_pretrained(
            config.init_from, config=model_config, dtype=torch.float32, output_loading_info=True
        )
        missing = sorted(name for name in found["missing_keys"] if name.startswith("model."))
        if missing:
            raise UserError(f"--init-from {config.init_from}: its weights lack {missing[0]}; give a whole model folder")
    else:
        with nullcontext() if init else no_init_weights():
            model = model_class(model_config)
        model.tie_weights()  # which is left out with the first weights
    if layout is not None and layout.tp_enabled:  # transformers shards matrices while it reads them from a folder
        folder = Path(config.output) / ".first_weights"
        if accelerator.is_main_process:
            model.save_pretrained(folder)
        accelerator.wait_for_everyone()
        mesh = accelerator.torch_device_mesh["tp"]
        model = model_class.from_pretrained(folder, tp_plan="auto", device_mesh=mesh, dtype=torch.float32)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(folder)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def check_belongs(folder: Path, model_config: Any, place: Path, data: Any) -> None:
    """Raises a `UserError` where a model's folder and the packed set at `place` are not of one tokenizer or length."""
    counts = data.manifest["counts"]
    wanted = {"vocab_size": counts["vocab_size"], **counts["special_ids"]}
    for name, value in wanted.items():
        if getattr(model_config, name) != value:
            raise UserError(
                f"{folder}: has {name} {getattr(model_config, name)}, and {place} was packed with {value}; "
                "pack the corpus with the tokenizer of the model (`septet pack --tokenizer`)"
            )
    tokenizers = [Path(each) / "tokenizer.json" for each in (folder, place / "tokenizer")]
    if all(path.is_file() for path in tokenizers):
        first, second = (read_json(path)["model"] for path in tokenizers)
        if first != second:
            raise UserError(
                f"{place}: was packed with another tokenizer than that of {folder}; pack the corpus with "
                "the tokenizer of the model (`septet pack --tokenizer`)"
            )
    if data.sequence_length > model_config.max_position_embeddings:
        raise UserError(
            f"{place}: has sequences of {data.sequence_length} tokens, and {folder} was made for "
            f"{model_config.max_position_embeddings}; pack with --sequence-length {model_config.max_position_embeddings}"
        )


def read_and_differentiate(
    accelerator: Any,
    readers: Readers,
    losses: Any,
    mine: list[tuple[int, Any]],
    targets: Mapping[str, int],
    seeds: tuple[int, int],
) -> Any:
    """Adds the gradients of this process's micro-batches up; returns its summed losses, (kinds,) float64.

    Each reading of a micro-batch goes forward and back by itself: `joint` needs the memory of one of them.

    Args:
        mine: (number within the step, `Inputs`).
        targets: of each loss, of the whole step over all processes.
        seeds: run and step, for dropout.
    """
    import torch

    sums = torch.zeros(len(targets), dtype=torch.float64)
    passes = [(m, number, part) for m, inputs in mine for number, part in enumerate(inputs.readings())]
    for position, (m, number, part) in enumerate(passes):
        torch.manual_seed(hash((*seeds, m, number)))  # a tuple of ints hashes alike in every process
        is_last = position == len(passes) - 1
        with accumulation(accelerator, losses, is_last), gradients_apart(accelerator, losses):
            found = losses(part.to(accelerator.device))
            # Summed losses, divided once by the targets of the whole step; processes are averaged, hence the factor.
            accelerator.backward(sum(value / max(targets[kind], 1) for kind, value in found.items()) * readers.count)
        sums += torch.stack(
            [found[kind].detach().double().cpu() if kind in found else sums.new_zeros(()) for kind in targets]
        )
    return sums


def accumulation(accelerator: Any, losses: Any, is_last: bool) -> Any:
    """The context of one pass. Replicated gradients are exchanged once, after the last; sharded ones each time,
    since whole gradients would otherwise be kept until then."""
    return nullcontext() if is_last or accelerator.is_fsdp2 else accelerator.no_sync(losses)


@contextmanager
def gradients_apart(accelerator: Any, losses: Any) -> Iterator[None]:
    """Under tensor parallelism, keeps earlier passes' gradients of the per-head norms out of a pass and adds them after it.

    Each rank has these from its own heads, and transformers (5.23) adds them up over ranks in a hook that runs after every
    backward pass, on whatever has accumulated: the first of n passes would count ranks^(n - 1) times.
    """
    layout = accelerator.parallelism_config
    if layout is None or not layout.tp_enabled:
        yield
        return
    model = accelerator.unwrap_model(losses, keep_torch_compile=False).model
    plan = model.config.base_model_tp_plan
    summed = [name.split(".")[-1] for name, style in plan.items() if style == "replicated_with_grad_allreduce"]
    partial_ones = [p for name, p in model.named_parameters() if name.split(".")[-2] in summed]
    before = [p.grad for p in partial_ones]
    for p in partial_ones:
        p.grad = None
    yield
    for p, gradient in zip(partial_ones, before, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad + gradient


def settle(checkpoints: Any, config: PretrainConfig, accelerator: Any) -> bool:
    """Waits for the save under way, and returns whether it is whole; one that failed stops the run or, with
    --on-save-error go_on, is told."""
    try:
        checkpoints.wait()
    except UserError as error:
        if config.on_save_error == "stop":
            raise
        accelerator.print(f"pretrain: {error}; the run goes on")
        return False
    return True


if __name__ == "__main__":
    run_cli(run, PretrainConfig)
