"""``python -m peft_helpers``: see `command_line`."""

import os
import sys

from peft_helpers.app.command_line import main

os.environ.setdefault("MPLBACKEND", "agg")  # figures are written, not shown
sys.exit(main())
