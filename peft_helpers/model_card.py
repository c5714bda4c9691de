"""The adapter's model card: what it is, how it was made, what it scores and how to load it without this package."""

from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftConfig, PeftModel
from transformers import EvalPrediction

from peft_helpers.analysis.report import compare
from peft_helpers.arguments import BBC_NEWS, TINY_GPT2, Arguments

_REPORTED = {"accuracy": "accuracy", "f1": "F1 (macro)"}  # the Hub's name of the metric: ours
_METHOD = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "target modules"}
_LOADING = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

folder = {folder!r}  # path of this folder
base_model = {base_model!r}  # {base_hint}
config = AutoConfig.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(
    base_model, num_labels=config.num_labels, id2label=config.id2label, label2id=config.label2id, dtype=config.dtype
)
model = PeftModel.from_pretrained(model, folder)
model.config.pad_token_id = tokenizer.pad_token_id  # without it, texts of different length cannot share a batch
"""


def save_model_card(
    peft_model: PeftModel, args: Arguments, untuned: EvalPrediction, tuned: EvalPrediction, adapter_dir: str | Path
) -> None:
    """Write the model card, ``README.md``, in place of the empty template that ``save_pretrained`` leaves there.

    Args:
        peft_model: the trained model; its configuration names the labels.
        config: the run that made it.
        untuned: output of `predict` before fine-tuning.
        tuned: output of `predict` after it, on the same rows.
        adapter_dir: folder of the adapter.

    Raises:
        ValueError: the two outputs are not of the same rows in the same order.
    """
    scores = compare(untuned, tuned).loc[list(_REPORTED.values())]
    results = [
        EvalResult(
            task_type="text-classification", dataset_type=display_name(args.data.dataset_name),
            dataset_name=display_name(args.data.dataset_name), dataset_split="test",
            metric_type=metric, metric_name=name, metric_value=round(float(scores.loc[name, "tuned"]), 4),
        )
        for metric, name in _REPORTED.items()
    ]  # fmt: skip
    data = _card_data(
        peft_model,
        args,
        pipeline_tag="text-classification",
        model_name=display_name(args.training.output_dir),
        eval_results=results,
    )
    text = _describe(peft_model, args, len(tuned.label_ids), scores.map("{:.3f}".format).to_dict("index"))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(Path(adapter_dir, "README.md"))


def _card_data(peft_model: PeftModel, args: Arguments, **more) -> ModelCardData:
    """Return the metadata of every card, and ``more``; a local model or data set is none that the Hub could link to."""
    return ModelCardData(
        base_model=None if _is_local(args.model.model_name_or_path) else args.model.model_name_or_path,
        datasets=None if _is_local(args.data.dataset_name) else args.data.dataset_name,
        library_name="peft",
        tags=[peft_model.active_peft_config.peft_type.value.lower()],
        **more,
    )


def _describe(peft_model: PeftModel, args: Arguments, rows: int, scores: dict[str, dict[str, str]]) -> str:
    base, dataset = display_name(args.model.model_name_or_path), display_name(args.data.dataset_name)
    trained, total = peft_model.get_nb_trainable_parameters()
    labels = [name for _, name in sorted(peft_model.config.id2label.items())]
    table = "\n".join(f"| {name} | {row['untuned']} | {row['tuned']} |" for name, row in scores.items())
    method = "\n".join(f"| {name} | {value} |" for name, value in _list_method(peft_model.active_peft_config).items())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "datasets"))
    return f"""\
# {base}, fine-tuned on {dataset}

A PEFT adapter and a classification head for `{base}`, whose own weights are not in this folder.

The labels, in the order of their numbers: {", ".join(f"`{name}`" for name in labels)}.

| | |
|---|---|
| base model | `{base}`{", a local folder" if _is_local(args.model.model_name_or_path) else ""} |
| data set | `{dataset}`{_TERMS.get(args.data.dataset_name, "")} |
| trained parameters | {trained:,} of {total:,} |
{method}
| training | {args.training.num_train_epochs:g} epochs at most, learning rate {args.training.learning_rate:g}, seed {args.training.seed} |

## Results

Before and after fine-tuning, on the same {rows:,} test rows:

| | untuned | tuned |
|---|---|---|
{table}

## How to load

From anywhere, with the two paths as they are on your machine:

```python
{_LOADING.format(**_loading_names(args))}```

## Limits

* Tested on the {rows:,} rows above and nothing else. The untuned scores are those of a new, random head.
* It knows {len(labels)} labels; any text gets one of them, however little it fits.
* Texts are cut at {args.data.max_length} tokens; what follows is not read.
* A base model of toy size, such as the `tiny_gpt2` of this project, shows how the method works, not how good it is.

Made with {versions}.
"""


def _loading_names(args: Arguments) -> dict[str, str]:
    """Return what the code of a card names: the folder, the base model and what the latter is."""
    is_local = _is_local(args.model.model_name_or_path)
    embedded = args.model.model_name_or_path == TINY_GPT2
    return {
        "folder": display_name(args.training.output_dir),
        "base_model": "peft_helpers/tiny_gpt2" if embedded else display_name(args.model.model_name_or_path),
        "base_hint": "path of the base model's folder" if is_local else "id of the base model on the Hub",
    }


_LOADING_LANGUAGE_MODEL = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}  # path of this folder
base_model = {base_model!r}  # {base_hint}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model), folder)
inputs = tokenizer("The match", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=40, do_sample=True, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(output[0]))
"""


def save_language_model_card(
    peft_model: PeftModel,
    args: Arguments,
    untuned: dict[str, float],
    tuned: dict[str, float],
    adapter_dir: str | Path,
) -> None:
    """Write the model card of a language model's adapter; like `save_model_card`, with perplexities as results.

    ``untuned`` and ``tuned`` are the results of `evaluate_perplexity` on the same test blocks.
    """
    base, dataset = display_name(args.model.model_name_or_path), display_name(args.data.dataset_name)
    data = _card_data(peft_model, args, pipeline_tag="text-generation")
    method = "\n".join(f"| {name} | {value} |" for name, value in _list_method(peft_model.active_peft_config).items())
    text = f"""\
# {base}, a language model fine-tuned on {dataset}

A PEFT adapter for `{base}`, whose own weights are not in this folder.

| | |
|---|---|
| texts | `{dataset}` {args.data.dataset_config_name or ""}{_TERMS.get(args.data.dataset_name, "")} |
{method}
| training | {args.training.num_train_epochs:g} epochs at most, learning rate {args.training.learning_rate:g}, seed {args.training.seed} |
| perplexity of the untuned model | {untuned["perplexity"]:.2f} |
| perplexity with this adapter | {tuned["perplexity"]:.2f} |

Perplexity is over {tuned["predicted_tokens"]:,} tokens of held-out test documents, in blocks of {args.data.max_length}.

## How to load

From anywhere, with the two paths as they are on your machine:

```python
{_LOADING_LANGUAGE_MODEL.format(**_loading_names(args))}```

## Limits

What it writes reads like its texts; none of it need be true. It repeats the errors and prejudices of what it has read.
"""
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(Path(adapter_dir, "README.md"))


_TERMS = {BBC_NEWS: ": BBC News, for research and non-commercial use (D. Greene and P. Cunningham, ICML 2006)"}


def _list_method(peft_config: PeftConfig) -> dict[str, str]:
    rows = {"PEFT type": peft_config.peft_type.value}
    for field, name in _METHOD.items():
        value = getattr(peft_config, field, None)
        if value is not None:
            rows[name] = str(value) if isinstance(value, str | int | float) else ", ".join(sorted(value))
    return rows


def _is_local(name: str) -> bool:
    return name == BBC_NEWS or Path(name).exists() or Path(name).is_absolute() or name.startswith(".")


def display_name(name: str) -> str:
    """Return the name as given, of a local path the last part only: a card has no business with others' folders."""
    return Path(name).absolute().name if _is_local(name) else name
