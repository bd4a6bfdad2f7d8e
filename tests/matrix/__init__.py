# SPDX-License-Identifier: Apache-2.0
"""The matrix of fork and exec: ways to make or change a process, each with a connection in the hand.

A cell is a row (what is done: rows.c, children.c, and other.* for programs that are not C), a column (the libc or run
time that does it) and a state of the connection at that moment.  It has a connection and two processes of its own: the
peer, and the holder, which does what the row is about and then uses the connection, or lets who has it then use it.
Both check every byte, the errors and the end.  It is right if both say so, natively and under sdrun; the report tells
which path carried it.

All rows of a column and a state share one program and one tree, so the whole takes minutes:

    python -m tests.matrix              # the table
    python -m tests.matrix --write      # and docs/fork-exec-matrix.md
"""
