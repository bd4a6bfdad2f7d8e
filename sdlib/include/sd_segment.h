/* SPDX-License-Identifier: Apache-2.0
 *
 * sd_segment.h - a part of sd_abi.h: the rings of a connection, which its two ends share. It says there how this file may be changed.
 */
#ifndef SD_SEGMENT_H
#define SD_SEGMENT_H

#define SD_SEG_MAGIC 0x474e495253445244 /* "DRDSRING" */
#define SD_SEG_HDR_BYTES 4096
#define SD_RING_MIN 4096
#define SD_RING_MAX 0x4000000

#define SD_DATES 5

/* One direction. "producer" writes bytes into its ring, "consumer" reads them. Counters run free (u64, never wrapped);
 * the place in the ring is (counter - base) & (ring_bytes - 1). */
struct sd_dir {
    /* line 0, producer. Release by the producer after the bytes are stored; acquire by the consumer before it reads them. (The consumer moves tail, too,
     * when bytes have been held back for long enough.) */
    SD_ATOMIC uint64_t tail;
    SD_ATOMIC uint32_t prod_fenced; /* 1: a full fence stands between each store of tail and the load of rx_armed behind it ([W3], bell.h) */
    uint32_t pad7;
    SD_ATOMIC uint64_t base;        /* counter of a byte at the start of the ring's memory; moved only while the ring is empty ([R3], ring.c) */
    SD_ATOMIC uint64_t date[SD_DATES]; /* when messages came, while the consumer asks for it ([O1], ring/dates.h) */
    /* line 1, producer, written a few times in a life. */
    SD_ATOMIC uint64_t sw_ring;     /* 1 + TCP stream position of the first byte that is in the ring; 0 = still on TCP */
    SD_ATOMIC uint64_t sw_back;     /* 1 + TCP stream position (doorbells included) where the program's bytes go on; 0 = not gone back */
    SD_ATOMIC uint64_t sw_back_at;  /* ring counter behind the last byte in the ring; stored before sw_back */
    SD_ATOMIC uint32_t prod_hint;   /* SD_HINT_*: makes the end of life fast and exact, never the truth */
    SD_ATOMIC uint32_t bell_first;  /* 1: the doorbell that stands behind the switch is the first byte in the ring ([S6], ring/switch.h) */
    SD_ATOMIC uint64_t held;        /* counter behind the bytes that are held back behind the tail (ring/cork.h); not ahead of tail: none are */
    SD_ATOMIC uint64_t held_since;  /* TSC; stored before held */
    SD_ATOMIC uint64_t handle;      /* by which the producer's process finds this connection: what a consumer names in nap_at ([N2], poll/nap.c); 0: it cannot */
    uint64_t pad2;
    /* line 2, consumer. Release after the bytes are copied out; acquire by the producer before it overwrites them. */
    SD_ATOMIC uint64_t head;
    uint64_t pad3[7];
    /* line 3, consumer. Count of consumers that are parked or not yet on the ring; starts at 1. Set, membarrier, look again. */
    SD_ATOMIC uint32_t rx_armed;
    SD_ATOMIC uint32_t cons_cpu;    /* 1 + CPU on which the consumer has read its last large message */
    SD_ATOMIC uint32_t go_back;     /* consumer, or a supervisor, asks the producer to go back to TCP: SD_GO_BACK_*; the producer may make RESEND TAKEN */
    SD_ATOMIC uint32_t dated;       /* 1: the consumer asks for dates; beside go_back: fast.c looks at both at once */
    SD_ATOMIC uint32_t arrived;     /* 1: the consumer has read all of TCP and reads the ring, so a reset cannot be for bytes of the program there */
    uint32_t pad0;
    SD_ATOMIC uint64_t sleep;       /* the sleep of a whole set that the one in rx_armed is part of: one bell ends it ([W4], bell.h); 0: none */
    SD_ATOMIC uint32_t nap;         /* consumer: 1 while it sleeps on this word instead of its descriptor; the producer puts 0 and wakes it ([N1], poll/nap.c) */
    SD_ATOMIC uint32_t exclusive;   /* 1: some of the consumer's processes wait exclusively: rings that one unheard bell spares are counted ([B4], bell.h) */
    SD_ATOMIC uint64_t nap_at;      /* consumer: on whose word it sleeps: SD_NAP_OWN, or the handle of another connection with the same process; 0: it does not nap */
    uint64_t pad9[2];
    /* line 4, producer. Count of producers parked for room. Same protocol as rx_armed. */
    SD_ATOMIC uint32_t tx_armed;
    SD_ATOMIC uint32_t prod_cpu;    /* 1 + CPU the producer last waited on */
    SD_ATOMIC uint32_t tx_most;     /* so many bytes are unread at most, where that is less than the ring holds (sock/life.c); 0: it is not */
    uint32_t pad5[13];
    /* line 5, both, by locked instructions: enum sd_bell. */
    SD_ATOMIC uint32_t bell;
    uint32_t pad6;
    SD_ATOMIC uint64_t rung_at;     /* producer: TSC when it last rang; only for learning how long to spin */
    uint32_t pad8[12];
};

/* Doorbell bytes of a direction's TCP stream, unread or on their way ([B1] to [B3], ring/bell.h). */
enum sd_bell {
    SD_BELL_NONE = 0,
    SD_BELL_RUNG = 1,    /* one; nobody sends another */
    SD_BELL_CLAIMED = 2, /* one, which a consumer with company is about to eat */
    SD_BELL_HEARD = 3,   /* one, which stays for others; the next poster sends another */
    SD_BELL_AGAIN = 4,   /* two; nobody sends another */
    SD_BELL_MORE = 8,    /* added to RUNG and AGAIN for each that would have been sent otherwise, where those are counted ([B4]) */
};

enum sd_go_back {
    SD_GO_BACK_CALL = 1,
    SD_GO_BACK_POLICY = 2, /* both directions: the connection shall be on TCP */
    SD_GO_BACK_RESEND = 3, /* the consumer reads no more: what it has not read is to be sent again by TCP ([S5], ring/switch.h) */
    SD_GO_BACK_TAKEN = 4,  /* that is being done */
    SD_GO_BACK_UNREAD = 5, /* as RESEND, from a consumer that has not come to the ring: the doorbell in front stays where it is ([S6]) */
};

#define SD_NAP_OWN 1 /* no handle: those have a bit set above */

/* A producer that has come so far looks whether the ring is empty and starts over, so that few lines of it stay in the caches. */
#ifndef SD_RING_WINDOW
#define SD_RING_WINDOW 4096
#endif

/* Messages without a sleeper until a producer stops to fence ([W3]). */
#ifndef SD_FENCE_FOR
#define SD_FENCE_FOR 256
#endif

enum sd_hint {
    SD_HINT_SHUT_WR = 1, /* shutdown(SHUT_WR) comes: the FIN is a half-close, not the end of the peer */
    SD_HINT_ABORT = 2,   /* closed with SO_LINGER 0: the reset is meant */
    SD_HINT_CLOSED = 4,  /* closed in an orderly way, or shut in both directions: what is sent now is answered with a reset */
    SD_HINT_LEAVING = 8, /* goes back to TCP: no doorbell comes here any more, so nobody may wait for one */
    SD_HINT_URGENT = 16, /* has sent, or is about to send, urgent data by TCP */
    SD_HINT_GIVEN = 32,  /* both directions are on TCP for good: this end is another program's, which may offer the connection anew */
};

/* Direction d is written by side d. Ring of direction d starts at SD_SEG_HDR_BYTES + d * ring_bytes. */
struct sd_seg {
    uint64_t magic;
    uint32_t version;
    uint32_t ring_bytes;               /* power of two; each end checks it against the file's size and keeps its own copy */
    SD_ATOMIC uint32_t attached[2];    /* [side] = 1 once that side has mapped the segment (release / acquire) */
    /* Between hosts, of this host's copy; 0 on one host. The monitor is the only other one that has it mapped. */
    SD_ATOMIC uint32_t settle_ask;     /* library: the kernel says that the stream is over; how often that was asked ([H1], sock/far.h) */
    SD_ATOMIC uint32_t settled;        /* monitor: so many are answered: what the other end had written and read then stands here */
    SD_ATOMIC uint32_t lost;           /* monitor, supervisor: enum sd_reason: why what is not here yet does not come by the ring any more; stored before go_back */
    SD_ATOMIC uint32_t ringing;        /* enum sd_ringing: these are about to send a doorbell on our socket ([H2]) */
    uint64_t far_id[2];                /* monitor: names the connection between the two hosts; told to the next monitor */
    SD_ATOMIC uint32_t bells_asked;    /* monitor: doorbells that it has asked the other host for, */
    SD_ATOMIC uint32_t bells_rung;     /* and those asked for over there that are done with here */
    SD_ATOMIC uint32_t told;           /* monitor: it says to the other host that our direction has switched; stored before that */
    SD_ATOMIC uint32_t heard;          /* monitor: the other host knows it, so a mark on TCP is understood there ([H3]) */
    SD_ATOMIC uint32_t moving;         /* monitor: it is about to store a tail or a head here; by exchange, before it looks at the next two ([H4]) */
    SD_ATOMIC uint32_t frozen;         /* library: no tail any more, it has read the other end's mark */
    SD_ATOMIC uint32_t pumped;         /* supervisor: enum sd_pumped; not 0: no head is stored any more */
    SD_ATOMIC uint32_t pump_end;       /* library: a FIN behind them */
    SD_ATOMIC uint64_t mark_from;      /* library: 1 + TCP position of our own mark; 0: none was begun */
    SD_ATOMIC uint64_t mark_at;        /* library: what it says; stored before */
    SD_ATOMIC uint32_t greeted;        /* who rings: the greeting of our direction is sent */
    SD_ATOMIC uint32_t direct;         /* monitor: its loop sleeps on the bell word of our direction, as on a futex ([H2]) */
    SD_ATOMIC uint32_t deaf;           /* library: the program has shut both directions, when its ring had come to */
    uint32_t pad;
    SD_ATOMIC uint64_t deaf_at;        /* here; stored before */
    struct sd_dir dir[2];
};

/* A bit each, as a supervisor may be at one that its former monitor has asked for while the next one rings itself. */
enum sd_ringing {
    SD_RINGING_SUPERVISOR = 1,
    SD_RINGING_MONITOR = 2,
};

enum sd_pumped {
    SD_PUMPED_LOOKING = 1, /* unless the library is leaving by itself, */
    SD_PUMPED_MARK = 2,    /* the supervisor's mark is on its way to the socket; behind it */
    SD_PUMPED_BYTES = 3,   /* the supervisor takes what is in the ring to TCP */
};

/* Between hosts, in the TCP stream: what follows is the program's stream from ring counter `at` on ([H3]). Doorbells are zeros, so the first byte
 * tells the two apart. `far_id` is known to the two ends and their monitors alone. */
#define SD_MARK_MAGIC 0x0a4b43414244535d
#define SD_GREET_MAGIC 0x0a4c4c454844535d /* `at` 0: not a mark, but a direction's first doorbell, which proves that the ring is that of this connection */
struct sd_mark {
    uint64_t magic;
    uint64_t far_id[2];
    uint64_t at;
};

#ifndef SD_CFFI
_Static_assert(sizeof(struct sd_dir) == 384, "dir is six lines");
_Static_assert(sizeof(struct sd_seg) == 128 + 2 * 384, "seg");
_Static_assert(sizeof(struct sd_seg) <= SD_SEG_HDR_BYTES, "seg header fits its page");
SD_LAYOUT(sd_dir, sw_ring, 64);
SD_LAYOUT(sd_dir, head, 128);
SD_LAYOUT(sd_dir, rx_armed, 192);
SD_LAYOUT(sd_dir, go_back, 200);
SD_LAYOUT(sd_dir, dated, 204);
SD_LAYOUT(sd_dir, tx_armed, 256);
SD_LAYOUT(sd_dir, bell, 320);
SD_LAYOUT(sd_seg, dir, 128);
#endif

#endif
