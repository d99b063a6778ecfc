"""Trainer `default`: free weights, nothing added to the loop."""

from trainers.methods.base import Method


class Default(Method):
    """Ordinary training of a dense network."""
