# SPDX-License-Identifier: Apache-2.0
"""Launcher, keeper and supervisor: everything that looks at a program from the outside.

    launch/            the C program `sdrun`: launcher and keeper
    syscalls           the one table of what the filter does with which call
    build_filter       that table as BPF files, at build time
    supervisor, cli    the event loop and its command line
    notify             seccomp notifications as the kernel hands them out
    remote             the only file that knows ptrace
    inject, image      mapping the library into a process
    processes, procfs  what is known about each process, and what /proc says of it
    hypercalls, areas, offers, kin   what the library asks for
    giveback, recall, strangers,
    givesets                     connections that go back to TCP while their programs stand still
    leftover, refill, opposite    ... with bytes that their peers cannot send again
    report, explain    what is told to people in the end
"""
