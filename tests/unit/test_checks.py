"""Checks across options: each declares the options that it reads, and is skipped if one of them is invalid."""

import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import args
from args import FIELDS, from_flat
from utils.config.checks import Check, Given
from utils.config.contradictions import ERRORS
from utils.config.effects import MISSING_EFFECTS, row_checks
from utils.config.fields import Need
from utils.config.options import GROUPS, Options
from utils.errors import UsageError

CHECKS = [*row_checks(strict=True), *row_checks(strict=False), *ERRORS, *MISSING_EFFECTS]


class Recorder:
    """A group of options, or `Options`, that records the names of the options that are read."""

    def __init__(self, target: Any, read: set[str]) -> None:
        self.__dict__.update(target=target, read=read)

    def __getattr__(self, name: str) -> Any:
        descriptor = getattr(type(self.target), name, None)
        if isinstance(descriptor, property):
            return descriptor.fget(self)
        if callable(descriptor):
            return lambda *given: descriptor(self, *given)
        if name in GROUPS:
            return Recorder(getattr(self.target, name), self.read)
        self.read.add(name)
        return getattr(self.target, name)


def varied() -> list[Options]:
    """Return options in which every option has, at least once, each of its choices or another value."""
    plain = from_flat({"set": "digits", "arch": "Conv2", "prune_rate": 0.3})
    other = {"prune_rate": 0.2, "pretrained": "a.pt", "resume": "auto", "multigpu": (0, 0), "activation_bits": (1, 1)}
    other |= {
        "start_epoch": 5,
        "shift_depth": 2,
        "bn_weight_init": 1.0,
        "bn_bias_init": 1.0,
        "hidden": (3,),
    }
    changes: list[dict[str, Any]] = []
    for name, option in FIELDS.items():
        allowed = option.metadata["allowed"]
        values = list(allowed) if not isinstance(allowed, str) else [True] if option.type is bool else []
        changes += [{name: value} for value in [*values, *([other[name]] if name in other else [])]]
    pairs = [a | b for a, b in itertools.combinations(changes, 2) if "conv_type" in a | b or "trainer" in a | b]
    return [plain.replace(**change) for change in [*changes, *pairs]]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: "-".join([*check.options, check.function.__name__]))
def test_a_check_declares_every_option_that_it_reads(check: Check) -> None:
    names = {field.name for kind in GROUPS.values() for field in fields(kind)}
    assert check.reads <= names
    for options in VARIED:
        read: set[str] = set()
        check.function(Recorder(options, read), Given(names, names))  # type: ignore[arg-type]
        assert read <= check.reads, options.flat()


VARIED = varied()


def test_a_check_that_reads_an_invalid_value_is_skipped(tmp_path: Path) -> None:
    config = tmp_path / "c.yml"
    config.write_text("set: digits\narch: Conv2\nnesterov: true\nmomentum: 0\n")
    with pytest.raises(UsageError, match=r"\Anesterov: [^\n]*it needs momentum > 0\Z"):
        args.parse(["--config", str(config)])
    with pytest.raises(UsageError, match=r"\Amomentum: [^\n]*must be[^\n]*\Z"):
        args.parse(["--config", str(config), "--momentum", "2"])


def test_a_need_matches_its_values_and_prints_its_parsed_text() -> None:
    need = Need.parse("lr_policy constant_lr, cosine_lr or cos_multi_lr")
    assert str(need) == "lr_policy constant_lr, cosine_lr or cos_multi_lr"
    assert need.is_met("cosine_lr") and not need.is_met("multistep_lr")
    assert Need.parse("augmix").is_met(True) and not Need.parse("augmix").is_met(False)


def test_every_need_names_an_existing_option_and_its_valid_values() -> None:
    needs = [option.metadata["needs"] for option in FIELDS.values() if option.metadata["needs"]]
    assert len(needs) > 10
    for need in needs:
        assert set(need.values) <= set(FIELDS[need.option].metadata["allowed"] if need.values else ())


def test_a_check_of_a_misspelled_option_raises_attribute_error() -> None:
    with pytest.raises(AttributeError):
        Check(("lr",), frozenset(["lr"]), lambda o, _: o.optim.learning_rat).function(PLAIN, Given())


PLAIN = from_flat({"set": "digits", "arch": "FC"})
