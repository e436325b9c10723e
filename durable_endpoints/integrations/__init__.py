"""Agent libraries in durable runs, one module each; each needs the library it is named after."""
