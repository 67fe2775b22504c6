"""Guard every byte of shards, every name of a variable and every loss at a fixed seed against unmeant changes."""
