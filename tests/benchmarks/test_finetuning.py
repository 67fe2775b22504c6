from typing import Any

import pytest
from absl.app import UsageError

from benchmarks.contenders import contender, environment, flags_of
from benchmarks.finetuning import Options, as_markdown, check, line_of, random_pairs, row_of


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="--contenders=torch is unknown: expected some of tensorflow, jax"):
        check(Options(contenders=("torch",)))
    with pytest.raises(UsageError, match="--rows has 1 values, expected one for each of --shapes"):
        check(Options(rows=(3,)))


def test_rows_have_lengths_of_lcqmc_and_two_segments():
    pairs = random_pairs(1000, 2000)
    assert pairs.num_examples == 2000
    assert pairs.lengths_tokens.mean() == pytest.approx(2 * 12.5 + 3, abs=0.5)
    one = pairs.segments[: pairs.splits[1]]
    assert sorted(one) == list(one)
    assert set(one) == {0, 1}


def row(name: str, train: float, predict: float) -> dict[str, Any]:
    known = {"shape": "base", "contender": name, "peak_bytes": 1e9, "first_seconds": 7.0}
    for what, rate in (("train", train), ("predict", predict)):
        known |= {f"{what}_rows_per_second": rate, f"{what}_rows_per_second_range": [rate - 1, rate + 1]}
    return known


def test_the_table_compares_with_transformers():
    rows = [row("tensorflow", 30.0, 90.0), row("transformers", 20.0, 60.0)]
    cells = [cell.strip() for cell in line_of(rows[0], rows).split("|")[1:-1]]
    assert cells == ["tensorflow", "30.0 (29.0-31.0)", "1.50", "90.0 (89.0-91.0)", "1.50", "1,000", "7.0"]
    rows.append({"shape": "base", "contender": "jax", "error": "no memory"})
    table = as_markdown({"machine": "m", "options": vars(Options()), "rows": rows})
    assert "| jax | no memory |" in table


@pytest.mark.slow
def test_contenders_train_and_predict_and_failures_are_named():
    case = Options(shapes=("tiny",), rows=(4,), batch_size=4, rounds=1, threads=1)
    flags = flags_of(case, measure="jax_padded")
    with contender("jax_padded", "benchmarks.finetuning", flags, environment("jax", 1)) as each:
        each.take_turn("train")
        each.take_turn("predict")
        found = row_of(each, case)
    assert found["train_rows_per_second"] > 0
    assert found["predict_rows_per_second"] > 0
    assert found["peak_bytes"] > 1e8
    with contender("x", "benchmarks.finetuning", ["--measure=x"], environment("jax", 1)) as each:
        assert "--measure=x is unknown" in each.known["error"]
        each.take_turn("train")
        assert "train_rows_per_second" not in row_of(each, case)
