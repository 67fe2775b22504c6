"""The ground floor: what every other folder may call, and what calls nothing of this project itself."""
