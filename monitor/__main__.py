# SPDX-License-Identifier: Apache-2.0
"""`python -m monitor`, and the file that a client runs in isolated mode to start one (sdlib/wire/spawn.py)."""

import os
import sys

if __package__ in (None, ""):  # run as a file: the project may not be on the (isolated) path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from monitor.cli import main

if __name__ == "__main__":
    sys.exit(main())
