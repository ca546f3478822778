/* One step of GPT-2 in C: read some tokens, append their keys and values to the cache, give the logits of the next ones.
 *
 * It computes what gpt2kit/model.py defines, on the same weights and the same cache. All threads go through the whole step
 * together; each job of a phase is done by the thread that is free, and between two phases they wait for one another.
 *
 *     N tokens to read, C width, H heads, D head size, S keys, V vocabulary
 */

#include "step.h"

#include <string.h>

#include "threads.h"

enum { PHASES_PER_LAYER = 11, PHASES_BESIDE = 4, CHUNK_BYTES = 65536, ALIGNMENT = 64 };

/* Everything a thread needs to take its part; the arrays lie in the caller's scratch memory. */
typedef struct {
    const Model *model;
    const Step *step;
    const Kernels *kernels;
    int64_t *next_job;     /* (phases,): the first job of each phase that nobody has taken */
    float *x, *y;          /* (N, C): the residual stream, and a normalised or attended copy */
    float *qkv;            /* (N, 3C) */
    float *hidden;         /* (N, inner) */
    float *scores;         /* (threads, capacity + 16) */
    Quantised *quantised;  /* (N,) */
    int64_t wanted;        /* rows whose logits are wanted */
} Run;

/* One thread's place in the run. */
typedef struct {
    const Run *run;
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
    int64_t widest = round_up(C > inner ? C : inner, BLOCK);
    char *memory = step->scratch;
    run->next_job = take(&memory, &used, (PHASES_PER_LAYER * model->n_layer + PHASES_BESIDE) * sizeof(int64_t));
    run->x = take(&memory, &used, N * C * sizeof(float));
    run->y = take(&memory, &used, N * C * sizeof(float));
    run->qkv = take(&memory, &used, N * 3 * C * sizeof(float));
    run->hidden = take(&memory, &used, N * inner * sizeof(float));
    run->scores = take(&memory, &used, step->threads * (step->capacity + 16) * sizeof(float));
    run->quantised = take(&memory, &used, N * sizeof(Quantised));
    int64_t quantised = round_up(widest, ALIGNMENT) + round_up(widest, ALIGNMENT) + round_up(widest / BLOCK * sizeof(float), ALIGNMENT);
    char *numbers = take(&memory, &used, N * quantised);
    if (memory)
        for (int64_t i = 0; i < N; i++, numbers += quantised) {
            run->quantised[i].numbers = (int8_t *)numbers;
            run->quantised[i].offsets = (int32_t *)(numbers + round_up(widest, ALIGNMENT));
            run->quantised[i].scales = (float *)(numbers + 2 * round_up(widest, ALIGNMENT));
        }
    return used;
}

/* --- phases ------------------------------------------------------------------------------------------------------------ */

/* Return the first of the next `n` jobs of this phase for this thread. */
static int64_t next_jobs(const Worker *worker, int64_t n) {
    return __atomic_fetch_add(&worker->run->next_job[worker->phase], n, __ATOMIC_RELAXED);
}

static void end_phase(Worker *worker) {
    wait_for_all();
    worker->phase++;
}

/* Round every input to int8 if the matrix is int8. */
static void quantise(Worker *worker, const Matrix *matrix, const float *inputs, int64_t N) {
    const Run *run = worker->run;
    if (matrix->kind != INT8) return;
    for (int64_t i; (i = next_jobs(worker, 1)) < N;) run->kernels->quantise(inputs + i * matrix->columns, matrix->columns, &run->quantised[i]);
    end_phase(worker);
}

/* What becomes of the outputs that a thread has just computed; `from` and `to` are columns of `out`. */
typedef void (*Then)(const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to);

static void linear(Worker *worker, const Matrix *matrix, const float *numbers, int64_t N, Outputs out, Then then, int64_t layer) {
    const Run *run = worker->run;
    quantise(worker, matrix, numbers, N);
    int64_t row_bytes = matrix->columns * (matrix->kind == FLOAT32 ? 4 : matrix->kind == BFLOAT16 ? 2 : 1);
    int64_t chunk = CHUNK_BYTES / row_bytes, fair = matrix->rows / (8 * worker->threads);
    chunk = round_up(chunk < fair ? chunk : fair, 4);
    if (!chunk) chunk = 4;
    Inputs inputs = {numbers, run->quantised, N};
    for (int64_t from; (from = next_jobs(worker, chunk)) < matrix->rows;) {
        int64_t to = from + chunk < matrix->rows ? from + chunk : matrix->rows;
        run->kernels->linear(matrix, from, to, &inputs, &out);
        if (then) then(run, layer, &out, from, to);
    }
    end_phase(worker);
}

static void normalise(Worker *worker, const Norm *norm) {
    const Run *run = worker->run;
    const Model *model = run->model;
    int64_t C = model->n_embd;
    for (int64_t i; (i = next_jobs(worker, 1)) < run->step->count;)
        run->kernels->normalise(run->x + i * C, norm->gain, norm->bias, model->kind, model->epsilon, C, run->y + i * C);
    end_phase(worker);
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
    end_phase(worker);
}

/* --- attention ----------------------------------------------------------------------------------------------------------- */

/* Return where the cache keeps the keys or values of one layer, row and head. */
static void *cached(const Run *run, void *all, int64_t layer, int64_t slot, int64_t head) {
    const Step *step = run->step;
    int64_t H = run->model->n_head, D = run->model->n_embd / H;
    int64_t numbers = ((layer * step->batch + slot) * H + head) * step->capacity * D;
    return (char *)all + numbers * (step->cache_kind == BFLOAT16 ? 2 : 4);
}

/* Put the keys and values among these columns of qkv into the cache. */
static void append(const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to) {
    const Step *step = run->step;
    int64_t C = run->model->n_embd, D = C / run->model->n_head;
    for (int64_t i = 0; i < step->count; i++)
        for (int64_t column = from > C ? from : C; column < to; column++) {
            int64_t c = column % C;
            void *place = cached(run, column < 2 * C ? step->keys : step->values, layer, step->slots[i], c / D);
            write_one(place, step->cache_kind, step->positions[i] * D + c % D, out->numbers[i * out->stride + column]);
        }
}

/* Attend from every token in every head; what it gives becomes y. */
static void attend(Worker *worker, int64_t layer) {
    const Run *run = worker->run;
    const Step *step = run->step;
    int64_t C = run->model->n_embd, H = run->model->n_head, D = C / H;
    float *scores = run->scores + worker->thread * (step->capacity + 16);
    for (int64_t job; (job = next_jobs(worker, 1)) < step->count * H;) {
        int64_t i = job / H, head = job % H;
        const void *keys = cached(run, step->keys, layer, step->slots[i], head);
        const void *values = cached(run, step->values, layer, step->slots[i], head);
        const float *q = run->qkv + i * 3 * C + head * D;
        float scale = run->model->layers[layer].attention_scale;
        run->kernels->attend(step->cache_kind, q, keys, values, step->positions[i] + 1, D, scale, scores, run->y + i * C + head * D);
    }
    end_phase(worker);
}

/* --- the step ------------------------------------------------------------------------------------------------------------- */

static void activate(const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to) {
    (void)layer;
    for (int64_t i = 0; i < run->step->count; i++)
        run->kernels->activate(out->numbers + i * out->stride + from, to - from, run->model->activation);
}

/* Normalise the tokens whose logits are wanted, one after the other at the beginning of y. */
static void normalise_wanted(Worker *worker) {
    const Run *run = worker->run;
    const Model *model = run->model;
    int64_t C = model->n_embd, place = 0;
    if (worker->thread == 0)
        for (int64_t i = 0; i < run->step->count; i++)
            if (run->step->wanted[i])
                run->kernels->normalise(run->x + i * C, model->ln_f.gain, model->ln_f.bias, model->kind, model->epsilon, C, run->y + C * place++);
    end_phase(worker);
}

static void work(void *task, int thread, int threads) {
    const Run *run = task;
    const Model *model = run->model;
    int64_t C = model->n_embd, N = run->step->count;
    Worker worker = {run, thread, threads, 0};
    embed(&worker);
    for (int64_t i = 0; i < model->n_layer; i++) {
        const Layer *layer = &model->layers[i];
        normalise(&worker, &layer->ln_1);
        linear(&worker, &layer->c_attn, run->y, N, (Outputs){run->qkv, 3 * C, 0}, append, i);
        attend(&worker, i);
        linear(&worker, &layer->attn_proj, run->y, N, (Outputs){run->x, C, 1}, NULL, i);
        normalise(&worker, &layer->ln_2);
        linear(&worker, &layer->c_fc, run->y, N, (Outputs){run->hidden, model->n_inner, 0}, activate, i);
        linear(&worker, &layer->mlp_proj, run->hidden, N, (Outputs){run->x, C, 1}, NULL, i);
    }
    if (!run->wanted) return;
    normalise_wanted(&worker);
    linear(&worker, &model->head, run->y, run->wanted, (Outputs){run->step->logits, model->head.rows, 0}, NULL, 0);
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
