/* SPDX-License-Identifier: Apache-2.0
 * Behind guest.h, for guests whose two ends are to have one CPU between them. */
#ifndef ONE_CPU_H
#define ONE_CPU_H

#include <sched.h>
#include "guest.h"

/* From now on this process and its children have the first of their CPUs. */
static void on_one_cpu(void)
{
    cpu_set_t all, one;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    CPU_ZERO(&one);
    for (int cpu = 0; !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &all))
            CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
}

#endif
