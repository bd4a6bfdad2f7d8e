#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Print the Python to make the virtual environment from: 3.11 or newer, with venv and the headers for the C module.
# The distribution's comes first: a `python3` in PATH may be a version manager's shim that resolves differently elsewhere.
set -euo pipefail

check='
import ensurepip, os, sys, sysconfig, venv
sys.exit(sys.version_info < (3, 11) or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
'
for candidate in ${PYTHON:-} /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
    path=$(command -v "$candidate") || continue
    if "$path" -c "$check" >/dev/null 2>&1; then
        echo "$path"
        exit 0
    fi
done
echo "find-python.sh: no Python >= 3.11 with venv and headers found; install python3, python3-venv and python3-dev" >&2
exit 1
