#!/usr/bin/env bash
# albert_zh's first step, by its own name: the shipped sample text to data/tf_*.tfrecord, with whole-word masking.
# Further flags are handed on: bash create_pretrain_data.sh --dupe_factor=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" create_pretraining_data.py \
  --do_whole_word_mask=True \
  --input_file='data/samples/zh/*.txt' \
  --output_file=./data/tf_news_2016_zh_raw_news2016zh_1.tfrecord \
  --vocab_file=./albert_config/vocab.txt \
  --do_lower_case=True \
  --max_seq_length=512 \
  --max_predictions_per_seq=51 \
  --masked_lm_prob=0.10 \
  --eval_fraction=0.05 \
  "$@"
