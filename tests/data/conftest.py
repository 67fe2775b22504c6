"""Hypothesis without deadlines: on a busy machine the first example of a test takes longer than any that is fixed."""

from hypothesis import settings

settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")
