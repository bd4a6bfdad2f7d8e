# SPDX-License-Identifier: Apache-2.0
"""What an instruction of the library, or a function of the kernel, is there for.

The rows are those of SocksDirect's table of costs (SIGCOMM'19, table 2), for what a socket on one host has of them.
What an address of the library belongs to is asked of its debug information, since the short ways are one function
each, in which all others are inlined: the innermost inlined function that a rule knows decides, or the source line
where the way itself does it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

SHIM = "shim: call site, slot, entry, way back"
SYSTEM_CALL = "system call"
LOCKING = "descriptor, locking"
PROTOCOL = "protocol, state of the connection"
BUFFERS = "buffer management"
COPY = "copy"
WAKE = "wake-up, switch"
COUNTERS = "counters"
OTHER = "other"
PURPOSES = (SHIM, SYSTEM_CALL, LOCKING, PROTOCOL, BUFFERS, COPY, WAKE, COUNTERS, OTHER)

Rules = Sequence[tuple[str, re.Pattern[str]]]


def _rules(*lines: tuple[str, str]) -> Rules:
    return [(purpose, re.compile(pattern)) for purpose, pattern in lines]


# `function: text of the source line`; the first that fits.
_LIBRARY: Rules = _rules(
    (SHIM, r"^(sd_gate_start|sd_slots|sd_entry|sd_fast|sd_shared|sd_dispatch\w*|sd_c_way|sd_leave_c|unusual):"
           r"|^sd_(fast|shared)_(read|write|recv|send): (?!.*(sd_fast_sock|enter\())"),
    (SYSTEM_CALL, r"^sd_sys"),
    (COPY, r"^(copy_small|copy_large|copy|put|put_past|sd_copy_\w+|sd_[rt]x_copy|sd_\w+_scatter|goes_down):"),
    (COUNTERS, r"^(count_fast|sd_size_class):|bytes_shm_|messages_[rt]x"),
    (WAKE, r"^(sd_sent_to_sleeper|sd_taken_from_waiter|sd_(data|room)_wanted|sd_wake_\w+|sd_ring_bell|sd_bell_\w+"
           r"|sd_send_bell|sd_nap\w*|sd_park\w*|sd_spin\w*|spin_rx|wait_rx|sleep_\w+|sd_yield\w*|sd_gives_way|rx_empty"
           r"|sd_rx_news\w*|sd_tsc):|[rt]x_armed|tx_fence"),
    (LOCKING, r"^(sd_cas_local|sd_take|sd_leave|sd_commit_\w+|sd_mark_\w+|sd_tok_\w+|sd_self|sd_sock_(enter|put|of)"
              r"|enter|done|stack_pointer):|sd_fast_sock|tx_in|atomic_signal_fence|enter\("),
    (PROTOCOL, r"^(load_pair|sd_cork_\w+|sd_back_\w+|sd_peer_\w+|sd_tick|sd_shared|tx_with_date|sd_tx_dated?\w*"
               r"|sd_rx_want_dates|plausible):|go_back|_mode|latched|sw_back|prod_hint|tx_shut|dated"),
    (BUFFERS, r"^(planned|sd_plan_again|tx_planned|sd_[rt]x_\w+):|head|tail|\bat\b|\bn\b|s->[be];|s->e\.[rt]x;"
              r"|min_u64|LARGE"),
)

# Functions; those that are called first, and the first of them that fits. What was interrupted is not the call's.
_KERNEL: Rules = _rules(
    (COPY, r"copy_(to|from)_(iter|user)|^_?copy_user|^rep_(movs|stos)|memcpy|copy_page_(to|from)_iter|datagram_iter"
           r"|check_(object_size|stack_object|heap_object)|virt_addr_valid|is_vmalloc_addr|skb_splice_from_iter"),
    (WAKE, r"try_to_wake_up|ttwu_|wake_up|autoremove_wake|woken_wake|sock_def_readable|write_space|ep_poll_callback"
           r"|(^|_)schedule(_|$)|finish_task_switch|switch_mm|__switch_to|pick_(next|eevdf|task)|(en|de)queue_(task|entity)"
           r"|update_curr|sk_wait_data|sk_stream_wait|prepare_to_wait|finish_wait|futex|select_task_rq|do_sched_yield"
           r"|cpuidle|default_idle"),
    (OTHER, r"^asm_(sysvec|common_interrupt|exc)|^irq_exit|^sysvec_"),
    (BUFFERS, r"alloc_skb|skb_(release|clone|put|free|page|entail|unref|set_owner)|kmalloc|kmem_cache|^_*kfree"
              r"|consume_skb|page_frag|free_unref|put_page|get_page_from|alloc_pages|sk_stream_(alloc|moderate|free)"
              r"|sock_(wmalloc|wfree|rfree|alloc_send|omalloc)|mem_(charge|schedule|cgroup)|sk_mem_|anon_pipe_|slab"),
    (LOCKING, r"lock_sock|^release_sock|^mutex_|^fd(get|put)|^fput|^_*fget|local_bh_(en|dis)able|sockfd_lookup"
              r"|pipe_lock"),
    (PROTOCOL, r"^_*(tcp|bbr|cubic|cubictcp|ip|ipv4|inet|unix|nf|bpf|pipe|sk)_|dev_(queue|hard)_|loopback|netif_|net_rx"
               r"|napi|backlog|softirq|dst_|skb|sock_(put|hold)|qdisc|xmit"),
    (SYSTEM_CALL, r"entry_SYSCALL|do_syscall|syscall|^_*x64_sys|^_*(se_)?sys_|^ksys_|^vfs_|security_|^import_|^sock_"
                  r"|exit_to_user|rseq|seccomp|rw_verify|fsnotify|new_sync"),
)

# In a wake-up the time at the end of a spin lock is that of the interrupt that is sent to another CPU.
_SPIN = re.compile(r"_raw_(spin|read|write)|queued_spin|^_*rcu_read")


def of_kernel(chain: Iterable[str]) -> str:
    """Of a call chain of functions of the kernel, the innermost first."""
    spun = False
    for name in chain:
        if _SPIN.search(name):
            spun = True
            continue
        purpose = next((purpose for purpose, pattern in _KERNEL if pattern.search(name)), None)
        if purpose is not None:
            return LOCKING if spun and purpose != WAKE else purpose
    return LOCKING if spun else OTHER


@lru_cache(maxsize=64)
def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []  # an installation without sources: the functions' names have to do


def _text(place: str) -> str:
    """The source line that addr2line has named as `path:number (discriminator n)`."""
    path, _, number = place.partition(" ")[0].rpartition(":")
    lines = _lines(path)
    return lines[int(number) - 1] if number.isdigit() and 0 < int(number) <= len(lines) else ""


def _of_chain(chain: list[tuple[str, str]]) -> str:
    for function, place in chain:
        for purpose, pattern in _LIBRARY:
            if pattern.search(f"{function}: {_text(place).strip()}"):
                return purpose
    return OTHER


def of_library(addresses: Iterable[int], elf: Path) -> dict[int, str]:
    """Of addresses in the library's image. OSError, CalledProcessError: no addr2line, or no such image."""
    wanted = sorted(set(addresses))
    asked = "".join(f"{address:#x}\n" for address in wanted)
    argv = ["addr2line", "-a", "-i", "-f", "-e", str(elf)]
    printed = subprocess.run(argv, check=True, capture_output=True, text=True, input=asked).stdout.splitlines()
    chains: list[list[str]] = []
    for line in printed:
        if line.startswith("0x"):
            chains.append([])
        else:
            chains[-1].append(line)
    return {address: _of_chain(list(zip(chain[::2], chain[1::2], strict=True)))
            for address, chain in zip(wanted, chains, strict=True)}
