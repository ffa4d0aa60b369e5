/* Threads that work on one call: those of the OpenMP that torch has loaded already.
 *
 * A token takes some hundred calls, so that threads must be awake when one comes. A second pool
 * beside torch's would fight with it for the processors; theirs is awake anyhow. Work is taken in
 * portions by whoever is free. Every row is one thread's, so nothing depends on their number.
 */
#pragma once
#include <stdatomic.h>
#include <stdint.h>
#if !defined(_WIN32)
#include <sched.h>
#endif

#define STAGES 24      /* parts of a call between two barriers, at most */
#define SPINS 4000     /* before a waiting thread lets others run */

typedef struct {
    atomic_int threads;
    atomic_int arrived, passed;
    atomic_llong taken[STAGES];
} Team;

static inline void barrier(Team *team) {
    int all = atomic_load_explicit(&team->threads, memory_order_relaxed);
    if (all == 1) return;
    int seen = atomic_load_explicit(&team->passed, memory_order_relaxed);
    if (atomic_fetch_add(&team->arrived, 1) == all - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_fetch_add(&team->passed, 1);
        return;
    }
    for (int spin = 0; atomic_load(&team->passed) == seen; spin++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
#if !defined(_WIN32)
        if (spin > SPINS) sched_yield();
#endif
    }
}

/* Return where the next portion of a stage begins; from ``end`` on there is none. */
static inline int64_t portion(Team *team, int stage, int64_t size) {
    return atomic_fetch_add_explicit(&team->taken[stage], size, memory_order_relaxed);
}

typedef void (*Work)(void *);
void run(Team *team, Work work, void *what, int threads); /* library.c */
int own_number(void);
