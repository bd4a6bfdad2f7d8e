/* SPDX-License-Identifier: Apache-2.0
 *
 * sd_abi.h - every layout that two programs of this project share.
 *
 * Theory of operation
 * -------------------
 * Three kinds of shared memory exist.
 *
 *   area     one memfd per family of forked processes, shared by the in-process library and its
 *            supervisor. It holds the configuration (written by the supervisor), a slot of counters per
 *            process and the socket blocks. The peer of a connection never sees it.
 *   trace    where asked for (--trace, --pcap), one memfd per family of forked processes, shared by the library and its supervisor:
 *            a ring of records per thread.
 *   segment  (of two ends on one host; of two hosts each has a copy, which the monitor keeps like the other one: monitor/hosts/)
 *            one sealed memfd per accelerated connection, shared by its two ends: two rings and their
 *            words. Everything in it may be overwritten by a hostile peer at any time, so a value read from
 *            here is checked before it is used, and nothing is taken from here that could be kept in the area.
 *
 * Rules for changing this file
 *   - Any change of a layout, a number or a meaning bumps SD_ABI_VERSION. There is no compatibility mode:
 *     library, supervisor and monitor of different versions refuse each other and the program stays on TCP.
 *   - Words are grouped by who writes them, one group a cache line.
 *   - cffi reads this file after the preprocessor; sizes and offsets are asserted below for C, and a test asks
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
#else
#define SD_ATOMIC /* Python sees plain words; it only writes before sharing and reads for reports */
#endif

#define SD_ABI_VERSION 14

/* Fixed address of the library in every process: clear of PIE (0x55..), mmap (0x7f..), Go and JVM heaps, ASan shadow. */
#define SD_LIB_BASE 0x2d0000000000

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
    /* (block id) -> 0. The connection's other end is on another host, and the monitor, which mirrors its rings, sleeps: there is news. */
    SD_HC_NUDGE = 7,
    /* (index) -> fd of the family's trace memory number `index`; -errno: what follows is not traced. */
    SD_HC_TRACE = 8,
    /* (fd of a unix socket, sending) -> enum sd_kin: who has its other end. `sending`: those under sdrun who have no library yet get it first. Blocks then. */
    SD_HC_KIN = 9,
    /* (fd) -> 0. This connection, which is on TCP, was sent to more than one program: none of this user's is to offer it any more. Blocks until all know. */
    SD_HC_SCATTER = 10,
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
    X(bells_tx) X(bells_rx) X(parks) X(spins) X(spins_won) X(hostile_drops)

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
    X(no_block, "out-of-socket-blocks") \
    X(no_memory, "mapping-failed") \
    X(no_fd, "no-free-descriptor") \
    X(peer_fin, "peer-closed-its-side") \
    X(option, "socket-option") \
    X(flag, "unsupported-flag") \
    X(passed, "descriptor-passed") \
    X(exec, "survived-exec") \
    X(busy, "in-use-by-other-thread") \
    X(hostile, "peer-broke-ring") \
    X(call, "unsupported-call") \
    X(position, "stream-position-unknown") \
    X(stalled, "stopped-while-sending") \
    X(link_lost, "host-link-lost") \
    X(quota, "quota-exhausted") \
    X(detached, "detached")

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

/* -------------------------------------------------------------------- area */

#define SD_AREA_MAGIC 0x4145524153445244 /* "DRDSAREA" */
#define SD_AREA_PROCS 1024 /* whoever finds none is not in the report, and is taken for a stranger (slotless) */
#define SD_AREA_BLOCKS 4096
#define SD_MAX_AREAS 16

enum sd_upgrade { SD_UPGRADE_NEVER = 0, SD_UPGRADE_EAGER = 1, SD_UPGRADE_AFTER_OPS = 2, SD_UPGRADE_AFTER_BYTES = 3 };

/* Written by the supervisor before the library maps the area, and (accel, upgrade, spin_us, perform) at any time after. */
struct sd_config {
    uint32_t accel;     /* 0: redirect calls but leave every byte on TCP (--no-accel) */
    uint32_t upgrade;   /* enum sd_upgrade */
    uint64_t upgrade_n; /* operations or bytes */
    uint32_t spin_us;   /* longest spin before parking, microseconds; 0: never spin */
    uint32_t reason;    /* why accel is 0: SD_REASON_no_accel or SD_REASON_policy */
    uint32_t patch;     /* 0: leave all sites trapping (measurement switch) */
    uint32_t root_pid;  /* pid, in its own namespace, of the process that has to say SD_HC_LEAVE; 0: none has to */
    SD_ATOMIC uint32_t perform; /* 1: a policy has begun to deny something: SD_HC_PERFORM. Never 0 again */
    uint32_t without;   /* SD_WITHOUT_*: techniques switched off, to measure what each is worth */
    uint32_t pad[6];
};

enum sd_without {
    SD_WITHOUT_short = 1,     /* the short way (sock/fast.c) */
    SD_WITHOUT_tokens = 2,    /* a token's bias: who shares a connection locks and unlocks at each call */
    SD_WITHOUT_yield = 4,     /* giving the CPU to a peer that waits for it */
    SD_WITHOUT_window = 8,    /* starting over in an empty ring: its whole memory is used in turn */
    SD_WITHOUT_arming = 16,   /* the reader says whether it sleeps: a doorbell for each message instead */
    SD_WITHOUT_batching = 32, /* one membarrier for all the connections of a wait: one for each */
    SD_WITHOUT_past = 64,     /* large messages to another CPU past the caches (ring/ring.h) */
};

/* Counters of one process. A forked child claims a free slot by compare-and-swap of pid from 0. Written by that process only. */
struct sd_proc {
    SD_ATOMIC uint32_t pid;  /* thread group id in its own PID namespace; 0 = free */
    uint32_t ppid;           /* the process that forked it, 0 = injected */
    SD_ATOMIC uint32_t execs;/* it has begun to execute another program, which does not know what it knew */
    uint32_t pad[13];
    uint64_t ctr[SD_CTR_MAX];
    uint64_t tcp_reasons[SD_REASON_MAX];
    uint64_t moved_back[SD_REASON_MAX];
    uint64_t sizes[2][SD_SIZES]; /* calls that sent [0], received [1] at most 2^i bytes, and more than 2^(i-1); the last: all above */
};

enum sd_block_state {
    SD_BLOCK_FREE = 0,
    SD_BLOCK_TCP = 1,      /* born; bytes on TCP; may be offered */
    SD_BLOCK_OFFERED = 2,  /* with the monitor, no partner yet */
    SD_BLOCK_PAIRED = 3,   /* set by the supervisor: a segment waits for HC_ATTACH */
    SD_BLOCK_ATTACHED = 4, /* this end has mapped the segment */
    SD_BLOCK_PINNED = 5,   /* (also set by the supervisor, from OFFERED) stays on TCP for good; `reason` says why */
};

/* Of one direction. RETIRE: a writer was stopped while copying into the ring, which must not be written any more; whoever comes next moves
 * the direction back. SWITCH, with who and when above the low byte: kernel sends wait until the position is read and published. */
enum sd_mode { SD_MODE_TCP = 0, SD_MODE_RING = 1, SD_MODE_BACK = 2 /* back on TCP; final for this segment */, SD_MODE_RETIRE = 3, SD_MODE_SWITCH = 4 };

/* One socket of ours, shared by the processes that share the socket. What it counts is exact where one thread at a time uses the connection; of two at
 * once one may be missed. */
struct sd_block {
    /* line 0, and what sending looks at and counts */
    SD_ATOMIC uint32_t state;   /* enum sd_block_state. Supervisor: OFFERED->PAIRED, OFFERED->PINNED (release; library acquires) */
    SD_ATOMIC uint32_t gen;     /* bumped when the block is freed: a stale id is recognised */
    SD_ATOMIC uint32_t users;   /* processes that hold it */
    uint16_t side;              /* 0 or 1 in the segment; written by the supervisor before PAIRED, as is: */
    uint8_t far;                /* 1: the other end is on another host, the segment is this host's copy (sock/far.h) */
    uint8_t exclusive;          /* 1: it is, or was, registered with EPOLLEXCLUSIVE: who reports it eats its doorbell */
    SD_ATOMIC uint32_t ops;
    SD_ATOMIC uint32_t rx_mode; /* enum sd_mode of the direction that we read */
    SD_ATOMIC uint32_t tx_mode; /* enum sd_mode of the direction that we write; beside tx_shut: fast.c looks at both at once */
    uint32_t tx_shut;           /* the program has shut its writing side */
    SD_ATOMIC uint64_t token[2];/* who may read [0] and write [1]: sock/token.h; only used when threads or processes share */
    uint64_t bytes_shm_tx;
    uint64_t messages_tx;       /* calls that have sent something, whatever carried it: each is one in `sizes` of struct sd_proc */
    /* line 1, and what receiving counts */
    uint64_t bytes_shm_rx;
    uint64_t messages_rx;
    SD_ATOMIC uint32_t rx_plain;/* threads inside a kernel receive that knows nothing of rings: no attach meanwhile */
    SD_ATOMIC uint32_t tx_plain;/* threads inside a kernel send: no switch meanwhile */
    SD_ATOMIC uint32_t nonblock;/* O_NONBLOCK of the open file description */
    uint32_t opt_saved;         /* what the program set: bit 0 TCP_NODELAY, bit 1 TCP_CORK; bit 8.. which of them are ours */
    SD_ATOMIC uint32_t latched; /* EPOLLRDHUP|EPOLLHUP|EPOLLERR seen, bit 31: FIN consumed; beside tx_wait, as tx_mode */
    SD_ATOMIC uint32_t tx_wait; /* someone waits for room (armed in the ring) */
    SD_ATOMIC uint32_t rx_err;  /* errno to deliver once after the ring is drained */
    SD_ATOMIC uint32_t biased_at[2]; /* when its present owner got each token, in units of 1024 TSC ticks */
    uint32_t rcvlowat;          /* SO_RCVLOWAT as the program has set it while attached, 0: not set; the kernel's is 1 then */
    SD_ATOMIC uint32_t rx_shut; /* the program has shut its reading side: the end that the kernel reports is its own */
    uint32_t passed;            /* lower half of the socket's cookie, once it was sent in a message */
    /* line 2: what is not touched while bytes go through the ring and nobody waits */
    uint32_t owner_pid;         /* who counts it in the report */
    uint16_t reason;            /* enum sd_reason */
    uint8_t role;               /* 1: connected, 2: accepted */
    uint8_t established;
    uint64_t bytes_tcp;         /* only counted for upgrade after_bytes and the report */
    uint64_t bells_tx;
    uint64_t bells_rx;
    uint64_t parks;             /* waits that left its ring for a sleep in the kernel, perhaps with others (poll, epoll) */
    uint64_t spins;             /* waits that looked at its ring for a while, and it ended them (won), or nothing did */
    uint64_t spins_won;
    uint32_t peer_tree;         /* the other end's tree, as the monitor calls it, with bit 31 set; 0: unknown. Written as side is */
    SD_ATOMIC uint32_t given;   /* SD_GIVEN_*: how it went from program to program (sock/pass.c) */
};

/* The low byte is n > 0 of a connection that came in a message: 2^(n-1) operations from now on it is asked whether nobody else has it, and offered. */
#define SD_GIVEN_CAME 0xffu
#define SD_GIVEN_ONCE 0x100u      /* counts how often it was sent to another program that has the library */
#define SD_GIVEN_AWAY 0x80000000u /* and to one that has not */

/* A thread that uses connections which it shares with others (sock/token.h). Everything but tid is written by its owner, and VOID in a mark
 * and 0 in a length by whoever throws it out. A thread that ends, or is found dead, leaves its participant to another. */
#define SD_AREA_PARTS 1024
#define SD_PART_LEVELS 5
struct sd_part_io {
    uint64_t base; /* a struct iovec of one call of the owner */
    SD_ATOMIC uint64_t len;
};
struct sd_part {
    SD_ATOMIC uint32_t tid;             /* in the PID namespace `pidns`; 0 = free */
    uint32_t pid;
    uint64_t pidns;                     /* inode of the namespace, 0: unknown, so it is never taken for dead */
    SD_ATOMIC uint64_t mark[SD_PART_LEVELS];
    SD_ATOMIC uint64_t park;            /* 1 + id of the block on which it sleeps, 0: none */
    SD_ATOMIC uint64_t to[SD_PART_LEVELS];
    struct sd_part_io io[SD_PART_LEVELS];
    uint64_t pad;
};

#define SD_TOLD 64

/* A call site at which forked children trap (gate/patch.c). */
#define SD_AREA_SITES 16
struct sd_site {
    SD_ATOMIC uint64_t image;   /* the secret that a process and its forks share: only there it is that site; 0 = free */
    SD_ATOMIC uint64_t ret;     /* behind the instruction; 0: not there yet */
    uint32_t nr;                /* stored before ret */
    SD_ATOMIC uint32_t seen;    /* how often; some may be missed */
};

struct sd_area {
    uint64_t magic;
    uint32_t version;
    uint32_t index;              /* number of this area in its process */
    uint64_t bytes;              /* sizeof(struct sd_area) */
    SD_ATOMIC uint32_t next_free;/* hint where to look for a free block */
    SD_ATOMIC uint32_t parts_top;/* one above the highest participant ever used; 0 is never used */
    SD_ATOMIC uint32_t moved;    /* supervisor: how often it has moved connections of this area to TCP, while those who use them stood still */
    SD_ATOMIC uint32_t next_proc;/* hint where to look for a free `proc` */
    SD_ATOMIC uint32_t procs_top;/* one above the highest that was ever used: what is behind takes no memory */
    SD_ATOMIC uint32_t passing;  /* 1: connections are sent in messages (sock/pass.c), which a next program may receive */
    SD_ATOMIC uint32_t slotless; /* 1: a process has found no free `proc`; without one it is not known what it does */
    uint32_t pad[3];
    struct sd_config cfg;
    struct sd_proc proc[SD_AREA_PROCS];
    struct sd_block block[SD_AREA_BLOCKS];
    struct sd_part part[SD_AREA_PARTS]; /* of area 0 only: whoever shares a block shares area 0 */
    SD_ATOMIC uint64_t told[SD_TOLD];   /* of area 0: sleeps of peers that these processes have ended, sock/doorbell.c ([W4]) */
    struct sd_site site[SD_AREA_SITES]; /* of area 0 */
};

/* Block id: area index << 16 | block index. Handed over with the generation in the upper half of the u64. */

/* ----------------------------------------------------------------- segment */

#define SD_SEG_MAGIC 0x474e495253445244 /* "DRDSRING" */
#define SD_SEG_HDR_BYTES 4096
#define SD_RING_MIN 4096
#define SD_RING_MAX 0x4000000

/* One direction. "producer" writes bytes into its ring, "consumer" reads them. Counters run free (u64, never wrapped);
 * the place in the ring is (counter - base) & (ring_bytes - 1). */
struct sd_dir {
    /* line 0, producer. Release by the producer after the bytes are stored; acquire by the consumer before it reads them. (The consumer moves tail, too,
     * when bytes have been held back for long enough.) */
    SD_ATOMIC uint64_t tail;
    SD_ATOMIC uint32_t prod_fenced; /* 1: a full fence stands between each store of tail and the load of rx_armed behind it ([W3], bell.h) */
    uint32_t pad7;
    SD_ATOMIC uint64_t base;        /* counter of a byte at the start of the ring's memory; moved only while the ring is empty ([R3], ring.c) */
    uint32_t pad0[10];
    /* line 1, producer, written a few times in a life. */
    SD_ATOMIC uint64_t sw_ring;     /* 1 + TCP stream position of the first byte that is in the ring; 0 = still on TCP */
    SD_ATOMIC uint64_t sw_back;     /* 1 + TCP stream position (doorbells included) where the program's bytes go on; 0 = not gone back */
    SD_ATOMIC uint64_t sw_back_at;  /* ring counter behind the last byte in the ring; stored before sw_back */
    SD_ATOMIC uint32_t prod_hint;   /* SD_HINT_*: makes the end of life fast and exact, never the truth */
    SD_ATOMIC uint32_t bell_first;  /* 1: the doorbell that stands behind the switch is the first byte in the ring ([S6], ring/switch.h) */
    SD_ATOMIC uint64_t held;        /* counter behind the bytes that are held back behind the tail (ring/cork.h); not ahead of tail: none are */
    SD_ATOMIC uint64_t held_since;  /* TSC; stored before held */
    uint64_t pad2[2];
    /* line 2, consumer. Release after the bytes are copied out; acquire by the producer before it overwrites them. */
    SD_ATOMIC uint64_t head;
    uint64_t pad3[7];
    /* line 3, consumer. Count of consumers that are parked or not yet on the ring; starts at 1. Set, membarrier, look again. */
    SD_ATOMIC uint32_t rx_armed;
    SD_ATOMIC uint32_t go_back;     /* consumer, or a supervisor, asks the producer to go back to TCP: SD_GO_BACK_*; the producer may make RESEND TAKEN */
    SD_ATOMIC uint32_t cons_cpu;    /* 1 + CPU on which the consumer has read its last large message */
    SD_ATOMIC uint32_t arrived;     /* 1: the consumer has read all of TCP and reads the ring, so a reset cannot be for bytes of the program there */
    SD_ATOMIC uint64_t sleep;       /* the sleep of a whole set that the one in rx_armed is part of: one bell ends it ([W4], bell.h); 0: none */
    uint32_t pad4[10];
    /* line 4, producer. Count of producers parked for room. Same protocol as rx_armed. */
    SD_ATOMIC uint32_t tx_armed;
    SD_ATOMIC uint32_t prod_cpu;    /* 1 + CPU the producer last waited on */
    uint32_t pad5[14];
    /* line 5, both, by exchange: 1 while a doorbell byte of this direction's TCP stream is unread, 2 while a consumer with company is about to eat it. */
    SD_ATOMIC uint32_t bell;
    uint32_t pad6;
    SD_ATOMIC uint64_t rung_at;     /* producer: TSC when it last rang; only for learning how long to spin */
    uint32_t pad8[12];
};

enum sd_go_back {
    SD_GO_BACK_CALL = 1,
    SD_GO_BACK_POLICY = 2, /* both directions: the connection shall be on TCP */
    SD_GO_BACK_RESEND = 3, /* the consumer reads no more: what it has not read is to be sent again by TCP ([S5], ring/switch.h) */
    SD_GO_BACK_TAKEN = 4,  /* that is being done */
    SD_GO_BACK_UNREAD = 5, /* as RESEND, from a consumer that has not come to the ring: the doorbell in front stays where it is ([S6]) */
};

/* A producer that has come so far looks whether the ring is empty and starts over, so that few lines of it stay in the caches. */
#ifndef SD_RING_WINDOW
#define SD_RING_WINDOW 4096
#endif

/* Messages without a sleeper until a producer stops to fence ([W3]). */
#ifndef SD_FENCE_FOR
#define SD_FENCE_FOR 256
#endif

enum sd_hint {
    SD_HINT_SHUT_WR = 1, /* shutdown(SHUT_WR) comes: the FIN is a half-close, not the end of the peer */
    SD_HINT_ABORT = 2,   /* closed with SO_LINGER 0: the reset is meant */
    SD_HINT_CLOSED = 4,  /* closed in an orderly way, or shut in both directions: what is sent now is answered with a reset */
    SD_HINT_LEAVING = 8, /* goes back to TCP: no doorbell comes here any more, so nobody may wait for one */
    SD_HINT_URGENT = 16, /* has sent, or is about to send, urgent data by TCP */
    SD_HINT_GIVEN = 32,  /* both directions are on TCP for good: this end is another program's, which may offer the connection anew */
};

/* Direction d is written by side d. Ring of direction d starts at SD_SEG_HDR_BYTES + d * ring_bytes. */
struct sd_seg {
    uint64_t magic;
    uint32_t version;
    uint32_t ring_bytes;               /* power of two; each end checks it against the file's size and keeps its own copy */
    SD_ATOMIC uint32_t attached[2];    /* [side] = 1 once that side has mapped the segment (release / acquire) */
    /* Between hosts, of this host's copy; 0 on one host. The monitor is the only other one that has it mapped. */
    SD_ATOMIC uint32_t settle_ask;     /* library: the kernel says that the stream is over; how often that was asked ([H1], sock/far.h) */
    SD_ATOMIC uint32_t settled;        /* monitor: so many are answered: what the other end had written and read then stands here */
    SD_ATOMIC uint32_t lost;           /* monitor, supervisor: what is not here yet does not come by the ring any more */
    SD_ATOMIC uint32_t ringing;        /* monitor: it is about to send a doorbell on our socket ([H2]) */
    uint64_t far_id[2];                /* monitor: names the connection between the two hosts; told to the next monitor */
    SD_ATOMIC uint32_t bells_asked;    /* monitor: doorbells that it has asked the other host for, */
    SD_ATOMIC uint32_t bells_rung;     /* and those asked for over there that are done with here */
    SD_ATOMIC uint32_t told;           /* monitor: it says to the other host that our direction has switched; stored before that */
    SD_ATOMIC uint32_t heard;          /* monitor: the other host knows it, so a mark on TCP is understood there ([H3]) */
    SD_ATOMIC uint32_t moving;         /* monitor: it is about to store a tail or a head here; by exchange, before it looks at the next two ([H4]) */
    SD_ATOMIC uint32_t frozen;         /* library: no tail any more, it has read the other end's mark */
    SD_ATOMIC uint32_t pumped;         /* supervisor: enum sd_pumped; not 0: no head is stored any more */
    SD_ATOMIC uint32_t pump_end;       /* library: a FIN behind them */
    SD_ATOMIC uint64_t mark_from;      /* library: 1 + TCP position of our own mark; 0: none was begun */
    SD_ATOMIC uint64_t mark_at;        /* library: what it says; stored before */
    SD_ATOMIC uint32_t greeted;        /* supervisor: the greeting of our direction is sent */
    uint32_t pad[5];
    struct sd_dir dir[2];
};

enum sd_pumped {
    SD_PUMPED_LOOKING = 1, /* unless the library is leaving by itself, */
    SD_PUMPED_MARK = 2,    /* the supervisor's mark is on its way to the socket; behind it */
    SD_PUMPED_BYTES = 3,   /* the supervisor takes what is in the ring to TCP */
};

/* Between hosts, in the TCP stream: what follows is the program's stream from ring counter `at` on ([H3]). Doorbells are zeros, so the first byte
 * tells the two apart. `far_id` is known to the two ends and their monitors alone. */
#define SD_MARK_MAGIC 0x0a4b43414244535d
#define SD_GREET_MAGIC 0x0a4c4c454844535d /* `at` 0: not a mark, but a direction's first doorbell, which proves that the ring is that of this connection */
struct sd_mark {
    uint64_t magic;
    uint64_t far_id[2];
    uint64_t at;
};

/* ------------------------------------------------------------------- trace */

/* What is traced: sd_boot.trace. */
#define SD_TRACE_CALLS 1
#define SD_TRACE_BYTES 2

#define SD_TRACE_MAGIC 0x4543415254445344 /* "DSDTRACE" */
#define SD_TRACE_CHANNELS 64
#define SD_TRACE_RECORDS 16384 /* of one channel; a power of two */
#define SD_MAX_TRACES 16

/* One call, or, with a number from SD_TRACE_OWNER up, something else. Its own cache line. */
struct sd_trace_record {
    uint64_t tsc;      /* when it began */
    uint64_t ticks;    /* how long it took, in ticks of the TSC */
    int64_t result;    /* -errno when it failed */
    uint64_t arg[4];
    uint16_t nr;       /* the call's number, or SD_TRACE_* */
    uint8_t path;      /* enum sd_trace_path */
    uint8_t bits;      /* SD_TRACE_KERNEL, ... */
    uint32_t sock;     /* 1 + id of the socket's block; 0: no connection of ours */
};

#define SD_TRACE_OWNER 0xfff0 /* what follows is of another thread. arg: pid, tid */
#define SD_TRACE_OPEN 0xfff1 /* a connection. arg: cookie, role; result: bytes behind this record: local, then peer address, 28 bytes each */
#define SD_TRACE_DATA 0xfff2 /* bytes. arg: cookie, direction (0: sent), place in the stream; result: how many follow here; -n: left out */
#define SD_TRACE_END 0xfff3 /* arg: cookie, enum sd_trace_end */

enum sd_trace_path {
    SD_TRACE_PATH_NONE = 0,   /* answered by the library, no connection's bytes in it */
    SD_TRACE_PATH_RING = 1,
    SD_TRACE_PATH_KERNEL = 2,
    SD_TRACE_PATH_BACK = 3,   /* kernel, since it has moved back */
};
#define SD_TRACE_KERNEL 1 /* system calls were made */
#define SD_TRACE_PARKED 2 /* slept */
#define SD_TRACE_BELL 4 /* rang for the peer */
#define SD_TRACE_SPUN 8
#define SD_TRACE_NO_RESULT 16 /* the call is left to the kernel: its result and time are not known here */

enum sd_trace_end {
    SD_TRACE_END_SHUT = 1,   /* we have shut our sending side */
    SD_TRACE_END_FIN = 2,    /* we have seen the peer's end */
    SD_TRACE_END_RESET = 3,  /* we have seen its reset */
    SD_TRACE_END_CLOSED = 4, /* our last descriptor is closed */
};

/* One thread's ring. Counters run free. A signal handler that comes in between writes at the same place; then tail has moved, and the record that was
 * interrupted is written again behind. Nothing waits: what finds no room is counted. */
struct sd_trace_channel {
    /* line 0, its thread. Release by it after the record is stored; acquire by the supervisor. */
    SD_ATOMIC uint64_t tail;
    SD_ATOMIC uint64_t dropped; /* records that found no room */
    SD_ATOMIC uint32_t owner;   /* thread id; 0: free. Claimed by compare-and-swap; given back by the thread, or by the supervisor when it is gone */
    uint32_t pid;
    uint64_t pad0[5];
    /* line 1, the supervisor. Release after the records are copied; acquire by the thread. */
    SD_ATOMIC uint64_t head;
    uint64_t pad1[7];
};

struct sd_trace {
    uint64_t magic;
    uint32_t version;
    uint32_t pad;
    uint64_t bytes;               /* sizeof(struct sd_trace) */
    SD_ATOMIC uint64_t homeless;  /* records of threads that found no channel */
    uint64_t pad1[4];
    struct sd_trace_channel channel[SD_TRACE_CHANNELS];
    struct sd_trace_record record[SD_TRACE_CHANNELS][SD_TRACE_RECORDS];
};

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
    struct sd_carry carry[SD_CARRY_MAX];
};

#ifndef SD_CFFI
#define SD_LAYOUT(t, m, o) _Static_assert(offsetof(struct t, m) == (o), #t "." #m)
_Static_assert(sizeof(struct sd_config) == 64, "config is one line");
_Static_assert(sizeof(struct sd_proc) == 64 + 8 * SD_CTR_MAX + 16 * SD_REASON_MAX + 16 * SD_SIZES, "proc");
_Static_assert(sizeof(struct sd_block) == 192, "block is three lines");
_Static_assert(sizeof(struct sd_part) == 192, "participant is three lines");
_Static_assert(SD_AREA_PARTS <= 4096 && SD_AREA_BLOCKS <= 4096 && SD_MAX_AREAS <= 16, "fields of token and mark");
_Static_assert(sizeof(struct sd_dir) == 384, "dir is six lines");
_Static_assert(sizeof(struct sd_seg) == 128 + 2 * 384, "seg");
_Static_assert(sizeof(struct sd_seg) <= SD_SEG_HDR_BYTES, "seg header fits its page");
_Static_assert((int)SD_CTR_COUNT <= SD_CTR_MAX && (int)SD_REASON_COUNT <= SD_REASON_MAX, "names fit");
_Static_assert(sizeof(struct sd_trace_record) == 64 && sizeof(struct sd_trace_channel) == 128, "records and words have lines of their own");
_Static_assert(offsetof(struct sd_boot, ncarry) % 8 == 0 && offsetof(struct sd_boot, trace) == offsetof(struct sd_boot, ncarry) + 4, "one look");
SD_LAYOUT(sd_block, tx_mode, 24);
SD_LAYOUT(sd_block, tx_shut, 28);
SD_LAYOUT(sd_block, bytes_shm_rx, 64);
SD_LAYOUT(sd_block, latched, 96);
SD_LAYOUT(sd_block, tx_wait, 100);
SD_LAYOUT(sd_block, owner_pid, 128);
SD_LAYOUT(sd_dir, sw_ring, 64);
SD_LAYOUT(sd_dir, head, 128);
SD_LAYOUT(sd_dir, rx_armed, 192);
SD_LAYOUT(sd_dir, tx_armed, 256);
SD_LAYOUT(sd_dir, bell, 320);
SD_LAYOUT(sd_seg, dir, 128);
SD_LAYOUT(sd_area, cfg, 64);
SD_LAYOUT(sd_area, proc, 128);
#endif

#endif
