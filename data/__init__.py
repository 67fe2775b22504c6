"""Text -> ids -> examples -> records -> batches: NumPy only, never TensorFlow up to the records."""
