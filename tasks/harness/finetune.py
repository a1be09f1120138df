"""Fine-tune a checkpoint on a task, whole or by adapters, with transformers' Trainer.

    septet finetune classification --base runs/pretrain/final --data build/demo/sample/classification --output runs/classification

Any number of processes: `accelerate launch --config_file ... -m septet.tasks.harness.finetune classification ...`.
A run that was stopped goes on from its last epoch with --resume.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, fingerprint, identity, plain, read_json, write_json, write_manifest

RUN_FILE = "run.json"
# The modules of each head that pre-training has not trained.
_NEW_MODULES = {
    "SeptetForSequenceClassification": ["classifier"],
    "SeptetForTokenClassification": ["token_classifier"],
    "SeptetForQuestionAnswering": ["qa_outputs", "match_embeddings"],
}


@dataclass(frozen=True)
class FinetuneConfig:
    task: Annotated[str, tyro.conf.Positional]
    """translation, classification, multilabel, regression, qa, generative_qa, summarization or ner"""
    base: Path = Path("runs/pretrain/final")
    """the checkpoint to start from"""
    data: str = "data"
    """a folder with train.jsonl.gz and validation.jsonl.gz (also .jsonl, .parquet, .csv), or hub:owner/name[:config]"""
    output: Path = Path("runs/task")
    """the run's directory; final/ is the fine-tuned checkpoint"""
    method: Literal["full", "lora", "qlora"] = "full"
    """full: all weights. lora: adapters on every linear layer (Hu et al. 2021), merged into final/, kept in adapter/.
    qlora: the same over weights held in 4 bits (Dettmers et al. 2023; needs bitsandbytes), merged into the whole ones"""
    attention_mode: Literal["causal", "bidirectional"] | None = None
    """how the text, or a prompt, is read: in both directions by default. causal suits a base that has only read so, such as
    an import; a classification is then read off the last token, which alone has seen them all"""
    epochs: float | None = None
    """passes over train; default: the recipe's"""
    batch_size: int | None = None
    """sequences of one step over all processes; default: the recipe's"""
    micro_batch_size: int | None = None
    """sequences that one process reads at once; default: the batch"""
    learning_rate: float | None = None
    """peak, of `nano`, from which that of other shapes follows (septet.modeling.optim); default: 2e-3, of adapters 1e-2"""
    optimizer: Literal["muon", "adamw", "adam", "rmsprop"] = "muon"
    """as in pre-training"""
    embedding_rate: float = 1.0
    """what multiplies the learning rate of embeddings, heads and vectors"""
    weight_decay: float = 0.05
    """decoupled"""
    dropout: float = 0.1
    """on the residual branches and before the head, while fine-tuning"""
    warmup_share: float = 0.06
    """share of the steps in which the learning rate rises"""
    label_smoothing: float | None = None
    """for translation and summarization; default: the recipe's"""
    token_replacement: float = 0.0
    """share of the input's tokens that are replaced by random ones while fine-tuning, the labels kept (Wang et al. 2018):
    what stands around a word then has to do, as it must with a word never seen; docs/tasks.md says when it pays"""
    num_beams: int | None = None
    """beams of the finished model's generation settings; default: the recipe's"""
    max_new_tokens: int | None = None
    """longest answer of the finished model's generation settings; default: the recipe's"""
    length_penalty: float | None = None
    """of beams: above 1 favours longer answers; default: the recipe's"""
    no_repeat_ngram_size: int | None = None
    """no run of so many tokens twice in an answer, nor one of the prompt's; 0: allowed; default: the recipe's"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: products in bfloat16, weights and optimizer in float32"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    lora_rank: int = 16
    """rank of the adapters; alpha is twice that"""
    early_stopping: int = 0
    """stop after so many epochs without a better validation score (of generating tasks: loss), and keep the best epoch;
    0: go through all epochs and keep the last"""
    class_weights: Literal["none", "balanced", "sqrt", "effective"] = "none"
    """classification: weight of a rare class's rows in the loss (septet.tasks.harness.imbalance)"""
    loss: Literal["cross_entropy", "focal", "logit_adjusted"] = "cross_entropy"
    """classification: focal counts what is right less (Lin et al. 2017); logit_adjusted weighs all classes alike
    (Menon et al. 2021)"""
    focal_gamma: float = 2.0
    """of --loss focal"""
    sampling: Literal["none", "over", "under", "synthetic"] = "none"
    """classification: train on the rows of rare classes more often (over), of frequent ones less often (under), or on
    rewritten rows of rare ones (synthetic: words drawn anew by the base's own masked-LM head)"""
    sampling_ratio: float = 4.0
    """how many times the rows of the rarest class the most frequent one has at most, after sampling"""
    tune_thresholds: bool = False
    """classification: shift the classes' scores to the best macro-F1 on validation; the shift becomes part of the model"""
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


def run(config: FinetuneConfig, on_epoch: Callable[[int, float], None] | None = None) -> Path:
    """Fine-tunes and leaves `final/`; returns the run's directory.

    Args:
        on_epoch: called with the epoch and the validation score after each one (of generating tasks: the loss); what it
            raises ends the run.

    Raises:
        UserError: unknown task, a base that is not a Septet folder, a set that breaks the task's rules, options that the
            task does not have, an output that holds another run.
    """
    from septet.modeling.checkpoint import require_model_folder, save_model
    from septet.tasks.harness.generation import DECODING
    from septet.tasks.harness.task import Reading, get_task, read_examples

    task = get_task(config.task)
    check_balance(task, config)
    if not 0 <= config.token_replacement < 1:
        raise UserError(f"--token-replacement {config.token_replacement:g}: must be a share, from 0 to below 1")
    if config.attention_mode == "bidirectional" and task.attention_mode != "bidirectional":
        raise UserError(
            f"--attention-mode bidirectional: {task.name} writes from left to right; omit it, or give causal"
        )
    base = require_model_folder(config.base)
    output = Path(config.output)
    inputs = inputs_of(config)
    if _is_finished(config, inputs):
        return output
    reading = Reading(config.columns, config.lang, config.source_lang, config.target_lang)
    train = read_examples(task, config.data, "train", reading, config.max_rows)
    held_out = read_examples(task, config.data, "validation", reading)

    import torch
    from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
    from transformers.utils import logging

    from septet.data.pack import load_tokenizer
    from septet.modeling import keep_freed_memory
    from septet.modeling.energy import EnergyMeter
    from septet.modeling.optim import make_optimizer, make_schedule
    from septet.modeling.watch import peak_memory_gib

    keep_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(config.seed)
    tokenizer = load_tokenizer(base)
    fields = {
        "attention_mode": config.attention_mode or task.attention_mode,
        **(
            {"classifier_pooling": "last"}
            if config.attention_mode == "causal" and task.head == "SeptetForSequenceClassification"
            else {}
        ),
        "hidden_dropout": config.dropout,
        "classifier_dropout": config.dropout,
        **task.config_fields(train, tokenizer),
    }
    model = load_base(task, base, fields, in_4_bits=config.method == "qlora")
    check_tokenizer(tokenizer, model.config, base)
    task.check(held_out, model.config)

    shown = resampled(task, train, config, base)
    train_features, train_cut = _features(task, shown, tokenizer, model.config)
    held_out_features, _ = _features(task, held_out, tokenizer, model.config)
    epochs = config.epochs or task.defaults.epochs
    batch_size = config.batch_size or task.defaults.batch_size
    learning_rate = config.learning_rate or (2e-3 if config.method == "full" else 1e-2)
    smoothing = task.defaults.label_smoothing if config.label_smoothing is None else config.label_smoothing
    if config.method != "full":
        model = _with_adapters(model, task, config)

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
        load_best_model_at_end=config.early_stopping > 0,
        metric_for_best_model=f"eval_{task.primary_metric}" if task.scored_while_training else "eval_loss",
        greater_is_better=task.validation_rises,
        logging_steps=max(1, steps // 100),
        bf16=config.mixed_precision == "bf16",
        gradient_checkpointing=config.activation_checkpointing,
        prediction_loss_only=True,
        # Trainer guesses from the head's signature, which also takes `shift_labels`, and then finds no held-out loss.
        label_names=[name for name in train_features[0] if name == "labels" or name.endswith("_positions")],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=False,  # the quiet verbosity above would choose line-by-line printing
        seed=config.seed,
        max_grad_norm=1.0,
    )
    _start(config, inputs)
    optimizer = make_optimizer(config.optimizer, model, learning_rate, config.weight_decay, config.embedding_rate)
    schedule = make_schedule("linear", optimizer, int(config.warmup_share * steps), steps)
    trainer = _trainer_class()(
        model=model,
        args=arguments,
        train_dataset=train_features,
        eval_dataset=held_out_features,
        data_collator=lambda features: task.collate(features, tokenizer),
        optimizers=(optimizer, schedule),
        label_smoothing=smoothing,
        replace_tokens=token_replacement(config.token_replacement, tokenizer) if config.token_replacement else None,
        loss_function=loss_function(task, train, model.config, config),
        score=partial(validation_score, task, tokenizer, held_out, 2 * micro_batch)
        if task.scored_while_training
        else None,
        primary_metric=task.primary_metric,
        writes=task.head == "SeptetForCausalLM",
        on_epoch=on_epoch,
        callbacks=[EarlyStoppingCallback(config.early_stopping)] if config.early_stopping else None,
    )
    print(
        f"finetune {task.name}: {len(shown):,} rows, {steps:,} steps of {batch_size} sequences, "
        f"learning rate {learning_rate:.2g}, {config.method}",
        flush=True,
    )
    started, energy = time.time(), EnergyMeter()
    resume = config.resume and checkpoints.is_dir() and any(checkpoints.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if resume else None)
    seconds, joules = time.time() - started, energy.joules()
    if not trainer.is_world_process_zero():
        return output

    history, scored = trainer.state.log_history, f"eval_{task.primary_metric}"
    if config.method != "full":
        model.save_pretrained(output / "adapter")
    if config.method == "lora":
        model = model.merge_and_unload()
    elif config.method == "qlora":  # merged into the weights that 4 bits were made of
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(task, base, fields), output / "adapter").merge_and_unload()
    model.eval()
    model.config.trained_heads = [task.head]
    offsets = tune_thresholds(task, model, tokenizer, held_out, 2 * micro_batch) if config.tune_thresholds else None
    model.config.hidden_dropout = model.config.classifier_dropout = 0.0  # the finished model is for use
    given = {name: getattr(config, name) for name in DECODING if getattr(config, name) is not None}
    task.finish(model, tokenizer, replace(task.defaults, **given))
    if config.method != "full":
        _copy_head(model, task, output / "adapter" / "adapter_model.safetensors")
    final = output / "final"
    shutil.rmtree(final, ignore_errors=True)
    save_model(model, tokenizer, final)
    counts = {
        "rows": len(train),
        "rows_shown": len(shown),
        "truncated": train_cut,
        "steps": trainer.state.global_step,
        "resolved": {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "label_smoothing": smoothing,
            **({"threshold_offsets": offsets} if offsets else {}),
        },
        "curves": {
            "train_loss": [[row["step"], row["loss"]] for row in history if "loss" in row],
            "validation_loss": [[row["step"], row["eval_loss"]] for row in history if "eval_loss" in row],
        },
        "validation_score": [[row["step"], row[scored]] for row in history if scored in row],
        "training_seconds": round(seconds, 1),
        "training_joules": joules,
        "peak_memory_gib": round(peak_memory_gib(), 3),
    }
    _finish(output, config, inputs, counts)
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"finetune {task.name}: done in {seconds / 60:.1f} minutes; the model is {final}", flush=True)
    return output


def load_base(task: Any, base: Path, fields: dict[str, Any], in_4_bits: bool = False) -> Any:
    """The checkpoint with the task's head, in float32 or, its layers' matrices, in 4 bits.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    import torch

    from septet.modeling import modeling_septet

    options: dict[str, Any] = {}
    if in_4_bits:
        from transformers import BitsAndBytesConfig
        from transformers.utils import is_bitsandbytes_available

        if not is_bitsandbytes_available():
            raise UserError("--method qlora needs bitsandbytes; run: pip install bitsandbytes; or take --method lora")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
            llm_int8_skip_modules=["lm_head", *chain.from_iterable(_NEW_MODULES.values())],
        )
    return getattr(modeling_septet, task.head).from_pretrained(base, dtype=torch.float32, **fields, **options)


# ---- classes of unequal size


def check_balance(task: Any, config: FinetuneConfig) -> None:
    """Raises a `UserError` where an option for classes of unequal size is given to a task that has no classes."""
    given = {
        "--class-weights": config.class_weights != "none",
        "--loss": config.loss != "cross_entropy",
        "--sampling": config.sampling != "none",
        "--tune-thresholds": config.tune_thresholds,
    }
    for option, is_given in given.items():
        if is_given and not task.balances:
            raise UserError(f"{option}: {task.name} has no classes to balance; leave it out, or take classification")
    if task.balances == "several" and (config.loss == "logit_adjusted" or config.sampling != "none"):
        option = "--loss logit_adjusted" if config.loss == "logit_adjusted" else f"--sampling {config.sampling}"
        raise UserError(
            f"{option}: a row of {task.name} has several labels, rare and frequent ones; take --class-weights, --loss focal "
            "or --tune-thresholds"
        )
    if config.sampling_ratio < 1:
        raise UserError(f"--sampling-ratio {config.sampling_ratio:g}: must be 1 (all classes alike) or more")


def resampled(task: Any, train: list[Any], config: FinetuneConfig, base: Path) -> list[Any]:
    """The rows to train on by --sampling."""
    from septet.tasks.harness import imbalance

    if config.sampling == "none":
        return train
    first, again = imbalance.drawn([e.reference for e in train], config.sampling, config.sampling_ratio, config.seed)
    if len(first) == len(train) and not again:
        print(
            f"finetune {task.name}: --sampling {config.sampling} changes nothing, since no class has more than "
            f"--sampling-ratio {config.sampling_ratio:g} times the rows of another",
            flush=True,
        )
    more = [train[i] for i in again]
    if config.sampling == "synthetic":
        texts = imbalance.rewritten([example.input["text"] for example in more], base, config.seed)
        more = [replace(example, input={"text": text}) for example, text in zip(more, texts, strict=True)]
    return [*(train[i] for i in first), *more]


def loss_function(task: Any, train: list[Any], model_config: Any, config: FinetuneConfig) -> Any:
    """The loss by --loss and --class-weights; None for the model's own."""
    from septet.tasks.harness import imbalance

    if config.loss == "cross_entropy" and config.class_weights == "none":
        return None
    counts = task.label_counts(train, model_config)
    weights = None if config.class_weights == "none" else imbalance.class_weights(counts, config.class_weights)
    several = task.balances == "several"
    return imbalance.make_loss(config.loss, counts, weights, config.focal_gamma, several, len(train))


def tune_thresholds(task: Any, model: Any, tokenizer: Any, held_out: list[Any], batch_size: int) -> dict[str, float]:
    """Moves the classifier's bias to the best macro-F1 on validation; returns what was added to each label's score."""
    import torch

    from septet.tasks.harness import imbalance

    scores, _ = task.logits(model, tokenizer, held_out, batch_size)
    offsets = imbalance.tuned_offsets(scores, task.label_matrix(held_out, model.config))
    model.classifier.bias.data += torch.as_tensor(offsets, dtype=torch.float32, device=model.device)
    return {model.config.id2label[n]: round(float(offset), 2) for n, offset in enumerate(offsets)}


def token_replacement(share: float, tokenizer: Any) -> Callable[[Any], Any]:
    """A function of `input_ids` (batch, length) that puts random tokens in the place of `share` of those that are not
    special, drawn anew at each call (SwitchOut, Wang et al. 2018)."""
    import torch

    special = torch.tensor(tokenizer.all_special_ids)
    others = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))

    def replaced(input_ids: Any) -> Any:
        drawn = others[torch.randint(len(others), input_ids.shape)].to(input_ids.device)
        chosen = (torch.rand(input_ids.shape) < share).to(input_ids.device)
        return torch.where(chosen & ~torch.isin(input_ids, special.to(input_ids.device)), drawn, input_ids)

    return replaced


def validation_score(task: Any, tokenizer: Any, held_out: list[Any], batch_size: int, model: Any) -> float:
    """The task's first metric on the validation set, as the model stands."""
    from septet.tasks.harness.metrics import score

    predictions = [row["prediction"] for row in task.predict(model.eval(), tokenizer, held_out, batch_size)]
    references, languages = [e.reference for e in held_out], [e.lang for e in held_out]
    return score(task.family, predictions, references, languages)[task.primary_metric]


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
        "SeptetForCausalLM": TaskType.CAUSAL_LM,
        "SeptetForSequenceClassification": TaskType.SEQ_CLS,
        "SeptetForTokenClassification": TaskType.TOKEN_CLS,
        "SeptetForQuestionAnswering": TaskType.QUESTION_ANS,
    }
    there = {name for name, _ in model.named_children()}
    task_type, new_modules = kinds[task.head], [n for n in _NEW_MODULES.get(task.head, ()) if n in there] or None
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


def _copy_head(model: Any, task: Any, file: Path) -> None:
    """Puts the finished model's head, with its thresholds and its scale, into the adapter's file."""
    from safetensors.torch import load_file, save_file

    heads = tuple(_NEW_MODULES.get(task.head, ()))
    tensors = load_file(file)
    for name in tensors:
        own = name.removeprefix("base_model.model.")
        if own.startswith(heads):
            tensors[name] = model.get_parameter(own).detach().cpu().contiguous()
    save_file(tensors, file, {"format": "pt"})


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
        """Trainer that asks a language-model head for the loss alone (no logits are held) and smooths its labels; that
        replaces some of its input, trains a classifier by another loss if given, and scores the model after each epoch."""

        def __init__(
            self,
            *args: Any,
            label_smoothing: float = 0.0,
            replace_tokens: Any = None,
            loss_function: Any = None,
            score: Any = None,
            primary_metric: str = "",
            writes: bool = False,
            on_epoch: Any = None,
            **kwargs: Any,
        ):
            super().__init__(*args, **kwargs)
            self.replace_tokens, self.loss_function, self.score = replace_tokens, loss_function, score
            self.primary_metric, self.on_epoch = primary_metric, on_epoch
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress)
            self.loss_options = {}
            if writes:
                self.loss_options = {"skip_logits": True, "label_smoothing": label_smoothing, "use_cache": False}
            else:
                self.model_accepts_loss_kwargs = False  # these heads take the mean over the batch themselves

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            options = dict(self.loss_options)
            if self.replace_tokens is not None and model.training:
                inputs = {**inputs, "input_ids": self.replace_tokens(inputs["input_ids"])}
            if self.loss_function is not None and model.training:
                labels = inputs.pop("labels")
                outputs = model(**inputs)
                loss = self.loss_function(outputs.logits.float(), labels)
                return (loss, outputs) if return_outputs else loss
            if options and model.training:
                options["num_items_in_batch"] = num_items_in_batch
            elif options:
                options["label_smoothing"] = 0.0  # held-out losses are comparable whatever training smooths
            outputs = model(**inputs, **options)
            loss = outputs.loss
            if options.get("num_items_in_batch") is not None:
                # A sum over this process's tokens by the number of all; gradients are averaged over processes.
                loss = loss * self.accelerator.num_processes
            return (loss, outputs) if return_outputs else loss

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            found = super().evaluation_loop(*args, **kwargs)
            value = found.metrics["eval_loss"]
            is_finite = math.isfinite(value)
            if is_finite and self.score is not None:  # before the callbacks see the metrics: one of them may stop early
                value = found.metrics[f"eval_{self.primary_metric}"] = self.score(self.model)
            if self.on_epoch is not None:
                self.on_epoch(round(self.state.epoch), value)
            if not is_finite:
                raise UserError(
                    f"the held-out loss is {value} after epoch {self.state.epoch:.3g}: training diverged; give a lower "
                    "--learning-rate"
                )
            return found

    return SeptetTrainer


def _num_processes() -> int:
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def inputs_of(config: FinetuneConfig) -> dict[str, Any]:
    """Path and digest of the base and, unless they are on the Hub, of the sets."""
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
    was, now = (
        {**run["config"], **{f"input {name}": part["sha256"][:12] for name, part in run["inputs"].items()}}
        for run in (before, plain({"config": identity(config), "inputs": inputs}))
    )
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise UserError(
                f"{output}: holds another run ({key} was {was.get(key)!r}, now {now.get(key)!r}); choose another --output"
            )
    if (output / FILE_NAME).is_file():
        print(f"finetune: {output} is finished", flush=True)
        return True
    if not config.resume:
        raise UserError(f"{output}: holds this run, unfinished; pass --resume to go on, or choose another --output")
    return False


def _start(config: FinetuneConfig, inputs: dict[str, Any]) -> None:
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()  # a process that comes late must not find the run of the others unfinished
    if state.is_main_process:
        Path(config.output).mkdir(parents=True, exist_ok=True)
        write_json(config.output / RUN_FILE, plain({"config": identity(config), "inputs": inputs}))


def _finish(output: Path, config: FinetuneConfig, inputs: dict[str, Any], counts: dict[str, Any]) -> None:
    listed = (output / "final").rglob("*")
    write_manifest(output, "finetune", config, inputs, counts, counts["training_seconds"], listed)


def read_run(model: Path) -> dict[str, Any]:
    """The manifest of the run whose `final/` (or `adapter/`) `model` is; {} if it stands alone."""
    path = Path(model).parent / FILE_NAME
    return read_json(path) if path.is_file() else {}


if __name__ == "__main__":
    run_cli(run, FinetuneConfig)
