"""What lies beside the weights of --init_checkpoint, where flags do not name it: the model's shape and its tokenizer.

    --model_name_or_path=DIR    a run's output folder, a conversion's, a folder of transformers or of PaddleNLP

A flag that is given wins. Without --do_train the weights may be those of --output_dir.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from ground.addresses import is_address

if TYPE_CHECKING:
    from conversion.readers import Checkpoint
    from conversion.tokenizer_files import VocabularyFile
    from modeling.config import Config

_EXPECTED = (
    "a folder with the weights (model_state.pdparams, model.safetensors, pytorch_model.bin, or a run's), config.json "
    "and the tokenizer's files"
)


def with_folder(options: Any) -> tuple[Any, Config | None]:
    """Return the options with the tokenizer's files, and the model's config; None where --bert_config_file gives it.

    Raises:
        UsageError: neither flags nor what lies beside the weights tell them.
    """
    has_tokenizer = options.vocab_file or options.spm_model_file
    if options.bert_config_file and has_tokenizer:
        return options, None
    source = options.init_checkpoint or (None if options.do_train else _own_weights(options.output_dir))
    if source is None:
        lacking = "--vocab_file or --spm_model_file" if options.bert_config_file else "--bert_config_file"
        raise UsageError(
            f"missing required flag: {lacking}; or give --init_checkpoint (--model_name_or_path), {_EXPECTED}"
        )
    checkpoint = _read(source)
    if not has_tokenizer:
        options = _with_tokenizer(options, checkpoint, source)
    if options.bert_config_file:
        return options, None
    if checkpoint.config is None:
        raise UsageError(f"no config lies beside the weights of --init_checkpoint={source}: give --bert_config_file")
    return options, checkpoint.config


def _own_weights(output_dir: str) -> str | None:
    folder = Path(output_dir)
    return output_dir if (folder / "run.json").is_file() else None


def _read(source: str) -> Checkpoint:
    from conversion.readers import read_checkpoint

    is_name = not is_address(source) and "/" not in source.rstrip("/") and not Path(source).suffix
    if is_name and not Path(source).exists() and not Path(f"{source}.index").exists():
        raise UsageError(
            f"--init_checkpoint={source}: there is no such folder, and names of models are not looked up on the web; "
            f"download it and give {_EXPECTED}"
        )
    return read_checkpoint(source, prefer_best=True)


def _with_tokenizer(options: Any, checkpoint: Checkpoint, source: str) -> Any:
    """Return the options with the files of the tokenizer beside a checkpoint, and with what is known of its text."""
    from conversion.beside import find_vocabulary, is_lowered

    found = find_vocabulary(checkpoint, None, segmentation=options.segmentation)
    if not found or not found[0].path.name.endswith((".txt", ".model")):
        there = f", only {found[0].path.name}" if found else ""
        raise UsageError(
            f"no vocab.txt or .model lies beside the weights of --init_checkpoint={source}{there}: give --vocab_file "
            "or --spm_model_file"
        )
    return dataclasses.replace(
        options,
        **files_of(found[0]),
        segmentation=found[0].segmentation or options.segmentation,
        do_lower_case=options.do_lower_case and (bool(found[0].ids) or is_lowered(checkpoint)),
    )


def files_of(found: VocabularyFile) -> dict[str, str]:
    """Return the tokenizer's files by flag."""
    if found.ids:
        return {"spm_model_file": str(found.path), "vocab_file": str(found.ids.path)}
    return {"vocab_file" if found.name.endswith(".txt") else "spm_model_file": str(found.path)}
