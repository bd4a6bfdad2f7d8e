/* SPDX-License-Identifier: Apache-2.0
 *
 * The keeper's parts, one step at a time: what test_rescue.py builds them with.
 */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

void complain(const char *format, ...) { (void)format; }

int start_limit_ms(void) { return 10000; }

/* Under the filter of a tree in which nothing is denied; returns its listener, or -errno. `bin_dir`: the launcher's. */
int come_under_the_filter(const char *bin_dir)
{
    static struct options o;
    return filter_load(&o, 0, bin_dir) ? -ENOENT : filter_install();
}

/* From here on we are a keeper whose supervisor serves. */
void serve_with(int listener, int keepsake)
{
    static struct keeper k;
    static struct options o;
    k.options = &o;
    g.start = &k;
    g.state = SERVING;
    g.listeners[0] = listener;
    g.nlisteners = 1;
    g.keepsake = mmap(NULL, KEEPSAKE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, keepsake, 0);
}
