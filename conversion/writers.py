"""Write a checkpoint as transformers, TF 1 or this project reads it; read back, each is the same tensors again.

Formats: transformers 5's config.json and safetensors, the TF 1 V2 bundle under the names of the original code, ours.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from conversion import namings
from conversion.beside import LABELS
from conversion.containers.ranks import cut, rank_file
from conversion.containers.safetensors_files import save_safetensors
from conversion.containers.shards import save_in_parts
from conversion.containers.tf1_files import save_tf1
from conversion.containers.torch_files import save_torch
from conversion.lazy import Array, Tensors
from conversion.namings.dialects import transformers_activation
from conversion.rules import Naming, Translation
from conversion.special_tokens import never_written, token_ids
from conversion.tokenizer_files import (
    ALBERT_PIECES,
    WORDPIECE,
    XLMR_PIECES,
    VocabularyFile,
    VocabularyForm,
    ernie_m_files,
)
from ground.outputs import RECORD, is_left_over, note_written, was_written
from ground.words import few_names
from modeling.computation import LANGUAGES
from modeling.config import Config
from training.checkpoints import in_parts, part_name

PART_BYTES = 4 * 2**30
"""Above it weights are written to several files, as a run's checkpoints are."""
_CLASSES = {"classifier": "ForSequenceClassification", "tagger": "ForTokenClassification"}
"""Heads with named classes -> the rest of the name of transformers' class."""
_ANY_VOCABULARY = (WORDPIECE, ALBERT_PIECES, XLMR_PIECES)
Vocabularies = Sequence[str | Path | VocabularyFile]
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
    tensors: dict[str, Array]
    dropped: list[str]
    model_type: str = ""


def write_transformers(
    directory: str | Path,
    config: Config,
    tensors: Tensors,
    vocab_files: Vocabularies = (),
    *,
    model_type: str = "auto",
    pytorch_bin: bool = False,
    do_lower_case: bool = True,
    labels: Sequence[str] = (),
    kind: str = "",
    allow_dropped: Sequence[str] = (),
    part_bytes: int = PART_BYTES,
) -> Written:
    """Write config.json, model.safetensors and the vocabulary so that transformers' Auto classes open them.

    `model_type` "auto" keeps shared layers shared: ALBERT for Google's graph and for albert_zh with all shared, else
    BERT; where transformers has no class, our own code goes with the weights, for trust_remote_code=True. `vocab_files`
    is a WordPiece `*.txt` or a SentencePiece `*.model`; `labels` name the classes of a classifier; `kind`, a key of
    `tasks.kinds.KINDS`, says what it was trained for. A sentence-pair head without exactly two classes has no place in
    a stock class. Raises `UsageError` for a tensor without a place that no
    pattern of `allow_dropped` matches, for a graph that `model_type` cannot express, for a vocabulary of another size,
    and when `directory` holds other files.
    """
    if model_type == "auto":
        model_type = namings.transformers_model_type(config)
    naming = _transformers_naming(model_type, config, tensors)
    _check_decoder(config, naming)
    graph, converted = naming.rewrite(config, tensors)
    kept = _kept(naming, converted, allow_dropped)
    width = kept["backbone/embeddings/word_embeddings"].shape[1]
    neutral = {name: value(width) for name, value in naming.neutral.items() if name not in kept}
    named = _named(naming, graph, kept | neutral)
    vocabulary = _vocabulary(vocab_files, config, naming.vocabularies, do_lower_case)
    description = _transformers_config(naming, graph, kept, labels, kind)
    code = {} if naming.code is None else naming.code.contents()
    tokenizer = vocabulary.get("tokenizer.json")
    ids = token_ids(graph, tokenizer) if naming.generates else {}
    with writing_directory(directory) as folder:
        _write_json(folder / "config.json", description | ids)
        if ids:
            _write_json(folder / "generation_config.json", ids | never_written(ids, tokenizer))
        save_in_parts(folder / "model.safetensors", named, part_bytes=part_bytes, metadata={"format": "pt"})
        if pytorch_bin:
            save_in_parts(folder / "pytorch_model.bin", named, part_bytes=part_bytes)
        for name, content in (vocabulary | code).items():
            (folder / name).write_bytes(content)
    dropped = sorted(set(converted) - set(kept))
    return Written(Path(directory), naming.name, graph, kept, dropped, naming.model_type)


def write_tf1(
    directory: str | Path,
    config: Config,
    tensors: Tensors,
    vocab_files: Vocabularies = (),
    *,
    allow_dropped: Sequence[str] = (),
) -> Written:
    """Write `model.ckpt` as the original code of the config's family names it, its config and a `checkpoint` file.

    Raises `UsageError` for what that code cannot compute: exact GELU, a final LayerNorm, shifted positions, no token
    types, pre-LN and shared layers outside of albert_zh, albert_zh without factorisation.
    """
    naming = _tf1_naming(config)
    graph, converted = naming.rewrite(config, tensors)
    kept = _kept(naming, converted, allow_dropped)
    named = _named(naming, graph, kept)
    vocabulary = _vocabulary(vocab_files, config, naming.vocabularies, do_lower_case=None)
    with writing_directory(directory) as folder:
        save_tf1(folder / "model.ckpt", named)
        state = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
        (folder / "checkpoint").write_text(state)
        _write_json(folder / naming.config_file(graph), {name: getattr(graph, name) for name in naming.config_keys})
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    return Written(Path(directory), naming.name, graph, kept, sorted(set(tensors) - set(kept)))


def write_plug(
    directory: str | Path,
    config: Config,
    tensors: Tensors,
    vocab_files: Vocabularies = (),
    *,
    count: int,
    allow_dropped: Sequence[str] = (),
) -> Written:
    """Write a `mp_rank_*_model_states.pt` for each of `count` processes, as DeepSpeed does, and the config of PLUG.

    Raises `UsageError` for a model of another graph, for tensors that `count` processes cannot share equally, and where
    PyTorch is absent.
    """
    naming = next((n for n in namings.NAMINGS if n.is_cut and n.family == config.family), None)
    if naming is None:
        raise UsageError(f"--format=plug cuts models of the family palm; this one is of the family {config.family}")
    kept = _kept(naming, tensors, allow_dropped)
    translation = Translation(naming)
    named = _named(naming, config, kept)
    # The released files hold a tied tensor twice.
    named |= {name: named[repeated] for name, repeated in naming.ties.items() if repeated in named}
    places = {name: translation.to_ours(naming.ties.get(name, name)) for name in named}
    rules = {name: place[0] for name, place in places.items() if place is not None}
    vocabulary = _vocabulary(vocab_files, config, naming.vocabularies, do_lower_case=None)
    with writing_directory(directory) as folder:
        for rank in range(count):
            shares = {name: cut(named[name], rule, count, rank, name) for name, rule in rules.items()}
            state = {"module": shares, "mp_world_size": count, "dp_world_size": 1, "global_steps": 0}
            save_torch(folder / rank_file(rank), state)
        _write_json(folder / "config.json", naming.describe(config))
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    return Written(Path(directory), naming.name, config, kept, sorted(set(tensors) - set(kept)))


def write_ours(
    directory: str | Path,
    config: Config,
    tensors: Tensors,
    vocab_files: Vocabularies = (),
    *,
    labels: Sequence[str] = (),
    part_bytes: int = PART_BYTES,
) -> Written:
    """Write model.safetensors and state.json as `training/checkpoints.py` reads them: a `best/` folder at step 0."""
    vocabulary = _vocabulary(vocab_files, config, _ANY_VOCABULARY, do_lower_case=None)
    parts = in_parts({name: tensors[name].nbytes for name in sorted(tensors)}, part_bytes)
    with writing_directory(directory) as folder:
        files = {}
        for number, names in enumerate(parts, 1):
            path = folder / part_name("model.safetensors", number, len(parts))
            digest = save_safetensors(path, {name: tensors[name] for name in names})
            files[path.name] = {"sha256": digest, "bytes": path.stat().st_size}
        state = {"format": 1, "step": 0, "seed": 0, "config": dataclasses.asdict(config), "progress": {}}
        _write_json(folder / "state.json", state | {"files": files})
        if labels:
            _write_json(folder / LABELS, list(labels))
        for name, content in vocabulary.items():
            (folder / name).write_bytes(content)
    return Written(Path(directory), "ours", config, dict(tensors), [])


def _check_decoder(config: Config, naming: Naming) -> None:
    """Raise `UsageError` for a model that generates, under names whose models do not."""
    if config.num_decoder_layers and not naming.generates:
        raise UsageError(
            f"this model has a decoder, which {naming.model_type} has not; use --model_type=auto, or --format=ours, "
            "which can hold it"
        )


def _transformers_naming(model_type: str, config: Config, tensors: Tensors) -> Naming:
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
        # One that is for other heads alone has no place for what every model has.
        key=lambda naming: (
            naming.serves(config),
            naming.writes(config),
            len(heads & naming.heads),
            not naming.absent,
        ),
    )


def _tf1_naming(config: Config) -> Naming:
    """Return the naming of the family's own TF 1 code that says the same as the config.

    Raises `UsageError` for a family that never had such code.
    """
    codes = [naming for naming in namings.NAMINGS if naming.container == "tf1"]
    for naming in codes:
        if naming.family == config.family and naming.writes(config):
            return naming
    raise UsageError(
        f"--format=tf1 writes models of {', '.join(sorted({naming.family for naming in codes}))}; the family "
        f"{config.family} has no TF 1 code: use --format=transformers"
    )


def _kept(naming: Naming, tensors: Tensors, allow_dropped: Sequence[str]) -> dict[str, Array]:
    """Return the tensors that have a place; raise `UsageError` for another that no pattern allows to be left out.

    Vectors of languages have a place in no naming but ours, and nothing that is written depends on them.
    """
    kept = {name: value for name, value in tensors.items() if _has_place(naming, name, value)}
    lost = [
        name
        for name in sorted(tensors.keys() - kept.keys())
        if not any(re.fullmatch(pattern, name) for pattern in (*allow_dropped, f"{LANGUAGES}/.*"))
    ]
    if lost:
        head = lost[0].split("/")[0]
        count = naming.head_classes.get(head)
        reason = "" if count is None else f", whose {head} has {count} classes and not {tensors[lost[0]].shape[-1]}"
        raise UsageError(
            f"{few_names(lost)} have no place in {naming.name}{reason}; --format=ours keeps them; to leave them out, "
            f"say so: --allow_unexpected={head}/.*"
        )
    return kept


def _has_place(naming: Naming, name: str, value: Array) -> bool:
    """Return whether a tensor can be written; a head may have none, or may need another number of classes there."""
    head = name.split("/")[0]
    if head == "backbone":
        return True
    return head in naming.heads and value.shape[-1] == naming.head_classes.get(head, value.shape[-1])


def _named(naming: Naming, config: Config, tensors: Tensors) -> dict[str, Array]:
    named, lost = Translation(naming, config.inner_group_num).exported(tensors)
    if lost:
        raise UsageError(f"{naming.name} has no place for {lost[0]}")
    named |= {name: np.zeros(shape(config), np.float32) for name, shape in naming.zeros.items()}
    # In the order of names, so that the same weights are the same files wherever they come from.
    return dict(sorted(named.items()))


# What transformers calls the kinds of `tasks.kinds.KINDS` that are not the choice of one class.
_PROBLEM_TYPES = {"regression": "regression", "multilabel": "multi_label_classification"}
# Of their classes the head reads the pooled vector as it is, as ours does.
_WITH_MULTIPLE_CHOICE = ("Bert", "Albert")


def _transformers_config(
    naming: Naming, config: Config, tensors: Tensors, labels: Sequence[str], kind: str
) -> dict[str, Any]:
    values: dict[str, Any] = {"model_type": naming.model_type}
    head = next((head for head in _CLASSES if f"{head}/kernel" in tensors), "")
    if head == "classifier" and kind == "choice":
        if naming.class_prefix not in _WITH_MULTIPLE_CHOICE:
            raise UsageError(
                f"a run of multiple choice has no class in {naming.name}; "
                "use --model_type=bert or albert, or leave the classifier out: --allow_unexpected=classifier/.*"
            )
        values["architectures"] = [f"{naming.class_prefix}ForMultipleChoice"]
    elif head:
        count = tensors[f"{head}/kernel"].shape[1]
        if labels and len(labels) != count:
            raise UsageError(f"{len(labels)} labels given ({', '.join(labels)}), the {head} has {count} classes")
        names = list(labels) or [f"LABEL_{i}" for i in range(count)]
        values["architectures"] = [f"{naming.class_prefix}{_CLASSES[head]}"]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
        if kind in _PROBLEM_TYPES:
            values["problem_type"] = _PROBLEM_TYPES[kind]
    elif naming.generates:
        # Without a class of its own, a head of the encoder is a part of the model that generates.
        values["architectures"] = [f"{naming.class_prefix}ForConditionalGeneration"]
    elif "span/kernel" in tensors:
        values["architectures"] = [f"{naming.class_prefix}ForQuestionAnswering"]
    elif "masked_lm/output_bias" in tensors:
        head = "ForPreTraining" if "sentence_pair/kernel" in tensors else "ForMaskedLM"
        values["architectures"] = [f"{naming.class_prefix}{head}"]
    else:
        values["architectures"] = [f"{naming.class_prefix}Model"]
    described = {name: getattr(config, name) for name in naming.config_keys} or naming.describe(config)
    activation = {"hidden_act": transformers_activation(config)} if "hidden_act" in described else {}
    values |= {**described, **activation}
    own = {} if naming.code is None else naming.code.description(tensors, generates=naming.generates)
    return {**values, **naming.config_constants, **own}


def _vocabulary(
    files: Vocabularies, config: Config, forms: Sequence[VocabularyForm], do_lower_case: bool | None
) -> dict[str, bytes]:
    """Return contents by file name; with `do_lower_case` also the files from which transformers builds a tokenizer."""
    contents: dict[str, bytes] = {}
    for file in files:
        found = file if isinstance(file, VocabularyFile) else VocabularyFile.read(Path(file))
        content = found.content
        try:
            if found.ids:
                contents |= ernie_m_files(found, config.vocab_size)
                continue
            kinds = [form for form in forms if form.is_sentencepiece == found.name.endswith(".model")]
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
            raise UsageError(f"vocabulary {found.path}: {error}") from error
    return contents


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


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
