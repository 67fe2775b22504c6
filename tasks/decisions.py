"""What a model decides in a batch, for any kind of task: one label of several, each label by itself, or a value.

A task that has `decisions` may learn from a teacher, whatever its kind; see `tasks/distillation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ground.tensors import Tensor, ops

ONE_OF, EACH, VALUE = "one of", "each", "value"


@dataclass(frozen=True)
class Decisions:
    """Decisions of one batch.

    Attributes:
        scores: logits [..., C]; of a value [..., 1].
        weights: float32 [...], 0 for a decision that nobody asked for; they add up to the task's first normalizer.
        form: ONE_OF, a softmax over C; EACH, C sigmoids; VALUE, a number.
    """

    scores: Tensor
    weights: Tensor
    form: str = ONE_OF


def divergence(student: Decisions, teacher: Decisions, temperature: float) -> Tensor:
    """Return how far each decision of the student is from the teacher's, float32 [...].

    Of distributions that is T^2 KL(teacher || student) of both logits divided by T (Hinton et al. 2015, section 2), of
    C labels by themselves the mean over them of the same for two outcomes, of values the squared difference.

    Example:
        logits 0 0 of the student, 2 0 of the teacher, temperature 2
        softmax(1 0) = .731 .269, KL = .731 log(.731 / .5) + .269 log(.269 / .5) = .111, times 4 = .444
    """
    ours, theirs = (ops.cast(each.scores, "float32") for each in (student, teacher))
    if student.form == VALUE:
        return ops.square(ours - theirs)[..., 0]
    ours, theirs = ours / temperature, theirs / temperature
    if student.form == EACH:
        # log p and log(1 - p) of a sigmoid, without a difference of numbers near 1.
        p, gap = ops.sigmoid(theirs), ops.softplus(-ours) - ops.softplus(-theirs)
        other_gap = ops.softplus(ours) - ops.softplus(theirs)
        return temperature**2 * ops.mean(p * gap + (1 - p) * other_gap, axis=-1)
    ours, theirs = ops.log_softmax(ours), ops.log_softmax(theirs)
    return temperature**2 * ops.sum(ops.exp(theirs) * (theirs - ours), axis=-1)
