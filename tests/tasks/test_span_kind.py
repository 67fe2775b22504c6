"""Answers in a text, the host half: SQuAD's JSON, offsets, windows, candidates, no answer, files of predictions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Oracle, span_oracle

from data.tokenizers.wordpiece import WordPieceTokenizer
from tasks.datasets import find_row
from tasks.kinds import span
from tasks.kinds.span import Question, find_answer
from tasks.splits import Splits

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = WordPieceTokenizer([*SPECIALS, *"北京大学在哪里？海淀区是年建立的。1898", "1898", *"abcdefghij"])
CMRC, SQUAD, SQUAD_2 = find_row("cmrc2018"), find_row("squad"), find_row("squad_v2")
CONTEXT = "北京大学在海淀区，\u2028北京大学建立于1898年。"


def squad(*asked: dict[str, Any], context: str = CONTEXT) -> str:
    return json.dumps({"data": [{"title": "x", "paragraphs": [{"context": context, "qas": list(asked)}]}]})


def asked(name: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    given = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": "在哪里？", "answers": given, **more}


def read(path: Path, content: str, row=CMRC, need_labels: bool = True) -> list[Question]:
    path.write_text(content, encoding="utf-8")
    return span.read(row, path, need_labels=need_labels)


def test_answers_are_where_the_file_says_or_looked_for(tmp_path: Path):
    examples = read(
        tmp_path / "dev.json",
        squad(
            asked("told", ("海淀区", 5)),
            asked("shifted", ("北京大学", 11)),
            asked("only place", ("1898年", -1)),
            asked("several places", ("北京大学", -1)),
            asked("nowhere", ("上海", 3)),
            asked("second is known", ("上海", 3), ("海淀区", 5)),
            asked("twice", ("海淀区", 5)) | {"question": " "},
        ),
    )
    assert {each.id: each.place for each in examples} == {
        "told": (5, 8),
        "shifted": (10, 14),
        "only place": (17, 22),
        "several places": None,
        "nowhere": None,
        "second is known": (5, 8),
        "twice": (5, 8),
    }
    assert examples[5].texts == ["上海", "海淀区"]  # all count in scores
    assert span.notes(CMRC, examples) == (
        "1 empty questions, 2 answers found at another place than is told, "
        "2 questions whose answer has no known place, which train nothing"
    )
    labels = span.dataset(CMRC, examples, TOKENIZER, max_seq_length=40, batch_size=4).examples.labels
    # [CLS] 在 哪 里 ？ [SEP] before the context; an unknown place weighs nothing.
    assert labels.tolist() == [[11, 13], [15, 18], [22, 23], [-1, -1], [-1, -1], [11, 13], [7, 9]]


def test_the_nearest_place_counts():
    assert find_answer("aXbXc", "X", 3) == 3
    assert find_answer("aXbXc", "X", 4) == 3
    assert find_answer("aXbXc", "X", 0) == 1
    assert find_answer("aXbXc", "X", -1) == -1
    assert find_answer("aXb", "X", -1) == 1
    assert find_answer("aXb", "", 1) == -1


def test_the_original_form_of_cmrc_and_files_without_answers(tmp_path: Path):
    old = [
        {
            "context_id": "1",
            "context_text": CONTEXT,
            "qas": [{"query_id": "q", "query_text": "？", "answers": ["1898"]}],
        }
    ]
    (example,) = read(tmp_path / "train.json", json.dumps(old))
    assert (example.id, example.answers) == ("q", (("1898", 17),))
    bare = {"id": "q", "question": "？"}
    assert read(tmp_path / "test.json", squad(bare), need_labels=False)[0].label is None
    assert read(tmp_path / "test.json", squad({**bare, "answers": []}), need_labels=False)[0].label is None
    plausible = asked("q", is_impossible=True, plausible_answers=[{"text": "海淀区", "answer_start": 5}])
    assert read(tmp_path / "dev.json", squad(plausible), SQUAD_2)[0].label == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (squad({"id": "q", "question": "？"}), r"x\.json: \$\.data\[0\]\.paragraphs\[0\]\.qas\[0\]: no answers"),
        (squad(asked("q", ("海", 5)), asked("q", ("海", 5))), r"qas\[1\]: the id 'q' comes twice"),
        (squad(asked("q", ("海", 5)), context=" "), r"qas\[0\]: the context is empty"),
        (squad(asked("q", ("海", 5)) | {"question": 7}), r"x\.json: \$\.data\[0\].*question.* is 7: expected text"),
        ("[1]", r"x\.json: .*expected SQuAD's form"),
        ('{"data": {}}', r"x\.json: \$\.data is an object: expected a list; expected SQuAD's form"),
        ("{", r"x\.json: not a file of questions"),
        ('{"data": []}', r"x\.json holds no question"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, content: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path / "x.json", content)
    assert "\n" not in str(caught.value)


def test_questions_without_answer_need_a_task_that_has_them(tmp_path: Path):
    examples = read(tmp_path / "dev.json", squad(asked("q", is_impossible=True), asked("r", ("海淀区", 5))))
    with pytest.raises(UsageError, match=r"^1 questions of --task_name=squad have no answer, as 'q': give --version_2"):
        span.dataset(SQUAD, examples, TOKENIZER, max_seq_length=40, batch_size=4)
    several: list[tuple[Any, dict[str, Any]]] = [(SQUAD, {"version_2_with_negative": True}), (SQUAD_2, {})]
    for row, more in several:
        dataset = span.dataset(row, examples, TOKENIZER, max_seq_length=40, batch_size=4, **more)
        assert dataset.examples.labels.tolist() == [[0, 0], [11, 13]]
        answers = span.answers(row, span_oracle(dataset), examples, **more)
        assert [each.text for each in answers] == ["", "海淀区"]
        assert span.scores(row, answers, examples)["no_answer_exact_match"] == 1
        assert span.answers(SQUAD, span_oracle(dataset), examples)[0].text != ""  # 1.1 always answers


CHARACTERS = "北京大学在海淀区是的。 abcé\u200b\u2028😀"


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.text(CHARACTERS, min_size=1, max_size=40),
            st.integers(0, 39),
            st.integers(1, 8),
            st.text("在？ab", max_size=6),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(5, 24),
    st.integers(1, 20),
)
def test_the_truth_comes_back_through_windows_of_any_length_and_step(asked, length: int, stride: int):
    """Every answer that a window holds whole, and whose ends are those of tokens, is found word for word."""
    tokenizer = WordPieceTokenizer([*SPECIALS, *"北京大学在海淀区是的。？abce😀", *(f"##{c}" for c in "abce😀")])
    examples = []
    for number, (context, begin, size, question) in enumerate(asked):
        begin %= len(context)
        answer = context[begin : begin + size]
        examples.append(Question(str(number), question, context, ((answer, begin),)))
    dataset = span.dataset(CMRC, examples, tokenizer, max_seq_length=length, batch_size=4, doc_stride=stride)
    held = {int(dataset.windows.example[row]) for row in np.flatnonzero(dataset.examples.labels[:, 0] > 0)}
    answers = span.answers(CMRC, span_oracle(dataset), examples)
    for number in held:
        (text, begin), example = examples[number].answers[0], examples[number]  # pyright: ignore[reportOptionalSubscript]
        encoding = tokenizer.encode_batch([example.context])
        if {begin} <= set(encoding.starts.tolist()) and {begin + len(text)} <= set(encoding.ends.tolist()):
            assert answers[number].text == text
    longest = dataset.examples.lengths_tokens.max()
    assert longest <= length


def test_an_answer_is_cut_from_the_context_as_it_was_given():
    tokenizer = WordPieceTokenizer([*SPECIALS, "cafe", "the", "noir"])
    context = "The  Cafe\u0301 NOIR"
    question = Question("q", "the", context, (("Cafe\u0301", 5),))
    dataset = span.dataset(SQUAD, [question], tokenizer, max_seq_length=16, batch_size=1)
    assert span.answers(SQUAD, span_oracle(dataset), [question])[0].text == "Cafe\u0301"


def logits(dataset, row: int, **places: dict[int, float]) -> dict[str, Any]:
    length = int(dataset.examples.lengths_tokens[row])
    found = {name: np.zeros(length, np.float32) for name in ("start_logits", "end_logits")}
    for name, values in places.items():
        for place, value in values.items():
            found[f"{name}_logits"][place] = value
    return {**found, **dataset.facts(row)}


def test_candidates_are_in_order_short_and_inside_of_the_context():
    question = Question("q", "a b", "c d e f g", None)
    dataset = span.dataset(SQUAD, [question], TOKENIZER, max_seq_length=16, batch_size=1)
    # [CLS] a b [SEP] c d e f g [SEP]: the question, the specials and an end before its beginning are no answers.
    row = logits(dataset, 0, start={1: 9, 0: 8, 6: 5, 4: 3}, end={2: 9, 9: 8, 4: 4, 8: 2})
    first = span.answers(SQUAD, [row], [question])[0]
    assert [(each["text"], each["start_logit"] + each["end_logit"]) for each in first.n_best[:3]] == [
        ("c", 7.0),
        ("e f g", 7.0),
        ("c d e f g", 5.0),
    ]
    assert sum(each["probability"] for each in first.n_best) == pytest.approx(1)
    assert span.answers(SQUAD, [row], [question], max_answer_length=2)[0].n_best[1]["text"] == "e"
    assert len(span.answers(SQUAD, [row], [question], n_best_size=2)[0].n_best) == 2


def test_windows_vote_and_the_threshold_decides_over_no_answer():
    question = Question("q", "a", "b c d e f g", ())
    dataset = span.dataset(SQUAD_2, [question], TOKENIZER, max_seq_length=7, batch_size=1, doc_stride=3)
    assert dataset.num_examples == 2  # [CLS] a [SEP] and three tokens
    rows = [
        logits(dataset, 0, start={0: 3, 3: 2}, end={0: 3, 3: 2}),  # no answer 6, "b" 4
        logits(dataset, 1, start={0: 2.5, 4: 2.5}, end={0: 2.5, 4: 2}),  # no answer 5, "f" 4.5
    ]
    (answer,) = span.answers(SQUAD_2, rows, [question])
    assert (answer.text, answer.best, answer.null_difference) == ("", "f", 0.5)  # the least no answer, the best text
    assert span.answers(SQUAD_2, rows, [question], null_score_diff_threshold=0.5)[0].text == "f"
    assert span.answers(SQUAD, rows, [question])[0].text == "f"
    scores = span.scores(SQUAD_2, [answer], [question])
    assert (scores["exact_match"], scores["best_exact_match"]) == (1, 1)
    assert scores["best_exact_match_threshold"] < 0.5


def test_files_of_predictions():
    questions = [Question(name, "a", "b c", (("c", 2),)) for name in ("x", "y")]
    dataset = span.dataset(SQUAD_2, questions, TOKENIZER, max_seq_length=16, batch_size=1)
    answers = span.answers(SQUAD_2, span_oracle(dataset), questions)
    (line,) = span.lines(SQUAD_2, answers, questions)
    assert json.loads(line) == {"x": "c", "y": "c"}
    files = {name: json.loads(text) for name, text in span.files(SQUAD_2, "dev", answers, questions).items()}
    assert files["nbest_predictions.json"]["x"][0]["text"] == "c"
    assert files["null_odds.json"] == {"x": -18.0, "y": -18.0}
    assert "null_odds.json" not in span.files(SQUAD, "dev", answers, questions)


def test_what_is_out_of_reach_is_told():
    question = Question("q", "a", "b c d e f g", (("b c d e f", 0),))
    kinds: list[tuple[dict[str, Any], str]] = [
        ({"max_seq_length": 16}, ""),
        ({"max_seq_length": 7}, "1 answers that no window holds whole"),
    ]
    kinds += [({"max_seq_length": 16, "max_answer_length": 4}, "1 answers longer than --max_answer_length=4 tokens")]
    for flags, expected in kinds:
        dataset = span.dataset(SQUAD, [dataclasses.replace(question)], TOKENIZER, batch_size=1, **flags)
        assert dataset.notes == expected


def test_from_files_to_files_whatever_the_batches(tmp_path: Path):
    """Rows are evaluated by length and come back to their questions; written is what BERT's script writes."""
    questions = [
        {"context": "海" * (3 + 5 * n) + "北京" + "大" * n, "qas": [asked(f"q{n}", ("北京", 3 + 5 * n))]}
        for n in range(6)
    ]
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": questions}]}))
    splits = Splits(CMRC, {"dev": [tmp_path / "dev.json"]})
    splits.encode(TOKENIZER, max_seq_length=14, batch_size=4, seed=0, doc_stride=3, max_answer_length=7)
    assert splits.further == {"doc_stride": 3, "max_answer_length": 7}
    answers = splits.answers(Oracle(), "dev", 3)
    assert splits.scores("dev", answers) == {"exact_match": 1, "f1": 1}
    splits.write(tmp_path / "dev_predictions.json", "dev", answers)
    assert json.loads((tmp_path / "dev_predictions.json").read_text()) == {f"q{n}": "北京" for n in range(6)}
    assert json.loads((tmp_path / "dev_nbest_predictions.json").read_text()).keys() == {f"q{n}" for n in range(6)}
    assert splits.sizes == "dev 6 examples of cmrc2018"
