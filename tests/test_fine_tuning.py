"""Techniques of run_classifier.py together: one tiny run with everything on, and what a person gets wrong."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from absl.app import UsageError

import run_classifier
from commands.flags import parse
from modeling import Computation, Config
from tasks.splits import Splits

WORDS = "abcdefghij"
CONFIG = Config(
    family="bert",
    vocab_size=15,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=16,
    initializer_range=0.2,
)


@pytest.fixture
def arguments(tmp_path):
    """The flags of a run, without techniques, in a folder of its own."""
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    rng = np.random.default_rng(0)
    for split, examples in (("train", 12), ("dev", 4)):
        texts = [" ".join(rng.choice(list(WORDS), 5)) for _ in range(examples)]
        (tmp_path / f"{split}.tsv").write_text("".join(f"{text.count('a') % 2}\t{text}\n" for text in texts))
    return [
        "--task_name=chnsenticorp",
        f"--data_dir={tmp_path}",
        f"--bert_config_file={tmp_path / 'config.json'}",
        f"--vocab_file={tmp_path / 'vocab.txt'}",
        f"--output_dir={tmp_path / 'out'}",
        "--max_seq_length=8",
        "--train_batch_size=4",
        "--num_train_steps=4",
        "--save_checkpoints_steps=2",
        "--weight_decay=0",
        "--learning_rate=0.01",
        "--warmup_proportion=0",
        "--do_train",
    ]


def run(arguments, *more):
    options = parse(run_classifier.Options, [*arguments, *more])
    run_classifier.main(options)
    return options


def weights(folder):
    from training.checkpoints import latest_state

    checkpoint = latest_state(folder)
    assert checkpoint is not None
    return checkpoint.step, {name: value for name, value in checkpoint.tensors.items() if name.startswith("model/")}


EVERYTHING = (
    "--adversarial_weight=1",
    "--adversarial_sigma=1e-3",
    "--r_drop_weight=2",
    "--child_tuning_fraction=0.3",
    "--layer_decay=0.8",
    "--freeze_layers=1",
    "--freeze=pooler/bias",
    "--gradual_unfreezing=0.9",
    "--ema_decay=0.5",
    "--gradient_accumulation_steps=2",
)


@pytest.mark.slow
@pytest.mark.parametrize("child", [("D", "released")], ids="-".join)
def test_everything_composes_and_a_run_that_goes_on_is_the_run_that_was_not_stopped(arguments, tmp_path, child):
    from modeling import ClassifierModel, load_config, named_variables

    # A third layer of so many passes is traced for ten seconds.
    (tmp_path / "config.json").write_text(dataclasses.replace(CONFIG, num_hidden_layers=2).to_json())
    flags = [*EVERYTHING, f"--child_tuning={child[0]}", *(f"--child_tuning_fisher={each}" for each in child[1:])]
    options = run(arguments, *flags)
    step, final = weights(tmp_path / "out")
    assert step == 4
    records = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert any({"classification_loss", "r_drop_loss", "adversarial_loss"} <= set(record) for record in records)

    model = ClassifierModel(load_config(options.bert_config_file), 2, computation=Computation(seed=options.seed))
    initial = {name: variable.value.numpy() for name, variable in named_variables(model).items()}
    moved = {name: final[f"model/{name}"] != initial[name] for name in initial}
    for name, changed in moved.items():
        if "embeddings" in name or "_0/" in name or name == "backbone/pooler/bias":
            assert not changed.any(), name
    assert moved["classifier/kernel"].any()
    assert moved["backbone/encoder/attention_1/value/kernel"].any()
    if child[0] == "D":
        blocks = [changed.ravel() for name, changed in moved.items() if "_1/" in name]
        assert 0.1 < np.concatenate(blocks).mean() <= 0.3

    shutil.rmtree(tmp_path / "out/checkpoints/step_00000004")
    run(arguments, *flags)
    assert_equal(weights(tmp_path / "out")[1], final)


@pytest.mark.slow
@pytest.mark.usefixtures("operation_by_operation")
def test_task_driven_child_by_every_example(arguments, tmp_path):
    from modeling import ClassifierModel, named_variables

    options = run(arguments, "--child_tuning=D", "--child_tuning_fraction=0.25")
    model = ClassifierModel(CONFIG, 2, computation=Computation(seed=options.seed))
    initial = {name: variable.value.numpy() for name, variable in named_variables(model).items()}
    moved = {name: weights(tmp_path / "out")[1][f"model/{name}"] != initial[name] for name in initial}
    blocks = np.concatenate([changed.ravel() for name, changed in moved.items() if "/encoder/" in name])
    # A chosen weight may have a gradient too small to change it; one that is not chosen never changes.
    assert 0.2 < blocks.mean() <= 0.25
    assert moved["backbone/pooler/kernel"].mean() > 0.9
    summary = (tmp_path / "out/report.html").read_text()
    assert f"{round(0.25 * blocks.size):,} of {blocks.size:,} weights of the layers" in summary


@pytest.mark.slow
@pytest.mark.usefixtures("operation_by_operation")
def test_the_best_of_earlier_steps_is_scored_without_another_prediction(arguments, tmp_path, monkeypatch):
    asked = []
    answers = Splits.answers
    monkeypatch.setattr(
        Splits, "answers", lambda self, engine, *rest: asked.append(engine.step) or answers(self, engine, *rest)
    )
    # At such a rate the loss of step 4 is far above that of step 2.
    flags = ["--learning_rate=0.5", "--metric_for_best_model=eval_loss", "--eval_steps=2"]
    flags += ["--save_steps=3", "--max_grad_norm=1", "--layerwise_decay=0.9", "--do_eval"]
    run(arguments, *flags)
    assert asked == [2, 4]
    names = ("eval_results.json", "dev_predictions.tsv", "dev_predictions.jsonl", "dev_report.html")
    written = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    results = json.loads(written["eval_results.json"])
    assert results["global_step"] == 2
    records = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = {each["step"]: each["loss"] for each in records if each["phase"] == "eval"}
    assert results["loss"] == losses[2] == min(losses.values())
    assert sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir())[0] == "step_00000003"
    # The weights in best/ give the same, bit for bit, and the last ones where they are asked for.
    scored = [each for each in arguments if each != "--do_train"]
    run(scored, "--do_eval")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == written
    run(scored, "--do_eval", "--noload_best_model_at_end")
    results = json.loads((tmp_path / "out/eval_results.json").read_text())
    assert results["global_step"] == 4
    assert results["loss"] == pytest.approx(losses[4])


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--adversarial_bound=0.001"],
            "--adversarial_bound=0.001 does nothing without --adversarial_weight; give both or neither",
        ),
        (
            ["--child_tuning_fraction=0.5"],
            "--child_tuning_fraction=0.5 does nothing without --child_tuning; give both or neither",
        ),
        (
            ["--child_tuning=F", "--child_tuning_fisher=released"],
            "--child_tuning_fisher=released does nothing without --child_tuning=D; give both or neither",
        ),
        (
            ["--adversarial_weight=1", "--precision=bfloat16"],
            "--adversarial_weight=1 with --precision=bfloat16: steps of 1e-05 are lost in its 8 bits; "
            "use --precision=float32",
        ),
        (["--child_tuning=E"], "--child_tuning=E: expected one of F, D"),
        (["--layer_decay=1.5"], "--layer_decay=1.5: expected at most 1"),
        (
            ["--freeze=word_embedings"],
            "'word_embedings' matches no variable; the nearest name is 'backbone/embeddings/word_embeddings'",
        ),
        (
            ["--child_tuning=D", "--freeze_layers=3"],
            "--child_tuning=D: all layers are frozen, there is none to choose a child from; freeze fewer",
        ),
    ],
)
def test_mistakes_are_one_line_with_the_way_out(arguments, flags, message):
    with pytest.raises(UsageError) as error:
        run(arguments, *flags)
    assert str(error.value) == message


def test_shared_weights_are_named_before_training(arguments, tmp_path):
    shared = dataclasses.replace(CONFIG, family="albert", sharing="all", embedding_size=4)
    (tmp_path / "config.json").write_text(shared.to_json())
    with pytest.raises(UsageError, match=r"--layer_decay=0\.9: layers of this model share weights \(sharing=all, 3"):
        run(arguments, "--layer_decay=0.9")
