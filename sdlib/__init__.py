# SPDX-License-Identifier: Apache-2.0
"""The in-process library (C, `src/`), its image, and its Python binding (`sdlib.abi`)."""
