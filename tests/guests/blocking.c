/* SPDX-License-Identifier: Apache-2.0
 * Blocking read and write of every size around the powers of two, echoed. */
#include "guest.h"

static const size_t sizes[] = {1, 2, 63, 64, 65, 511, 512, 4095, 4096, 4097, 65535, 65536, 131071, 262144, 300001};
enum { COUNT = sizeof sizes / sizeof *sizes };
static unsigned char buf[300001], want[300001];

static void accepted(int fd)
{
    for (int i = 0; i < COUNT; i++) {
        read_all(fd, buf, sizes[i]);
        write_all(fd, buf, sizes[i]);
    }
    expect_eof(fd);
}

static void connected(int fd)
{
    struct prng r = {42};
    for (int i = 0; i < COUNT; i++) {
        prng_fill(&r, want, sizes[i]);
        write_all(fd, want, sizes[i]);
        read_all(fd, buf, sizes[i]);
        CHECK(memcmp(buf, want, sizes[i]) == 0);
    }
}

int main(void) { return guest_main(accepted, connected); }
