# SPDX-License-Identifier: Apache-2.0
"""Looking at running programs under sdrun; what all of it reads is described in docs/observing.md.

    sockets    the kernel's tables: who has which socket, between which addresses
    view       both put together: one row per connection
    filters    ss's filter language, the simple part
    sdss       `ss` for programs under sdrun
    samples    differences between two moments
    sdstat     counters, again and again
    sdtop      the same for the whole screen
    metrics    the same for Prometheus
"""
