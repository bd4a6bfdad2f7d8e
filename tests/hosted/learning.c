/* SPDX-License-Identifier: Apache-2.0
 *
 * learning.c - how long poll/wait.c spins behind sleeps that all were alike. Arguments: spin_us; how long it took until somebody rang, and until the sleeper ran, in us.
 */
#include "poll/wait.c"
#include <stdio.h>
#include <stdlib.h>

#define SLEEPS 100

static struct sd_config config;
static struct sd_proc proc;
struct sd_global g = {.cfg = &config, .proc = &proc, .tsc_per_us = 1000};


int main(int argc, char **argv)
{
    struct sd_learn learn = {0};
    struct sd_spin spin;
    u64 us = g.tsc_per_us, rung, waking, looking = 20;

    if (argc != 4)
        return 2;
    config.spin_us = (u32)atoi(argv[1]);
    rung = (u64)atoi(argv[2]);
    waking = (u64)atoi(argv[3]);
    for (u32 i = 0; i < SLEEPS; i++) {
        u64 now = sd_tsc(), since = now - (waking + rung) * us;
        sd_spin_parked(&learn, since, since + looking * us, since + rung * us);
    }
    printf("%llu\n", sd_spin_begin(&spin, &learn, SD_FOREVER, false) ? (unsigned long long)((spin.end - spin.start) / us) : 0ull);
    return 0;
}
