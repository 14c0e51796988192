"""The private methods of transformers' `Trainer` are still what the package takes them for."""

import inspect
import re
from pathlib import Path

import pytest
import transformers
from transformers import Trainer

import titok_hf
from titok_hf.training.open_trainer import OVERRIDDEN, PRIVATE


@pytest.mark.parametrize("name", PRIVATE)
def test_trainer_has_the_method(name):
    method = getattr(Trainer, name, None)
    found = method and tuple(inspect.signature(method).parameters)[1:]
    assert found == PRIVATE[name], (
        f"transformers {transformers.__version__} has Trainer.{name} with the parameters {found}, "
        f"not {PRIVATE[name]}: adapt titok_hf/training/open_trainer.py."
    )


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_trainer_calls_what_is_overridden(name):
    assert f"self.{name}(" in inspect.getsource(Trainer), (
        f"Trainer of transformers {transformers.__version__} does not call {name} any more, so that "
        "overriding it has no effect: adapt titok_hf/training/open_trainer.py."
    )


def test_no_other_file_uses_private_methods_of_trainer():
    private = {name for name in vars(Trainer) if re.match(r"_[a-z]", name)}
    found = [
        (path.name, name)
        for path in Path(titok_hf.__file__).parent.rglob("*.py")
        if path.name != "open_trainer.py"
        for name in re.findall(
            r"(?:self|super\(\)|trainer)\.(_[a-z]\w*)|def (_[a-z]\w*)", path.read_text()
        )
        if set(name) & private
    ]
    assert found == []
