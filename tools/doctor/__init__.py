# SPDX-License-Identifier: Apache-2.0
"""`sddoctor`: can sdrun work here, what will it go without, and what mends it.

    findings   one line of the result, and how grave it is
    kernel     what the kernel can do, tried rather than read off its version
    host       containers, limits, RDMA devices
    setup      this installation, policies, monitor
    trial      a pair of programs under sdrun
    cli        the command
"""
