# SPDX-License-Identifier: Apache-2.0
"""`--trace` and `--pcap`: records of calls and bytes, from the library's memory to files and people.

    library  --records-->  drain.py (a thread of the supervisor)  --stream.py-->  a FILE.sdtrace, or
        `python -m sdtrace.trace lines | pcap FILE | text FILE`, a process of its own, so that no formatting keeps the
        drain waiting; text.py through spool.py, a file in between
"""
