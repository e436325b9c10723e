"""Runs: how they are driven, logged and recovered."""
