"""Tasks: a task joins examples, heads, losses and metrics; `training` drives any of them."""
