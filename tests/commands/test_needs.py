"""Every flag that needs another one: refused alone, taken with it, and never by its default."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

from commands.distillation import NEEDS as DISTILLATION
from commands.flags import _flags_of
from commands.needs import check_needs
from commands.techniques import NEEDS as TECHNIQUES

ROOT = Path(__file__).resolve().parent.parent.parent
VERBS = sorted(json.loads((ROOT / "tests/frozen_flags.json").read_text()))
REQUIRED: dict[str, Any] = {"action": "verify"}
# What takes away what a flag needs, where the defaults have it.
WITHOUT: dict[tuple[str, str], dict[str, Any]] = {
    ("train_tokenizer", "min_frequency"): {"model_type": "bpe"},
    ("run_pretraining", "spike_threshold"): {"on_spike": "ignore"},
    ("run_pretraining", "start_warmup_step"): {"num_warmup_steps": 0},
    ("run_pretraining", "poly_power"): {"schedule": "constant"},
    ("run_pretraining", "sentence_loss_weight"): {"objective": "masked_lm"},
    **{
        (verb, flag): without
        for verb in ("run_classifier", "run_generation")
        for flag, without in {
            "seed": {"seeds": (1, 2)},
            "num_seeds": {"seeds": (1, 2)},
            "train_batch_size": {"per_device_train_batch_size": 2, "do_train": True},
            "warmup_proportion": {"num_warmup_steps": 5, "do_train": True},
        }.items()
    },
    ("augment_examples", "top_k"): {"pick": "best"},
    ("predict", "input_format"): {"text": "x"},
    ("create_pretraining_data", "short_seq_prob"): {"objective": "plug"},
    ("run_pretraining", "masked_lm_until"): {"objective": "masked_lm"},
    **{("inspect_records", n): {"action": "repair"} for n in ("vocab_file", "spm_model_file")},
    **{
        ("convert_checkpoint", n): {"format": "tf1"}
        for n in ("model_type", "pytorch_model_bin", "labels", "do_lower_case")
    },
}


def needs(verb: str) -> tuple:
    return (
        *getattr(importlib.import_module(verb), "NEEDS", ()),
        *((*TECHNIQUES, *DISTILLATION) if verb == "run_classifier" else ()),
    )


def other(spec: Any) -> Any:
    if spec.declaration.choices:
        return next(choice for choice in spec.declaration.choices if choice != spec.default)
    one = {bool: spec.default is False, int: 4, float: 0.25 if spec.default == 0.5 else 0.5, str: "x"}[spec.kind]
    return (one,) if spec.many else one


@pytest.mark.parametrize(("verb", "flag"), [(v, flag) for v in VERBS for need in needs(v) for flag in need.flags])
def test_a_flag_without_what_it_needs_is_one_line(verb: str, flag: str):
    options_type = importlib.import_module(verb).Options
    specs = _flags_of(options_type)
    given = {n: (("x",) if s.many else REQUIRED.get(n, "x")) for n, s in specs.items() if s.required}
    plain = options_type(**given)
    check_needs(plain, needs(verb))
    changed = dataclasses.replace(plain, **{flag: other(specs[flag])}, **WITHOUT.get((verb, flag), {}))
    with pytest.raises(UsageError, match=rf"^--{flag}=.* does nothing without .*; give both or neither$") as error:
        check_needs(changed, needs(verb))
    assert "\n" not in str(error.value)
