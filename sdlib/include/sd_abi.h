/* SPDX-License-Identifier: Apache-2.0
 *
 * sd_abi.h - every layout that two programs of this project share; the three kinds of memory have a file each, which is read by this one only.
 *
 * Theory of operation
 * -------------------
 * Three kinds of shared memory exist.
 *
 *   area     (sd_area.h) one memfd per family of forked processes, shared by the in-process library and its
 *            supervisor. It holds the configuration (written by the supervisor), a slot of counters per
 *            process and the socket blocks. The peer of a connection never sees it.
 *   trace    (sd_trace.h) where asked for (--trace, --pcap), one memfd per family of forked processes, shared by the library and its supervisor:
 *            a ring of records per thread.
 *   segment  (sd_segment.h; of two ends on one host; of two hosts each has a copy, which the monitor keeps like the other one: monitor/hosts/)
 *            one sealed memfd per accelerated connection, shared by its two ends: two rings and their
 *            words. Everything in it may be overwritten by a hostile peer at any time, so a value read from
 *            here is checked before it is used, and nothing is taken from here that could be kept in the area.
 *
 * Rules for changing these files
 *   - Any change of a layout, a number or a meaning in one of these files bumps SD_ABI_VERSION. There is no compatibility mode:
 *     library, supervisor and monitor of different versions refuse each other and the program stays on TCP.
 *   - Words are grouped by who writes them, one group a cache line.
 *   - cffi reads them after the preprocessor; sizes and offsets are asserted for C, and a test asks
 *     the same of the Python side. Only plain C11 scalars and arrays, no bit-fields, no pointers.
 *   - `SD_ATOMIC` marks words that two parties access at the same time. The comment of each says which edge it
 *     carries; the code that reads or writes it names the same edge.
 */
#ifndef SD_ABI_H
#define SD_ABI_H

#ifndef SD_CFFI
#include <stddef.h>
#include <stdint.h>
#define SD_ATOMIC _Atomic
#define SD_LAYOUT(t, m, o) _Static_assert(offsetof(struct t, m) == (o), #t "." #m)
#else
#define SD_ATOMIC /* Python sees plain words; it only writes before sharing and reads for reports */
#endif

#define SD_ABI_VERSION 26

/* Fixed address of the library in every process: a third of a terabyte below the lowest place of a PIE (0x555555554000, above which its heap grows), clear of
 * Go and JVM heaps, and of what mmap gives out, downwards from 0x7fff.., or upwards from 0x2aaa.. where stacks are not limited: a program would have to map 42
 * terabytes (MariaDB reserves eight). The sanitizers of gcc and LLVM have shadows nearly everywhere, and end a program in which something is mapped there before
 * they start, as after an exec that connections survive: this lies in what all of them take for the program's own (ThreadSanitizer: 0x5500.. to 0x5680..). */
#define SD_LIB_BASE 0x551000000000
#define SD_LIB_WINDOW 24 /* 16 MiB hold all of it */

/* The reserved system call of the library; the filter always sends it to the supervisor. Args in rdi rsi rdx r10 r8 r9. */
#define SD_HC_NR 0x5344

enum sd_hypercall {
    /* (index) -> fd of the process's area number `index`, made if it does not exist yet; -ENOSPC at SD_MAX_AREAS. */
    SD_HC_AREA = 1,
    /* (fd, block id) -> SD_OFFER_* or -errno. Blocks until the monitor has answered (bounded). */
    SD_HC_OFFER = 2,
    /* (fd, block id) -> fd of the segment; the side is in the block. -errno: stay on TCP. */
    SD_HC_ATTACH = 3,
    /* (pointer to struct sd_carry[], count) -> 0. An execve follows at once; these connections survive it. */
    SD_HC_EXEC = 4,
    /* (block id, closing) -> 0. The connection closes, or stays on TCP, while its offer is open. */
    SD_HC_WITHDRAW = 5,
    /* (status) -> 0. The process named by cfg.root_pid ends: the report is written before its parent can see that. */
    SD_HC_LEAVE = 6,
    /* (block id, why) -> 0. The connection's other end is on another host, and the monitor, which mirrors its rings, sleeps: there is news. `why`, an enum
     * sd_reason: nor can the program use such rings any more; both ends shall go back to TCP. */
    SD_HC_NUDGE = 7,
    /* (index) -> fd of the family's trace memory number `index`; -errno: what follows is not traced. */
    SD_HC_TRACE = 8,
    /* (fd of a unix socket, sending) -> enum sd_kin: who has its other end. `sending`: those under sdrun who have no library yet get it first. Blocks then. */
    SD_HC_KIN = 9,
    /* (fd) -> 0, -EBUSY. This connection goes to a program that cannot see its ring, or to a second one: it is to be on TCP with all its bytes, and none of
     * this user's is to offer it any more. Blocks until that is so; all who have it stand still meanwhile, so whoever asks is outside of any operation. */
    SD_HC_SCATTER = 10,
    /* (fd of an epoll set, then) -> then 0: 1 if nobody else has this set who could have registered anything, 0. Then 1: 0, -EBUSY; whoever asks has given his part of it to the
     * kernel, and all others who have it are made to. Blocks until that is so, as SD_HC_SCATTER. */
    SD_HC_SHARED = 11,
    /* (its number in the upper half of the first argument; four arguments of connect, bind, listen, accept or accept4) -> what the call returns, made by
     * the supervisor, or SD_PERFORM_YOURSELF. Only where cfg.perform says so. */
    SD_HC_PERFORM = 16,
    /* (fd) -> 0, or -EACCES: this connection, which was accepted when cfg.perform came, may not come in, and is reset by the close that follows. */
    SD_HC_ADMIT = 17,
};

#define SD_PERFORM_YOURSELF 0x53440001

enum sd_offer_result {
    SD_OFFER_PENDING = 0,
    SD_OFFER_PAIRED = 1,
    SD_OFFER_REFUSED = 2,
    SD_OFFER_LATER = 3, /* it came in a message, and somebody else has it as well: ask again */
};

enum sd_kin {
    SD_KIN_UNKNOWN = 0, /* or somebody who has no library */
    SD_KIN_FAMILY = 1,  /* processes that have our area number 0 mapped, and nobody else */
    SD_KIN_LIBRARY = 2, /* others as well, but they all have the library */
};

/* ---------------------------------------------------------------- counters */

/* One list feeds the C struct, the report and the documentation. All are per process, plain u64, written by it alone.
 * calls_library: tracked-socket calls answered without any system call; calls_kernel: those that made one or more. */
#define SD_COUNTERS(X) \
    X(calls_library) X(calls_kernel) \
    X(bytes_shm_tx) X(bytes_shm_rx) X(bytes_tcp_tx) X(bytes_tcp_rx) \
    X(conns_total) X(conns_shm) X(conns_tcp) \
    X(conns_rdma) X(bytes_rdma_tx) X(bytes_rdma_rx) \
    X(sites_patched) X(sites_trapping) X(traps) \
    X(offers) X(attaches) X(switches_tx) X(switches_rx) \
    X(bells_tx) X(bells_rx) X(parks) X(naps) X(spins) X(spins_won) X(hostile_drops) X(faults_inside)

/* Why a connection stayed on TCP (or went back to it). The order is the index in `tcp_reasons` and `moved_back`. */
#define SD_REASONS(X) \
    X(none, "none") \
    X(few_ops, "few-operations") \
    X(no_accel, "no-accel") \
    X(policy, "policy") \
    X(peer_plain, "peer-not-under-sdrun") \
    X(no_supervisor, "supervisor-gone") \
    X(no_monitor, "monitor-unreachable") \
    X(refused, "monitor-refused") \
    X(not_switched, "closed-before-switch") \
    X(no_memory, "mapping-failed") \
    X(peer_fin, "peer-closed-its-side") \
    X(option, "socket-option") \
    X(flag, "unsupported-flag") \
    X(passed, "descriptor-passed") \
    X(exec, "survived-exec") \
    X(hostile, "peer-broke-ring") \
    X(call, "unsupported-call") \
    X(position, "stream-position-unknown") \
    X(stalled, "stopped-while-sending") \
    X(link_lost, "host-link-lost") \
    X(quota, "quota-exhausted") \
    X(detached, "detached") \
    X(unread_lost, "unread-lost") \
    X(fault_inside, "fault-inside") \
    X(shared, "shared-before-switch") \
    X(unsteady, "host-link-unsteady") \
    X(short_lived, "short-lived")

#ifndef SD_CFFI
#define SD_X(name) SD_CTR_##name,
enum sd_counter { SD_COUNTERS(SD_X) SD_CTR_COUNT };
#undef SD_X
#define SD_X(name, text) SD_REASON_##name,
enum sd_reason { SD_REASONS(SD_X) SD_REASON_COUNT };
#undef SD_X
#endif
#define SD_CTR_MAX 48
#define SD_REASON_MAX 40
#define SD_SIZES 24

/* ------------------------------------------------------- the three kinds */

#include "sd_area.h"
#include "sd_segment.h"
#include "sd_trace.h"

/* --------------------------------------------------------------- injection */

/* One connection that lives through execve. */
struct sd_carry {
    int32_t fd;
    uint32_t block; /* block id, or SD_CARRY_EPOLL: an epoll descriptor with connections in it, or SD_CARRY_AREAS: the areas go along, whatever else does */
};
#define SD_CARRY_EPOLL 0xffffffffu
#define SD_CARRY_AREAS 0xfffffffeu
#define SD_CARRY_MAX 64
/* In place of their number: a program that has been running (sdrun --attach). What it has is in the symbol `sd_adopt`. */
#define SD_CARRY_ADOPT 0xffffffffu

/* One word a descriptor: what it is, and in the upper half the lowest descriptor of the same file. */
#define SD_ADOPT_SOCKET 1u /* of some kind */
#define SD_ADOPT_EPOLL 2u
#define SD_ADOPT_HELD 4u   /* a process that does not see our blocks has it, too */
#define SD_ADOPT_MAX 65536

/* Written by the supervisor into the symbol `sd_boot` of a fresh image, before it runs `sd_init`. */
struct sd_boot {
    uint32_t version;  /* SD_ABI_VERSION */
    uint32_t threads;  /* threads at injection */
    uint32_t ncarry;   /* or SD_CARRY_ADOPT */
    uint32_t trace;    /* SD_TRACE_*; beside ncarry, so that one look tells that neither is there */
    uint32_t no_patch; /* leave all sites trapping */
    uint32_t unhooked; /* by the library: 1 once it has given everything back (sdrun --detach) */
    uint64_t secret;   /* random, of this program alone */
    uint32_t tracer;   /* a process that every new one has to name, so that it and its children may trace it (Yama); 0: none */
    uint32_t nalts;
    uint64_t alts; /* alternate signal stacks of ours, which the kernel has for threads whose own was several threads' (sdtrace/stacks.py) */
    struct sd_carry carry[SD_CARRY_MAX];
};

#ifndef SD_CFFI
_Static_assert((int)SD_CTR_COUNT <= SD_CTR_MAX && (int)SD_REASON_COUNT <= SD_REASON_MAX, "names fit");
_Static_assert(offsetof(struct sd_boot, ncarry) % 8 == 0 && offsetof(struct sd_boot, trace) == offsetof(struct sd_boot, ncarry) + 4, "one look");
#endif

#endif
