"""Durable HTTP endpoints for Starlette and FastAPI."""
