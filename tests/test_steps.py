"""The closed forms of a run's steps against counting step by step, on random schedules."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from septet.data.errors import UserError
from septet.modeling.pretrain import PretrainConfig
from septet.modeling.steps import plan_steps

LENGTH, MICRO_BATCH, READERS = 64, 2, 2
UNIT = LENGTH * MICRO_BATCH * READERS


def config(**fields) -> PretrainConfig:
    settings = {"steps": 50, "tokens_per_step": UNIT, "micro_batch_size": MICRO_BATCH}
    return PretrainConfig(data=Path("nowhere"), **{**settings, **fields})


def random_schedules(seed: int) -> tuple[dict[int, int], dict[int, int], int]:
    """Tokens a step and tokens a sequence from a step on, neither in rising order, and the tokens before any."""
    draw = random.Random(seed)
    firsts = draw.sample(range(60), draw.randint(0, 5))
    batches = {first: UNIT * draw.randint(1, 6) for first in firsts}
    lengths = {first: draw.choice([16, 32, 64]) for first in draw.sample(range(60), draw.randint(0, 4))}
    return batches, lengths, UNIT * draw.randint(1, 6)


def value_at(schedule: dict[int, int], default: int, step: int) -> int:
    """Walks through the steps, as a loop would that changes its value when its schedule says so."""
    for now in range(step + 1):
        default = schedule.get(now, default)
    return default


@pytest.mark.parametrize("seed", range(20))
def test_closed_forms_are_what_counting_gives(seed: int) -> None:
    batches, lengths, tokens_per_step = random_schedules(seed)
    fields = {"batch_schedule": batches, "length_schedule": lengths, "tokens_per_step": tokens_per_step}
    steps = plan_steps(config(**fields), LENGTH, READERS)
    assert steps.total == 50
    tokens = 0
    for step in range(70):  # beyond the end, too
        assert steps.tokens_before(step) == tokens
        assert steps.samples_before(step) == tokens // LENGTH
        now = value_at(batches, tokens_per_step, step)
        assert steps.tokens(step) == now and steps.samples(step) == now // LENGTH
        assert steps.micro_batches(step) * MICRO_BATCH == steps.samples(step)
        assert steps.micro_batches(step) % READERS == 0
        assert steps.sequence_length(step) == value_at(lengths, LENGTH, step)
        tokens += now


@pytest.mark.parametrize("seed", range(20))
def test_tokens_become_the_fewest_steps_that_read_them(seed: int) -> None:
    batches, _, tokens_per_step = random_schedules(seed)
    tokens = random.Random(-seed).randint(1, 100 * UNIT)
    fields = {"batch_schedule": batches, "tokens_per_step": tokens_per_step, "steps": None, "tokens": tokens}
    steps = plan_steps(config(**fields), LENGTH, READERS)
    read = needed = 0
    while read < tokens:
        read += value_at(batches, tokens_per_step, needed)
        needed += 1
    assert steps.total == needed
    assert steps.tokens_before(steps.total) >= tokens > steps.tokens_before(steps.total - 1)


def test_samples_do_not_depend_on_who_reads_them() -> None:
    fields = {"batch_schedule": {0: 4 * UNIT, 10: 8 * UNIT}, "micro_batch_size": 1}
    alone, many = (plan_steps(config(**fields), LENGTH, readers) for readers in (1, 8))
    assert [alone.samples_before(step) for step in range(30)] == [many.samples_before(step) for step in range(30)]


def test_a_late_step_is_found_without_the_steps_before_it() -> None:
    steps = plan_steps(config(steps=10**9, batch_schedule={1000: 3 * UNIT}), LENGTH, READERS)
    assert steps.tokens_before(10**9) == 1000 * UNIT + (10**9 - 1000) * 3 * UNIT
    assert steps.samples_before(np.int64(10**6)) * LENGTH == steps.tokens_before(10**6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": None}, "exactly one of --steps and --tokens"),
        ({"tokens": 1}, "exactly one of --steps and --tokens"),
        ({"steps": 0}, "0 steps; give at least 1"),
        ({"micro_batch_size": 0}, "--micro-batch-size 0; it must be at least 1"),
        ({"save_every": 0}, "--save-every 0; it must be at least 1"),
        ({"tokens_per_step": UNIT + 1}, r"257 is not a multiple .* 2 × 64 × 2 = 256; the nearest that is: 256"),
        ({"batch_schedule": {5: 3 * UNIT - 1}}, r"767 is not a multiple .*the nearest that is: 768"),
        ({"batch_schedule": {-1: UNIT}}, "--batch-schedule -1 256; steps count from 0"),
        ({"length_schedule": {3: 0}}, "--length-schedule 3 0; steps count from 0 and values from 1"),
        (
            {"length_schedule": {3: 48}},
            r"--length-schedule 48: packed sequences of 64 tokens are cut .*the nearest that does: 32",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_steps(config(**fields), LENGTH, READERS)
