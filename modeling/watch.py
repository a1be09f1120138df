"""Watching a run: its rows, spikes, where a loss stops being finite, utilisation, samples of text.

Nothing here decides a step but `Spikes`, whose state is saved in the checkpoint. What is written lies in the run's
directory: `metrics.jsonl`, `spikes.jsonl`, `samples.jsonl`; `pictures` draws them.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
SPIKES_FILE = "spikes.jsonl"
SAMPLES_FILE = "samples.jsonl"


# ---- rows -------------------------------------------------------------------------------------------------------------


class MetricsFile:
    """Rows of JSON, each with its `step`; rows past the resumed step are dropped on opening.

    Args:
        enabled: whether this process writes; one does.
        name: `METRICS_FILE`, `SPIKES_FILE` or `SAMPLES_FILE`.
    """

    def __init__(self, output: Path, done_steps: int, enabled: bool, name: str = METRICS_FILE):
        self.path, self.enabled = Path(output) / name, enabled
        if enabled and self.path.is_file():
            self._cut(done_steps)

    def _cut(self, done_steps: int) -> None:
        """Drops the rows past a step, and half a row, by looking back from the end: a run has up to 10^6 rows."""
        with open(self.path, "r+b") as stream:
            size, block = stream.seek(0, os.SEEK_END), 1 << 16
            while True:
                stream.seek(max(0, size - block))
                tail = stream.read()
                begin = tail.find(b"\n") + 1 if block < size else 0  # of the first whole row
                place = begin
                for line in tail[begin:].split(b"\n")[:-1]:
                    if _step(line) > done_steps:
                        break
                    place += len(line) + 1
                if place > begin or block >= size:  # a row stays, and so do those before it
                    stream.truncate(max(0, size - block) + place)
                    return
                block *= 8

    def rows(self) -> list[dict[str, Any]]:
        """All rows; a line that a kill cut short, be it within a character, is left out."""
        rows = []
        for line in self.path.read_bytes().split(b"\n") if self.path.is_file() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row."""
        if self.enabled:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # damaged: what comes after it goes too
        return math.inf


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A row's numbers with their path as the name, for a tracker: `validation/en/bits_per_byte`.

    The step, which trackers take apart, and whatever is no number (None, words, lists) are left out.
    """
    numbers: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + key != "step":
            numbers[prefix + key] = float(value)
    return numbers


# ---- the mixture seen -------------------------------------------------------------------------------------------------


class SeenSources:
    """How many samples of each source a run has read so far.

    Args:
        data: the `PackedDataset` that the row numbers belong to.
    """

    def __init__(self, data: Any):
        self.names, self.source_of_row = list(data.sources), data.source_of_row
        self.seen: dict[str, int] = {}

    def of(self, rows: Any) -> dict[str, int]:
        """Samples of each source among the row numbers `rows` (n,); sources without any are left out."""
        import numpy as np

        counts = np.bincount(self.source_of_row[np.asarray(rows)], minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}

    def add(self, rows: Any) -> None:
        """Counts the row numbers `rows` (n,) of a step, those of all processes."""
        for name, count in self.of(rows).items():
            self.seen[name] = self.seen.get(name, 0) + count

    def state(self) -> dict[str, int]:
        """For the checkpoint, and for the row's `seen`."""
        return dict(self.seen)

    def load(self, state: Mapping[str, int]) -> None:
        """Goes on from a checkpoint; a source that the set no longer has keeps its count."""
        self.seen = dict(state)


# ---- spikes -----------------------------------------------------------------------------------------------------------


class Spikes:
    """Says when a step's loss or gradient norm lies far above what the steps before it let one expect.

    After OLMo-core's `SkipStepOptimizer`: a window of 128 steps, 6 standard deviations, and no verdict before half a
    window (20 steps at least) has passed. There a step is compared with the window's mean and standard deviation, and
    while the loss falls steeply both are those of the fall: of 168 faults (harmful batches, disturbed weights) planted
    at steps 64 to 200 of four small runs it saw 97, 19 of them by their loss, where the rule below saw 136 and 130; of
    780 later ones 727 and 733. On the runs' 3,400 healthy steps it spoke twice, this rule once. Here
    - the level is the median of the last eighth of the window, which the fall hardly lifts;
    - the deviation is 1.4826 / sqrt(2) times the median absolute difference of neighbouring steps (the factor that makes
      it the standard deviation of independent normal values), which neither a trend nor a burst of spikes inflates;
    - the norm is compared by its logarithm, since its healthy values are skewed to the right.
    Spikes stay in the window, as there: medians do not mind, and a level that lasts (another mixture, another length of
    sequences) is taken for the new one when it fills half of the last eighth: nine steps of 128, after which skipping
    ends by itself.

    Args:
        threshold: deviations above the level from which a step is a spike.
        window: steps looked back upon.
    """

    # Of the level. Ours, untuned: a run that reads one batch again and again is all but constant.
    LEAST_DEVIATION = 1e-3

    def __init__(self, threshold: float = 6.0, window: int = 128):
        self.threshold, self.window = threshold, window
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []

    def check(self, loss: float, gradient_norm: float) -> str | None:
        """Why this step is a spike, or None; the step joins the window.

        Every process must give the same numbers (reduced, finite), so that all decide alike.

        Args:
            gradient_norm: before it is scaled down.
        """
        reasons = []
        if len(self.losses) >= max(20, self.window // 2):
            level, deviation = self._expected(self.losses)
            deviation = max(deviation, self.LEAST_DEVIATION * abs(level))
            if loss > level + self.threshold * deviation:
                reasons.append(
                    f"loss {loss:.4g} is {(loss - level) / deviation:.1f} deviations of {deviation:.3g} above {level:.4g}"
                )
            level, deviation = self._expected([_log(norm) for norm in self.gradient_norms])
            deviation = max(deviation, self.LEAST_DEVIATION)
            if _log(gradient_norm) > level + self.threshold * deviation:
                reasons.append(
                    f"gradient norm {gradient_norm:.4g} is {(_log(gradient_norm) - level) / deviation:.1f} deviations "
                    f"(a factor of {math.exp(deviation):.3g} each) above {math.exp(level):.4g}"
                )
        self.losses = [*self.losses, float(loss)][-self.window :]
        self.gradient_norms = [*self.gradient_norms, float(gradient_norm)][-self.window :]
        return "; ".join(reasons) or None

    def _expected(self, values: list[float]) -> tuple[float, float]:
        """Level and standard deviation that the next value should have."""
        differences = [abs(after - before) for before, after in pairwise(values)]
        return statistics.median(values[-max(1, self.window // 8) :]), 1.4826 / 2**0.5 * statistics.median(differences)

    def state(self) -> dict[str, list[float]]:
        """For the checkpoint; floats come back from JSON exactly."""
        return {"losses": list(self.losses), "gradient_norms": list(self.gradient_norms)}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Goes on from a checkpoint."""
        self.losses, self.gradient_norms = list(state["losses"]), list(state["gradient_norms"])


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))  # a norm of 0 is no spike


def spike_row(
    step: int, reason: str, loss: float, gradient_norm: float, rows: Any, sources: Mapping[str, int], skipped: bool
) -> dict[str, Any]:
    """A row of `spikes.jsonl`: what `Spikes.check` said, and the batch that it said it of.

    Args:
        step: as `metrics.jsonl` counts: the steps done when this one is.
        rows: (n,) row numbers of the batch in the packed set.
        sources: samples of each source in it (`SeenSources.of`).
        skipped: whether the optimizer left the step out.
    """
    return {
        "step": step,
        "reason": reason,
        "loss": loss,
        "gradient_norm": gradient_norm,
        "skipped": skipped,
        "sources": dict(sources),
        "rows": [int(row) for row in rows],
    }


# ---- what is not finite -----------------------------------------------------------------------------------------------


def first_not_finite(losses: Any, *micro_batches: Any) -> str:
    """Where a loss or gradient that is not finite comes from, as the end of a sentence.

    The micro-batches are read again without gradients. The first module, in the order of the forward pass, that turns
    out something not finite is named; or else the first parameter that is not finite; or else it is the loss alone; or
    else the parameter whose gradient is not finite and which the backward pass reached first. The answer is the same on
    all processes, which must call this together, each with as many micro-batches.

    Gradients must not have been clipped: a norm that is not finite spoils all of them.

    Args:
        losses: the prepared `PretrainingLosses`; its parameters may be DTensors.
        micro_batches: `Inputs` of the step, on the device.
    """
    import torch

    # Before the forward pass, after which FSDP2 leaves the root's parameters gathered and without their gradients.
    named = [(_plain_name(name), parameter) for name, parameter in losses.named_parameters()]
    if not named:
        return "the loss; there is no parameter"
    device = _local(named[0][1]).device
    flags = torch.tensor([[_not_finite(p), p.grad is not None and _not_finite(p.grad)] for _, p in named])
    bad_value, bad_gradient = _reduced(flags.int(), device, "MAX").bool().T.tolist()

    calls: list[str] = []
    first: list[int] = []
    loss_is_finite = True

    def look(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if not first and any(_not_finite(tensor) for tensor in _tensors(output)):
                first.append(len(calls))
            calls.append(name)

        return hook

    modules = [(_plain_name(name), module) for name, module in losses.named_modules()]
    # Not at the output head, which with a hook would hold all logits at once, where there may be no memory for them.
    watched = [(name, module) for name, module in modules if name and not name.endswith("lm_head")]
    hooks = [module.register_forward_hook(look(name)) for name, module in watched]
    try:
        # A compiled module would neither call hooks that came later nor those within it.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for inputs in micro_batches:  # all of them, as on the other processes
                loss_is_finite &= not any(map(_not_finite, _tensors(losses(inputs))))
    finally:
        for hook in hooks:
            hook.remove()
    nowhere = torch.iinfo(torch.int64).max
    # The order of the calls is the same everywhere, and the earliest is named.
    place = int(_reduced(torch.tensor(first or [nowhere]), device, "MIN"))
    loss_is_finite = bool(_reduced(torch.tensor([loss_is_finite]).int(), device, "MIN"))

    if place != nowhere:
        own = [name for (name, _), bad in zip(named, bad_value, strict=True) if bad and _parent(name) == calls[place]]
        because = f", and neither is its parameter {own[0]}" if own else ""
        return f"{calls[place]} is the first module whose output is not finite{because}"
    values = [name for (name, _), bad in zip(named, bad_value, strict=True) if bad]
    if values:
        return f"all modules' outputs are finite, the parameter {values[0]} is not"
    if not loss_is_finite:  # and so all gradients are spoilt
        return "only the loss is not finite; all modules' outputs and all parameters are"
    # The backward pass goes from the last parameter to the first and spoils all that it reaches afterwards.
    spoilt = [name for (name, _), bad in zip(named, bad_gradient, strict=True) if bad]
    if spoilt:
        others = f" (and {len(spoilt) - 1} more after it in the backward pass)" if len(spoilt) > 1 else ""
        return f"all modules' outputs are finite, the gradient of {spoilt[-1]} is not{others}"
    return "read again, the loss and all modules' outputs are finite, and so are parameters and gradients"


def _plain_name(name: str) -> str:
    """A module's or parameter's name without the wrappers of DDP, `torch.compile` and activation checkpointing."""
    name = f".{name}."
    for wrapper in ("_orig_mod", "_checkpoint_wrapped_module"):
        name = name.replace(f".{wrapper}.", ".")
    return name.removeprefix(".module.").strip(".")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _local(tensor: Any) -> Any:
    """A DTensor's part on this process; another tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _not_finite(tensor: Any) -> bool:
    local = _local(tensor.detach())
    return local.is_floating_point() and not bool(local.isfinite().all())


def _tensors(output: Any) -> Iterator[Any]:
    """The tensors in a module's output: itself, or those in tuples, lists and mappings (transformers' outputs)."""
    if hasattr(output, "is_floating_point"):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _reduced(tensor: Any, device: Any, operation: str) -> Any:
    """The tensor's minimum or maximum over all processes."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    tensor = tensor.to(device)
    dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
    return tensor.cpu()


# ---- memory and utilisation -------------------------------------------------------------------------------------------


def peak_memory_gib() -> float:
    """The process's peak: resident memory on a CPU, allocated memory on an accelerator."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# The peak of a variant differs (an H100 for PCIe has three quarters of it), so a device is known by its whole name.
_PLAN_NAME = {
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-PCIE-40GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA GeForce RTX 4090": "RTX4090",
}


def peak_flops(device: Any, mixed_precision: str) -> float | None:
    """Operations a second that one process could reach, or None where it is not known.

    On a GPU the data sheet's, of dense products in 16 bits (`plan.DEVICES`); unknown in float32, whose peak depends on
    whether TF32 is allowed, and in fp8. On a CPU it is measured, once: products of float32 matrices on the process's
    threads, whatever the training's precision.

    Args:
        device: a `torch.device`.
        mixed_precision: Accelerate's name: "no", "bf16", "fp16", "fp8".
    """
    import torch

    if device.type == "cpu":
        return _measured_cpu_flops(torch.get_num_threads())
    if device.type != "cuda" or mixed_precision not in ("bf16", "fp16"):
        return None
    from septet.modeling.plan import DEVICES

    known = DEVICES.get(_PLAN_NAME.get(torch.cuda.get_device_name(device), ""))
    return known.peak_tflops * 1e12 if known else None


@cache
def _measured_cpu_flops(num_threads: int, size: int = 1024, seconds: float = 0.2) -> float:
    """The best of some 0.2 s of float32 products of 1024 x 1024, which is 2 x 1024^3 operations each."""
    import torch

    matrix, out = torch.full((size, size), 0.5), torch.empty(size, size)
    torch.mm(matrix, matrix, out=out)  # threads start, pages are mapped
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(matrix, matrix, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def utilisation(
    tokens_per_second: float, flops_per_token: float, num_processes: int, device: Any, mixed_precision: str
) -> float | None:
    """Model FLOP utilisation (Chowdhery et al. 2022): operations that the model needs, as a share of `peak_flops`."""
    peak = peak_flops(device, mixed_precision)
    return tokens_per_second * flops_per_token / (num_processes * peak) if peak else None


# ---- samples of text --------------------------------------------------------------------------------------------------


def first_tokens(data: Any, num_tokens: int = 32) -> dict[str, list[int]]:
    """The first tokens of the first document of each language, for `text_samples` and `filled_masks`.

    Args:
        data: a `PackedDataset`, the validation split.
        num_tokens: at most; a shorter document gives all but its last token.
    """
    first_row: dict[str, int] = {}
    for name, rows in data.sources.items():
        lang = name.split("/")[0]
        first_row[lang] = min(first_row.get(lang, int(rows[0])), int(rows[0]))  # row numbers ascend
    batch = data.read(list(first_row.values()))
    lengths = [max(1, min(num_tokens, int(lengths[0]) - 1)) for lengths in batch.document_lengths]
    return {lang: batch.input_ids[i, : lengths[i]].tolist() for i, lang in enumerate(first_row)}


def text_samples(
    losses: Any, tokenizer: Any, prompts: Mapping[str, Sequence[int]], new_tokens: int, device: Any
) -> dict[str, str]:
    """What the model writes after each prompt, taking the likeliest token each time; without the prompt.

    All processes call it together. Each token is one whole forward pass of `losses` over all prompts at once, as many
    for every process, so that sharded parameters are gathered in step; no random number is drawn.

    Args:
        losses: the prepared `PretrainingLosses`: `losses(input_ids=, attention_mode=)` gives logits (n, T, V).
        prompts: token ids by language, none of them empty; with `new_tokens` they fit the model's sequence length.
    """
    import torch

    lengths = torch.tensor([len(prompt) for prompt in prompts.values()])
    # One shape from the first pass to the last, or a compiled model would be compiled for each. What stands to the
    # right of a token does not reach it.
    ids = torch.full((len(prompts), int(lengths.max()) + new_tokens), tokenizer.pad_token_id)
    for row, prompt in zip(ids, prompts.values(), strict=True):
        row[: len(prompt)] = torch.as_tensor(prompt)
    ids, lengths, rows = ids.to(device), lengths.to(device), torch.arange(len(prompts), device=device)
    with _evaluating(losses):
        for place in range(new_tokens):
            logits = _whole(losses(input_ids=ids, attention_mode="causal"))
            ids[rows, lengths + place] = logits[rows, lengths + place - 1].argmax(-1)
    written = {}
    for lang, row, start in zip(prompts, ids.tolist(), lengths.tolist(), strict=True):
        tokens = row[start : start + new_tokens]
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else new_tokens
        written[lang] = tokenizer.decode(tokens[:end])
    return written


def filled_masks(
    losses: Any, tokenizer: Any, vocabulary: Any, texts: Mapping[str, Sequence[int]], device: Any
) -> dict[str, str]:
    """Each text with every sixth word masked (near the 15 % of training), as `[word -> what the model puts there]`.

    All processes call it together; one forward pass.

    Args:
        losses: as in `text_samples`.
        vocabulary: the tokenizer's `objectives.Vocabulary`, whose units of masking the words are.
        texts: token ids by language; all are cut to the length of the shortest, since padding would be read.
    """
    import numpy as np
    import torch

    from septet.modeling.objectives import unit_starts

    length = min(map(len, texts.values()))
    ids = np.array([list(text[:length]) for text in texts.values()])
    starts = unit_starts(ids, np.broadcast_to(np.arange(length), ids.shape), vocabulary)
    hidden, units = ids.copy(), []
    for row, begins in enumerate(starts):
        parts = np.split(np.arange(length), np.flatnonzero(begins)[1:])
        shown = [
            b"".join(vocabulary.pieces[token] for token in ids[row, part]).decode(errors="replace") for part in parts
        ]
        words = [number for number, text in enumerate(shown) if any(map(str.isalnum, text))]
        for number in words[2::6]:
            hidden[row, parts[number]] = vocabulary.mask_token_id
        units.append((parts, shown, set(words[2::6])))
    with _evaluating(losses):
        logits = _whole(losses(input_ids=torch.from_numpy(hidden).to(device), attention_mode="bidirectional"))
        found = logits.argmax(-1).tolist()
    filled = {}
    for lang, guessed, (parts, shown, asked) in zip(texts, found, units, strict=True):
        for number in asked:
            guess = tokenizer.decode([guessed[place] for place in parts[number]]).strip()
            word = shown[number].strip()
            shown[number] = shown[number].replace(word, f"[{word} -> {guess}]")
        filled[lang] = "".join(shown)
    return filled


def _whole(logits: Any) -> Any:
    """Logits that tensor parallelism may have left divided by vocabulary."""
    return logits.full_tensor() if hasattr(logits, "full_tensor") else logits


class _evaluating:
    """Evaluation mode without gradients; the mode of before comes back."""

    def __init__(self, losses: Any):
        import torch

        self.losses, self.no_grad = losses, torch.no_grad()

    def __enter__(self) -> None:
        self.training = self.losses.training
        self.losses.eval()
        self.no_grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.no_grad.__exit__(*error)
        self.losses.train(self.training)
