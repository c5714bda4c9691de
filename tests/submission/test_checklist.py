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
ORDER = "the cells were run from top to bottom"
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
    ORDER,
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
    "a class for training and measuring": {
        "metric": ("class Runner:\n    def __init__(self, model):\n"
                   "        self.trainer = Trainer(model=model, compute_metrics=compute_metrics)\n"
                   "    def fit(self):\n        self.trainer.train()\n"
                   "    def score(self):\n        return self.trainer.evaluate()", ""),
        "untuned": ("first = Runner(model)\nfirst.score()", "{'eval_accuracy': 0.51}"),
        "training": ("second = Runner(lora_model)\nsecond.fit()", ""),
        "tuned": ("Runner(loaded_model).score()", "{'eval_accuracy': 0.89}"),
    },
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
    "comparison in words, the other way round": {
        "comparison": ("", "## Conclusion\nWith LoRA the model does better than the original.\n\nI am done."),
    },
    "improved by": {"comparison": ("", "Accuracy improved by 38 % over the foundation model.")},
    "a table in Markdown": {
        "comparison": ("", "| Model | Accuracy |\n|---|---|\n| Pre-trained | 0.51 |\n| PEFT | 0.89 |"),
    },
    "a list in Markdown": {"comparison": ("", "Accuracy:\n- Original: 51%\n- Fine-tuned: 89%")},
    "the difference is printed": {
        "comparison": ("print('Improvement in accuracy:', 0.38)", "Improvement in accuracy: 0.38"),
    },
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
    "another metric after than before": (
        {"tuned": (TUNED_CODE.replace("compute_metrics", "f"), "{'eval_f1': 0.89}")}, TUNED, "same metric", False),
    "nothing to compare": ({"tuned": ("x = 1", ""), "comparison": ("", "Next I would try another learning rate.")},
                           COMPARED, "side by side", False),
    "a cell not run": ({"more": ("print(1)", "", None)}, RUN, "run these cells", True),
    "a cell of text": ({"more": ("This is my conclusion.", "", None)}, RUN, "Markdown", True),
    "a cell with an error": ({"more": ("1 / 0", ZeroDivisionError)}, NO_ERROR, "correct these cells", True),
    "an interrupted training": ({"training": (TRAIN, KeyboardInterrupt)}, NO_ERROR, "correct these cells", True),
    "not in order": ({"data": (COMPLETE["data"][0], "", 40)}, ORDER, "run all", False),
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
    "plans only": ({"comparison": ("", "Next I would try a different learning rate: accuracy could improve by 5 %.")},
                   {COMPARED: ["untuned", "tuned"]}, "say which is better"),
    "no comparison": ({"comparison": None}, {COMPARED: ["untuned", "tuned"]}, "side by side"),
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
    "training that was not run": ({"training": (TRAIN, "", None)}, {EPOCH: ["training"]}, "train"),
    "training by code that is not seen": (
        {"training": ("start()", "{'train_runtime': 3.0, 'epoch': 1.0}")}, {EPOCH: ["training"]}, "train"),
    "a module beside the notebook": (
        {"imports": ("from my_utils import fit", ""), "training": ("fit(lora_model)", "")}, {EPOCH: []}, "my_utils"),
    "a script": ({"training": ("!python train.py", "")}, {EPOCH: []}, "look into train.py"),
    "the Trainer's own checkpoint": (
        {"save": ("x = 1", ""),
         "reload": ("loaded_model = AutoPeftModelForSequenceClassification.from_pretrained('out/checkpoint-50')", "")},
        {SAVED: ["reload"]}, "save_pretrained"),
    "a classifier from the adapter's folder": (
        {"reload": ("loaded_model = AutoModelForSequenceClassification.from_pretrained('gpt-lora')", "")},
        {LOADED: ["reload"]}, "AutoPeftModel"),
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


def test_a_running_notebook_is_judged_by_code_and_adapter_only(tmp_path, adapter):
    notebook = write_notebook(tmp_path / "n.ipynb", {"more": ("1 / 0", ZeroDivisionError, 1)}, counts=False)
    os.utime(notebook, (0, 0))
    rows = {row.requirement: row for row in check_submission(notebook, adapter, outputs=False)}
    assert not {UNTUNED, TUNED, COMPARED, RUN, ORDER, NO_ERROR} & set(rows)  # the file does not tell of this run
    assert [name for name, row in rows.items() if row.answer != FOUND] == [SEVERAL, QLORA]
    notebook = write_notebook(tmp_path / "n.ipynb", {"reload": ("x = 1", "")}, counts=False)
    rows = {row.requirement: row for row in check_submission(notebook, adapter, outputs=False)}
    assert (rows[LOADED].answer, rows[LOADED].refuses) == (MISSING, True)


def test_counts_that_were_stripped_do_not_mean_that_nothing_was_run(tmp_path, adapter):
    rows = check_submission(write_notebook(tmp_path / "n.ipynb", counts=False), adapter)
    assert [row.requirement for row in rows if row.answer != FOUND] == [SEVERAL, QLORA, ORDER]
    (order,) = [row for row in rows if row.requirement == ORDER]
    assert order.answer == UNCLEAR


def test_the_cell_that_checks_need_not_have_been_run(check):
    rows = check({"check": ("import peft_helpers as h\nh.check_submission('n.ipynb', 'gpt-lora')", ValueError, None)})
    assert not [row for row in rows.values() if row.refuses]


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


def only_checkpoints(adapter):
    no_folder(adapter)
    make_adapter(adapter / "checkpoint-500")


HAS_ADAPTER = "the folder has the adapter's configuration and its weights"
HAS_HEAD = "it has the trained head"
FOLDERS = [
    (without_config, HAS_ADAPTER, "gpt-lora has README.md, adapter_model.safetensors"),
    (broken_config, HAS_ADAPTER, "save_pretrained of the PEFT model"),
    (without_weights, HAS_ADAPTER, "gpt-lora has README.md, adapter_config.json"),
    (truncated_weights, HAS_ADAPTER, "save_pretrained of the PEFT model"),
    (whole_model, HAS_ADAPTER, "gpt-lora has README.md, model.safetensors"),
    (no_folder, HAS_ADAPTER, "gpt-lora has nothing"),
    (only_checkpoints, HAS_ADAPTER, "gpt-lora has checkpoint-500"),
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
    assert row.to_do == f"copy {adapter} beside n.ipynb"


def test_a_pickle_of_an_old_peft_is_accepted_with_advice(check, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    row = check()[HAS_ADAPTER]
    assert (row.answer, row.to_do) == (FOUND, "save it as safetensors, with a newer peft")


def test_a_checkpoint_is_recognised(check, adapter):
    (adapter / "trainer_state.json").touch()
    assert "this is a checkpoint" in check()[HAS_ADAPTER].to_do


@pytest.mark.reliability("bad input")
def test_a_configuration_without_task_type_leaves_out_the_head(check, adapter):
    make_adapter(adapter, task_type=None)
    row = check()[HAS_HEAD]
    assert (row.answer, row.refuses) == (MISSING, False)
    assert "add task_type='SEQ_CLS'" in row.to_do
    make_adapter(adapter, task_type=None, modules_to_save=["score"])
    assert check()[HAS_HEAD].answer == FOUND


def test_a_notebook_that_is_older_than_its_adapter(tmp_path, adapter):
    notebook = write_notebook(tmp_path / "n.ipynb")
    time_of_adapter = (adapter / "adapter_model.safetensors").stat().st_mtime
    os.utime(notebook, (time_of_adapter - 60, time_of_adapter - 60))
    (row,) = [
        row for row in check_submission(notebook, adapter) if row.requirement.startswith("the notebook was saved")
    ]
    assert (row.answer, row.refuses) == (UNCLEAR, False)
    assert "save it (Ctrl-S)" in row.to_do


def test_what_to_do_first_is_shown_first(tmp_path, adapter):
    notebook = write_notebook(tmp_path / "n.ipynb", {"training": ("x = 1", ""), "comparison": None})
    lines = repr(check_submission(notebook, adapter)).splitlines()
    assert lines[0].startswith(f"missing            {EPOCH}: train the PEFT model")
    assert all(line.startswith(FOUND) for line in lines[-12:])
    assert f"{FOUND:<17}  {CLASSIFIER}, cell {number_of('model')}" in lines


def test_our_notebook_is_complete(tmp_path):
    adapter = make_adapter(tmp_path / "lora_adapter")
    assert not [row for row in check_submission("LightweightFineTuning.ipynb", adapter) if row.answer == MISSING]
    assert {row.answer for row in check_submission("LightweightFineTuning.ipynb", adapter, outputs=False)} == {FOUND}


def test_no_large_library_is_imported():
    script = (
        "import sys, peft_helpers\npeft_helpers.check_submission, peft_helpers.package_submission\n"
        "from peft_helpers.app.command_line import main\nmain(['check'])\n"
        "sys.exit(str({'torch', 'transformers', 'peft', 'datasets', 'pandas', 'nbformat', 'IPython'} & {*sys.modules}))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.stderr.strip() == "set()"
