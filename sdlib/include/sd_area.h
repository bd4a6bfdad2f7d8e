/* SPDX-License-Identifier: Apache-2.0
 *
 * sd_area.h - a part of sd_abi.h: what a family of forked processes shares with its supervisor. It says there how this file may be changed.
 */
#ifndef SD_AREA_H
#define SD_AREA_H

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
    uint32_t patient;   /* 1: upgrade_n is what comes with us: of connections that would be over soon it may be more (sock/lives.c) */
    uint32_t pad[5];
};

enum sd_without {
    SD_WITHOUT_short = 1,     /* the short way (sock/fast.c) */
    SD_WITHOUT_tokens = 2,    /* a token's bias: who shares a connection locks and unlocks at each call */
    SD_WITHOUT_yield = 4,     /* giving the CPU to a peer that waits for it */
    SD_WITHOUT_window = 8,    /* starting over in an empty ring: its whole memory is used in turn */
    SD_WITHOUT_arming = 16,   /* the reader says whether it sleeps: a doorbell for each message instead */
    SD_WITHOUT_batching = 32, /* one membarrier for all the connections of a wait: one for each */
    SD_WITHOUT_past = 64,     /* large messages to another CPU past the caches (ring/ring.h) */
    SD_WITHOUT_nap = 128,     /* sleeping on the ring for a peer that can only run on this CPU (poll/nap.c) */
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
    SD_BLOCK_PAIRED = 3,   /* set by the supervisor: a segment waits for HC_ATTACH; and set back to TCP by it, if nobody has come to it between two hosts */
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
    uint8_t exclusive;          /* 1: it is, or was, registered with EPOLLEXCLUSIVE: each look says that its doorbell was heard, and the segment says so to the peer */
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
    SD_ATOMIC uint64_t need;            /* there: it is not woken for fewer unread bytes in the ring */
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

/* What has become of the connections of one kind (sock/lives.c), in parts of 255. Zeroes: nothing is known. */
#define SD_AREA_LIVES 64
#define SD_LIVES_FROM 3
#define SD_LIVES_AGES 11
struct sd_lives {
    SD_ATOMIC uint32_t kind;                 /* its port as it stands in an address, and bit 16 of a listener, bit 17 of one that is connected to; 0 = free */
    SD_ATOMIC uint8_t away;                  /* of those that were offered: whose peer had not come when they ended */
    SD_ATOMIC uint8_t ends[SD_LIVES_AGES];   /* of those that did 2^(3+i) operations: that ended before they had done twice as many */
};

/* An epoll set that forks share (poll/ep_shared.c): its number in the upper half; who has used it since, 0: nobody, 1 + index of his `proc`, MANY or ALL; and a flag. */
#define SD_AREA_SETS 256
#define SD_SET_MANY 0xfffeu       /* several, and nobody has registered anything since */
#define SD_SET_ALL 0xffffu        /* the kernel has it as the program has said, and what is in it is TCP's */
#define SD_SET_REGISTERED 0x10000u

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
    SD_ATOMIC uint32_t sets_top; /* number of the last set that a fork has shared */
    uint32_t pad[2];
    struct sd_config cfg;
    struct sd_proc proc[SD_AREA_PROCS];
    struct sd_block block[SD_AREA_BLOCKS];
    struct sd_part part[SD_AREA_PARTS]; /* of area 0 only: whoever shares a block shares area 0 */
    SD_ATOMIC uint64_t told[SD_TOLD];   /* of area 0: sleeps of peers that these processes have ended, sock/doorbell.c ([W4]) */
    struct sd_site site[SD_AREA_SITES]; /* of area 0 */
    struct sd_lives lives[SD_AREA_LIVES]; /* of area 0 */
    SD_ATOMIC uint64_t set[SD_AREA_SETS]; /* of area 0 */
};

/* Block id: area index << 16 | block index. Handed over with the generation in the upper half of the u64. */

#ifndef SD_CFFI
_Static_assert(sizeof(struct sd_config) == 64, "config is one line");
_Static_assert(sizeof(struct sd_proc) == 64 + 8 * SD_CTR_MAX + 16 * SD_REASON_MAX + 16 * SD_SIZES, "proc");
_Static_assert(sizeof(struct sd_block) == 192, "block is three lines");
_Static_assert(sizeof(struct sd_lives) == 16, "lives");
_Static_assert(sizeof(struct sd_part) == 192, "participant is three lines");
_Static_assert(SD_AREA_PARTS <= 4096 && SD_AREA_BLOCKS <= 4096 && SD_MAX_AREAS <= 16, "fields of token and mark");
SD_LAYOUT(sd_block, tx_mode, 24);
SD_LAYOUT(sd_block, tx_shut, 28);
SD_LAYOUT(sd_block, bytes_shm_rx, 64);
SD_LAYOUT(sd_block, latched, 96);
SD_LAYOUT(sd_block, tx_wait, 100);
SD_LAYOUT(sd_block, owner_pid, 128);
SD_LAYOUT(sd_area, cfg, 64);
SD_LAYOUT(sd_area, proc, 128);
#endif

#endif
