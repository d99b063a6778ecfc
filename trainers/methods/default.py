"""Trainer `default`: ordinary training. It overrides no hook."""

from trainers.methods.base import Method


class Default(Method):
    """Ordinary training of a dense network, or of trainable weights under a fixed mask."""
