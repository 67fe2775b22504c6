"""Names of RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020) in transformers: BERT's graph, other heads.

Positions begin at 2 and there is one token type. The dense layer and the tanh of transformers' classification head are
a pooler here, so that its state dict has a naming of its own. `RobertaModel` alone has the names of `BertModel`.
"""

from conversion.graphs import as_roberta
from conversion.namings.dialects import BERT_KEYS, Row, bert_block, embeddings, torch_name, torch_rules
from conversion.rules import Naming
from conversion.tokenizer_files import XLMR_PIECES

_LAYER = "roberta.encoder.layer.{k}"


def _naming(
    name: str, *, detect: str, heads: list[Row], backbone: tuple[str, ...] = (), ties: dict[str, str] | None = None
) -> Naming:
    body = [
        *embeddings("roberta.embeddings."),
        *bert_block(".", f"{_LAYER}.attention", f"{_LAYER}.intermediate", f"{_LAYER}.output"),
    ]
    return Naming(
        name=name,
        family="bert",
        container="transformers",
        detect=(detect,),
        rules=torch_rules([*body, *heads]),
        canonical=torch_name("roberta"),
        backbone=("roberta.", *backbone),
        ties=ties or {},
        rewrite=as_roberta,
        config_keys=(*BERT_KEYS, "layer_norm_eps"),
        config_constants={
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "tie_word_embeddings": True,
            "dtype": "float32",
            "classifier_dropout": 0.1,
        },
        model_type="roberta",
        class_prefix="Roberta",
        vocabularies=(XLMR_PIECES,),
    )


NAMINGS = (
    _naming(
        "transformers_roberta_classifier",
        detect=r"^(module\.)?classifier\.dense\.",
        heads=[("dense", "backbone/pooler", "classifier.dense"), ("dense", "classifier", "classifier.out_proj")],
        backbone=("classifier.dense.",),
    ),
    _naming(
        "transformers_roberta",
        detect=r"(^|\.)(roberta\.encoder\.layer|lm_head\.dense)\.",
        heads=[
            ("dense", "backbone/pooler", "roberta.pooler.dense"),
            ("dense", "masked_lm/transform", "lm_head.dense"),
            ("norm", "masked_lm/layer_norm", "lm_head.layer_norm"),
            ("bias", "masked_lm/output_bias", "lm_head.bias"),
            ("dense", "span", "qa_outputs"),
        ],
        ties={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
    ),
)
