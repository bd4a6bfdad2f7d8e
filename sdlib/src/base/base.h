/* SPDX-License-Identifier: Apache-2.0
 *
 * base.h - the whole outside world of the library.
 *
 * Rules that all code in sdlib/src obeys
 *   - No libc, no TLS, no relocations, no vector registers, no floating point. `nm -u` of the image is empty.
 *   - A system call is made only by sd_sys() and the slots, both in the gate; an inline `syscall` would trap into ourselves.
 *   - Any line may be interrupted by a signal handler of the program that calls back in, on this thread, and may never
 *     return (siglongjmp). So: no lock is held while waiting, and shared positions are committed with sd_cas_local().
 *   - No errno: functions return the kernel's convention, >= 0 or -errno.
 *   - The stack is 64 KiB at worst and a sigaltstack of a few KiB at best: nothing above 512 bytes on it outside of poll/.
 */
#ifndef SD_BASE_H
#define SD_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include "sd_abi.h"

#ifndef SD_HOSTED
/* Also for what is only declared: no indirection through a global offset table, which a fixed image has no use for. */
#pragma GCC visibility push(hidden)
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define NOINLINE __attribute__((noinline))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* Every bit of x decides every bit of it (splitmix64). */
static inline u64 sd_mix(u64 x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* An address of the image: code, handlers, data of ours. */
static inline bool sd_in_library(u64 at) { return at >> SD_LIB_WINDOW == SD_LIB_BASE >> SD_LIB_WINDOW; }

static inline u64 min_u64(u64 a, u64 b) { return a < b ? a : b; }
static inline u64 max_u64(u64 a, u64 b) { return a > b ? a : b; }

#ifdef SD_INTERPOSE /* tests/hosted: somebody comes in between us and every shared word */
#include "interpose.h"
#else
#define load_rlx(p) atomic_load_explicit(p, memory_order_relaxed)
#define load_acq(p) atomic_load_explicit(p, memory_order_acquire)
#define store_rlx(p, v) atomic_store_explicit(p, v, memory_order_relaxed)
#define store_rel(p, v) atomic_store_explicit(p, v, memory_order_release)

static inline void sd_fence(void) { atomic_thread_fence(memory_order_seq_cst); }
static inline void cpu_relax(void) { __builtin_ia32_pause(); }
static inline u64 sd_tsc(void) { return __builtin_ia32_rdtsc(); }

/* rep movsb: 3 to 4 ns up to 128 bytes on machines with FSRM, and no vector register to save. */
static inline void sd_copy(void *dst, const void *src, u64 n)
{
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
}

static inline void sd_zero(void *dst, u64 n)
{
    __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(0) : "memory");
}

/* Compare-and-swap against signal handlers of this thread only: no lock prefix, so no cost to speak of. Never on a word that other CPUs write:
 * when it fails it writes back what it has read, over what they have written meanwhile. */
static inline bool sd_cas_local(_Atomic u64 *p, u64 want, u64 val)
{
    bool ok;
    __asm__ volatile("cmpxchgq %3, %1" : "=@ccz"(ok), "+m"(*p), "+a"(want) : "r"(val) : "memory");
    return ok;
}

static inline bool cas_u32(_Atomic u32 *p, u32 want, u32 val)
{
    return atomic_compare_exchange_strong(p, &want, val);
}

/* The same two against other threads of this process only. Where there are none a handler may still come in between, but no other CPU. */
static inline bool cas_own(_Atomic u32 *p, u32 want, u32 val, bool alone)
{
    bool ok;

    if (!alone)
        return cas_u32(p, want, val);
    __asm__ volatile("cmpxchgl %3, %1" : "=@ccz"(ok), "+m"(*p), "+a"(want) : "r"(val) : "memory");
    return ok;
}

/* What it was before. */
static inline u32 add_own(_Atomic u32 *p, u32 n, bool alone)
{
    if (!alone)
        return atomic_fetch_add(p, n);
    __asm__ volatile("xaddl %0, %1" : "+r"(n), "+m"(*p) : : "memory", "cc");
    return n;
}
#endif

/* Words, as many as the compiler knows; a string instruction takes longer to begin than these. */
static inline __attribute__((always_inline)) void sd_zero_words(void *dst, u64 bytes)
{
    u64 *at = dst;

#pragma GCC unroll 32
    for (u64 i = 0; i < bytes / 8; i++)
        at[i] = 0;
}

/* v in decimal at `at`, which has room for 11 characters, and a 0 behind; returns its length. For names in /proc. */
static inline u32 sd_decimal(char *at, u32 v)
{
    char digits[10];
    u32 k = 0, n = 0;

    for (; k == 0 || v; v /= 10)
        digits[k++] = (char)('0' + v % 10);
    while (k)
        at[n++] = digits[--k];
    at[n] = 0;
    return n;
}

/* Written in every forked child: all on one page, for each costs it a fault. */
#ifndef SD_HOSTED
#define SD_FORKED __attribute__((section("sd_forked")))
#else
#define SD_FORKED
#endif

/* The CPU that we run on. */
#ifdef SD_INTERPOSE
u32 sd_cpu(void);
#else
extern u32 sd_has_rdpid; /* ring.c; set by start/init.c */

static inline u32 sd_cpu(void)
{
    u64 aux;

    if (likely(sd_has_rdpid))
        __asm__ volatile(".byte 0xf3, 0x0f, 0xc7, 0xf9" : "=c"(aux)); /* rdpid %rcx, without a word for older assemblers; a thirtieth of rdtscp */
    else
        __asm__ volatile("rdtscp" : "=c"(aux) : : "rax", "rdx");
    return aux & 0xfff; /* arch/x86/include/asm/segment.h: the node is above */
}
#endif

#ifndef SD_HOSTED
/* The one system call instruction for C code; arch/x86_64/gate.S. */
long sd_sys(long nr, long a, long b, long c, long d, long e, long f);
#else
/* The same sources built for Python and for the sanitizers use the C library's. */
long sd_sys(long nr, long a, long b, long c, long d, long e, long f);
#endif

#define SYS6(nr, a, b, c, d, e, f) sd_sys(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS5(nr, a, b, c, d, e) SYS6(nr, a, b, c, d, e, 0)
#define SYS4(nr, a, b, c, d) SYS6(nr, a, b, c, d, 0, 0)
#define SYS3(nr, a, b, c) SYS6(nr, a, b, c, 0, 0, 0)
#define SYS2(nr, a, b) SYS6(nr, a, b, 0, 0, 0, 0)
#define SYS1(nr, a) SYS6(nr, a, 0, 0, 0, 0, 0)
#define SYS0(nr) SYS6(nr, 0, 0, 0, 0, 0, 0)

#endif
