"""Names with shares: one name stands alone, shares add up to 1, a mistake is one line that says how to write it."""

from __future__ import annotations

import math

import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st

import run_pretraining
from commands.flags import help_text, parse
from commands.shares import as_text, numbers_of, shares_of

KNOWN = ("albert", "masked_lm", "tlm", "veco")
shares = st.dictionaries(st.sampled_from(KNOWN), st.floats(0.1, 20), min_size=1)


@given(shares, st.randoms())
def test_shares_add_up_to_1_in_the_same_order_however_they_are_typed(given_shares, random):
    found = shares_of(",".join(f"{name}:{share!r}" for name, share in given_shares.items()), KNOWN, "objective")
    assert math.isclose(sum(found.values()), 1)
    whole = sum(given_shares.values())
    assert found == pytest.approx({name: share / whole for name, share in given_shares.items()})
    assert [*found] == [name for name in KNOWN if name in given_shares]
    typed = [f"{name} : {share!r}" for name, share in given_shares.items()]
    random.shuffle(typed)
    assert shares_of(" , ".join(typed), KNOWN, "objective") == pytest.approx(found)


def test_a_name_stands_alone_and_names_without_shares_have_equal_ones():
    assert shares_of("tlm", KNOWN, "objective") == {"tlm": 1.0}
    assert shares_of("tlm:7", KNOWN, "objective") == {"tlm": 1.0}
    assert shares_of("veco,tlm", KNOWN, "objective") == {"tlm": 0.5, "veco": 0.5}
    assert numbers_of("tlm:2", KNOWN, "objective_weights") == {"tlm": 2.0}
    assert as_text({"tlm": 1.0}) == "tlm"
    assert shares_of(as_text({"tlm": 0.25, "veco": 0.75}), KNOWN, "objective") == {"tlm": 0.25, "veco": 0.75}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("masked_ml", "'masked_ml' is unknown; the nearest is masked_lm; expected one of albert, masked_lm, tlm, veco"),
        ("tlm:1,masked_ml:1", "'masked_ml' is unknown; the nearest is masked_lm"),
        ("", "'' is unknown"),
        ("tlm,", "'' is unknown"),
        ("tlm:0.5,veco", "veco has no share but tlm has 0.5: give each a share, as tlm:1,veco:1, or none for equal"),
        ("tlm,tlm:0.5", "tlm is named twice"),
        ("tlm:0,veco:1", "tlm:0; expected a number above 0, at most 1e+06"),
        ("tlm:-1,veco:1", "tlm:-1; expected a number above 0"),
        ("tlm:nan,veco:1", "tlm:nan; expected a number above 0"),
        ("tlm:inf,veco:1", "tlm:inf; expected a number above 0"),
        ("tlm:half,veco:half", "tlm:half; expected a number above 0"),
        ("tlm:,veco:", "tlm:; expected a number above 0"),
        ("tlm:1:2", "tlm:1:2; expected a number above 0"),
        ("tlm:1e-5,veco:1", "tlm has 1e-05 of the steps; expected at least 0.001, or leave tlm out"),
        ("x" * 900, "xxxx... is unknown"),
    ],
)
def test_a_mistake_is_one_line(text: str, said: str):
    with pytest.raises(UsageError) as error:
        shares_of(text, KNOWN, "objective")
    message = str(error.value)
    assert message.startswith("--objective=")
    assert "\n" not in message
    assert len(message) < 500
    if "..." not in said:
        assert said in message


def test_a_number_is_not_left_out():
    with pytest.raises(UsageError, match="--objective_weights=tlm: tlm has no number; expected NAME:NUMBER, as tlm:2"):
        numbers_of("tlm", KNOWN, "objective_weights")


def test_the_flag_takes_both_and_its_help_names_all():
    given = ["--input_file=x", "--output_dir=x", "--bert_config_file=x"]
    assert parse(run_pretraining.Options, [*given, "--objective=tlm"]).shares == {"tlm": 1.0}
    options = parse(run_pretraining.Options, [*given, "--objective=tlm:1,masked_lm:3", "--objective_weights=tlm:2"])
    assert options.shares == {"masked_lm": 0.75, "tlm": 0.25}
    assert options.weights_of_objectives == {"tlm": 2.0}
    with pytest.raises(
        UsageError, match=r"^--objective=vego: 'vego' is unknown; the nearest is veco; expected one of alb"
    ):
        parse(run_pretraining.Options, [*given, "--objective=vego"])
    with pytest.raises(UsageError, match=r"--objective_weights=veco:2: 'veco' is unknown; .* one of masked_lm, tlm$"):
        _ = parse(
            run_pretraining.Options, [*given, "--objective=tlm,masked_lm", "--objective_weights=veco:2"]
        ).weights_of_objectives
    assert "albert|bert|" in help_text(run_pretraining.Options, "x", "objective")
