"""Sentences of English, German and French with their translations, as the recipes of several languages use them.

Lines of Multi30k are learnt from or held out; partners are looked for among those held out and in Tatoeba (LASER), by
the mean of a layer and without further training. The floor is the cosine of the pieces that two sentences share.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.flags import flag, write_config
from examples.steps import Step, check_same, command, results_in, run_steps, write_model_config
from ground.files import write_atomically

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

ENGLISH, TATOEBA = "en", {"de": "deu", "fr": "fra"}
LANGUAGES = (ENGLISH, *TATOEBA)
PAIRS = ("en-de", "en-fr", "de-fr")
SETS = (*(f"multi30k_{code}" for code in TATOEBA), *(f"tatoeba_{code}" for code in TATOEBA.values()))
"""What retrieval is tried on."""
# About a model of width 128 on two cores; the pace of steps that are done corrects them.
STARTUP_SECONDS, TOKENS_PER_SECOND = 12.0, 12_000
Line = Mapping[str, str]
"""Language -> sentence, all of them translations of one another."""
_OF_SET = "retrieval_accuracy_"


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What the recipes of several languages ask alike."""

    data_dir: str = flag(help="folder of train.en, train.de and train.fr, whose lines belong together (Multi30k)")
    tatoeba_dir: str = flag(help="folder of tatoeba.deu-eng.deu, tatoeba.deu-eng.eng and the same of fra (LASER)")
    output_dir: str = flag(help="folder for all that is made; a run that finds its own goes on")
    seeds: tuple[int, ...] = flag((1, 2, 3), help="of pretraining, and of the fine-tuning that goes on from it")
    layers: tuple[int, ...] = flag((2, 3, 4), help="whose mean a sentence is in retrieval, from 0, the embeddings")
    dry_run: bool = flag(False, help="only list the commands that are left to run, and about how long they take")
    vocab_size: int = flag(6000, help="of the vocabulary that is learnt", unit="tokens", minimum=300)
    held_out: int = flag(1000, help="lines that are scored and that no model learns from", minimum=2)
    max_seq_length: int = flag(32, help="of a sentence in pretraining", unit="tokens", minimum=8)
    texts_per_step: int = flag(96, help="of pretraining, with every arm", unit="sentences", minimum=2)
    pretraining_learning_rate: float = flag(2e-3, help="peak learning rate of pretraining", minimum=0)
    train_batch_size: int = flag(32, help="of fine-tuning", unit="examples", minimum=1)
    learning_rate: float = flag(1e-3, help="peak learning rate of fine-tuning", minimum=0)
    precision: str = flag("bfloat16", help="compute precision", choices=("float32", "bfloat16"))


GROWING = ("output_dir", "arms", "seeds", "layers", "dry_run")
"""Flags that may differ from those of the run that goes on."""


def run_recipe(
    name: str,
    options: Any,
    *,
    shapes: Mapping[str, Mapping[str, Any]],
    write_texts: Callable[[Any, list[Line], list[Line]], None],
    plan: Callable[[Any], list[Step]],
    write_tables: Callable[[Any], str],
) -> int:
    """Run all steps of a recipe that are left; return the exit status of the first that fails.

    Args:
        name: of the recipe, for messages.
        options: `SharedOptions` and those of the recipe, with `bert_config_file`.
        shapes: what each of its models changes in the config, by name.
        write_texts: writes what the commands read, of the lines to learn from and of those held out.
        plan: returns all steps in order.
        write_tables: writes the tables of what is done; returns them as text.
    """
    if not Path(options.bert_config_file).is_file():
        raise UsageError(f"--bert_config_file={options.bert_config_file}: no such file")
    if options.texts_per_step % 2:
        raise UsageError(f"--texts_per_step={options.texts_per_step}: expected an even number, as pairs have two texts")
    check_same(options, GROWING)
    folder = Path(options.output_dir)
    train, held_out = split_lines(options)
    print(f"{len(train):,} lines to learn from, {len(held_out):,} held out")
    if not options.dry_run:
        write_config(options, folder / "config.json")
        write_texts(options, train, held_out)
        for shape, changes in shapes.items():
            write_model_config(options.bert_config_file, None, options.vocab_size, folder / "models" / shape, **changes)
    status = run_steps(name, plan(options), folder, lambda: write_tables(options), dry_run=options.dry_run)
    if not status and not options.dry_run:
        print("\n" + write_tables(options), end="")
    return status


# -- texts -------------------------------------------------------------------------------------------------------------


def split_lines(options: SharedOptions) -> tuple[list[Line], list[Line]]:
    """Return the lines to learn from and those held out, the same for every arm and seed.

    No sentence that is held out stands among those to learn from, in any language.
    """
    texts = {language: read_lines(Path(options.data_dir) / f"train.{language}") for language in LANGUAGES}
    sizes = {language: len(lines) for language, lines in texts.items()}
    if len({*sizes.values()}) > 1:
        shown = ", ".join(f"train.{language} {size:,}" for language, size in sizes.items())
        raise UsageError(f"--data_dir={options.data_dir}: {shown} lines; expected as many in every file")
    lines: list[Line] = [dict(zip(LANGUAGES, each, strict=True)) for each in zip(*texts.values(), strict=True)]
    lines = [line for line in lines if all(line.values())]
    random.Random(0).shuffle(lines)
    held_out = lines[: options.held_out]
    known = {text.casefold() for line in held_out for text in line.values()}
    train = [line for line in lines[options.held_out :] if not known & {text.casefold() for text in line.values()}]
    if not train:
        raise UsageError(f"--held_out={options.held_out} leaves none of {len(lines):,} lines to learn from")
    return train, held_out


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file without the spaces around them; raises `UsageError` where there is none."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected sentences, line n of every file of the same meaning")
    return [line.strip() for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a file where it is not there yet; a command that was stopped may still be reading it when it goes on."""
    if not path.is_file():
        write_atomically(path, "".join(f"{line}\n" for line in lines))


def write_sentences(options: SharedOptions, part: str, lines: Sequence[Line], in_document: int) -> None:
    """Write the sentences of a part, "train" or "held_out", line by line and as documents of so many sentences each."""
    folder = Path(options.output_dir)
    for language in LANGUAGES:
        texts = [line[language] for line in lines]
        documents = ["\n".join(texts[begin : begin + in_document]) for begin in range(0, len(texts), in_document)]
        write_lines(folder / f"text/{part}.{language}", texts)
        write_lines(folder / f"text/{part}_alone.{language}", [f"{document}\n" for document in documents])


def write_retrieval(options: SharedOptions, held_out: Sequence[Line]) -> None:
    """Write what retrieval is tried on, sentences and the same in English: held-out lines, and Tatoeba."""
    folder = Path(options.output_dir)
    sets = {f"multi30k_{code}": [[line[end] for line in held_out] for end in (code, ENGLISH)] for code in TATOEBA}
    for code in TATOEBA.values():
        path = Path(options.tatoeba_dir) / f"tatoeba.{code}-eng"
        sets[f"tatoeba_{code}"] = [read_lines(path.with_name(f"{path.name}.{end}")) for end in (code, "eng")]
    for name, sides in sets.items():
        for end, lines in zip((name, "eng"), sides, strict=True):
            write_lines(folder / f"retrieval/{name}-eng.{end}", lines)


def retrieval_rows(options: SharedOptions) -> str:
    """Return the rows of retrieval by each layer, in the form of tasks/datasets.toml."""
    return "\n".join(
        f'[retrieval_layer_{layer}]\nkind = "matching"\nformat = "aligned"\ncolumns = ["text_a", "text_b"]\n'
        f'pooling_layer = {layer}\nmetric = "retrieval_accuracy"\nfiles = {{ dev = ["*-eng.eng"] }}\n'
        for layer in options.layers
    )


# -- steps -------------------------------------------------------------------------------------------------------------


def vocabulary(options: SharedOptions) -> Step:
    """Return the step that learns one vocabulary of all languages."""
    folder = Path(options.output_dir)
    texts = ",".join(f"{language}={folder}/text/train.{language}" for language in LANGUAGES)
    flags: dict[str, object] = {"input_file": texts, "output_file": folder / "spiece.model", "model_type": "unigram"}
    flags |= {"layout": "xlmr", "vocab_size": options.vocab_size, "character_coverage": 1}
    return Step("vocabulary", command("train_tokenizer", flags), [folder / "spiece.model"], 10.0)


def records(
    options: SharedOptions, name: str, part: str, objective: str, texts: Mapping[str, str], length: int
) -> Step:
    """Return the step that makes records.

    Args:
        options: of the recipe.
        name: of the records.
        part: "train" or "held_out".
        objective: that they are made for.
        texts: files by language or pair.
        length: of a row, in tokens.
    """
    folder = Path(options.output_dir)
    flags: dict[str, object] = {
        "input_file": ",".join(f"{code}={path}" for code, path in texts.items()),
        "output_file": folder / f"records/{name}/{part}.tfrecord",
        "spm_model_file": folder / "spiece.model",
        "objective": objective,
        "masking": "dynamic",
        "max_seq_length": length,
        "max_predictions_per_seq": round(0.15 * length) + 1,
        "dupe_factor": 1,
    }
    products = [folder / f"records/{name}/{part}.{code}.manifest.json" for code in texts]
    return Step(f"records {name} {part}", command("create_pretraining_data", flags), products, 12.0)


def texts_alone(options: SharedOptions, part: str) -> dict[str, str]:
    """Return the files of documents by language."""
    return {code: f"{options.output_dir}/text/{part}_alone.{code}" for code in LANGUAGES}


def texts_in_pairs(options: SharedOptions, part: str) -> dict[str, str]:
    """Return the files of translations by pair."""
    return {pair: ":".join(f"{options.output_dir}/text/{part}.{code}" for code in pair.split("-")) for pair in PAIRS}


def pretraining_flags(options: SharedOptions, num_steps: int, seed: int) -> dict[str, object]:
    """Return the flags of a pretraining run that every arm has."""
    return {
        "do_train": True,
        "num_train_steps": num_steps,
        "num_warmup_steps": num_steps // 10,
        "learning_rate": options.pretraining_learning_rate,
        "precision": options.precision,
        "optimizer": "adamw",
        "adam_bias_correction": True,
        "adam_beta2": 0.98,
        "save_checkpoints_steps": max(1, num_steps // 3),
        "keep_checkpoint_max": 1,
        "seed": seed,
    }


# Scored once, after the last step: no weights are chosen by the examples that are scored.
FINE_TUNING: Mapping[str, object] = {
    "adam_bias_correction": True,
    "adam_beta2": 0.98,
    "save_checkpoints_steps": 1_000_000,
    "keep_checkpoint_max": 1,
}
"""Flags of every fine-tuning run."""


def retrieval(options: SharedOptions, name: str, seed: int, layer: int, shape: str, start: Path, length: int) -> Step:
    """Return the step that looks for the partners of sentences by the mean of a layer, all sets in one run.

    Args:
        options: of the recipe.
        name: of the arm.
        seed: of its pretraining.
        layer: from 0, the embeddings.
        shape: of its model.
        start: folder of its pretraining.
        length: of a sentence, in tokens.
    """
    folder = Path(options.output_dir)
    output = folder / f"retrieval_runs/{name}/seed_{seed}/layer_{layer}"
    flags: dict[str, object] = {
        "task_name": f"retrieval_layer_{layer}",
        "task_file": folder / "tasks.toml",
        "data_dir": folder / "retrieval",
        "spm_model_file": folder / "spiece.model",
        "bert_config_file": folder / f"models/{shape}/model_config.json",
        "init_checkpoint": start,
        "output_dir": output,
        "do_eval": True,
        "max_seq_length": length,
    }
    words = command("run_classifier", flags)
    return Step(f"retrieval {name} seed {seed} layer {layer}", words, [output / "eval_results.json"], 20.0)


# -- scores and tables -------------------------------------------------------------------------------------------------


def shared_pieces(options: SharedOptions) -> dict[str, float]:
    """Return by set the accuracy of retrieval by the cosine of the pieces of two sentences, as often as they occur."""
    from data.tokenizers import load_tokenizer
    from tasks.retrieval import retrieval_scores

    folder = Path(options.output_dir)
    if not (folder / "spiece.model").is_file():
        return {}
    tokenizer, found = load_tokenizer(spm_model_file=str(folder / "spiece.model")), {}
    for path in sorted(folder.glob("retrieval/*-eng.eng")):
        name = path.stem.removesuffix("-eng")
        vectors = [counts(read_lines(side), tokenizer) for side in (path.with_suffix(f".{name}"), path)]
        found[name] = retrieval_scores(*vectors)["retrieval_accuracy"]
    return found


def counts(sentences: list[str], tokenizer: Tokenizer) -> Any:
    """Return how often each piece occurs in each sentence, float32 [N, V], of length 1."""
    import numpy as np

    encoded = tokenizer.encode_batch(sentences)
    found = np.zeros((len(sentences), tokenizer.vocab_size), np.float32)
    np.add.at(found, (np.repeat(np.arange(len(sentences)), np.diff(encoded.splits)), encoded.ids), 1.0)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def retrieval_scores_of(options: SharedOptions, name: str, seed: int) -> dict[str, float]:
    """Return the accuracies of retrieval of an arm and a seed that are there yet, as `layer_3/tatoeba_deu`."""
    found = {}
    for layer in options.layers:
        path = Path(options.output_dir) / f"retrieval_runs/{name}/seed_{seed}/layer_{layer}/eval_results.json"
        of_sets = {key: value for key, value in results_in(path).items() if key.startswith(_OF_SET)}
        found |= {f"layer_{layer}/{key.removeprefix(_OF_SET)}": value for key, value in of_sets.items()}
    return found


def over_seeds(runs: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Return mean, deviation and the score of each seed, by score; a seed may lack scores."""
    from tasks.metrics import mean_and_deviation

    summary = {}
    for score in dict.fromkeys(score for found in runs.values() for score in found):
        own = {seed: found[score] for seed, found in runs.items() if score in found}
        mean, deviation = mean_and_deviation([{"score": value} for value in own.values()])["score"]
        summary[score] = {"mean": mean, "deviation": deviation, "seeds": own}
    return summary


def cell(summary: Mapping[str, Any], score: str, digits: int) -> str:
    """Return a mean and its deviation for a table; empty where the score is not there yet."""
    found = summary.get(score)
    return f"{found['mean']:.{digits}f} ± {found['deviation']:.{digits}f}" if found else ""


def retrieval_table(
    options: SharedOptions, titles: Mapping[str, str], arms: Mapping[str, Any], floor: Mapping[str, float]
) -> list[str]:
    """Return the lines of retrieval by arm and layer as Markdown; `titles` has the arms that are pretrained."""
    lines = [f"| sentence retrieval | layer | {' | '.join(SETS)} |", "|---" * (2 + len(SETS)) + "|"]
    floors = [f"{floor[name]:.3f}" if name in floor else "" for name in SETS]
    lines.append(f"| shared pieces, no model | | {' | '.join(floors)} |")
    for arm, title in titles.items():
        for layer in options.layers:
            cells = [cell(arms[arm], f"layer_{layer}/{name}", 3) for name in SETS]
            lines.append(f"| {title} | {layer} | {' | '.join(cells)} |")
    return lines
