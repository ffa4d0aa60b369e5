/* The functions that Python calls: each goes to the best instruction set of this processor. */
#include "kernels.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#include <dlfcn.h>
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(__x86_64__)
#include <cpuid.h>
extern const Kernels kernels_plain, kernels_avx2, kernels_avx512;
static const Kernels *offered[] = {&kernels_plain, &kernels_avx2, &kernels_avx512};
static const char *names[] = {"plain", "avx2", "avx512"};

/* Return the last that both the processor has and the system saves the registers of. */
static int best(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* OSXSAVE */
    int fma = c >> 12 & 1;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((low & 6) != 6 || !fma || !(b >> 5 & 1)) return 0; /* AVX2 */
    int foundation = b >> 16 & b >> 17 & b >> 30 & b >> 31 & 1; /* F, DQ, BW, VL */
    return (low & 0xe6) == 0xe6 && foundation && (c >> 1 & c >> 11 & 1) ? 2 : 1; /* VBMI, VNNI */
}
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_dotprod;
static const Kernels *offered[] = {&kernels_neon, &kernels_dotprod};
static const char *names[] = {"neon", "dotprod"};
#if defined(__linux__)
#include <sys/auxv.h>
static int best(void) { return getauxval(AT_HWCAP) >> 20 & 1; } /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
static int best(void) { return 1; }
#else
static int best(void) { return 0; }
#endif
#else
extern const Kernels kernels_plain;
static const Kernels *offered[] = {&kernels_plain};
static const char *names[] = {"plain"};
static int best(void) { return 0; }
#endif

static const Kernels *chosen;
static void (*openmp)(Work, void *, unsigned, unsigned);
static int (*number)(void), (*numbers)(void);

/* Choose the best instruction set, or the one of this number where a test wants another; return
 * its name, NULL where there is none of the number or the processor has not got it. */
EXPORT const char *spectrim_open(int asked) {
#if !defined(_WIN32)
    openmp = (void (*)(Work, void *, unsigned, unsigned))dlsym(RTLD_DEFAULT, "GOMP_parallel");
    number = (int (*)(void))dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    numbers = (int (*)(void))dlsym(RTLD_DEFAULT, "omp_get_num_threads");
    if (!number || !numbers) openmp = NULL;
#endif
    int last = best();
    if (asked > last) return NULL;
    chosen = offered[asked < 0 ? last : asked];
    return names[asked < 0 ? last : asked];
}

/* Return whether there are threads: an OpenMP that has GNU's entry, as torch's has but on Windows. */
EXPORT int spectrim_threaded(void) { return openmp != NULL; }

static _Thread_local int in_team;

int own_number(void) { return in_team ? number() : 0; }

typedef struct { Team *team; Work work; void *what; } Start;

static void started(void *what) {
    Start *start = what;
    atomic_store(&start->team->threads, numbers()); /* may be fewer than were asked for */
    in_team = 1;
    start->work(start->what);
    in_team = 0;
}

void run(Team *team, Work work, void *what, int threads) {
    if (threads < 2 || !openmp) {
        team->threads = 1;
        work(what);
        return;
    }
    team->threads = threads;
    Start start = {team, work, what};
    openmp(started, &start, (unsigned)threads, 0);
}

EXPORT int spectrim_product(const Map *map, const uint16_t *x, uint16_t *y, int tokens,
                            int threads) {
    return chosen->product(map, x, y, tokens, threads);
}

EXPORT int spectrim_before(const Block *block, const uint16_t *hidden, const uint16_t *cosine,
                           const uint16_t *sine, uint16_t *queries, uint16_t *keys_values,
                           int threads) {
    return chosen->before(block, hidden, cosine, sine, queries, keys_values, threads);
}

EXPORT int spectrim_after(const Block *block, const uint16_t *hidden, const uint16_t *queries,
                          const uint16_t *keys, const uint16_t *values, int64_t length,
                          uint16_t *out, int threads) {
    return chosen->after(block, hidden, queries, keys, values, length, out, threads);
}

EXPORT int spectrim_rows(const Matrix *matrix, const int64_t *index, int64_t begin, int64_t count,
                         uint16_t *to, int threads) {
    return chosen->rows(matrix, index, begin, count, to, threads);
}

EXPORT int spectrim_norm(const uint16_t *x, const uint16_t *weight, float eps, uint16_t *to,
                         int64_t rows, int64_t columns, int threads) {
    return chosen->norm(x, weight, eps, to, rows, columns, threads);
}

EXPORT int spectrim_gated(const uint16_t *gate, const uint16_t *up, uint16_t *to, int64_t count,
                          int threads) {
    return chosen->gated(gate, up, to, count, threads);
}
