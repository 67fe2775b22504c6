"""The whole journey on the shipped sample: text, vocabulary, records, pretraining, fine-tuning, PyTorch, export, HTTP.

What `make demo` runs: each command is shown before it runs, into demo_output/; it ends with the answer of a server to a
pair of questions, and one table of what the model has learnt, beside what guessing alone would reach. The model is far
too small to be useful.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("demo_output")
CONFIG = "examples/demo_config.json"
VOCABULARY = f"{OUTPUT}/vocab.txt"
PAIRS = "data/samples/pairs"

STEPS: list[tuple[str, list[str]]] = [
    (
        "text to a vocabulary: the characters and pieces of the sample alone, so that little text teaches all of them",
        [
            "train_tokenizer.py",
            f"--input_file=data/samples/zh/*.txt,{PAIRS}/train.txt",
            f"--output_file={VOCABULARY}",
            "--vocab_size=2500",
            "--common_characters=False",
        ],
    ),
    (
        "text to records: whole words masked, sentence pairs in and out of order, a tenth of the documents held out",
        [
            "create_pretraining_data.py",
            "--input_file=data/samples/zh/*.txt",
            f"--output_file={OUTPUT}/records/zh.tfrecord",
            f"--vocab_file={VOCABULARY}",
            "--do_whole_word_mask=True",
            "--max_seq_length=48",
            "--max_predictions_per_seq=8",
            "--masked_lm_prob=0.15",
            "--dupe_factor=20",
            "--eval_fraction=0.1",
        ],
    ),
    (
        "records to a pretrained model",
        [
            "run_pretraining.py",
            f"--input_file={OUTPUT}/records/*.tfrecord",
            f"--bert_config_file={CONFIG}",
            f"--output_dir={OUTPUT}/pretraining",
            "--do_train=True",
            "--do_eval=True",
            "--train_batch_size=32",
            "--num_train_steps=1500",
            "--num_warmup_steps=100",
            "--learning_rate=0.002",
            "--optimizer=adamw",
            "--adam_bias_correction",
            "--adam_beta2=0.98",
            "--save_checkpoints_steps=500",
        ],
    ),
    (
        "pretrained model to a classifier of question pairs, scored on the development pairs, test pairs predicted",
        [
            "run_classifier.py",
            "--task_name=lcqmc_pair",
            f"--data_dir={PAIRS}",
            f"--vocab_file={VOCABULARY}",
            f"--bert_config_file={CONFIG}",
            f"--init_checkpoint={OUTPUT}/pretraining",
            f"--output_dir={OUTPUT}/classifier",
            "--do_train=True",
            "--do_eval=True",
            "--do_predict=True",
            "--max_seq_length=48",
            "--train_batch_size=16",
            "--learning_rate=3e-4",
            "--num_train_epochs=6",
            "--save_checkpoints_steps=24",
        ],
    ),
    (
        "classifier to a directory that transformers opens, compared on random input",
        [
            "convert_checkpoint.py",
            f"--input={OUTPUT}/classifier",
            "--best",
            f"--output={OUTPUT}/pytorch",
            "--format=transformers",
            f"--vocab_file={VOCABULARY}",
        ],
    ),
    (
        "classifier to a SavedModel with the tokenizer inside, compared on real text in a process of its own",
        ["export_model.py", f"--model={OUTPUT}/classifier", f"--output={OUTPUT}/export", "--format=saved_model_text"],
    ),
]
SERVE = ["serve.py", f"--model=pairs={OUTPUT}/export", "--port=0"]
ASKED = {"text_a": "怎么合并两个pdf文件", "text_b": "两个pdf文件怎么合并"}


def main() -> int:
    """Run every step, then print the table; returns the exit status of the first step that fails."""
    shutil.rmtree(ROOT / OUTPUT, ignore_errors=True)
    begin_seconds = time.monotonic()
    for number, (what, command) in enumerate(STEPS, start=1):
        print(f"\n[{number}/{len(STEPS) + 1}] {what}\n$ python3 {shlex.join(command)}", flush=True)
        status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        if status:
            print(f"demo: step {number} failed with exit status {status}", file=sys.stderr)
            return status
    answer = answer_over_http()
    if answer is None:
        return 1
    print_summary(time.monotonic() - begin_seconds, answer)
    return 0


def answer_over_http() -> dict[str, Any] | None:
    """Serve the export, ask it a pair, and stop the server; return its answer, or None where there was none."""
    number = len(STEPS) + 1
    print(
        f"\n[{number}/{number}] the export over HTTP, until it has answered\n$ python3 {shlex.join(SERVE)}", flush=True
    )
    server = subprocess.Popen([sys.executable, *SERVE], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    port, answer = 0, None
    try:
        for line in server.stderr or ():
            print(line, end="", flush=True)
            port = int(found[1]) if (found := re.search(r"listening on http://[^ ]*:(\d+)", line)) else port
            if line.endswith(": ready\n"):
                break
        asked = json.dumps({"instances": [ASKED]}, ensure_ascii=False)
        address = f"localhost:{port}/v1/models/pairs:predict"
        print(f"$ curl -d {shlex.quote(asked)} {address}")
        with urllib.request.urlopen(f"http://{address}", asked.encode(), timeout=60) as reply:
            text = reply.read().decode()
        print(text, end="", flush=True)
        answer = json.loads(text)["predictions"][0]
    except (OSError, ValueError, LookupError) as error:
        print(f"demo: step {number} failed: {error}", file=sys.stderr)
    finally:
        server.terminate()
        print((server.communicate()[1] or "").strip())
    return answer if server.returncode == 0 else None


def print_summary(elapsed_seconds: float, answer: Mapping[str, Any]) -> None:
    """Print what came out of every step; `answer` is the server's."""
    sys.path.insert(0, str(ROOT))
    from ground.tables import print_table

    def results(path: str) -> dict[str, Any]:
        return json.loads((ROOT / OUTPUT / path).read_text(encoding="utf-8"))

    pretraining, classifier = results("pretraining/eval_results.json"), results("classifier/eval_results.json")
    parity = results("pytorch/parity.json")
    orders = results("records/zh.held_out.manifest.json")["counts"]["labels"]
    pairs = Counter(line.split("\t")[2] for line in (ROOT / PAIRS / "dev.txt").read_text("utf-8").splitlines())
    scores = [
        ("masked tokens right, held-out documents", pretraining["masked_lm_accuracy"], pretraining["unigram_accuracy"]),
        ("sentence order right, held-out documents", pretraining["sentence_order_accuracy"], largest_share(orders)),
        ("question pairs right, development set", classifier["accuracy"], largest_share(pairs)),
    ]
    rows = [[what, f"{score:.3f}", f"{floor:.3f}"] for what, score, floor in scores]
    rows += [
        ["largest difference to PyTorch", f"{max(parity.values()):.1e}", ""],
        ["confidence of the answer over HTTP", f"{answer['confidence']:.3f}", ""],
        ["time", f"{elapsed_seconds:.0f} s", ""],
        ["report with curves", f"{OUTPUT}/pretraining/report.html", ""],
        ["predictions", f"{OUTPUT}/classifier/test_predictions.tsv", ""],
        ["PyTorch model", f"{OUTPUT}/pytorch", ""],
        ["export, which has answered over HTTP", f"{OUTPUT}/export", ""],
    ]
    print()
    print_table("demo", ["what", "result", "by guessing"], rows)


def largest_share(counts: Mapping[str, int]) -> float:
    """Return the share of the most frequent label: the score of always giving that one."""
    return max(counts.values()) / sum(counts.values())


if __name__ == "__main__":
    sys.exit(main())
