"""The pictures of a run: its losses, its dynamics, the mixture that it has seen. Without pyplot, for a background thread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from septet.modeling.watch import SPIKES_FILE, MetricsFile, flat

# Okabe & Ito (2008), colours that the colour-blind tell apart, the yellow left out, which is faint on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_POINTS = 1000  # that a line has at most; a picture is some 1,000 pixels wide
_WINDOWS = 50  # into which the run is divided where the mixture is shown
_SOURCES = 20  # shown by name, the largest


def draw(output: Path, wished: Mapping[str, float] | None = None) -> None:
    """Draws what the run's rows hold: `loss.png`, `dynamics.png` and `mixture.png`, each aside and then renamed.

    Args:
        wished: share by `language/source`, as in `PackedDataset.mixture`.
    """
    output = Path(output)
    rows = MetricsFile(output, 0, enabled=False).rows()
    train = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "validation" in row]
    if train or held_out:
        _save(_loss_figure(train, held_out), output / "loss.png")
    if train:
        spikes = MetricsFile(output, 0, enabled=False, name=SPIKES_FILE).rows()
        _save(_dynamics_figure(train, spikes), output / "dynamics.png")
    seen = [row for row in train if row.get("seen")]
    if seen:
        _save(_mixture_figure(seen, wished or {}), output / "mixture.png")


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, list[Any]]:
    from cycler import cycler
    from matplotlib.figure import Figure  # without pyplot, whose state a background thread would share

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axis in axes:
        axis.set_prop_cycle(cycler(linestyle=["-", "-.", ":"]) * cycler(color=_COLOURS))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _over_steps(axis: Any) -> None:
    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _save(figure: Any, path: Path) -> None:
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=110, format="png")
    os.replace(aside, path)


def _line_of(axis: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str | None = None) -> None:
    """A number over the steps; of a long run the means of equal parts, with a band from the least to the largest."""
    import numpy as np

    points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    if len(steps) <= _POINTS:
        axis.plot(steps, values, label=label, linewidth=1.2)
        return
    starts = np.linspace(0, len(steps), _POINTS, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(steps)))
    steps, means = (np.add.reduceat(numbers, starts) / counts for numbers in (steps, values))
    (line,) = axis.plot(steps, means, label=label, linewidth=1.2)
    least, largest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    axis.fill_between(steps, least, largest, color=line.get_color(), alpha=0.25, linewidth=0)


def _loss_figure(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> Any:
    figure, (left, right) = _figure(1, 2, (11, 4))
    kinds = sorted({key for row in train for key in row if key.startswith("loss_")})
    for name in kinds or ["loss"]:
        _line_of(left, train, name, label=name.removeprefix("loss_"))
    left.set_ylabel("training loss (nats per target)")
    measure, unit = "bits_per_byte", "bits per byte"
    if held_out and not any(measure in scores for row in held_out for scores in row["validation"].values()):
        measure, unit = "loss_mlm", "loss (nats per masked token)"
    for lang in sorted({lang for row in held_out for lang in row["validation"]}):
        scores = [{"step": row["step"], **row["validation"].get(lang, {})} for row in held_out]
        _line_of(right, scores, measure, label=lang)
        if len(scores) <= _WINDOWS:
            right.lines[-1].set_marker("o")
            right.lines[-1].set_markersize(3)
    right.set_ylabel(f"held-out {unit}")
    for axis in (left, right):
        _over_steps(axis)
        if axis.lines:
            axis.legend(frameon=False)
    return figure


def _dynamics_figure(train: list[dict[str, Any]], spikes: list[dict[str, Any]]) -> Any:
    numbers = [{"step": row["step"], **flat({k: v for k, v in row.items() if k != "seen"})} for row in train]
    names = {name for row in (numbers[0], numbers[-1]) for name in row}
    rates = sorted(name for name in names if name.startswith("learning_rate"))
    panels = {
        "gradient_norm": "gradient norm\n(before clipping)",
        "learning_rate": "learning rate",
        "tokens_per_second": "tokens per second",
        "utilisation": "utilisation\n(share of the peak)",
        "peak_memory_gib": "peak memory\n(GiB, main process)",
    }
    shown = [name for name in panels if name in names or (name == "learning_rate" and rates)]
    figure, axes = _figure(max(1, len(shown)), 1, (9, 2 * max(1, len(shown))), sharex=True)
    for axis, name in zip(axes, shown, strict=False):
        lines = rates if name == "learning_rate" else [name]
        for line in lines:
            _line_of(axis, numbers, line, label=line.rpartition("/")[2].replace("_", " "))
        axis.set_ylabel(panels[name])
        if len(lines) > 1:
            axis.legend(frameon=False)
        if name == "gradient_norm":
            axis.set_yscale("log")
            for skipped, marker in ((True, "x"), (False, "o")):
                marked = [(row["step"], row["gradient_norm"]) for row in spikes if row.get("skipped", False) == skipped]
                if marked:
                    label = f"spikes, {'skipped' if skipped else 'kept'} ({len(marked):,})"
                    looks = {"color": _COLOURS[4], "marker": marker, "linestyle": "none", "fillstyle": "none"}
                    axis.plot(*zip(*marked, strict=True), label=label, **looks)
            if spikes:
                axis.legend(frameon=False)
        else:
            axis.set_ylim(bottom=0)
    _over_steps(axes[-1])
    return figure


def _mixture_figure(rows: list[dict[str, Any]], wished: Mapping[str, float]) -> Any:
    import numpy as np

    last = rows[-1]["seen"]
    names = sorted(last.keys() | {name for name, share in wished.items() if share}, key=lambda n: (-last.get(n, 0), n))
    ends = np.linspace(0, len(rows), min(len(rows), _WINDOWS) + 1).astype(int)[1:]
    chosen = [int(end) - 1 for end in ends]  # the last row of each stretch
    steps = [rows[place]["step"] for place in chosen]
    counts = np.array([[0.0] * len(names)] + [[rows[p]["seen"].get(name, 0) for name in names] for p in chosen])
    shares = np.diff(counts, axis=0)  # (windows, sources)
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)

    height = max(4.0, 1 + 0.28 * min(len(names), _SOURCES + 1))
    figure, (left, right) = _figure(1, 2, (12, height))
    for lang in sorted({name.split("/")[0] for name in names}):
        mine = [i for i, name in enumerate(names) if name.split("/")[0] == lang]
        (line,) = left.plot(steps, shares[:, mine].sum(axis=1), label=lang, linewidth=1.2)
        if wished:
            wish = sum(wished.get(names[i], 0.0) for i in mine)
            left.axhline(wish, color=line.get_color(), linestyle="--", linewidth=0.8)
    _over_steps(left)
    left.set_ylabel("share of the samples" + (" (dashed: wished)" if wished else ""))
    left.set_ylim(bottom=0)
    left.legend(frameon=False)

    total = max(sum(last.values()), 1)
    bars = [(name, last.get(name, 0) / total, wished.get(name, 0.0)) for name in names]
    if len(bars) > _SOURCES:
        rest = bars[_SOURCES:]
        bars = [
            *bars[:_SOURCES],
            (f"{len(rest)} others", sum(seen for _, seen, _ in rest), sum(wish for _, _, wish in rest)),
        ]
    places = range(len(bars))
    right.barh(places, [seen for _, seen, _ in bars], color=_COLOURS[5], label="seen")
    if wished:
        right.plot([wish for _, _, wish in bars], places, "|", color="black", markersize=12, label="wished")
        right.legend(frameon=False)
    right.set_yticks(places, [name for name, _, _ in bars])
    right.invert_yaxis()
    right.set_xlabel("share of all samples so far")
    return figure
