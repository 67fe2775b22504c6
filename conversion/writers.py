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

from conversion import namings
from conversion.graphs import Tensors
from conversion.rules import Naming, Translation
from conversion.tokenizer_files import ALBERT_PIECES, WORDPIECE, XLMR_PIECES, VocabularyForm
from ground.files import check_plain
from ground.outputs import RECORD, is_left_over, note_written, was_written
from modeling.config import Config

_TRANSFORMERS_ACTIVATIONS = {"gelu": "gelu_new", "gelu_erf": "gelu", "swish": "silu"}
_ANY_VOCABULARY = (WORDPIECE, ALBERT_PIECES, XLMR_PIECES)
VERB = "convert_checkpoint"
"""The name under which `ground.outputs` keeps what is written here."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A checkpoint as it was written: folder, naming, config and tensors (our names), and tensors without a place.

    `model_type` is transformers' word for the graph, and empty in other formats.
    """

    directory: Path
    naming: str
    config: Config
    tensors: Tensors
    dropped: list[str]
    model_type: str = ""


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
    """Write config.json, model.safetensors and the vocabulary so that transformers' Auto classes open them.

    `model_type` "auto" keeps shared layers shared: ALBERT for Google's graph and for albert_zh with all shared, else
    BERT; where transformers has no class, our own code goes with the weights, for trust_remote_code=True. `vocab_files`
    is a WordPiece `*.txt` or a SentencePiece `*.model`; `labels` name the classes of a classifier. A sentence-pair head
    without exactly two classes has no place in a stock class and is dropped. Raises `UsageError` for a graph that
    `model_type` cannot express, for a vocabulary of another size, and when `directory` holds other files.
    """
    if model_type == "auto":
        model_type = namings.transformers_model_type(config)
    naming = _transformers_naming(model_type, config, tensors)
    graph, converted = naming.rewrite(config, tensors)
    kept = {name: value for name, value in converted.items() if _has_place(naming, name, value)}
    width = kept["backbone/embeddings/word_embeddings"].shape[1]
    neutral = {name: value(width) for name, value in naming.neutral.items() if name not in kept}
    named = _named(naming, graph, kept | neutral)
    vocabulary = _vocabulary(vocab_files, config, naming.vocabularies, do_lower_case)
    description = _transformers_config(naming, graph, kept, labels)
    code = {} if naming.code is None else naming.code.contents()
    token_ids = {} if naming.code is None else naming.code.token_ids(graph, vocabulary.get("tokenizer.json"))
    with writing_directory(directory) as folder:
        _write_json(folder / "config.json", description | token_ids)
        if token_ids:
            _write_json(folder / "generation_config.json", token_ids)
        save_safetensors(folder / "model.safetensors", named, metadata={"format": "pt"})
        if pytorch_bin:
            save_torch(folder / "pytorch_model.bin", named)
        for name, content in (vocabulary | code).items():
            (folder / name).write_bytes(content)
    dropped = sorted(set(converted) - set(kept))
    return Written(Path(directory), naming.name, graph, kept, dropped, naming.model_type)


def write_tf1(
    directory: str | Path, config: Config, tensors: Mapping[str, np.ndarray], vocab_files: Sequence[str | Path] = ()
) -> Written:
    """Write `model.ckpt` as the original code of the config's family names it, its config and a `checkpoint` file.

    Raises `UsageError` for what that code cannot compute: exact GELU, a final LayerNorm, shifted positions, no token
    types, pre-LN and shared layers outside of albert_zh, albert_zh without factorisation.
    """
    naming = _tf1_naming(config)
    graph, converted = naming.rewrite(config, tensors)
    kept = {name: value for name, value in converted.items() if _has_place(naming, name, value)}
    named = _named(naming, graph, kept)
    vocabulary = _vocabulary(vocab_files, config, naming.vocabularies, do_lower_case=None)
    with writing_directory(directory) as folder:
        _save_tf1(folder / "model.ckpt", named)
        state = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
        (folder / "checkpoint").write_text(state)
        _write_json(folder / naming.config_file(graph), {name: getattr(graph, name) for name in naming.config_keys})
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    return Written(Path(directory), naming.name, graph, kept, sorted(set(tensors) - set(kept)))


def write_ours(
    directory: str | Path, config: Config, tensors: Mapping[str, np.ndarray], vocab_files: Sequence[str | Path] = ()
) -> Written:
    """Write model.safetensors and state.json as `training/checkpoints.py` reads them: a `best/` folder at step 0."""
    vocabulary = _vocabulary(vocab_files, config, _ANY_VOCABULARY, do_lower_case=None)
    with writing_directory(directory) as folder:
        save_safetensors(folder / "model.safetensors", tensors)
        content = (folder / "model.safetensors").read_bytes()
        fact = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        state = {"format": 1, "step": 0, "seed": 0, "config": dataclasses.asdict(config), "progress": {}}
        _write_json(folder / "state.json", state | {"files": {"model.safetensors": fact}})
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    return Written(Path(directory), "ours", config, dict(tensors), [])


def _transformers_naming(model_type: str, config: Config, tensors: Mapping[str, np.ndarray]) -> Naming:
    """Return the naming of `model_type` that says what the config says and has most heads of `tensors`.

    Raises `UsageError` for none.
    """
    candidates = [naming for naming in namings.NAMINGS if naming.model_type == model_type]
    if not candidates:
        known = sorted({naming.model_type for naming in namings.NAMINGS} - {""})
        raise UsageError(f"--model_type={model_type}: expected auto, {', '.join(known)}")
    heads = {name.split("/")[0] for name in tensors}
    return max(
        candidates,
        key=lambda naming: (naming.serves(config), naming.writes(config), len(heads & naming.heads)),
    )


def _tf1_naming(config: Config) -> Naming:
    """Return the naming of the family's own TF 1 code that says the same as the config."""
    return next(
        naming
        for naming in namings.NAMINGS
        if naming.container == "tf1" and naming.family == config.family and naming.writes(config)
    )


def _has_place(naming: Naming, name: str, value: np.ndarray) -> bool:
    """Return whether a tensor can be written; a head may have none, or may need another number of classes there."""
    head = name.split("/")[0]
    if head == "backbone":
        return True
    return head in naming.heads and value.shape[-1] == naming.head_classes.get(head, value.shape[-1])


def _named(naming: Naming, config: Config, tensors: Mapping[str, np.ndarray]) -> Tensors:
    named, lost = Translation(naming, config.inner_group_num).exported(tensors)
    if lost:
        raise UsageError(f"{naming.name} has no place for {lost[0]}")
    return named


def _transformers_config(
    naming: Naming, config: Config, tensors: Mapping[str, np.ndarray], labels: Sequence[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {"model_type": naming.model_type}
    if "classifier/kernel" in tensors:
        count = tensors["classifier/kernel"].shape[1]
        if labels and len(labels) != count:
            raise UsageError(f"{len(labels)} labels given ({', '.join(labels)}), the classifier has {count} classes")
        names = list(labels) or [f"LABEL_{i}" for i in range(count)]
        values["architectures"] = [f"{naming.class_prefix}ForSequenceClassification"]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    elif "masked_lm/output_bias" in tensors:
        head = "ForPreTraining" if "sentence_pair/kernel" in tensors else "ForMaskedLM"
        values["architectures"] = [f"{naming.class_prefix}{head}"]
    else:
        values["architectures"] = [f"{naming.class_prefix}Model"]
    values |= {name: getattr(config, name) for name in naming.config_keys}
    values["hidden_act"] = _TRANSFORMERS_ACTIVATIONS.get(config.hidden_act, config.hidden_act)
    own = {} if naming.code is None else naming.code.description(tensors)
    return {**values, **naming.config_constants, **own}


def _vocabulary(
    files: Sequence[str | Path], config: Config, forms: Sequence[VocabularyForm], do_lower_case: bool | None
) -> dict[str, bytes]:
    """Return contents by file name; with `do_lower_case` also the files from which transformers builds a tokenizer."""
    contents: dict[str, bytes] = {}
    for path in map(Path, files):
        content = check_plain(path).read_bytes()
        try:
            kinds = [form for form in forms if form.is_sentencepiece == (path.suffix == ".model")]
            if not kinds:
                raise UsageError(
                    "it is of another kind than the model's tokenizer in transformers; use --model_type=bert"
                )
            counts = [form.count(content) for form in kinds]
            if config.vocab_size not in counts:
                raise UsageError(f"{counts[0]} entries, the config says {config.vocab_size}")
            form = kinds[counts.index(config.vocab_size)]
            contents[form.file_name] = content
            if do_lower_case is not None:
                contents["tokenizer.json"] = form.tokenizer_json(content, do_lower_case).encode()
                description = {"tokenizer_class": form.tokenizer_class, "do_lower_case": do_lower_case}
                description |= {"model_max_length": config.max_sequence_length}
                contents["tokenizer_config.json"] = (json.dumps(description, indent=2) + "\n").encode()
        except UsageError as error:
            raise UsageError(f"vocabulary {path}: {error}") from error
    return contents


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
        foreign = sorted(entry.name for entry in target.iterdir() if not _is_own(entry))
        if foreign:
            raise UsageError(
                f"{target} holds other files than an earlier conversion's ({', '.join(foreign[:3])}); name a new or an "
                "empty folder"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield folder
        note_written(folder, VERB, [entry.name for entry in folder.iterdir()])
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


def _is_own(path: Path) -> bool:
    return path.name == RECORD or was_written(path, VERB) or is_left_over(path, VERB)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
