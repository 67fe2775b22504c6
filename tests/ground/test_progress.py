import io

import pytest

from ground.progress import Progress, format_duration, format_value


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (723, "12m03s"), (18240, "5h04m"), (284400, "3d07h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (12345, "12,345"), (0.123456, "0.1235"), (1234.56, "1,235"), (float("nan"), "nan"), ("a", "a")],
)
def test_values(value, text):
    assert format_value(value) == text


def test_rate_and_time_left_follow_the_clock():
    clock, out = Clock(), io.StringIO()
    progress = Progress(100, "steps", "training", done=20, stream=out, interval_seconds=10, clock=clock)
    for done in (30, 40):
        clock.now += 5
        progress.update(done, {"loss": 0.5})
    assert progress.rate == 2
    assert out.getvalue() == "training  40/100 steps (40%)  2/s  ETA 30s  loss 0.5\n"


def test_less_than_one_unit_has_no_rate():
    clock, out = Clock(), io.StringIO()
    with Progress(0.02, "kB", stream=out, clock=clock) as progress:
        clock.now += 1
        progress.update(0.02)
    assert out.getvalue() == "0/0 kB (100%)  in 1s\n"


def test_rate_forgets_what_is_long_ago():
    clock = Clock()
    progress = Progress(None, stream=io.StringIO(), clock=clock)
    clock.now += 1000
    progress.update(1)
    for done in range(2, 102):
        clock.now += 1
        progress.update(done)
    assert progress.rate == pytest.approx(1.0)


def test_a_pause_does_not_stand_for_the_rate():
    clock = Clock()
    progress = Progress(1000, "steps", stream=io.StringIO(), clock=clock)
    for done in range(1, 41):
        clock.now += 40 if done == 40 else 0.5
        progress.update(done)
    assert progress.rate == pytest.approx(32 / (31 * 0.5 + 40))


def test_plain_lines_keep_the_interval_and_the_last_state_is_shown_once():
    clock, out = Clock(), io.StringIO()
    with Progress(50, stream=out, interval_seconds=20, clock=clock) as progress:
        for done in range(1, 51):
            clock.now += 1
            progress.update(done)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1] == "50/50 examples (100%)  1/s  in 50s"


def test_terminal_gets_a_live_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out, clock = Terminal(), Clock()
    with Progress(10, "steps", stream=out, clock=clock) as progress:
        clock.now += 1
        progress.update(4, {"loss": 1.25} | {f"a_metric_of_a_long_name_{number}": 0.5 for number in range(9)})
        progress.print("saved [red]")
    assert "4/10 steps" in out.getvalue()
    assert "saved [red]" in out.getvalue()
    # A line longer than the terminal is wrapped, not cut.
    assert "name_8" in out.getvalue()
