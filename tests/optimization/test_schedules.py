import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st

from optimization import SCHEDULES, Constant, LinearDecay, PolynomialDecay, create_schedule


def test_known_answers_of_google_albert():
    schedule = PolynomialDecay(0.00176, 125_000, 3125)
    known = {0: 0.0, 3124: 0.00176 * 3124 / 3125, 3125: 0.001716, 62_500: 0.00088, 125_000: 0.0, 130_000: 0.0}
    for step, rate in known.items():
        np.testing.assert_allclose(float(schedule(step)), rate, rtol=1e-6, err_msg=str(step))


def test_power_and_late_warmup():
    schedule = PolynomialDecay(1.0, 100, warmup_steps=10, power=2.0, start_warmup_step=20)
    known = {0: 0.0, 19: 0.0, 20: 0.0, 25: 0.5, 29: 0.9, 30: 0.49, 60: 0.16, 100: 0.0}
    for step, rate in known.items():
        np.testing.assert_allclose(float(schedule(step)), rate, atol=1e-6, err_msg=str(step))


def test_linear_is_continuous_and_constant_stays():
    linear, constant = LinearDecay(1.0, 100, 20), Constant(1.0, 20)
    for step, rate in {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0, 120: 0.0}.items():
        np.testing.assert_allclose(float(linear(step)), rate, atol=1e-6)
    for step, rate in {0: 0.0, 10: 0.5, 20: 1.0, 10_000: 1.0}.items():
        np.testing.assert_allclose(float(constant(step)), rate, atol=1e-6)


@given(
    st.sampled_from(SCHEDULES),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 300),
    st.sampled_from([0.5, 1, 2]),
)
def test_rates_stay_between_zero_and_the_peak(name, start, warmup, step, power):
    schedule = create_schedule(
        name, rate=0.3, total_steps=100, warmup_steps=warmup, power=power, start_warmup_step=start
    )
    assert 0 <= float(schedule(step)) <= 0.3 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "warmup", "message"),
    [
        ("cosine", 0, "unknown schedule 'cosine': expected one of polynomial, linear, constant"),
        ("linear", 101, "the warmup ends at step 101, after the last step 100: lower num_warmup_steps"),
    ],
)
def test_mistakes(name, warmup, message):
    with pytest.raises(UsageError, match=message):
        create_schedule(name, rate=1.0, total_steps=100, warmup_steps=warmup)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_a_warmup_the_first_step_has_the_whole_rate(name):
    assert float(create_schedule(name, rate=0.25, total_steps=10)(0)) == 0.25
