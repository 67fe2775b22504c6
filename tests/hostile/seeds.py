"""The valid inputs that all cases begin from, and the ordinary calls that succeed with them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.hostile.case import Base

CONFIG = "in/shared.json"
TEXT, VOCABULARY, PIECES = "in/text.txt", "in/vocab.txt", "in/spiece.model"
OTHER_TEXT = "in/text.gb18030"
ASKED = "in/asked.tsv"
NUMBERED = ("in/pieces.txt", "in/pieces.model")
KEY = "in/key.txt"
EXPORT = "in/export"
VICTIM = "victim/thesis.txt"
TRAINING = {"do_train": "true", "log_steps": "1", "backend": "tensorflow"}
CREATE = {
    "input_file": TEXT,
    "output_file": "out/a.tfrecord",
    "vocab_file": VOCABULARY,
    "max_seq_length": "32",
    "max_predictions_per_seq": "5",
    "dupe_factor": "1",
    "num_workers": "1",
}
PRETRAIN = {
    "input_file": "in/records/*.tfrecord",
    "bert_config_file": CONFIG,
    "output_dir": "out",
    "do_eval": "true",
    "max_eval_steps": "1",
    "train_batch_size": "2",
    "num_train_steps": "1",
    "num_warmup_steps": "0",
    **TRAINING,
}
CLASSIFY = {
    "task_name": "lcqmc",
    "data_dir": "in/pairs",
    "vocab_file": VOCABULARY,
    "bert_config_file": CONFIG,
    "output_dir": "out",
    "max_seq_length": "24",
    "train_batch_size": "8",
    "num_train_steps": "1",
    **TRAINING,
}
_TOKENIZER = ("vocab_file", "spm_model_file")
_SIDES = ("in/parallel.en", "in/parallel.zh")
_MODEL = (*_TOKENIZER, "bert_config_file", "init_checkpoint")


def _create(name: str, uses: tuple[str, ...], **flags: str) -> Base:
    given = {flag: value for flag, value in {**CREATE, **flags}.items() if value}
    return Base(name, "create_pretraining_data", given, uses, ("out/",), ("input_file", *_TOKENIZER), ("output_file",))


def _train_tokenizer(name: str, **flags: str) -> Base:
    given = {"input_file": TEXT, "output_file": "out/tokens", "vocab_size": "900", **flags}
    return Base(name, "train_tokenizer", given, (TEXT,), ("out/",), ("input_file",), ("output_file",))


def _inspect(action: str, folder: str = "records", outputs: tuple[str, ...] = ()) -> Base:
    given = {"action": action, "input_file": f"in/{folder}/zh.tfrecord"}
    # A repair reads no vocabulary, and refuses one.
    reads = ("input_file",) if action == "repair" else ("input_file", "vocab_file")
    if "vocab_file" in reads:
        given["vocab_file"] = VOCABULARY
    return Base(f"inspect_{action}_{folder}", "inspect_records", given, (f"in/{folder}", VOCABULARY), outputs, reads)


def _pretrain(name: str, uses: tuple[str, ...], outputs: tuple[str, ...] = ("out/",), **flags: str) -> Base:
    return Base(name, "run_pretraining", {**PRETRAIN, **flags}, uses, outputs, ("input_file", *_MODEL), ("output_dir",))


def _classify(name: str, uses: tuple[str, ...], outputs: tuple[str, ...] = ("out/",), **flags: str) -> Base:
    reads = ("data_dir", "task_file", *_MODEL)
    given = {flag: value for flag, value in {**CLASSIFY, **flags}.items() if value}
    return Base(name, "run_classifier", given, uses, outputs, reads, ("output_dir",))


def _convert(name: str, source: str, kind: str = "ours", **flags: str) -> Base:
    given = {"input": source, "output": "out/converted", "format": kind, **flags}
    reads = ("input", "config_file", "vocab_file")
    uses = (source, CONFIG, VOCABULARY)
    return Base(name, "convert_checkpoint", given, uses, ("out/",), reads, ("output",))


def _serve(name: str, model: str) -> Base:
    # Compiling every shape takes longer than all else.
    given = {"model": f"tuned={model}", "port": "0", "warm_up": "false", "api_key_file": KEY}
    return Base(name, "serve", given, (model, KEY), (), ("api_key_file",))


_PAIRS = ("in/pairs", CONFIG, VOCABULARY)
BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        _create("create", (TEXT, VOCABULARY)),
        _create("create_pieces", (TEXT, PIECES), vocab_file="", spm_model_file=PIECES),
        _create("create_numbered", (TEXT, *NUMBERED), vocab_file=NUMBERED[0], spm_model_file=NUMBERED[1]),
        _create("create_json", ("in/text.jsonl", VOCABULARY), input_file="in/text.jsonl", eval_fraction="0.3"),
        _create("create_words", (TEXT, VOCABULARY), objective="structbert", do_whole_word_mask="true", ngram="3"),
        _create("create_dynamic", (TEXT, VOCABULARY), masking="dynamic"),
        _create("create_packed", (TEXT, VOCABULARY), objective="masked_lm", pack_sequences="true"),
        _create("create_targets", (TEXT, VOCABULARY), objective="palm"),
        _create(
            "create_drawn",
            (TEXT, VOCABULARY),
            objective="plug",
            source_length_range="8,20",
            target_length_range="4,16",
            max_target_length="20",
        ),
        _create("create_encoding", (OTHER_TEXT, VOCABULARY), input_file=OTHER_TEXT, encoding="gb18030"),
        _create("create_bad_text", (OTHER_TEXT, VOCABULARY), input_file=OTHER_TEXT, accept_bad_text="true"),
        dataclasses.replace(
            _create("create_sides", (*_SIDES, VOCABULARY), input_file="en-zh=" + ":".join(_SIDES), objective="veco"),
            reads=_TOKENIZER,
        ),
        dataclasses.replace(
            _create("create_halves", (*_SIDES, VOCABULARY), input_file="en-zh=" + ":".join(_SIDES), objective="camlm"),
            reads=_TOKENIZER,
        ),
        _train_tokenizer("train_wordpiece", common_characters="false"),
        _train_tokenizer("train_unigram", model_type="unigram"),
        _inspect("show"),
        _inspect("stats"),
        _inspect("verify"),
        _inspect("repair", outputs=("in/records/",)),
        _inspect("show", "bare"),
        _inspect("stats", "bare"),
        _inspect("verify", "bare"),
        _inspect("stats", "dynamic"),
        _inspect("show", "packed"),
        _inspect("show", "targets"),
        _inspect("verify", "targets"),
        _pretrain("pretrain", ("in/records", CONFIG)),
        _pretrain("pretrain_bare", ("in/bare", CONFIG), input_file="in/bare/zh.tfrecord", do_eval="false"),
        _pretrain("pretrain_dynamic", ("in/dynamic", CONFIG), input_file="in/dynamic/*.tfrecord"),
        _pretrain(
            "pretrain_targets",
            ("in/targets", "in/decodes.json"),
            input_file="in/targets/*.tfrecord",
            bert_config_file="in/decodes.json",
            objective="palm",
            masked_lm_until="0.5",
        ),
        _pretrain(
            "pretrain_sides",
            ("in/sides", "in/sides.json"),
            input_file="in/sides/*.tfrecord",
            bert_config_file="in/sides.json",
            objective="veco",
            parallel_share="0.5",
        ),
        _pretrain(
            "pretrain_mixed",
            ("in/records", "in/targets", "in/decodes.json"),
            input_file="in/records/*.tfrecord,palm=in/targets/*.tfrecord",
            bert_config_file="in/decodes.json",
            objective="albert:3,palm:1",
            objective_weights="palm:2",
        ),
        _pretrain(
            "pretrain_across",
            ("in/halves", "in/across.json"),
            input_file="in/halves/*.tfrecord",
            bert_config_file="in/across.json",
            objective="camlm",
            camlm_positions="restarted",
        ),
        _pretrain(
            "pretrain_beside_pseudo",
            ("in/pseudo", "in/across.json"),
            input_file="in/pseudo/*.tfrecord",
            bert_config_file="in/across.json",
            objective="btmlm",
            allow_any_start="true",
            pseudo_length_ratio="0.5",
        ),
        _pretrain(
            "pretrain_across_and_beside_pseudo",
            ("in/halves", "in/pseudo", "in/across.json"),
            input_file="in/halves/*.tfrecord,in/pseudo/*.tfrecord",
            bert_config_file="in/across.json",
            objective="camlm:0.5,btmlm:0.5",
            camlm_positions="restarted",
            do_eval="false",
        ),
        _pretrain(
            "pretrain_in_a_language",
            ("in/named", "in/across.json"),
            input_file="in/named/*.tfrecord",
            bert_config_file="in/across.json",
            objective="btmlm",
            allow_any_start="true",
            language_signal="true",
            pseudo_language="en",
        ),
        _pretrain("pretrain_from", ("in/records", CONFIG, "in/shared"), init_checkpoint="in/shared"),
        _pretrain(
            "pretrain_resumed",
            ("in/records", CONFIG, "in/pretraining"),
            ("in/pretraining/",),
            output_dir="in/pretraining",
            num_train_steps="3",
        ),
        _classify("classify", _PAIRS, do_predict="true"),
        _classify("classify_from", (*_PAIRS, "in/tf1"), init_checkpoint="in/tf1"),
        _classify(
            "classify_rows", (*_PAIRS, "in/tasks.toml"), task_name="mirrored", task_file="in/tasks.toml", do_eval="true"
        ),
        _classify("classify_encoding", ("in/pairs_other", *_PAIRS[1:]), data_dir="in/pairs_other", encoding="gb18030"),
        _classify("classify_json", ("in/pairs_json", *_PAIRS[1:]), task_name="afqmc", data_dir="in/pairs_json"),
        _classify(
            "classify_languages",
            ("in/languages", *_PAIRS[1:]),
            task_name="xnli",
            data_dir="in/languages",
            task_type="cross-lingual-transfer",
            selection_language="fr",
            do_predict="true",
        ),
        _classify(
            "match",
            ("in/translations", *_PAIRS[1:]),
            task_name="tatoeba",
            data_dir="in/translations",
            retrieval_margin="ratio",
            pooling_layer="1",
            do_eval="true",
        ),
        _classify(
            "classify_table", ("in/table", *_PAIRS[1:]), task_name="csv", data_dir="in/table", text_column="other"
        ),
        _classify(
            "classify_asked",
            (*_PAIRS, "in/tasks.toml"),
            task_name="asked",
            task_file="in/tasks.toml",
            method="pet",
            pattern="{text_a}[SEP][P1=a][MASK]{text_b}",
            verbalizer="0=a,1=b|c d",
            auxiliary_weight="0.1",
            do_predict="true",
        ),
        _classify("classify_contrast", _PAIRS, method="cp_tuning", do_predict="true"),
        _classify(
            "classify_resumed",
            (*_PAIRS, "in/tuned"),
            ("in/tuned/",),
            output_dir="in/tuned",
            num_train_steps="3",
        ),
        _classify(
            "predict", (*_PAIRS, "in/tuned"), ("in/tuned/",), output_dir="in/tuned", do_train="", do_predict="true"
        ),
        dataclasses.replace(
            _classify("classify_taught", (*_PAIRS, "in/tuned"), teacher="in/tuned", distillation_weight="0.9"),
            reads=("data_dir", "task_file", "teacher", *_MODEL),
        ),
        Base(
            "augment",
            "augment_examples",
            {
                "task_name": "lcqmc",
                "data_dir": "in/pairs",
                "output_dir": "out/more",
                "init_checkpoint": "in/shared",
                "vocab_file": VOCABULARY,
                "max_seq_length": "24",
                "num_copies": "1",
                "backend": "tensorflow",
            },
            ("in/pairs", "in/shared", VOCABULARY),
            ("out/",),
            ("data_dir", "task_file", *_MODEL),
            ("output_dir",),
        ),
        Base(
            "ask",
            "predict",
            {"model": "in/tuned", "input_file": ASKED, "output_file": "out/answers.jsonl"},
            ("in/tuned", ASKED),
            ("out/",),
            ("model", "input_file", "vocab_file"),
            ("output_file",),
        ),
        Base(
            "export",
            "export_model",
            {"model": "in/tuned", "input_file": ASKED, "output": "out/export"},
            ("in/tuned", ASKED),
            ("out/",),
            ("model", "input_file", "dev_file", "vocab_file"),
            ("output",),
        ),
        Base(
            "ask_export",
            "predict",
            {"model": EXPORT, "input_file": ASKED, "output_file": "out/answers.jsonl"},
            (EXPORT, ASKED),
            ("out/",),
            ("model", "input_file"),
            ("output_file",),
        ),
        _serve("serve", "in/tuned"),
        _serve("serve_export", EXPORT),
        Base(
            "plan",
            "plan_training",
            {"bert_config_file": CONFIG, "device": "h100", "max_seq_length": "32", "train_batch_size": "8"},
            (CONFIG,),
            (),
            ("bert_config_file",),
        ),
        _convert("convert_ours", "in/shared"),
        _convert("convert_tf1", "in/shared", "tf1"),
        _convert("convert_transformers", "in/shared", "transformers"),
        _convert("convert_from_tf1", "in/tf1"),
        _convert("convert_from_transformers", "in/transformers"),
        _convert("convert_from_file", "in/shared/model.safetensors", config_file=CONFIG, vocab_file=VOCABULARY),
        _convert("convert_from_bin", "in/torch", vocab_file=VOCABULARY),
        _convert("convert_from_archive", "in/shared.tar.gz", vocab_file=VOCABULARY),
        _convert("convert_from_zip", "in/shared.zip", vocab_file=VOCABULARY),
        _convert("convert_run", "in/tuned"),
        # It writes nothing, whatever --output says.
        dataclasses.replace(_convert("list", "in/transformers", list="true"), writes=()),
        Base(
            "convert_albert",
            "convert_albert_tf_checkpoint_to_pytorch",
            {"tf_checkpoint_path": "in/tf1", "bert_config_file": CONFIG, "pytorch_dump_path": "out/converted"},
            ("in/tf1", CONFIG),
            ("out/",),
            ("tf_checkpoint_path", "bert_config_file", "vocab_file"),
            ("pytorch_dump_path",),
        ),
    )
}


def make_seeds(folder: Path) -> None:
    """Write all seeds below `folder`; computes, so call it in a process that does not fork afterwards."""
    from observing import world

    from tests.hostile.sandbox import answer

    # A short text and few weights: every case copies and reads them.
    inside = folder / "in"
    inside.mkdir(parents=True)
    # Manifests name their vocabulary as it was given: from any folder that the seeds are copied to.
    with contextlib.chdir(folder):
        world.make_world(Path("in"))
    for name in (
        "other_tf1",
        "other_pairs",
        "train_alone",
        "aligned",
        "run",
        "reversed.txt",
        "wide.json",
        "relu.json",
        "classifier",
    ):
        path = inside / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / VICTIM).parent.mkdir()
    (folder / VICTIM).write_text("Years of work.\n", encoding="utf-8")
    for name in _SIDES:
        shutil.copy(world.SAMPLES / "parallel" / Path(name).with_stem("train").name, folder / name)
    _json_pairs(inside)
    lines = (inside / "pairs/test.txt").read_text(encoding="utf-8").splitlines()
    (folder / ASKED).write_text("".join(f"{line.rpartition(chr(9))[0]}\n" for line in lines), encoding="utf-8")
    (folder / KEY).write_text("secret-key-1\n", encoding="utf-8")
    _other_encoding(inside)
    _checkpoints(inside)
    _packed(folder)
    _runs(folder)
    for name in ("predict", "ask", "export", "serve", "inspect_stats_records", "convert_from_bin", "plan"):
        _expect_zero(answer(BASES[name].verb, BASES[name].flags, folder))
    (folder / "out/export").rename(folder / EXPORT)
    shutil.rmtree(folder / "out")


def _json_pairs(inside: Path) -> None:
    """Write the pairs as JSON lines too."""
    (inside / "pairs_json").mkdir()
    for split in ("train", "dev", "test"):
        rows = [line.split("\t") for line in (inside / f"pairs/{split}.txt").read_text(encoding="utf-8").splitlines()]
        lines = (
            json.dumps({"sentence1": a, "sentence2": b, "label": label}, ensure_ascii=False) for a, b, label in rows
        )
        (inside / f"pairs_json/{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _other_encoding(inside: Path) -> None:
    """Write the text and the pairs in GB 18030 too."""
    (inside / "pairs_other").mkdir()
    names = {"text.txt": Path(OTHER_TEXT).name} | {f"pairs/{s}.txt": f"pairs_other/{s}.txt" for s in ("train", "dev")}
    for name, other in names.items():
        (inside / other).write_text((inside / name).read_text(encoding="utf-8"), encoding="gb18030")


def _checkpoints(inside: Path) -> None:
    """Write the transformers forms of the shared checkpoint."""
    from conversion.readers import read_checkpoint
    from conversion.writers import write_transformers
    from tests.hostile.sandbox import quiet

    checkpoint = read_checkpoint(inside / "shared")
    assert checkpoint.config is not None
    with quiet():
        vocabulary = [inside / "vocab.txt"]
        write_transformers(inside / "torch", checkpoint.config, checkpoint.tensors, vocabulary, pytorch_bin=True)
        shutil.copytree(inside / "torch", inside / "transformers")
    (inside / "transformers/pytorch_model.bin").unlink()
    (inside / "torch/model.safetensors").unlink()
    for kind in ("gztar", "zip"):
        shutil.make_archive(str(inside / "shared"), kind, inside, "shared")


def _packed(folder: Path) -> None:
    """Write packed records."""
    from tests.hostile.sandbox import answer

    flags = {**BASES["create_packed"].flags, "output_file": "in/packed/zh.tfrecord"}
    _expect_zero(answer("create_pretraining_data", flags, folder))


def _runs(folder: Path) -> None:
    """Write a finished run of each training verb, of two steps that are really computed."""
    import tensorflow as tf

    from tests.hostile.sandbox import answer

    # Compiling takes longer than all steps of so small a model.
    tf.config.run_functions_eagerly(True)
    steps = {"num_train_steps": "2", "save_checkpoints_steps": "1"}
    for verb, flags in (
        ("run_pretraining", {**PRETRAIN, **steps, "output_dir": "in/pretraining"}),
        ("run_classifier", {**CLASSIFY, **steps, "output_dir": "in/tuned"}),
    ):
        _expect_zero(answer(verb, flags, folder))
    tf.config.run_functions_eagerly(False)


def _expect_zero(result: tuple[int, str]) -> None:
    code, text = result
    if code:
        raise RuntimeError(f"a seed cannot be made: {text}")
