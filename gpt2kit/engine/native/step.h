/* What the C files share: the model as Python describes it, one step's task, and the kernels.
 *
 *     N tokens to read, C width, H heads, D head size, V vocabulary, K columns of a matrix
 *
 * library.py repeats the structs that Python fills in; struct_sizes() lets it check them. */

#ifndef GPT2KIT_STEP_H
#define GPT2KIT_STEP_H

#include <stdint.h>

enum { FLOAT32, BFLOAT16, INT8 };                                   /* dtypes */
enum { GELU_NEW, GELU, QUICK_GELU, RELU, SILU, TANH, ACTIVATIONS }; /* activation functions */

enum {
    BLOCK = 64, /* numbers of an int8 input that share a scale */
    PAIRS = 32, /* bfloat16 weights that are read at once, as 16 pairs */
};

/* --- the model -------------------------------------------------------------------------------- */

/* A weight matrix, in torch's own memory: y = x @ weight.T + bias. */
typedef struct {
    const void *weight;  /* (rows, columns) */
    const float *scales; /* (rows,) of int8 weights: the real weight is weight * scale; else NULL */
    const void *bias;    /* (rows,) or NULL */
    int64_t rows, columns;
    int32_t dtype, bias_dtype;
} Matrix;

typedef struct {
    const void *weight, *bias; /* (C,) each; the bias may be NULL */
} Norm;

typedef struct {
    Norm ln_1, ln_2;
    Matrix c_attn, attn_proj, c_fc, mlp_proj;
    float attention_scale; /* of the scores, before the softmax */
} Layer;

typedef struct {
    int64_t n_layer, n_head, n_embd, n_inner;
    int32_t activation;
    int32_t dtype; /* of norms and positions; matrices have their own */
    float epsilon; /* of the norms */
    Matrix wte, head;
    const void *wpe; /* (n_ctx, C) */
    Norm ln_f;
    const Layer *layers; /* (n_layer,) */
} Model;

/* The head rounded to int8, with bounds of the error: see shortlist.h. */
typedef struct {
    int8_t *weight; /* (V, C) */
    float *scales;  /* (V,): row v of the head is about weight[v] * scales[v] */
    float *norms;   /* (V,): upper bounds of the norms of the rounded rows */
    float *errors;  /* (V,): upper bounds of the norms of what rounding took away */
} Sketch;

/* --- one step --------------------------------------------------------------------------------- */

/* N tokens to read, and where. Tokens of the same slot are adjacent and in order. */
typedef struct {
    int64_t count;            /* N */
    const int64_t *tokens;    /* (N,): ids */
    const int64_t *slots;     /* (N,): the row of the cache that the token belongs to */
    const int64_t *positions; /* (N,): its position there; it sees the keys up to its own */
    const int64_t *copies;    /* (N,): how many slots get its key and value, from its own on */
    const uint8_t *wanted;    /* (N,): 1 for the tokens after which the logits are wanted */
    float *logits;            /* (wanted tokens, V) */
    void *keys, *values;      /* the cache, (n_layer, batch, H, capacity, D) each */
    int64_t batch, capacity;
    int32_t cache_dtype;
    int32_t threads;
    char *scratch;        /* scratch_bytes() of memory, aligned to 64 bytes */
    const Sketch *sketch; /* NULL: compute all logits; else one token is wanted, and */
    int64_t most_likely;  /* its logits below this many largest may be minus infinity */
    int64_t *computed;    /* with a sketch: counts the logits that were computed */
} Step;

/* --- what the kernels take -------------------------------------------------------------------- */

/* One input vector of a matrix, in the form in which its kernel reads it, padded with zeros. */
typedef struct {
    float *floats;    /* for FLOAT32 and BFLOAT16 weights: see prepare_input in matmul.h */
    int8_t *int8;     /* for INT8 weights: the input is about int8 * scales */
    int32_t *offsets; /* for INT8 weights with VNNI: see prepare_int8 in int8.h */
    float *scales;    /* for INT8 weights: one for each BLOCK */
} Input;

/* Where the products of a matrix go. */
typedef struct {
    float *floats; /* (inputs, stride) */
    int64_t stride;
    int add; /* add to what is there instead of replacing it */
} Outputs;

/* Queries of one head, and where their results go. The first one sees S keys, and each of the
 * others one more than the one before it. */
typedef struct {
    const float *q; /* (count, D), `stride` numbers apart */
    float *out;     /* (count, D), `out_stride` numbers apart */
    int64_t stride, out_stride, count, S;
} Queries;

/* An input of the head rounded to integers, with bounds of the error: see shortlist.h. */
typedef struct {
    int16_t *int16; /* (C,), padded with zeros: the input is about int16 * scale */
    float scale;
    float large_sum;  /* of the absolute values of the input's few large elements */
    float small_norm; /* norm of the other elements */
    float error;      /* norm of what rounding took away, and of all rounding in the products */
} RoundedInput;

/* The kernels of one instruction set; kernels.h says what each computes. */
typedef struct {
    void (*layer_norm)(
        const float *x, const Norm *norm, int dtype, float epsilon, int64_t C, float *out
    );
    void (*activate)(float *x, int64_t n, int activation);
    void (*attention)(
        int dtype, const Queries *queries, const void *keys, const void *values, int64_t D,
        float scale, float *scores, int64_t room
    );
    void (*prepare_input)(int dtype, const float *x, int64_t K, Input *out);
    void (*matmul)(
        const Matrix *matrix, int64_t from, int64_t to, const Input *inputs, int64_t count,
        const Outputs *out
    );
    void (*sketch_rows)(const Matrix *head, int64_t from, int64_t to, const Sketch *sketch);
    void (*round_input)(int dtype, float *x, int64_t K, RoundedInput *out);
    void (*upper_bounds)(
        const Sketch *sketch, int64_t from, int64_t to, int64_t K, const RoundedInput *x,
        float *bounds
    );
    uint64_t (*sum_words)(const uint32_t *words, int64_t from, int64_t to);
} Kernels;

/* How far the product of a sketched row with a rounded input may be from the exact product. */
static inline float error_bound(const Sketch *sketch, int64_t row, const RoundedInput *x) {
    return 0.501f * sketch->scales[row] * x->large_sum + sketch->errors[row] * x->small_norm +
           sketch->norms[row] * x->error;
}

/* Return the kernels of a level, or NULL if this processor cannot run them. NULL asks for the
 * fastest ones. */
const Kernels *find_kernels(const char *level);

/* Return the name of the fastest level that this processor runs. */
const char *best_level(void);

#endif
