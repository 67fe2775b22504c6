"""Write a checkpoint as transformers, TF 1 or this project reads it; read back, each is the same tensors again.

Formats: transformers 5's config.json and safetensors, the TF 1 V2 bundle under the names of the original code, ours.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from conversion.graphs import Tensors, as_albert, as_bert
from conversion.name_maps import NameMap, name_map
from conversion.tokenizer_files import sentencepiece_pieces, unigram_json, wordpiece_entries, wordpiece_json
from modeling.config import Config

_TRANSFORMERS_ACTIVATIONS = {"gelu": "gelu_new", "gelu_erf": "gelu", "swish": "silu"}
_BERT_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
)
_ALBERT_KEYS = ("embedding_size", "num_hidden_groups", "inner_group_num")
_REPLACEABLE = (
    "config.json",
    "model.safetensors",
    "pytorch_model.bin",
    "state.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "spiece.model",
    "checkpoint",
    "albert_config.json",
    "albert_config_google_fast.json",
    "bert_config.json",
    "model.ckpt.index",
    "model.ckpt.data-00000-of-00001",
    "parity.json",
)


@dataclasses.dataclass(frozen=True)
class Written:
    """Where a checkpoint went, as what, with which config and tensors (our names), and which tensors had no place."""

    directory: Path
    layout: str
    config: Config
    tensors: Tensors
    dropped: list[str]


def write_transformers(
    directory: str | Path,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    vocab_files: Sequence[str | Path] = (),
    *,
    model_type: str = "auto",
    pytorch_bin: bool = False,
    do_lower_case: bool = True,
    labels: Sequence[str] = (),
) -> Written:
    """Write config.json, model.safetensors and the vocabulary so that stock transformers' Auto classes open them.

    `model_type` "auto" keeps shared layers shared: ALBERT for Google's graph and for albert_zh with all shared, else
    BERT. `vocab_files` is a WordPiece `*.txt` or a SentencePiece `*.model`; `labels` name the classes of a classifier.
    A sentence-pair head without exactly two classes has no place there and is dropped. Raises `UsageError` for a graph
    that stock transformers cannot express, for a vocabulary of another size, and when `directory` holds other files.
    """
    if model_type == "auto":
        shared = config.family == "albert_zh" and config.sharing == "all"
        model_type = "albert" if config.family == "albert" or shared else "bert"
    graph, converted = (as_albert if model_type == "albert" else as_bert)(config, tensors)
    dropped = [name for name, value in converted.items() if name.startswith("sentence_pair/") and value.shape[-1] != 2]
    kept = {name: value for name, value in converted.items() if name not in dropped}
    layout = name_map(f"transformers_{model_type}", inner_group_num=graph.inner_group_num)
    exported = kept
    if model_type == "albert" and graph.embedding_size == graph.hidden_size:
        # transformers projects even between equal widths; the identity leaves every value as it is.
        mapping = "backbone/embeddings/projection"
        identity = np.eye(graph.hidden_size, dtype=np.float32)
        exported = kept | {f"{mapping}/kernel": identity, f"{mapping}/bias": np.zeros(graph.hidden_size, np.float32)}
    named = _foreign(layout, exported)
    vocabulary = _vocabulary(vocab_files, config, do_lower_case)
    description = _transformers_config(graph, model_type, kept, labels)
    with writing_directory(directory) as folder:
        _write_json(folder / "config.json", description)
        save_safetensors(folder / "model.safetensors", named, metadata={"format": "pt"})
        if pytorch_bin:
            save_torch(folder / "pytorch_model.bin", named)
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    return Written(Path(directory), layout.layout, graph, kept, sorted(dropped))


def write_tf1(
    directory: str | Path, config: Config, tensors: Mapping[str, np.ndarray], vocab_files: Sequence[str | Path] = ()
) -> Written:
    """Write `model.ckpt` as the original code of the config's family names it, its config and a `checkpoint` file.

    Raises `UsageError` for what that code cannot compute: exact GELU, a final LayerNorm, shifted positions, no token
    types, pre-LN and shared layers outside of albert_zh, albert_zh without factorisation.
    """
    layout, description, file_name = _tf1_form(config)
    kept = {name: value for name, value in tensors.items() if layout.to_theirs(name) is not None}
    for name in ("backbone/embeddings/word_embeddings", "masked_lm/output_bias"):
        if name in kept:
            kept[name] = kept[name][: config.vocab_size]
    named = _foreign(layout, kept)
    vocabulary = _vocabulary(vocab_files, config, do_lower_case=None)
    with writing_directory(directory) as folder:
        _save_tf1(folder / "model.ckpt", named)
        state = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
        (folder / "checkpoint").write_text(state)
        _write_json(folder / file_name, description)
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    plain = dataclasses.replace(config, vocab_padding_multiple=1)
    return Written(Path(directory), layout.layout, plain, kept, sorted(set(tensors) - set(kept)))


def write_ours(
    directory: str | Path, config: Config, tensors: Mapping[str, np.ndarray], vocab_files: Sequence[str | Path] = ()
) -> Written:
    """Write model.safetensors and state.json as `training/checkpoints.py` reads them: a `best/` folder at step 0."""
    vocabulary = _vocabulary(vocab_files, config, do_lower_case=None)
    with writing_directory(directory) as folder:
        save_safetensors(folder / "model.safetensors", tensors)
        content = (folder / "model.safetensors").read_bytes()
        fact = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        state = {"format": 1, "step": 0, "seed": 0, "config": dataclasses.asdict(config), "progress": {}}
        _write_json(folder / "state.json", state | {"files": {"model.safetensors": fact}})
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    return Written(Path(directory), "ours", config, dict(tensors), [])


def _foreign(layout: NameMap, tensors: Mapping[str, np.ndarray]) -> Tensors:
    named = {}
    for name, value in tensors.items():
        place = layout.to_theirs(name)
        if place is None:
            raise UsageError(f"{layout.layout} has no place for {name}")
        named[place[0]] = np.ascontiguousarray(value.T if place[1] else value)
    return named


def _transformers_config(
    config: Config, model_type: str, tensors: Mapping[str, np.ndarray], labels: Sequence[str]
) -> dict[str, Any]:
    class_prefix = {"albert": "Albert", "bert": "Bert"}[model_type]
    values: dict[str, Any] = {"model_type": model_type}
    if "classifier/kernel" in tensors:
        count = tensors["classifier/kernel"].shape[1]
        if labels and len(labels) != count:
            raise UsageError(f"{len(labels)} labels given ({', '.join(labels)}), the classifier has {count} classes")
        names = list(labels) or [f"LABEL_{i}" for i in range(count)]
        values["architectures"] = [f"{class_prefix}ForSequenceClassification"]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    elif "masked_lm/output_bias" in tensors:
        head = "ForPreTraining" if "sentence_pair/kernel" in tensors else "ForMaskedLM"
        values["architectures"] = [f"{class_prefix}{head}"]
    else:
        values["architectures"] = [f"{class_prefix}Model"]
    names = (*_BERT_KEYS, "layer_norm_eps", *(_ALBERT_KEYS if model_type == "albert" else ()))
    values |= {name: getattr(config, name) for name in names}
    values["hidden_act"] = _TRANSFORMERS_ACTIVATIONS.get(config.hidden_act, config.hidden_act)
    values |= {"pad_token_id": 0, "tie_word_embeddings": True, "dtype": "float32"}
    values |= {"classifier_dropout_prob" if model_type == "albert" else "classifier_dropout": 0.1}
    return values


def _vocabulary(files: Sequence[str | Path], config: Config, do_lower_case: bool | None) -> dict[str, bytes]:
    """Contents by file name; with `do_lower_case` also what makes transformers choose and build the tokenizer."""
    contents: dict[str, bytes] = {}
    for path in map(Path, files):
        content = path.read_bytes()
        try:
            if path.suffix == ".model":
                name, kind, count = "spiece.model", "AlbertTokenizer", len(sentencepiece_pieces(content)[0])
            else:
                name, kind, count = "vocab.txt", "BertTokenizer", len(wordpiece_entries(content))
            if count != config.vocab_size:
                raise UsageError(f"{count} entries, the config says {config.vocab_size}")
            contents[name] = content
            if do_lower_case is not None:
                build = unigram_json if path.suffix == ".model" else wordpiece_json
                contents["tokenizer.json"] = build(content, do_lower_case).encode()
                told = {"tokenizer_class": kind, "do_lower_case": do_lower_case}
                told |= {"model_max_length": config.max_sequence_length}
                contents["tokenizer_config.json"] = (json.dumps(told, indent=2) + "\n").encode()
        except UsageError as error:
            raise UsageError(f"vocabulary {path}: {error}") from error
    return contents


def _tf1_form(config: Config) -> tuple[NameMap, dict[str, Any], str]:
    """Names, config in the original dialect, and the file name that the original or we recognise."""
    reasons = {
        "it has only the tanh form of GELU": config.hidden_act == "gelu_erf",
        "it has no final LayerNorm": config.final_layer_norm,
        "it has no offset of positions": config.position_offset != 0,
        "it always has token types": config.type_vocab_size == 0,
        "it is post-LN": config.family != "albert_zh" and config.ln_type != "postln",
        "its feed-forward is whole, or google_fast's in 16 groups": config.ffn_groups != 1
        and (config.family, config.ffn_groups) != ("albert", 16),
        "BERT shares no layers": config.family == "bert" and config.sharing != "none",
        "Google's ALBERT shares all of a layer": config.family == "albert" and config.sharing != "all",
        "albert_zh always has word_embeddings_2": config.family == "albert_zh" and not config.projects,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"this model cannot be written for the original TF 1 code of {config.family}: {reason}")
    keys = {"bert": (), "albert_zh": ("embedding_size", "ln_type"), "albert": _ALBERT_KEYS}[config.family]
    description = {name: getattr(config, name) for name in (*_BERT_KEYS, *keys)}
    if config.family == "bert":
        return name_map("bert_tf1"), description, "bert_config.json"
    if config.family == "albert_zh":
        return name_map("albert_zh_tf1", sharing=config.sharing), description, "albert_config.json"
    layout = name_map("albert_google_tf1", inner_group_num=config.inner_group_num)
    return layout, description, "albert_config.json" if config.ffn_groups == 1 else "albert_config_google_fast.json"


def _save_tf1(prefix: Path, tensors: Mapping[str, np.ndarray]) -> None:
    import tensorflow as tf

    names = sorted(tensors)
    try:
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(tensors[name], tf.float32) for name in names],
        )
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message.splitlines()[0], str(prefix)) from None


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write float32 `tensors` to `path`."""
    import safetensors.numpy

    # Written by Python, whose OSError tells a full disk; the library's own error does not.
    content = safetensors.numpy.save({n: np.ascontiguousarray(v) for n, v in tensors.items()}, metadata=metadata)
    path.write_bytes(content)


def save_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a PyTorch state dict to `path`; raises `UsageError` where PyTorch is absent."""
    try:
        import torch
    except ImportError:
        raise UsageError(f"writing {path.name} needs PyTorch: pip install torch, or leave it out") from None
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, content)
    path.write_bytes(content.getbuffer())


@contextlib.contextmanager
def writing_directory(directory: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `directory` that takes its place at the end; on an error nothing changes.

    Raises `UsageError` before anything is written when `directory` holds files that a conversion did not write.
    """
    target = Path(directory)
    if target.exists():
        if not target.is_dir():
            raise UsageError(f"--output={target} is a file; expected a folder, which is made where needed")
        foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in _REPLACEABLE)
        if foreign:
            raise UsageError(f"{target} holds other files ({', '.join(foreign[:3])}); name a new or an empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            former = folder.with_suffix(".old")
            target.replace(former)
            folder.replace(target)
            shutil.rmtree(former)
        else:
            folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
