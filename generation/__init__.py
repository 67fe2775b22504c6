"""Text from an encoder-decoder: search, processors of scores, executors, and the one front, `Generator`."""
