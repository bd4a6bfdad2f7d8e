/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes in one direction only, of two processes on one CPU: who sends never waits, and tells the other one nonetheless where it runs.
 */
#include "guest.h"
#include "one_cpu.h"

#define SECONDS 0.7

static void accepted(int fd)
{
    uint64_t word, next = 0;
    size_t have = 0;
    ssize_t r;

    while ((r = read(fd, (char *)&word + have, sizeof word - have)) > 0) {
        have += (size_t)r;
        if (have == sizeof word) {
            CHECK(word == next++);
            have = 0;
        }
    }
    CHECK(r == 0 && have == 0 && next > 1024);
}

/* Few at a time, so that there is always room. */
static void connected(int fd)
{
    uint64_t word = 0;

    for (double end = now_s() + SECONDS, next; now_s() < end;) {
        for (int i = 0; i < 64; i++, word++)
            CHECK(write(fd, &word, sizeof word) == (ssize_t)sizeof word);
        for (next = now_s() + 50e-6; now_s() < next;)
            ;
    }
}

int main(void)
{
    on_one_cpu();
    return guest_main(accepted, connected);
}
