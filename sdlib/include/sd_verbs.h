/* SPDX-License-Identifier: Apache-2.0
 *
 * sd_verbs.h - the monitor's mirroring loop in C over libibverbs, for Python (monitor/hosts/loop.py; src/verbs/).
 *
 * The loop carries bytes: it posts writes for what programs have put into their copies, publishes what has arrived, and asks the other host for a
 * doorbell where the program sleeps (BELL of monitor/hosts/frames.py). It sends the doorbells that it is asked for, on the program's
 * socket, once it has been told where that is, and credits (CREDIT). All else (records, words, failures) it hands to Python as
 * events, and what comes behind those waits for Python, too. The counters of a connection stand in struct sd_mirrored, which both use, never at the
 * same time: in threads of its own (sd_device_start) the loop runs while Python has nothing to do (sd_device_release to sd_device_hold).
 *
 * It looks at the connections that are `watched`, and at no others: a program whose copy is armed has its monitor told by itself, and what arrives is
 * told by a completion. So a turn costs as many looks as there are active connections (monitor/hosts/vigil.py).
 *
 * libibverbs is opened when the first device is: nothing links with it. Functions return -errno where they can fail.
 */
#ifndef SD_VERBS_H
#define SD_VERBS_H

#ifndef SD_VERBS_MESSAGE
#define SD_VERBS_MESSAGE 1024 /* bytes of one SEND, at most */
#endif
#define SD_VERBS_WRITE 65536  /* of one WRITE */
#define SD_CREDIT 11          /* a record of frames.py: slot, head */
#define SD_CREDIT_BYTES 13
#define SD_BELL_RECORD 12         /* slot, how many were asked for */
#define SD_BELL_RECORD_BYTES 9
#define SD_BELLS_MOST 3           /* that may be owed: mirror.py */
#define SD_NUMBER_BITS 8          /* of an immediate: which of a conversation's requests it is; above, of a WRITE, the receiver's slot */
#define SD_MIRRORED_MOST 0x1000000 /* slots */

struct sd_device;
struct sd_queue; /* one queue pair, its protection domain and its messages */

/* One connection; monitor/hosts/mirror.py says what the counters mean. */
struct sd_mirrored {
    uint64_t sent, landed;
    uint64_t bytes_out, bytes_in;
    uint64_t head_said;   /* head in the last words that were sent; */
    uint64_t rest_said;   /* the other words in those, and what else is of interest, as sd_mirrored_rest() sums it up */
    uint64_t far_address;
    void *copy;           /* mapped */
    void *queue;          /* that carries it, or NULL */
    uint64_t ring_bytes;
    uint32_t far_rkey, far_slot, lkey, slot, side;
    uint32_t live;        /* the loop may carry its bytes */
    uint32_t watched;     /* it looks for them by itself */
    uint32_t place;       /* among the watched ones of its queue, from 1 */
    uint32_t asked;       /* doorbells that we have asked for, */
    uint32_t asked_said;  /* and of how many the other monitor was told */
    uint32_t worded;      /* words were sent in this conversation, so that it can count on from there */
    uint32_t wanted;      /* doorbells that the other side has asked for, as far as we know, */
    uint32_t rung;        /* and those of them that are done with */
    uint32_t ringing;     /* its supervisor is at one */
    int32_t tid, fd;      /* who has the program's socket, as which descriptor; 0: its supervisor knows, perhaps */
    uint64_t cookie;      /* of that socket */
    uint64_t last;        /* when it last did something, in turns */
    uint32_t armed;       /* the program says when there is news: 1, and when it has read: 2 */
    uint32_t called;      /* among those whose bell words the threads sleep on, from 1 */
    uint32_t noted;       /* Python is to hear of news already */
    uint64_t held_tail;   /* the program holds bytes back behind this tail (ring/cork.h), */
    uint64_t held_since;  /* which was seen then; 0: none were */
};

struct sd_region {
    void *mr;
    uint32_t lkey, rkey;
};

struct sd_route {
    uint8_t gid[16];
    uint32_t number, far_sequence, own_sequence, mtu, gid_index, timeout, retries;
    uint32_t lid;           /* theirs, in a fabric of InfiniBand; 0: Ethernet */
    uint32_t traffic_class; /* of each packet: DSCP and ECN, */
    uint32_t service_level; /* and InfiniBand's lane, or Ethernet's priority */
};

enum sd_loop_kind {
    SD_LOOP_MESSAGE = 1, /* a SEND has come: `body` */
    SD_LOOP_WRITTEN,     /* bytes have come for a connection that the loop does not carry */
    SD_LOOP_SLEEPS,      /* bytes have been published, and the program sleeps; the loop cannot ask for a doorbell now */
    SD_LOOP_WOKE,        /* bytes have come for a connection that was not watched, and now is */
    SD_LOOP_NEWS,        /* the program has said something, or read much */
    SD_LOOP_BROKEN,      /* the program has written an index that leaves the ring */
    SD_LOOP_LIES,        /* the other monitor has written what does not fit */
    SD_LOOP_MISSING,     /* a request has come before the one in front of it */
    SD_LOOP_ROOM,        /* there is some again, after sd_queue_behind */
    SD_LOOP_FAILED,      /* a request has: `status` is verbs' */
};

struct sd_loop_event {
    uint32_t kind, queue, slot, size, status;
    uint8_t body[SD_VERBS_MESSAGE];
};

struct sd_device_said {
    uint32_t event;       /* enum ibv_event_type: monitor/hosts/events.py */
    uint32_t queue, port; /* that it is about; 0: another thing */
};

struct sd_queue_counts {
    uint64_t posted, done, writes, sends, received, bells, rings, credits;
    uint64_t strays; /* arrivals of what had come already: of a device that repeats itself */
    uint32_t depth, inline_bytes; /* as the device allows */
};

/* `library`: libibverbs; all devices have the first one's. `entries`: of the completion queue of all queue pairs, as far as the device has so many. */
struct sd_device *sd_device_open(const char *library, const char *name, uint32_t port, uint32_t pkey_index, uint32_t entries);
int sd_device_errno(void); /* of the last sd_device_open or sd_queue_open that returned NULL */
int sd_device_fd(struct sd_device *device);
int sd_device_arm(struct sd_device *device);
void sd_device_close(struct sd_device *device);
/* The next of what the device says by itself, for which the descriptor is readable. 1, 0: nothing; -errno: it is gone. */
int sd_device_async_fd(struct sd_device *device);
int sd_device_said(struct sd_device *device, struct sd_device_said *said);
int sd_device_mtu(struct sd_device *device); /* that its port has now, as verbs number it; -errno */

/* Its depth is less where the device, or what is left of the completion queue, allows no more; ENOSPC: too little is left. */
struct sd_queue *sd_queue_open(struct sd_device *device, uint32_t depth, uint32_t inline_bytes);
uint32_t sd_queue_number(struct sd_queue *queue);
int sd_queue_connect(struct sd_queue *queue, const struct sd_route *route);
void sd_queue_close(struct sd_queue *queue);
void sd_queue_count(struct sd_queue *queue, struct sd_queue_counts *counts);
/* Both directions go by it: arrivals are published by the loop, and live connections carried. */
void sd_queue_live(struct sd_queue *queue);
int sd_queue_carry(struct sd_queue *queue, struct sd_mirrored *m);
void sd_queue_drop(struct sd_queue *queue, uint32_t slot);
/* Look at it in every turn, or no more; also before it is carried, or after. */
void sd_mirrored_watch(struct sd_mirrored *m, bool watched);
/* Its bytes may be carried, or no more. */
void sd_mirrored_live(struct sd_mirrored *m, bool live);
int sd_queue_register(struct sd_queue *queue, void *at, uint64_t bytes, bool remote, struct sd_region *region);
void sd_region_close(struct sd_region *region);
bool sd_queue_room(struct sd_queue *queue, uint32_t spare);
/* Records wait for room: nothing of ours may go before them. */
void sd_queue_behind(struct sd_queue *queue, bool behind);
int sd_queue_send(struct sd_queue *queue, const uint8_t *body, uint32_t size);
int sd_queue_write(struct sd_queue *queue, const struct sd_mirrored *m, uint64_t at, uint64_t base, uint32_t size);

/* What the program says beside its counters, in one number: another one is news. */
uint64_t sd_mirrored_rest(const struct sd_mirrored *m);
/* Bytes to be sent, or something to be said at once. */
bool sd_mirrored_news(const struct sd_mirrored *m);
/* What the program holds back is held back no more when it has been for as long as TCP does it, or now (`over`). When to look again: CLOCK_MONOTONIC in
 * nanoseconds; 0: nothing is held. */
uint64_t sd_mirrored_held(struct sd_mirrored *m, bool over);

/* The loop in threads of its own, which spin for `spin_ns` before they sleep. The caller holds the device from here on; -errno. */
int sd_device_start(struct sd_device *device, uint64_t spin_ns);
void sd_device_release(struct sd_device *device);
void sd_device_hold(struct sd_device *device);
void sd_device_stop(struct sd_device *device);
int sd_device_news(struct sd_device *device); /* readable when they have something to tell */

/* How many times a connection was looked at, so far. */
uint64_t sd_device_looks(const struct sd_device *device);
/* Takes completions and carries bytes, until there is an event or nothing has happened for `ns`. How many events; *busy: anything has happened. */
/* With threads: what they have to tell, before anything else. */
int sd_device_turn(struct sd_device *device, struct sd_loop_event *events, uint32_t most, uint64_t ns, bool *busy);

#endif
