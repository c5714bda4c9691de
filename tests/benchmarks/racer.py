"""One recipe of the race in a process of its own, started by ``race.py``: trains, and prints one line of JSON.

AdapterHub's ``adapters`` needs an environment of its own, with transformers 4.57. This module runs in both; what only
one of them has is imported where it is used.
"""

import json
import math
import resource
import sys
import tempfile
import time
from functools import partial

import torch
from datasets import Dataset, DatasetDict, load_from_disk
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP = 0.06  # of all steps, as in peft's examples of LoRA
EVALUATION_ROWS = 128


def collate(rows: list[dict], pad: int) -> dict[str, torch.Tensor]:
    """Return a batch, padded on the right to its longest row."""
    batch = {
        name: pad_sequence([torch.as_tensor(row[name]) for row in rows], batch_first=True, padding_value=value)
        for name, value in (("input_ids", pad), ("attention_mask", 0))
    }
    return batch | {"labels": torch.tensor([row["labels"] for row in rows])}


def batches(rows: Dataset, pad: int) -> list[dict[str, torch.Tensor]]:
    """Return the rows in batches of similar length, on the device."""
    rows = [*rows.sort("length")]
    parts = [rows[start : start + EVALUATION_ROWS] for start in range(0, len(rows), EVALUATION_ROWS)]
    return [{name: value.to(DEVICE) for name, value in collate(part, pad).items()} for part in parts]


class Clock(TrainerCallback):
    """Times the training; at several points of it, evaluates while the clock stands still."""

    def __init__(self, settings: dict, rows: Dataset):
        self.settings, self.batches, self.seconds, self.curve = settings, batches(rows, settings["pad"]), 0.0, []
        self.starts_fitted = False

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        points = self.settings["points"]
        self.steps = {round(state.max_steps * (number + 1) / points): number + 1 == points for number in range(points)}
        if self.starts_fitted:
            self.curve.append((self.seconds, self.accuracy(model, self.settings["has_bf16"])))
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        if state.global_step in self.steps:
            wait()
            self.seconds += time.perf_counter() - self.start
            # On the way in the fastest type, for all recipes alike; at the end in the type that the recipe trains in.
            is_last = self.steps[state.global_step]
            self.curve.append((self.seconds, self.accuracy(model, self.settings["bf16" if is_last else "has_bf16"])))
            self.start = time.perf_counter()

    def accuracy(self, model, bf16: bool) -> float:
        """Return the share of the rows that the model gets right."""
        model.eval()
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            hits = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in self.batches]
        model.train()
        return torch.cat(hits).double().mean().item()


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def train(model, settings: dict, rows: DatasetDict, trainer_class: type[Trainer] = Trainer) -> list:
    """Return the curve of a training with the Trainer as careful users of it have it: seconds and accuracy."""
    steps = math.ceil(math.ceil(rows["train"].num_rows / settings["batch_size"]) * settings["epochs"])
    is_new = hasattr(TrainingArguments, "train_sampling_strategy")  # since transformers 5
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        seed=settings["seed"],
        learning_rate=settings["learning_rate"],
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        warmup_steps=round(WARM_UP * steps),
        bf16=settings["bf16"],
        use_cpu=DEVICE == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({"train_sampling_strategy": "group_by_length"} if is_new else {"group_by_length": True}),
    )
    clock = Clock(settings, rows["evaluation"])
    data = {"train_dataset": rows["train"], "data_collator": partial(collate, pad=settings["pad"])}
    trainer_class(model=model, args=arguments, callbacks=[clock], **data).train()
    return clock.curve


def load(settings: dict):
    """Return the classifier as it is."""
    return AutoModelForSequenceClassification.from_pretrained(
        settings["model"], num_labels=len(settings["labels"]), pad_token_id=settings["pad"], dtype=torch.float32
    )


def lora(settings: dict, rows: DatasetDict) -> list:
    """LoRA with peft's own target modules of the model."""
    from peft import LoraConfig, get_peft_model

    return train(get_peft_model(load(settings), LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16)), settings, rows)


def adapterhub(settings: dict, rows: DatasetDict) -> list:
    """AdapterHub's ``adapters`` with its own LoRA: rank 8 on queries and values."""
    from adapters import AdapterTrainer, AutoAdapterModel, LoRAConfig

    config = AutoConfig.from_pretrained(settings["model"])
    config.pad_token_id = settings["pad"]
    if hasattr(config, "rope_parameters"):  # what transformers 5 has called it since
        config.rope_theta = config.rope_parameters["rope_theta"]
    model = AutoAdapterModel.from_pretrained(settings["model"], config=config)
    model.add_adapter("race", config=LoRAConfig())
    model.add_classification_head("race", num_labels=len(settings["labels"]))
    model.train_adapter("race")
    return train(model, settings, rows, AdapterTrainer)


def full(settings: dict, rows: DatasetDict) -> list:
    """Every weight."""
    return train(load(settings), settings, rows)


def last_layers(settings: dict, rows: DatasetDict) -> list:
    """The last two layers and the head."""
    model = load(settings).requires_grad_(False)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    for module in (*layers[-2:], model.score):
        module.requires_grad_(True)
    return train(model, settings, rows)


def frozen_features(settings: dict, rows: DatasetDict) -> list:
    """Logistic regression on the mean of the last hidden states."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = AutoModel.from_pretrained(settings["model"], dtype=torch.float32).to(DEVICE).eval()
    start, split = time.perf_counter(), {}
    for name, part in rows.items():
        features, labels = [], []
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=settings["bf16"]):
            for batch in batches(part, settings["pad"]):
                labels += batch.pop("labels").tolist()
                mask = batch["attention_mask"][..., None]
                features.append((model(**batch).last_hidden_state.float() * mask).sum(1) / mask.sum(1))
        split[name] = torch.cat(features).cpu().numpy(), labels
        if name == "train":
            classifier = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=5, cv=5, max_iter=1000))
            classifier.fit(*split[name])
            seconds = time.perf_counter() - start
    return [(seconds, classifier.score(*split["evaluation"]))]


def tf_idf(settings: dict, rows: DatasetDict) -> list:
    """Logistic regression on TF-IDF."""
    import peft_helpers as helpers
    from peft_helpers.comparison.baselines import classify_with_tfidf

    texts = DatasetDict({name: part.select_columns(["text", "label"]) for name, part in rows.items()})
    start = time.perf_counter()
    output, _ = classify_with_tfidf(DatasetDict(train=texts["train"], test=texts["evaluation"]), settings["seed"])
    return [(time.perf_counter() - start, helpers.compute_metrics(output)["accuracy"])]


def package(settings: dict, rows: DatasetDict) -> list:
    """This package's defaults."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    import peft_helpers as helpers
    from peft_helpers.analysis.linear_probe import SHORT_RUN
    from peft_helpers.batches import count_steps
    from peft_helpers.modeling import load_model
    from peft_helpers.training import NO_EVALUATION, LengthTrainer

    args = helpers.make_arguments(
        model_name_or_path=settings["model"],
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        bf16=settings["bf16"],
        seed=settings["seed"],
        output_dir=tempfile.mkdtemp(),
        disable_tqdm=True,
        **NO_EVALUATION | settings["package"],
    )
    tokenizer, clock = AutoTokenizer.from_pretrained(settings["model"]), Clock(settings, rows["evaluation"])
    model = load_model(args, tokenizer, helpers.CLASSIFICATION, settings["labels"])
    model = get_peft_model(model, LoraConfig(**helpers.lora_arguments(args.lora, model)))
    start = time.perf_counter()
    helpers.fit_head(model, tokenizer, rows["train"], args)
    clock.seconds = time.perf_counter() - start
    clock.starts_fitted = count_steps(rows["train"], args.training) < SHORT_RUN
    collator = partial(collate, pad=settings["pad"])
    LengthTrainer(model, args.training, collator, rows["train"], callbacks=[clock]).train()
    return clock.curve


RECIPES = {
    recipe.__name__: recipe
    for recipe in (lora, adapterhub, full, last_layers, frozen_features, tf_idf, package)
}  # fmt: skip


def main() -> None:
    """Run the recipe that the JSON on standard input describes."""
    settings = json.load(sys.stdin)
    rows = load_from_disk(settings["rows"])
    rows = DatasetDict(train=rows["train"], evaluation=rows[settings["evaluate_on"]])
    set_seed(settings["seed"])
    curve = RECIPES[settings["recipe"]](settings, rows)
    if DEVICE == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"learning_rate": settings["learning_rate"], "curve": curve, "peak_memory": memory}))


if __name__ == "__main__":
    main()
