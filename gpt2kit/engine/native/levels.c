/* The kernels, compiled once for each instruction set, and the choice among them at run time. */

#include <float.h>
#include <math.h>
#include <string.h>

#include "step.h"

#if defined(__x86_64__) || defined(__i386__)
#define X86 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define X86 0
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef float f32x16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef float f32x4_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t u32x16_unaligned __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint16_t u16x16_unaligned __attribute__((vector_size(32), aligned(2), may_alias));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16_unaligned __attribute__((vector_size(16), aligned(1), may_alias));

/* Read one float32 or bfloat16 number. */
static inline float read(const void *numbers, int dtype, int64_t at) {
    if (dtype == FLOAT32) return ((const float *)numbers)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)numbers)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Pick four numbers by their indices in two vectors of four, one after the other. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i32x4){__VA_ARGS__})
#endif

/* Two bfloat16 numbers read as one of 32 bits: each is the upper half of a float32. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define FIRST_OF_PAIRS(pairs) ((pairs) << 16)
#define SECOND_OF_PAIRS(pairs) ((pairs)&0xffff0000u)
#else
#define FIRST_OF_PAIRS(pairs) ((pairs)&0xffff0000u)
#define SECOND_OF_PAIRS(pairs) ((pairs) << 16)
#endif

enum {
    TILE_ROWS = 4,              /* rows of weights that are multiplied at once */
    FEW_INPUTS = 8,             /* the most for which each weight is read once */
    INPUTS_AT_ONCE = 12,        /* that stay in the fastest cache, half as many of float32 */
    NUMBERS_AT_ONCE = 768,      /* of each of them, at most; a multiple of BLOCK */
    ROWS_AT_ONCE = 32,          /* whose sums stay there, too */
    PREFETCH_BYTES = 2048,      /* how far ahead weights are asked for */
    CACHE_PREFETCH_BYTES = 4096 /* and keys and values */
};

/* Ask for the weights that come a little after these. */
static inline void prefetch(const char *weights) { __builtin_prefetch(weights + PREFETCH_BYTES); }

/* Ask for the keys or values that come a little after these `count` ones. */
static inline void prefetch_cached(const void *numbers, int dtype, int64_t at, int64_t count) {
    int64_t size = dtype == BFLOAT16 ? 2 : 4;
    const char *ahead = (const char *)numbers + at * size + CACHE_PREFETCH_BYTES;
    for (int64_t byte = 0; byte < count * size; byte += 64) __builtin_prefetch(ahead + byte);
}

/* --- one copy of the kernels for each instruction set ----------------------------------------- */

#define FN(name) name##_plain
#define TARGET
#include "kernels.h"

#if X86

#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define FLOATS f32x8
#define INTEGERS i32x8
#define LANES 8
#define FMA 1
#include "kernels.h"

#define FN(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define FLOATS f32x16
#define INTEGERS i32x16
#define LANES 16
#define FMA 1
#define TILE_INPUTS 6
#define TILE_QUERIES 6
#define TILE_VALUES 3
#include "kernels.h"

#define FN(name) name##_avx512vnni
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define FLOATS f32x16
#define INTEGERS i32x16
#define LANES 16
#define FMA 1
#define TILE_INPUTS 6
#define TILE_QUERIES 6
#define TILE_VALUES 3
#define VNNI 1
#include "kernels.h"

#define FN(name) name##_avx512bf16
#define TARGET \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")))
#define FLOATS f32x16
#define INTEGERS i32x16
#define LANES 16
#define FMA 1
#define TILE_INPUTS 6
#define TILE_QUERIES 6
#define TILE_VALUES 3
#define VNNI 1
#define BF16 1
#include "kernels.h"

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

static int has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

static int has_avx512bf16(void) {
    unsigned eax, ebx, ecx, edx; /* cpuid, because not every compiler knows this feature's name */
    return has_avx512vnni() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax >> 5 & 1;
}

#endif

#if defined(__aarch64__)

#define FN(name) name##_dotprod
#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define DOTPROD 1
#include "kernels.h"

#if defined(__ARM_FEATURE_DOTPROD) /* all processors of this target have it, as Apple's do */
static int has_dotprod(void) { return 1; }
#elif defined(__linux__)
static int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; } /* HWCAP_ASIMDDP */
#else
static int has_dotprod(void) { return 0; }
#endif

#endif

/* --- the choice ------------------------------------------------------------------------------- */

static int always(void) { return 1; }

/* The fastest first. */
static const struct {
    const char *name;
    const Kernels *kernels;
    int (*runs_here)(void);
} LEVELS[] = {
#if X86
    {"avx512bf16", &kernels_avx512bf16, has_avx512bf16},
    {"avx512vnni", &kernels_avx512vnni, has_avx512vnni},
    {"avx512", &kernels_avx512, has_avx512},
    {"avx2", &kernels_avx2, has_avx2},
#endif
#if defined(__aarch64__)
    {"dotprod", &kernels_dotprod, has_dotprod},
#endif
    {"plain", &kernels_plain, always}, /* on ARM, compilers turn it into NEON */
};

enum { N_LEVELS = sizeof LEVELS / sizeof *LEVELS };

const Kernels *find_kernels(const char *level) {
    for (int i = 0; i < N_LEVELS; i++)
        if ((!level || !strcmp(level, LEVELS[i].name)) && LEVELS[i].runs_here())
            return LEVELS[i].kernels;
    return NULL;
}

const char *best_level(void) {
    for (int i = 0; i < N_LEVELS; i++)
        if (LEVELS[i].runs_here()) return LEVELS[i].name;
    return NULL;
}
