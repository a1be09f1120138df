"""What each optimizer step of a run holds, in closed form: its samples, its micro-batches and its sequence length.

Nothing is counted while the run goes on, so step 1,000,000 is found as fast as step 10, by any number of processes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from septet.data.errors import UserError

# What the options of a run may be: least and largest.
_BOUNDS = {
    "tokens_per_step": (1, math.inf),
    "micro_batch_size": (1, math.inf),
    "learning_rate": (0, math.inf),
    "warmup_share": (0, 1),
    "decay_share": (0, 1),
    "weight_decay": (0, math.inf),
    "max_gradient_norm": (0, math.inf),
    "mask_probability": (0.01, 0.99),
    "joint_causal_share": (0, 1),
    "z_loss_weight": (0, math.inf),
    "spike_threshold": (1, math.inf),
    "save_every": (1, math.inf),
    "keep": (1, math.inf),
    "keep_every": (0, math.inf),
    "validate_every": (1, math.inf),
    "validation_sequences": (1, math.inf),
    "log_every": (1, math.inf),
}
_LEAST_LENGTH = 16  # tokens of the shortest sequences that a schedule may ask for


@dataclass(frozen=True)
class Steps:
    """A run of `total` optimizer steps; a sample is one sequence of the packed set."""

    total: int
    packed_length: int
    """tokens of a packed sequence"""
    micro_batch_size: int
    """packed sequences that one process reads at once"""
    batches: tuple[tuple[int, int], ...]
    """(first step, micro-batches of a step over all processes), rising from step 0"""
    lengths: tuple[tuple[int, int], ...]
    """(first step, tokens of a sequence as the model reads it), rising from step 0"""

    def micro_batches(self, step: int) -> int:
        """Micro-batches of a step, over all processes."""
        return _at(self.batches, step)

    def sequence_length(self, step: int) -> int:
        """Tokens of a sequence at a step: the packed sequences are cut into pieces of so many."""
        return _at(self.lengths, step)

    def samples(self, step: int) -> int:
        """Packed sequences of a step, over all processes."""
        return self.micro_batches(step) * self.micro_batch_size

    def samples_before(self, step: int) -> int:
        """Packed sequences that the steps before this one read."""
        ends = [first for first, _ in self.batches[1:]] + [math.inf]
        spans = ((min(step, end) - first, count) for (first, count), end in zip(self.batches, ends, strict=True))
        return sum(max(0, int(span)) * count for span, count in spans) * self.micro_batch_size

    def tokens(self, step: int) -> int:
        """Tokens of a step, padding included, over all processes."""
        return self.samples(step) * self.packed_length

    def tokens_before(self, step: int) -> int:
        """Tokens that the steps before this one read, padding included."""
        return self.samples_before(step) * self.packed_length


def _at(schedule: tuple[tuple[int, int], ...], step: int) -> int:
    return next(value for first, value in reversed(schedule) if first <= step)


def plan_steps(config: Any, packed_length: int, num_readers: int) -> Steps:
    """The steps of a `PretrainConfig`.

    Args:
        packed_length: tokens of a sequence of the packed set.
        num_readers: processes that read different samples (all but those that share a matrix by tensor parallelism).

    Raises:
        UserError: neither or both of --steps and --tokens; a number below 1; tokens a step that do not divide into micro-batches; or a
            sequence length that does not divide the packed one.
    """
    if (config.steps is None) == (config.tokens is None):
        raise UserError("give exactly one of --steps and --tokens: how long to train")
    for name, (low, high) in _BOUNDS.items():
        if not low <= getattr(config, name) <= high:
            allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name):g}; it must be {allowed}")
    if config.objective == "joint" and config.micro_batch_size < 2:
        raise UserError("--micro-batch-size 1; joint splits each micro-batch between two readings; give at least 2")
    batches = _schedule("batch-schedule", config.batch_schedule, config.tokens_per_step)
    lengths = _schedule("length-schedule", config.length_schedule, packed_length)
    for _, length in lengths:
        if packed_length % length or length < min(_LEAST_LENGTH, packed_length):
            divisors = [n for n in range(_LEAST_LENGTH, packed_length + 1) if packed_length % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - length), default=packed_length)
            raise UserError(
                f"--length-schedule {length}: packed sequences of {packed_length} tokens are cut into equal pieces of at "
                f"least {_LEAST_LENGTH}; the nearest that does: {nearest}"
            )
    unit = config.micro_batch_size * packed_length * num_readers
    for first, tokens in batches:
        if tokens % unit:
            nearest = max(1, round(tokens / unit)) * unit
            flag = f"--batch-schedule {first}" if config.batch_schedule else "--tokens-per-step"
            raise UserError(
                f"{flag} {tokens:,} is not a multiple of micro batch × sequence length × processes = "
                f"{config.micro_batch_size} × {packed_length} × {num_readers} = {unit:,}; the nearest that is: {nearest:,}"
            )
    per_micro_batch = config.micro_batch_size * packed_length
    counts = tuple((first, tokens // per_micro_batch) for first, tokens in batches)
    total = config.steps if config.steps is not None else _steps_for(config.tokens, batches)
    if total < 1:
        raise UserError(f"{total} steps; give at least 1")
    return Steps(total, packed_length, config.micro_batch_size, counts, lengths)


def _schedule(name: str, given: Mapping[Any, int], default: int) -> tuple[tuple[int, int], ...]:
    """(first step, value) in rising order from step 0 on; keys may be text, as JSON has them."""
    schedule = {0: default, **{int(first): int(value) for first, value in given.items()}}
    for first, value in schedule.items():
        if first < 0 or value < 1:
            raise UserError(f"--{name} {first} {value}; steps count from 0 and values from 1; mend that pair")
    return tuple(sorted(schedule.items()))


def _steps_for(tokens: int, batches: tuple[tuple[int, int], ...]) -> int:
    """The fewest steps that read so many tokens."""
    left = tokens
    for (first, per_step), (end, _) in itertools.pairwise(batches):
        if left <= (end - first) * per_step:
            return first + math.ceil(left / per_step)
        left -= (end - first) * per_step
    return batches[-1][0] + math.ceil(left / batches[-1][1])
