import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, all_numbers, random_tensors, save_tf1

from conversion.containers.safetensors_files import save_safetensors
from conversion.containers.torch_files import save_torch
from conversion.lazy import Tensors
from conversion.namings import NAMINGS
from conversion.readers import read_checkpoint
from conversion.rules import Translation
from conversion.writers import write_ours, write_tf1, write_transformers


def _assert_same(got: Tensors, expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(got[name]), value, err_msg=name)


def _tf1(folder: Path, graph: str = "zh_all") -> dict[str, np.ndarray]:
    tensors = random_tensors(graph)
    write_tf1(folder, CONFIGS[graph], tensors)
    return tensors


def _foreign(name: str, tensors: dict[str, np.ndarray], **implied: str) -> dict[str, np.ndarray]:
    naming = next(naming for naming in NAMINGS if naming.name == name and naming.implies({}) == implied)
    named, lost = Translation(naming).exported(tensors)
    assert not lost
    return all_numbers(named)


@pytest.mark.parametrize(
    "given", ["", "model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "checkpoint"]
)
def test_every_way_to_name_a_tf1_checkpoint(given: str, tmp_path: Path):
    expected = _tf1(tmp_path / "zh")
    _assert_same(read_checkpoint(tmp_path / "zh" / given).tensors, expected)


@pytest.mark.parametrize(
    "state",
    ['model_checkpoint_path: "/home/author/bert_model.ckpt"\n', "", 'all_model_checkpoint_paths: "model.ckpt-9"\n'],
)
def test_state_file_of_another_machine_falls_back_to_the_only_index(state: str, tmp_path: Path):
    expected = _tf1(tmp_path / "zh")
    (tmp_path / "zh" / "checkpoint").write_text(state)
    _assert_same(read_checkpoint(tmp_path / "zh").tensors, expected)


def test_state_file_chooses_among_several(tmp_path: Path):
    expected = _tf1(tmp_path / "zh")
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copy(tmp_path / "zh" / f"model.ckpt.{suffix}", tmp_path / "zh" / f"model.ckpt-7.{suffix}")
    (tmp_path / "zh" / "checkpoint").write_text('model_checkpoint_path: "gone/model.ckpt-7"\n')
    checkpoint = read_checkpoint(tmp_path / "zh")
    assert checkpoint.path.name == "model.ckpt-7"
    _assert_same(checkpoint.tensors, expected)
    (tmp_path / "zh" / "checkpoint").unlink()
    with pytest.raises(UsageError, match=r"several checkpoints and nothing says which: model.ckpt-7.index, model"):
        read_checkpoint(tmp_path / "zh")


def test_slots_and_counters_are_left_out_and_listed(tmp_path: Path):
    tensors = random_tensors("zh_all")
    named = {f"module/{name}": value for name, value in _foreign("albert_zh_tf1", tensors, sharing="all").items()}
    bias = "module/bert/pooler/dense/bias"
    extra = {f"{bias}/lamb_m": named[bias], f"{bias}/lamb_v": named[bias], "global_step": np.int64(7)}
    save_tf1(tmp_path / "hub.ckpt", named | extra | {"cls/squad/output_bias": np.zeros(2, np.float32)})
    checkpoint = read_checkpoint(tmp_path / "hub.ckpt")
    _assert_same(checkpoint.tensors, tensors)
    assert set(checkpoint.skipped) == extra.keys()
    assert checkpoint.unplaced == ["cls/squad/output_bias"]
    assert checkpoint.config is None


def test_backbone_tensor_without_a_place_is_an_error(tmp_path: Path):
    named = {
        "bert/embeddings/word_embeddings_2": np.zeros((2, 3), np.float32),
        "bert/encoder/layer_normalization_5/gamma": np.zeros(3, np.float32),
    }
    save_tf1(tmp_path / "strange.ckpt", named)
    with pytest.raises(UsageError, match="looks like albert_zh_tf1, but has no place for bert/encoder/layer_normal"):
        read_checkpoint(tmp_path / "strange.ckpt")


def test_values_missing_behind_an_index_are_one_line(tmp_path: Path):
    _tf1(tmp_path / "zh")
    (tmp_path / "zh" / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(UsageError, match=r"cannot read bert/.* is .*model.ckpt.data-\* whole"):
        all_numbers(read_checkpoint(tmp_path / "zh").tensors)


def test_index_that_is_none_is_one_line(tmp_path: Path):
    (tmp_path / "model.ckpt.index").write_bytes(b"not an index")
    with pytest.raises(UsageError, match="is not a whole TF 1 checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("file_name", ["config.json", "albert_config_tiny.json"])
def test_sharing_comes_from_names_because_albert_zh_writes_it_nowhere(file_name: str, tmp_path: Path):
    _tf1(tmp_path / "zh", "zh_attention")
    (tmp_path / "zh" / "albert_config.json").rename(tmp_path / "zh" / file_name)
    assert read_checkpoint(tmp_path / "zh").config == CONFIGS["zh_attention"]


def test_grouped_feed_forward_comes_from_shapes_whatever_the_config_is_called(tmp_path: Path):
    _tf1(tmp_path / "fast", "google_fast")
    (tmp_path / "fast" / "albert_config_google_fast.json").rename(tmp_path / "fast" / "albert_config.json")
    assert read_checkpoint(tmp_path / "fast").config == CONFIGS["google_fast"]


def test_of_two_configs_beside_it_the_fitting_one_is_taken(tmp_path: Path):
    _tf1(tmp_path / "zh")
    path = tmp_path / "zh" / "albert_config.json"
    other = json.loads(path.read_text()) | {"vocab_size": 99}
    (tmp_path / "zh" / "albert_config_other.json").write_text(json.dumps(other))
    assert read_checkpoint(tmp_path / "zh").config == CONFIGS["zh_all"]
    shutil.copy(path, tmp_path / "zh" / "albert_config_again.json")
    assert read_checkpoint(tmp_path / "zh").config is None


@pytest.mark.parametrize(
    ("graph", "config", "message"),
    [
        (
            "zh_all",
            "google",
            r"of the albert_zh graph \(word_embeddings_2\), the config describes the Google ALBERT graph",
        ),
        ("google", "zh_all", "of the Google ALBERT graph .* the config describes the albert_zh graph"),
        ("bert", "google", "of the BERT graph, the config describes the Google ALBERT graph"),
    ],
)
def test_config_of_another_graph_names_both(graph: str, config: str, message: str, tmp_path: Path):
    _tf1(tmp_path / "out", graph)
    with pytest.raises(UsageError, match=message):
        read_checkpoint(tmp_path / "out", config=CONFIGS[config])


def _structbert(tensors: dict[str, np.ndarray], prefix: str, old_spelling: bool) -> dict[str, np.ndarray]:
    named = {}
    for name, value in _foreign("transformers_bert", tensors).items():
        spelt = name
        if name.startswith("bert."):
            spelt = spelt.removeprefix("bert.")
            if old_spelling:
                spelt = re.sub(r"LayerNorm\.(weight|bias)$", lambda m: f"LayerNorm.{_OLD[m[1]]}", spelt)
            spelt = prefix + spelt
        elif prefix.startswith("module."):
            spelt = f"module.{spelt}"
        named[spelt] = value
    return named


_OLD = {"weight": "gamma", "bias": "beta"}


@pytest.mark.parametrize("old_spelling", [False, True])
@pytest.mark.parametrize("prefix", ["", "bert.", "module.", "module.bert."])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_every_spelling_of_torch_weights(prefix: str, old_spelling: bool, suffix: str, tmp_path: Path):
    tensors = random_tensors("bert")
    named = _structbert(tensors, prefix, old_spelling)
    named[f"{prefix}embeddings.position_ids"] = np.arange(24)[None]
    named["cls.predictions.decoder.weight"] = tensors["backbone/embeddings/word_embeddings"]
    named["multiple_choice.bias"] = np.zeros(2, np.float32)
    path = tmp_path / f"en_model{suffix}"
    (save_torch if suffix == ".bin" else save_safetensors)(path, named)
    checkpoint = read_checkpoint(path)
    _assert_same(checkpoint.tensors, tensors)
    assert checkpoint.skipped == sorted([f"{prefix}embeddings.position_ids", "cls.predictions.decoder.weight"])
    assert checkpoint.unplaced == ["multiple_choice.bias"]
    assert read_checkpoint(tmp_path).tensors.keys() == tensors.keys()


def test_output_table_of_its_own_has_no_place(tmp_path: Path):
    tensors = random_tensors("bert")
    named = _structbert(tensors, "bert.", False)
    named["cls.predictions.decoder.weight"] = tensors["backbone/embeddings/word_embeddings"] + 1
    save_safetensors(tmp_path / "model.safetensors", named)
    with pytest.raises(UsageError, match=r"decoder.weight of .* differs from bert.embeddings.word_embeddings.weight"):
        read_checkpoint(tmp_path)


def test_weights_that_transformers_saved_itself(tmp_path: Path):
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=32, embedding_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=24, num_hidden_groups=2,
    )  # fmt: skip
    model: Any = transformers.AlbertForPreTraining(config)
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.source_format == "transformers_albert"
    assert checkpoint.config is not None
    assert checkpoint.config.num_hidden_groups == 2
    query = model.albert.encoder.albert_layer_groups[1].albert_layers[0].attention.query.weight
    got = checkpoint.tensors["backbone/encoder/attention_1/query/kernel"]
    np.testing.assert_array_equal(got, query.detach().numpy().T)


def test_parameters_that_were_saved_as_they_are_are_weights(tmp_path: Path):
    import torch

    tensors = random_tensors("bert")
    named = _structbert(tensors, "", False)
    parameters = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in named.items()}
    torch.save(parameters, tmp_path / "pytorch_model.bin")
    _assert_same(read_checkpoint(tmp_path / "pytorch_model.bin").tensors, tensors)


def test_a_view_of_far_more_numbers_than_are_stored_is_refused(tmp_path: Path):
    import torch

    named = {"bert.embeddings.word_embeddings.weight": torch.zeros(1).expand(10**6, 10**6)}
    torch.save(named, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UsageError, match=r"word_embeddings.weight has the shape 1000000 x 1000000, of far more numbers"
    ):
        read_checkpoint(tmp_path / "pytorch_model.bin")


def test_bfloat16_weights_are_read_as_float32(tmp_path: Path):
    import ml_dtypes

    tensors = random_tensors("bert")
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    save_safetensors(tmp_path / "weights.safetensors", half)
    got = read_checkpoint(tmp_path / "weights.safetensors").tensors
    _assert_same(got, {name: value.astype(np.float32) for name, value in half.items()})
    assert {value.dtype for value in got.values()} == {np.dtype(np.float32)}


def _run(output: Path) -> dict[str, dict[str, np.ndarray]]:
    seeds = {"checkpoints/step_00000900": 1, "checkpoints/step_00001000": 2, "best": 3}
    tensors = {place: random_tensors("google", seed=seed) for place, seed in seeds.items()}
    for place, values in tensors.items():
        write_ours(output / place, CONFIGS["google"], values)
    return tensors


@pytest.mark.parametrize(
    ("given", "prefer_best", "expected"),
    [
        ("", False, "checkpoints/step_00001000"),
        ("", True, "best"),
        ("checkpoints", False, "checkpoints/step_00001000"),
        ("checkpoints/step_00000900", True, "checkpoints/step_00000900"),
        ("best", False, "best"),
    ],
)
def test_runs_of_ours(given: str, prefer_best: bool, expected: str, tmp_path: Path):
    tensors = _run(tmp_path)
    checkpoint = read_checkpoint(tmp_path / given, prefer_best=prefer_best)
    _assert_same(checkpoint.tensors, tensors[expected])
    assert checkpoint.config == CONFIGS["google"]


def test_run_that_kept_only_the_best(tmp_path: Path):
    tensors = _run(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    _assert_same(read_checkpoint(tmp_path).tensors, tensors["best"])


def test_any_flipped_byte_of_ours_is_noticed(tmp_path: Path):
    write_ours(tmp_path / "out", CONFIGS["bert"], random_tensors("bert"))
    path = tmp_path / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match="does not match its checksum"):
        read_checkpoint(tmp_path / "out")


def test_parts_of_a_large_model_of_ours_are_read_as_one(tmp_path: Path):
    from training import checkpoints

    tensors = random_tensors("bert")
    state = {f"model/{name}": value for name, value in tensors.items()} | {"optimizer/m/x": np.ones(1, "float32")}
    config = json.loads(CONFIGS["bert"].to_json())
    checkpoints.write_state(tmp_path / "out", checkpoints.RunState(3, 1, config, {}, state), part_bytes=2000)
    parts = sorted((tmp_path / "out").glob("model-*"))
    assert len(parts) > 2
    _assert_same(read_checkpoint(tmp_path / "out").tensors, tensors)
    content = bytearray(parts[1].read_bytes())
    content[-1] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(UsageError, match=f"{parts[1].name} does not match its checksum"):
        read_checkpoint(tmp_path / "out")


def test_state_of_another_version_is_one_line(tmp_path: Path):
    write_ours(tmp_path / "out", CONFIGS["bert"], random_tensors("bert"))
    path = tmp_path / "out" / "state.json"
    state = json.loads(path.read_text())
    state["config"]["sharding"] = 1
    path.write_text(json.dumps(state))
    with pytest.raises(UsageError, match="has the unknown key 'sharding'"):
        read_checkpoint(tmp_path / "out")
    path.write_text("{}")
    with pytest.raises(UsageError, match="missing required field 'step'; take another step"):
        read_checkpoint(tmp_path / "out")


def test_given_config_replaces_the_one_found(tmp_path: Path):
    write_transformers(tmp_path / "out", CONFIGS["bert"], random_tensors("bert"))
    config = dataclasses.replace(CONFIGS["bert"], num_attention_heads=4)
    assert read_checkpoint(tmp_path / "out", config=config).config == config


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (None, "gone/model.ckpt", "model.ckpt does not exist; expected a run's output folder"),
        (None, "model.ckpt", r"model.ckpt does not exist; the folder has notes.txt; expected"),
        (None, "notes.txt", "notes.txt is not a checkpoint; the folder has notes.txt"),
        (None, "", r"no checkpoint in .*, which holds notes.txt; expected a run's output folder"),
        ("model.safetensors", "", r"no known layout in .*: it has encoder.weight, vision.weight; expected BERT"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(make: str | None, given: str, message: str, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    if make:
        zeros = np.zeros(2, np.float32)
        save_safetensors(tmp_path / make, {"vision.weight": zeros, "encoder.weight": zeros})
    with pytest.raises(UsageError, match=message) as error:
        read_checkpoint(tmp_path / given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_files_are_one_line(name: str, tmp_path: Path):
    (save_torch if name.endswith("bin") else save_safetensors)(tmp_path / name, random_tensors("bert"))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"is not a (whole safetensors file|PyTorch state dict)"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_in_the_place_of_weights_is_called_one(name: str, tmp_path: Path):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        read_checkpoint(tmp_path)
