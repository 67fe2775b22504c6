"""The flags that run_pretraining.py and run_classifier.py have in common."""

from __future__ import annotations

import re

from observing.rows import ABSENT, DIFFERENT, Row

RUN_FILE = "files/out/run.json"
ON_TENSORFLOW = {"use_tpu": "true", "backend": "tensorflow"}
SEEDED = {
    "engine/seed": 7,
    "task/computation/seed": 7,
    f"{RUN_FILE}/computation/seed": 7,
    "training": DIFFERENT,
}
ROWS = (
    # -- where a run computes
    Row(
        "backend",
        "jax",
        {"engine/kind": "JaxEngine", "engine/placement": DIFFERENT, "engine/strategy": ABSENT, "strategy": ABSENT},
    ),
    Row(
        "use_tpu",
        "true",
        {
            "engine": DIFFERENT,
            "strategy": ABSENT,
            "processes": DIFFERENT,
            "plan/steps_per_call": 50,
            "plan/peak_flops_per_second": 4 * 275e12,
        },
        machine="tpu",
    ),
    Row("tpu_name", "mine", {"strategy/tpu_name": "mine"}, ON_TENSORFLOW, "tensorflow_tpu"),
    Row("tpu_name", "mine", {"error": re.compile("ssh mine --worker=all")}, {"use_tpu": "true"}, "away_from_tpu"),
    Row(
        "master", "grpc://10.0.0.2:8470", {"strategy/tpu_name": "grpc://10.0.0.2:8470"}, ON_TENSORFLOW, "tensorflow_tpu"
    ),
    Row("tpu_zone", "us-central2-b", {"strategy/tpu_zone": "us-central2-b"}, ON_TENSORFLOW, "tensorflow_tpu"),
    Row(
        "tpu_zone", "us-central2-b", {"error": re.compile("--zone=us-central2-b")}, {"use_tpu": "true"}, "away_from_tpu"
    ),
    Row("gcp_project", "p", {"strategy/gcp_project": "p"}, ON_TENSORFLOW, "tensorflow_tpu"),
    Row("gcp_project", "p", {"error": re.compile("--project=p")}, {"use_tpu": "true"}, "away_from_tpu"),
    Row("num_tpu_cores", "2", {"strategy/num_tpu_cores": 2}, ON_TENSORFLOW, "tensorflow_tpu"),
    Row("num_tpu_cores", "2", {"error": re.compile("--num_tpu_cores=2 but there are 8")}, {"use_tpu": "true"}, "tpu"),
    Row("model_parallel", "2", {"engine/placement/model_parallel": 2}, {"backend": "jax"}),
    Row("fsdp", "true", {"engine/placement/fsdp": True}, {"backend": "jax"}),
    Row("coordinator_address", "a:1", {"processes": DIFFERENT}, {"backend": "jax"}),
    Row(
        "num_processes",
        "2",
        {"processes/num_processes": 2},
        {"backend": "jax", "coordinator_address": "a:1", "process_id": "0"},
    ),
    Row("process_id", "1", {"processes/process_id": 1}, {"backend": "jax", "coordinator_address": "a:1"}),
    Row("iterations_per_loop", "3", {"plan/steps_per_call": 3, "engine/steps_per_call": 3}, machine="gpu"),
    Row(
        "precision",
        "bfloat16",
        {
            "task/computation/dtype": "mixed_bfloat16",
            f"{RUN_FILE}/computation/dtype": "mixed_bfloat16",
            "plan/peak_flops_per_second": 989e12,
        },
        machine="gpu",
    ),
    Row(
        "precision",
        "float16",
        {
            "task/computation/dtype": "mixed_float16",
            f"{RUN_FILE}/computation/dtype": "mixed_float16",
            "engine/loss_scaling": DIFFERENT,
        },
    ),
    Row("remat", "true", {"task/computation/remat": True, f"{RUN_FILE}/computation/remat": True}),
    Row("scan_layers", "true", {"task/computation/scan": True, f"{RUN_FILE}/computation/scan": True}),
    # -- how gradients become updates
    Row("weight_decay", "0.5", {"optimizer/weight_decay": 0.5}),
    Row("adam_beta1", "0.8", {"optimizer/rule/beta_1": 0.8}),
    Row("adam_beta2", "0.8", {"optimizer/rule/beta_2": 0.8}),
    Row("adam_epsilon", "0.001", {"optimizer/rule/epsilon": 0.001}),
    Row("adam_bias_correction", "true", {"optimizer/rule/bias_correction": True}),
    Row("clip_norm", "0.5", {"optimizer/clip_norm": 0.5}),
    Row("clip_norm", "0", {"optimizer/clip_norm": None}),
    Row("ema_decay", "0.9", {"engine/ema_decay": 0.9}),
    Row("gradient_accumulation_steps", "2", {"engine/micro_batches": 2}),
    # -- what a run keeps, tells and watches
    Row("output_dir", "elsewhere", {"plan/output_dir": "elsewhere", "files": DIFFERENT}),
    Row("seed", "7", SEEDED),
    Row("log_steps", "7", {"plan/log_every_steps": 7}),
    Row("keep_checkpoint_max", "2", {"plan/keep_checkpoint_max": 2}),
    Row("on_spike", "skip", {"plan/on_spike": "skip"}),
    Row("spike_threshold", "20", {"plan/spike_threshold": 20.0}, {"on_spike": "warn"}),
    Row("norm_steps", "5", {"engine/norm_steps": 5}),
    Row("profile_steps", "2:4", {"plan/profile_steps": (2, 4)}),
)
