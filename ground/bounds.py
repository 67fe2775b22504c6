"""Finite bounds of every number that a flag or a config may give, each with its reason, in one place.

`commands/flags.py` looks flags up by name and `modeling/config.py` the fields of `Config`; a law in
tests/ground/test_bounds.py finds numbers without a row. A bound is where a value stops to mean anything, far beyond
what anybody has used; what a machine can hold is another question, which `ground/memory.py` answers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest value, both allowed unless `below`; then `most` itself is not.

    `reason` ends the message of a value that is too large.
    """

    least: float
    most: float
    reason: str
    below: bool = False

    def complaint(self, value: float) -> str:
        """Return what was expected instead of `value`, for a message; empty where it is allowed."""
        if not value >= self.least:  # also NaN
            return f"at least {_shown(self.least)}"
        if not (value < self.most if self.below else value <= self.most):
            return f"{'below' if self.below else 'at most'} {_shown(self.most)}, since {self.reason}"
        return ""


def _shown(number: float) -> str:
    return f"{int(number):,}" if float(number).is_integer() else f"{number:g}"


FINITE = Bounds(-1e300, 1e300, "it has to be finite")
"""Of a number without a row."""

_SHARE = Bounds(0, 1, "it is a share")
_STEPS = "steps are counted in 32 bits on devices"
_WEIGHT = "a term that weighs more leaves nothing of the others in float32"
_PROCESSES = "every process has memory and files of its own"
_BATCH = "no machine holds a larger batch at once"
_POSITIONS = "no model here has more positions"
_SEED = Bounds(0, 2**63 - 1, "a seed has 63 bits")


def _steps(least: int) -> Bounds:
    return Bounds(least, 2**31 - 1, _STEPS)


BOUNDS: dict[str, Bounds] = {
    # -- learning
    "learning_rate": Bounds(0, 10, "a longer step throws all weights away at once"),
    "weight_decay": Bounds(0, 10, "a stronger decay leaves nothing of a weight"),
    "adam_beta1": Bounds(0, 1, "1 would never forget the first gradient", below=True),
    "adam_beta2": Bounds(0, 1, "1 would never forget the first gradient", below=True),
    "adam_epsilon": Bounds(0, 1, "a larger one hides the second moment"),
    "clip_norm": Bounds(0, 1e6, "no gradient worth a step is longer; 0 does not clip"),
    "ema_decay": Bounds(0, 1, "an average with decay 1 never moves", below=True),
    "poly_power": Bounds(0, 100, "a higher power is 0 after a few steps"),
    "warmup_proportion": _SHARE,
    "max_drop": Bounds(0, 100, "a score has 100 points"),
    "dev_share": Bounds(0, 0.5, "more would be held out than is trained on"),
    "num_train_epochs": Bounds(0, 100_000, "nobody reads a text more often; to go on, run again"),
    "num_train_steps": _steps(1),
    "num_warmup_steps": _steps(0),
    "start_warmup_step": _steps(0),
    "save_checkpoints_steps": _steps(1),
    "eval_steps": _steps(1),
    "max_eval_steps": _steps(1),
    "language_alpha": Bounds(0, 10, "the largest language would be all that is drawn"),
    "parallel_share": _SHARE,
    "log_steps": _steps(1),
    "norm_steps": _steps(0),
    "iterations_per_loop": _steps(1),
    "early_stopping_evaluations": _steps(0),
    "keep_checkpoint_max": Bounds(1, 1_000_000, "no disk holds more"),
    "spike_threshold": Bounds(1, 1e6, "no loss leaps further; --on_spike=ignore watches none"),
    "train_batch_size": Bounds(1, 2**20, _BATCH),
    "eval_batch_size": Bounds(1, 2**20, _BATCH),
    "predict_batch_size": Bounds(1, 2**20, _BATCH),
    "mask_tokens": Bounds(1, 1000, "an answer lists every one of them"),
    "per_device_train_batch_size": Bounds(1, 2**20, _BATCH),
    "gradient_accumulation_steps": Bounds(1, 2**20, "a batch has at most so many examples"),
    "masked_lm_loss_weight": Bounds(0, 1e6, _WEIGHT),
    "word_order_loss_weight": Bounds(0, 1e6, _WEIGHT),
    "sentence_loss_weight": Bounds(0, 1e6, _WEIGHT),
    "crossed_loss_weight": Bounds(0, 1e6, _WEIGHT),
    "pseudo_length_ratio": Bounds(0.01, 100, "no translation is so much longer than its text"),
    "next_tokens_loss_weight": Bounds(0, 1e6, _WEIGHT),
    "masked_lm_until": _SHARE,
    "label_smoothing": Bounds(0, 1, "nothing of the label would be left", below=True),
    "adversarial_weight": Bounds(0, 1e6, _WEIGHT),
    "r_drop_weight": Bounds(0, 1e6, _WEIGHT),
    "distillation_weight": _SHARE,
    "distillation_temperature": Bounds(1, 100, "all labels are alike to a teacher that is divided by more"),
    "domain_weight": Bounds(0, 1e6, _WEIGHT),
    "hidden_distillation_weight": Bounds(0, 1e6, _WEIGHT),
    "attention_distillation_weight": Bounds(0, 1e6, _WEIGHT),
    "sparsity": Bounds(0, 0.99, "less than a hundredth of a model says nothing"),
    "pruning_levels": Bounds(1, 100, "every level is a training run"),
    "pruning_warmup": _SHARE,
    "pruning_cooldown": _SHARE,
    "score_learning_rate": Bounds(0, 10, "a longer step throws all scores away at once"),
    "score_penalty": Bounds(0, 1e6, _WEIGHT),
    "contrast_weight": Bounds(0, 1e6, _WEIGHT),
    "supervised_contrast_weight": Bounds(0, 1e6, _WEIGHT),
    "contrast_temperature": Bounds(1e-3, 1e3, "all texts are then alike"),
    "adversarial_sigma": Bounds(0, 10, "word vectors are shorter"),
    "adversarial_step": Bounds(0, 10, "word vectors are shorter"),
    "adversarial_bound": Bounds(0, 10, "word vectors are shorter"),
    "auxiliary_weight": Bounds(0, 1e6, _WEIGHT),
    "auxiliary_rate": Bounds(0, 0.9, "a text of which a tenth is left says nothing"),
    "pet_generations": Bounds(0, 10, "the training set of a further one would be ten million times the first"),
    "child_tuning_fraction": Bounds(0.001, 1, "it is a share"),
    "layer_decay": _SHARE,
    "freeze_layers": Bounds(0, 1025, "no model has more layers"),
    "gradual_unfreezing": _SHARE,
    "classifier_dropout": Bounds(0, 0.9, "a head that sees less than a tenth learns nothing"),
    "seed": _SEED,
    "seeds": _SEED,
    "num_seeds": Bounds(1, 1000, "nobody trains so often to know a deviation"),
    "restart_degenerate": Bounds(0, 1000, "what fails so often is not a matter of the seed"),
    "random_seed": _SEED,
    # -- serving
    "port": Bounds(0, 65_535, "ports have 16 bits"),
    "reload_seconds": Bounds(0, 86_400, "whoever waits a day for a model restarts the server"),
    "max_body_bytes": Bounds(1_000, 2**30, "every request in flight may hold so much memory"),
    "max_texts": Bounds(1, 4096, "a request is answered as a whole, within one deadline"),
    "max_text_characters": Bounds(1, 2**24, "no model reads a thousandth of it"),
    "queue_texts": Bounds(1, 2**20, "what waits longer than its deadline is computed for nobody"),
    "deadline_seconds": Bounds(0.01, 3600, "no client waits for an hour"),
    "grace_seconds": Bounds(1, 3600, "supervisors kill what has not ended by then"),
    "batch_tokens": Bounds(16, 2**24, _BATCH),
    "batch_rows": Bounds(1, 4096, _BATCH),
    "threads": Bounds(0, 4096, "no machine has more cores"),
    # -- devices
    "num_tpu_cores": Bounds(1, 2**20, "no machine has more"),
    "num_devices": Bounds(1, 2**20, "no machine has more"),
    "model_parallel": Bounds(1, 1024, "a weight cannot be cut finer than its attention heads"),
    "num_processes": Bounds(1, 2**16, _PROCESSES),
    "process_id": Bounds(0, 2**16 - 1, _PROCESSES),
    # -- data
    "max_seq_length": Bounds(4, 65_536, "attention takes the square of it"),
    "max_target_length": Bounds(2, 65_536, "attention takes the square of it"),
    "fragment_length": Bounds(2, 131_072, "the rows of a source and a target hold no more"),
    "fragment_stride": Bounds(0, 1_000_000, "no document has more sentences"),
    "source_fraction": _SHARE,
    "source_length_range": Bounds(2, 65_536, "attention takes the square of it"),
    "target_length_range": Bounds(2, 65_536, "attention takes the square of it"),
    "doc_stride": Bounds(1, 65_536, "no window has more tokens"),
    "max_query_length": Bounds(1, 65_536, "no row has more tokens"),
    "n_best_size": Bounds(1, 10_000, "pairs of ends are counted by its square"),
    "max_answer_length": Bounds(1, 65_536, "no window has more tokens"),
    "null_score_diff_threshold": Bounds(-1e6, 1e6, "no two scores are so far from each other"),
    "max_predictions_per_seq": Bounds(0, 65_536, "no example has more tokens"),
    "max_word_order_per_seq": Bounds(0, 65_536, "no example has more tokens"),
    "trigram_rate": _SHARE,
    "trigram_tokens": Bounds(2, 6, "the orders of more tokens are too many to be drawn from"),
    "ngram": Bounds(1, 1000, "no sentence has more words"),
    "masked_lm_prob": _SHARE,
    "short_seq_prob": _SHARE,
    "eval_fraction": Bounds(0, 0.5, "held-out text must not be the larger part"),
    "dupe_factor": Bounds(1, 10_000, "a text says nothing new to be read more often"),
    "num_workers": Bounds(0, 1024, _PROCESSES),
    "num_shards": Bounds(1, 99_999, "file names have five digits"),
    "shard_size": Bounds(1, 2**40, "no data set has more examples"),
    "character_coverage": _SHARE,
    "min_frequency": Bounds(1, 2**31 - 1, "words are counted in 32 bits"),
    "max_sentences": Bounds(1, 2**31 - 1, "SentencePiece counts them in 32 bits"),
    "num_copies": Bounds(1, 10_000, "a text says nothing new to be written more often"),
    "mask_share": _SHARE,
    "limit": Bounds(1, 2**40, "no data set has more examples"),
    "skip": Bounds(0, 2**40, "no data set has more examples"),
    # -- generation
    "num_beams": Bounds(1, 256, "a wider beam finds nothing that a beam of this width misses"),
    "num_return_sequences": Bounds(1, 256, "a source has one row of the batch for each"),
    "max_new_tokens": Bounds(1, 2**16, _POSITIONS),
    "min_new_tokens": Bounds(0, 2**16, _POSITIONS),
    "length_penalty": Bounds(-100, 100, "a length to this power leaves float32"),
    "no_repeat_ngram_size": Bounds(0, 1024, "no text repeats itself at such length"),
    "repetition_penalty": Bounds(0.01, 100, "a stronger factor leaves nothing of the scores"),
    "pooling_layer": Bounds(-1025, 1024, "no published model is deeper"),
    "threshold": Bounds(-100, 100, "no cosine, no probability and no margin reaches it"),
    "margin_neighbours": Bounds(1, 1e6, "so many texts are all"),
    "in_batch_temperature": Bounds(1e-3, 1e3, "all texts of a batch are then alike"),
    "temperature": Bounds(1e-3, 1e3, "the draw is then uniform"),
    "top_k": Bounds(0, 2**24, "no vocabulary is larger; 0 keeps every token"),
    "top_p": Bounds(1e-6, 1, "it is a share; 1 keeps every token"),
    "chunk_tokens": Bounds(1, 2**16, _POSITIONS),
    "min_fraction": Bounds(0, 1, "it is a share"),
    # -- models
    "vocab_size": Bounds(1, 2_000_000, "published vocabularies have at most a million tokens"),
    "hidden_size": Bounds(1, 65_536, "no published model is a third as wide"),
    "embedding_size": Bounds(1, 65_536, "no published model is a third as wide"),
    "num_hidden_layers": Bounds(1, 1024, "no published model is deeper"),
    "num_decoder_layers": Bounds(0, 1024, "no published model is deeper"),
    "decoder_attention_heads": Bounds(0, 1024, "no published model has more"),
    "decoder_intermediate_size": Bounds(0, 2**20, "no published model is a third as wide"),
    "num_attention_heads": Bounds(1, 1024, "no published model has more"),
    "intermediate_size": Bounds(1, 2**20, "no published model is a third as wide"),
    "max_position_embeddings": Bounds(1, 2**20, "attention takes the square of it"),
    "type_vocab_size": Bounds(0, 65_536, "an example has few segments"),
    "num_hidden_groups": Bounds(1, 1024, "a group has at least a layer"),
    "inner_group_num": Bounds(1, 1024, "a layer of more blocks is deeper than any published model"),
    "ffn_groups": Bounds(1, 65_536, "a group has at least a unit"),
    "position_offset": Bounds(0, 65_536, "positions begin a few rows down at most"),
    "embedding_scale": Bounds(1e-3, 1024, "the square root of a width is published, and of no other quantity"),
    "vocab_padding_multiple": Bounds(1, 2**20, "more rows would be padding than words"),
    "initializer_range": Bounds(0, 10, "weights that begin larger saturate every unit"),
    "layer_norm_eps": Bounds(1e-30, 1, "a larger one hides the variance, and none divides by 0"),
    "hidden_dropout_prob": Bounds(0, 1, "nothing would pass", below=True),
    "attention_probs_dropout_prob": Bounds(0, 1, "nothing would pass", below=True),
}
