"""Write the graph of any head for onnxruntime or for LiteRT, TensorFlow's runtime on devices.

The graph takes `input_ids` and `attention_mask` (and `prefix_lengths`, for a prefix-LM), computes in float32 and has no
cache: to generate, it is called with the whole text for each token. ONNX leaves batch and length open; LiteRT's
converter fixes both, at one row of `--sequence-length`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from septet.data.errors import UserError
from septet.data.manifest import Writing, read_json, write_json

MAX_BYTES_IN_ONE_FILE = 1 << 30  # a protobuf ends at 2 GiB; above this the weights lie beside the graph
OPSET = 20


def write_onnx(config: Any, model_class: Any, source_config: Any, out: Writing) -> str:
    """Writes `model.onnx` and runs it on two shapes with padding; returns the closing line."""
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model = loaded(config.model, model_class)
    example, *checks = (inputs(source_config, *shape) for shape in ((2, 8, 4), (1, 5, 0), (3, 17, 8)))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    path = out.path / "model.onnx"
    names = list(outputs_of(model, example))  # logits, or start_logits and end_logits, or what else the head gives
    weight_bytes = 4 * sum(p.numel() for p in model.parameters())
    torch.onnx.export(
        Graph(model),
        kwargs=example,
        f=path,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(example),
        output_names=names,
        dynamic_shapes={name: {axis: axes[axis] for axis in range(value.dim())} for name, value in example.items()},
        external_data=weight_bytes > MAX_BYTES_IN_ONE_FILE,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(given: dict[str, Any]) -> list[Any]:
        return session.run(names, {name: value.numpy() for name, value in given.items()})

    return finish("ONNX", config, model, names, checks, run, out)


def write_litert(config: Any, model_class: Any, source_config: Any, out: Writing) -> str:
    """Writes `model.tflite` and runs it on two padded rows; returns the closing line."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    length = config.sequence_length
    if not 1 <= length <= source_config.max_position_embeddings:
        raise UserError(
            f"--sequence-length {length}: the model reads 1 to {source_config.max_position_embeddings} tokens; "
            "give a length between"
        )
    model = loaded(config.model, model_class)
    example, *checks = (narrow(inputs(source_config, 1, length, padding)) for padding in (0, 0, length // 2))
    names = list(outputs_of(model, example))  # logits, or start_logits and end_logits, or what else the head gives
    path = out.path / "model.tflite"
    litert_torch.convert(Graph(model), sample_kwargs=example).export(str(path))
    runner = Interpreter(str(path)).get_signature_runner()

    def run(given: dict[str, Any]) -> list[Any]:
        outputs = runner(**{name: value.numpy() for name, value in given.items()})
        return [outputs[name] for name in names]

    return finish("LiteRT", config, model, names, checks, run, out)


def loaded(folder: Path, model_class: Any) -> Any:
    """The model in float32 with attention written out, whose masks are finite: a row of padding gives no NaN."""
    from septet.modeling.convert import load

    model = load(model_class, folder, attn_implementation="eager")
    model.config.use_cache = False
    return model


class Graph(torch.nn.Module):
    """The model as a module that takes named tensors and returns a dictionary of tensors."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, input_ids, attention_mask, prefix_lengths=None):
        prefix = {} if prefix_lengths is None else {"prefix_lengths": prefix_lengths}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **prefix)
        return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def inputs(config: Any, batch: int, length: int, padding: int) -> dict[str, Any]:
    """Random token ids (batch, length), padding at the start of the last row, and a prefix where the model reads one."""
    length = min(length, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(padding))
    mask = torch.ones_like(ids)
    mask[-1, : min(padding, length - 1)] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    if config.attention_mode == "prefix" and "SeptetForCausalLM" in (config.architectures or ["SeptetForCausalLM"]):
        given["prefix_lengths"] = torch.full((batch,), length - length // 4)
    return given


def narrow(given: dict[str, Any]) -> dict[str, Any]:
    """The same in int32, the integers that devices have."""
    return {name: value.int() for name, value in given.items()}


def outputs_of(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What the model itself computes."""
    with torch.no_grad():
        return Graph(model)(**given)


def finish(
    runtime: str, config: Any, model: Any, names: list[str], checks: list[dict[str, Any]], run: Any, out: Writing
) -> str:
    """Compares the runtime's outputs with the model's, adds configuration and tokenizer; returns the closing line."""
    from septet.modeling.convert import agreement, copy_tokenizer, one_line

    difference = 0.0
    for given in checks:
        expected = outputs_of(model, given)
        try:
            got = run(given)
        except Exception as error:  # each runtime raises errors of its own
            raise UserError(
                f"{config.model}: {runtime} cannot run its graph ({one_line(error)}); nothing was written"
            ) from error
        for name, value in zip(names, got, strict=True):
            reference, kept = expected[name], given["attention_mask"].bool()
            if reference.shape[:2] == kept.shape:  # what is computed for padding means nothing
                reference, value = reference[kept], torch.from_numpy(value)[kept]  # noqa: PLW2901
            difference = max(difference, agreement(config.model, torch.as_tensor(value), reference))
    # Without code beside it, the configuration is for its labels, lengths and special tokens.
    described = {key: value for key, value in read_json(config.model / "config.json").items() if key != "auto_map"}
    write_json(out.path / "config.json", described)
    copy_tokenizer(config.model, out.path)
    parameters = sum(p.numel() for p in model.parameters())
    shapes = [list(given["input_ids"].shape) for given in checks]
    out.counts.update(num_parameters=parameters, outputs=names, shapes_run=shapes, max_logit_difference=difference)
    return (
        f"{parameters:,} parameters of {type(model).__name__} in float32, no cache; {runtime} on shapes {shapes} "
        f"differs by at most {difference:.2g}"
    )
