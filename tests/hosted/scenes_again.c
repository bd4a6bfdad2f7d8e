/* SPDX-License-Identifier: Apache-2.0
 *
 * scenes_again.c - scenarios of two threads that receive while rings come, or others take the place of those of a lost link.
 */
#include <string.h>
#include "scene.h"
#include "sd_py.h"

/* ---------------------------------------------------- up again, on other rings */

/* The link to another host was lost, and everything in the rings is read: our direction is back on TCP already, the other one goes there at the next
 * receive, and finds a byte. Whoever of two threads finds both directions back offers anew, and maps; once that is attached, the other end switches to
 * the new ring: a greeting by TCP, and two bytes. Nobody may go on with what he has seen of the old one. */
static const struct sd_mark greeting = {.magic = SD_GREET_MAGIC, .far_id = {7, 8}};

static void new_rings(void)
{
    w.seg.far_id[0] = 7;
    w.seg.far_id[1] = 8;
    *(u32 *)&w.seg.attached[1] = 0;
}

/* Our monitor is nudged when we have attached. */
static void other_end_switches(void)
{
    struct stream *st = &w.net.dir[0];

    if (*(u32 *)&w.seg.lost || !*(u32 *)&w.seg.attached[1] || *(u64 *)&w.seg.dir[0].sw_ring)
        return;
    w.ring[0][0] = 'n';
    w.ring[0][1] = 'm';
    *(u64 *)&w.seg.dir[0].tail = 2;
    *(u64 *)&w.seg.dir[0].sw_ring = st->written + 1;
    *(u32 *)&w.seg.dir[0].bell = 1;
    memcpy(st->data + st->written, &greeting, sizeof greeting);
    st->written = st->arrived = st->written + (u32)sizeof greeting;
    host_changed();
}

/* Two threads have it, and a byte by TCP is unread. */
static void on_another_host(void)
{
    struct sd_block *b = &w.block[1];

    shared_by_threads(1, SD_DIR_RX);
    mc_share(&b->token[SD_DIR_TX]);
    const volatile void *words[] = {&b->state, &b->rx_mode, &b->tx_mode, &b->rx_plain, &w.sock[1].attaching};
    static const char *const text[] = {"state", "rx_mode", "tx_mode", "rx_plain", "attaching"};
    for (u32 i = 0; i < ARRAY_LEN(words); i++) {
        mc_share(words[i]);
        mc_name(words[i], text[i]);
    }
    for (u32 i = 0; i < THREADS; i++) {
        mc_share(&w.tcb[i].level);
        mc_share(&w.tcb[i].use[0]);
        mc_name(&w.tcb[i].level, "level");
        mc_name(&w.tcb[i].use[0], "use");
        w.tcb[i].level = 0;
    }
    hosted_config.upgrade = SD_UPGRADE_EAGER;
    hosted_supervised = true;
    hosted_new_rings = new_rings;
    hosted_nudged = other_end_switches;
    b->far = 1;
    w.net.dir[0].data[0] = 'x';
    w.net.dir[0].written = w.net.dir[0].arrived = 1;
}

static void paired(void)
{
    on_another_host();
    *(u32 *)&w.block[1].state = SD_BLOCK_PAIRED;
    *(u32 *)&w.block[1].rx_mode = *(u32 *)&w.block[1].tx_mode = SD_MODE_TCP;
    w.sock[1].seg = NULL;
    *(u32 *)&w.seg.lost = 1; /* there is none yet */
}

static void lost_and_found(void)
{
    struct sd_dir *in = &w.seg.dir[0];

    on_another_host();
    *(u32 *)&w.block[1].rx_mode = SD_MODE_RING;
    *(u32 *)&w.block[1].tx_mode = SD_MODE_BACK;
    *(u32 *)&w.seg.lost = 1;
    *(u64 *)&in->sw_ring = 1;
    *(u64 *)&in->sw_back_at = *(u64 *)&in->tail;
    *(u64 *)&in->sw_back = 1;
}

/* As the gate and sd_sock_enter do it; without the short way, which has marks of its own. */
static void come_in(struct sd_tcb *t)
{
    store_rlx((_Atomic u32 *)&t->level, 1);
    store_rel(&t->use[0], &w.sock[1]);
}

static void go_out(struct sd_tcb *t)
{
    store_rel(&t->use[0], NULL);
    store_rlx((_Atomic u32 *)&t->level, 0);
}

/* What two receives in a row come to, but for the bytes. */
static void back_and_up(void)
{
    come_in(sd_self());
    sd_rx_back(&w.sock[1], FD_OF(1));
    sd_tick(&w.sock[1], FD_OF(1));
    go_out(sd_self());
}

static void one_receive(void);
static void two_receives(void) { one_receive(), one_receive(); }

static void one_receive(void)
{
    struct sd_tcb *t = sd_self();
    u8 byte = 0;
    struct iovec v = {&byte, 1};
    long r;

    come_in(t);
    r = sd_rx(&w.sock[1], FD_OF(1), &v, 1, MSG_DONTWAIT);
    go_out(t);
    if (r == 1 && !byte)
        host_fail("a doorbell has reached the program");
    if (r == 1)
        prog.got[1][prog.ngot[1]++] = byte;
    else if (r != -EAGAIN)
        host_fail("receive has failed");
}

/* Each byte has one reader, and nobody reads what no ring has had. */
static void each_byte_once(void)
{
    static const char bytes[] = "xnm";
    u32 seen = 0;

    for (u32 i = 0; i < prog.ngot[1]; i++) {
        const char *at = memchr(bytes, prog.got[1][i], 3);
        u32 bit = at ? 1u << (at - bytes) : 0;
        if (!bit || (seen & bit))
            host_fail("bytes are lost, doubled or of another ring");
        seen |= bit;
    }
    if (w.block[1].state == SD_BLOCK_ATTACHED && w.block[1].rx_mode == SD_MODE_RING && !w.seg.lost)
        mc_mark(MARK_AGAIN);
}

/* ------------------------------------------------- a link that is lost: why our direction has gone back */

/* Its supervisor says why before it asks; the program may go back by itself as soon as it is asked. */
static void on_a_lost_link(void)
{
    on_rings();
    hosted_supervised = true;
    w.block[0].far = 1;
    *(u32 *)&w.seg.told = *(u32 *)&w.seg.heard = 1;
    *(u64 *)&w.seg.mark_from = 1; /* the mark has gone out already: it is longer than this ring */
    *(u64 *)&w.seg.mark_at = *(u64 *)&w.seg.dir[0].tail;
    w.net.dir[0].written = w.net.dir[0].arrived = sizeof(struct sd_mark);
    mc_share(&w.seg.lost);
    mc_share(&w.seg.pumped);
    mc_name(&w.seg.lost, "lost");
    mc_name(&w.seg.pumped, "pumped");
    mc_part(g.proc->moved_back, sizeof g.proc->moved_back);
}

static void send_two(void)
{
    put(0, "a", 0);
    put(0, "b", 0);
}

static void supervisor(void)
{
    struct sd_dir *out = &w.seg.dir[0];
    struct sd_mark mark;

    sd_pump_leave(&w.seg, 0, SD_REASON_unsteady);
    if (sd_pump_begin(&w.seg, 0, &mark) != SD_PUMP_MARK)
        return;
    for (sd_pump_go(&w.seg); load_acq(&w.seg.pumped) != 0;) {
        store_rel(&out->head, load_acq(&out->tail));
        if (load_rlx(&w.block[0].tx_mode) != SD_MODE_RING || prog.eof[0])
            return;
        host_point("pumped");
    }
}

static void it_says_why(void)
{
    for (u32 i = 0; i < SD_REASON_COUNT; i++)
        if (g.proc->moved_back[i] > (i == SD_REASON_unsteady))
            host_fail("a wrong reason");
}

const struct scenario scenes_again[] = {
    {"back-far", on_a_lost_link, {send_two, supervisor}, it_says_why},
    {"attach-shared", paired, {one_receive, one_receive}, each_byte_once},
    {"again", lost_and_found, {back_and_up, two_receives}, each_byte_once},
    {0},
};
