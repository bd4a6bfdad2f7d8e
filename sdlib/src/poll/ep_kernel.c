/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_kernel.c - the kernel's half of a registration: tags, masks, and when they have to be right (epoll.h).
 */
#include "poll/epoll.h"
#include "ring/switch.h"

#define TAG_HIGH 0x5d5dull

static u32 next_gen;

u32 reg_next_gen(void)
{
    return ++next_gen; /* structure held */
}

u64 reg_tag(const struct reg *r)
{
    return TAG_HIGH << 48 | (u64)(r->gen & 0xffff) << 32 | r->index;
}

struct reg *reg_of_tag(const struct ep *ep, u64 data)
{
    u32 index = (u32)data;
    if (data >> 48 != TAG_HIGH || index >= ep->cap)
        return NULL;
    struct reg *r = ep->tab[index];
    return r && (r->gen & 0xffff) == (data >> 32 & 0xffff) ? r : NULL;
}

/* One that was given out, perhaps for a registration that is gone; not just any number of the program's. */
bool is_tag(const struct ep *ep, u64 data)
{
    return data >> 48 == TAG_HIGH && (u32)data < ep->cap && ((u32)(data >> 32) & 0xffff) <= next_gen;
}

/* There are, or will be, things to tell that the kernel knows nothing of. */
bool on_ring(const struct sock *s)
{
    u32 rx = load_rlx(&s->b->rx_mode);
    return rx == SD_MODE_RING || load_rlx(&s->b->tx_mode) == SD_MODE_RING || (rx == SD_MODE_TCP && s->seg && sd_sw_published(&s->e));
}

bool fully_on_ring(const struct sock *s)
{
    return load_rlx(&s->b->rx_mode) == SD_MODE_RING && load_rlx(&s->b->tx_mode) == SD_MODE_RING;
}

/* Ring and kernel decide together, and not yet for the last time. */
bool translated(const struct sock *s)
{
    return sd_attached(s)
        && !(load_rlx(&s->b->rx_mode) == SD_MODE_BACK && load_rlx(&s->b->tx_mode) == SD_MODE_BACK);
}

u32 reg_wanted(const struct reg *r)
{
    return r->off ? 0 : sd_bits_fold(r->want & ~PRIVATE_BITS);
}

bool reg_edges(u32 want)
{
    return (want & EPOLLET) && (want & BYTES_COME) && !(want & (EPOLLONESHOT | EPOLLEXCLUSIVE));
}

bool reg_tags_early(const struct ep *ep, u32 want)
{
    if ((want & EPOLLEXCLUSIVE) || ep->given) /* the kernel judges EPOLLEXCLUSIVE by what it is given */
        return false;
    return (want & EPOLLONESHOT) || ((want & EPOLLET) && !ep->inherited);
}

static u32 ring_mask(const struct reg *r, u32 want)
{
    u32 mask = sd_kernel_want(r->s, sd_bits_fold(want & ~(PRIVATE_BITS & ~EPOLLET))) | (want & EPOLLWAKEUP);

    /* One doorbell wakes one of those that wait exclusively, as the bytes would. The kernel takes few other bits beside. */
    return want & EPOLLEXCLUSIVE ? (mask & (POLLIN | POLLOUT | EPOLLET | EPOLLWAKEUP)) | EPOLLEXCLUSIVE : mask;
}

static u32 kernel_mask(const struct reg *r, bool ring)
{
    if (reg_edges(r->want) && !(ring && fully_on_ring(r->s)) && (ring || reg_tags_early(r->ep, r->want)))
        return r->want | POLLIN | POLLRDHUP; /* [E6] */
    if (!ring)
        return r->off ? r->want & PRIVATE_BITS : r->want;
    if (r->off)
        return EPOLLET; /* ERR and HUP are always reported: once, not for ever */
    return ring_mask(r, r->want) | (r->useless > 1 ? EPOLLET : 0);
}

/* On the ring a mask that says more than we need does no harm, until it has kept us awake in vain. */
static bool covers(const struct reg *r, u32 mask)
{
    if (mask == r->kmask)
        return true;
    return fully_on_ring(r->s) && r->useless < 2 && !r->kicked && !((mask ^ r->kmask) & PRIVATE_BITS) && !(mask & ~r->kmask);
}

/* What is in a set that others have is on its way to TCP, at the least. */
static bool by_ring(const struct reg *r)
{
    return translated(r->s) && !r->ep->given;
}

u32 reg_mask(const struct reg *r)
{
    return kernel_mask(r, by_ring(r));
}

bool reg_covered(const struct reg *r, u32 want)
{
    return r->tagged && translated(r->s) && fully_on_ring(r->s) && covers(r, ring_mask(r, want));
}

static long kernel_ctl(const struct reg *r, int op, u32 mask, u64 data)
{
    struct epoll_event ev = {mask, data};
    return SYS4(__NR_epoll_ctl, r->ep->fd, op, r->fd, &ev);
}

static long kernel_mod(const struct reg *r, u32 mask, u64 data)
{
    if (!(r->want & EPOLLEXCLUSIVE))
        return kernel_ctl(r, EPOLL_CTL_MOD, mask, data);
    /* The kernel does not modify exclusive registrations. */
    kernel_ctl(r, EPOLL_CTL_DEL, 0, 0);
    return kernel_ctl(r, EPOLL_CTL_ADD, mask, data);
}

/* [E6] It is to be asked anew, and would take the edge that is still to come for its answer. */
static bool owes_room(const struct reg *r)
{
    struct pollfd p = {r->live, POLLOUT, 0};
    struct timespec64 zero = {0, 0};

    return (r->want & EPOLLET) && (reg_wanted(r) & POLLOUT) && load_rlx(&r->s->b->tx_mode) != SD_MODE_RING && SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) == 0;
}

/* Makes the kernel's half what it has to be. A one-shot carries our tag from the start: we must know whether it has fired when the socket
 * attaches later. */
long reg_sync(struct reg *r, bool force)
{
    bool ring = by_ring(r), tag = ring || reg_tags_early(r->ep, r->want);
    u32 mask = kernel_mask(r, ring);
    force |= (r->want & EPOLLET) && (reg_wanted(r) & POLLOUT) && r->tx_full && load_rlx(&r->s->b->tx_mode) == SD_MODE_BACK; /* [E6] there is room now: of that the kernel knows nothing */
    if (!force && tag == r->tagged && (!tag || covers(r, mask)))
        return 0;
    if (owes_room(r))
        r->tx_full = true;
    long ret = kernel_mod(r, mask, tag ? reg_tag(r) : r->data);
    if (ret < 0)
        return ret;
    r->ep->tagged += (u32)tag - (u32)r->tagged;
    r->tagged = tag;
    r->kicked = false;
    r->renewed = true;
    r->kmask = mask;
    return 0;
}

/* Wakes one thread that sleeps on the epoll (or on one that watches it): [E1]. */
void reg_kick(struct reg *r)
{
    u32 mask = (kernel_mask(r, true) & ~EPOLLET) | POLLOUT;
    if (kernel_mod(r, mask, reg_tag(r)) < 0)
        return; /* closed meanwhile: nothing is left to wake up for */
    r->ep->tagged += !r->tagged;
    r->tagged = r->kicked = r->renewed = true;
    r->kmask = mask;
}

/* The kernel's half becomes the program's own. */
bool reg_hand_back(struct reg *r)
{
    u32 mask = r->off ? r->want & PRIVATE_BITS : r->want;
    if (kernel_mod(r, mask, r->data) < 0)
        return false;
    r->ep->tagged--;
    r->tagged = r->kicked = false;
    r->kmask = mask;
    return true;
}

/* There is something to tell of a connection of which one direction is not on the ring. Linux tells all that is true of a descriptor at once, so the
 * kernel is asked for that direction: sd_ready() with its answer, which of the other direction would tell of doorbells. */
u32 reg_other_half(const struct reg *r, u32 lacking)
{
    const struct sd_block *b = r->s->b;
    u32 in = load_rlx(&b->rx_mode) == SD_MODE_RING ? 0 : POLLIN | POLLRDNORM | POLLPRI | POLLRDHUP;
    u32 out = load_rlx(&b->tx_mode) == SD_MODE_RING ? 0 : POLLOUT | POLLWRNORM;
    struct pollfd p = {r->live, (int16_t)(lacking & (in | out)), 0};
    struct timespec64 zero = {0, 0};
    if (!p.events || SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) <= 0)
        return 0;
    return sd_ready(r->s, r->live, (u16)p.revents & (in | out));
}
