/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_select: a 64-bit program that waits by int $0x80: select, old and new, pselect6, ppoll. Sets of 32-bit words, time-outs of 32 bits and what is left of them.
 */
#include "int80_call.h"

struct time32 {
    int32_t sec, frac;
};

struct sets {
    uint32_t in, canary, out, canary2;
};

static struct sets *fresh_sets(int fd, bool in, bool out)
{
    struct sets *s = (struct sets *)low;
    CHECK(fd < 32);
    *s = (struct sets){in ? 1u << fd : 0, 0xa5a5a5a5, out ? 1u << fd : 0, 0x5a5a5a5a};
    return s;
}

static void check_sets(int fd, bool in, bool out)
{
    struct sets *s = (struct sets *)low;
    CHECK(s->in == (in ? 1u << fd : 0) && s->out == (out ? 1u << fd : 0));
    CHECK(s->canary == 0xa5a5a5a5 && s->canary2 == 0x5a5a5a5a);
}

static void accepted(int fd)
{
    map_low();
    struct sets *s = fresh_sets(fd, true, true);
    struct time32 *t = (struct time32 *)(low + 64);
    struct timespec *t64 = (struct timespec *)(low + 64);
    uint32_t *arg = (uint32_t *)(low + 96), *mask = (uint32_t *)(low + 160);
    struct pollfd *p = (struct pollfd *)(low + 128);
    *t = (struct time32){0, 20000};
    CHECK(int80(SELECT, fd + 1, at(&s->in), at(&s->out), 0, at(t)) == 1); /* nothing to read */
    check_sets(fd, false, true);
    CHECK(t->sec == 0 && t->frac > 0 && t->frac <= 20000);
    fresh_sets(fd, true, false);
    *t = (struct time32){0, 20000};
    CHECK(int80(SELECT, fd + 1, at(&s->in), 0, 0, at(t)) == 0 && t->sec == 0 && t->frac == 0);
    check_sets(fd, false, false);
    CHECK(int80(SELECT, -1, 0, 0, 0, 0) == -EINVAL && int80(SELECT, fd + 1, 8, 0, 0, 0) == -EFAULT && int80(SELECT, fd + 1, 0, 0, 0, 8) == -EFAULT);
    t->sec = -1;
    fresh_sets(fd, true, false);
    CHECK(int80(SELECT, fd + 1, at(&s->in), 0, 0, at(t)) == -EINVAL && s->in == 1u << fd);
    say(fd, "g");
    arg[0] = (uint32_t)fd + 1, arg[1] = at(&s->in), arg[2] = arg[3] = arg[4] = 0;
    CHECK(int80(OLD_SELECT, at(arg), 0, 0, 0, 0) == 1); /* sleeps */
    check_sets(fd, true, false);
    expect(fd, "o");
    mask[0] = at(mask + 2), mask[1] = 8, mask[2] = mask[3] = 0xffffffff;
    for (int i = 0; i < 2; i++) {
        fresh_sets(fd, true, false);
        if (i)
            *t64 = (struct timespec){60, 0};
        else
            *t = (struct time32){60, 0};
        say(fd, "g");
        CHECK(int80_6(i ? PSELECT6_64 : PSELECT6, fd + 1, at(&s->in), 0, 0, at(t), at(mask)) == 1);
        check_sets(fd, true, false);
        CHECK(i ? t64->tv_sec == 59 : t->sec == 59);
        expect(fd, "o");
        *p = (struct pollfd){fd, POLLIN, 0};
        if (i)
            *t64 = (struct timespec){60, 0};
        else
            *t = (struct time32){60, 0};
        say(fd, "g");
        CHECK(int80(i ? PPOLL_64 : PPOLL, at(p), 1, at(t), at(mask + 2), 8) == 1 && p->revents == POLLIN);
        CHECK(i ? t64->tv_sec == 59 : t->sec == 59);
        expect(fd, "o");
    }
    mask[1] = 4;
    CHECK(int80_6(PSELECT6, fd + 1, 0, 0, 0, 0, at(mask)) == -EINVAL && int80(PPOLL, at(p), 1, at(t), at(mask + 2), 4) == -EINVAL);
    say(fd, "e");
}

static void connected(int fd)
{
    for (char c = 'g';;) {
        read_all(fd, &c, 1);
        if (c == 'e')
            return;
        sleep_ms(50);
        say(fd, "o");
    }
}

int main(void) { return guest_main(accepted, connected); }
