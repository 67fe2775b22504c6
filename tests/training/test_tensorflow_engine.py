import engine_cases
import keras
import numpy as np
import pytest
from absl.app import UsageError
from engine_cases import CONFIG, distilled, make_engine, mixed_batches, pretraining_batches, toy_engine
from toy_task import DistilledTask, MixtureTask, ScheduledTask, ToyDataset, ToyTask

from ground.keys import derive_key
from modeling import Computation, Config
from optimization import OPTIMIZERS, Constant, create_optimizer
from tasks.pretraining import PretrainingTask
from training.engine import EVALUATION_STREAM, Engine, check_divisible
from training.loss_scaling import LossScaling
from training.tensorflow_engine import TensorFlowEngine


def engine(name="adamw", dropout=0.0, rate=0.05, **arguments):
    return TensorFlowEngine(ToyTask(dropout), create_optimizer(name, Constant(rate)), seed=7, **arguments)


def batches(first, last, **arguments):
    return [ToyDataset(**arguments).batch(step) for step in range(first, last)]


def assert_states_close(one, two, tolerance):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=tolerance, err_msg=name)


def test_is_an_engine_and_learns():
    trained = engine()
    assert isinstance(trained, Engine)
    history = trained.train(batches(0, 60))
    assert trained.step == 60
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert list(history[0]) == [
        "loss", "label_loss", "size_loss", "label_accuracy", "learning_rate", "gradient_norm", "skipped"
    ]  # fmt: skip
    for step in history:
        assert step["loss"] == pytest.approx(step["label_loss"] + 0.5 * step["size_loss"], rel=1e-5)
    assert trained.evaluate(batches(900, 905))["label_accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_equal_the_whole_batch(name, micro_batches):
    # Real weights differ from part to part, so that a mean of means would show.
    whole, cut = engine(name), engine(name, micro_batches=micro_batches)
    one, two = whole.train(batches(0, 4)), cut.train(batches(0, 4))
    assert_states_close(whole.state(), cut.state(), 1e-6)
    for before, after in zip(one, two, strict=True):
        assert before == pytest.approx(after, abs=1e-5)


def test_a_mixture_of_objectives_reports_each_step_by_its_own_terms():
    trained = make_engine(MixtureTask(), norm_steps=1)
    batches = mixed_batches(0, 4)
    always = {"loss", "learning_rate", "gradient_norm", "skipped"}
    of_objective = [
        {"camlm_loss", "camlm_accuracy", *(f"{kind}_norm/{x}" for kind in ("gradient", "update") for x in bricks)}
        if name == "camlm"
        else {"btmlm_loss", "btmlm_mean", *(f"{kind}_norm/{x}" for kind in ("gradient", "update") for x in bricks)}
        for name, bricks in (("camlm", ("embed", "score")), ("btmlm", ("embed", "unused")))
    ]
    for number, step in enumerate([*trained.train(batches), *trained.train(batches[:1])]):
        assert step.keys() == always | of_objective[number % 2]
        weighted = step["camlm_loss"] if number % 2 == 0 else 0.5 * step["btmlm_loss"]
        assert step["loss"] == pytest.approx(weighted, rel=1e-6)
    both, one = trained.evaluate(batches), trained.evaluate(batches[1:2])
    assert list(both) == ["loss", "camlm_loss", "btmlm_loss", "camlm_accuracy", "btmlm_mean"]
    assert list(one) == ["loss", "btmlm_loss", "btmlm_mean"]
    assert both["loss"] == pytest.approx(both["camlm_loss"] + 0.5 * both["btmlm_loss"])


@pytest.mark.parametrize(
    ("undeclared", "message"),
    [("metrics", "the term 'camlm_accuracy'; its metrics declare "), ("loss_weights", "the term 'camlm'; its loss_w")],
)
def test_a_term_that_the_task_does_not_declare_is_an_error(undeclared, message):
    task = MixtureTask()
    setattr(task, undeclared, {"metrics": ("btmlm_mean",), "loss_weights": {"btmlm": 1.0}}[undeclared])
    with pytest.raises(ValueError, match=message):
        make_engine(task).train(mixed_batches(0, 1))


def test_a_loss_whose_weight_ends_is_as_one_that_is_left_out():
    scheduled = make_engine(ScheduledTask(3), steps_per_call=2)
    history = scheduled.train(batches(0, 5))
    ended = ToyTask()
    before, after = make_engine(ToyTask()), make_engine(ended)
    before.train(batches(0, 3))
    ended.loss_weights["size"] = 0.0
    after.load_state(before.state())
    after.step = 3
    after.train(batches(3, 5))
    assert_states_close(scheduled.state(), after.state(), 1e-7)
    for number, step in enumerate(history):
        size = 0.5 * step["size_loss"] if number < 3 else 0.0
        assert step["loss"] == pytest.approx(step["label_loss"] + size, rel=1e-5)
    # An evaluation weighs all alike, before and after.
    found = scheduled.evaluate(batches(5, 6))
    assert found["loss"] == pytest.approx(found["label_loss"] + 0.5 * found["size_loss"])


def test_a_teacher_teaches_and_is_neither_trained_nor_saved():
    task = DistilledTask()
    trained = make_engine(task, "lamb", ema_decay=0.8)
    assert trained.state().keys() == toy_engine().state().keys()
    before = [np.array(weight) for weight in task.teacher.get_weights()]
    history = trained.train(batches(0, 60))
    assert history[-1]["teacher_loss"] < 0.5 * history[0]["teacher_loss"]
    for old, new in zip(before, task.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # Set anew, the teacher counts as it is now: it is no constant of the program.
    assert distilled()["predicted/teacher"].std() < 1e-6 < np.std(task.teacher(batches(52, 53)[0]["ids"]))


def test_repeated_ids_are_squared_after_summing():
    # One row of the table is used by every token: its second moment is (sum of g)^2, not the sum of g^2.
    trained = engine()
    batch = ToyDataset().batch(0)
    batch = {**batch, "ids": np.full_like(batch["ids"], 3)}
    trained.train([batch])
    state = trained.state()
    m, v = state["optimizer/m/embed/embeddings"][3] / 0.1, state["optimizer/v/embed/embeddings"][3] / 0.001
    np.testing.assert_allclose(v, m**2, rtol=1e-4)
    assert not state["optimizer/v/embed/embeddings"][:3].any()


def test_same_key_same_masks_other_seed_other_masks():
    one, two = engine(dropout=0.3), engine(dropout=0.3)
    one.train(batches(0, 5))
    two.train(batches(0, 2))
    two.train(batches(2, 5))
    assert_states_close(one.state(), two.state(), 0)
    other = TensorFlowEngine(ToyTask(0.3), create_optimizer("adamw", Constant(0.05)), seed=8)
    other.train(batches(0, 5))
    assert np.abs(other.state()["model/embed/embeddings"] - one.state()["model/embed/embeddings"]).max() > 1e-4


def test_a_step_that_is_not_finite_changes_nothing_and_is_flagged():
    trained = engine(ema_decay=0.9)
    trained.train(batches(0, 2))
    before = trained.state()
    history = trained.train(batches(2, 4, poison=(2, 3)))
    assert [step["skipped"] for step in history] == [1.0, 1.0]
    assert np.isnan(history[0]["loss"])
    assert trained.step == 4
    assert_states_close(trained.state(), before, 0)
    assert trained.train(batches(4, 5))[0]["skipped"] == 0.0


def test_a_variable_without_gradient_keeps_its_value():
    trained = engine()
    before = trained.state()["model/unused/kernel"]
    trained.train(batches(0, 3))
    np.testing.assert_array_equal(trained.state()["model/unused/kernel"], before)


@pytest.mark.slow
def test_evaluation_and_prediction_are_without_dropout():
    engine_cases.assert_undropped(engine_cases.undropped())


@pytest.mark.slow
def test_the_limit_on_the_norm_bounds_the_gradient():
    engine_cases.assert_clipped(engine_cases.clipped())


def test_evaluation_sums_over_batches_of_any_size():
    trained = engine()
    rows = ToyDataset(12).batch(0)
    parts = [{name: value[rows_] for name, value in rows.items()} for rows_ in (slice(0, 5), slice(5, 6), slice(6, 12))]
    assert trained.evaluate(parts) == pytest.approx(trained.evaluate([rows]), rel=1e-6)
    predicted = np.concatenate([part["label"] for part in trained.predict(parts)])
    np.testing.assert_array_equal(predicted, next(trained.predict([rows]))["label"])
    with pytest.raises(ValueError, match="no batches"):
        trained.evaluate([])


@pytest.mark.slow
def test_a_metric_without_weight_is_left_out():
    trained = engine()
    batch = ToyDataset().batch(0)
    (step,) = trained.train([{**batch, "weights": np.zeros_like(batch["weights"])}])
    assert "label_accuracy" not in step
    assert "label_loss" not in step
    assert np.isfinite(step["loss"])


def test_average_of_weights_serves_evaluation_and_leaves_training_alone():
    decay, averaged, plain = 0.5, engine(ema_decay=0.5), engine()
    average = averaged.state()["model/score/kernel"]
    for step in range(4):
        averaged.train(batches(step, step + 1))
        averaged.evaluate(batches(50, 51))
        plain.train(batches(step, step + 1))
        average = decay * average + (1 - decay) * plain.state()["model/score/kernel"]
    np.testing.assert_allclose(averaged.state()["ema/score/kernel"], average, atol=1e-6)
    np.testing.assert_array_equal(averaged.state()["model/score/kernel"], plain.state()["model/score/kernel"])
    assert averaged.evaluate(batches(50, 51))["loss"] != plain.evaluate(batches(50, 51))["loss"]


def test_an_interrupted_evaluation_leaves_the_state_right():
    averaged = engine(ema_decay=0.5)
    averaged.train(batches(0, 3))
    before, seen = averaged.state(), []

    def stopping():
        yield ToyDataset().batch(0)
        seen.append(averaged.state())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        averaged.evaluate(stopping())
    assert_states_close(before, seen[0], 0)
    assert_states_close(before, averaged.state(), 0)


def test_state_round_trip_continues_exactly():
    one = engine("lamb", dropout=0.2, ema_decay=0.9)
    one.train(batches(0, 3))
    two = engine("lamb", dropout=0.2, ema_decay=0.9)
    two.load_state(one.state())
    two.step = one.step
    one.train(batches(3, 6))
    two.train(batches(3, 6))
    assert_states_close(one.state(), two.state(), 0)


def test_a_state_that_does_not_fit_is_named():
    target, state = engine(), engine(ema_decay=0.9).state()
    with pytest.raises(UsageError, match=r"ema/embed/embeddings is \[11, 6\], expected absent; use the flags"):
        target.load_state(state)
    state = engine().state()
    state["model/score/bias"] = np.zeros(6, "float32")
    with pytest.raises(UsageError, match=r"model/score/bias is \[6\], expected \[5\]"):
        target.load_state(state)


def test_frozen_variables_have_no_slots_and_stay():
    trained = TensorFlowEngine(ToyTask(), create_optimizer("adamw", Constant(0.1), frozen=["embed"]), seed=0)
    before = trained.state()
    assert "optimizer/m/embed/embeddings" not in before
    trained.train(batches(0, 2))
    np.testing.assert_array_equal(before["model/embed/embeddings"], trained.state()["model/embed/embeddings"])


@pytest.mark.slow
def test_float16_needs_its_loss_scaled():
    def first_step(dtype, scaling=None):
        # Masks are drawn in the type that is computed in.
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 1}
        config = Config(family="albert", sharing="all", embedding_size=4, **{**CONFIG, **still})
        # Gradients of such a loss are below what float16 can tell from 0.
        task = PretrainingTask(config, "masked_lm", weights={"masked_lm": 1e-7}, computation=Computation(dtype))
        return make_engine(task, loss_scaling=scaling).train(pretraining_batches(0, 1))[0]

    exact, scaled = first_step("float32"), first_step("mixed_float16", LossScaling(2.0**20))
    assert scaled["loss"] == pytest.approx(exact["loss"], rel=1e-2)
    assert scaled["gradient_norm"] == pytest.approx(exact["gradient_norm"], rel=2e-2)
    assert first_step("mixed_float16")["gradient_norm"] < 0.5 * exact["gradient_norm"]


def test_one_trace_a_shape():
    trained = engine()
    for size in (8, 4, 8, 4):
        trained.train(batches(0, 3, batch_size=size))
    assert trained._train_step.experimental_get_tracing_count() == 2


def test_a_restart_leaves_nothing_of_the_former_run_and_compiles_nothing():
    engine_cases.assert_restarted(engine_cases.restarted())
    trained = engine()
    trained.train(batches(0, 2))
    trained.restart(ToyTask(), 3)
    trained.train(batches(0, 2))
    assert trained._train_step.experimental_get_tracing_count() == 1


def test_a_batch_that_cannot_be_cut():
    with pytest.raises(UsageError, match="a batch of 8 examples cannot be cut into 3 equal micro-batches"):
        engine(micro_batches=3).train(batches(0, 1))
    with pytest.raises(UsageError, match=r"into 2 equal micro-batches on each of 3 devices: choose .* that 6 divides"):
        check_divisible(batches(0, 1)[0], micro_batches=2, replicas=3)


@pytest.mark.slow
def test_keys_differ_in_every_argument_and_are_the_same_in_a_graph():
    import tensorflow as tf

    keys = {
        tuple(np.asarray(derive_key(seed, stream, step, micro_batch, replica)).tolist())
        for seed in (0, 1, 2**32, 2**63)
        for stream in (1, 2)
        for step in (0, 1, 2, 1_000_000)
        for micro_batch in (0, 1)
        for replica in (0, 1)
    }
    assert len(keys) == 4 * 2 * 4 * 2 * 2
    halves = np.array(sorted(keys), dtype="uint64")
    assert np.unique(halves[:, 0]).size == np.unique(halves[:, 1]).size == len(keys)
    graph = tf.function(lambda step: derive_key(2**40, 1, step, tf.constant(3), 1))
    np.testing.assert_array_equal(graph(tf.constant(17, tf.int64)), derive_key(2**40, 1, 17, 3, 1))


def test_the_average_starts_at_the_weights_that_the_first_step_meets():
    """Weights of a checkpoint come after the engine is built: an average from before would hold random ones."""
    averaged = engine(ema_decay=0.5)
    averaged.model.score.kernel.assign(averaged.model.score.kernel + 3.0)
    before = averaged.state()["model/score/kernel"]
    averaged.train(batches(0, 1))
    state = averaged.state()
    expected = 0.5 * before + 0.5 * state["model/score/kernel"]
    np.testing.assert_allclose(state["ema/score/kernel"], expected, rtol=1e-6)


def test_an_evaluation_has_one_key_that_both_backends_know():
    class Keyed(ToyTask):
        def terms(self, model, batch, *, seed, training):
            losses, metrics = super().terms(model, batch, seed=seed, training=training)
            value = keras.ops.cast(keras.ops.bitwise_and(seed[0], 0xFFFF), "float32")
            return losses, metrics | {"label_accuracy": (value, 1.0)}

    trained = TensorFlowEngine(Keyed(), create_optimizer("adamw", Constant(0.05)), seed=11)
    key = np.asarray(derive_key(11, EVALUATION_STREAM, 0))
    assert trained.evaluate(batches(0, 2))["label_accuracy"] == int(key[0]) & 0xFFFF


def test_calls_of_any_number_of_steps_have_one_shape():
    """Each further shape would be traced and compiled anew, minutes for a large model."""
    trained, seen = engine(steps_per_call=3), []
    trained._train_step = lambda batch, *numbers: seen.append((batch, *numbers)) or ([], [])
    for first, last in ((0, 3), (3, 4), (4, 6)):
        trained._call([*batches(first, last)])
    assert trained.step == 6
    assert len({tuple((name, x.shape) for name, x in batch.items()) for batch, _, _ in seen}) == 1
    assert [(int(first), int(count)) for _, first, count in seen] == [(0, 3), (3, 1), (4, 2)]
    for batch, first, count in seen:
        stacked = np.stack([each["ids"] for each in batches(int(first), int(first) + int(count))])
        flat = np.asarray(batch["ids"]).reshape(3, *stacked.shape[1:])
        np.testing.assert_array_equal(flat[: int(count)], stacked)
        assert not flat[int(count) :].any()
