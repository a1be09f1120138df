"""Fine-tune a checkpoint on a task, whole or by LoRA, with transformers' Trainer.

    septet finetune classification --base runs/pretrain/final --data build/demo/sample/classification --output runs/classification

Any number of processes: `accelerate launch --config_file ... -m septet.tasks.harness.finetune classification ...`.
A run that was stopped goes on from its last epoch with --resume.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, fingerprint, identity, plain, read_json, write_json, write_manifest

RUN_FILE = "run.json"


@dataclass(frozen=True)
class FinetuneConfig:
    task: Annotated[str, tyro.conf.Positional]
    """translation, classification, qa, summarization or ner"""
    base: Path = Path("runs/pretrain/final")
    """the checkpoint to start from"""
    data: str = "data"
    """a folder with train.jsonl.gz and validation.jsonl.gz (also .jsonl, .parquet, .csv), or hub:owner/name[:config]"""
    output: Path = Path("runs/task")
    """the run's directory; final/ is the fine-tuned checkpoint"""
    method: Literal["full", "lora"] = "full"
    """full: all weights. lora: adapters on every linear layer (Hu et al. 2021), merged into final/, kept in adapter/"""
    epochs: float | None = None
    """passes over train; default: the recipe's"""
    batch_size: int | None = None
    """sequences of one step over all processes; default: the recipe's"""
    micro_batch_size: int | None = None
    """sequences that one process reads at once; default: the batch"""
    learning_rate: float | None = None
    """peak, of `nano`, from which that of other shapes follows (septet.modeling.optim); default: 2e-3, lora 1e-2"""
    optimizer: Literal["muon", "adamw", "adam", "rmsprop"] = "muon"
    """as in pre-training"""
    weight_decay: float = 0.05
    """decoupled"""
    dropout: float = 0.1
    """on the residual branches and before the head, while fine-tuning"""
    warmup_share: float = 0.06
    """share of the steps in which the learning rate rises"""
    label_smoothing: float | None = None
    """for translation and summarization; default: the recipe's"""
    num_beams: int | None = None
    """beams of the finished model's generation settings; default: the recipe's"""
    max_new_tokens: int | None = None
    """longest answer of the finished model's generation settings; default: the recipe's"""
    lora_rank: int = 16
    """rank of the adapters; alpha is twice that"""
    columns: dict[str, str] = field(default_factory=dict)
    """role and column, for columns of other names, as in `--columns text sentence label class`"""
    lang: Literal["en", "fr", "zh"] | None = None
    """language of rows without a `lang` column"""
    source_lang: str = "en"
    """translation: from"""
    target_lang: str = "fr"
    """translation: to"""
    max_rows: int | None = None
    """train on the first so many rows"""
    seed: int = 0
    """of the order, dropout and the new head"""
    resume: bool = False
    """go on from the last checkpoint; say so if the run is finished"""


def run(config: FinetuneConfig) -> Path:
    """Fine-tunes and leaves `final/`; returns the run's directory.

    Raises:
        UserError: unknown task, a base that is not a Septet folder, a set that breaks the task's rules, an output that
            holds another run.
    """
    from septet.modeling.checkpoint import require_model_folder, save_model
    from septet.tasks.harness.task import Reading, get_task, read_examples

    task = get_task(config.task)
    base = require_model_folder(config.base)
    output = Path(config.output)
    inputs = _inputs(config)
    if _is_finished(config, inputs):
        return output
    reading = Reading(config.columns, config.lang, config.source_lang, config.target_lang)
    train = read_examples(task, config.data, "train", reading, config.max_rows)
    held_out = read_examples(task, config.data, "validation", reading)

    import torch
    from transformers import TrainingArguments, set_seed
    from transformers.utils import logging

    from septet.data.pack import load_tokenizer
    from septet.modeling import keep_freed_memory, modeling_septet
    from septet.modeling.optim import make_optimizer, make_schedule
    from septet.modeling.watch import peak_memory_gib

    keep_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(config.seed)
    tokenizer = load_tokenizer(base)
    fields = {
        "attention_mode": task.attention_mode,
        "hidden_dropout": config.dropout,
        "classifier_dropout": config.dropout,
        **task.config_fields(train),
    }
    model = getattr(modeling_septet, task.head).from_pretrained(base, dtype=torch.float32, **fields)
    check_tokenizer(tokenizer, model.config, base)
    task.check(held_out, model.config)
    model.config.trained_heads = [task.head]

    train_features, train_cut = _features(task, train, tokenizer, model.config)
    held_out_features, _ = _features(task, held_out, tokenizer, model.config)
    epochs = config.epochs or task.defaults.epochs
    batch_size = config.batch_size or task.defaults.batch_size
    learning_rate = config.learning_rate or (1e-2 if config.method == "lora" else 2e-3)
    smoothing = task.defaults.label_smoothing if config.label_smoothing is None else config.label_smoothing
    if config.method == "lora":
        model = _with_adapters(model, task, config)

    _start(config, inputs)
    checkpoints = output / "checkpoints"
    num_processes = _num_processes()
    micro_batch = config.micro_batch_size or max(1, batch_size // num_processes)
    if batch_size % (micro_batch * num_processes):
        raise UserError(
            f"--batch-size {batch_size} is not a multiple of micro batch × processes = {micro_batch} × {num_processes}; "
            f"the nearest that is: {max(1, round(batch_size / micro_batch / num_processes)) * micro_batch * num_processes}"
        )
    accumulation = batch_size // (micro_batch * num_processes)
    steps = max(1, int(-(-len(train_features) // batch_size) * epochs))
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=2 * micro_batch,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=max(1, steps // 100),
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=False,  # the quiet verbosity above would choose line-by-line printing
        seed=config.seed,
        max_grad_norm=1.0,
    )
    optimizer = make_optimizer(config.optimizer, model, learning_rate, config.weight_decay)
    schedule = make_schedule("linear", optimizer, int(config.warmup_share * steps), steps)
    trainer = _trainer_class()(
        model=model,
        args=arguments,
        train_dataset=train_features,
        eval_dataset=held_out_features,
        data_collator=lambda features: task.collate(features, tokenizer),
        optimizers=(optimizer, schedule),
        label_smoothing=smoothing,
    )
    print(
        f"finetune {task.name}: {len(train):,} rows, {steps:,} steps of {batch_size} sequences, "
        f"learning rate {learning_rate:.2g}, {config.method}",
        flush=True,
    )
    started = time.time()
    resume = config.resume and checkpoints.is_dir() and any(checkpoints.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if resume else None)
    seconds = time.time() - started
    if not trainer.is_world_process_zero():
        return output

    history = trainer.state.log_history
    if config.method == "lora":
        model.save_pretrained(output / "adapter")
        model = model.merge_and_unload()
    model.config.hidden_dropout = model.config.classifier_dropout = 0.0  # the finished model is for use
    settings = GenerationSettings(
        config.num_beams or task.defaults.num_beams, config.max_new_tokens or task.defaults.max_new_tokens
    )
    task.finish(model, tokenizer, settings)
    final = output / "final"
    shutil.rmtree(final, ignore_errors=True)
    save_model(model, tokenizer, final)
    counts = {
        "rows": len(train),
        "truncated": train_cut,
        "steps": trainer.state.global_step,
        "resolved": {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "label_smoothing": smoothing,
        },
        "curves": {
            "train_loss": [[row["step"], row["loss"]] for row in history if "loss" in row],
            "validation_loss": [[row["step"], row["eval_loss"]] for row in history if "eval_loss" in row],
        },
        "training_seconds": round(seconds, 1),
        "peak_memory_gib": round(peak_memory_gib(), 3),
    }
    _finish(output, config, inputs, counts)
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"finetune {task.name}: done in {seconds / 60:.1f} minutes; the model is {final}", flush=True)
    return output


@dataclass(frozen=True)
class GenerationSettings:
    """What `Task.finish` writes into generation_config.json."""

    num_beams: int
    max_new_tokens: int


def check_tokenizer(tokenizer: Any, config: Any, place: Path) -> None:
    """Raises a `UserError` if the tokenizer's ids do not fit the model beside it."""
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{place}: the tokenizer has {len(tokenizer):,} tokens, the model only {config.vocab_size:,}; "
            "they do not belong together; give the tokenizer that the model was trained with"
        )
    for name in ("pad", "bos", "eos"):
        own, models = getattr(tokenizer, f"{name}_token_id"), getattr(config, f"{name}_token_id")
        if own != models:
            raise UserError(
                f"{place}: {name} is token {own} for the tokenizer, {models} for the model; they do not belong together; "
                "give the tokenizer that the model was trained with"
            )


def _features(task: Any, examples: list[Any], tokenizer: Any, config: Any) -> tuple[list[dict[str, Any]], int]:
    features = task.encode(examples, tokenizer, config)
    cut = sum(feature.pop("truncated") for feature in features)
    return features, cut


def _with_adapters(model: Any, task: Any, config: FinetuneConfig) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    kinds = {
        "SeptetForCausalLM": (TaskType.CAUSAL_LM, None),
        "SeptetForSequenceClassification": (TaskType.SEQ_CLS, ["classifier"]),
        "SeptetForTokenClassification": (TaskType.TOKEN_CLS, ["token_classifier"]),
        "SeptetForQuestionAnswering": (TaskType.QUESTION_ANS, ["qa_outputs"]),
    }
    task_type, new_modules = kinds[task.head]
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        exclude_modules=new_modules,
        modules_to_save=new_modules,
        task_type=task_type,
    )
    return get_peft_model(model, adapters)


def _trainer_class() -> Any:
    from transformers import ProgressCallback, Trainer

    class QuietProgress(ProgressCallback):
        """A bar with the loss beside it; the losses themselves are kept for the report, not printed line by line."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.is_world_process_zero and self.training_bar is not None:
                named = {"loss": "loss", "eval_loss": "held out"}
                self.losses = {**getattr(self, "losses", {}), **{named[k]: v for k, v in logs.items() if k in named}}
                self.training_bar.set_postfix({k: f"{float(v):.3f}" for k, v in self.losses.items()}, refresh=False)

    class SeptetTrainer(Trainer):
        """Trainer that asks a language-model head for the loss alone (no logits are held) and smooths its labels."""

        def __init__(self, *args: Any, label_smoothing: float = 0.0, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress)
            self.loss_options = {}
            if "prefix_lengths" in self.train_dataset[0]:
                self.loss_options = {"skip_logits": True, "label_smoothing": label_smoothing, "use_cache": False}
            else:
                self.model_accepts_loss_kwargs = False  # these heads take the mean over the batch themselves

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            options = dict(self.loss_options)
            if options and model.training:
                options["num_items_in_batch"] = num_items_in_batch
            elif options:
                options["label_smoothing"] = 0.0  # held-out losses are comparable whatever training smooths
            outputs = model(**inputs, **options)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    return SeptetTrainer


def _num_processes() -> int:
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def _inputs(config: FinetuneConfig) -> dict[str, Any]:
    from septet.tasks.harness.task import split_file

    inputs: dict[str, Any] = {"base": {"path": str(config.base), "sha256": fingerprint(Path(config.base))}}
    if not config.data.startswith("hub:"):
        for split in ("train", "validation"):
            file = split_file(Path(config.data), split)
            inputs[split] = {"path": str(file), "sha256": fingerprint(file)}
    return inputs


def _is_finished(config: FinetuneConfig, inputs: dict[str, Any]) -> bool:
    output = Path(config.output)
    if not output.exists() or not any(output.iterdir()):
        return False
    if not (output / RUN_FILE).is_file():
        raise UserError(f"{output}: exists but holds no fine-tuning run; choose another --output")
    before = read_json(output / RUN_FILE)
    now = plain({"config": identity(config), "inputs": inputs})
    if now != before:
        pairs = {**before["config"], **{f"input {k}": v["sha256"][:12] for k, v in before["inputs"].items()}}
        current = {**now["config"], **{f"input {k}": v["sha256"][:12] for k, v in now["inputs"].items()}}
        key = next(k for k in sorted(pairs.keys() | current.keys()) if pairs.get(k) != current.get(k))
        raise UserError(
            f"{output}: holds another run ({key} was {pairs.get(key)!r}, now {current.get(key)!r}); choose another --output"
        )
    if (output / FILE_NAME).is_file():
        print(f"finetune: {output} is finished", flush=True)
        return True
    if not config.resume:
        raise UserError(f"{output}: holds this run, unfinished; pass --resume to go on, or choose another --output")
    return False


def _start(config: FinetuneConfig, inputs: dict[str, Any]) -> None:
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / RUN_FILE, plain({"config": identity(config), "inputs": inputs}))


def _finish(output: Path, config: FinetuneConfig, inputs: dict[str, Any], counts: dict[str, Any]) -> None:
    listed = (output / "final").rglob("*")
    write_manifest(output, "finetune", config, inputs, counts, counts["training_seconds"], listed)


def read_run(model: Path) -> dict[str, Any]:
    """The manifest of the run whose `final/` (or `adapter/`) `model` is; {} if it stands alone."""
    path = Path(model).parent / FILE_NAME
    return read_json(path) if path.is_file() else {}


if __name__ == "__main__":
    run_cli(run, FinetuneConfig)
