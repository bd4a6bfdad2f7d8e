/* SPDX-License-Identifier: Apache-2.0
 *
 * sd_trace.h - a part of sd_abi.h: records of calls and bytes, for the supervisor. It says there how this file may be changed.
 */
#ifndef SD_TRACE_H
#define SD_TRACE_H

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

#ifndef SD_CFFI
_Static_assert(sizeof(struct sd_trace_record) == 64 && sizeof(struct sd_trace_channel) == 128, "records and words have lines of their own");
#endif

#endif
