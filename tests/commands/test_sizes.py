"""What cannot be held is refused in one line with the estimate and what there is, before it is allocated."""

from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError

import create_pretraining_data
from commands import sizes
from commands.flags import parse
from ground import memory
from modeling import Config, PretrainingModel, variable_shapes

BASE: dict[str, Any] = {
    "family": "bert",
    "vocab_size": 100,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def shaped(changes: dict[str, Any]) -> Config:
    values: dict[str, Any] = BASE | changes
    return Config(**values)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 16 * 2**30)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: memory.shutil._ntuple_diskusage(0, 0, 2**40))


def refused(function: Any, *arguments: Any) -> str:
    with pytest.raises(UsageError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_memory_is_known_here():
    assert 2**28 < memory.total_memory() < 2**60


@pytest.mark.parametrize("sharing", ["none", "all", "attention", "ffn"])
@pytest.mark.parametrize(("family", "width"), [("bert", 8), ("albert", 4), ("albert", 12), ("albert_zh", 4)])
def test_the_estimate_is_a_lower_bound_of_the_parameters(family: str, width: int, sharing: str):
    config = shaped({"family": family, "embedding_size": width, "sharing": sharing})
    counts = variable_shapes(lambda: PretrainingModel(config)).values()
    total = sum(a[0] * (a[1] if len(a) > 1 else 1) * (a[2] if len(a) > 2 else 1) for a in counts if a)
    assert 0.5 * total < config.least_parameters <= total


def test_models_that_no_machine_holds(machine: None):
    huge = shaped({"hidden_size": 65_536, "num_hidden_layers": 1024, "intermediate_size": 2**18})
    message = refused(sizes.check_model, huge, "x.json")
    assert message.startswith("x.json: weights, gradients and optimizer state of 52,")
    assert message.endswith("TiB, but this machine has 16.0 GiB of memory: use a smaller config")
    sizes.check_model(shaped({}), "x.json")


def test_batches_that_no_machine_holds(machine: None):
    config = shaped({"vocab_size": 30_000, "hidden_size": 768, "intermediate_size": 3072})
    sizes.check_batch(config, "train_batch_size", 256, 512, 77)
    assert "lower --train_batch_size" in refused(sizes.check_batch, config, "train_batch_size", 2**20, 128, 20)
    sizes.check_batch(config, "train_batch_size", 2**14, 128, 20, 2**10)
    sizes.check_batch(config, "train_batch_size", 256, 512, 0)
    message = refused(sizes.check_batch, config, "train_batch_size", 256, 512, 0, 1, 64)
    assert "--train_batch_size=256: the arrays of one layer for 64 rows of 512 tokens an example" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--num_workers=1024"],
            "--num_workers=1024: as many processes take at least 32.0 GiB, but this",
        ),
        (["--dupe_factor=10000"], "--dupe_factor=10000: records of 10,000,000,000 bytes of text take at least"),
        (["--max_predictions_per_seq=65536"], "--max_predictions_per_seq=65536: the labels that are made at once take"),
        (["--num_shards=99999"], ""),
    ],
)
def test_records_that_no_machine_holds(machine: None, flags: list[str], message: str, monkeypatch: Any):
    monkeypatch.setattr("data.manifest.stamp", lambda path: (10_000_000_000, 0))
    given = ["--input_file=x", "--output_file=x", "--vocab_file=x", "--dupe_factor=1", *flags]
    options = parse(create_pretraining_data.Options, given)
    arguments = (options, create_pretraining_data.recipe_of(options), [Path("x")], Path("x"), 2)
    if message:
        assert refused(sizes.check_records, *arguments).startswith(message)
    else:
        sizes.check_records(*arguments)


def test_more_files_than_text(machine: None, monkeypatch: Any):
    monkeypatch.setattr("data.manifest.stamp", lambda path: (100, 0))
    options = parse(create_pretraining_data.Options, ["--input_file=x", "--output_file=x", "--num_shards=101"])
    recipe = create_pretraining_data.recipe_of(options)
    assert "--num_shards=101: more files" in refused(sizes.check_records, options, recipe, [Path("x")], Path("x"), 2)
