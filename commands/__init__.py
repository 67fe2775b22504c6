"""What every root verb is made of: flags, groups of options, the start of a backend, and the course of a run."""
