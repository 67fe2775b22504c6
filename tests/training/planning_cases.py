"""The gates for TPUs that need none, in a process of their own on JAX: `planning_cases.py OUTPUT.json`.

Tiny steps, of shared blocks and of blocks of their own, are compiled by libtpu for two generations, and one is
exported; what the compiler reports is written as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]
    os.environ["KERAS_BACKEND"] = "jax"

from modeling import Config
from plan_training import Options, abstract_step
from training import planning

# Sizes of which every cut over 4 chips is even.
SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
CONFIGS = {
    "albert": Config(family="albert", sharing="all", embedding_size=16, **SHAPE),
    "structbert": Config(family="bert", **SHAPE),
}
CHOICES: dict[str, dict[str, Any]] = {
    "albert v5e:2x2": {"remat": True, "precision": "float32"},
    "structbert v4:2x2x1": {"objective": "structbert", "max_word_order_per_seq": 3, "fsdp": True},
    "structbert v5e:2x2": {"objective": "structbert", "max_word_order_per_seq": 3, "model_parallel": 2, "fsdp": True}
    | {"scan_layers": True, "remat": True, "gradient_accumulation_steps": 2, "optimizer": "adamw", "ema_decay": 0.9},
}


def options(case: str, folder: Path) -> Options:
    """The flags of a case; its config is written into the folder."""
    family, _, topology = case.partition(" ")
    path = folder / f"{family}.json"
    path.write_text(CONFIGS[family].to_json())
    sizes = {"max_seq_length": 16, "max_predictions_per_seq": 3, "train_batch_size": 16}
    return Options(bert_config_file=str(path), topology=topology, **sizes, **CHOICES[case])


def main(output: str) -> None:
    planning.prepare_environment()
    import jax

    folder = Path(output).parent
    found: dict[str, Any] = {}
    for case in CHOICES:
        chosen = options(case, folder)
        devices = planning.topology_devices(chosen.topology or "")
        step, batch = abstract_step(chosen, devices)
        compiled = planning.compile_step(step, batch, planning.CHIPS[case.split()[1].split(":")[0]].memory_bytes)
        found[case] = dataclasses.asdict(compiled)
    step, batch = abstract_step(options("albert v5e:2x2", folder), jax.devices()[:1])
    exported = jax.export.export(step.train, platforms=["tpu"])(*step.arguments(batch))
    found["albert exported"] = {"platforms": exported.platforms, "text": exported.mlir_module()[:100]}
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
