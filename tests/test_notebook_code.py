import ast
import time
import warnings

import pytest

from peft_helpers.notebook_code import FOUNDATION, RELOADED, RESULTS, CodeReader, parse_cell

UNTUNED, TUNED = RESULTS[FOUNDATION], RESULTS[RELOADED]
START = """
from transformers import AutoModelForSequenceClassification, Trainer
model = AutoModelForSequenceClassification.from_pretrained("gpt2")
"""
TRAINED = f"""{START}
trainer = Trainer(model=model)
trainer.train()
model.save_pretrained("adapter")
"""
LOADED = f"""{TRAINED}
from peft import AutoPeftModelForSequenceClassification, PeftModel
loaded = AutoPeftModelForSequenceClassification.from_pretrained("adapter")
"""


def read(*cells) -> tuple[CodeReader, set[str]]:
    """Return the reader of some cells and the results that the last one makes or uses."""
    reader = CodeReader()
    return reader, [reader.read_cell(number, source) for number, source in enumerate(cells, 1)][-1]


def kinds(*cells) -> list[str]:
    return [step.kind for step in read(*cells)[0].steps]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import transformers as t\nt.AutoModelForSequenceClassification.from_pretrained('gpt2')", "classifier"),
        (
            "from transformers import GPT2ForSequenceClassification as Model\nModel.from_pretrained('gpt2')",
            "classifier",
        ),
        ("from peft import get_peft_model as wrap\nwrap(model, config)", "peft model"),
        ("import datasets\nload = datasets.load_dataset\nload('imdb')", "dataset"),
        ("import peft\npeft.IA3Config(task_type='SEQ_CLS')", "configuration"),
        ("%%time\ntrainer.train()", "training"),
        ("%time trainer.train()", "training"),
        ("!pip install peft\ntrainer.train()", "training"),
        ("with guard(trainer) as checkpoint:\n    trainer.train(resume_from_checkpoint=checkpoint)", "training"),
        ("def fit(model):\n    loss(model).backward()\nfit(None)", "training"),
        ("await load_dataset('imdb')", "dataset"),
        ("import lightning as L\nL.Trainer(max_epochs=1).fit(model)", "training"),
    ],
)
def test_steps_are_found_under_any_name(source, kind):
    assert kind in kinds(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.train()",
        "def fit(model):\n    loss(model).backward()",
        "%%bash\ntrainer.train()",
        "%%writefile train.py\ntrainer.train()",
        "# trainer.train()",
        "'trainer.train()'",
        "build_model().train()",
        "from datasets import load_dataset as load\nload = None\nload('imdb')",
        "peft.PeftConfig.from_pretrained('x')",
        "AutoModelForCausalLM.from_pretrained('gpt2')",
    ],
)
def test_what_is_no_step(source):
    assert kinds(source) == []


def test_what_is_saved_and_loaded_before_training_is_something_else():
    assert "save" not in kinds(START, "model.save_pretrained('x')")
    assert "reload" not in kinds(START, "peft.PeftModel.from_pretrained(model, 'x')")


def test_only_the_model_is_an_adapter():
    source = "tokenizer.save_pretrained('x')\nmodel.config.save_pretrained('x')\nimage_processor.save_pretrained('x')"
    assert kinds(TRAINED, source) == kinds(TRAINED)


def test_folders_are_followed_through_variables():
    reader, _ = read(TRAINED, "out = './other/'\nmodel.save_pretrained(out)\nmodel.save_pretrained(save_directory=a.b)")
    assert [step.folder for step in reader.steps if step.kind == "save"] == ["adapter", "other", "<a.b>"]


def test_the_folder_is_the_second_argument_where_the_first_is_the_model():
    reader, _ = read(TRAINED, "peft.PeftModel.from_pretrained(base, 'adapter/')")
    assert [step.folder for step in reader.steps if step.kind == "reload"] == ["adapter"]


def test_a_classifier_from_the_adapters_folder_is_a_reload():
    assert kinds(TRAINED, "AutoModelForSequenceClassification.from_pretrained('./adapter')")[-1] == "reload"
    assert kinds(TRAINED, "AutoModelForSequenceClassification.from_pretrained('gpt2')")[-1] == "classifier"


@pytest.mark.parametrize(
    "source",
    [
        "print(Trainer(model=loaded).evaluate())",
        "t = Trainer(loaded)\nr = t.evaluate()",
        "trainer.model = loaded\ntrainer.evaluate()",
        "with torch.no_grad():\n    for batch in loader:\n        logits = loaded(**batch).logits",
        "model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained('gpt2'), 'adapter')\n"
        "print([model(**batch).logits for batch in loader])",
        "def measure(model, rows):\n    return Trainer(model=model).evaluate(rows)\nmeasure(loaded, rows)",
        "def measure():\n    return model(**batch)\nmodel = loaded\nmeasure()",
        "def measure(rows, model):\n    return Trainer(model).evaluate(rows)\nmeasure(model=loaded, rows=rows)",
        "def measure(m):\n    measure(m)\n    return m(**batch)\nmeasure(loaded)",
        "def classifier():\n    return 0\nclassifier = loaded\nclassifier(**batch)",
        "from helpers import *\nclass Old:\n    def predict(self, m):\n        return 0\npredict(loaded)",
        "[m(**batch) for m in (loaded,)]",
        "print(Trainer(loaded).model(**batch))",
        "def answer(row):\n    return loaded(**row)\ndataset.map(answer)",
        "base = AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
        "base.load_adapter('adapter')\nbase(**batch)",
        "pipe = pipeline('text-classification', model=loaded.to('cpu').eval())\npipe(texts)",
        "import peft_helpers as h\nh.predict(loaded, tokenizer, rows, config)",
        "metric.add_batch(predictions=loaded(**batch).logits)\nmetric.compute()",
    ],
)
def test_the_reloaded_model_is_followed_to_its_results(source):
    assert read(LOADED, source)[1] == {TUNED}


@pytest.mark.parametrize(
    "source",
    [
        "trainer.evaluate()",
        "model.eval()\nprint(trainer.evaluate())",
        "loaded.eval()\nprint(trainer.evaluate())",
        "model = loaded\ntrainer.evaluate()",
        "def measure(which):\n    return trainer.evaluate()\nmeasure(loaded)",
        "other = Trainer(model=loaded)\nother = trainer\nother.evaluate()",
        "def measure(model=None):\n    return Trainer(model).evaluate()\nmodel = loaded\nmeasure()",
        "loaded.print_trainable_parameters()",
    ],
)
def test_the_model_in_memory_is_not_taken_for_the_reloaded_one(source):
    assert read(LOADED, source)[1] == set()


def test_results_are_followed_to_the_cells_that_show_them():
    before = "untuned = trainer.evaluate()\ntrainer.train()\nmodel.save_pretrained('adapter')"
    after = (
        "loaded = AutoPeftModelForSequenceClassification.from_pretrained('adapter')\ntuned = Trainer(loaded).predict(x)"
    )
    shown = "table = {'before': untuned}\ntable['after'] = tuned\npd.DataFrame(table)"
    assert read(START, "trainer = Trainer(model)", before, after, shown)[1] == {UNTUNED, TUNED}


@pytest.mark.parametrize(
    "source",
    [
        "result = loaded(**batch)\nresult += 1",
        "result = loaded(**batch)\nif rows is None:\n    result = None",
        "result = loaded(**batch)\ntry:\n    show(1)\nexcept Exception:\n    result = None",
        "result = {'loaded': loaded(**batch)}\nresult['rows'] = 3",
        "(result, n), *rest = loaded(**batch), 3, 4",
    ],
)
def test_a_result_is_kept_where_it_may_be(source):
    assert read(LOADED, source, "print(result)")[1] == {TUNED}


@pytest.mark.parametrize(
    "source", ["result = loaded(**batch)\nresult = 1", "import result\nresult.append(loaded(**b))"]
)
def test_a_result_is_not_kept_where_it_cannot_be(source):
    assert read(LOADED, source, "print(result.mean(3))")[1] == set()


def test_a_trained_model_is_no_longer_untuned():
    assert read(START, "Trainer(model).evaluate()")[1] == {UNTUNED}
    assert read(TRAINED, "trainer.evaluate()")[1] == set()
    assert read(START, "for batch in loader:\n    loss = model(**batch).loss\n    loss.backward()\nloss")[1] == set()
    assert read(START, "def fit(m):\n    Trainer(m).train()\nfit(model)", "Trainer(model).evaluate()")[1] == set()
    again = "base = AutoModelForSequenceClassification.from_pretrained('gpt2')\nTrainer(base).evaluate()"
    assert read(TRAINED, again)[1] == {UNTUNED}


def test_a_foundation_model_that_took_the_adapter_is_no_longer_untuned():
    source = (
        "base = AutoModelForSequenceClassification.from_pretrained('gpt2')\nPeftModel.from_pretrained(base, 'adapter')"
    )
    assert read(LOADED, source, "base(**batch)")[1] == set()


def test_configurations_made_in_a_loop_are_repeated():
    for source in ("for r in (4, 8):\n    LoraConfig(r=r)", "[LoraConfig(r=r) for r in (4, 8)]"):
        assert [step.repeated for step in read(source)[0].steps] == [True]
    assert [step.repeated for step in read("LoraConfig(r=8)")[0].steps] == [False]


@pytest.mark.parametrize(
    "source",
    [
        "def f(:",
        "print 'old'",
        "a = '\0'",
        "-" * 5000 + "1",
        "1" + "+1" * 2000,
        "def f():\n    f()\nf()",
        "",
        "%%",
        "?",
        "%",
        "!",
    ],
)
def test_no_code_is_too_odd_to_read(source):
    assert read(source)[1] == set()


def test_functions_that_call_each_other_end_in_time():
    many = "\n".join(f"def f{n}():\n    " + "; ".join([f"f{n + 1}()"] * 15) for n in range(9))
    start = time.monotonic()
    assert read(f"{many}\nf0()")[1] == set()
    assert time.monotonic() - start < 5


def test_odd_escapes_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kinds(r"pattern = '\d'", "load_dataset('imdb')") == ["dataset"]
        assert kinds(r"pattern = '\d'; load_dataset('imdb')") == ["dataset"]


def test_magics_are_left_out():
    assert isinstance(parse_cell("%matplotlib inline\nx = 1").body[-1], ast.Assign)
    assert parse_cell("%%capture\n").body == []


@pytest.mark.parametrize("name", ["model", "language_model"])
def test_a_language_model_is_no_step_of_the_hand_in(name):
    language_model = f"""
from transformers import AutoModelForCausalLM
from peft import AutoPeftModelForCausalLM, get_peft_model
{name} = AutoModelForCausalLM.from_pretrained("gpt2")
{name} = get_peft_model({name}, lora)
lm_trainer = Trainer(model={name})
lm_trainer.train()
{name}.save_pretrained("language_adapter")
lm_loaded = AutoPeftModelForCausalLM.from_pretrained("language_adapter")
lm_loaded.generate(input_ids=ids)
"""
    assert kinds(START, language_model) == kinds(START)
    assert kinds(LOADED, language_model) == kinds(LOADED)
    reader, _ = read(START, language_model, TRAINED.removeprefix(START))
    assert [step.folder for step in reader.steps if step.kind == "save"] == (["adapter"] if name != "model" else [])
    assert read(LOADED, language_model, "loaded.evaluate()")[1] == {TUNED}
