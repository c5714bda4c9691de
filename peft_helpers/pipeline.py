"""The path of the notebook's cells as one function, each step timed: what the command line runs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.trainer_utils import PredictionOutput

from peft_helpers.adapters import RUN_FILE, check_output_dir, describe_adapter
from peft_helpers.analysis.calibration import calibrate
from peft_helpers.analysis.linear_probe import fit_head
from peft_helpers.analysis.sharing import check_adapter, create_repository, save_model_card
from peft_helpers.arguments import Arguments
from peft_helpers.distributed import process_state
from peft_helpers.interruptions import guard_training, replace_folder
from peft_helpers.metrics import assert_same_predictions
from peft_helpers.modeling import Task, check_model, load_model, lora_arguments, prepare_model
from peft_helpers.training import CLASSIFICATION, make_arguments, make_trainer, predict

_NO_ARGUMENTS = {"_name_or_path", "architectures", "model_type", "transformers_version"}  # of a model's configuration


@dataclass(frozen=True)
class RunResult:
    """What `run` has found on the test examples, and what it took."""

    args: Arguments
    label_names: list[str] | None
    untuned: PredictionOutput  # of `predict`
    tuned: PredictionOutput  # of the adapter as it was loaded again, before its calibration
    log_history: list[dict]  # of the Trainer
    trainable_parameters: int
    parameters: int
    seconds: dict[str, float]  # of each stage


def run(dataset: DatasetDict, args: Arguments, task: Task = CLASSIFICATION) -> RunResult:
    """Do what the notebook does up to its comparison before and after: the same metrics and the same adapter.

    ``dataset`` has train, validation and test. The adapter is saved to ``output_dir``; if it predicts otherwise once it
    is reloaded, that is an AssertionError; see also `check_model`, `check_output_dir` and `create_repository`.
    """
    check_model(args)
    check_output_dir(args)
    create_repository(args)
    seconds = {}
    with _timed(seconds, "load"):
        label_names = getattr(dataset["test"].features.get("label"), "names", None)
        name, length, chunks = args.model.model_name_or_path, args.data.max_length, args.data.average_chunks
        tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=length, average_chunks=chunks)
        model = load_model(args, tokenizer, task, label_names)
        tokenized = task.tokenize(dataset, tokenizer)
    with _timed(seconds, "evaluate untuned"):
        untuned = predict(model, tokenizer, tokenized["test"], args, task)
    with _timed(seconds, "train"):
        peft_model = get_peft_model(model, LoraConfig(**lora_arguments(args.lora, model, task.task_type)))
        trainer = make_trainer(peft_model, tokenizer, tokenized, args, task)
        with guard_training(trainer) as checkpoint:
            if label_names and checkpoint is None:
                fit_head(peft_model, tokenizer, tokenized["train"], args)
            trainer.train(resume_from_checkpoint=checkpoint)
    with _timed(seconds, "evaluate tuned"):
        tuned = predict(peft_model, tokenizer, tokenized["test"], args, task)
        validated = label_names and predict(peft_model, tokenizer, tokenized["validation"], args, task)
    with _timed(seconds, "save"), replace_folder(args.training.output_dir) as folder:
        peft_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        describe_adapter(peft_model, args, folder)
        calibration = calibrate(validated, args.training.tune_threshold)
        calibration.save(folder)
        save_model_card(peft_model, args, untuned, calibration.apply(tuned), folder)
    with _timed(seconds, "reload and evaluate"):
        reloaded_model, reloaded_tokenizer = load_adapter(args.training.output_dir, task, label_names)
        test = task.tokenize(DatasetDict(test=dataset["test"]), reloaded_tokenizer)["test"]
        reloaded = predict(reloaded_model, reloaded_tokenizer, test, args, task)
        assert_same_predictions(tuned, reloaded, args.training.dtype)
    trainable, total = peft_model.get_nb_trainable_parameters()
    return RunResult(args, label_names, untuned, reloaded, trainer.state.log_history, trainable, total, seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def load_recipe(adapter_dir: str | Path) -> Arguments:
    """Return an adapter's options, and defaults of all others; a missing or unknown file of them is a ValueError."""
    path = Path(adapter_dir, RUN_FILE)
    try:
        options = {**json.loads(path.read_text(encoding="utf-8")), "bf16": None, "fp16": None}  # maybe not here
        return make_arguments(**options, output_dir=str(adapter_dir))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"Expected the options of a run in {path} ({error}). Name a folder of a run or copy the whole folder again."
        ) from error


def load_adapter(
    adapter_dir: str | Path, task: Task = CLASSIFICATION, label_names: list[str] | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Check the adapter that a run has saved, then load it onto its base model, and its tokenizer.

    The model is on the accelerator if there is one. The embedded base model is found from any folder. ``label_names``
    are those that it has to know, in order; None: any. For errors see `load_recipe`, `check_model`, `check_adapter`.
    """
    args = load_recipe(adapter_dir)
    check_model(args)
    name = args.model.model_name_or_path
    check_adapter(adapter_dir, name, label_names, task.task_type)
    tokenizer = AutoTokenizer.from_pretrained(adapter_dir)
    # Not AutoPeftModel...: it would look for the base model at the path that it had when the adapter was trained.
    base_model = task.auto_class.from_pretrained(name, **reload_arguments(adapter_dir))
    model = PeftModel.from_pretrained(base_model, adapter_dir).to(process_state().device)
    prepare_model(model, tokenizer)
    return model, tokenizer


def reload_arguments(adapter_dir: str | Path) -> dict:
    """Return ``from_pretrained`` arguments for an adapter's model: labels, type, quantization, what makes it faster."""
    config = AutoConfig.from_pretrained(adapter_dir)
    # No other entry, which could be an option of from_pretrained: trust_remote_code, for one.
    known = type(config)().to_dict().keys() - _NO_ARGUMENTS | {"quantization_config"}
    return {name: value for name, value in config.to_diff_dict().items() if name in known} | {"use_safetensors": True}
