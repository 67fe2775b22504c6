"""What VECO's cross-lingual terms are worth (Luo et al. 2021): retrieval of translations, and translation.

    python3 -m examples.veco_languages --data_dir=multi30k --tatoeba_dir=tatoeba112 --output_dir=veco --dry_run

learns one vocabulary of English, German and French, pretrains on the same sentences for the same steps and tokens, once
on masked tokens alone and once as VECO does, with every seed; then looks for the partners of held-out sentences without
further training, tunes both models and random weights to translate, and writes table.md and table.json. The floor of
retrieval is the cosine of the pieces that two sentences share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl.app import UsageError

from commands.flags import flag, run
from examples import parallel_texts as shared
from examples.parallel_texts import ENGLISH, FINE_TUNING, STARTUP_SECONDS, TOKENS_PER_SECOND, Line, cell
from examples.steps import Step, command, results_in
from ground.files import write_atomically


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
SOURCE = "de"
"""The language that is translated into English."""
_TUNED_PER_SECOND, _GENERATED_PER_SECOND = 150, 12


@dataclass(frozen=True, kw_only=True)
class Options(shared.SharedOptions):
    """Compare VECO with masked tokens alone: pretrain, look for translations, translate, with several seeds."""

    arms: tuple[str, ...] = flag(
        ("random", "masked_lm", "veco"), help="ways to pretrain; random weights only translate", choices=tuple(ARMS)
    )
    bert_config_file: str = flag("examples/veco_en_de_fr/config.json", help="the model's shape")
    num_train_steps: int = flag(3000, help="length of pretraining", unit="steps", minimum=1)
    num_decoder_layers: int = flag(2, help="last layers of the encoder that become the decoder", minimum=1)
    translation_length: int = flag(40, help="of sources and targets", unit="tokens", minimum=8)
    max_train_examples: int = flag(10_000, help="pairs that translation is learnt from", unit="examples", minimum=1)
    num_train_epochs: float = flag(6.0, help="passes over these pairs", unit="epochs", minimum=0)
    preset: str = flag("veco_nmt", help="how a translation is searched for; see run_generation.py")


def main(options: Options) -> int:
    """Run all steps that are left; return the exit status of the first that fails."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise UsageError("BLEU needs sacrebleu: make install EXTRA=test, or pip install sacrebleu") from None
    shapes = {**SHAPES, "generating": {"cross_attention": False, "num_decoder_layers": options.num_decoder_layers}}
    return shared.run_recipe(
        "veco_languages", options, shapes=shapes, write_texts=write_texts, plan=plan, write_tables=write_tables
    )


# -- texts -------------------------------------------------------------------------------------------------------------


def write_texts(options: Options, train: Sequence[Line], held_out: Sequence[Line]) -> None:
    """Write the texts that the commands read; a sentence alone is a document of its own."""
    folder = Path(options.output_dir)
    for part, lines in (("train", train), ("held_out", held_out)):
        shared.write_sentences(options, part, lines, in_document=1)
    shared.write_retrieval(options, held_out)
    for part, lines in (("train", train[: options.max_train_examples]), ("dev", held_out)):
        shared.write_lines(folder / f"translation/{part}.source", [line[SOURCE] for line in lines])
        shared.write_lines(folder / f"translation/{part}.target", [line[ENGLISH] for line in lines])
    write_atomically(folder / "tasks.toml", rows(options))


def rows(options: Options) -> str:
    """Return the rows of the two tasks, in the form of tasks/datasets.toml."""
    files = 'files = { train = ["train.source"], dev = ["dev.source"] }'
    translation = 'kind = "generation"\ncolumns = ["text_a", "target"]\nunits = "words"\nmetric = "bleu_4"'
    return f"{shared.retrieval_rows(options)}\n[translation]\n{translation}\n{files}\n"


# -- steps -------------------------------------------------------------------------------------------------------------


def plan(options: Options) -> list[Step]:
    """Return all steps in order, those that are done too; one seed after the other, so that a table is there soon."""
    steps = [shared.vocabulary(options)]
    pretrained = [name for name in options.arms if ARMS[name].objective]
    for name in pretrained:
        arm = ARMS[name]
        texts, length = shared.texts_alone if arm.texts == 1 else shared.texts_in_pairs, arm.texts // arm.rows
        steps += [
            shared.records(options, name, part, arm.objective, texts(options, part), options.max_seq_length * length)
            for part in ("train", "held_out")
        ]
    for seed in options.seeds:
        steps += [pretraining(options, name, seed) for name in pretrained]
        steps += [retrieval(options, name, seed, layer) for name in pretrained for layer in options.layers]
        steps += [translation(options, name, seed) for name in options.arms]
    return steps


def pretraining(options: Options, name: str, seed: int) -> Step:
    """Return the step that pretrains an arm with a seed."""
    folder, arm, num_steps = Path(options.output_dir), ARMS[name], options.num_train_steps
    flags: dict[str, object] = {
        "input_file": folder / f"records/{name}/train.*.tfrecord",
        "eval_input_file": folder / f"records/{name}/held_out.*.tfrecord",
        "objective": arm.objective,
        "bert_config_file": folder / "models" / arm.shape / "model_config.json",
        "output_dir": folder / f"pretraining/{name}/seed_{seed}",
        "train_batch_size": options.texts_per_step // arm.texts,
        **shared.pretraining_flags(options, num_steps, seed),
        "do_eval": True,
        "eval_batch_size": 50,
        # Scored once, after the last step: all arms are compared after as many steps.
        "eval_steps": num_steps,
    }
    seconds = num_steps * options.texts_per_step * options.max_seq_length * arm.cost / TOKENS_PER_SECOND
    product = folder / f"pretraining/{name}/seed_{seed}/eval_results.json"
    words = command("run_pretraining", flags)
    return Step(f"pretraining {name} seed {seed}", words, [product], 2 * STARTUP_SECONDS + seconds)


def retrieval(options: Options, name: str, seed: int, layer: int) -> Step:
    """Return the step that looks for the partners of sentences by the mean of a layer."""
    start = Path(options.output_dir) / f"pretraining/{name}/seed_{seed}"
    return shared.retrieval(options, name, seed, layer, "alone", start, options.translation_length)


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
        "preset": options.preset,
        **FINE_TUNING,
        "seed": seed,
    }
    seconds = options.max_train_examples * options.num_train_epochs / _TUNED_PER_SECOND
    seconds += options.held_out / _GENERATED_PER_SECOND + 2 * STARTUP_SECONDS
    products = [output / "eval_results.json", output / "dev_predictions.jsonl"]
    return Step(f"translation {name} seed {seed}", command("run_generation", flags), products, seconds)


# -- the table ---------------------------------------------------------------------------------------------------------


def floor(options: Options) -> dict[str, float]:
    """Return what needs no model: `alone`, the share of masked tokens that are the most frequent one, and by name of a
    set the accuracy of retrieval by shared pieces.
    """
    learnt = sorted(Path(options.output_dir).glob("pretraining/masked_lm/*/eval_results.json"))
    alone = {"alone": results_in(learnt[0])["unigram_accuracy"]} if learnt else {}
    return shared.shared_pieces(options) | alone


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
    found |= shared.retrieval_scores_of(options, name, seed)
    translated = folder / f"translation_runs/{name}/seed_{seed}/dev_predictions.jsonl"
    if translated.is_file():
        found["bleu"] = bleu(translated)[0]
    return found


def write_tables(options: Options) -> str:
    """Write table.json and table.md from what is done so far; return the latter."""
    folder = Path(options.output_dir)
    arms: dict[str, Any] = {}
    for name in options.arms:
        runs = {seed: found for seed in options.seeds if (found := scores_of(options, name, seed))}
        arms[name] = shared.over_seeds(runs)
    translated = sorted(folder.glob("translation_runs/*/*/dev_predictions.jsonl"))
    signature = bleu(translated[0])[1] if translated else ""
    content = {"arms": arms, "floor": floor(options), "sacrebleu": signature}
    text = markdown(options, content)
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def markdown(options: Options, content: Mapping[str, Any]) -> str:
    """Return both tables as Markdown: what was learnt and how it translates, and retrieval by layer."""
    arms, floors = content["arms"], content["floor"]
    lines = ["| pretraining | masked tokens right | with the translation in sight | BLEU, de to en |", "|---" * 4 + "|"]
    if "alone" in floors:
        lines.append(f"| the most frequent piece, no model | {floors['alone']:.3f} | | |")
    for name in options.arms:
        cells = cell(arms[name], "alone", 3), cell(arms[name], "across", 3), cell(arms[name], "bleu", 1)
        lines.append(f"| {ARMS[name].title} | {' | '.join(cells)} |")
    titles = {name: ARMS[name].title for name in options.arms if ARMS[name].objective}
    lines += ["", *shared.retrieval_table(options, titles, arms, floors)]
    seeds = ", ".join(map(str, options.seeds))
    lines += [
        "",
        f"Mean and deviation over seeds {seeds}. Retrieval: accuracy of the nearest by cosine, mean of both ways.",
    ]
    return "\n".join([*lines, *([f"sacrebleu {content['sacrebleu']}."] if content["sacrebleu"] else [])]) + "\n"


if __name__ == "__main__":
    run(main, Options)
