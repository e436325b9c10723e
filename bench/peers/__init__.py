"""Other durable execution systems on the same work. Never a dependency of the project."""
