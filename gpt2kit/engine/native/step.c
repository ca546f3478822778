/* One step of GPT-2 in C: read some tokens, append their keys and values to the cache, give the logits of the next ones.
 *
 * It computes what gpt2kit/model.py defines, on the same weights and the same cache. All threads go through the whole step
 * together; each job of a phase is done by the thread that is free, and between two phases they wait for one another. What is
 * little work, such as norms, every thread does for itself: that costs less than to wait once more.
 *
 *     N tokens to read, C width, H heads, D head size, S keys, V vocabulary
 */

#include "step.h"

#include <math.h>
#include <string.h>

#include "threads.h"

enum { PHASES_PER_LAYER = 5, PHASES_BESIDE = 3, CHUNK_BYTES = 262144, ALIGNMENT = 64 };

/* Everything a thread needs to take its part; the arrays lie in the caller's scratch memory. */
typedef struct {
    const Model *model;
    const Step *step;
    const Kernels *kernels;
    int64_t *next_job;  /* (phases,): the first job of each phase that nobody has taken */
    float *x, *y;       /* (N, C): the residual stream, and what the heads give */
    float *qkv;         /* (N, 3C) */
    float *hidden;      /* (N, inner) */
    float *own_numbers; /* (threads, capacity + 16 or C, whichever is more): scores, or a normalised vector */
    Input *own_inputs;  /* (threads, N) */
    int64_t own_count;  /* of own_numbers, for each thread */
    int64_t wanted;     /* rows whose logits are wanted */
    float *own_largest; /* (threads, 2, most_likely): the largest lower bounds that a thread has found, and those of all */
    int16_t *own_whole; /* (threads, C): a vector in whole numbers */
    int64_t whole_count;
} Run;

/* One thread's place in the run. */
typedef struct {
    const Run *run;
    float *numbers; /* its own part of own_numbers */
    Input *inputs;  /* and of own_inputs */
    float *largest; /* and of own_largest, */
    int16_t *whole; /* and of own_whole */
    int thread, threads, phase;
} Worker;

/* --- memory ------------------------------------------------------------------------------------------------------------ */

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* Take so many bytes from the scratch memory; without memory, count them only. */
static void *take(char **memory, int64_t *used, int64_t bytes) {
    void *place = *memory ? *memory + *used : NULL;
    *used += round_up(bytes, ALIGNMENT);
    return place;
}

/* Lay the run's arrays out in the step's scratch memory, and return how many bytes they need. */
static int64_t lay_out(Run *run) {
    const Model *model = run->model;
    const Step *step = run->step;
    int64_t N = step->count, C = model->n_embd, inner = model->n_inner, used = 0;
    int64_t widest = round_up(C > inner ? C : inner, BLOCK), room = round_up(step->capacity + 16, 16);
    char *memory = step->scratch;
    run->own_count = room > C ? room : round_up(C, 16);
    run->next_job = take(&memory, &used, (PHASES_PER_LAYER * model->n_layer + PHASES_BESIDE) * sizeof(int64_t));
    run->x = take(&memory, &used, N * C * sizeof(float));
    run->y = take(&memory, &used, N * C * sizeof(float));
    run->qkv = take(&memory, &used, N * 3 * C * sizeof(float));
    run->hidden = take(&memory, &used, N * inner * sizeof(float));
    run->own_numbers = take(&memory, &used, step->threads * run->own_count * sizeof(float));
    run->own_largest = take(&memory, &used, step->threads * 2 * step->most_likely * sizeof(float));
    run->own_whole = take(&memory, &used, step->sketch ? step->threads * widest * sizeof(int16_t) : 0);
    run->whole_count = widest;
    run->own_inputs = take(&memory, &used, step->threads * N * sizeof(Input));
    for (int64_t i = 0; i < step->threads * N; i++) {
        float *numbers = take(&memory, &used, widest * sizeof(float));
        int8_t *whole = (int8_t *)numbers;
        if (memory) run->own_inputs[i] = (Input){numbers, whole, (int32_t *)(whole + widest), (float *)(whole + 2 * widest)};
    }
    return used;
}

/* --- phases ------------------------------------------------------------------------------------------------------------ */

/* Return the first of the next `n` jobs of this phase for this thread. */
static int64_t next_jobs(const Worker *worker, int64_t n) {
    return __atomic_fetch_add(&worker->run->next_job[worker->phase], n, __ATOMIC_RELAXED);
}

static void end_phase(Worker *worker) {
    wait_for_all(worker->threads);
    worker->phase++;
}

static int64_t row_bytes(const Matrix *matrix) {
    return matrix->columns * (matrix->kind == FLOAT32 ? 4 : matrix->kind == BFLOAT16 ? 2 : 1);
}

/* Return how many rows a thread takes at once: few enough that none waits long for another at the end. */
static int64_t chunk_of(const Matrix *matrix, int threads) {
    int64_t rows = CHUNK_BYTES / row_bytes(matrix), fair = matrix->rows / (4 * threads);
    rows = round_up(rows < fair ? rows : fair, 4);
    return rows ? rows : 4;
}

/* Where vectors come from: some rows, or of all rows those that are wanted, normalised where there is a norm. */
typedef struct {
    const float *numbers; /* (N, columns) */
    const Norm *norm;
    const uint8_t *wanted;
} Source;

/* Arrange the vectors for a matrix, each thread for itself, and return how many there are. */
static int64_t arrange(Worker *worker, const Matrix *matrix, Source source) {
    const Run *run = worker->run;
    const Model *model = run->model;
    int64_t K = matrix->columns, count = 0;
    for (int64_t i = 0; i < run->step->count; i++) {
        if (source.wanted && !source.wanted[i]) continue;
        const float *x = source.numbers + i * K;
        if (source.norm) {
            run->kernels->normalise(x, source.norm->gain, source.norm->bias, model->kind, model->epsilon, K, worker->numbers);
            x = worker->numbers;
        }
        run->kernels->arrange(matrix->kind, x, K, &worker->inputs[count++]);
    }
    return count;
}

/* What becomes of the outputs that a thread has just computed; `from` and `to` are columns of `out`. */
typedef void (*Then)(const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to);

static void linear(Worker *worker, const Matrix *matrix, Source source, Outputs out, Then then, int64_t layer) {
    int64_t chunk = chunk_of(matrix, worker->threads), count = arrange(worker, matrix, source);
    for (int64_t from; (from = next_jobs(worker, chunk)) < matrix->rows;) {
        int64_t to = from + chunk < matrix->rows ? from + chunk : matrix->rows;
        worker->run->kernels->linear(matrix, from, to, worker->inputs, count, &out);
        if (then) then(worker->run, layer, &out, from, to);
    }
}

static float read_one(const void *numbers, int kind, int64_t at) {
    uint32_t bits;
    if (kind == BFLOAT16)
        bits = (uint32_t)((const uint16_t *)numbers)[at] << 16;
    else
        memcpy(&bits, (const char *)numbers + 4 * at, 4);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void write_one(void *numbers, int kind, int64_t at, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (kind == BFLOAT16)  /* to the nearest, of two equally near the even one; a NaN stays one */
        ((uint16_t *)numbers)[at] = value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
    else
        ((float *)numbers)[at] = value;
}

static void embed(Worker *worker) {
    const Run *run = worker->run;
    const Model *model = run->model;
    const Matrix *wte = &model->wte;
    int64_t C = model->n_embd;
    for (int64_t i; (i = next_jobs(worker, 1)) < run->step->count;) {
        int64_t token = run->step->tokens[i], position = run->step->positions[i];
        for (int64_t c = 0; c < C; c++) {
            float value = wte->kind == INT8 ? ((const int8_t *)wte->weight)[token * C + c] * wte->scales[token]
                                            : read_one(wte->weight, wte->kind, token * C + c);
            run->x[i * C + c] = value + read_one(model->wpe, model->kind, position * C + c);
        }
    }
}

/* --- attention ----------------------------------------------------------------------------------------------------------- */

/* Return where the cache keeps the keys or values of one layer, row and head. */
static void *cached(const Run *run, void *all, int64_t layer, int64_t slot, int64_t head) {
    const Step *step = run->step;
    int64_t H = run->model->n_head, D = run->model->n_embd / H;
    int64_t numbers = ((layer * step->batch + slot) * H + head) * step->capacity * D;
    return (char *)all + numbers * (step->cache_kind == BFLOAT16 ? 2 : 4);
}

/* Put the keys and values among these columns of qkv into the cache, a head's at a time. */
static void append(const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to) {
    const Step *step = run->step;
    int64_t C = run->model->n_embd, D = C / run->model->n_head;
    for (int64_t i = 0; i < step->count; i++)
        for (int64_t column = from > C ? from : C; column < to;) {
            int64_t c = column % C, end = column - c % D + D;
            void *place = cached(run, column < 2 * C ? step->keys : step->values, layer, step->slots[i], c / D);
            int64_t at = step->positions[i] * D + c % D;
            for (; column < end && column < to; column++) write_one(place, step->cache_kind, at++, out->numbers[i * out->stride + column]);
        }
}

/* Attend from every token in every head; what it gives becomes y. */
static void attend(Worker *worker, int64_t layer) {
    const Run *run = worker->run;
    const Step *step = run->step;
    int64_t C = run->model->n_embd, H = run->model->n_head, D = C / H;
    for (int64_t job; (job = next_jobs(worker, 1)) < step->count * H;) {
        int64_t i = job / H, head = job % H;
        const void *keys = cached(run, step->keys, layer, step->slots[i], head);
        const void *values = cached(run, step->values, layer, step->slots[i], head);
        const float *q = run->qkv + i * 3 * C + head * D;
        float scale = run->model->layers[layer].attention_scale;
        run->kernels->attend(step->cache_kind, q, keys, values, step->positions[i] + 1, D, scale, worker->numbers, run->y + i * C + head * D);
    }
}

/* --- the shortlist ------------------------------------------------------------------------------------------------------- */

/* Put a value, if it is finite, among the n largest, ascending; the smallest falls out. */
static void keep_largest(float *largest, int64_t n, float value) {
    int64_t i = 0;
    if (!(value > largest[0] && value < INFINITY)) return;
    for (; i + 1 < n && largest[i + 1] < value; i++) largest[i] = largest[i + 1];
    largest[i] = value;
}

/* Compute the logits that can be among the `most_likely` largest as `linear` would, and put minus infinity in place of the others:
 * bounds of all from the sketch, a quarter or half of the head's bytes, then the few rows that these leave. */
static void shortlist(Worker *worker, Source source) {
    const Run *run = worker->run;
    const Step *step = run->step;
    const Matrix *head = &run->model->head;
    int64_t V = head->rows, K = head->columns, n = step->most_likely, chunk = chunk_of(head, worker->threads);
    Rounded x = {.whole = worker->whole};
    arrange(worker, head, source);
    run->kernels->round_input(head->kind, worker->numbers, K, &x);
    for (int64_t i = 0; i < 2 * n; i++) worker->largest[i] = -INFINITY;
    for (int64_t from; (from = next_jobs(worker, chunk)) < V;) {
        int64_t to = from + chunk < V ? from + chunk : V;
        run->kernels->bounds(step->sketch, from, to, K, &x, step->logits);
        for (int64_t row = from; row < to; row++) keep_largest(worker->largest, n, step->logits[row] - 2 * doubt(step->sketch, row, &x));
    }
    end_phase(worker);
    float *of_all = worker->largest + n;
    for (int thread = 0; thread < worker->threads; thread++)
        for (int64_t i = 0; i < n; i++) keep_largest(of_all, n, run->own_largest[2 * n * thread + i]);
    int64_t computed = 0;
    for (int64_t from; (from = next_jobs(worker, chunk)) < V;)
        for (int64_t row = from; row < from + chunk && row < V; row++)
            if (step->logits[row] < of_all[0]) { /* false where a bound is no number: that row must be seen */
                step->logits[row] = -INFINITY;
            } else {
                run->kernels->linear(head, row, row + 1, worker->inputs, 1, &(Outputs){step->logits, V, 0});
                computed++;
            }
    __atomic_fetch_add(step->computed, computed, __ATOMIC_RELAXED);
}

/* --- the step ------------------------------------------------------------------------------------------------------------- */

static void activate(const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to) {
    (void)layer;
    for (int64_t i = 0; i < run->step->count; i++)
        run->kernels->activate(out->numbers + i * out->stride + from, to - from, run->model->activation);
}

static void work(void *task, int thread, int threads) {
    const Run *run = task;
    const Model *model = run->model;
    int64_t C = model->n_embd;
    Worker worker = {
        .run = run,
        .numbers = run->own_numbers + thread * run->own_count,
        .inputs = run->own_inputs + thread * run->step->count,
        .largest = run->own_largest + thread * 2 * run->step->most_likely,
        .whole = run->own_whole + thread * run->whole_count,
        .thread = thread,
        .threads = threads,
    };
    embed(&worker);
    end_phase(&worker);
    for (int64_t i = 0; i < model->n_layer; i++) {
        const Layer *layer = &model->layers[i];
        linear(&worker, &layer->c_attn, (Source){run->x, &layer->ln_1}, (Outputs){run->qkv, 3 * C, 0}, append, i);
        end_phase(&worker);
        attend(&worker, i);
        end_phase(&worker);
        linear(&worker, &layer->attn_proj, (Source){run->y}, (Outputs){run->x, C, 1}, NULL, i);
        end_phase(&worker);
        linear(&worker, &layer->c_fc, (Source){run->x, &layer->ln_2}, (Outputs){run->hidden, model->n_inner, 0}, activate, i);
        end_phase(&worker);
        linear(&worker, &layer->mlp_proj, (Source){run->hidden}, (Outputs){run->x, C, 1}, NULL, i);
        end_phase(&worker);
    }
    Source source = {run->x, &model->ln_f, run->step->wanted};
    if (run->step->sketch)
        shortlist(&worker, source);
    else if (run->wanted)
        linear(&worker, &model->head, source, (Outputs){run->step->logits, model->head.rows, 0}, NULL, 0);
}

/* Return the bytes of scratch memory that a step needs. */
int64_t scratch_bytes(const Model *model, const Step *step) {
    Step without_memory = *step;
    without_memory.scratch = NULL;
    Run run = {.model = model, .step = &without_memory};
    return lay_out(&run);
}

/* Do a step with the kernels of a level; return 0, or 1 where the processor cannot run them. */
int decode_step(const Model *model, const Step *step, const char *level) {
    Run run = {.model = model, .step = step, .kernels = find_kernels(level)};
    if (!run.kernels) return 1;
    lay_out(&run);
    memset(run.next_job, 0, (PHASES_PER_LAYER * model->n_layer + PHASES_BESIDE) * sizeof(int64_t));
    for (int64_t i = 0; i < step->count; i++) run.wanted += step->wanted[i];
    run_together(step->threads, work, &run);
    return 0;
}

/* What the threads that make a sketch share. */
typedef struct {
    const Matrix *head;
    const Sketch *sketch;
    const Kernels *kernels;
} Sketching;

static void sketch_part(void *task, int thread, int threads) {
    const Sketching *sketching = task;
    int64_t rows = sketching->head->rows;
    sketching->kernels->sketch(sketching->head, rows * thread / threads, rows * (thread + 1) / threads, sketching->sketch);
}

/* Make the sketch of a head in the memory that it points to; return 0, or 1 where the processor cannot run the level. */
int make_sketch(const Matrix *head, const Sketch *sketch, int threads, const char *level) {
    Sketching sketching = {head, sketch, find_kernels(level)};
    if (!sketching.kernels) return 1;
    run_together(threads, sketch_part, &sketching);
    return 0;
}
