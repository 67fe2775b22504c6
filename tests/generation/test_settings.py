"""Settings: bounds, names, what fits together, and the presets."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from absl.app import UsageError

from generation.settings import PRESETS, Chunks, Settings

WRONG = [
    ({"num_beam": 4}, "unknown setting 'num_beam' of generation; did you mean 'num_beams'"),
    (
        {"rule": "fairsec"},
        "rule is 'fairsec'; expected one of transformers, fairseq, gnmt, palm; did you mean 'fairseq'",
    ),
    ({"num_beams": 0}, "num_beams is 0; expected at least 1"),
    ({"num_beams": 2.0}, "num_beams is 2.0; expected int"),
    ({"num_beams": True}, "num_beams is True; expected int"),
    ({"temperature": 0.0, "do_sample": True}, "temperature is 0.0; expected at least 0.001"),
    ({"top_p": 1.5, "do_sample": True}, "top_p is 1.5; expected at most 1, since it is a share"),
    ({"length_penalty": float("nan")}, "length_penalty is nan; expected at least -100"),
    ({"early_stopping": "Never"}, "early_stopping is 'Never'; expected True, False or"),
    ({"early_stopping": 1}, "early_stopping is 1"),
    ({"do_sample": 1}, "do_sample is 1"),
    ({"min_new_tokens": 64}, "min_new_tokens 64 leaves no room for the end token below max_new_tokens 64"),
    ({"do_sample": True, "num_beams": 2}, "do_sample draws single rows, num_beams is 2"),
    ({"num_return_sequences": 2}, "num_return_sequences 2 is above num_beams 1"),
    ({"top_k": 5}, "top_k is 5, which does nothing without do_sample"),
    ({"suppress_tokens": [-1]}, "suppress_tokens has -1; expected token ids"),
    ({"forced_eos_token_id": "2"}, "forced_eos_token_id has '2'"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_wrong_settings_are_refused_in_one_line(values: dict[str, object], message: str):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        Settings.from_mapping(values)
    assert "\n" not in str(error.value)


def test_chunks_have_bounds():
    with pytest.raises(UsageError, match=r"min_fraction is 1.5; expected at most 1, since it is a share"):
        Chunks(min_fraction=1.5)


def test_lists_and_whole_numbers_are_taken():
    settings = Settings.from_mapping({"suppress_tokens": [3, 4], "length_penalty": 2})
    assert settings.suppress_tokens == (3, 4)
    assert settings.length_penalty == 2.0
    assert settings.changed(num_beams=3).num_beams == 3


def test_presets_are_the_published_ones():
    assert PRESETS["palm_cnndm"].settings.max_new_tokens == 130
    assert PRESETS["palm_cnndm"].settings.length_penalty == 0.95
    assert PRESETS["plug_fine_tuned"].settings.min_new_tokens == 5
    plug = PRESETS["plug"]
    assert (plug.settings.top_k, plug.settings.temperature, plug.chunks) == (20, 0.9, Chunks())


def test_presets_are_known_before_keras_is_loaded():
    script = "import sys, generation.settings; print([m for m in ('numpy', 'tensorflow', 'keras') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
