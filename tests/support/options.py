"""Kinds of numbers on command lines."""

from __future__ import annotations

import argparse


def above_zero(text: str) -> float:
    """Read a number above 0."""
    return _above_zero(float(text), text)


def whole_above_zero(text: str) -> int:
    """Read a whole number above 0."""
    return int(_above_zero(int(text), text))


def _above_zero(number: float, text: str) -> float:
    if not number > 0:  # nor what is no number at all
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
