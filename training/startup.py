"""Starting TensorFlow without its chatter, so that a person sees the run and, if something is wrong, one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def _stderr_kept_back() -> Iterator[None]:
    """Keep back what is written to stderr by any language; show it if the block fails."""
    sys.stderr.flush()
    visible = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(visible, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(visible, 2)
            os.close(visible)


def import_tensorflow() -> None:
    """Import TensorFlow and let it look for devices; call it before anything imports keras.

    What its native libraries print before they read TF_CPP_MIN_LOG_LEVEL is shown only if the import fails.
    """
    with _stderr_kept_back():
        import tensorflow as tf

        tf.config.list_physical_devices()
    # Each batch shape is compiled once, by design; the warning takes length-bucketed batches for a mistake.
    logging.getLogger("tensorflow").addFilter(lambda record: "triggered tf.function retracing" not in str(record.msg))
