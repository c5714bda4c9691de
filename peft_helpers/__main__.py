"""``python -m peft_helpers``: see `command_line`."""

import gc
import os
import sys

from peft_helpers.app.command_line import main

os.environ.setdefault("MPLBACKEND", "agg")  # figures are written, not shown
status = main()
gc.freeze()  # else Python looks through all that the large libraries hold, for a second, before it ends
sys.exit(status)
