"""What is asked of a model: a task joins examples, heads, losses and metrics; `training` drives any of them."""
