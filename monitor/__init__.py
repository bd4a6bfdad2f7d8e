# SPDX-License-Identifier: Apache-2.0
"""The monitor: pairs the two ends of a connection and makes their shared memory, then steps aside.

    cli        options, lock, socket, detaching
    server     the event loop: clients, their answers, their limits
    endpoint   what the kernel says about an offered socket
    match      which offers belong together                              pure, no I/O
    segment    sealed memfds
    journal    log lines

It never imports sdtrace, and sdtrace never imports it: what both speak is sdlib.wire.
"""
