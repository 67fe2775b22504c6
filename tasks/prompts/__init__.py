"""Few labels: methods that ask a masked language model, a row of `tasks.kinds.METHODS` and a file each."""
