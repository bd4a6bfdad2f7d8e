# SPDX-License-Identifier: Apache-2.0
"""The monitor: pairs the two ends of a connection and makes their shared memory, then steps aside.

    cli        options, lock, socket, detaching
    server     the event loop: clients, their messages, their limits
    pairing    what an offer leads to
    endpoint   what the kernel says about an offered socket
    match      which offers belong together                              pure, no I/O
    networks   network namespaces that may be paired
    ledger     ring memory in use, by user                               pure, no I/O
    desk       questions of sdctl                                        pure, no I/O
    outbox     sending to clients that may not read
    answers    answering sdctl
    segment    sealed memfds
    journal    log lines
    service    sd_notify
    hosts/     connections to other hosts: mirrored rings

It never imports sdtrace, and sdtrace never imports it: what both speak is sdlib.wire.
"""
