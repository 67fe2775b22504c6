"""What each objective of ERNIE-M adds (Ouyang et al. 2021): retrieval of translations, and zero-shot transfer.

    python3 -m examples.ernie_m_languages --data_dir=multi30k --tatoeba_dir=tatoeba112 --output_dir=ernie_m --dry_run

learns one vocabulary of English, German and French, and with every seed a model of masked tokens alone. From it each
arm goes on for the same steps with its mixture of objectives; masked tokens beside pseudo sentences join a model that
knows CAMLM. Then partners of held-out sentences are looked for without further training, and a classifier of captions
learns English alone and is scored in all languages. Differs from the paper in size; as there, few lines have
translations.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.flags import flag, run
from commands.shares import shares_of
from data.objectives import OBJECTIVES
from examples import parallel_texts as shared
from examples.parallel_texts import ENGLISH, FINE_TUNING, LANGUAGES, STARTUP_SECONDS, TOKENS_PER_SECOND, Line, cell
from examples.steps import Step, command, results_in
from ground.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to go on from masked tokens alone, in two halves of as many steps.

    Attributes:
        title: for the table.
        first, second: objectives of each half with their shares of the steps; empty for random weights.
        begins: the arm whose first half the second goes on from; empty for its own.
    """

    title: str
    first: str = ""
    second: str = ""
    begins: str = ""


_JOINED = "masked_lm:0.5,tlm:0.5"
_ACROSS = "masked_lm:0.34,tlm:0.33,camlm:0.33"
ARMS: Mapping[str, Arm] = {
    "random": Arm(title="random weights"),
    "masked_lm": Arm(title="masked tokens alone: MMLM", first="masked_lm", second="masked_lm"),
    "tlm": Arm(title="+ joined pairs: TLM", first=_JOINED, second=_JOINED),
    "camlm": Arm(title="+ from the translation alone: CAMLM", first=_ACROSS, second=_ACROSS),
    "btmlm": Arm(
        title="+ beside pseudo sentences: BTMLM",
        second="masked_lm:0.25,tlm:0.25,camlm:0.25,btmlm:0.25",
        begins="camlm",
    ),
}
COSTS: Mapping[str, float] = {"masked_lm": 1.0, "tlm": 1.0, "camlm": 1.1, "btmlm": 3.0}
"""Operations of a token by objective, against those of masked tokens alone."""
RECORDS: Mapping[str, str] = {"masked_lm": "masked_lm", "tlm": "tlm", "camlm": "camlm", "btmlm": "masked_lm"}
"""Whose records an objective learns from."""
SUBJECTS: Mapping[str, str] = {
    "man": "man guy gentleman male",
    "woman": "woman lady female",
    "child": "boy girl child kid baby toddler",
    "people": "people men women children boys girls kids group crowd couple",
    "dog": "dog dogs puppy",
}
"""Class of a caption -> English words; the first of all these words in a caption decides."""
TASK = "caption_subject"
_WORDS = {word: subject for subject, words in SUBJECTS.items() for word in words.split()}
_TUNED_PER_SECOND = 400


@dataclass(frozen=True, kw_only=True)
class Options(shared.SharedOptions):
    """Compare the objectives of ERNIE-M: pretrain, look for translations, classify across languages, several seeds."""

    arms: tuple[str, ...] = flag(
        tuple(ARMS), help="objectives that are learnt; random weights only classify", choices=tuple(ARMS)
    )
    bert_config_file: str = flag("examples/ernie_m_en_de_fr/config.json", help="the model's shape")
    parallel_lines: int = flag(10_000, help="lines to learn from whose translations are known", minimum=1)
    num_foundation_steps: int = flag(1600, help="of masked tokens alone, which all arms share", unit="steps", minimum=1)
    num_mixed_steps: int = flag(800, help="of the mixture of an arm, in two halves", unit="steps", minimum=2)
    max_train_examples: int = flag(4000, help="captions that classes are learnt from", unit="examples", minimum=1)
    num_train_epochs: float = flag(2.0, help="passes over these captions", unit="epochs", minimum=0)


def main(options: Options) -> int:
    """Run all steps that are left; return the exit status of the first that fails."""
    return shared.run_recipe(
        "ernie_m_languages",
        options,
        shapes={"ernie_m": {}},
        write_texts=write_texts,
        plan=plan,
        write_tables=write_tables,
    )


# -- texts -------------------------------------------------------------------------------------------------------------


def write_texts(options: Options, train: Sequence[Line], held_out: Sequence[Line]) -> None:
    """Write the texts that the commands read; two sentences are a document, as long as a pair of translations."""
    folder = Path(options.output_dir)
    for part, lines in (("train", train), ("held_out", held_out)):
        shared.write_sentences(options, part, lines, in_document=2)
    for language in LANGUAGES:
        paired = [line[language] for line in train[: options.parallel_lines]]
        shared.write_lines(folder / f"text/paired.{language}", paired)
    shared.write_retrieval(options, held_out)
    captions = labelled(train)[: options.max_train_examples]
    shared.write_lines(folder / f"{TASK}/train-{ENGLISH}.tsv", table_of(captions, ENGLISH))
    for language in LANGUAGES:
        shared.write_lines(folder / f"{TASK}/dev-{language}.tsv", table_of(labelled(held_out), language))
    write_atomically(folder / "tasks.toml", rows(options))


def subject_of(caption: str) -> str:
    """Return the class of an English caption; empty where it has none of the words."""
    return next((_WORDS[word] for word in re.findall(r"[a-z]+", caption.lower()) if word in _WORDS), "")


def labelled(lines: Sequence[Line]) -> list[tuple[str, Line]]:
    """Return the lines that have a class with it: that of their English caption, in every language."""
    found = [(subject_of(line[ENGLISH]), line) for line in lines]
    return [(subject, line) for subject, line in found if subject]


def table_of(captions: Sequence[tuple[str, Line]], language: str) -> list[str]:
    """Return the rows of a file of labelled captions, with its header."""
    texts = [(line[language].replace("\t", " "), subject) for subject, line in captions]
    return ["text_a\tlabel", *(f"{text}\t{subject}" for text, subject in texts)]


def rows(options: Options) -> str:
    """Return the rows of the tasks, in the form of tasks/datasets.toml."""
    languages, labels = (json.dumps([*names]) for names in (LANGUAGES, SUBJECTS))
    files = 'files = { train = ["train-{language}.tsv"], dev = ["dev-{language}.tsv"] }'
    columns = f'columns = ["text_a", "label"]\nlabels = {labels}\nmetric = "accuracy"'
    own = f"[{TASK}]\nvariants = {{ language = {languages} }}\n{columns}\n{files}\n"
    return f"{shared.retrieval_rows(options)}\n{own}"


# -- steps -------------------------------------------------------------------------------------------------------------


def plan(options: Options) -> list[Step]:
    """Return all steps in order, those that are done too; one seed after the other, so that a table is there soon."""
    pretrained = [name for name in options.arms if ARMS[name].second]
    firsts = list(dict.fromkeys(ARMS[name].begins or name for name in pretrained))
    of_arms = [shares_of(ARMS[name].second, OBJECTIVES, "arms") for name in pretrained]
    steps = [shared.vocabulary(options)]
    for objective in dict.fromkeys(RECORDS[objective] for shares in of_arms for objective in shares):
        steps += [records(options, objective, part) for part in ("train", "held_out")]
    for seed in options.seeds:
        steps += [foundation(options, seed)] if pretrained else []
        steps += [first_half(options, name, seed) for name in firsts]
        for name in options.arms:
            if name in pretrained:
                steps.append(second_half(options, name, seed))
                steps += [retrieval(options, name, seed, layer) for layer in options.layers]
            steps.append(transfer(options, name, seed))
    return steps


def records(options: Options, objective: str, part: str) -> Step:
    """Return the step that makes the records of an objective, of the lines to learn from or of those held out."""
    in_pairs = OBJECTIVES[objective].pairing == "adjacent"
    paired = "paired" if part == "train" else part
    texts = shared.texts_in_pairs(options, paired) if in_pairs else shared.texts_alone(options, part)
    length = options.max_seq_length * (1 if OBJECTIVES[objective].form == "halves" else 2)
    return shared.records(options, objective, part, objective, texts, length)


def pretraining(
    options: Options, name: str, seed: int, objective: str, num_steps: int, product: str, **further: object
) -> Step:
    """Return the step of a pretraining run.

    Args:
        options: of the recipe.
        name: of the run.
        seed: of the run.
        objective: one, or several with their shares.
        num_steps: of its length.
        product: file of the run's folder that is there when it is done.
        **further: flags of this run.
    """
    shares = shares_of(objective, OBJECTIVES, "objective")
    files = ",".join(f"{options.output_dir}/records/{own}/train.*.tfrecord" for own in records_of(objective))
    output = run_folder(options, name, seed)
    flags: dict[str, object] = {
        "input_file": files,
        "objective": objective,
        "bert_config_file": Path(options.output_dir) / "models/ernie_m/model_config.json",
        "output_dir": output,
        "train_batch_size": options.texts_per_step // 2,
        **shared.pretraining_flags(options, num_steps, seed),
        **further,
    }
    cost = sum(share * COSTS[own] for own, share in shares.items())
    seconds = num_steps * options.texts_per_step * options.max_seq_length * cost / TOKENS_PER_SECOND
    words = command("run_pretraining", flags)
    return Step(f"pretraining {name} seed {seed}", words, [output / product], 2 * STARTUP_SECONDS + seconds)


def records_of(objective: str) -> list[str]:
    """Return the names of the records that one or several objectives learn from."""
    return list(dict.fromkeys(RECORDS[own] for own in shares_of(objective, OBJECTIVES, "objective")))


def run_folder(options: Options, name: str, seed: int) -> Path:
    """Return the output folder of a pretraining run."""
    return Path(options.output_dir) / f"pretraining/{name}/seed_{seed}"


def foundation(options: Options, seed: int) -> Step:
    """Return the step that learns masked tokens alone, from which every arm goes on."""
    num_steps = options.num_foundation_steps
    return pretraining(options, "foundation", seed, "masked_lm", num_steps, last_checkpoint(num_steps))


def first_half(options: Options, name: str, seed: int) -> Step:
    """Return the step that begins the mixture of an arm."""
    num_steps = options.num_mixed_steps // 2
    start = run_folder(options, "foundation", seed)
    own = f"{name}_first"
    return pretraining(
        options, own, seed, ARMS[name].first, num_steps, last_checkpoint(num_steps), init_checkpoint=start
    )


def second_half(options: Options, name: str, seed: int) -> Step:
    """Return the step that ends the mixture of an arm and scores it on held-out lines."""
    arm, num_steps = ARMS[name], options.num_mixed_steps - options.num_mixed_steps // 2
    held_out = ",".join(f"{options.output_dir}/records/{own}/held_out.*.tfrecord" for own in records_of(arm.second))
    further: dict[str, object] = {
        "init_checkpoint": run_folder(options, f"{arm.begins or name}_first", seed),
        "eval_input_file": held_out,
        "do_eval": True,
        "eval_batch_size": 50,
        # Scored once, after the last step: all arms are compared after as many steps.
        "eval_steps": num_steps,
    }
    return pretraining(options, name, seed, arm.second, num_steps, "eval_results.json", **further)


def last_checkpoint(num_steps: int) -> str:
    """Return the file that is there when a run has learnt so many steps."""
    return f"checkpoints/step_{num_steps:08d}/state.json"


def retrieval(options: Options, name: str, seed: int, layer: int) -> Step:
    """Return the step that looks for the partners of sentences by the mean of a layer."""
    start = run_folder(options, name, seed)
    return shared.retrieval(options, name, seed, layer, "ernie_m", start, options.max_seq_length)


def transfer(options: Options, name: str, seed: int) -> Step:
    """Return the step that tunes an arm, or random weights, on English captions and scores all languages."""
    folder = Path(options.output_dir)
    output = folder / f"transfer_runs/{name}/seed_{seed}"
    start = {"init_checkpoint": run_folder(options, name, seed)} if ARMS[name].second else {}
    flags: dict[str, object] = {
        "task_name": TASK,
        "task_file": folder / "tasks.toml",
        "task_type": "cross-lingual-transfer",
        "data_dir": folder / TASK,
        "spm_model_file": folder / "spiece.model",
        "bert_config_file": folder / "models/ernie_m/model_config.json",
        **start,
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        "max_seq_length": options.max_seq_length,
        "train_batch_size": options.train_batch_size,
        "precision": options.precision,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        **FINE_TUNING,
        "seed": seed,
    }
    seconds = options.max_train_examples * options.num_train_epochs / _TUNED_PER_SECOND + 2 * STARTUP_SECONDS
    words = command("run_classifier", flags)
    return Step(f"transfer {name} seed {seed}", words, [output / "eval_results.json"], seconds)


# -- the table ---------------------------------------------------------------------------------------------------------

_OF_PSEUDO = ("pseudo_repetition", "pseudo_emptiness")


def floor(options: Options) -> dict[str, float]:
    """Return what needs no model: `masked_lm`, the share of masked tokens that are the most frequent one; `transfer`,
    that of the most frequent class; and by name of a set the accuracy of retrieval by shared pieces.
    """
    folder = Path(options.output_dir)
    found = shared.shared_pieces(options)
    learnt = sorted(folder.glob("pretraining/masked_lm/*/eval_results.json"))
    found |= {"masked_lm": results_in(learnt[0])["unigram_accuracy"]} if learnt else {}
    path = folder / f"{TASK}/dev-{ENGLISH}.tsv"
    classes = Counter(line.rsplit("\t", 1)[1] for line in shared.read_lines(path)[1:]) if path.is_file() else Counter()
    return found | ({"transfer": max(classes.values()) / classes.total()} if classes else {})


def scores_of(options: Options, name: str, seed: int) -> dict[str, float]:
    """Return all scores of an arm and a seed that are there yet, by name."""
    pretrained = results_in(run_folder(options, name, seed) / "eval_results.json")
    found = {own: pretrained[f"{own}_accuracy"] for own in COSTS if f"{own}_accuracy" in pretrained}
    found |= {own: pretrained[f"btmlm_{own}"] for own in _OF_PSEUDO if f"btmlm_{own}" in pretrained}
    found |= shared.retrieval_scores_of(options, name, seed)
    tuned = results_in(Path(options.output_dir) / f"transfer_runs/{name}/seed_{seed}/eval_results.json")
    return found | {f"transfer/{code}": tuned[f"accuracy_{code}"] for code in LANGUAGES if tuned}


def write_tables(options: Options) -> str:
    """Write table.json and table.md from what is done so far; return the latter."""
    folder = Path(options.output_dir)
    arms: dict[str, Any] = {}
    for name in options.arms:
        arms[name] = shared.over_seeds({seed: scores_of(options, name, seed) for seed in options.seeds})
    notes = {own: arms["btmlm"].pop(own) for own in _OF_PSEUDO if own in arms.get("btmlm", {})}
    content = {"arms": arms, "floor": floor(options), "notes": notes}
    text = markdown(options, content)
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def markdown(options: Options, content: Mapping[str, Any]) -> str:
    """Return both tables as Markdown: what was learnt and how it transfers, and retrieval by layer."""
    arms, floors, notes = content["arms"], content["floor"], content["notes"]
    columns = ["masked tokens right", "TLM", "CAMLM", "BTMLM", *(f"caption, {code}" for code in LANGUAGES)]
    lines = [f"| objectives | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    transferred = [f"{floors['transfer']:.3f}" if "transfer" in floors else ""] * len(LANGUAGES)
    alone = f"{floors['masked_lm']:.3f}" if "masked_lm" in floors else ""
    lines.append(f"| the most frequent one, no model | {' | '.join([alone, '', '', '', *transferred])} |")
    for name in options.arms:
        scores = [*COSTS, *(f"transfer/{code}" for code in LANGUAGES)]
        lines.append(f"| {ARMS[name].title} | {' | '.join(cell(arms[name], score, 3) for score in scores)} |")
    titles = {name: ARMS[name].title for name in options.arms if ARMS[name].second}
    lines += ["", *shared.retrieval_table(options, titles, arms, floors), ""]
    lines += [
        f"Mean and deviation over seeds {', '.join(map(str, options.seeds))}. Retrieval: accuracy of the nearest by "
        "cosine, mean of both ways. Captions: accuracy of a classifier that learnt English alone.",
        *(f"Pseudo sentences, {own.split('_')[1]}: {cell(notes, own, 3)} of their tokens." for own in notes),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main, Options)
