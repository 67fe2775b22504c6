"""What a student learns of a teacher's layers: hidden states (TinyBERT, Jiao et al. 2020, section 3.1) and where
attention looks (MiniLM, Wang et al. 2020, section 3.1), layer by layer.

Differs from TinyBERT, which compares attention by the squared error of unnormalised scores, and from MiniLM, which does
so in the last layer alone. Padding counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl.app import UsageError

from ground.tensors import Tensor, ops

Pairs = Sequence[tuple[int, int]]
"""(layer of the student, layer of the teacher), 0 for the embeddings; of a layer with inner blocks, each is one."""

_LEAST = 1e-9


def layer_pairs(given: Sequence[str], students: int, teachers: int) -> Pairs:
    """Return which layers are compared; by default every one of the student's, evenly spread over the teacher's.

    Example: 2 layers of the student, 5 of the teacher -> (0, 0), (1, 3), (2, 5); 2.5 is rounded up.

    Args:
        given: "STUDENT:TEACHER" each.
        students: layers of the student.
        teachers: layers of the teacher.

    Raises:
        UsageError: one is no such pair, or there is no such layer.
    """
    if not given:
        return [(own, int(own * teachers / students + 0.5)) for own in range(students + 1)]
    pairs = []
    for text in given:
        numbers = text.split(":")
        if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise UsageError(
                f"--layer_map={text}: expected STUDENT:TEACHER, numbers of layers, as 1:4,2:8; 0 is the embeddings"
            )
        pair = int(numbers[0]), int(numbers[1])
        for number, most, whose in zip(pair, (students, teachers), ("student", "teacher"), strict=True):
            if number > most:
                raise UsageError(f"--layer_map={text}: the {whose} has the layers 0 to {most}, there is no {number}")
        pairs.append(pair)
    return pairs


def hidden_distance(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    pairs: Pairs,
    mask_BL: Tensor,
    project: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Return the mean squared error of hidden states over tokens, width and pairs of layers, float32 [B].

    Args:
        student: states in front of the first and behind every layer, x_BLD.
        teacher: likewise, of its own width.
        pairs: of layers.
        mask_BL: 1 for a token, 0 for padding.
        project: states of the student -> states of the teacher's width; None where both have one.
    """
    mask_BL = ops.cast(mask_BL, "float32")
    tokens_B = ops.maximum(ops.sum(mask_BL, axis=-1), 1.0)
    found = []
    for own, other in pairs:
        x_BLD = student[own] if project is None else project(student[own])
        error_BL = ops.mean(ops.square(ops.cast(x_BLD, "float32") - ops.cast(teacher[other], "float32")), axis=-1)
        found.append(ops.sum(error_BL * mask_BL, axis=-1) / tokens_B)
    return sum(found) / len(found)


def attention_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BL: Tensor) -> Tensor:
    """Return KL(teacher || student) of where each token looks, the mean over tokens, heads and layers, float32 [B].

    Of models with different numbers of heads the means over the heads are compared.

    Args:
        student: [B, N, L, L] of every layer that is compared.
        teacher: likewise, of the layers that these are compared with.
        mask_BL: 1 for a token, 0 for padding.
    """
    mask_BL = ops.cast(mask_BL, "float32")
    tokens_B = ops.maximum(ops.sum(mask_BL, axis=-1), 1.0)
    found = []
    for q_BNLS, p_BNLS in zip(student, teacher, strict=True):
        if q_BNLS.shape[1] != p_BNLS.shape[1]:
            q_BNLS, p_BNLS = (ops.mean(x, axis=1, keepdims=True) for x in (q_BNLS, p_BNLS))
        logs = [ops.log(ops.maximum(x, _LEAST)) for x in (p_BNLS, q_BNLS)]
        distance_BL = ops.mean(ops.sum(p_BNLS * (logs[0] - logs[1]), axis=-1), axis=1)
        found.append(ops.sum(distance_BL * mask_BL, axis=-1) / tokens_B)
    return sum(found) / len(found)


def looks(
    model: Any, features: Mapping[str, Tensor], outputs: Mapping[str, Any], layers: Sequence[int]
) -> list[Tensor]:
    """Return where the attention of layers, counted from 1, looks, float32 [B, N, L, L] each."""
    body = model.backbone
    mask = body.attention_mask(features)
    return body.encoder.attention_weights(outputs["hidden_states"], mask, [layer - 1 for layer in layers])
