# SPDX-License-Identifier: Apache-2.0
"""Connections between two hosts: each monitor keeps its host's copy of a segment equal to the other's, by RDMA.

    config     who the other hosts are, and the key shared with each
    auth       making sure of each other, and sealing what is said          pure, no I/O
    frames     the records                                                  pure, no I/O
    copy       one host's copy of a segment, mapped
    mirror     one connection: what was sent, landed, read                  no I/O but that memory
    link       one conversation between two monitors                        no I/O
    verbs      queue pairs: the transport that this is for
    hub        sockets, dialling, pairing, when to sleep

The in-process library sees a ring as ever; what it has to ask for because its peer is far is sdlib/src/sock/far.h.
"""
