"""The methods for few labels that ask a masked language model: their flags, and what they hand to the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from commands.flags import Group, flag
from commands.needs import Need
from commands.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class PromptOptions(TrainingOptions):
    """How a text asks for its label; without a method a new head on the model is trained, as ever."""

    _prompts: ClassVar = Group.TECHNIQUES
    method: str | None = flag(
        None,
        help="ask the pretrained model for a word that stands for the label (pet), with learnt words around it "
        "(p_tuning), or for the training texts that are nearest (cp_tuning); by default, where nothing is trained, "
        "that of the run",
        choices=("pet", "p_tuning", "cp_tuning"),
    )
    pattern: str | None = flag(
        None,
        help="how the text is asked, as '{text}。很[MASK]！' or '{text_a}[P1][MASK][P2]{text_b}'; by default the "
        "row's; several with --unlabelled_file, || between them",
    )
    unlabelled_file: str | None = flag(
        None,
        help="texts without labels, in the form of the test file: a model for each pattern answers to them, and the "
        "classifier that is left learns their joint answers (PET's second half)",
    )
    pet_generations: int = flag(
        0,
        help="generations of models between the first and the classifier (iPET): each learns from texts that the one "
        "before has labelled, five times as many",
        minimum=0,
    )
    verbalizer: tuple[str, ...] = flag((), help="the words of every label, as 0=差,1=好|不错; by default the row's")
    auxiliary_weight: float | None = flag(
        None,
        help="of the loss of hidden tokens of the training texts; by default 1e-4 for pet, where the labels weigh what "
        "is left, and 1 for cp_tuning",
        minimum=0,
    )
    auxiliary_rate: float = flag(0.15, help="share of the tokens that are hidden there", minimum=0, maximum=0.9)
    prompt_encoder: str | None = flag(
        None,
        help="what makes the vectors of [P1], [P2] ... in training: P-Tuning's two-way LSTM, which the "
        "trained model does without, or nothing; by default lstm",
        choices=("lstm", "none"),
    )


NEEDS = (
    Need(("pattern", "verbalizer"), "--method=pet or p_tuning", lambda o: o.method in ("pet", "p_tuning")),
    Need(
        ("auxiliary_weight", "auxiliary_rate"), "--method=pet or cp_tuning", lambda o: o.method in ("pet", "cp_tuning")
    ),
    Need(("unlabelled_file",), "--method=pet and --do_train", lambda o: o.method == "pet" and o.do_train),
    Need(("pet_generations",), "--unlabelled_file", lambda o: o.unlabelled_file),
    Need(("prompt_encoder",), "--method=p_tuning and --do_train", lambda o: o.method == "p_tuning" and o.do_train),
)


def further(options: Any) -> dict[str, Any]:
    """Return what the head of the model is told; an encoder is of training alone."""
    encoder = (options.prompt_encoder or "lstm") if options.do_train else "none"
    return {"auxiliary_weight": options.auxiliary_weight, "prompt_encoder": encoder}
