"""The notebook's path, as a process that `test_distributed.py` starts, kills and starts again.

The configuration comes from LFT_ARGS. With a number as argument, the process kills itself as that step begins.
"""

import json
import os
import signal
import sys

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

import peft_helpers as helpers
from peft_helpers import distributed


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    helpers.keep_output_clean()
    args = helpers.parse_arguments()
    if len(sys.argv) > 1:
        DEFAULT_CALLBACKS.append(Kill)
    result = helpers.run(helpers.load_splits(args), args)
    found = {"metrics": helpers.compute_metrics(result.tuned), "log_history": result.log_history}
    found |= {"processes": distributed.process_state().num_processes}
    found |= {"logits": result.tuned.predictions.tolist(), "label_ids": result.tuned.label_ids.tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
