from typing import Any

import pytest
from absl.app import UsageError

from benchmarks.contenders import environment, flags_of
from benchmarks.generation import Options, as_markdown, check


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="--contenders=torch is unknown: expected some of tensorflow, jax"):
        check(Options(contenders=("torch",)))
    with pytest.raises(UsageError, match="--ways=beam is unknown"):
        check(Options(ways=("beam",)))


def test_a_contender_gets_its_case_and_its_threads():
    options = Options(ways=("beam5",), batch_sizes=(16,), threads=3, measure="jax", folder="here")
    assert {"--ways=beam5", "--batch_sizes=16", "--measure=jax", "--folder=here"} <= set(flags_of(options))
    given = environment("jax", 3)
    assert (given["KERAS_BACKEND"], given["OMP_NUM_THREADS"], given["TF_NUM_INTRAOP_THREADS"]) == ("jax", "3", "3")


def row(contender: str, seconds: float, first: float) -> dict[str, Any]:
    case = {"shape": "base", "way": "greedy", "batch_size": 1, "contender": contender}
    times = {"seconds": seconds, "tokens_per_second": 64 / seconds, "best_tokens_per_second": 64 / seconds}
    further = {"processor_seconds": seconds, "first_token_seconds": 0.1, "peak_bytes": 1e9, "first_call_seconds": first}
    return {**case, **times, **further}


def test_the_table_compares_with_the_faster_of_transformers_and_says_when_compiling_is_paid_back():
    rows = [row("transformers", 4.0, 5.0), row("tensorflow", 1.0, 7.0), row("transformers_static", 3.0, 5.0)]
    rows += [row("jax", 3.5, 9.0), {**rows[0], "contender": "ctranslate2", "error": "other tokens than transformers'"}]
    del rows[-1]["seconds"]
    options = {"rounds": 5, "source_length": 128, "target_length": 64}
    lines = as_markdown({"machine": "m", "options": options, "rows": rows}).splitlines()
    found = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[6:]}
    assert found["tensorflow"] == ["64.0 (64.0)", "3.00", "1.00", "100", "1,000", "7.0", "3 calls"]
    assert found["transformers"][1] == "0.75"
    assert found["jax"][-1] == "never"
    assert found["ctranslate2"][0] == "other tokens than transformers'"
