"""Notebooks as people write them: none that is complete is refused, and what is surely wrong is told."""

import os
import subprocess
import sys
import time

import pytest
from make_notebooks import COMPLETE, make_adapter, number_of, write_notebook

from peft_helpers.submission.checklist import FOUND, MISSING, UNCLEAR, check_submission

CLASSIFIER = "a pre-trained sequence classifier is loaded"
DATA = "a Hugging Face data set is loaded"
TOKENIZER = "a Hugging Face tokenizer prepares it"
UNTUNED = "a metric of the untuned model is shown"
CONFIG = "a PEFT configuration is made"
PEFT = "a PEFT model is made from it"
EPOCH = "at least one epoch is trained"
SAVED = "the adapter is saved after training"
LOADED = "the saved adapter is loaded"
TUNED = "the same metric of the loaded model is shown"
COMPARED = "the two are compared"
QLORA = "QLoRA with bitsandbytes"
SEVERAL = "several PEFT configurations"
RUN = "every cell was run"
NO_ERROR = "no cell ended in an error"
REQUIRED = [
    CLASSIFIER,
    DATA,
    TOKENIZER,
    UNTUNED,
    CONFIG,
    PEFT,
    EPOCH,
    SAVED,
    LOADED,
    TUNED,
    COMPARED,
    RUN,
    NO_ERROR,
]

LOOP = """
def evaluate_model(model, loader):
    model.eval()
    predictions, labels = [], []
    for batch in loader:
        with torch.no_grad():
            logits = model(**batch).logits
        predictions.extend(logits.argmax(-1).tolist())
        labels.extend(batch['labels'].tolist())
    return accuracy_score(labels, predictions)
"""
OWN_TRAINING = """
for epoch in range(2):
    lora_model.train()
    for batch in train_loader:
        loss = lora_model(**batch).loss
        loss.backward()
        optimizer.step()
    print(f'Epoch {epoch}: accuracy {evaluate_model(lora_model, loader)}')
"""
TRAIN_LOOP = """
def train_loop(model, loader, optimizer):
    model.train()
    for batch in tqdm(loader):
        batch = {name: values.to(device) for name, values in batch.items()}
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
PROGRESS = (
    "<progress value='50' max='50'></progress>[50/50 02:11, Epoch 1/1]<table><thead><tr><th>Epoch</th>"
    "<th>Training Loss</th><th>Accuracy</th></tr></thead><tr><td>1</td><td>0.41</td><td>0.83</td></tr></table>"
)
TRAIN = COMPLETE["training"][0]
TUNED_CODE = COMPLETE["tuned"][0]
REPORT = (
    "              precision    recall  f1-score   support\n\n           0       0.{0}      0.{0}      0.{0}        50"
)

# Complete notebooks in the styles of many people: what differs.
GOOD = {
    "the form": {},
    "a loop of one's own and scikit-learn": {
        "metric": (LOOP, ""),
        "untuned": ("base_acc = evaluate_model(model, loader)\nprint(f'Accuracy of the base model: {base_acc:.1%}')",
                    "Accuracy of the base model: 51.0%"),
        "training": (OWN_TRAINING, "Epoch 0: accuracy 0.71\nEpoch 1: accuracy 0.88"),
        "reload": ("base = AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
                   "tuned = PeftModel.from_pretrained(base, './gpt-lora')", ""),
        "tuned": ("lora_acc = evaluate_model(tuned, loader)\nprint(f'Accuracy: {lora_acc:.1%}')", "Accuracy: 88.0%"),
        "comparison": ("print(f'Before: {base_acc:.2f}, after: {lora_acc:.2f}')", "Before: 0.51, after: 0.88"),
    },
    "evaluate.load and a table of pandas": {
        "metric": ("import evaluate\naccuracy = evaluate.load('accuracy')\ndef compute_metrics(p):\n"
                   "    return accuracy.compute(predictions=p[0].argmax(-1), references=p[1])", ""),
        "untuned": (COMPLETE["untuned"][0].replace("trainer.evaluate()", "before = trainer.evaluate()\nbefore"),
                    {"text/plain": "{'eval_accuracy': np.float64(0.51)}"}),
        "tuned": (TUNED_CODE.replace("new_trainer.evaluate()", "after = new_trainer.evaluate()"), ""),
        "comparison": (
            "pd.DataFrame([before, after], index=['base', 'LoRA'])",
            {"text/html": "<table><thead><tr><th></th><th>eval_accuracy</th></tr></thead><tr><th>base</th>"
                          "<td>0.51</td></tr><tr><th>LoRA</th><td>0.89</td></tr></table>", "text/plain": "..."}),
    },
    "classification reports": {
        "untuned": ("out = Trainer(model=model).predict(tokenized['test'])\n"
                    "print(classification_report(out.label_ids, out.predictions.argmax(-1)))", REPORT.format(51)),
        "tuned": ("out = Trainer(model=loaded_model).predict(tokenized['test'])\n"
                  "print(classification_report(out.label_ids, out.predictions.argmax(-1)))", REPORT.format(89)),
    },
    "functions for every step": {
        "metric": ("def load():\n    return AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
                   "def measure(m):\n    trainer = Trainer(model=m, compute_metrics=compute_metrics)\n"
                   "    return trainer.evaluate()\n"
                   "def fit(m):\n    trainer = Trainer(model=m)\n    trainer.train()\n    return m", ""),
        "untuned": ("model = load()\nresults = {'original': measure(model)}\nprint(results)",
                    "{'original': {'eval_accuracy': 0.51}}"),
        "training": ("lora_model = fit(lora_model)", ""),
        "tuned": ("results['fine-tuned'] = measure(loaded_model)\nprint(results)",
                  "{'original': {'eval_accuracy': 0.51}, 'fine-tuned': {'eval_accuracy': 0.89}}"),
        "comparison": None,
    },
    "the reloaded model takes the old name": {
        "reload": ("lora_model = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')\n"
                   "lora_model.to('cuda')", ""),
        "tuned": (TUNED_CODE.replace("loaded_model", "lora_model"), COMPLETE["tuned"][1]),
    },
    "metrics of Markdown displays": {
        "untuned": (COMPLETE["untuned"][0] + "\ndisplay(Markdown(f'**Accuracy**: {trainer.evaluate()}'))",
                    {"text/markdown": ["**Accuracy**: 51 %"], "text/plain": "<IPython.core.display.Markdown object>"}),
        "tuned": (TUNED_CODE, {"text/markdown": "89\u00a0% accuracy", "text/plain": "<Markdown object>"}),
    },
    "metrics of JSON displays": {
        "untuned": (COMPLETE["untuned"][0], {"application/json": {"eval_accuracy": 0.51}, "text/plain": "<JSON>"}),
        "tuned": (TUNED_CODE, {"application/json": {"eval_accuracy": 0.89}, "text/plain": "<JSON>"}),
    },
    "the number before the name": {
        "untuned": (COMPLETE["untuned"][0], "The model reaches 51 % accuracy"),
        "tuned": (TUNED_CODE, "0.89 accuracy"),
    },
    "a bare number whose name stands in the code": {
        "untuned": (f"{COMPLETE['untuned'][0]}\nresult = trainer.evaluate()\nprint(result['eval_accuracy'])", "0.51"),
        "tuned": (f"{TUNED_CODE}\nprint(new_trainer.evaluate()['eval_accuracy'])", "np.float64(0.89)"),
    },
    "a bare number whose name stands in a function": {
        "metric": (LOOP, ""),
        "untuned": ("evaluate_model(model, loader)", {"text/plain": "0.5125"}),
        "tuned": ("evaluate_model(loaded_model, loader)", {"text/plain": "0.8875"}),
    },
    "the Trainer saves": {
        "save": ("lora_trainer.save_model('./gpt-lora')\ntokenizer.save_pretrained('./gpt-lora')", "")},
    "accelerate saves": {"save": ("accelerator.unwrap_model(lora_model).save_pretrained('gpt-lora')", "")},
    "the plain PEFT constructor": {"peft model": ("lora_model = PeftModel(model, config)", "")},
    "a PEFT constructor": {"peft model": ("lora_model = PeftModelForSequenceClassification(model, config)", "")},
    "add_adapter and load_adapter": {
        "peft model": ("model.add_adapter(config)", ""),
        "training": (TRAIN.replace("lora_model", "model"), COMPLETE["training"][1]),
        "save": ("model.save_pretrained('gpt-lora')", ""),
        "reload": ("fresh = AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
                   "fresh.load_adapter('gpt-lora')", ""),
        "tuned": (TUNED_CODE.replace("loaded_model", "fresh"), COMPLETE["tuned"][1]),
    },
    "the state dict of the adapter": {
        "save": ("save_file(get_peft_model_state_dict(lora_model), 'gpt-lora/adapter_model.safetensors')", ""),
        "reload": ("fresh = get_peft_model(AutoModelForSequenceClassification.from_pretrained('gpt2'), config)\n"
                   "set_peft_model_state_dict(fresh, load_file('gpt-lora/adapter_model.safetensors'))", ""),
        "tuned": (TUNED_CODE.replace("loaded_model", "fresh"), COMPLETE["tuned"][1]),
    },
    "a reload in try": {
        "reload": ("try:\n    loaded_model = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')\n"
                   "except Exception:\n    loaded_model = AutoModelForSequenceClassification.from_pretrained('x')", ""),
    },
    "everything at once after training": {
        "save": ("lora_model.save_pretrained('gpt-lora')\n"
                 "loaded_model = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')\n" + TUNED_CODE,
                 COMPLETE["tuned"][1]),
        "reload": None, "tuned": None,
    },
    "a fresh model is the baseline": {
        "untuned": None,
        "tuned": ("original = AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
                  "for name, m in {'original': original, 'LoRA': loaded_model}.items():\n"
                  "    print(name, Trainer(model=m, compute_metrics=compute_metrics).evaluate())",
                  "original {'eval_accuracy': 0.51}\nLoRA {'eval_accuracy': 0.89}"),
        "comparison": None,
    },
    "shown only at the end": {
        "untuned": (COMPLETE["untuned"][0].replace("trainer.evaluate()", "base_results = trainer.evaluate()"), ""),
        "tuned": (TUNED_CODE.replace("new_trainer.evaluate()", "peft_results = new_trainer.evaluate()"), ""),
        "comparison": ("print(f\"Pre-trained accuracy: {base_results['eval_accuracy']}\")\n"
                       "print(f\"PEFT accuracy: {peft_results['eval_accuracy']}\")",
                       "Pre-trained accuracy: 0.51\nPEFT accuracy: 0.89"),
    },
    "magics, Colab, Drive and warnings": {
        "imports": ("%%capture\n!pip install -U peft \\\n    datasets\n%load_ext autoreload\n"
                    "if True:\n    !nvidia-smi\n"
                    "from google.colab import drive\ndrive.mount('/content/drive')\nfiles = !ls\nhelp?", ""),
        "training": (f"%%time\n{TRAIN}", COMPLETE["training"][1]),
        "save": ("path = '/content/drive/MyDrive/gpt-lora'\n%time lora_model.save_pretrained(path)", ""),
        "reload": ("loaded_model = AutoPeftModelForSequenceClassification.from_pretrained(path)", ""),
        "shell": ("%%bash\ntrainer.train() ( what", ""),
        "install": ("!pip list", "", None),
    },
    "QLoRA in 4 bits": {
        "model": ("bnb = BitsAndBytesConfig(load_in_4bit=True)\nmodel = AutoModelForSequenceClassification"
                  ".from_pretrained('gpt2', quantization_config=bnb)\n"
                  "model = prepare_model_for_kbit_training(model)", ""),
    },
    "peft_config of a Trainer": {
        "peft model": None,
        "training": ("sft = SFTTrainer(model=model, peft_config=config)\nsft.train()", ""),
        "save": ("sft.save_model('gpt-lora')", ""),
    },
    "LoftQ within LoRA": {
        "configuration": ("config = LoraConfig(task_type='SEQ_CLS', loftq_config=LoftQConfig(4))", "")},
    "a variable with the name of a function": {
        "imports": ("def train(m):\n    trainer = Trainer(model=m)\n    trainer.train()", ""),
        "tokenizer": (COMPLETE["tokenizer"][0] + "\ntrain = tokenized['train']\nlen(train)", "100"),
    },
    "loops with a metric of evaluate": {
        name: ("metric = evaluate.load('accuracy')\nfor batch in loader:\n    with torch.no_grad():\n"
               f"        logits = {model}(**batch).logits\n"
               "    metric.add_batch(predictions=logits.argmax(-1), references=batch['labels'])\n"
               "metric.compute()", f"{{'accuracy': {shown}}}")
        for name, model, shown in (("untuned", "model", 0.5), ("tuned", "loaded_model", 0.9))
    },
    "pipelines": {
        name: (f"pipe = pipeline('text-classification', model={model}, tokenizer=tokenizer)\n"
               "guesses = [guess['label'] for guess in pipe(texts)]\nprint(accuracy_score(labels, guesses))", shown)
        for name, model, shown in (("untuned", "model", "0.5"), ("tuned", "loaded_model", "0.9"))
    },
    "comments and strings beside code": {
        "untuned": (f"# trainer.train()\n'''trainer.train()'''\n{COMPLETE['untuned'][0]}", COMPLETE["untuned"][1]),
    },
    "one name for every trainer and model": {
        "untuned": ("args = TrainingArguments('out')\ntrainer = Trainer(\n    model=model,\n    args=args,\n"
                    "    compute_metrics=compute_metrics,\n)\nresults = trainer.evaluate()\n"
                    "print(f'Initial evaluation: {results}')", "Initial evaluation: {'eval_accuracy': 0.51}"),
        "training": ("trainer = Trainer(model=lora_model, args=args, compute_metrics=compute_metrics)\ntrainer.train()",
                     {"text/html": PROGRESS, "text/plain": "<IPython.core.display.HTML object>"}),
        "in memory": ("trainer.evaluate()", "{'eval_accuracy': 0.88}"),
        "reload": ("lora_model = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')", ""),
        "tuned": ("trainer = Trainer(model=lora_model, args=args, compute_metrics=compute_metrics)\n"
                  "final = trainer.evaluate()\nprint(final)", "{'eval_accuracy': 0.88}"),
        "comparison": ("", "The accuracy went up from 51% to 88%."),
    },
    "PyTorch alone, and the model keeps its name": {
        "metric": (TRAIN_LOOP + LOOP, ""),
        "untuned": ("base_accuracy = evaluate_model(model, loader)\nprint(f'Accuracy at first: {base_accuracy:.4f}')",
                    "Accuracy at first: 0.5100"),
        "peft model": ("model = get_peft_model(model, config)\nmodel.to(device)", ""),
        "training": ("optimizer = AdamW(model.parameters())\nfor epoch in range(2):\n"
                     "    train_loop(model, train_loader, optimizer)\n"
                     "    print(f'Epoch {epoch}: accuracy {evaluate_model(model, val_loader):.3f}')",
                     "Epoch 0: accuracy 0.810\nEpoch 1: accuracy 0.840"),
        "save": ("model.save_pretrained('gpt-lora')", ""),
        "reload": ("base = AutoModelForSequenceClassification.from_pretrained('gpt2', num_labels=2)\n"
                   "model = PeftModel.from_pretrained(base, 'gpt-lora')\nmodel.to(device)", ""),
        "tuned": ("peft_accuracy = evaluate_model(model, test_loader)\n"
                  "print(f'Accuracy after fine-tuning: {peft_accuracy:.4f}')", "Accuracy after fine-tuning: 0.8900"),
        "comparison": ("print(f'Base: {base_accuracy:.4f} PEFT: {peft_accuracy:.4f}')", "Base: 0.5100 PEFT: 0.8900"),
    },
    "accelerate": {
        "metric": (TRAIN_LOOP.replace("loss.backward()", "accelerator.backward(loss)"), ""),
        "training": ("lora_model, optimizer, loader = accelerator.prepare(lora_model, optimizer, loader)\n"
                     "train_loop(lora_model, loader, optimizer)", "100%|####| 10/10"),
    },
    "a Trainer of one's own": {
        "metric": ("class CustomTrainer(Trainer):\n    def compute_loss(self, model, inputs):\n"
                   "        outputs = model(**inputs)\n        return cross_entropy(outputs.logits, inputs['labels'])\n"
                   + COMPLETE["metric"][0], ""),
        **{name: (COMPLETE[name][0].replace(" Trainer(", " CustomTrainer("), COMPLETE[name][1])
           for name in ("untuned", "training", "tuned")},
        "comparison": ("pd.DataFrame({'Base model': before, 'Fine-tuned model': after})",
                       {"text/plain": "           Base model  Fine-tuned model\naccuracy   0.51   0.89"}),
    },
    "a helper that measures whatever `model` is": {
        "metric": ("def evaluate_model():\n    trainer = Trainer(model=model, compute_metrics=compute_metrics)\n"
                   "    return trainer.evaluate()", ""),
        "untuned": ("evaluate_model()", "{'eval_accuracy': 0.51}"),
        "peft model": ("model = get_peft_model(model, config)", ""),
        "training": ("trainer = Trainer(model=model)\ntrainer.train()", ""),
        "save": ("model.save_pretrained('gpt-lora')", ""),
        "reload": ("model = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')", ""),
        "tuned": ("evaluate_model()", "{'eval_accuracy': 0.89}"),
    },
    "a helper that classifies a text": {
        "metric": ("def classify(m, text):\n    return m(**tokenizer(text)).logits.argmax().item()", ""),
        **{name: (f"{guesses} = [classify({model}, t) for t in texts]\n"
                  f"acc = sum(p == l for p, l in zip({guesses}, labels)) / len(labels)\nprint('accuracy =', acc)",
                  f"accuracy = {shown}")
           for name, model, guesses, shown in (("untuned", "model", "a", 0.5), ("tuned", "loaded_model", "b", 0.9))},
    },
    "inference written by hand": {
        name: ("correct = 0\nfor row in test:\n    with torch.no_grad():\n"
               f"        outputs = {model}(**tokenizer(row['text'], return_tensors='pt'))\n"
               "    if outputs.logits.argmax().item() == row['label']:\n        correct += 1\n"
               "print(f'Accuracy: {correct / len(test)}')", f"Accuracy: {shown}")
        for name, model, shown in (("untuned", "model", 0.5), ("tuned", "loaded_model", 0.9))
    },
    "predictions of a Trainer and numpy": {
        name: (f"output = Trainer(model={model}).predict(tokenized['test'])\n"
               "guesses = np.argmax(output.predictions, axis=1)\n"
               "print('Test accuracy:', accuracy_score(output.label_ids, guesses))", f"Test accuracy: {shown}")
        for name, model, shown in (("untuned", "model", 0.5), ("tuned", "loaded_model", 0.9))
    },
    "the evaluator of evaluate": {
        name: (f"evaluator('text-classification').compute(model_or_pipeline={model}, data=test, metric='accuracy')",
               f"{{'accuracy': {shown}, 'latency_in_seconds': 0.01}}")
        for name, model, shown in (("untuned", "model", 0.5), ("tuned", "loaded_model", 0.9))
    },
    "torchmetrics": {
        name: ("metric = Accuracy(task='multiclass', num_classes=2)\nfor batch in loader:\n"
               f"    metric.update({model}(**batch).logits, batch['labels'])\nprint('accuracy', metric.compute())",
               f"accuracy tensor({shown})")
        for name, model, shown in (("untuned", "model", 0.5), ("tuned", "loaded_model", 0.9))
    },
    "Lightning": {
        "metric": ("class Lit(pl.LightningModule):\n    def __init__(self, model):\n        self.model = model\n"
                   "    def training_step(self, batch):\n        return self.model(**batch).loss\n"
                   "    def test_step(self, batch):\n        self.log('test_accuracy', f(self.model(**batch)))", ""),
        "untuned": ("pl.Trainer().test(Lit(model), loader)", "test_accuracy 0.5"),
        "training": ("trainer = pl.Trainer(max_epochs=1)\ntrainer.fit(Lit(lora_model), loader)", "Epoch 0: 100%"),
        "tuned": ("pl.Trainer().test(Lit(loaded_model), loader)", "test_accuracy 0.9"),
    },
    "reloaded and measured in one cell": {
        "reload": None,
        "tuned": ("peft_config = PeftConfig.from_pretrained('gpt-lora')\nname = peft_config.base_model_name_or_path\n"
                  "inference_model = PeftModel.from_pretrained(\n"
                  "    AutoModelForSequenceClassification.from_pretrained(name), 'gpt-lora')\n"
                  "t = Trainer(model=inference_model, compute_metrics=compute_metrics)\nprint('PEFT:', t.evaluate())",
                  "PEFT: {'eval_accuracy': 0.9}"),
    },
    "a dictionary of results": {
        "untuned": ("results = {}\nresults['foundation'] = Trainer(model=model).evaluate()\n"
                    "results['foundation']['eval_accuracy']", "0.51"),
        "tuned": ("results['peft'] = Trainer(model=loaded_model).evaluate()\nresults['peft']['eval_accuracy']", "0.9"),
        "comparison": ("for name, result in results.items():\n    print(name, result['eval_accuracy'])",
                       "foundation 0.51\npeft 0.9"),
    },
    "imports under other names": {
        "imports": ("from peft import AutoPeftModelForSequenceClassification as Loaded\n"
                    "from peft import LoraConfig as LC, get_peft_model as wrap\n"
                    "from transformers import (\n    AutoModelForSequenceClassification as AMSC,\n"
                    "    AutoTokenizer as AT,\n    Trainer as T,\n)\nfrom datasets import load_dataset as ld", ""),
        "data": ("dataset = ld('imdb')", ""),
        "tokenizer": ("tokenizer = AT.from_pretrained('gpt2')", ""),
        "model": ("model = AMSC.from_pretrained('gpt2')", ""),
        "untuned": ("t = T(model=model, compute_metrics=compute_metrics)\nt.evaluate()", "{'eval_accuracy': 0.51}"),
        "configuration": ("config = LC(task_type='SEQ_CLS')", ""),
        "peft model": ("lora_model = wrap(model, config)", ""),
        "training": ("t = T(model=lora_model)\nt.train()", ""),
        "reload": ("loaded_model = Loaded.from_pretrained('gpt-lora')", ""),
        "tuned": ("t = T(model=loaded_model, compute_metrics=compute_metrics)\nt.evaluate()", "{'eval_accuracy': 0.9}"),
    },
    "several configurations in a loop": {
        "configuration": ("configs = {r: LoraConfig(task_type='SEQ_CLS', r=r) for r in (4, 8)}", ""),
        "peft model": None,
        "training": ("for r, config in configs.items():\n"
                     "    model = AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
                     "    lora_model = get_peft_model(model, config)\n    trainer = Trainer(model=lora_model)\n"
                     "    trainer.train()\n    lora_model.save_pretrained(f'gpt-lora-{r}')", ""),
        "save": None,
    },
    "a Trainer that makes its model": {
        "peft model": ("def model_init():\n    base = AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
                       "    return get_peft_model(base, config)", ""),
        "training": ("lora_trainer = Trainer(model_init=model_init)\nlora_trainer.train()", ""),
        "save": ("lora_trainer.model.save_pretrained('gpt-lora')", ""),
    },
    "training unless it is there": {
        "training": ("if not os.path.exists('gpt-lora'):\n    lora_trainer = Trainer(model=lora_model)\n"
                     "    lora_trainer.train()\n    lora_model.save_pretrained('gpt-lora')", ""),
        "save": None,
    },
    "helpers that call helpers below them": {
        "training": ("def main():\n    fit(lora_model)\n"
                     "def fit(m):\n    trainer = Trainer(model=m)\n    trainer.train()\n"
                     "if __name__ == '__main__':\n    main()", ""),
    },
    "type hints": {
        "training": ("lora_trainer: Trainer = Trainer(model=lora_model)\nresult: dict = lora_trainer.train()", ""),
        "reload": ("loaded_model: PeftModel = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')", ""),
    },
    "the Trainer gets the loaded model": {
        "tuned": ("lora_trainer.model = loaded_model.to('cuda')\nlora_trainer.evaluate()", "{'eval_accuracy': 0.9}"),
    },
    "by way of the Hub": {
        "save": ("lora_model.push_to_hub('me/gpt-lora')", ""),
        "reload": ("loaded_model = AutoPeftModelForSequenceClassification.from_pretrained('me/gpt-lora')", ""),
    },
    "a prompt for each text": {"configuration": ("config = PromptTuningConfig(task_type='SEQ_CLS')", "")},
    "weights in 8 bits": {
        "model": ("model = AutoModelForSequenceClassification.from_pretrained('gpt2', load_in_8bit=True)", "")},
    "ends with empty and commented cells": {"more": ("# TODO: tidy up", "", None), "end": ("\n", "", None)},
}  # fmt: skip


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "gpt-lora")


@pytest.fixture
def check(tmp_path, adapter):
    """Checks the complete notebook with some cells changed; returns the rows by requirement."""

    def check(changes=None, **arguments):
        notebook = write_notebook(tmp_path / "n.ipynb", changes)
        return {row.requirement: row for row in check_submission(notebook, adapter, **arguments)}

    return check


@pytest.mark.parametrize("name", GOOD)
def test_complete_notebooks_are_found_complete(name, check):
    rows = check(GOOD[name])
    assert {each: rows[each] for each in REQUIRED if rows[each].answer != FOUND} == {}
    assert not [row for row in rows.values() if row.refuses]
    assert all(bool(row.to_do) == (row.answer != FOUND) for row in rows.values())


MEMORY = ("lora_trainer.evaluate()", COMPLETE["tuned"][1])
# What is surely wrong: cells that differ, the requirement, what is said, whether it refuses a zip.
WRONG = {
    "no classifier": ({"model": ("model = GPT2(num_labels=2)", "")}, CLASSIFIER, "AutoModelForSequence", False),
    "a language model in place of a classifier": (
        {"model": ("model = AutoModelForCausalLM.from_pretrained('gpt2')", "")}, CLASSIFIER, "another kind", False),
    "no data set": ({"data": ("dataset = pd.read_csv('rows.csv')", "")}, DATA, "load_dataset", False),
    "no tokenizer": ({"tokenizer": ("tokenized = dataset", "")}, TOKENIZER, "AutoTokenizer", False),
    "no PEFT configuration": ({"configuration": ("config = None", "")}, CONFIG, "LoraConfig", False),
    "no PEFT model": ({"peft model": ("lora_model = model", "")}, PEFT, "get_peft_model", False),
    "the untuned model is not measured": ({"untuned": ("x = 1", "")}, UNTUNED, "before training", False),
    "the baseline is of a trained model": (
        {"untuned": ("x = 1", ""), "save": (COMPLETE["save"][0] + "\ntrainer = Trainer(model)\ntrainer.evaluate()",
                                           COMPLETE["untuned"][1])}, UNTUNED, "load it afresh", False),
    "the foundation model is trained before its baseline": (
        {"untuned": ("trainer = Trainer(model=model)\ntrainer.train()\ntrainer.evaluate()", COMPLETE["untuned"][1])},
        UNTUNED, "before training", False),
    "no training": ({"training": ("lora_model.train()", "")}, EPOCH, "train the PEFT model", True),
    "training in a comment": (
        {"training": ("# lora_trainer.train()\n'''\nlora_trainer.train()\n'''", "")}, EPOCH, "train the PEFT", True),
    "training in a function that no cell calls": (
        {"training": ("def fit():\n    lora_trainer.train()", "")}, EPOCH, "train the PEFT", True),
    "training of another model": (
        {"training": ("other = AutoModelForSequenceClassification.from_pretrained('bert')\n"
                      "other_trainer = Trainer(model=other)\nother_trainer.train()", "")},
        EPOCH, "not another one", False),
    "only the foundation model is trained, before": (
        {"training": ("x = 1", ""), "untuned": (COMPLETE["untuned"][0] + "\ntrainer.train()", COMPLETE["untuned"][1])},
        EPOCH, "not another one", False),
    "neither saved nor loaded": (
        {"save": ("x = 1", ""), "reload": ("loaded_model = lora_model", "")}, SAVED, "save_pretrained", True),
    "only the tokenizer is saved": (
        {"save": ("tokenizer.save_pretrained('x')\nmodel.config.save_pretrained('x')", ""),
         "reload": ("loaded_model = lora_model", "")}, SAVED, "save_pretrained", True),
    "saved before training": (
        {"peft model": ("lora_model = get_peft_model(model, config)\nlora_model.save_pretrained('gpt-lora')", ""),
         "save": ("x = 1", "")}, SAVED, "after training", False),
    "saved with torch": (
        {"save": ("torch.save(lora_model.state_dict(), 'model.pt')", "")}, SAVED, "whole model", False),
    "merged, saved and loaded whole": (
        {"save": ("merged = lora_model.merge_and_unload()\nmerged.save_pretrained('merged')", ""),
         "reload": ("loaded_model = AutoModelForSequenceClassification.from_pretrained('merged')", "")},
        SAVED, "whole model", False),
    "the whole model is loaded": (
        {"save": ("torch.save(lora_model.state_dict(), 'model.pt')", ""),
         "reload": ("lora_model.load_state_dict(torch.load('model.pt'))", "")},
        LOADED, "AutoPeftModelForSequenceClassification", False),
    "never loaded": ({"reload": ("loaded_model = lora_model", "")}, LOADED, "from_pretrained on the folder", True),
    "loaded in a comment": ({"reload": ("loaded_model = lora_model  # AutoPeftModel.from_pretrained('x')", "")},
                            LOADED, "from_pretrained on the folder", True),
    "the loaded model is not measured": ({"tuned": ("loaded_model.eval()", "")}, TUNED, "evaluate the loaded", False),
    "the old trainer is measured": ({"tuned": MEMORY}, TUNED, "not the one in memory", False),
    "the old trainer is measured under the new name": (
        {"reload": ("lora_model = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')", ""),
         "tuned": ("lora_model.eval()\nresults = lora_trainer.evaluate()\nprint('the loaded lora_model:', results)",
                   COMPLETE["tuned"][1])}, TUNED, "not the one in memory", False),
    "the model in memory is measured": (
        {"metric": (LOOP, ""), "tuned": ("print('Accuracy of loaded_model', evaluate_model(lora_model, loader))",
                                         "Accuracy of loaded_model 0.89")}, TUNED, "not the one in memory", False),
    "the old trainer is measured in the cell of the reload": (
        {"reload": (COMPLETE["reload"][0] + "\nloaded_model", ""),
         "tuned": ("new_trainer = Trainer(model=loaded_model)\n" + MEMORY[0], MEMORY[1]),
         "comparison": ("print('before', 0.51, 'LoRA', 0.89)", "before 0.51 LoRA 0.89")},
        TUNED, "not the one in memory", False),
    "the model in memory is measured by a loop": (
        {"tuned": ("for batch in loader:\n    guesses = lora_model(**batch).logits.argmax(-1)\n"
                   "    metric.add_batch(predictions=guesses)\nprint(metric.compute())", "{'accuracy': 0.89}")},
        TUNED, "not the one in memory", False),
    "a loop that trains and measures is no baseline": (
        {"untuned": None, "peft model": ("model = get_peft_model(model, config)", ""),
         "training": ("for epoch in range(2):\n    for batch in loader:\n        out = model(**batch)\n"
                      "        out.loss.backward()\n    right = [model(**batch).logits.argmax() for batch in test]\n"
                      "    print('accuracy', sum(right) / len(right))", "accuracy 0.81\naccuracy 0.84")},
        UNTUNED, "before training", False),
    "a small part of an epoch": (
        {"training": (TRAIN, "TrainOutput(global_step=2, metrics={'train_runtime': 6.0, 'epoch': 0.04})")},
        EPOCH, "an epoch or more", False),
    "another metric after than before": (
        {"tuned": (TUNED_CODE.replace("compute_metrics", "f"), "{'eval_f1': 0.89}")}, TUNED, "same metric", False),
    "nothing to compare": ({"tuned": ("x = 1", ""), "comparison": ("", "Next I would try another learning rate.")},
                           COMPARED, "side by side", False),
    "a cell not run": ({"more": ("print(1)", "", None)}, RUN, "run these cells", True),
    "a cell of text": ({"more": ("This is my conclusion.", "", None)}, RUN, "Markdown", True),
    "a cell with an error": ({"more": ("1 / 0", ZeroDivisionError)}, NO_ERROR, "correct these cells", True),
    "an interrupted training": ({"training": (TRAIN, KeyboardInterrupt)}, NO_ERROR, "correct these cells", True),
}  # fmt: skip


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_surely_wrong_is_told(name, check):
    changes, requirement, to_do, refuses = WRONG[name]
    row = check(changes)[requirement]
    assert (row.answer, row.refuses) == (MISSING, refuses)
    assert to_do in row.to_do


UNSURE = {
    "a number without a name": (
        {"metric": ("def measure(m, data):\n    return score(m(data))", ""),
         "untuned": ("measure(model, loader)", "0.5098"), "tuned": ("measure(loaded_model, loader)", "0.8098")},
        {UNTUNED: ["untuned"], TUNED: ["tuned"]}, "with its name"),
    "only the loss": ({"untuned": (COMPLETE["untuned"][0], "{'eval_loss': 0.69, 'eval_runtime': 3.1}")},
                      {UNTUNED: ["untuned"]}, "show the metric"),
    "a chart": (
        {"comparison": ("plt.bar(['base', 'LoRA'], [before, after])", {"image/png": "iV", "text/plain": "<Figure>"})},
        {COMPARED: ["comparison"]}, "side by side"),
    "an interactive chart": (
        {"comparison": ("px.bar(x=['base', 'LoRA'], y=scores)", {"application/vnd.plotly.v1+json": {"data": []}})},
        {COMPARED: ["comparison"]}, "side by side"),
    "no comparison": ({"comparison": None}, {COMPARED: ["tuned"]}, "side by side"),
    "one function for everything": (
        {"training": (
            "def main():\n    model = AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
            "    print('before', Trainer(model).evaluate())\n    lora_model = get_peft_model(model, config)\n"
            "    trainer = Trainer(lora_model)\n    trainer.train()\n    lora_model.save_pretrained('gpt-lora')\n"
            "    loaded = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')\n"
            "    print('after', Trainer(loaded).evaluate())\nmain()",
            "before {'eval_accuracy': 0.51}\nafter {'eval_accuracy': 0.89}"),
         "untuned": None, "save": None, "reload": None, "tuned": None, "comparison": None},
        {UNTUNED: ["training"]}, "before training"),
    "the adapter is switched off for the baseline": (
        {"untuned": None,
         "tuned": (TUNED_CODE + "\nwith loaded_model.disable_adapter():\n    print('base', new_trainer.evaluate())",
                   "{'eval_accuracy': 0.89}\nbase {'eval_accuracy': 0.51}")},
        {UNTUNED: ["tuned"]}, "show the metric"),
    "a copy is kept for the baseline": (
        {"untuned": ("original = copy.deepcopy(model)", ""),
         "tuned": (TUNED_CODE + "\nprint(Trainer(model=original).evaluate())", COMPLETE["tuned"][1])},
        {UNTUNED: ["untuned"]}, "load it afresh"),
    "a class for training and measuring": (
        {"metric": ("class Runner:\n    def __init__(self, model):\n"
                    "        self.trainer = Trainer(model=model, compute_metrics=compute_metrics)\n"
                    "    def fit(self):\n        self.trainer.train()\n"
                    "    def score(self):\n        return self.trainer.evaluate()", ""),
         "untuned": ("first = Runner(model)\nfirst.score()", "{'eval_accuracy': 0.51}"),
         "training": ("second = Runner(lora_model)\nsecond.fit()", ""),
         "tuned": ("Runner(loaded_model).score()", "{'eval_accuracy': 0.89}")},
        {UNTUNED: []}, "look into Runner"),
    "training that was not run": ({"training": (TRAIN, "", None)}, {EPOCH: ["training"]}, "train"),
    "training by code that is not seen": (
        {"training": ("start()", "{'train_runtime': 3.0, 'epoch': 1.0}")}, {EPOCH: ["training"]}, "train"),
    "a module beside the notebook": (
        {"imports": ("from models.fitting import fit", ""), "training": ("fit(lora_model)", "")},
        {EPOCH: []}, "look into models"),
    "a module for everything": (
        {"imports": ("from steps import load, fit, measure", ""), "model": ("model = load()", ""),
         "untuned": ("measure(model)", "accuracy 0.5"), "training": ("fit(lora_model)", ""),
         "tuned": ("measure(loaded_model)", "accuracy 0.9")},
        {CLASSIFIER: [], UNTUNED: ["untuned"], EPOCH: []}, ""),
    "training of a model from elsewhere": (
        {"imports": ("from steps import make_trainer", ""),
         "training": ("trainer = make_trainer('lora')\ntrainer.train()", "")}, {EPOCH: ["training"]}, "train"),
    "a notebook that is run": ({"training": ("%run train.ipynb", "")}, {EPOCH: []}, "look into train.ipynb"),
    "a classifier of one's own": (
        {"model": ("class Net(nn.Module):\n    def __init__(self):\n"
                   "        self.body = AutoModel.from_pretrained('bert')\nmodel = Net()", "")},
        {CLASSIFIER: ["model"]}, "AutoModelForSequence"),
    "a pipeline of the saved folder": (
        {"reload": ("pipe = pipeline('text-classification', model='gpt-lora')", ""),
         "tuned": ("print(accuracy_score(labels, [guess['label'] for guess in pipe(texts)]))", "0.9")},
        {LOADED: ["reload"], TUNED: ["tuned"]}, ""),
    "weights loaded by hand": (
        {"reload": ("fresh = get_peft_model(AutoModelForSequenceClassification.from_pretrained('gpt2'), config)\n"
                    "fresh.load_state_dict(load_file('gpt-lora/adapter_model.safetensors'), strict=False)", ""),
         "tuned": (TUNED_CODE.replace("loaded_model", "fresh"), COMPLETE["tuned"][1])},
        {LOADED: ["reload"], TUNED: ["tuned"]}, ""),
    "only some texts are classified": (
        {"tuned": ("for text in texts[:3]:\n    print(text, loaded_model(**tokenizer(text)).logits.argmax().item())",
                   "great film 1\nbad film 0"), "comparison": None},
        {TUNED: ["tuned"], COMPARED: ["tuned"]}, ""),
    "cells that Python 3.11 cannot read": (
        {name: (f"t = Trainer(model={model})\nprint(f'accuracy {{t.evaluate()['eval_accuracy']}}')",
                f"accuracy {shown}")
         for name, model, shown in (("untuned", "model", 0.5), ("tuned", "loaded_model", 0.9))},
        {}, ""),
    "a script": ({"training": ("!python train.py", "")}, {EPOCH: []}, "look into train.py"),
    "the Trainer's own checkpoint": (
        {"save": ("x = 1", ""),
         "reload": ("loaded_model = AutoPeftModelForSequenceClassification.from_pretrained('out/checkpoint-50')", "")},
        {SAVED: ["reload"]}, "save_pretrained"),
    "a classifier from the adapter's folder": (
        {"reload": ("loaded_model = AutoModelForSequenceClassification.from_pretrained('gpt-lora')", "")},
        {LOADED: ["reload"], TUNED: ["tuned"]}, ""),
    "a language model's class for a classifier": (
        {"reload": ("loaded_model = AutoPeftModelForCausalLM.from_pretrained('gpt-lora')", "")},
        {LOADED: ["reload"]}, "AutoPeftModelForSequenceClassification"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSURE)
def test_what_could_not_be_told_is_said_with_the_cells_to_look_at(name, check):
    changes, expected, to_do = UNSURE[name]
    rows = check(changes)
    for requirement, cells in expected.items():
        row, numbers = rows[requirement], sorted(number_of(cell, changes) for cell in cells)
        assert (row.answer, row.cells, row.refuses) == (UNCLEAR, numbers, False)
        assert to_do in row.to_do
    assert not [row for name, row in rows.items() if name in REQUIRED and row.answer == MISSING and name != RUN]


COMPARISONS = [
    ("", "## Conclusion\nWith LoRA the model does better than the original.\n\nI am done."),
    ("", "The PEFT model outperforms the foundation model."),
    ("", "Accuracy improved by 38 % over the foundation model."),
    ("", "Accuracy rose from 0.51 to 0.89."),
    ("", "We saw the F1 score go from 51 % to 89 %."),
    ("", "After fine-tuning, the accuracy is much higher."),
    ("", "Compared to before, the predictions have improved."),
    ("", "The base model had an accuracy of 51%, whereas the fine-tuned model has 89%."),
    ("", "| Model | Accuracy |\n|---|---|\n| Pre-trained | 0.51 |\n| PEFT | 0.89 |"),
    ("", "| Metric | Before | After |\n|---|---|---|\n| Accuracy | 51% | 89% |"),
    ("", "Accuracy:\n- Original: 51%\n- Fine-tuned: 89%"),
    ("", "F1 of the zero-shot model: .51. F1 with adapters: .89"),
    ("print('Improvement in accuracy:', 0.38)", "Improvement in accuracy: 0.38"),
    ("print('Before', before)\nprint('After', after)", "Before {'eval_accuracy': 0.5}\nAfter {'eval_accuracy': 0.9}"),
    ("print(f'Accuracy: {base_accuracy} {lora_accuracy}')", "Accuracy: 0.51 0.89"),
    ("pd.DataFrame(rows)", {"text/html": "<table><tr><th></th><th>untuned</th><th>tuned</th></tr><tr><th>accuracy</th>"
                                         "<td>0.51</td><td>0.89</td></tr></table>"}),
]  # fmt: skip
NO_COMPARISONS = [
    ("", "Next I would try a different learning rate: accuracy could improve by 5 %."),
    ("", "TODO: be sure to compare the results to the results from prior to fine-tuning."),
    ("", "The PEFT model is saved; adapters are small files of the base model."),
    ("", "LoRA adds 0.24% of the parameters to the original model."),
    ("", "The rank was 4, then 8."),
    ("print('accuracy', 0.89, 'f1', 0.88)", "accuracy 0.89 f1 0.88"),
    ("print('before LoRA fine-tuning')", "before LoRA fine-tuning"),
]


@pytest.mark.parametrize("cell", COMPARISONS, ids=[str(shown)[:40] for _, shown in COMPARISONS])
def test_comparisons_as_people_write_them(cell, check):
    assert check({"comparison": cell})[COMPARED].answer == FOUND


@pytest.mark.parametrize("cell", NO_COMPARISONS, ids=[str(shown)[:40] for _, shown in NO_COMPARISONS])
def test_what_is_no_comparison(cell, check):
    assert check({"comparison": cell})[COMPARED].answer == UNCLEAR


def test_a_comparison_that_was_announced_before_training_is_none(check):
    heading = ("", "Fine-tuning will make the accuracy better than that of the base model. It is better than the base.")
    assert check({"title": heading, "comparison": None})[COMPARED].answer == UNCLEAR


@pytest.mark.parametrize(
    ("imports", "answer"),
    [
        ("import steps", UNCLEAR),
        ("from steps.models import load", UNCLEAR),
        ("from .steps import load", UNCLEAR),
        ("import pluggy", UNCLEAR),  # though it is installed here
        ("import json, wandb\nfrom sklearn.metrics import accuracy_score", MISSING),
        ('"""Loaded\nfrom the Hub"""\nx = 1', MISSING),
    ],
)
def test_modules_of_ones_own_may_have_what_is_missing(imports, answer, check):
    row = check({"imports": (imports, ""), "training": ("x = 1", "")})[EPOCH]
    assert (row.answer, row.refuses) == (answer, answer == MISSING)


def test_cells_are_numbered_from_one(check):
    rows = check()
    for requirement, cell in ((CLASSIFIER, "model"), (UNTUNED, "untuned"), (PEFT, "peft model"), (TUNED, "tuned")):
        assert rows[requirement].cells == [number_of(cell)]


def test_a_language_model_is_told_once(check):
    rows = check({
        "model": ("model = AutoModelForCausalLM.from_pretrained('gpt2')", ""),
        "reload": ("loaded_model = AutoPeftModelForCausalLM.from_pretrained('gpt-lora')", ""),
    })  # fmt: skip
    assert [name for name in REQUIRED if rows[name].answer != FOUND] == [CLASSIFIER]


def test_the_class_of_a_language_model_may_load_a_classifier(tmp_path, check):
    make_adapter(tmp_path / "gpt-lora", auto_mapping={"base_model_class": "GPT2ForSequenceClassification"})
    reload = ("loaded_model = AutoPeftModelForCausalLM.from_pretrained('gpt-lora')", "")
    assert check({"reload": reload})[LOADED].answer == FOUND


@pytest.mark.parametrize(
    ("changes", "requirement", "answer"),
    [
        ({"more": ("m = AutoModel.from_pretrained('x', load_in_8bit=True)", "")}, QLORA, FOUND),
        ({"more": ("m = AutoModel.from_pretrained('x', load_in_8bit=False)", "")}, QLORA, MISSING),
        (
            {"configuration": ("config = LoraConfig(task_type='SEQ_CLS', loftq_config=LoftQConfig())", "")},
            SEVERAL,
            MISSING,
        ),
        ({"more": ("other = IA3Config(task_type='SEQ_CLS')", "")}, SEVERAL, FOUND),
        ({"more": ("configs = [LoraConfig(r=r) for r in (4, 8)]", "")}, SEVERAL, FOUND),
    ],
)
def test_ways_to_stand_out(changes, requirement, answer, check):
    row = check(changes)[requirement]
    assert (row.answer, row.refuses) == (answer, False)
    assert row.to_do.startswith("optional" if answer == MISSING else "")


def test_counts_that_were_stripped_do_not_mean_that_nothing_was_run(tmp_path, adapter):
    rows = check_submission(write_notebook(tmp_path / "n.ipynb", counts=False), adapter)
    assert [row.requirement for row in rows if row.answer != FOUND] == [SEVERAL, QLORA]


@pytest.mark.reliability("bad input")
def test_a_notebook_that_was_never_run(check):
    rows = check({name: (source, "", None) for name, (source, _) in COMPLETE.items() if source})
    assert rows[RUN].refuses
    assert rows[UNTUNED].answer == UNCLEAR


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("text", ["", "[]", "{}", "\0", '{"cells": [1]}', '{"cells": [{}]}'])
def test_a_file_that_is_no_notebook(text, tmp_path, adapter):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"n.ipynb' is not a valid notebook \(.*Save it again"):
        check_submission(tmp_path / "n.ipynb", adapter)


@pytest.mark.reliability("bad input")
def test_a_notebook_that_does_not_exist(tmp_path, adapter):
    with pytest.raises(FileNotFoundError, match=r"n.ipynb"):
        check_submission(tmp_path / "n.ipynb", adapter)


ODD = [
    "def f(:",
    "print 'old'",
    "a = '\0'",
    "-" * 5000 + "1",
    "1" + "+1" * 2000,
    "%%",
    "?",
    "!",
    "%",
    "f = f'{a!r:>{b}}'",
    "print('%d'\n    %(1 != 2))\n# shown as dict\n# dict as accuracy",
    "...",
]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("source", ODD)
def test_no_code_is_too_odd_to_read(source, check):
    assert not [row for row in check({"more": (source, "1")}).values() if row.refuses]


LONG = [
    "accuracy " * 200_000,
    "0" * 1_000_000,
    "<style" * 90_000,
    "<" * 1_000_000,
    "[1/" * 300_000,
    "before 1 " * 100_000,
]


@pytest.mark.slow
@pytest.mark.parametrize("long", LONG, ids=[text[:9].strip() for text in LONG])
def test_long_outputs_are_read_in_time(long, check):
    start = time.monotonic()
    assert check({"more": ("x = 1", long)})[UNTUNED].answer == FOUND
    assert time.monotonic() - start < 10


def without_config(adapter):
    (adapter / "adapter_config.json").unlink()


def broken_config(adapter):
    (adapter / "adapter_config.json").write_text('{"peft_type": ')


def without_weights(adapter):
    (adapter / "adapter_model.safetensors").unlink()


def truncated_weights(adapter):
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def whole_model(adapter):
    without_config(adapter)
    without_weights(adapter)
    (adapter / "model.safetensors").touch()


def no_folder(adapter):
    for path in adapter.iterdir():
        path.unlink()
    adapter.rmdir()


def broken_checkpoints(adapter):
    no_folder(adapter)
    without_weights(make_adapter(adapter / "checkpoint-500"))


HAS_ADAPTER = "the folder has the adapter's configuration and its weights"
HAS_HEAD = "it has the trained head"
FOLDERS = [
    (without_config, HAS_ADAPTER, "gpt-lora has README.md, adapter_model.safetensors"),
    (broken_config, HAS_ADAPTER, "save_pretrained of the PEFT model"),
    (without_weights, HAS_ADAPTER, "gpt-lora has README.md, adapter_config.json"),
    (truncated_weights, HAS_ADAPTER, "save_pretrained of the PEFT model"),
    (whole_model, HAS_ADAPTER, "gpt-lora has README.md, model.safetensors"),
    (no_folder, HAS_ADAPTER, "gpt-lora has nothing"),
    (broken_checkpoints, HAS_ADAPTER, "gpt-lora has checkpoint-500"),
]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(("spoil", "requirement", "to_do"), FOLDERS, ids=[case[0].__name__ for case in FOLDERS])
def test_a_folder_without_an_adapter_refuses_the_zip(spoil, requirement, to_do, check, adapter):
    spoil(adapter)
    row = check()[requirement]
    assert (row.answer, row.refuses) == (MISSING, True)
    assert to_do in row.to_do


@pytest.mark.parametrize("place", ["models/gpt-lora", "../elsewhere/gpt-lora"])
def test_a_folder_elsewhere_is_accepted_with_advice(place, tmp_path):
    adapter = make_adapter(tmp_path / "project" / place)
    (tmp_path / "project").mkdir(exist_ok=True)
    notebook = write_notebook(tmp_path / "project" / "n.ipynb")
    row = next(row for row in check_submission(notebook, adapter) if row.requirement == HAS_ADAPTER)
    assert (row.answer, row.refuses) == (FOUND, False)
    assert row.to_do == f"copy {adapter} beside the notebook"


def test_an_adapter_within_the_folder_is_found(check, adapter):
    no_folder(adapter)
    make_adapter(adapter / "default")
    os.utime(make_adapter(adapter / "runs" / "old") / "adapter_model.safetensors", (0, 0))
    row = check()[HAS_ADAPTER]
    assert (row.answer, row.to_do) == (FOUND, f"copy {adapter / 'default'} beside the notebook")


def test_a_pickle_of_an_old_peft_is_accepted_with_advice(check, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    row = check()[HAS_ADAPTER]
    assert (row.answer, row.to_do) == (FOUND, "save it as safetensors, with a newer peft")


def test_a_checkpoint_is_recognised(check, adapter):
    (adapter / "trainer_state.json").touch()
    assert "this is a checkpoint" in check()[HAS_ADAPTER].to_do
    no_folder(adapter)
    (make_adapter(adapter / "checkpoint-500") / "trainer_state.json").touch()
    assert "this is a checkpoint" in check()[HAS_ADAPTER].to_do


@pytest.mark.reliability("bad input")
def test_a_configuration_without_task_type_leaves_out_the_head(check, adapter):
    make_adapter(adapter, task_type=None)
    row = check()[HAS_HEAD]
    assert (row.answer, row.refuses) == (MISSING, False)
    assert "add task_type='SEQ_CLS'" in row.to_do
    make_adapter(adapter, task_type=None, modules_to_save=["score"])
    assert check()[HAS_HEAD].answer == FOUND


def test_what_to_do_first_is_shown_first(tmp_path, adapter):
    notebook = write_notebook(tmp_path / "n.ipynb", {"training": ("x = 1", ""), "comparison": None})
    lines = repr(check_submission(notebook, adapter)).splitlines()
    assert lines[0].startswith(f"missing            {EPOCH}: train the PEFT model")
    assert all(line.startswith(FOUND) for line in lines[-12:])
    assert f"{FOUND:<17}  {CLASSIFIER}, cell {number_of('model')}" in lines


def test_our_notebook_is_complete(tmp_path):
    adapter = make_adapter(tmp_path / "lora_adapter")
    assert {row.answer for row in check_submission("LightweightFineTuning.ipynb", adapter)} == {FOUND}


def test_no_large_library_is_imported():
    script = (
        "import sys, peft_helpers\npeft_helpers.check_submission, peft_helpers.package_submission\n"
        "from peft_helpers.app.command_line import main\nmain(['check'])\n"
        "sys.exit(str({'torch', 'transformers', 'peft', 'datasets', 'pandas', 'nbformat', 'IPython'} & {*sys.modules}))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.stderr.strip() == "set()"
