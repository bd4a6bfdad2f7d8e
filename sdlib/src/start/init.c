/* SPDX-License-Identifier: Apache-2.0
 *
 * init.c - what the supervisor runs once in a process, with all threads stopped and all signals blocked.
 *
 * No hypercall in here: the supervisor is waiting for us.
 */
#include "gate/gate.h"
#include "poll/poll.h"

/* In .data, so that it is part of the file and the supervisor finds it mapped. */
__attribute__((section(".data"))) struct sd_boot sd_boot = { .version = SD_ABI_VERSION };

static struct sd_proc private_proc;
static const struct sd_config private_config = { .accel = 0, .reason = SD_REASON_no_supervisor, .patch = 1 };
SD_FORKED struct sd_global g = { .proc = &private_proc, .cfg = &private_config };

void sd_without_area(void)
{
    g.proc = &private_proc;
    g.cfg = &private_config;
    g.no_supervisor = 1;
}

long sd_slot_offsets_ok(void);

/* TSC ticks in a microsecond, from 20 us of looking at the clock. */
static u64 calibrate(void)
{
    u64 t0 = sd_now_ns(), c0 = sd_tsc(), t, c;
    do {
        t = sd_now_ns();
        c = sd_tsc();
    } while (t - t0 < 20000);
    u64 ticks = (c - c0) * 1000 / (t - t0);
    return ticks ? ticks : 1;
}

/* Leads to sd_take_over(). */
static void mark_what_is_ours(void)
{
    if (sd_boot.ncarry == SD_CARRY_ADOPT) {
        for (u32 fd = 0; fd < SD_ADOPT_MAX; fd++)
            if (sd_adopt[fd])
                sd_fdkind[fd] = SD_KIND_OURS;
        return;
    }
    for (u32 i = 0; i < sd_boot.ncarry && i < SD_CARRY_MAX; i++)
        if (sd_boot.carry[i].block != SD_CARRY_AREAS)
            sd_fdkind[sd_boot.carry[i].fd & 0xffff] = SD_KIND_OURS;
}

static bool gs_in_use(void)
{
    u64 base;

    __asm__("rdgsbase %0" : "=r"(base));
    return base != 0;
}

static bool has_rdpid(void)
{
    u32 eax = 7, ebx, ecx = 0, edx;

    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return ecx >> 22 & 1; /* every processor that a supervisor runs on (fsgsbase) has leaf 7 */
}

long sd_init_c(void)
{
    if (sd_boot.version != SD_ABI_VERSION)
        return -EPROTO;
    if (!sd_slot_offsets_ok())
        return -ENOEXEC;
    if (gs_in_use())
        return -EBUSY;
    mark_what_is_ours();
    g.pid = (u32)SYS0(__NR_getpid);
    g.mt = sd_boot.threads > 1;
    sd_threads_are(sd_boot.threads);
    g.trace = sd_boot.trace;
    g.secret = sd_boot.secret;
    g.tsc_per_us = calibrate();
    sd_has_rdpid = has_rdpid();
    SYS2(__NR_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0);
    if (!g.mt)
        SYS2(__NR_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0);
    if (sd_boot.ncarry != SD_CARRY_ADOPT)
        sd_ep_find();
    return sd_adopt_handlers();
}
