"""Whether one learning rate serves every width and depth: sweeps with the rule of `septet.modeling.optim`, and without.

    python benchmarks/transfer.py --data build/packed --widths 96 192 384 --steps 400

Models of `nano`'s proportions (heads of 32, one key/value head for three, feed-forward 8/3 of the width), of each width
in turn, and of each depth in `--depths` at 192 wide, read the same sequences in the same order: causal, "wsd". Under
"rule" each group of parameters has the rate that `learning_rate_scale` gives it; under "rates-only" too, but the layers'
matrices start with `initializer_range` at every width; under "none" all groups have moreover the same rate.

With `--coordinates` nothing is swept: ten steps are taken at a constant rate, and what is reported is by how much (root mean
square) the hidden states after each layer have changed since the start, and the logits (the coordinate check of Yang et
al. 2022). Under a rule that transfers they change alike at every width.

Reported for each shape are the mean training loss of the last tenth of the steps by rate, the best rate (the lowest point
of a parabola around the lowest loss), and the cost, in nats, of the rate that is best for the reference shape (`nano`'s, or
the first) against this shape's own best. A rule transfers when the best rate stays and the cost is near 0. A run that
diverges counts as a uniform guess.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from pathlib import Path
from typing import Any

REFERENCE = (192, 4)  # `nano`'s width and layers, where every rule is the same


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/packed"), help="a packed set")
    parser.add_argument("--output", type=Path, default=Path("build/transfer"), help="folder for transfer.json")
    parser.add_argument("--widths", type=int, nargs="*", default=[96, 192, 384], help="multiples of 96")
    parser.add_argument("--layers", type=int, default=4, help="of the models in --widths")
    parser.add_argument("--depths", type=int, nargs="*", default=[], help="layers, at 192 wide")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2], help="peak learning rates"
    )
    parser.add_argument("--rules", nargs="+", choices=("rule", "rates-only", "none"), default=["rule", "none"])
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--sequences", type=int, default=16, help="sequences a step")
    parser.add_argument("--sequence-length", type=int, default=128, help="a divisor of the packed set's")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each; their mean counts")
    parser.add_argument(
        "--coordinates", action="store_true", help="the coordinate check, at 3e-3, instead of the sweep"
    )
    parser.add_argument("--untied", action="store_true", help="an output matrix of its own")
    return parser.parse_args(arguments)


def shape(options: argparse.Namespace, width: int, layers: int, counts: dict[str, Any]) -> Any:
    """`nano` made wider or deeper: everything in proportion to the width but the size of a head."""
    from septet.modeling.presets import preset_config

    heads = width // 32
    return preset_config(
        "nano",
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        vocab_size=counts["vocab_size"],
        max_position_embeddings=options.sequence_length,
        tie_word_embeddings=not options.untied,
        **counts["special_ids"],
    )


def built(options: argparse.Namespace, data: Any, width: int, layers: int, rule: str, rate: float, seed: int) -> Any:
    """A new model and its optimizer."""
    import torch

    from septet.modeling.modeling_septet import REFERENCE_WIDTH, SeptetForCausalLM
    from septet.modeling.optim import make_optimizer

    torch.manual_seed(seed)
    model = SeptetForCausalLM(shape(options, width, layers, data.manifest["counts"]))
    optimizer = make_optimizer(options.optimizer, model, rate, options.weight_decay)
    for group in optimizer.param_groups:
        if rule != "rule" and group["role"] == "matrices":
            torch._foreach_mul_([p.data for p in group["params"]], (width / REFERENCE_WIDTH) ** 0.5)
        if rule == "none":
            group["weight_decay"] *= group["lr"] / rate
            group["lr"] = rate
    return model, optimizer


def step(options: argparse.Namespace, data: Any, model: Any, optimizer: Any, number: int) -> float:
    """One step, unless the loss is not finite; the loss, in nats a token."""
    import numpy as np
    import torch

    from septet.modeling.modeling_septet import IGNORE_INDEX
    from septet.modeling.objectives import Inputs, PretrainingLosses, causal_labels

    rows = max(1, options.sequences * options.sequence_length // data.sequence_length)
    batch = data.batch(number * rows + np.arange(rows)).cut(options.sequence_length)
    labels = causal_labels(batch.input_ids, batch.position_ids, batch.num_tokens)
    arrays = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "labels": labels}
    inputs = Inputs(causal={name: torch.from_numpy(array) for name, array in arrays.items()})
    loss = PretrainingLosses(model)(inputs)["causal"] / (labels != IGNORE_INDEX).sum()
    if math.isfinite(loss.item()):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def train(options: argparse.Namespace, data: Any, width: int, layers: int, rule: str, rate: float, seed: int) -> float:
    """The mean loss of the last tenth of the steps, in nats a token."""
    from septet.modeling.optim import make_schedule

    model, optimizer = built(options, data, width, layers, rule, rate, seed)
    schedule = make_schedule("wsd", optimizer, math.ceil(0.05 * options.steps), options.steps)
    last, guess = [], math.log(model.config.vocab_size)
    for number in range(options.steps):
        loss = step(options, data, model, optimizer, number)
        if not math.isfinite(loss):
            return guess
        schedule.step()
        if number >= min(0.9 * options.steps, options.steps - 1):
            last.append(loss)
    return min(guess, sum(last) / len(last))


def coordinates(options: argparse.Namespace, data: Any, width: int, layers: int, rule: str) -> list[float]:
    """How much the embeddings, the hidden states after each layer but the last, the normed last ones, and the logits of a
    row that is not read meanwhile change in ten steps."""
    import numpy as np
    import torch

    model, optimizer = built(options, data, width, layers, rule, 3e-3, seed=0)
    row = data.batch(np.array([len(data) - 1])).cut(options.sequence_length)
    inputs = {"input_ids": torch.from_numpy(row.input_ids), "position_ids": torch.from_numpy(row.position_ids)}

    @torch.no_grad()
    def states() -> list[Any]:
        output = model(**inputs, output_hidden_states=True)
        return [*output.hidden_states, output.logits]

    before = states()
    for number in range(10):
        step(options, data, model, optimizer, number)
    return [(new - old).square().mean().sqrt().item() for new, old in zip(states(), before, strict=True)]


def best_rate(rates: list[float], losses: list[float]) -> float:
    """The lowest point of the parabola through the lowest loss and its neighbours, over log(rate); the ends stay as they are."""
    lowest = min(range(len(rates)), key=losses.__getitem__)
    if lowest in (0, len(rates) - 1):
        return rates[lowest]
    around = slice(lowest - 1, lowest + 2)
    (x0, x1, x2), (y0, y1, y2) = map(math.log, rates[around]), losses[around]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curve = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * curve)) if curve > 0 else rates[lowest]


def sweep(
    options: argparse.Namespace, data: Any, shapes: list[tuple[int, int]], rule: str, known: dict[tuple[int, int], Any]
) -> list[dict[str, Any]]:
    """A row for each shape: losses by rate, the best rate, and the cost of the reference's best. `known`: losses of shapes
    for which all rules are the same."""
    rates = sorted(options.rates)
    rows = []
    for width, layers in shapes:
        started, losses = time.perf_counter(), known.get((width, layers), [])
        for rate in rates[len(losses) :]:
            runs = [train(options, data, width, layers, rule, rate, seed) for seed in range(options.seeds)]
            losses.append(sum(runs) / len(runs))
        if (width, layers) == REFERENCE:
            known[REFERENCE] = losses
        rows.append(
            {
                "rule": rule,
                "width": width,
                "layers": layers,
                "losses": losses,
                "best_rate": best_rate(rates, losses),
                "seconds": time.perf_counter() - started,
            }
        )
        print(table_row(rows[-1]), flush=True)
    reference = next((row for row in rows if (row["width"], row["layers"]) == (REFERENCE[0], options.layers)), rows[0])
    kept = min(range(len(rates)), key=reference["losses"].__getitem__)
    for row in rows:
        row["cost"] = row["losses"][kept] - min(row["losses"])
    return rows


def table_row(row: dict[str, Any]) -> str:
    losses = " | ".join(f"{loss:.3f}" for loss in row["losses"])
    cost = f"{row['cost']:.3f}" if "cost" in row else ""
    return f"| {row['rule']} | {row['width']} | {row['layers']} | {losses} | {row['best_rate']:.1e} | {cost} |"


def main() -> None:
    options = parse()
    import torch

    from septet.data.manifest import write_json
    from septet.data.packed import PackedDataset

    data = PackedDataset(options.data, "train", seed=0)
    shapes = [(width, options.layers) for width in options.widths] + [(192, layers) for layers in options.depths]
    shapes = list(dict.fromkeys(shapes))
    if options.coordinates:
        print("| rule | width | layers | embeddings | after each layer | logits |")
        for rule in options.rules:
            for width, layers in shapes:
                changes = " | ".join(f"{change:.3f}" for change in coordinates(options, data, width, layers, rule))
                print(f"| {rule} | {width} | {layers} | {changes} |", flush=True)
        return
    known: dict[tuple[int, int], Any] = {}
    rows = [row for rule in options.rules for row in sweep(options, data, shapes, rule, known)]
    rates = " | ".join(f"{rate:.1e}" for rate in sorted(options.rates))
    print(f"\n| rule | width | layers | {rates} | best rate | cost of the reference's best |")
    print("|---|" + "---|" * (len(options.rates) + 4))
    print("\n".join(table_row(row) for row in rows))
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.processor()}
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "transfer.json", {"settings": settings, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
