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
#define LINE 64        /* bytes of a cache line */
#define SPINS 4000     /* before a waiting thread lets others run */

/* Numbers that threads change stand on lines of their own, or each change would cost the others. */
typedef struct {
    _Alignas(LINE) atomic_int threads;
    _Alignas(LINE) atomic_int arrived;
    _Alignas(LINE) atomic_int passed;
    struct { _Alignas(LINE) atomic_llong begin; } taken[STAGES];
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

typedef struct { int64_t begin, end; } Portion;

/* Set what a thread does next of a stage, large portions first; return whether there is any.
 * least: of what a portion has, except the last one. */
static inline int portion(Team *team, int stage, int64_t whole, int64_t least, Portion *next) {
    atomic_llong *taken = &team->taken[stage].begin;
    int64_t threads = atomic_load_explicit(&team->threads, memory_order_relaxed);
    long long begin = atomic_load_explicit(taken, memory_order_relaxed), end;
    do {
        if (begin >= whole) return 0;
        int64_t size = (whole - begin) / (threads == 1 ? 1 : 2 * threads) / least * least;
        size = size < least ? least : size;
        end = whole - begin < size + least ? whole : begin + size;
    } while (!atomic_compare_exchange_weak_explicit(taken, &begin, end, memory_order_relaxed,
                                                    memory_order_relaxed));
    *next = (Portion){begin, end};
    return 1;
}

typedef void (*Work)(void *);
void run(Team *team, Work work, void *what, int threads); /* library.c */
int own_number(void);
