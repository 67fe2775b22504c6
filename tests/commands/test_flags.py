import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from absl.app import UsageError

from commands.flags import Foreign, _translated, flag, help_text, nearest, parse, run, write_config
from commands.other_scripts import FOREIGN


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains a toy."""

    input_file: tuple[str, ...] = flag(help="shards")
    output_dir: str = flag(help="folder")
    learning_rate: float = flag(5e-5, help="peak rate", minimum=0, unit="per step")
    num_train_steps: int = flag(100, help="steps", minimum=1, maximum=1000, unit="steps")
    do_train: bool = flag(False, help="train")
    init_checkpoint: str | None = flag(None, help="weights")
    optimizer: str = flag("lamb", help="rule", choices=("lamb", "adamw"))
    config_file: str = flag("", help="model", aliases=("bert_config_file",))


NEEDED = ["--input_file=a", "--output_dir=o"]


def parsed(*arguments):
    return parse(Options, [*NEEDED, *arguments])


def test_defaults_and_every_way_to_write_a_value():
    assert parsed() == Options(input_file=("a",), output_dir="o")
    assert parse(Options, ["--input_file", "a, b*,c", "--output_dir", "o"]).input_file == ("a", "b*", "c")
    assert parsed("--learning_rate=1e-3").learning_rate == 1e-3
    assert parsed("--learning_rate", "1").learning_rate == 1.0
    assert parsed("--bert_config_file=x").config_file == "x"
    assert parsed("--init_checkpoint=x", "--init_checkpoint=").init_checkpoint is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("--do_train", True),
        ("--do_train=True", True),
        ("--do_train=true", True),
        ("--nodo_train", False),
        ("--do_train=False", False),
    ],
)
def test_booleans(text, value):
    assert parsed(f"--do_train={not value}", text).do_train is value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate=1"], "unknown flag --lerning_rate; the nearest is --learning_rate"),
        (["--nodo_trian"], "unknown flag --nodo_trian; the nearest is --do_train"),
        (["--learning_rate=fast"], "--learning_rate=fast: expected a number"),
        (["--num_train_steps=1.5"], "--num_train_steps=1.5: expected a whole number"),
        (["--num_train_steps=0"], "--num_train_steps=0: expected at least 1"),
        (["--num_train_steps=1001"], "--num_train_steps=1001: expected at most 1000"),
        (["--do_train=perhaps"], "--do_train=perhaps: expected true or false"),
        (["--optimizer=sgd"], "--optimizer=sgd: expected one of lamb, adamw"),
        (["--do_train", "perhaps"], "unexpected argument 'perhaps'; write flags as --name=value"),
        (["True"], "unexpected argument 'True'; write flags as --name=value"),
        (["--learning_rate"], "Missing value for flag --learning_rate"),
        (["--output_dir="], "missing required flag: --output_dir"),
        (["--output_dir= "], "--output_dir=' ': only white space; expected text"),
        (["--output_dir=a\0"], r"--output_dir='a\x00': a NUL character"),
        (["--output_dir=\udc80"], r"--output_dir='\udc80': not UTF-8"),
        (["--config="], "--config=: no path; name a JSON file of flags, or leave the flag out"),
        (["--config= "], "--config= : no path"),
        ([f"--{'x' * 5000}=1"], f"unknown flag --{'x' * 200}; the nearest is --"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UsageError) as error:
        parsed(*arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_all_missing_flags_are_named_at_once():
    with pytest.raises(UsageError, match=r"^missing required flags: --input_file, --output_dir$"):
        parse(Options, [])


def test_config_round_trip_and_command_line_wins(tmp_path):
    options = parsed("--learning_rate=0.25", "--do_train", "--init_checkpoint=x")
    write_config(options, tmp_path / "run" / "config.json")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    argument = f"--config={tmp_path}/run/config.json"
    assert parse(Options, [argument]) == options
    assert parse(Options, [argument, "--nodo_train"]).do_train is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"optimiser": "lamb"}', "unknown flag 'optimiser'; the nearest is 'optimizer'"),
        ('{"num_train_steps": "7"}', "--num_train_steps=7: expected a whole number"),
        ('{"num_train_steps": true}', "--num_train_steps=True: expected a whole number"),
        ('{"input_file": 3}', "--input_file=3: expected a list of text"),
        ('{"input_file": [" "]}', "--input_file=' ': only white space"),
        ("[]", "$ is a list: expected an object"),
        ("{", "not a JSON file of flags"),
    ],
)
def test_config_mistakes_name_the_file(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        parsed(f"--config={path}")
    assert str(error.value).startswith(f"--config={path}: ")
    assert message in str(error.value)


def test_nearest():
    assert nearest("lcqmc", ["xnli", "lcqmc_pair"]) == "lcqmc_pair"


def raising(error):
    def main(options):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda options: None, 0, ""),
        (lambda options: 7, 7, ""),
        (raising(UsageError("two\nlines")), 2, "two lines"),
        (raising(UsageError("bell\a \x1b[31m \udcff \u202e 甲\u3000é")), 2, r"bell\x07 \x1b[31m \udcff \u202e 甲 é"),
        (raising(UsageError(f"a{'x' * 9999}b")), 2, f"a{'x' * 999} ... {'x' * 999}b"),
        (
            raising(FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt")),
            1,
            "No such file or directory: x.txt",
        ),
        (raising(FileNotFoundError(errno.ENOENT, "No such file", "o")), 1, "No such file: --output_dir=o"),
        (raising(FileNotFoundError(errno.ENOENT, "No such file", "a")), 1, "No such file: --input_file=a"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "y")), 1, "disk full: y"),
        (raising(KeyboardInterrupt()), 130, "interrupted"),
    ],
)
def test_run_exit_codes_and_lines(capsys, monkeypatch, main, code, message):
    monkeypatch.setattr(sys, "argv", ["verbs/verb.py", *NEEDED])
    with pytest.raises(SystemExit) as stop:
        run(main, Options)
    assert stop.value.code == code
    assert capsys.readouterr().err == (f"verb.py: {message}\n" if message else "")


def test_our_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), Options, NEEDED)


def test_nothing_slow_is_imported():
    code = (
        "import sys, commands.flags, ground.progress; print({'numpy','tensorflow','keras','rich'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_config_is_plain_json(tmp_path):
    write_config(parsed(), tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["learning_rate"] == 5e-5


def test_help_that_nobody_reads_to_its_end_is_quiet():
    verb = f"{sys.executable} inspect_records.py --help"
    script = f"{verb} | true; {verb} >/dev/full"
    ended = subprocess.run(
        ["bash", "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.stderr == "inspect_records.py: disk full\n"
    assert ended.returncode == 1


@pytest.mark.parametrize(
    "given", [{}, {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "0", "TF_ENABLE_ONEDNN_OPTS": "0"}]
)
def test_a_verb_settles_its_environment_unless_the_user_has(monkeypatch, given):
    usual = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}
    seen: dict[str, str | None] = {}
    for name in usual:
        monkeypatch.setenv(name, "x")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        run(lambda options: seen.update({name: os.environ.get(name) for name in usual}), Options, NEEDED)
    assert seen == usual | given


@dataclass(frozen=True, kw_only=True)
class Taking(Options):
    """Takes flags of other programs."""

    foreign: ClassVar = {
        "fp16": Foreign("is --learning_rate", lambda value: [f"--learning_rate={0.5 if value == 'true' else 0.25}"]),
        "quiet": Foreign("means nothing here"),
    }
    most: int | None = flag(None, help="length", minimum=1, unset=("-1",), aliases=("max_steps",))


def test_flags_of_other_programs_are_taken_and_said():
    said: list[str] = []

    def taken(*arguments: str) -> Taking:
        said.clear()
        return parse(Taking, [*NEEDED, *arguments], said.append)

    assert taken("--quiet", "--fp16", "False", "--do_train", "True").learning_rate == 0.25
    assert said == ["--quiet=true: means nothing here", "--fp16=False: is --learning_rate"]
    assert taken("--quiet", "False", "--do_train").do_train
    assert taken("--fp16").learning_rate == 0.5
    assert taken("--fp16", "--learning_rate=1").learning_rate == 1  # what is given wins, wherever it stands
    assert taken("--learning_rate=1", "--fp16=true").learning_rate == 1
    assert not taken("--do_train", "False").do_train
    assert taken("--do_train", "true", "--max_steps", "-1").most is None
    assert taken("--max_steps=-1").most is None
    assert taken("--max_steps=7").most == 7
    with pytest.raises(UsageError, match="--most=-2: expected at least 1"):
        taken("--max_steps=-2")
    with pytest.raises(UsageError, match="unknown flag --quiet"):
        parse(Options, [*NEEDED, "--quiet"])
    assert "taken from the commands of other programs: fp16 is --learning_rate; quiet" in help_text(Taking, "x", "all")


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["--fp16"], ["--precision=float16"]),
        (["--fp16=False"], []),
        (["--bf16", "True"], ["--precision=bfloat16"]),
        (["--fp16_opt_level=O1", "--scale_loss=32768", "--remove_unused_columns", "False", "--device=gpu:0"], []),
        (["--save_total_limit=2"], ["--keep_checkpoint_max=2"]),
        (["--lr_scheduler_type", "linear", "--evaluation_strategy=steps"], []),
    ],
)
def test_flags_of_paddlenlp(arguments: list[str], flags: list[str]):
    assert _translated({}, FOREIGN, arguments, print) == flags


@pytest.mark.parametrize("argument", ["--device=xpu", "--fp16=perhaps", "--fp16_opt_level=O2", "--save_strategy=epoch"])
def test_a_foreign_flag_that_would_mean_something_else_is_one_line(argument: str):
    with pytest.raises(UsageError, match=re.escape(f"{argument}: expected ")):
        _translated({}, FOREIGN, [argument], print)


def test_the_cpu_is_chosen_before_anything_looks_for_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert _translated({}, FOREIGN, ["--device=cpu"], print) == []
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["JAX_PLATFORMS"]) == ("", "cpu")
