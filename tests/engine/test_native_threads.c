/* Several callers use the native threads at once, each with another number of threads.
 *
 *     native_threads SECONDS THREADS...    one caller for each number of threads
 *
 * Each caller alternates between two kinds of runs: short ones that count how many threads come to
 * each meeting, and steps of a small model, whose logits must equal those of the first step. The exit
 * status is 0 if everything was right, else 1. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "step.h"
#include "threads.h"

int64_t scratch_bytes(const Model *model, const Step *step);
int decode_step(const Model *model, const Step *step, const char *level);

enum { V = 37, C = 32, LAYERS = 2, HEADS = 2, CONTEXT = 8, MEETINGS = 5 };

static float weights[V * C + CONTEXT * C + 12 * C * C + 13 * C];
static int failed;

static void fail_unless(int holds) {
    if (!holds) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
}

/* --- runs that only meet ---------------------------------------------------------------------- */

typedef struct {
    int threads;         /* that take part */
    int count[MEETINGS]; /* how many came to each meeting */
} Meetings;

static void meet(void *task, int thread, int threads) {
    Meetings *run = task;
    if (thread == 0) run->threads = threads;
    for (int i = 0; i < MEETINGS; i++) {
        __atomic_fetch_add(&run->count[i], 1, __ATOMIC_RELAXED);
        wait_for_all(threads);
        fail_unless(__atomic_load_n(&run->count[i], __ATOMIC_RELAXED) == threads);
    }
}

/* --- steps of a small model ------------------------------------------------------------------- */

static Matrix matrix(const float **at, int64_t rows, int64_t columns) {
    Matrix matrix = {.weight = *at, .bias = *at + rows * columns, .rows = rows, .columns = columns};
    *at += rows * columns;
    return matrix;
}

static void step(const Model *model, int threads, float *logits) {
    float cache[2][LAYERS * HEADS * CONTEXT * C / HEADS];
    int64_t tokens[2] = {3, 5}, slots[2] = {0, 0}, positions[2] = {0, 1}, computed = 0;
    uint8_t wanted[2] = {1, 1};
    memset(cache, 0, sizeof cache);
    Step step = {
        .count = 2,
        .tokens = tokens,
        .slots = slots,
        .positions = positions,
        .wanted = wanted,
        .logits = logits,
        .keys = cache[0],
        .values = cache[1],
        .batch = 1,
        .capacity = CONTEXT,
        .threads = threads,
        .computed = &computed,
    };
    step.scratch = aligned_alloc(64, (scratch_bytes(model, &step) + 63) / 64 * 64);
    fail_unless(decode_step(model, &step, NULL) == 0);
    free(step.scratch);
}

typedef struct {
    const Model *model;
    const float *expected;
    double seconds;
    int threads;
    long runs;
} Caller;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void *call(void *argument) {
    Caller *caller = argument;
    float logits[2 * V];
    for (double end = now() + caller->seconds; now() < end; caller->runs++) {
        Meetings run = {0};
        run_together(caller->threads, meet, &run);
        fail_unless(run.threads == caller->threads);
        step(caller->model, caller->threads, logits);
        fail_unless(memcmp(logits, caller->expected, sizeof logits) == 0);
    }
    return NULL;
}

int main(int count, char **arguments) {
    const float *at = weights;
    Layer layers[LAYERS];
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        state = state * 1664525 + 1013904223;
        weights[i] = (int32_t)state * 1e-10f;
    }
    Model model = {
        .n_layer = LAYERS,
        .n_head = HEADS,
        .n_embd = C,
        .n_inner = 4 * C,
        .epsilon = 1e-5f,
        .layers = layers,
        .wte = {.weight = at, .rows = V, .columns = C},
        .ln_f = {.weight = at},
    };
    model.head = model.wte;
    model.wpe = at += V * C;
    at += CONTEXT * C;
    for (int i = 0; i < LAYERS; i++) { /* both layers share their weights */
        const float *start = at;
        Norm norm = {.weight = at};
        layers[i] = (Layer){.ln_1 = norm, .ln_2 = norm, .attention_scale = 0.25f};
        layers[i].c_attn = matrix(&start, 3 * C, C);
        layers[i].attn_proj = matrix(&start, C, C);
        layers[i].c_fc = matrix(&start, 4 * C, C);
        layers[i].mlp_proj = matrix(&start, C, 4 * C);
    }
    float expected[2 * V];
    step(&model, 1, expected);
    Caller callers[16];
    pthread_t threads[16];
    for (int i = 2; i < count; i++) {
        callers[i] = (Caller){&model, expected, atof(arguments[1]), atoi(arguments[i]), 0};
        pthread_create(&threads[i], NULL, call, &callers[i]);
    }
    for (int i = 2; i < count; i++) pthread_join(threads[i], NULL);
    for (int i = 2; i < count; i++)
        printf("%ld runs in %d threads\n", callers[i].runs, callers[i].threads);
    return failed;
}
