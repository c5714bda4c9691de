from dataclasses import FrozenInstanceError

import pytest

from peft_helpers import make_arguments
from peft_helpers.arguments import OPTIONS


def test_an_option_is_replaced_in_its_group(args):
    changed = args.replace(learning_rate=1e-3, max_length=64, profile="offline")
    assert (changed.training.learning_rate, changed.data.max_length, changed.profile) == (1e-3, 64, "offline")
    assert (args.training.learning_rate, args.data.max_length, args.profile) == (8e-3, 32, "auto")
    assert changed.lora == args.lora
    with pytest.raises(TypeError, match="no_such_option"):
        args.replace(no_such_option=1)


def test_the_description_has_each_own_option_once(args):
    description = args.describe()
    assert len(description) == sum(len(group.__dataclass_fields__) for group in OPTIONS)
    assert (description["max_length"], description["learning_rate"], description["lora_r"]) == (32, 8e-3, 8)


def test_arguments_cannot_be_changed(args):
    for group, name in ((args, "data"), (args.data, "max_length")):
        with pytest.raises(FrozenInstanceError):
            setattr(group, name, 1)


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is 0; it must be greater than 0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; it must be at least 0 and below 1"),
        ({"max_steps": 1}, "Two steps are the least"),
        ({"streaming": True}, "streaming needs --max_steps"),
        ({"streaming": True, "max_steps": 4, "max_train_samples": 8}, "streaming takes no --max_train_samples"),
        ({"streaming": True, "max_steps": 4, "dataset_name": "bbc-news"}, "bbc-news cannot be streamed"),
        ({"streaming": True, "max_steps": 4, "class_weights": "balanced"}, "class_weights needs the labels of all"),
        ({"average_chunks": True, "text_pair_column": "answer"}, "Pairs of texts are truncated and have no chunks"),
        ({"epochs": 3}, "not used.*epochs"),
    ],
)
def test_values_that_make_no_run_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(**options)
