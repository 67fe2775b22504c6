"""Scores of the kinds regression, multilabel, choice and matching, against SciPy and scikit-learn on random data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment
from sklearn import metrics

from tasks import correlations, retrieval
from tasks.assignment import best_assignment
from tasks.correlations import average_ranks, best_threshold, or_zero, pearson, roc_auc, spearman
from tasks.datasets import Example, find_row
from tasks.kinds import choice, matching, multilabel, regression
from tasks.label_sets import label_set_scores

SEEDS = st.integers(0, 2**32 - 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@given(SEEDS)
def test_correlations_are_scipys_with_ties(seed: int):
    generator = np.random.default_rng(seed)
    count = generator.integers(3, 50)
    a, b = generator.integers(0, 5, count).astype(float), generator.normal(size=count)
    np.testing.assert_array_equal(average_ranks(a), stats.rankdata(a))
    if len(set(a)) > 1:
        assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-9)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-9)
        # Of scale and offset, and Spearman's of any rising function.
        assert pearson(3 * a - 7, b) == pytest.approx(pearson(a, b), abs=1e-9)
        assert pearson(-a, b) == pytest.approx(-(pearson(a, b) or 0), abs=1e-9)
        assert spearman(np.exp(a), b**3) == pytest.approx(spearman(a, b), abs=1e-9)


def test_a_correlation_that_is_not_defined_is_said_and_is_no_nan(capsys: pytest.CaptureFixture[str]):
    constant = np.full(3, 0.1)
    assert pearson(constant, np.arange(3)) is None
    assert pearson(np.arange(1), np.arange(1)) is None
    assert roc_auc(np.ones(3), np.arange(3)) is None
    assert or_zero("pearson", None) == 0
    assert "pearson is not defined" in capsys.readouterr().err
    examples = [Example("a", "b", label) for label in ("1", "2.5")]
    found = regression.scores(find_row("sts_b"), [1.0, 1.0], examples)
    assert found == {"pearson": 0, "spearman": 0, "correlation": 0, "loss": 2.25 / 2}
    assert "spearman is not defined" in capsys.readouterr().err


@given(SEEDS)
def test_area_and_threshold(seed: int):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, generator.integers(2, 40)) / 4
    positive = generator.random(len(scores)) < 0.5
    if 0 < positive.sum() < len(positive):
        assert roc_auc(positive, scores) == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
    threshold = best_threshold(positive, scores)
    best = max(((scores >= candidate) == positive).mean() for candidate in np.arange(-0.125, 2, 0.25))
    assert ((scores >= threshold) == positive).mean() == best


@given(SEEDS)
def test_scores_of_label_sets_are_scikit_learns(seed: int):
    generator = np.random.default_rng(seed)
    shape = generator.integers(1, 20), generator.integers(2, 5)
    labels, predictions = generator.random(shape) < 0.4, generator.random(shape) < 0.4
    found = label_set_scores(labels, predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, average in (("micro_f1", "micro"), ("macro_f1", "macro"), ("sample_f1", "samples")):
            assert found[name] == pytest.approx(metrics.f1_score(labels, predictions, average=average), abs=1e-12)
    assert found["subset_accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions), abs=1e-12)


def test_several_labels_are_given_from_the_threshold_on():
    row = find_row("sts_b")
    row = multilabel_row = type(row)(
        name="x", kind="multilabel", columns=("text_a", "label"), labels=("a", "b"), metric="micro_f1", files={},
        label_separator=",", threshold=0.3,
    )  # fmt: skip
    examples = [multilabel.LabelledText("t", None, ("a",)), multilabel.LabelledText("t", None, ())]
    found = multilabel.scores(row, [np.array([0.3, 0.2]), np.array([0.1, 0.4])], examples)
    assert found["subset_accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-np.log([0.3, 0.8, 0.9, 0.6]).mean())
    assert multilabel.complaint(multilabel_row) == ""


@given(SEEDS)
def test_the_assignment_is_scipys_optimum(seed: int):
    generator = np.random.default_rng(seed)
    rows = generator.integers(1, 8)
    shape = rows, generator.integers(rows, 11)
    scores = generator.normal(size=shape) if seed % 2 else generator.integers(0, 3, shape).astype(float)
    found = best_assignment(scores)
    assert len(set(found.tolist())) == rows
    best = scores[linear_sum_assignment(-scores)].sum()
    assert scores[np.arange(rows), found].sum() == pytest.approx(best, abs=1e-9)


def question(label: int, record: int | None = None, group: str = "", choices: str = "abc") -> choice.ChoiceExample:
    shared = None if record is None else ("file", record)
    return choice.ChoiceExample("context", "", tuple(choices), label, group=group, record=shared)


def test_blanks_of_a_line_get_different_idioms():
    answers = [np.array([0.5, 0.4, 0.1]), np.array([0.9, 0.05, 0.05]), np.array([0.6, 0.3, 0.1])]
    examples = [question(1, 0), question(0, 0), question(0, 1)]
    assert choice.chosen(answers) == [0, 0, 0]
    assert choice.assigned(answers, examples) == [1, 0, 0]
    found = choice.scores(find_row("chid"), answers, examples)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_assigned"] == 1
    assert found["loss"] == pytest.approx(-np.log([0.4, 0.9, 0.6]).mean())
    crowded = [question(0, 0, choices="aab") for _ in range(3)]
    assert choice.assigned(answers, crowded) == [0, 0, 0]


def test_schools_are_scored_by_themselves():
    answers = [np.array([0.9, 0.1, 0]), np.array([0.2, 0.8, 0]), np.array([0, 0.1, 0.9])]
    found = choice.scores(
        find_row("race"), answers, [question(0, group="high"), question(0, group="high"), question(2, group="middle")]
    )
    assert (found["accuracy_high"], found["accuracy_middle"]) == (0.5, 1)
    assert "accuracy_assigned" not in found


@given(SEEDS)
def test_retrieval_in_blocks_is_that_of_the_whole_matrix(seed: int):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 30))
    # Few different vectors: many ties.
    a, b = (unit(generator.integers(1, 3, (count, 2)).astype(float)) for _ in range(2))
    whole = a @ b.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK_ELEMENTS", 3 * count)
        ranks, nearest = retrieval.ranks_and_nearest(a, b)
    order = np.argsort(-whole, axis=1, kind="stable")
    np.testing.assert_array_equal(nearest, order[:, 0])
    np.testing.assert_array_equal(ranks, 1 + (order == np.arange(count)[:, None]).argmax(axis=1))


@given(SEEDS)
def test_a_margin_in_blocks_is_that_of_the_whole_matrix(seed: int):
    generator = np.random.default_rng(seed)
    count, k = int(generator.integers(1, 20)), int(generator.integers(1, 6))
    a, b = (unit(np.abs(generator.normal(size=(count, 3)))) for _ in range(2))
    cosines = a @ b.T
    # Each text's nearest on the other side, by sorting whole rows and columns.
    around_a = np.array([np.mean(sorted(row)[-k:]) for row in cosines.tolist()])
    around_b = np.array([np.mean(sorted(column)[-k:]) for column in cosines.T.tolist()])
    for kind in ("ratio", "distance"):
        whole = np.empty_like(cosines)
        for i in range(count):
            for j in range(count):
                mean = (around_a[i] + around_b[j]) / 2
                whole[i, j] = cosines[i, j] / mean if kind == "ratio" else cosines[i, j] - mean
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrieval, "BLOCK_ELEMENTS", 3 * count)
            margin = retrieval.Margin(kind, k)
            forth, nearest = retrieval.ranks_and_nearest(a, b, margin)
            back, _ = retrieval.ranks_and_nearest(b, a, margin)
            found = retrieval.retrieval_scores(a, b, margin)
        own = whole.diagonal()
        np.testing.assert_allclose(whole[np.arange(count), nearest], whole.max(axis=1), rtol=1e-5, atol=1e-6)
        # What float32 of a density cannot decide is left out.
        for ranks, table in ((forth, whole), (back, whole.T)):
            clear = (np.abs(table - own[:, None]) > 1e-5).sum(axis=1) == count - 1
            expected = 1 + (table > own[:, None]).sum(axis=1)
            np.testing.assert_array_equal(ranks[clear], expected[clear])
        assert found["retrieval_accuracy_a_to_b"] == (forth == 1).mean()
        assert found["retrieval_accuracy_b_to_a"] == (back == 1).mean()


def test_a_margin_passes_over_a_text_that_is_near_to_all():
    # The second b is near to every a: by cosine it is the partner of the first, by margin that is b 0.
    a, b = (
        unit(np.array([[1.0, 0.5, 0], [0.1, 1, 0], [0, 1, 0.2]])),
        unit(np.array([[1, 0, 0.0], [1, 2, 0], [0, 1, 1]])),
    )
    assert retrieval.ranks_and_nearest(a, b)[1].tolist() != [0, 1, 2]
    assert retrieval.ranks_and_nearest(a, b, retrieval.Margin("ratio", 3))[1].tolist()[0] == 0


def test_a_block_never_holds_all_cosines_of_many_texts():
    count = 70_000
    vectors = unit(np.random.default_rng(0).normal(size=(count, 1)))
    assert max(1, retrieval.BLOCK_ELEMENTS // count) * count <= retrieval.BLOCK_ELEMENTS
    assert len(retrieval.ranks_and_nearest(vectors[:50], vectors[:50])[0]) == 50


def test_retrieval_is_symmetric_and_scored_by_language():
    generator = np.random.default_rng(1)
    answers = [unit(generator.normal(size=(2, 4))) for _ in range(9)]
    examples = [matching.TextPair("a", "b", 1.0, "deu" if n < 4 else "fra") for n in range(9)]
    row = find_row("tatoeba")
    found = matching.scores(row, answers, examples)
    swapped = matching.scores(row, [answer[::-1] for answer in answers], examples)
    assert swapped["retrieval_accuracy_a_to_b"] == found["retrieval_accuracy_b_to_a"]
    assert swapped["mrr"] == found["mrr"]
    assert found["retrieval_accuracy"] == pytest.approx(
        (found["retrieval_accuracy_deu"] + found["retrieval_accuracy_fra"]) / 2
    )
    for way in ("a_to_b", "b_to_a"):
        means = [found[f"retrieval_accuracy_{group}_{way}"] for group in ("deu", "fra")]
        assert found[f"retrieval_accuracy_{way}"] == pytest.approx(np.mean(means))
    shown = matching.table(row, found)
    assert shown is not None
    assert [line[0] for line in shown[1]] == ["deu", "fra", "retrieval_accuracy", "mrr"]
    assert shown[1][1][1:] == [f"{found[f'retrieval_accuracy_fra{way}']:.4f}" for way in ("_a_to_b", "_b_to_a", "")]
    one = matching.scores(row, answers[:4], examples[:4])
    assert matching.table(row, one) is None
    perfect = matching.scores(row, [answer[[0, 0]] for answer in answers], examples)
    assert (perfect["retrieval_accuracy"], perfect["mrr"]) == (1, 1)


def test_the_threshold_of_dev_scores_every_split():
    row = find_row("lcqmc_matching")
    sides = [(1.0, 0.0), (0.8, 0.6), (0.6, 0.8), (0.0, 1.0)]
    answers = [np.array([(1.0, 0.0), side], np.float32) for side in sides]
    examples = [matching.TextPair("a", "b", label) for label in (1.0, 1.0, 0.0, 0.0)]
    tuned = matching.tuned(row, answers, examples)
    assert tuned.threshold == pytest.approx(0.7)
    found = matching.scores(tuned, answers, examples)
    assert (found["accuracy"], found["roc_auc"]) == (1, 1)
    assert matching.scores(row, answers, examples)["accuracy"] == 0.75
    assert found["loss"] == pytest.approx(np.mean([0, 0.04, 0.36, 0]), abs=1e-6)
    scored = find_row("sts_b_matching")
    assert matching.tuned(scored, answers, examples) is scored
    five = [matching.TextPair("a", "b", 5 * label) for label in (1.0, 0.8, 0.6, 0.0)]
    found = matching.scores(scored, answers, five)
    assert found["spearman"] == pytest.approx(1)
    assert found["loss"] == pytest.approx(0, abs=1e-9)
    assert "accuracy" not in found
    assert correlations.spearman(matching.cosines(answers), np.arange(4)) == pytest.approx(-1)
