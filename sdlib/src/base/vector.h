/* SPDX-License-Identifier: Apache-2.0
 *
 * vector.h - copies of some hundred bytes by vector registers, which are the program's: four are put aside and brought back.
 *
 * A string instruction takes longer to begin than this takes to end. The old instructions, not AVX's: those leave the upper halves in use, which slows the
 * program's own down. A handler may come in between and not return: nobody keeps anything in these registers over a call of a function, which is how it got here.
 */
#ifndef SD_VECTOR_H
#define SD_VECTOR_H

#include "base/user.h"

/* Longest copy for which it pays, from sd_end_open() on. Measured: 512 bytes 7 ns instead of 14 on an Intel processor, 1 KiB 12.5 instead of 15, 2 KiB 23 instead of 18; on AMD's 1 KiB 18
 * instead of 15. */
extern u32 sd_vector_most;
#define SD_VECTOR_MOST(amd) ((amd) ? 512u : 1280u)

#ifdef SD_HOSTED
static inline u64 sd_copy_vector(u8 *dst, const u8 *src, u64 n) { return sd_copy_user(dst, src, n); }
#else
/* n is 64 at least. Returns 0, or not if the program's memory is not there. The direction flag does not matter. */
static inline u64 sd_copy_vector(u8 *dst, const u8 *src, u64 n)
{
    u8 save[64];

    __asm__ inline volatile(
        "movups %%xmm0, (%[save])\n movups %%xmm1, 16(%[save])\n movups %%xmm2, 32(%[save])\n movups %%xmm3, 48(%[save])\n"
        "1: movups (%[src]), %%xmm0\n"
        "2: movups 16(%[src]), %%xmm1\n"
        "3: movups 32(%[src]), %%xmm2\n"
        "4: movups 48(%[src]), %%xmm3\n"
        "5: movups %%xmm0, (%[dst])\n"
        "6: movups %%xmm1, 16(%[dst])\n"
        "7: movups %%xmm2, 32(%[dst])\n"
        "8: movups %%xmm3, 48(%[dst])\n"
        "add $64, %[src]\n add $64, %[dst]\n sub $64, %[n]\n"
        "cmp $64, %[n]\n jae 1b\n"
        "test %[n], %[n]\n jz 9f\n"
        "lea -64(%[src],%[n]), %[src]\n lea -64(%[dst],%[n]), %[dst]\n mov $64, %k[n]\n jmp 1b\n" /* the rest, with some of what is there already */
        "9: movups (%[save]), %%xmm0\n movups 16(%[save]), %%xmm1\n movups 32(%[save]), %%xmm2\n movups 48(%[save]), %%xmm3\n"
        SD_FIXUP("1b", "9b") SD_FIXUP("2b", "9b") SD_FIXUP("3b", "9b") SD_FIXUP("4b", "9b")
        SD_FIXUP("5b", "9b") SD_FIXUP("6b", "9b") SD_FIXUP("7b", "9b") SD_FIXUP("8b", "9b")
        : [dst] "+r"(dst), [src] "+r"(src), [n] "+r"(n) : [save] "r"(save) : "memory", "cc");
    return n;
}
#endif

#endif
