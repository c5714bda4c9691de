"""The notebook's steps in short, as a process that `test_processes.py` starts, kills and starts again.

The configuration comes from LFT_ARGS. With a number as argument, the process kills itself as that step begins.
"""

import json
import os
import signal
import sys

from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, TrainerCallback

import peft_helpers as helpers
from peft_helpers import processes


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    processes.start_processes()
    config = helpers.parse_run_config()
    helpers.check_output_dir(config)
    with processes.main_process_first():
        dataset = helpers.prepare_splits(helpers.load_bbc_news(), config)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    model = helpers.load_base_model(config, dataset["train"].features["label"].names, tokenizer)
    tokenized = helpers.tokenize_dataset(dataset, tokenizer, config.max_length)
    lora = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=config.target_modules,
        modules_to_save=helpers.head_modules(model),
        lora_dropout=config.lora_dropout,
        fan_in_fan_out=True,
    )
    peft_model = get_peft_model(model, lora)
    trainer = helpers.make_trainer(peft_model, tokenizer, tokenized, config)
    if len(sys.argv) > 1:
        trainer.add_callback(Kill())
    with helpers.guard_training(trainer) as checkpoint:
        trainer.train(resume_from_checkpoint=checkpoint)
    tuned = helpers.predict(peft_model, tokenizer, tokenized["test"], config)
    helpers.sort_target_modules(peft_model)
    with helpers.replace_folder(config.output_dir) as folder:
        peft_model.save_pretrained(folder)
    result = {"metrics": helpers.compute_metrics(tuned), "log_history": trainer.state.log_history}
    result |= {"processes": trainer.args.world_size, "logits": tuned.predictions.tolist()}
    print(json.dumps(result | {"label_ids": tuned.label_ids.tolist()}))


if __name__ == "__main__":
    main()
