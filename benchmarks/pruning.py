"""Measures what stripping brings: a classifier as it is, with heads and units at 0, and without them, side by side.

python3 -m benchmarks.pruning prints a table and writes it to benchmarks/results. All three answer the same random
tokens in turns in one process; weights are random, since times do not depend on them, and the last heads and units of a
layer are the ones that leave. Outputs of pruned and stripped model are compared.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import ROOT
from benchmarks.distillation import take_turns
from commands.flags import flag, run
from ground.files import write_atomically

if TYPE_CHECKING:
    import numpy as np

    from modeling.config import Config

FULL, PRUNED, STRIPPED = "full", "pruned", "stripped"
_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a model as it is, pruned and stripped, side by side."""

    backend: str = flag("tensorflow", help="of all", choices=("tensorflow", "jax"))
    model: str = flag("albert_config/bert_config.json", help="config of the model")
    sparsity: float = flag(0.5, help="share of heads and units of every layer that are 0", minimum=0, maximum=0.99)
    batch_size: int = flag(1, help="texts side by side", unit="examples", minimum=1)
    max_seq_length: int = flag(64, help="of every text", unit="tokens", minimum=4)
    passes: int = flag(4, help="of a turn", unit="passes", minimum=1)
    rounds: int = flag(5, help="turns of each, after one that nobody measures", minimum=1)
    results: str = flag("benchmarks/results/pruning", help="where to write, without .json and .md")


def main(options: Options) -> int:
    """Measure, print the table and write it."""
    os.environ["KERAS_BACKEND"] = options.backend
    from conversion.stripping import strip
    from modeling.config import load_config

    config = load_config(ROOT / options.model)
    weights = {FULL: random_weights(config)}
    weights[PRUNED] = pruned(config, weights[FULL], options.sparsity)
    small, left = strip(config, weights[PRUNED])
    configs = {FULL: config, PRUNED: config, STRIPPED: small}
    weights[STRIPPED] = {name: numbers(value) for name, value in left.items()}
    programs = {name: Program(configs[name], weights[name], options) for name in configs}
    outputs = {name: program.answer() for name, program in programs.items()}
    seconds = take_turns({name: program.turn for name, program in programs.items()}, options.rounds)
    result = {
        "machine": f"{len(os.sched_getaffinity(0))} cores",
        "options": vars(options),
        "parameters": {name: sum(value.size for value in each.values()) for name, each in weights.items()},
        "seconds_per_pass": {name: [each / options.passes for each in found] for name, found in seconds.items()},
        "difference": float(abs(outputs[PRUNED] - outputs[STRIPPED]).max()),
    }
    table = as_markdown(result)
    path = ROOT / options.results
    write_atomically(path.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    write_atomically(path.with_suffix(".md"), table + "\n")
    print(table)
    return 0


def numbers(value: Any) -> np.ndarray:
    """Return a tensor that may be lazy as an array."""
    import numpy as np

    return np.asarray(value)


def random_weights(config: Config) -> dict[str, np.ndarray]:
    """Return weights of a classifier by name."""
    import numpy as np

    from modeling import ClassifierModel, variable_shapes

    shapes, random = variable_shapes(lambda: ClassifierModel(config, _CLASSES)), np.random.default_rng(0)
    return {name: 0.02 * random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def pruned(config: Config, weights: Mapping[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    """Return the weights with the last heads and units of every layer at 0."""
    found = dict(weights)
    head_size = config.hidden_size // config.num_attention_heads
    for name, value in weights.items():
        if "/encoder/" in name and name.endswith("/output/kernel"):
            size = head_size if "/attention_" in name else 1
            kept = max(1, round((1 - sparsity) * (len(value) // size))) * size
            found[name] = value.copy()
            found[name][kept:] = 0
    return found


class Program:
    """A model with its weights, which answers a batch of random tokens in compiled passes."""

    def __init__(self, config: Config, weights: Mapping[str, np.ndarray], options: Options):
        import numpy as np

        from ground.tensors import named_variables
        from modeling import ClassifierModel

        self._model, self._passes = ClassifierModel(config, _CLASSES), options.passes
        for name, variable in named_variables(self._model).items():
            variable.assign(weights[name])
        shape = (options.batch_size, options.max_seq_length)
        ids = np.random.default_rng(1).integers(0, config.vocab_size, shape).astype(np.int32)
        self._features = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": 0 * ids}
        self._call = compiled(self._model, options.backend)

    def answer(self) -> np.ndarray:
        """Return the logits [B, C]."""
        import numpy as np

        return np.asarray(self._call(self._features))

    def turn(self) -> None:
        """Answer as often as a turn has passes."""
        for _ in range(self._passes):
            self.answer()


def compiled(model: Any, backend: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return features -> logits as a program of the backend."""

    def logits(features: Mapping[str, Any]) -> Any:
        return model(features, training=False, scores_only=True)["logits"]

    if backend == "jax":
        import jax

        return jax.jit(logits)
    import tensorflow as tf

    return tf.function(logits, autograph=False)


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table of a result."""
    options, seconds = result["options"], result["seconds_per_pass"]
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    lines = [
        f"{options['model']}, {options['sparsity']:.0%} of heads and units at 0; {options['batch_size']} texts of "
        f"{options['max_seq_length']} tokens; {options['backend']}, {result['machine']}, float32.",
        "",
        "| | parameters | ms a pass (least to most) | to full |",
        "|---|---|---|---|",
    ]
    for name, found in seconds.items():
        low, high = 1e3 * min(found), 1e3 * max(found)
        lines.append(
            f"| {name} | {result['parameters'][name]:,} | {1e3 * middle[name]:,.1f} ({low:,.1f} to {high:,.1f}) | "
            f"{middle[name] / middle[FULL]:.2f} |"
        )
    return "\n".join([*lines, "", f"Logits of {PRUNED} and {STRIPPED} differ by {result['difference']:.1e} at most."])


if __name__ == "__main__":
    run(main, Options)
