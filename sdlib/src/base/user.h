/* SPDX-License-Identifier: Apache-2.0
 *
 * user.h - the program's memory, which may not be there.
 *
 * The kernel answers a bad pointer with EFAULT, so we may not fault on one. Asking the kernel about each would cost a system call; instead the
 * instruction may fault, and gate/fault.c, which sees SIGSEGV and SIGBUS before the program, goes on at the place that the instruction has named in
 * the table `fixups`. It costs nothing while the pointer is good.
 *
 * These accesses are for code that holds something (a token, a lock) or has moved bytes already. All others are plain: there the whole call
 * ends with EFAULT, as if its thread had left it by siglongjmp.
 */
#ifndef SD_USER_H
#define SD_USER_H

#include "base/base.h"

#ifdef SD_HOSTED
static inline u64 sd_copy_user(void *dst, const void *src, u64 n)
{
    sd_copy(dst, src, n);
    return 0;
}
static inline bool sd_touch(void *p) { return p; }
static inline bool sd_readable(const void *p) { return p; }
#define SD_USER_GET(v, p, fault) ((v) = *(p))
#define SD_USER_PUT(p, v, fault) (*(p) = (v))
#define SD_USER_LABEL(fault) if (0) goto fault
#ifdef SD_INTERPOSE
#define SD_USER_PUT_PAST(p, v, fault) (*(p) = (v)) /* seen by sanitizers */
#else
#define SD_USER_PUT_PAST(p, v, fault) __asm__ inline volatile("movnti %1, %0" : "=m"(*(p)) : "r"(v))
#endif
#else
#define SD_FIXUP(at, to) ".pushsection fixups, \"a\", @progbits\n .long " at " - ., " to " - .\n .popsection\n"
#define SD_USER_LABEL(fault) (void)0

/* Returns how many bytes were not copied. */
static inline u64 sd_copy_user(void *dst, const void *src, u64 n)
{
    __asm__ inline volatile("1: rep movsb\n2:\n" SD_FIXUP("1b", "2b") : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
    return n;
}

/* A move of 1, 4 or 8 bytes, or on to `fault`. */
#define SD_USER_GET(v, p, fault) __asm__ inline volatile goto("1: mov %1, %0\n" SD_FIXUP("1b", "%l[" #fault "]") : "=r"(v) : "m"(*(p)) : : fault)
#define SD_USER_PUT(p, v, fault) \
    __asm__ inline volatile goto("1: mov %1, %0\n" SD_FIXUP("1b", "%l[" #fault "]") : : "m"(*(p)), "r"(v) : "memory" : fault)
#define SD_USER_PUT_PAST(p, v, fault) \
    __asm__ inline volatile goto("1: movnti %1, %0\n" SD_FIXUP("1b", "%l[" #fault "]") : : "m"(*(p)), "r"(v) : "memory" : fault)

/* Can the byte be written? Leaves it as it is. */
static inline bool sd_touch(void *p)
{
    __asm__ inline volatile goto("1: orb $0, %0\n" SD_FIXUP("1b", "%l[fault]") : : "m"(*(u8 *)p) : "cc", "memory" : fault);
    return true;
fault:
    return false;
}

static inline bool sd_readable(const void *p)
{
    u8 byte;
    SD_USER_GET(byte, (const u8 *)p, fault);
    (void)byte;
    return true;
fault:
    return false;
}
#endif

/* Past the caches; also returns how many bytes were not copied. Ordered before what is stored next, as other stores are. */
static inline u64 sd_copy_past(u8 *dst, const u8 *src, u64 n)
{
    u64 lead = min_u64(-(u64)dst & 63, n), left = sd_copy_user(dst, src, lead), a, b, c, d;

    n -= lead - left;
    dst += lead;
    src += lead;
    for (; !left && n >= 32; n -= 32, dst += 32, src += 32) {
        const u64 *from = (const u64 *)src;
        u64 *to = (u64 *)dst;
        SD_USER_GET(a, &from[0], fault);
        SD_USER_GET(b, &from[1], fault);
        SD_USER_GET(c, &from[2], fault);
        SD_USER_GET(d, &from[3], fault);
        SD_USER_PUT_PAST(&to[0], a, fault);
        SD_USER_PUT_PAST(&to[1], b, fault);
        SD_USER_PUT_PAST(&to[2], c, fault);
        SD_USER_PUT_PAST(&to[3], d, fault);
    }
    SD_USER_LABEL(fault);
fault:
    __asm__ volatile("sfence" : : : "memory");
    return left || n >= 32 ? n : sd_copy_user(dst, src, n);
}

/* What is smaller than a page, and lies in two at most. */
static inline bool sd_readable_all(const void *p, u64 n) { return sd_readable(p) && sd_readable((const u8 *)p + n - 1); }
static inline bool sd_touch_all(void *p, u64 n) { return sd_touch(p) && sd_touch((u8 *)p + n - 1); }

#endif
