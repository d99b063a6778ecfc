"""Temporary."""

from models.constraints.base import Constraint
from trainers.methods.base import Method
from utils.config.plugins import register_arch, register_constraint, register_set, register_trainer
