"""One short run of the toy task; as a program it is what the tests kill: `toy_run.py OUTPUT SIGNAL STEP`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[level]) for level in range(3)]

from toy_task import ToyDataset, ToyTask  # noqa: E402

from optimization import PolynomialDecay, create_optimizer  # noqa: E402
from training.loop import Outcome, train  # noqa: E402
from training.run import RunPlan  # noqa: E402
from training.tensorflow_engine import TensorFlowEngine  # noqa: E402


class SignallingDataset(ToyDataset):
    """Sends this process a signal when the batch of a step is made."""

    def __init__(self, number: int = 0, step: int = -1, **arguments):
        super().__init__(**arguments)
        self.number, self.step = number, step

    def batch(self, step: int):
        if step == self.step:
            os.kill(os.getpid(), self.number)
        return super().batch(step)


def toy_engine(seed: int = 5, **arguments) -> TensorFlowEngine:
    optimizer = create_optimizer("lamb", PolynomialDecay(0.05, 24, 4))
    settings = {"seed": seed, "micro_batches": 2, "ema_decay": 0.8} | arguments
    return TensorFlowEngine(ToyTask(dropout=0.3), optimizer, **settings)


def toy_run(
    output_dir, dataset=None, *, engine=None, evaluate=None, hooks=None, **plan
) -> tuple[TensorFlowEngine, Outcome]:
    engine = engine or toy_engine()
    settings = {"num_steps": 24, "save_every_steps": 6, "log_every_steps": 4, "config": {"width": 6}} | plan
    run_plan = RunPlan(output_dir=Path(output_dir), **settings)
    return engine, train(engine, dataset or ToyDataset(), run_plan, evaluate=evaluate, hooks=hooks)


if __name__ == "__main__":
    toy_run(sys.argv[1], SignallingDataset(int(sys.argv[2]), int(sys.argv[3])))
