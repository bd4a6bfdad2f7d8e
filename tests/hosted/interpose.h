/* SPDX-License-Identifier: Apache-2.0
 *
 * interpose.h - stands in for the atomics of base.h when sdlib/src/{ring,sock} are built for tests/hosted.
 *
 * Every access to a shared word becomes a call, so that somebody can come in between: the explorer (explore.c) runs all interleavings
 * under x86-TSO, the fuzzer (fuzz_peer.c) lets a hostile peer write. The code under test is the library's own, unchanged.
 */
#ifndef SD_INTERPOSE_H
#define SD_INTERPOSE_H

enum mc_op { MC_ADD, MC_SUB, MC_OR, MC_AND, MC_XCHG };

u64 mc_load(const volatile void *p, u32 size);
void mc_store(volatile void *p, u32 size, u64 v);
u64 mc_rmw(volatile void *p, u32 size, enum mc_op op, u64 v);   /* locked: a full barrier */
bool mc_cmpxchg(volatile void *p, u32 size, u64 *want, u64 val);  /* locked; says what it has found */
void mc_fence(void);
void mc_relax(void);
void mc_bytes(void *dst, const void *src, u64 n);

#define MC_VAL(p) __typeof__(*(p) + 0)
#define load_rlx(p) ((MC_VAL(p))mc_load(p, sizeof *(p)))
#define load_acq(p) load_rlx(p)
#define store_rlx(p, v) mc_store(p, sizeof *(p), (u64)(v))
#define store_rel(p, v) store_rlx(p, v)
#undef atomic_load
#undef atomic_store
#undef atomic_fetch_add
#undef atomic_fetch_sub
#undef atomic_fetch_or
#undef atomic_fetch_and
#undef atomic_exchange
#undef atomic_compare_exchange_strong
#undef atomic_compare_exchange_weak
#define atomic_compare_exchange_strong(p, e, v) \
    __extension__({ \
        u64 mc_was = (u64) * (e); \
        bool mc_ok = mc_cmpxchg(p, sizeof *(p), &mc_was, (u64)(v)); \
        *(e) = (MC_VAL(p))mc_was; \
        mc_ok; \
    })
#define atomic_compare_exchange_weak(p, e, v) atomic_compare_exchange_strong(p, e, v)
#define atomic_load(p) load_rlx(p)
#define atomic_store(p, v) mc_rmw(p, sizeof *(p), MC_XCHG, (u64)(v))
#define atomic_fetch_add(p, v) ((MC_VAL(p))mc_rmw(p, sizeof *(p), MC_ADD, (u64)(v)))
#define atomic_fetch_sub(p, v) ((MC_VAL(p))mc_rmw(p, sizeof *(p), MC_SUB, (u64)(v)))
#define atomic_fetch_or(p, v) ((MC_VAL(p))mc_rmw(p, sizeof *(p), MC_OR, (u64)(v)))
#define atomic_fetch_and(p, v) ((MC_VAL(p))mc_rmw(p, sizeof *(p), MC_AND, (u64)(v)))
#define atomic_exchange(p, v) ((MC_VAL(p))mc_rmw(p, sizeof *(p), MC_XCHG, (u64)(v)))

static inline void sd_fence(void) { mc_fence(); }
static inline void cpu_relax(void) { mc_relax(); }
static inline u64 sd_tsc(void) { return 0; }
static inline void sd_copy(void *dst, const void *src, u64 n) { mc_bytes(dst, src, n); }
static inline void sd_zero(void *dst, u64 n) { __builtin_memset(dst, 0, n); }

bool mc_cas_local(_Atomic u64 *p, u64 want, u64 val);
static inline bool sd_cas_local(_Atomic u64 *p, u64 want, u64 val) { return mc_cas_local(p, want, val); }

static inline bool cas_u32(_Atomic u32 *p, u32 want, u32 val) { return atomic_compare_exchange_strong(p, &want, val); }

#endif
