"""Laws of the house: who may import whom, which flags exist, and that the pages name the files that are there."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands.flags import FOREIGN

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "ground": set(),
    "modeling": {"ground"},
    "data": {"ground"},
    "generation": {"ground", "modeling"},
    "optimization": {"ground"},
    "training": {"ground"},
    "tasks": {"ground", "modeling", "data", "generation"},
    "conversion": {"ground", "modeling", "training"},
    "serving": {"ground", "modeling", "data", "generation", "tasks", "conversion"},
    "commands": {"ground", "modeling", "data", "optimization", "training", "tasks", "conversion", "serving"},
}
VERBS = sorted(path.stem for path in ROOT.glob("*.py"))
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folder_imports_only_what_the_table_allows(folder: str):
    for path in (ROOT / folder).rglob("*.py"):
        ours = imports_of(path) & (set(MAY_IMPORT) | {"benchmarks", "examples", *VERBS})
        assert ours <= MAY_IMPORT[folder] | {folder}, f"{path.relative_to(ROOT)} imports {ours}"


@pytest.mark.parametrize("folder", ["modeling", "optimization", "tasks"])
def test_models_and_optimizers_use_no_backend_directly(folder: str):
    for path in (ROOT / folder).rglob("*.py"):
        assert not imports_of(path) & {"tensorflow", "jax", "torch"}, path


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "test_changes"])
def test_verbs_check_flags_before_anything_slow_is_imported(verb: str):
    script = f"import sys, {verb}; print([m for m in ('numpy', 'tensorflow', 'keras', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_data_is_numpy_but_for_tokenizers_in_graphs():
    for path in (ROOT / "data").rglob("*.py"):
        if path.name != "in_graph.py":
            assert not imports_of(path) & {"tensorflow", "tensorflow_text", "jax", "torch", "keras"}, path


def flags_of(verb: str) -> list[str]:
    return sorted(field.name for field in dataclasses.fields(importlib.import_module(verb).Options))


def test_flags_are_those_of_the_frozen_list():
    """A flag that comes or goes is a decision: change tests/frozen_flags.json with it."""
    frozen = json.loads((ROOT / "tests/frozen_flags.json").read_text())
    verbs = [verb for verb in VERBS if hasattr(importlib.import_module(verb), "Options")]
    assert {verb: flags_of(verb) for verb in verbs} == frozen


ALBERT_ZH = {
    "create_pretraining_data": "input_file output_file vocab_file do_lower_case do_whole_word_mask max_seq_length "
    "max_predictions_per_seq random_seed dupe_factor masked_lm_prob short_seq_prob non_chinese",
    "run_pretraining": "bert_config_file input_file output_dir init_checkpoint max_seq_length max_predictions_per_seq "
    "do_train do_eval train_batch_size eval_batch_size learning_rate num_train_steps num_warmup_steps "
    "save_checkpoints_steps iterations_per_loop max_eval_steps use_tpu tpu_name tpu_zone gcp_project master "
    "num_tpu_cores",
    "run_classifier": "data_dir bert_config_file task_name vocab_file output_dir init_checkpoint do_lower_case "
    "max_seq_length do_train do_eval do_predict train_batch_size eval_batch_size predict_batch_size learning_rate "
    "num_train_epochs warmup_proportion save_checkpoints_steps iterations_per_loop use_tpu tpu_name tpu_zone "
    "gcp_project master num_tpu_cores",
    "convert_albert_tf_checkpoint_to_pytorch": "tf_checkpoint_path bert_config_file pytorch_dump_path share_type",
}


@pytest.mark.parametrize("verb", ALBERT_ZH)
def test_every_flag_of_albert_zh_exists(verb: str):
    assert set(ALBERT_ZH[verb].split()) <= set(flags_of(verb))


SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] in {*MAY_IMPORT, path.name} and ".venv" not in path.parts
]
# The files that make a batch, and those that read one. All others ask the schema.
FEATURES = {"token_boundary", "first_segment_length", "sequence_ids", "label_ids", "next_sentence_labels"}
FEATURES |= {"input_ids", "input_mask", "segment_ids", "scored_positions", "target_ids", "target_mask"}
FEATURES |= {f"{loss}_{what}" for loss in ("masked_lm", "word_order") for what in ("positions", "ids", "weights")}
FEATURES |= {f"other_{name}" for name in FEATURES}
KNOWS_FEATURES = (
    "data/forms/",
    "data/masking.py",
    "data/word_order.py",
    "data/labelled.py",
    "data/source_target.py",
    "data/windows.py",
    "generation/",
    "data/tokenizers/in_graph.py",
    "generation/language_model.py",
    "modeling/body.py",
    "modeling/encoder_decoder.py",
    "modeling/heads.py",
    "modeling/prompt_heads.py",
    "modeling/queries.py",
    "modeling/two_sides.py",
    "tasks/",
    "conversion/parity.py",
)
# Functions that are one thought, longer than 60 lines. None may be added.
LONG_FUNCTIONS = {
    "data/masking.py:_choose_words",
    "data/word_order.py:shuffle_words",
    "data/writing/beam.py:create_examples_with_beam",
    "training/loop.py:train",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_objective_resolves_and_can_be_asked_for():
    from data.forms import FORMS
    from data.objectives import OBJECTIVES
    from data.pairing import PAIRINGS
    from tasks.losses import LOSSES

    for name, row in OBJECTIVES.items():
        assert row.pairing in PAIRINGS, name
        assert row.form in FORMS, name
        assert set(row.losses) <= set(LOSSES), name
        assert not row.labels or len(row.labels) == PAIRINGS[row.pairing].num_labels, name
        assert bool(row.label_name) == bool(row.labels), name
    for verb in ("create_pretraining_data", "run_pretraining", "plan_training"):
        fields = {field.name: field for field in dataclasses.fields(importlib.import_module(verb).Options)}
        assert fields["objective"].metadata["flag"].choices == tuple(OBJECTIVES), verb


def test_only_papers_know_their_family():
    asked = re.compile(r"""\.family\s*(==|!=|in\b)\s*["'(]""")
    for path in SOURCES:
        name = relative(path)
        if name.startswith("conversion/namings/") or name == "modeling/families.py":
            continue
        assert not asked.search(path.read_text(encoding="utf-8")), (
            f"{name} asks for a family: make it a field of Family"
        )


def test_features_are_named_where_batches_are_made_or_read():
    for path in SOURCES:
        name = relative(path)
        if name.startswith(KNOWS_FEATURES):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in FEATURES, f"{name}:{node.lineno} names {node.value}: ask the schema"


def test_functions_are_short():
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                found.add(f"{relative(path)}:{node.name}")
    assert found <= LONG_FUNCTIONS, f"over 60 lines: {found - LONG_FUNCTIONS}"


@pytest.mark.parametrize(("kind", "name"), [("class", "Checkpoint"), ("def", "read_checkpoint")])
def test_a_name_means_one_thing(kind: str, name: str):
    pattern = re.compile(rf"^{kind} {name}\b", re.MULTILINE)
    assert len([path for path in SOURCES if pattern.search(path.read_text(encoding="utf-8"))]) == 1


def test_user_mistakes_are_raised_by_one_name():
    for path in SOURCES:
        assert "app.UsageError" not in re.sub(r"absl\.app\.UsageError", "", path.read_text(encoding="utf-8")), path


def test_one_file_reads_json_and_toml():
    """Any other reader would forget the limits and the shape."""
    reader = re.compile(r"\bjson\.loads?\(|\btomllib\b|msgspec\.(json|toml)")
    for path in SOURCES:
        found = reader.search(path.read_text(encoding="utf-8"))
        assert not found or relative(path) == "ground/documents.py", f"{relative(path)}: read by ground/documents.py"


def test_the_tree_names_the_files_that_are_there():
    if not TRACKED[0]:
        pytest.skip("not a git checkout")
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = re.search(r"```tree\n(.*?)```", text, re.DOTALL)
    assert tree, "ARCHITECTURE.md has no ```tree block"
    named = set(re.findall(r"^(\S+)", tree[1], re.MULTILINE))
    at_root = {path.split("/")[0] + ("/" if "/" in path else "") for path in TRACKED if path}
    shown = {path for path in at_root if not path.startswith(".")}
    assert named == shown, f"missing {shown - named}, gone {named - shown}"


DOCS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
PAGES = ["README.md", "README.zh.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md", *DOCS]


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_pages_name_exist(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = "|".join([*MAY_IMPORT, "tests", "examples", "benchmarks", "docs"])
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", text):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("README", "docs"))])
def test_flags_that_pages_name_exist(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    # Of gcloud, pip, and the one that is the same for all.
    known = {"zone", "project", "worker", "command", "config", "help"}
    known |= {name for verb in VERBS if verb != "test_changes" for name in all_names(verb)}
    assert set(re.findall(r"(?<![\w-])--(\w+)", text)) <= known


def all_names(verb: str) -> set[str]:
    options = importlib.import_module(verb).Options
    names = {name for field in dataclasses.fields(options) for name in (field.name, *field.metadata["flag"].aliases)}
    return names | getattr(options, FOREIGN, {}).keys()


def test_the_readme_is_short_and_every_page_of_docs_is_linked_there():
    for page in ("README.md", "README.zh.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 120
        assert set(re.findall(r"\]\((docs/[\w.]+)\)", text)) == set(DOCS)
        first_screen = "\n".join(text.splitlines()[:25])
        assert all(f"`{command}`" in first_screen for command in INSTALLS), page


INSTALLS = ("make install", "make install EXTRA=cuda", "make install EXTRA=tpu")


def test_readmes_show_the_same_commands():
    commands = [
        re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
        for page in ("README.md", "README.zh.md")
    ]
    strip = [[re.sub(r"\s*#.*", "", block).strip() for block in blocks] for blocks in commands]
    assert strip[0] == strip[1]
