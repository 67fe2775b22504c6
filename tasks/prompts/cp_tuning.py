"""CP-Tuning (Xu et al. 2022): a soft prompt that is the same for all tasks, and labels by the training texts that are
nearest; the host half.

Differs from the code released with EasyNLP: anchors are those of the training file and saved with the weights, there
they were taken from the file that is predicted; batches are balanced, so that each has pairs of one label and of two.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from tasks.kinds import HeadOptions, classification, in_order
from tasks.prompts.pattern import Piece, parse, parts_of, slots_of
from tasks.prompts.pet import on_strings, unused_heads  # noqa: F401 (of the kind)
from tasks.prompts.prompt import PromptDataset, encoded_examples, hiding

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.contrastive import ContrastiveTask
    from tasks.datasets import DatasetRow, Example

AUXILIARY_WEIGHT = 1.0
"""The paper's is not known here."""
PHRASES = (("it", "is"), ("这", "是"))
"""What the slots of the common prompt begin as: the first that the vocabulary has, else at random."""
MOST_ANCHORS = 2**16
flags = ("auxiliary_rate", "auxiliary_weight", "gradient_accumulation_steps")
new_heads = ("soft_prompt/.*", "anchors/.*")
_ANCHORS = "anchors/vectors"


def __getattr__(name: str) -> Any:
    return getattr(classification, name)


def pieces_of_row(row: DatasetRow, tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """Return the parts of the common prompt: the texts, two soft slots, the mask."""
    known = (phrase for phrase in PHRASES if all(_is_token(word, tokenizer) for word in phrase))
    words = next(known, ("", ""))
    slots = "".join(f"[P{n}={word}]" if word else f"[P{n}]" for n, word in enumerate(words, start=1))
    texts = "{text_a}[SEP]{text_b}" if row.is_pair else "{text}"
    return parse(f"{texts}{slots}[MASK]", ("text_a", "text_b") if row.is_pair else ("text_a",))


def _is_token(word: str, tokenizer: Tokenizer) -> bool:
    ids = tokenizer.encode(word)
    return len(ids) == 1 and ids[0] != tokenizer.unk_id


def settled(row: DatasetRow, tokenizer: Tokenizer, examples: Mapping[str, Sequence[Example]]) -> DatasetRow:
    """Return the row with its prompt and the number of anchors of a label, which the training examples decide.

    Raises `UsageError` for training examples of one label alone.
    """
    slots = slots_of(pieces_of_row(row, tokenizer), tokenizer, "--method=cp_tuning")
    anchors = row.prompt.get("anchors", 1)
    prompt = {"mask_id": tokenizer.mask_id, "masks": 1, "slots": slots, "anchors": anchors}
    if "train" in examples:
        counts = Counter(each.label for each in examples["train"])
        if len(counts) < 2:
            raise UsageError(
                f"--method=cp_tuning learns from pairs of two labels, but all {len(examples['train']):,} training "
                f"examples have the label {next(iter(counts))!r}; give examples of another"
            )
        prompt["anchors"] = min(max(counts.values()), MOST_ANCHORS)
    return dataclasses.replace(row, prompt=prompt)


def dataset(
    row: DatasetRow,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
    auxiliary_rate: float = 0.0,
    auxiliary_weight: float | None = None,
    gradient_accumulation_steps: int = 1,
) -> BalancedDataset:
    """Put the examples into the prompt; training batches are balanced, and some of their tokens are hidden."""
    encoded = encoded_examples(row, pieces_of_row(row, tokenizer), examples, tokenizer, max_seq_length)
    part, learns = batch_size // gradient_accumulation_steps, any(example.label is not None for example in examples)
    if learns and part < 4:
        raise UsageError(
            f"--train_batch_size={batch_size}: --method=cp_tuning needs two examples of two labels in a batch, in each "
            f"of its --gradient_accumulation_steps={gradient_accumulation_steps}; there are {part}, give 4 or more"
        )
    rate = 0.0 if auxiliary_weight == 0 else auxiliary_rate
    return BalancedDataset(
        encoded,
        batch_size,
        max_seq_length,
        seed=seed,
        parts=gradient_accumulation_steps,
        **hiding(row, tokenizer, "within", rate),
    )


@dataclass
class BalancedDataset(PromptDataset):
    """Training batches with the same number of examples of every label, or of as many labels as leave two of each.

    Row r of a batch is of its label r mod k, so that micro-batches are balanced too. Labels take turns in an order that
    the seed draws, and the examples of a label follow one another in an order drawn anew whenever all have been seen.

    Example:
        labels 0 0 0 1, batch size 4
        batches   0 1 0 1, 0 1 0 1      the only example of label 1 twice in each

    Attributes:
        parts: micro-batches of a batch.
    """

    parts: int = 1
    _classes: list[np.ndarray] = field(default_factory=list, repr=False)

    def members(self, step: int) -> np.ndarray:
        """Return the numbers of the examples of a step's batch, a pure function of (seed, step)."""
        if not self._classes:
            labels = self.examples.labels
            self._classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        total = len(self._classes)
        chosen = min(total, self.batch_size // self.parts // 2)
        each = -(-self.batch_size // chosen)
        order = self._generator(2**64 - 1).permutation(total)
        columns = [
            self._of_label(order[turn % total], turn // total * each, each)
            for turn in range(step * chosen, (step + 1) * chosen)
        ]
        return np.stack(columns, axis=1).ravel()[: self.batch_size]

    def _of_label(self, label: int, seen: int, count: int) -> np.ndarray:
        """Return the next examples of a label of which `seen` were taken before."""
        examples = self._classes[label]
        rounds, places = np.divmod(seen + np.arange(count), len(examples))
        orders = {n: self._generator((int(label) << 32) + n).permutation(examples) for n in np.unique(rounds).tolist()}
        return np.array([orders[n][place] for n, place in zip(rounds.tolist(), places.tolist(), strict=True)])

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self.seed % 2**64, stream], np.uint64)))


def parts_of_row(row: DatasetRow, tokenizer: Tokenizer) -> list[list[int] | str]:
    """Return the parts of a row of ids: the texts, the slots and the mask."""
    return parts_of(pieces_of_row(row, tokenizer), tokenizer, row.prompt["masks"])


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> ContrastiveTask:
    """Return a contrastive loss, and a masked-LM loss beside it."""
    from tasks.contrastive import ContrastiveTask

    weight = head.further.get("auxiliary_weight")
    return ContrastiveTask(
        config,
        len(row.labels),
        row.prompt,
        auxiliary_weight=AUXILIARY_WEIGHT if weight is None else weight,
        computation=computation,
        regularizers=head.regularizers,
    )


def prepare(row: DatasetRow, engine: Any, dataset: BalancedDataset, batch_size: int) -> None:
    """Let the training examples, as the present weights see them, be the anchors; they are weights from then on."""
    predictions = in_order(dataset, engine.predict(dataset.evaluation_batches(batch_size)))
    state = engine.state()
    anchors_CAX = np.zeros_like(state[f"model/{_ANCHORS}"])
    labels, filled = dataset.examples.labels, Counter()
    for label, prediction in zip(labels.tolist(), predictions, strict=True):
        if filled[label] < anchors_CAX.shape[1]:
            anchors_CAX[label, filled[label]] = prediction["prompt_embedding"]
            filled[label] += 1
    engine.load_state({**state, f"model/{_ANCHORS}": anchors_CAX})


def answers(row: DatasetRow, predictions: Sequence[Any], examples: Sequence[Example], **further: Any) -> list[Any]:
    """Return the probabilities of each example, float32 [C], which follow from the cosine of the nearest anchors."""
    return classification.answers(row, predictions, examples)
