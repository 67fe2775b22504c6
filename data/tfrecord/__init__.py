"""TFRecord files of tf.train.Example without TensorFlow: frames, codec, random access, recovery of damaged files.

Reads the records of BERT's, Google's and albert_zh's scripts (lists packed or not, features in any order) and writes
the same schema in canonical encoding.
"""
