"""Trainer `default`: free weights, nothing added to the loop."""

from trainers.method import Method


class Default(Method):
    """Ordinary training of a dense network."""
