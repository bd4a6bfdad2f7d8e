/* SPDX-License-Identifier: Apache-2.0
 *
 * token.h - who may move a direction's index: one process or thread at a time, without an atomic instruction while it stays the same one.
 *
 * Theory of operation
 * -------------------
 * Each direction of a block has a *token* (one word in the area, which its sharers trust). Each thread that touches shared connections
 * has a *participant* (struct sd_part, in the area too), and in it one *mark* for each nesting level of signal handlers. A process with one thread whose
 * socket nobody else holds uses neither.
 *
 *   token   FREE(v)        nobody
 *           BIASED(A, v)   A comes and goes as it likes; its mark says when it is inside
 *           HELD(A, v)     A is inside (lock mode, when two alternate: a revocation costs more than a lock)
 *           REVOKED(A, v)  A may not enter any more; whoever has seen A out may claim
 *   mark    IDLE, OP(k) inside, COMMIT(k) decided: `to` is the new index, VOID(k) thrown out, EAT(k) and BELL(k) inside, about to make
 *           a system call that moves a byte; k never repeats. Every value also names the token that it is about.
 *
 * The region.                                  Taking it from A:
 *   E1 mark := OP(k)              store          R1 token: BIASED/HELD(A) -> REVOKED(A)   locked exchange
 *   E2 token is BIASED(me)?       load           R2 membarrier
 *      copy bytes                                R3 mark of A about this token? wait, then void it, or finish what it has decided
 *   C1 to := new index            store          R4 token: REVOKED(A) -> BIASED/HELD(me)  locked exchange
 *   C2 mark: OP(k) -> COMMIT(k)   plain cmpxchg   V1 mark of A: OP(k) -> VOID(k)           locked exchange
 *   C3 index: from -> to          locked cmpxchg  V2 membarrier
 *   L1 mark := IDLE               store          V3 still VOID(k): A commits nothing. COMMIT(k): finish for it
 *   L2 token: HELD -> FREE        locked cmpxchg  F1 index := `to`, forward only, by locked exchange; F2 membarrier; F3 mark: COMMIT(k) -> VOID(k)
 *
 * Edges
 *   [T1] E1 before E2 | R1, R2, R3. No fence in A: the membarrier falls before E1 (then E2 sees REVOKED) or after it (then R3 sees the mark).
 *   [T2] C2 | V1, V2, V3. C2 has no lock prefix: another CPU may change the mark between its load and its store. But the membarrier interrupts A between
 *        instructions and empties its store buffer, so after V2 the cmpxchg is over, and what V3 sees is final.
 *   [T3] C3 | F1: both write `to`; a late C3 finds an index that is not `from`, which free-running counters never are again, and F1 one that is ahead.
 *        C3 and L2 may come late, when others write the same word already, and are locked: a plain cmpxchg that fails writes back what it has read,
 *        over what another CPU has written meanwhile. C2 may be plain, because nobody but its owner writes a mark that is VOID.
 *   [T4] L2 | R1: if L2 won, R4 fails, for the version differs, and the taker starts over.
 *   [T6] VOID seen by a third party: it may still be on its way to V3, so one's own membarrier comes first.
 *   [T5] C1 before C2 | mark seen, then `to`, then the mark again: x86 stores are not reordered.
 *
 * What is guaranteed
 *   - Alternating users exclude each other; bytes are lost, doubled or torn by nobody, whoever is stopped or killed wherever.
 *   - A user that is killed inside is seen to be dead (same PID namespace) and its mark is void. One that is stopped, or that we cannot know to be dead, is waited for
 *     SD_VOID_RX_NS or SD_VOID_TX_NS, then thrown out. For a reader that is all: it notices at C2 and starts over. A writer may go on
 *     copying into the ring when it is continued: so its ring is not used any more (SD_MODE_RETIRE) and the direction goes back to TCP, unless the writer is dead.
 *   - System calls cannot be thrown out. EAT and BELL make them with a length in shared memory: it is set to 0, and the taker goes on once A's call
 *     cannot be in progress (its mark has changed, or its thread is stopped or dead by /proc). EAT is waited for by every reader, BELL only by the way back to TCP.
 *   - No token is held while parked.
 *   - Handlers: a nested entry that finds its own thread inside the same region throws that out by the same rules.
 *
 * Threads without a participant (more than SD_AREA_PARTS) are "anonymous", number 0: lock mode only, and they cannot be thrown out.
 *
 * All of this file is steps without system calls, so that the protocol can be driven step by step; token.c waits and asks the kernel.
 */
#ifndef SD_TOKEN_H
#define SD_TOKEN_H

#include "base/base.h"

#define SD_DIR_RX 0u
#define SD_DIR_TX 1u
#define SD_VOID_RX_NS 2000000ull
#define SD_VOID_TX_NS 100000000ull

/* ---- the token word: kind 2 bits, participant 12, run 6 (how often the same one came again in lock mode), version 44 */

enum sd_tok_kind { SD_TOK_FREE = 0, SD_TOK_BIASED = 1, SD_TOK_HELD = 2, SD_TOK_REVOKED = 3 };
#define SD_TOK_RUN_MAX 63u

static inline u32 sd_tok_kind(u64 tok) { return tok & 3; }
static inline u32 sd_tok_part(u64 tok) { return tok >> 2 & 0xfff; }
static inline u32 sd_tok_run(u64 tok) { return tok >> 14 & 0x3f; }

/* The word that follows `tok`. */
static inline u64 sd_tok_next(u64 tok, u32 kind, u32 part, u32 run)
{
    return ((tok >> 20) + 1) << 20 | (u64)run << 14 | (u64)part << 2 | kind;
}

/* E2: may participant `me`, whose mark is set, go on? */
static inline bool sd_tok_mine(u64 tok, u32 me)
{
    u32 kind = sd_tok_kind(tok);

    return sd_tok_part(tok) == me && (kind == SD_TOK_BIASED || kind == SD_TOK_HELD) && tok >> 20;
}

/* A FREE token, or one revoked from ourselves: what we would put there. The first user ever, and one that came often enough, is biased. */
static inline u64 sd_tok_want(u64 tok, u32 me)
{
    u32 run = sd_tok_kind(tok) == SD_TOK_FREE && sd_tok_part(tok) == me ? sd_tok_run(tok) : 0;
    bool bias = me && (!(tok >> 20) || run == SD_TOK_RUN_MAX);

    return sd_tok_next(tok, bias ? SD_TOK_BIASED : SD_TOK_HELD, me, bias ? 0 : run < SD_TOK_RUN_MAX ? run + 1 : run);
}

static inline bool sd_tok_cas(_Atomic u64 *word, u64 tok, u64 next)
{
    return atomic_compare_exchange_strong(word, &tok, next);
}

/* R1 */
static inline bool sd_tok_revoke(_Atomic u64 *word, u64 tok, u64 *next)
{
    *next = sd_tok_next(tok, SD_TOK_REVOKED, sd_tok_part(tok), 0);
    return sd_tok_cas(word, tok, *next);
}

/* L2 [T4] */
static inline void sd_tok_release(_Atomic u64 *word, u64 tok)
{
    if (sd_tok_kind(tok) == SD_TOK_HELD)
        sd_tok_cas(word, tok, sd_tok_next(tok, SD_TOK_FREE, sd_tok_part(tok), sd_tok_run(tok)));
}

/* ---- the mark word: state 3 bits, direction 1, block 12, area 4, count 44 */

enum sd_mark_state { SD_MARK_IDLE = 0, SD_MARK_OP = 1, SD_MARK_COMMIT = 2, SD_MARK_VOID = 3, SD_MARK_EAT = 4, SD_MARK_BELL = 5 };
#define SD_MARK_KEY 0xffff8ull

static inline u32 sd_mark_state(u64 mark) { return mark & 7; }
static inline u64 sd_mark_as(u64 mark, u32 state) { return (mark & ~7ull) | state; }
static inline u64 sd_mark_key(u32 block_id, u32 dir)
{
    return (u64)(block_id >> 16 & 0xf) << 16 | (u64)(block_id & 0xfff) << 4 | (u64)dir << 3;
}
static inline bool sd_mark_about(u64 mark, u64 key) { return (mark & SD_MARK_KEY) == key; }

/* E1 [T1]. Returns the mark. */
static inline u64 sd_mark_set(_Atomic u64 *mark, u64 key, u32 state)
{
    u64 m = ((load_rlx(mark) >> 20) + 1) << 20 | key | state;

    store_rel(mark, m);
    atomic_signal_fence(memory_order_seq_cst); /* E1 before E2 in program order; the other half is the membarrier in R2 */
    return m;
}

/* L1 */
static inline void sd_mark_clear(_Atomic u64 *mark, u64 m)
{
    store_rel(mark, sd_mark_as(m, SD_MARK_IDLE));
}

/* C1, C2 [T2] [T5]. False: thrown out, nothing is decided. */
static inline bool sd_mark_commit(_Atomic u64 *mark, _Atomic u64 *to_word, u64 m, u64 to)
{
    store_rlx(to_word, to);
    return sd_cas_local(mark, m, sd_mark_as(m, SD_MARK_COMMIT));
}

/* V1. The caller's membarrier and V3 follow. */
static inline bool sd_mark_void(_Atomic u64 *mark, u64 m)
{
    return sd_tok_cas(mark, m, sd_mark_as(m, SD_MARK_VOID));
}

/* What a COMMIT has decided; false: look at the mark again. [T5] */
static inline bool sd_mark_to(_Atomic u64 *mark, _Atomic u64 *to_word, u64 m, u64 *to)
{
    *to = load_acq(to_word);
    return load_acq(mark) == m;
}

/* F1, for an index. The caller's membarrier follows. */
static inline void sd_index_finish(_Atomic u64 *index, u64 to)
{
    u64 now = load_rlx(index);

    /* Only forward: he may have done it himself since we looked at his mark, taken the token back and gone on. */
    if ((i64)(to - now) > 0)
        sd_tok_cas(index, now, to);
}

#endif
