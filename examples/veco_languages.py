"""What VECO's cross-lingual terms are worth (Luo et al. 2021): retrieval of translations, and translation.

    python3 -m examples.veco_languages --data_dir=multi30k --tatoeba_dir=tatoeba112 --output_dir=veco --dry_run

learns one vocabulary of English, German and French, pretrains on the same sentences for the same steps and tokens, once
on masked tokens alone and once as VECO does, with every seed; then looks for the partners of held-out sentences without
further training, tunes both models and random weights to translate, and writes table.md and table.json. The floor of
retrieval is the cosine of the pieces that two sentences share.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.flags import flag, run, write_config
from examples.steps import Step, check_same, command, results_in, run_steps, write_model_config
from ground.files import write_atomically

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to pretrain.

    Attributes:
        title: for the table.
        objective: of pretraining; empty for random weights.
        texts: of an example: a sentence, or one and its translation.
        rows: in which an example stands.
        shape: of the model that is pretrained, a key of SHAPES.
        alone, across: accuracies of masked tokens of a text by itself and with its translation in sight.
        cost: operations of a token, against those of masked tokens alone.
    """

    title: str
    objective: str
    texts: int = 2
    rows: int = 1
    shape: str = "alone"
    alone: tuple[str, ...] = ()
    across: tuple[str, ...] = ()
    cost: float = 1.0


ARMS: Mapping[str, Arm] = {
    "random": Arm(title="random weights", objective=""),
    "masked_lm": Arm(title="masked tokens alone", objective="masked_lm", texts=1, alone=("masked_lm_accuracy",)),
    "tlm": Arm(title="masked tokens of joined pairs: TLM", objective="tlm", across=("masked_lm_accuracy",)),
    "veco": Arm(
        title="alone and across: VECO",
        objective="veco",
        rows=2,
        shape="across",
        alone=("masked_lm_accuracy", "other_masked_lm_accuracy"),
        across=("crossed_accuracy", "other_crossed_accuracy"),
        cost=2.3,
    ),
}
SHAPES: Mapping[str, Mapping[str, Any]] = {"alone": {"cross_attention": False}, "across": {"cross_attention": True}}
ENGLISH, TATOEBA = "en", {"de": "deu", "fr": "fra"}
LANGUAGES = (ENGLISH, *TATOEBA)
PAIRS = ("en-de", "en-fr", "de-fr")
SOURCE = "de"
"""The language that is translated into English."""
# About a model of width 128 on two cores; the pace of steps that are done corrects them.
_STARTUP_SECONDS, _TOKENS_PER_SECOND, _TUNED_PER_SECOND, _GENERATED_PER_SECOND = 12.0, 12_000, 150, 12


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare VECO with masked tokens alone: pretrain, look for translations, translate, with several seeds."""

    data_dir: str = flag(help="folder of train.en, train.de and train.fr, whose lines belong together (Multi30k)")
    tatoeba_dir: str = flag(help="folder of tatoeba.deu-eng.deu, tatoeba.deu-eng.eng and the same of fra (LASER)")
    output_dir: str = flag(help="folder for all that is made; a run that finds its own goes on")
    arms: tuple[str, ...] = flag(
        ("random", "masked_lm", "veco"), help="ways to pretrain; random weights only translate", choices=tuple(ARMS)
    )
    seeds: tuple[int, ...] = flag((1, 2, 3), help="of pretraining, and of the fine-tuning that goes on from it")
    layers: tuple[int, ...] = flag((2, 3, 4), help="whose mean a sentence is in retrieval, from 0, the embeddings")
    dry_run: bool = flag(False, help="only list the commands that are left to run, and about how long they take")
    bert_config_file: str = flag("examples/veco_en_de_fr/config.json", help="the model's shape")
    vocab_size: int = flag(6000, help="of the vocabulary that is learnt", unit="tokens", minimum=300)
    held_out: int = flag(1000, help="lines for retrieval and translation that no model learns from", minimum=2)
    max_seq_length: int = flag(32, help="of a sentence in pretraining", unit="tokens", minimum=8)
    num_train_steps: int = flag(3000, help="length of pretraining", unit="steps", minimum=1)
    texts_per_step: int = flag(96, help="of pretraining, with every arm", unit="sentences", minimum=2)
    pretraining_learning_rate: float = flag(2e-3, help="peak learning rate of pretraining", minimum=0)
    num_decoder_layers: int = flag(2, help="last layers of the encoder that become the decoder", minimum=1)
    translation_length: int = flag(40, help="of sources and targets", unit="tokens", minimum=8)
    max_train_examples: int = flag(10_000, help="pairs that translation is learnt from", unit="examples", minimum=1)
    num_train_epochs: float = flag(6.0, help="passes over these pairs", unit="epochs", minimum=0)
    train_batch_size: int = flag(32, help="of translation", unit="examples", minimum=1)
    learning_rate: float = flag(1e-3, help="peak learning rate of translation", minimum=0)
    precision: str = flag("bfloat16", help="compute precision", choices=("float32", "bfloat16"))
    preset: str = flag("veco_nmt", help="how a translation is searched for; see run_generation.py")


_GROWING = ("output_dir", "arms", "seeds", "layers", "dry_run")


def main(options: Options) -> int:
    """Run all steps that are left; return the exit status of the first that fails."""
    check(options)
    check_same(options, _GROWING)
    folder = Path(options.output_dir)
    train, held_out = split_lines(options)
    print(f"{len(train):,} lines to learn from, {len(held_out):,} held out")
    if not options.dry_run:
        write_config(options, folder / "config.json")
        write_texts(options, train, held_out)
        shapes = {**SHAPES, "generating": {"cross_attention": False, "num_decoder_layers": options.num_decoder_layers}}
        for name, changes in shapes.items():
            write_model_config(options.bert_config_file, None, options.vocab_size, folder / "models" / name, **changes)
    steps = plan(options)
    status = run_steps("veco_languages", steps, folder, lambda: write_tables(options), dry_run=options.dry_run)
    if not status and not options.dry_run:
        print("\n" + write_tables(options), end="")
    return status


def check(options: Options) -> None:
    """Raise `UsageError` for flags that do not go together, and where BLEU cannot be computed."""
    if not Path(options.bert_config_file).is_file():
        raise UsageError(f"--bert_config_file={options.bert_config_file}: no such file")
    if options.texts_per_step % 2:
        raise UsageError(f"--texts_per_step={options.texts_per_step}: expected an even number, as pairs have two texts")
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise UsageError("BLEU needs sacrebleu: make install EXTRA=test, or pip install sacrebleu") from None


# -- texts -------------------------------------------------------------------------------------------------------------

Line = Mapping[str, str]
"""Language -> sentence, all of them translations of one another."""


def split_lines(options: Options) -> tuple[list[Line], list[Line]]:
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


def sets(options: Options, held_out: Sequence[Line]) -> dict[str, tuple[list[str], list[str]]]:
    """Return what retrieval is tried on: name -> sentences, and the same in English."""
    found = {
        f"multi30k_{code}": ([line[code] for line in held_out], [line["en"] for line in held_out]) for code in TATOEBA
    }
    for code in TATOEBA.values():
        name = f"tatoeba.{code}-eng"
        sides = [read_lines(Path(options.tatoeba_dir) / f"{name}.{end}") for end in (code, "eng")]
        found[f"tatoeba_{code}"] = sides[0], sides[1]
    return found


def write_texts(options: Options, train: Sequence[Line], held_out: Sequence[Line]) -> None:
    """Write the texts that the commands read; a sentence alone is a document of its own."""
    folder = Path(options.output_dir)
    for part, lines in (("train", train), ("held_out", held_out)):
        for language in LANGUAGES:
            write_lines(folder / f"text/{part}.{language}", [line[language] for line in lines])
            write_lines(folder / f"text/{part}_alone.{language}", [f"{line[language]}\n" for line in lines])
    for name, sides in sets(options, held_out).items():
        for end, lines in zip((name, "eng"), sides, strict=True):
            write_lines(folder / f"retrieval/{name}-eng.{end}", lines)
    for part, lines in (("train", train[: options.max_train_examples]), ("dev", held_out)):
        write_lines(folder / f"translation/{part}.source", [line[SOURCE] for line in lines])
        write_lines(folder / f"translation/{part}.target", [line[ENGLISH] for line in lines])
    write_atomically(folder / "tasks.toml", rows(options))


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a file where it is not there yet; a command that was stopped may still be reading it when it goes on."""
    if not path.is_file():
        write_atomically(path, "".join(f"{line}\n" for line in lines))


def rows(options: Options) -> str:
    """Return the rows of the two tasks, in the form of tasks/datasets.toml."""
    layers = [
        f'[retrieval_layer_{layer}]\nkind = "matching"\nformat = "aligned"\ncolumns = ["text_a", "text_b"]\n'
        f'pooling_layer = {layer}\nmetric = "retrieval_accuracy"\nfiles = {{ dev = ["*-eng.eng"] }}\n'
        for layer in options.layers
    ]
    files = 'files = { train = ["train.source"], dev = ["dev.source"] }'
    translation = 'kind = "generation"\ncolumns = ["text_a", "target"]\nunits = "words"\nmetric = "bleu_4"'
    return "\n".join([*layers, f"[translation]\n{translation}\n{files}\n"])


# -- steps -------------------------------------------------------------------------------------------------------------


def plan(options: Options) -> list[Step]:
    """Return all steps in order, those that are done too; one seed after the other, so that a table is there soon."""
    folder = Path(options.output_dir)
    texts = ",".join(f"{language}={folder}/text/train.{language}" for language in LANGUAGES)
    flags: dict[str, object] = {"input_file": texts, "output_file": folder / "spiece.model", "model_type": "unigram"}
    flags |= {"layout": "xlmr", "vocab_size": options.vocab_size, "character_coverage": 1}
    steps = [Step("vocabulary", command("train_tokenizer", flags), [folder / "spiece.model"], 10.0)]
    pretrained = [name for name in options.arms if ARMS[name].objective]
    for name in pretrained:
        steps += [records(options, name, part) for part in ("train", "held_out")]
    for seed in options.seeds:
        steps += [pretraining(options, name, seed) for name in pretrained]
        steps += [retrieval(options, name, seed, layer) for name in pretrained for layer in options.layers]
        steps += [translation(options, name, seed) for name in options.arms]
    return steps


def records(options: Options, name: str, part: str) -> Step:
    """Return the step that makes the records of an arm, of the lines to learn from or of those held out."""
    folder, arm = Path(options.output_dir), ARMS[name]
    if arm.texts == 1:
        text = {code: f"{folder}/text/{part}_alone.{code}" for code in LANGUAGES}
    else:
        text = {pair: ":".join(f"{folder}/text/{part}.{code}" for code in pair.split("-")) for pair in PAIRS}
    length = options.max_seq_length * arm.texts // arm.rows
    flags: dict[str, object] = {
        "input_file": ",".join(f"{code}={path}" for code, path in text.items()),
        "output_file": folder / f"records/{name}/{part}.tfrecord",
        "spm_model_file": folder / "spiece.model",
        "objective": arm.objective,
        "masking": "dynamic",
        "max_seq_length": length,
        "max_predictions_per_seq": round(0.15 * length) + 1,
        "dupe_factor": 1,
    }
    products = [folder / f"records/{name}/{part}.{code}.manifest.json" for code in text]
    return Step(f"records {name} {part}", command("create_pretraining_data", flags), products, 12.0)


def pretraining(options: Options, name: str, seed: int) -> Step:
    """Return the step that pretrains an arm with a seed."""
    folder, arm, num_steps = Path(options.output_dir), ARMS[name], options.num_train_steps
    flags: dict[str, object] = {
        "input_file": folder / f"records/{name}/train.*.tfrecord",
        "eval_input_file": folder / f"records/{name}/held_out.*.tfrecord",
        "objective": arm.objective,
        "bert_config_file": folder / "models" / arm.shape / "model_config.json",
        "output_dir": folder / f"pretraining/{name}/seed_{seed}",
        "do_train": True,
        "do_eval": True,
        "eval_batch_size": 50,
        "train_batch_size": options.texts_per_step // arm.texts,
        "num_train_steps": num_steps,
        "num_warmup_steps": num_steps // 10,
        "learning_rate": options.pretraining_learning_rate,
        "precision": options.precision,
        "optimizer": "adamw",
        "adam_bias_correction": True,
        "adam_beta2": 0.98,
        "save_checkpoints_steps": max(1, num_steps // 3),
        # Scored once, after the last step: all arms are compared after as many steps.
        "eval_steps": num_steps,
        "keep_checkpoint_max": 1,
        "seed": seed,
    }
    seconds = num_steps * options.texts_per_step * options.max_seq_length * arm.cost / _TOKENS_PER_SECOND
    product = folder / f"pretraining/{name}/seed_{seed}/eval_results.json"
    words = command("run_pretraining", flags)
    return Step(f"pretraining {name} seed {seed}", words, [product], 2 * _STARTUP_SECONDS + seconds)


def retrieval(options: Options, name: str, seed: int, layer: int) -> Step:
    """Return the step that looks for the partners of sentences by the mean of a layer, all sets in one run."""
    folder = Path(options.output_dir)
    output = folder / f"retrieval_runs/{name}/seed_{seed}/layer_{layer}"
    flags: dict[str, object] = {
        "task_name": f"retrieval_layer_{layer}",
        "task_file": folder / "tasks.toml",
        "data_dir": folder / "retrieval",
        "spm_model_file": folder / "spiece.model",
        "bert_config_file": folder / "models/alone/model_config.json",
        "init_checkpoint": folder / f"pretraining/{name}/seed_{seed}",
        "output_dir": output,
        "do_eval": True,
        "max_seq_length": options.translation_length,
    }
    words = command("run_classifier", flags)
    return Step(f"retrieval {name} seed {seed} layer {layer}", words, [output / "eval_results.json"], 20.0)


def translation(options: Options, name: str, seed: int) -> Step:
    """Return the step that tunes an arm, or random weights, to translate, and translates what is held out."""
    folder = Path(options.output_dir)
    output = folder / f"translation_runs/{name}/seed_{seed}"
    start = {"init_checkpoint": folder / f"pretraining/{name}/seed_{seed}"} if ARMS[name].objective else {}
    flags: dict[str, object] = {
        "task_name": "translation",
        "task_file": folder / "tasks.toml",
        "data_dir": folder / "translation",
        "spm_model_file": folder / "spiece.model",
        "bert_config_file": folder / "models/generating/model_config.json",
        **start,
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        "max_seq_length": options.translation_length,
        "max_target_length": options.translation_length,
        "train_batch_size": options.train_batch_size,
        "precision": options.precision,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        "adam_bias_correction": True,
        "adam_beta2": 0.98,
        "preset": options.preset,
        # Scored once, after the last step: no weights are chosen by the examples that are scored.
        "save_checkpoints_steps": 1_000_000,
        "keep_checkpoint_max": 1,
        "seed": seed,
    }
    seconds = options.max_train_examples * options.num_train_epochs / _TUNED_PER_SECOND
    seconds += options.held_out / _GENERATED_PER_SECOND + 2 * _STARTUP_SECONDS
    products = [output / "eval_results.json", output / "dev_predictions.jsonl"]
    return Step(f"translation {name} seed {seed}", command("run_generation", flags), products, seconds)


# -- the table ---------------------------------------------------------------------------------------------------------


def floor(options: Options) -> dict[str, float]:
    """Return what needs no model: the share of masked tokens that are the most frequent one, as `alone`, and by name of
    a set the accuracy of retrieval by the cosine of the pieces of two sentences, as often as they occur.
    """
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
    learnt = sorted(folder.glob("pretraining/masked_lm/*/eval_results.json"))
    return found | ({"alone": results_in(learnt[0])["unigram_accuracy"]} if learnt else {})


def counts(sentences: list[str], tokenizer: Tokenizer) -> Any:
    """Return how often each piece occurs in each sentence, float32 [N, V], of length 1."""
    import numpy as np

    encoded = tokenizer.encode_batch(sentences)
    found = np.zeros((len(sentences), tokenizer.vocab_size), np.float32)
    np.add.at(found, (np.repeat(np.arange(len(sentences)), np.diff(encoded.splits)), encoded.ids), 1.0)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def bleu(path: Path) -> tuple[float, str]:
    """Return BLEU of the translations of a run by sacrebleu, and its signature."""
    import sacrebleu

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    metric = sacrebleu.BLEU()
    score = metric.corpus_score([line["generated"] for line in lines], [[line["target"] for line in lines]])
    return score.score, str(metric.get_signature())


def scores_of(options: Options, name: str, seed: int) -> dict[str, float]:
    """Return all scores of an arm and a seed that are there yet, by name."""
    folder, arm = Path(options.output_dir), ARMS[name]
    found: dict[str, float] = {}
    pretrained = results_in(folder / f"pretraining/{name}/seed_{seed}/eval_results.json")
    for column, metrics in (("alone", arm.alone), ("across", arm.across)):
        if pretrained and metrics:
            found[column] = sum(pretrained[metric] for metric in metrics) / len(metrics)
    for layer in options.layers:
        scores = results_in(folder / f"retrieval_runs/{name}/seed_{seed}/layer_{layer}/eval_results.json")
        of_sets = {key: value for key, value in scores.items() if key.startswith(_OF_SET)}
        found |= {f"layer_{layer}/{key.removeprefix(_OF_SET)}": value for key, value in of_sets.items()}
    translated = folder / f"translation_runs/{name}/seed_{seed}/dev_predictions.jsonl"
    if translated.is_file():
        found["bleu"] = bleu(translated)[0]
    return found


_OF_SET = "retrieval_accuracy_"


def write_tables(options: Options) -> str:
    """Write table.json and table.md from what is done so far; return the latter."""
    from tasks.metrics import mean_and_deviation

    folder = Path(options.output_dir)
    arms: dict[str, Any] = {}
    for name in options.arms:
        runs = {seed: found for seed in options.seeds if (found := scores_of(options, name, seed))}
        names = dict.fromkeys(score for found in runs.values() for score in found)
        summary = {}
        for score in names:
            own = {seed: found[score] for seed, found in runs.items() if score in found}
            mean, deviation = mean_and_deviation([{"score": value} for value in own.values()])["score"]
            summary[score] = {"mean": mean, "deviation": deviation, "seeds": own}
        arms[name] = summary
    translated = sorted(folder.glob("translation_runs/*/*/dev_predictions.jsonl"))
    signature = bleu(translated[0])[1] if translated else ""
    content = {"arms": arms, "floor": floor(options), "sacrebleu": signature}
    text = markdown(options, content)
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def markdown(options: Options, content: Mapping[str, Any]) -> str:
    """Return both tables as Markdown: what was learnt and how it translates, and retrieval by layer."""

    def cell(name: str, score: str, digits: int) -> str:
        found = content["arms"][name].get(score)
        return f"{found['mean']:.{digits}f} ± {found['deviation']:.{digits}f}" if found else ""

    lines = ["| pretraining | masked tokens right | with the translation in sight | BLEU, de to en |", "|---" * 4 + "|"]
    if "alone" in content["floor"]:
        lines.append(f"| the most frequent piece, no model | {content['floor']['alone']:.3f} | | |")
    for name in options.arms:
        cells = cell(name, "alone", 3), cell(name, "across", 3), cell(name, "bleu", 1)
        lines.append(f"| {ARMS[name].title} | {' | '.join(cells)} |")
    names = [f"multi30k_{code}" for code in TATOEBA] + [f"tatoeba_{code}" for code in TATOEBA.values()]
    lines += ["", f"| sentence retrieval | layer | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    floors = [f"{content['floor'][name]:.3f}" if name in content["floor"] else "" for name in names]
    lines.append(f"| shared pieces, no model | | {' | '.join(floors)} |")
    for arm in (name for name in options.arms if ARMS[name].objective):
        for layer in options.layers:
            cells = [cell(arm, f"layer_{layer}/{name}", 3) for name in names]
            lines.append(f"| {ARMS[arm].title} | {layer} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, options.seeds))
    lines += [
        "",
        f"Mean and deviation over seeds {seeds}. Retrieval: accuracy of the nearest by cosine, mean of both ways.",
    ]
    return "\n".join([*lines, *([f"sacrebleu {content['sacrebleu']}."] if content["sacrebleu"] else [])]) + "\n"


if __name__ == "__main__":
    run(main, Options)
