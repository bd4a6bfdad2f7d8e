/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_shared.c - epoll sets that a fork has shared, and that two processes use (epoll.h).
 *
 * What was in the set before the fork both know. What one of them registers later the kernel has with a tag of his, which says nothing to the other one. So a word in the
 * area tells who has used the set since. Most children never do, and of most sets only one process goes on: for him nothing changes. Once one has registered something
 * and another one waits, in whatever order, the set is the kernel's, with the program's own data, and what is in it is TCP's: as with one that is sent in a
 * message, but that the others have to be told, which the supervisor does (givesets.py).
 *
 * Several that only wait go on as they are: servers share a set with their listener in it.
 */
#include "poll/epoll.h"

bool sd_ep_registers(u64 epfd)
{
    const struct ep *ep = sd_epoll_of(epfd);
    return ep && ep->registers;
}

/* As the word calls us; 0: nobody. Where we have the place of one who is dead, what he had registered has gone with him. */
static u32 us(void)
{
    const struct sd_area *a = g.area[0];
    return a && g.proc >= a->proc && g.proc < a->proc + SD_AREA_PROCS ? (u32)(g.proc - a->proc) + 1 : 0;
}

static _Atomic u64 *place_of(u32 name) { return &g.area[0]->set[name % SD_AREA_SETS]; }

/* The word of this set; one with state 0 is written if the place was an older one's. False: it is a younger one's now, and nothing is known any more. */
static bool word_of(u32 name, u64 *word)
{
    _Atomic u64 *at = place_of(name);
    u64 was = load_acq(at), fresh = (u64)name << 32;

    while ((u32)(was >> 32) != name) {
        if ((i32)((u32)(was >> 32) - name) > 0)
            return false;
        if (atomic_compare_exchange_strong(at, &was, fresh))
            was = fresh;
    }
    *word = was;
    return true;
}

/* What it is from now on, if that does not take the others' part. 0: it does. */
static u32 alone(u32 state, u32 me, bool registers)
{
    u32 user = state & 0xffff, flag = state & SD_SET_REGISTERED;

    if (!user || user == me)
        return me | flag | (registers ? SD_SET_REGISTERED : 0);
    return flag || registers ? 0 : SD_SET_MANY;
}

void ep_use_shared(struct ep *ep, int epfd, bool registers)
{
    u32 me = us(), name = ep->name, next;
    u64 word;

    if (!me)
        return;
    do {
        if (!word_of(name, &word)) {
            ep->name = 0;
            return;
        }
        if ((word & 0xffff) == SD_SET_ALL) {
            sd_ep_give((u32)epfd);
            return;
        }
        next = alone((u32)word, me, registers);
        if (!next) {
            long others = sd_hypercall(SD_HC_SHARED, (u64)epfd, 0);
            if (others < 0) { /* nobody can tell, or tell the others */
                ep->name = 0;
                return;
            }
            next = others == 1 ? alone(0, me, registers) : SD_SET_ALL;
        }
    } while ((u32)word != next && !atomic_compare_exchange_strong(place_of(name), &word, (u64)name << 32 | next));
    if (next != SD_SET_ALL) {
        ep->registers |= registers;
        return;
    }
    sd_ep_give((u32)epfd); /* first, since what the others have registered is newer */
    sd_hypercall(SD_HC_SHARED, (u64)epfd, 1); /* who cannot be told now sees the word, when he uses it next */
}

/* Structure is held. Who waits while it is shared uses it, too. */
void ep_name(struct ep *ep)
{
    struct sd_area *a = g.area[0];
    u64 word;

    if (!a || ep->given)
        return;
    if (!ep->name)
        ep->name = atomic_fetch_add(&a->sets_top, 1) + 1;
    if (load_rlx(&ep->waits) && us() && word_of(ep->name, &word) && !(u32)word)
        atomic_compare_exchange_strong(place_of(ep->name), &word, word | us());
}
