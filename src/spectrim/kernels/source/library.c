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

#define HAS(word, bit) ((word) >> (bit) & 1)

/* Return the last that both the processor has and the system saves the registers of: all of what the
 * compiler may use for it, x86-64-v3 and -v4 with VBMI and VNNI. */
static int best(void) {
    unsigned a, b, c, d, more, low, high;
    if (!__get_cpuid(0x80000001, &a, &b, &more, &d) || !__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (!HAS(c, 27)) return 0; /* OSXSAVE */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    int third = HAS(c, 9) & HAS(c, 12) & HAS(c, 13); /* SSSE3, FMA, CMPXCHG16B */
    third &= HAS(c, 19) & HAS(c, 20) & HAS(c, 22) & HAS(c, 23); /* SSE4.1, SSE4.2, MOVBE, POPCNT */
    third &= HAS(c, 28) & HAS(c, 29) & HAS(more, 0) & HAS(more, 5); /* AVX, F16C, LAHF, LZCNT */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    third &= HAS(b, 3) & HAS(b, 5) & HAS(b, 8); /* BMI1, AVX2, BMI2 */
    if ((low & 6) != 6 || !third) return 0;
    int fourth = HAS(b, 16) & HAS(b, 17) & HAS(b, 28) & HAS(b, 30) & HAS(b, 31); /* F DQ CD BW VL */
    return (low & 0xe6) == 0xe6 && fourth && HAS(c, 1) && HAS(c, 11) ? 2 : 1; /* VBMI, VNNI */
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

EXPORT int spectrim_stack(const Stack *stack, const uint16_t *hidden, const uint16_t *cosine,
                          const uint16_t *sine, int64_t length, uint16_t *out, int threads) {
    return chosen->stack(stack, hidden, cosine, sine, length, out, threads);
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

/* Bytes of all structures that Python fills: those of another version have others. */
EXPORT int spectrim_sizes(void) {
    return (int)(sizeof(Matrix) + sizeof(Map) + sizeof(Block) + sizeof(Stack) + sizeof(Choice) +
                 sizeof(Paths));
}

EXPORT int spectrim_columns(const Matrix *matrix, int64_t begin, int64_t count, uint16_t *to,
                            int threads) {
    return chosen->columns(matrix, begin, count, to, threads);
}

EXPORT int spectrim_paths(const Paths *paths) { return chosen->paths(paths); }

EXPORT int spectrim_choose(const Choice *choice, int threads) { return chosen->choose(choice, threads); }
