/* One step of GPT-2: read N tokens, append their keys and values to the cache, return logits.
 *
 * It computes what gpt2kit/model.py defines, from the same weights and on the same cache; forward()
 * is the whole model on one page. All threads run it together. Each of its phases is cut into jobs,
 * which the threads take one after another, and at its end they wait for each other. What is quick,
 * such as a layer norm, every thread computes for itself: that takes less time than waiting would.
 *
 *     N tokens to read, C width, H heads, D head size, S keys, V vocabulary, K columns of a matrix
 */

#include "step.h"

#include <math.h>
#include <string.h>

#include "threads.h"

enum {
    PHASES_PER_LAYER = 9,
    OTHER_PHASES = 4,       /* the embedding, and up to three for the head */
    CHUNK_BYTES = 262144,   /* of weights that one job reads */
    OWN_INPUTS = 8,         /* up to this many, every thread prepares the inputs for itself */
    QUERIES_AT_ONCE = 12,   /* tokens of a slot that a job of attention reads, at most */
    ALIGNMENT = 64,         /* of arrays in scratch memory */
    /* The fastest cache keeps a line in one of a few places, which its address modulo 4,096 decides.
     * Inputs lie this far apart modulo 4,096, so that twelve of them share all places evenly. */
    PAGE = 4096,
    SKEW = 320,
};

/* What all threads share during one step. The arrays are in the caller's scratch memory. */
typedef struct {
    const Model *model;
    const Step *step;
    const Kernels *kernels;
    int64_t *wanted;   /* (n_wanted,): which tokens' logits are wanted */
    int64_t n_wanted;
    int64_t *groups;   /* (n_groups + 1,): the first token of each group, and the end of the last;
                          the tokens of a group are adjacent in one slot */
    int64_t n_groups;
    int64_t *next_job; /* (phases,): the first job of each phase that no thread has taken yet */
    float *x;          /* (N, C): the residual stream */
    float *qkv;        /* (N, 3C): queries, keys and values */
    float *y;          /* (N, C): what attention gives, the heads side by side */
    float *hidden;     /* (N, n_inner): inside the MLP */
    Input *inputs;     /* inputs of a matrix, (N,), or if they are few, (threads, OWN_INPUTS) */
    int64_t n_inputs;

    /* One piece for each thread: */
    float *vectors; /* (threads, vector_size): attention scores, or a normalized vector */
    int64_t vector_size;
    int16_t *integers; /* (threads, integers_size): the rounded input of the shortlist */
    int64_t integers_size;
    float *largest; /* (threads, 2, most_likely): the largest lower bounds: a thread's, and all */
} Run;

/* One thread's view of the run: its own pieces of memory, and the phase that it is in. */
typedef struct {
    const Run *run;
    float *vector;
    int16_t *integers;
    float *largest;
    int thread, threads;
    int phase;
} Worker;

/* --- sharing work ----------------------------------------------------------------------------- */

/* Take the next n jobs of this phase, and return the first of them. */
static int64_t take_jobs(const Worker *worker, int64_t n) {
    return __atomic_fetch_add(&worker->run->next_job[worker->phase], n, __ATOMIC_RELAXED);
}

/* Wait until every thread has finished this phase, so that its outputs can be read. */
static void end_phase(Worker *worker) {
    wait_for_all(worker->threads);
    worker->phase++;
}

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static int64_t row_bytes(const Matrix *matrix) {
    return matrix->columns * (matrix->dtype == FLOAT32 ? 4 : matrix->dtype == BFLOAT16 ? 2 : 1);
}

/* Return how many rows of a matrix make one job: few enough that at the end of the phase no thread
 * waits long for another. */
static int64_t rows_per_job(const Matrix *matrix, int threads) {
    int64_t rows = round_up(min(CHUNK_BYTES / row_bytes(matrix), matrix->rows / (4 * threads)), 4);
    return max(rows, 4);
}

/* --- the embedding ---------------------------------------------------------------------------- */

static float read_number(const void *numbers, int dtype, int64_t at) {
    uint32_t bits;
    if (dtype == BFLOAT16) /* the upper half of a float32 */
        bits = (uint32_t)((const uint16_t *)numbers)[at] << 16;
    else
        memcpy(&bits, (const char *)numbers + 4 * at, 4);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* x = wte[token] + wpe[position]: (N, C). */
static void embed(Worker *worker) {
    const Run *run = worker->run;
    const Model *model = run->model;
    const Matrix *wte = &model->wte;
    int64_t C = model->n_embd;
    for (int64_t i; (i = take_jobs(worker, 1)) < run->step->count;) {
        int64_t token = run->step->tokens[i], position = run->step->positions[i];
        for (int64_t c = 0; c < C; c++) {
            float value = wte->dtype == INT8
                              ? ((const int8_t *)wte->weight)[token * C + c] * wte->scales[token]
                              : read_number(wte->weight, wte->dtype, token * C + c);
            run->x[i * C + c] = value + read_number(model->wpe, model->dtype, position * C + c);
        }
    }
}

/* --- matrices --------------------------------------------------------------------------------- */

/* The inputs of a matrix. */
typedef struct {
    const float *vectors; /* (N, K) */
    int64_t count;        /* how many of them to take */
    const Norm *norm;     /* a layer norm to apply first, or NULL */
    const int64_t *which; /* (count,): their indices, or NULL for the first ones */
} Source;

/* What to do with outputs `from` to `to` of a matrix once they are computed. */
typedef void (*Epilogue)(
    const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to
);

/* Normalize the inputs and bring them into the form that the matrix's kernel reads. Return them. If
 * they are few, every thread does this for itself; otherwise it is a phase of its own. */
static const Input *prepare_inputs(Worker *worker, const Matrix *matrix, Source source) {
    const Run *run = worker->run;
    const Model *model = run->model;
    int64_t K = matrix->columns;
    int shared = source.count > OWN_INPUTS;
    Input *inputs = run->inputs + (shared ? 0 : worker->thread * OWN_INPUTS);
    for (int64_t i = shared ? take_jobs(worker, 1) : 0; i < source.count;
         i = shared ? take_jobs(worker, 1) : i + 1) {
        const float *x = source.vectors + (source.which ? source.which[i] : i) * K;
        if (source.norm) {
            run->kernels->layer_norm(
                x, source.norm, model->dtype, model->epsilon, K, worker->vector
            );
            x = worker->vector;
        }
        run->kernels->prepare_input(matrix->dtype, x, K, &inputs[i]);
    }
    if (shared) end_phase(worker);
    return inputs;
}

/* out = source @ weight.T + bias, or out += that. A job is some rows of the matrix, for all
 * inputs. */
static void matmul(
    Worker *worker, const Matrix *matrix, Source source, Outputs out, Epilogue epilogue,
    int64_t layer
) {
    int64_t job = rows_per_job(matrix, worker->threads);
    const Input *inputs = prepare_inputs(worker, matrix, source);
    for (int64_t from; (from = take_jobs(worker, job)) < matrix->rows;) {
        int64_t to = min(from + job, matrix->rows);
        worker->run->kernels->matmul(matrix, from, to, inputs, source.count, &out);
        if (epilogue) epilogue(worker->run, layer, &out, from, to);
    }
}

/* Epilogue of the MLP's first matrix: apply the activation function. */
static void activate(
    const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to
) {
    (void)layer;
    for (int64_t i = 0; i < run->step->count; i++)
        run->kernels->activate(
            out->floats + i * out->stride + from, to - from, run->model->activation
        );
}

/* --- attention -------------------------------------------------------------------------------- */

/* Return the keys or values (capacity, D) of one layer, slot and head in the cache. */
static void *cached(const Run *run, void *cache, int64_t layer, int64_t slot, int64_t head) {
    const Step *step = run->step;
    int64_t H = run->model->n_head, D = run->model->n_embd / H;
    int64_t at = ((layer * step->batch + slot) * H + head) * step->capacity * D;
    return (char *)cache + at * (step->cache_dtype == BFLOAT16 ? 2 : 4);
}

static void write_number(void *numbers, int dtype, int64_t at, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (dtype == BFLOAT16) /* round to nearest, ties to even; NaN stays NaN */
        ((uint16_t *)numbers)[at] =
            value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
    else
        ((float *)numbers)[at] = value;
}

/* Epilogue of c_attn: copy keys and values, columns C to 3C of qkv, into the cache. */
static void append_to_cache(
    const Run *run, int64_t layer, const Outputs *out, int64_t from, int64_t to
) {
    const Step *step = run->step;
    int64_t C = run->model->n_embd, D = C / run->model->n_head;
    for (int64_t i = 0; i < step->count; i++)
        for (int64_t column = max(from, C); column < to;) { /* one head at a time */
            int64_t c = column % C, head_end = column - c % D + D;
            void *cache = column < 2 * C ? step->keys : step->values;
            int64_t at = step->positions[i] * D + c % D, end = min(head_end, to);
            for (int64_t copy = 0; copy < step->copies[i]; copy++) {
                void *head = cached(run, cache, layer, step->slots[i] + copy, c / D);
                for (int64_t j = column; j < end; j++)
                    write_number(
                        head, step->cache_dtype, at + j - column, out->floats[i * out->stride + j]
                    );
            }
            column = end;
        }
}

/* y = softmax(q @ keys.T * scale) @ values. A job is one head of a group of tokens; each of them
 * sees the keys and values of its slot up to its own position. */
static void attention(Worker *worker, int64_t layer) {
    const Run *run = worker->run;
    const Step *step = run->step;
    int64_t C = run->model->n_embd, H = run->model->n_head, D = C / H;
    float scale = run->model->layers[layer].attention_scale;
    int64_t room = step->capacity + 16;
    for (int64_t job; (job = take_jobs(worker, 1)) < run->n_groups * H;) {
        int64_t head = job / run->n_groups, group = job % run->n_groups;
        int64_t i = run->groups[group];
        const void *keys = cached(run, step->keys, layer, step->slots[i], head);
        const void *values = cached(run, step->values, layer, step->slots[i], head);
        Queries queries = {
            .q = run->qkv + i * 3 * C + head * D,
            .out = run->y + i * C + head * D,
            .stride = 3 * C,
            .out_stride = C,
            .count = run->groups[group + 1] - i,
            .S = step->positions[i] + 1,
        };
        run->kernels->attention(
            step->cache_dtype, &queries, keys, values, D, scale, worker->vector, room
        );
    }
}

/* Put tokens that attention reads at once into groups. */
static void find_groups(Run *run) {
    const Step *step = run->step;
    int64_t jobs = step->count * run->model->n_head / (8 * step->threads), size = 0;
    int64_t most = max(1, min(QUERIES_AT_ONCE, jobs));
    run->n_groups = 0;
    for (int64_t i = 0; i < step->count; i++, size++)
        if (i == 0 || size == most || step->slots[i] != step->slots[i - 1]) {
            run->groups[run->n_groups++] = i;
            size = 0;
        }
    run->groups[run->n_groups] = step->count;
}

/* --- the shortlist ---------------------------------------------------------------------------- */

/* Insert a finite value into the n largest, in ascending order; the smallest drops out. */
static void keep_largest(float *largest, int64_t n, float value) {
    int64_t i = 0;
    if (!(value > largest[0] && value < INFINITY)) return;
    for (; i + 1 < n && largest[i + 1] < value; i++) largest[i] = largest[i + 1];
    largest[i] = value;
}

/* As matmul with the head and one input, but only for logits that can be among the `most_likely`
 * largest; the others become minus infinity. The first phase bounds every logit, from a sketch with
 * a quarter or half of the head's bytes; the second computes the few logits that are left. */
static void shortlist(Worker *worker, Source source) {
    const Run *run = worker->run;
    const Step *step = run->step;
    const Matrix *head = &run->model->head;
    int64_t V = head->rows, K = head->columns, n = step->most_likely;
    int64_t job = rows_per_job(head, worker->threads);

    /* upper bounds of all logits, and this thread's n largest lower bounds */
    RoundedInput x = {.int16 = worker->integers};
    const Input *inputs = prepare_inputs(worker, head, source);
    /* which leaves the normalized vector of a single input in worker->vector */
    run->kernels->round_input(head->dtype, worker->vector, K, &x);
    for (int64_t i = 0; i < 2 * n; i++) worker->largest[i] = -INFINITY;
    for (int64_t from; (from = take_jobs(worker, job)) < V;) {
        int64_t to = min(from + job, V);
        run->kernels->upper_bounds(step->sketch, from, to, K, &x, step->logits);
        for (int64_t row = from; row < to; row++) {
            float lower = step->logits[row] - 2 * error_bound(step->sketch, row, &x);
            keep_largest(worker->largest, n, lower);
        }
    }
    end_phase(worker);

    /* the n-th largest lower bound of all: every logit below it is left out */
    float *largest = worker->largest + n;
    for (int thread = 0; thread < worker->threads; thread++)
        for (int64_t i = 0; i < n; i++) keep_largest(largest, n, run->largest[2 * n * thread + i]);

    int64_t computed = 0;
    for (int64_t from; (from = take_jobs(worker, job)) < V;)
        for (int64_t row = from; row < min(from + job, V); row++)
            if (step->logits[row] < largest[0]) { /* false if a bound is NaN: then compute it */
                step->logits[row] = -INFINITY;
            } else {
                Outputs out = {step->logits, .stride = V};
                run->kernels->matmul(head, row, row + 1, inputs, 1, &out);
                computed++;
            }
    __atomic_fetch_add(step->computed, computed, __ATOMIC_RELAXED);
}

/* --- the forward pass ------------------------------------------------------------------------- */

static Worker make_worker(const Run *run, int thread, int threads) {
    return (Worker){
        .run = run,
        .vector = run->vectors + thread * run->vector_size,
        .integers = run->integers + thread * run->integers_size,
        .largest = run->largest + thread * 2 * run->step->most_likely,
        .thread = thread,
        .threads = threads,
    };
}

/* The whole model. Every thread runs this: each call with `worker` does this thread's share of a
 * phase. */
static void forward(void *task, int thread, int threads) {
    const Run *run = task;
    const Model *model = run->model;
    const Step *step = run->step;
    int64_t N = step->count, C = model->n_embd;
    Worker worker = make_worker(run, thread, threads);

    /* token embedding plus position embedding: x = wte[token] + wpe[position], (N, C) */
    embed(&worker);
    end_phase(&worker);

    for (int64_t l = 0; l < model->n_layer; l++) {
        const Layer *layer = &model->layers[l];

        /* queries, keys and values: qkv = c_attn(ln_1(x)), (N, 3C); keys and values are appended to
         * the cache */
        Source normalized = {run->x, N, .norm = &layer->ln_1};
        Outputs qkv = {run->qkv, .stride = 3 * C};
        matmul(&worker, &layer->c_attn, normalized, qkv, append_to_cache, l);
        end_phase(&worker);

        /* attention, the only phase in which tokens see each other, through the cache: y, (N, C) */
        attention(&worker, l);
        end_phase(&worker);

        /* its projection is added to the residual stream: x += c_proj(y) */
        Outputs residual = {run->x, .stride = C, .add = 1};
        matmul(&worker, &layer->attn_proj, (Source){run->y, N}, residual, NULL, l);
        end_phase(&worker);

        /* MLP, up: hidden = activation(c_fc(ln_2(x))), (N, n_inner) */
        normalized.norm = &layer->ln_2;
        Outputs hidden = {run->hidden, .stride = model->n_inner};
        matmul(&worker, &layer->c_fc, normalized, hidden, activate, l);
        end_phase(&worker);

        /* MLP, down: x += c_proj(hidden) */
        matmul(&worker, &layer->mlp_proj, (Source){run->hidden, N}, residual, NULL, l);
        end_phase(&worker);
    }

    /* the head: logits = ln_f(x) @ head.T, (wanted, V) */
    Source last = {run->x, run->n_wanted, .norm = &model->ln_f, .which = run->wanted};
    Outputs logits = {step->logits, .stride = model->head.rows};
    if (step->sketch)
        shortlist(&worker, last);
    else if (run->n_wanted)
        matmul(&worker, &model->head, last, logits, NULL, 0);
}

/* --- memory ----------------------------------------------------------------------------------- */

/* Take `bytes` from the scratch memory, and count them in `used`. If memory is NULL, only count. */
static void *take(char *memory, int64_t *used, int64_t bytes) {
    void *taken = memory ? memory + *used : NULL;
    *used += round_up(bytes, ALIGNMENT);
    return taken;
}

/* Lay out the run's arrays in the step's scratch memory, and return how many bytes they take. */
static int64_t lay_out(Run *run) {
    const Model *model = run->model;
    const Step *step = run->step;
    int64_t N = step->count, C = model->n_embd, inner = model->n_inner, threads = step->threads;
    int64_t widest = round_up(max(C, inner), BLOCK), used = 0;
    char *memory = step->scratch;
    int64_t phases = PHASES_PER_LAYER * model->n_layer + OTHER_PHASES;
    run->vector_size = round_up(max((step->capacity + 16) * min(QUERIES_AT_ONCE, N), C), 16);
    run->integers_size = step->sketch ? widest : 0;
    run->next_job = take(memory, &used, phases * sizeof(int64_t));
    run->x = take(memory, &used, N * C * sizeof(float));
    run->y = take(memory, &used, N * C * sizeof(float));
    run->qkv = take(memory, &used, N * 3 * C * sizeof(float));
    run->hidden = take(memory, &used, N * inner * sizeof(float));
    run->vectors = take(memory, &used, threads * run->vector_size * sizeof(float));
    run->largest = take(memory, &used, threads * 2 * step->most_likely * sizeof(float));
    run->integers = take(memory, &used, threads * run->integers_size * sizeof(int16_t));
    run->wanted = take(memory, &used, N * sizeof(int64_t));
    run->groups = take(memory, &used, (N + 1) * sizeof(int64_t));
    run->n_inputs = max(N, threads * OWN_INPUTS);
    run->inputs = take(memory, &used, run->n_inputs * sizeof(Input));
    for (int64_t i = 0; i < run->n_inputs; i++) {
        /* An int8 input with its offsets and scales takes no more room than one of floats. */
        float *floats = take(memory, &used, round_up(widest * sizeof(float), PAGE) + SKEW);
        int8_t *int8 = (int8_t *)floats;
        if (memory)
            run->inputs[i] = (Input){
                .floats = floats,
                .int8 = int8,
                .offsets = (int32_t *)(int8 + widest),
                .scales = (float *)(int8 + 2 * widest),
            };
    }
    if (memory) memset(run->next_job, 0, phases * sizeof(int64_t));
    return used;
}

/* --- what Python calls ------------------------------------------------------------------------ */

/* Return how many bytes of scratch memory a step takes. */
int64_t scratch_bytes(const Model *model, const Step *step) {
    Step without_memory = *step;
    without_memory.scratch = NULL;
    Run run = {.model = model, .step = &without_memory};
    return lay_out(&run);
}

/* Do one step with the kernels of a level. Return 0, or 1 if this processor cannot run them. */
int decode_step(const Model *model, const Step *step, const char *level) {
    Run run = {.model = model, .step = step, .kernels = find_kernels(level)};
    if (!run.kernels) return 1;
    lay_out(&run);
    find_groups(&run);
    for (int64_t i = 0; i < step->count; i++)
        if (step->wanted[i]) run.wanted[run.n_wanted++] = i;
    run_together(step->threads, forward, &run);
    return 0;
}

typedef struct {
    const Matrix *head;
    const Sketch *sketch;
    const Kernels *kernels;
} SketchTask;

static void sketch_rows(void *argument, int thread, int threads) {
    const SketchTask *task = argument;
    int64_t V = task->head->rows, from = V * thread / threads, to = V * (thread + 1) / threads;
    task->kernels->sketch_rows(task->head, from, to, task->sketch);
}

/* Fill in a sketch of the head. Return 0, or 1 if this processor cannot run the level. */
int make_sketch(const Matrix *head, const Sketch *sketch, int threads, const char *level) {
    SketchTask task = {head, sketch, find_kernels(level)};
    if (!task.kernels) return 1;
    run_together(threads, sketch_rows, &task);
    return 0;
}

typedef struct {
    const Matrix *matrix;
    const Kernels *kernels;
    uint64_t sum;
} ChecksumTask;

static void sum_words(void *argument, int thread, int threads) {
    ChecksumTask *task = argument;
    int64_t words = task->matrix->rows * row_bytes(task->matrix) / 4;
    int64_t from = words * thread / threads, to = words * (thread + 1) / threads;
    uint64_t sum = task->kernels->sum_words(task->matrix->weight, from, to);
    __atomic_fetch_add(&task->sum, sum, __ATOMIC_RELAXED);
}

/* Return a checksum of a matrix's weights. A change of one word, or a swap of two, changes it. */
uint64_t checksum(const Matrix *matrix, int threads) {
    ChecksumTask task = {matrix, find_kernels(NULL), 0};
    run_together(threads, sum_words, &task);
    int64_t bytes = matrix->rows * row_bytes(matrix), words = bytes / 4;
    uint32_t rest = 0;
    memcpy(&rest, (const uint32_t *)matrix->weight + words, bytes % 4);
    task.sum += (uint64_t)rest * (uint32_t)(2 * words + 1);
    return task.sum;
}

/* --- what Python checks when it loads the library --------------------------------------------- */

/* Return the sizes of the structs that Python fills in, and a zero after the last one. */
const int64_t *struct_sizes(void) {
    static const int64_t sizes[] = {
        sizeof(Matrix), sizeof(Norm), sizeof(Layer), sizeof(Model), sizeof(Sketch), sizeof(Step), 0,
    };
    return sizes;
}

/* Return the name of an activation function, or NULL if there is none of this number. */
const char *activation_name(int activation) {
    static const char *const names[] = {
        [GELU_NEW] = "gelu_new", [GELU] = "gelu", [QUICK_GELU] = "quick_gelu",
        [RELU] = "relu",         [SILU] = "silu", [TANH] = "tanh",
    };
    return activation >= 0 && activation < ACTIVATIONS ? names[activation] : NULL;
}
