"""Capital sigmas in the graph: the one letter whose lower case depends on its neighbours, against Python's own rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.tokenizers.in_graph import _CASED, _IGNORABLE, _with_final_sigmas

tf: Any = tensorflow


def properties_of(character: str) -> int:
    cased = f"{character}Σ".lower()[-1] == "ς"
    return _CASED * cased + _IGNORABLE * (not cased and f"A{character}Σ".lower()[-1] == "ς")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ΣΣΑa1國'\u00ad", min_size=1, max_size=6), min_size=1, max_size=4))
# What is decided at the end of the batch, where no neighbour follows or the last one is no letter.
@example(["ΑΣ1"])
@example(["ΑΣ"])
@example(["Σ"])
@example(["ΑΣ", "Α"])
@example(["Α", "Σ"])
@example(["ΑΣ'"])
def test_final_sigmas_are_those_of_python(runs: list[str]):
    text = "".join(runs)
    number = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    properties = np.asarray([properties_of(character) for character in text], np.int32)
    codes = tf.constant([ord(character) for character in text], tf.int32)
    found = _with_final_sigmas(codes, tf.constant(number, tf.int64), tf.constant(properties)).numpy()
    expected = [c if c != "Σ" or low == "σ" else "ς" for run in runs for c, low in zip(run, run.lower(), strict=True)]
    assert "".join(map(chr, found)) == "".join(expected)
