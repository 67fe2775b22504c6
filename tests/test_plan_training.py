import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl.app import UsageError

import plan_training
from commands.flags import parse
from modeling import Config
from plan_training import Options, Plan, difference, main, remedies

ROOT = Path(__file__).resolve().parent.parent
BERT = "albert_config/bert_config_large_en.json"


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    # Plans choose a backend for the process; the tests after these are not to inherit it.
    for name in ("KERAS_BACKEND", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def options(*flags: str) -> Options:
    return parse(Options, [f"--bert_config_file={BERT}", *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --topology"),
        (["--device=h200", "--topology=v4:2x2x1"], "give one of --topology"),
        (["--topology=v4e:2x2"], "unknown TPU generation 'v4e'; the nearest is v4"),
        (["--topology=v4:8"], "expected the 3 extents of a v4 slice in chips, as in v4:4x4x4"),
        (["--topology=v5e:0x2"], "expected the 2 extents of a v5e slice in chips, as in v5e:4x4"),
        (["--device=h20"], "--device=h20 is unknown; the nearest is h200"),
        (["--device=v5e:2x2"], "TPUs are given as --topology"),
        (["--device=h200", "--bert_config_file=nowhere.json"], "nowhere.json: no such file"),
        (["--device=h200", "--max_seq_length=600"], "sequences of 600 tokens, but this model has 512 positions"),
        (["--topology=v4:2x2x1", "--precision=float16"], "a TPU has no use for float16; give --precision=bfloat16"),
        (["--topology=v4:2x2x1", "--train_batch_size=30"], "choose a multiple of 4"),
        (["--device=h200", "--num_devices=4", "--model_parallel=3"], "does not divide the 4 chips"),
        (["--device=h200", "--num_devices=4", "--model_parallel=4"], "set vocab_padding_multiple to 128"),
    ],
)
def test_mistakes_are_named(flags: list[str], message: str):
    with pytest.raises(UsageError) as error:
        main(options(*flags))
    assert message in str(error.value)


@pytest.mark.slow
def test_a_plan_by_accounting_is_one_table_and_needs_no_tensorflow():
    script = (
        "import sys, plan_training as p; from commands.flags import parse\n"
        f"code = p.main(parse(p.Options, ['--bert_config_file={BERT}', '--device=h200']))\n"
        "print(code, [m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for row in ("weights", "optimizer slots", "peak, a chip", "operations of a step", "time of a step", "tokens a sec"):
        assert row in shown
    assert "NVIDIA H200 data sheet" in shown
    assert shown.endswith("0 []\n")


def test_the_largest_batch_fits_and_one_more_does_not(capsys: pytest.CaptureFixture[str]):
    flags = ("--device=l4", "--num_devices=2", "--gradient_accumulation_steps=3")
    assert main(options(*flags, "--find_batch")) == 0
    found = int(capsys.readouterr().out.split("batch ")[1].split(" x")[0])
    assert found % 6 == 0
    assert main(options(*flags, f"--train_batch_size={found}")) == 0
    assert main(options(*flags, f"--train_batch_size={found + 6}")) == 1


def test_what_does_not_fit_is_said_with_what_makes_it_fit(capsys: pytest.CaptureFixture[str]):
    assert main(options("--device=a100_40gb", "--train_batch_size=128")) == 1
    shown = capsys.readouterr().out
    assert "DOES NOT FIT" in shown
    assert "It fits with --remat" in shown
    assert main(options("--device=l4", "--train_batch_size=100000", "--remat")) == 1
    assert "take more chips, or a smaller model" in capsys.readouterr().out


def test_remedies_are_each_possible_tried_once_and_typed_as_shown():
    start = options("--device=h200", "--num_devices=8", "--train_batch_size=16")
    config = Config(
        family="bert",
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    found = list(remedies(start, config, 8))
    assert len(set(found)) == len(found)
    assert start not in found
    for remedy in found:
        plan_training.check_cuts(remedy, config, 8)
        flags = difference(start, remedy).split()
        typed = ["--device=h200", "--num_devices=8", "--train_batch_size=16", *flags]
        # Later flags win, as when they are added to the command.
        assert options(*typed) == remedy
    assert [difference(start, remedy) for remedy in found[:3]] == ["--remat", "--fsdp", "--remat --fsdp"]


def test_a_choice_is_compiled_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    compiled = []

    def pretend(choice: Options, config: Config, chip: object, chips: int, whole: Options) -> Plan:
        compiled.append(choice)
        return Plan(choice, {}, 1e6 * choice.train_batch_size, 77.5e6, {}, {})

    monkeypatch.setattr(plan_training, "plan_by_accounting", pretend)
    assert main(options("--device=h200", "--find_batch")) == 0
    assert "batch 77 x" in capsys.readouterr().out
    assert len(set(compiled)) == len(compiled) < 8


def test_a_plan_without_a_known_peak_does_not_fit():
    plan = Plan(options("--device=h200"), {}, None, math.inf, {}, {})
    assert not plan.fits
    assert dataclasses.replace(plan, peak_bytes=1.0).fits


@pytest.mark.slow
def test_the_steps_of_every_family_compile_for_tpus_that_are_not_here(tmp_path: Path):
    """The gate for TPUs: libtpu's own compiler on two generations, and JAX's export."""
    pytest.importorskip("libtpu")
    cases = ROOT / "tests/training/planning_cases.py"
    command = [sys.executable, "-W", "error", str(cases), str(tmp_path / "found.json")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    from modeling.accounting import parameter_count
    from modeling.config import load_config

    albert = 4 * parameter_count(load_config(tmp_path / "albert.json"))
    structbert = 4 * parameter_count(load_config(tmp_path / "structbert.json"), num_pair_labels=3)
    # Every gradient is summed over the four chips, in two bytes or four: which of them is the compiler's choice.
    assert found["albert v5e:2x2"]["held_bytes"] == {"weights": albert, "optimizer slots": 2 * albert}
    assert albert / 2 <= found["albert v5e:2x2"]["collectives"]["all-reduce"] < 1.5 * albert
    for case in ("structbert v4:2x2x1", "structbert v5e:2x2"):
        weights = found[case]["held_bytes"]["weights"]
        # Vectors stay whole.
        assert structbert / 4 < weights < structbert / 3
        assert found[case]["held_bytes"]["optimizer slots"] == 2 * weights
        assert found[case]["collectives"]["all-gather"] > 0.4 * structbert / 2
    assert found["structbert v5e:2x2"]["held_bytes"]["average"] > 0
    for case, compiled in found.items():
        if "exported" in case:
            assert compiled["platforms"] == ["tpu"]
        else:
            assert sum(compiled["held_bytes"].values()) < compiled["peak_bytes"] < 2**27
