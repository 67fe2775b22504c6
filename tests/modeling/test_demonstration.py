import pytest

import test_changes


@pytest.mark.slow
def test_the_three_changes_are_shown_and_hold(capsys: pytest.CaptureFixture[str]):
    test_changes.main()
    shown = capsys.readouterr().out
    for number in ("30,720,000", "3,971,072", "125,976,576", "10,498,048", "All numbers hold."):
        assert number in shown


def test_a_number_that_does_not_hold_stops_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(test_changes, "EMBEDDING", 64)
    with pytest.raises(SystemExit, match="FAILED: the factors have V x E"):
        test_changes.factorised_embedding()
    assert "3,971,072" not in capsys.readouterr().out
