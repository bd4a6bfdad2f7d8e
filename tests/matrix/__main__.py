# SPDX-License-Identifier: Apache-2.0
"""Print the whole matrix, and write its page: see the package."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.harness import ROOT, Mode, Runner, end_monitor
from tests.matrix import cells, table


def main() -> int:
    """Exit status: are all cells right?"""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {table.PAGE}")
    parser.add_argument("--column", choices=cells.COLUMNS, action="append", help="only these")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="sdmatrix-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SD_", "XDG_"))}
        env |= {"XDG_RUNTIME_DIR": name, "XDG_CONFIG_HOME": f"{name}/config", "LC_ALL": "C.UTF-8"}
        programs = cells.Programs(folder)
        for column in options.column or cells.COLUMNS:
            for state in cells.STATES:
                place = folder / f"{column}-{state}"
                place.mkdir()
                runner = Runner(Mode.SHM, place, env)
                try:
                    results[column, state] = cells.run(runner, programs, column, state)
                finally:
                    runner.close()
                signs = "".join(table.sign(cell) for cell in results[column, state].values())
                print(f"{column}, {state}: {signs}", file=sys.stderr)
        end_monitor(folder)
    text = table.page(results)
    print(text)
    if options.write:
        (ROOT / table.PAGE).write_text(text)
    wrong = table.failures(results)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


sys.exit(main())
