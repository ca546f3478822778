/* What the decoder's files share: the model as the caller describes it, and the types of the kernels. */

#ifndef GPT2KIT_STEP_H
#define GPT2KIT_STEP_H

#include <stdint.h>

enum { FLOAT32, BFLOAT16, INT8 };                      /* kinds of numbers */
enum { GELU_NEW, GELU, QUICK_GELU, RELU, SILU, TANH }; /* activations */
enum { BLOCK = 64, PAIRS = 32 };                       /* int8 inputs share a scale in blocks of so many; see Input */

/* A weight matrix (rows, columns), used where it lies: y = x weight^T + bias. */
typedef struct {
    const void *weight;
    const float *scales; /* (rows,), of int8 weights: each row's own */
    const void *bias;    /* (rows,) or NULL */
    int64_t rows, columns;
    int32_t kind, bias_kind;
} Matrix;

typedef struct {
    const void *gain, *bias; /* (C,); the bias may be NULL */
} Norm;

typedef struct {
    Norm ln_1, ln_2;
    Matrix c_attn, attn_proj, c_fc, mlp_proj;
    float attention_scale;
} Layer;

typedef struct {
    int64_t n_layer, n_head, n_embd, n_inner;
    int32_t activation, kind; /* the kind of norms and positions */
    float epsilon;
    Matrix wte, head;
    const void *wpe;
    Norm ln_f;
    const Layer *layers;
} Model;

/* The head in eight bits, and what that leaves out: enough to rule out nearly every row; see shortlist.h. */
typedef struct {
    int8_t *weight;                /* (rows, columns) */
    float *scales, *norms, *errors; /* (rows,): a row is about weight * scale; a bound of that one's norm, and of the difference's */
} Sketch;

/* Some tokens to read, and where. Row i is the token at `positions[i]` of the cache's row `slots[i]`, and sees the keys up to
 * its own. Tokens of one cache row must be adjacent, in order. */
typedef struct {
    int64_t count;
    const int64_t *tokens, *slots, *positions;
    const uint8_t *wanted;        /* of which rows the logits are wanted */
    float *logits;                /* (wanted rows, V) */
    void *keys, *values;          /* (n_layer, batch, n_head, capacity, D) */
    int64_t batch, capacity;
    int32_t cache_kind, threads;
    char *scratch;                /* scratch_bytes() of memory */
    const Sketch *sketch;         /* of the head, where only the `most_likely` logits of one wanted row are asked for: each of the */
    int64_t most_likely;          /* others may be minus infinity; or NULL, for all logits */
    int64_t *computed;            /* and how many rows of the head were computed for them */
} Step;

/* --- what the kernels take -------------------------------------------------------------------------------------------- */

/* One vector that meets a matrix, arranged for the matrix's kind of numbers and filled up with zeros. */
typedef struct {
    float *numbers;   /* FLOAT32: as they are; BFLOAT16: rounded to it, or of every PAIRS numbers those at even places, then those at odd ones */
    int8_t *whole;    /* INT8: rounded, */
    int32_t *offsets; /* minus 128 times the sum of every four, where the kernels need it, */
    float *scales;    /* and what a block was divided by; the three lie where `numbers` would */
} Input;

/* A vector that meets a sketch, in whole numbers. */
typedef struct {
    int16_t *whole; /* (K,), and zeros */
    float scale;
    float large, norm; /* the sum of its large numbers' sizes, and the norm of the others */
    float error;       /* bounds the norm of what rounding leaves out, and all rounding beside */
} Rounded;

/* Up to how far the product of the two may be from the product of what they stand for. */
static inline float doubt(const Sketch *sketch, int64_t row, const Rounded *x) {
    return 0.501f * sketch->scales[row] * x->large + sketch->errors[row] * x->norm + sketch->norms[row] * x->error;
}

typedef struct {
    float *numbers; /* (count, stride) */
    int64_t stride;
    int add; /* add to what is there */
} Outputs;

typedef struct {
    void (*normalise)(const float *x, const void *gain, const void *bias, int kind, float epsilon, int64_t C, float *out);
    void (*activate)(float *x, int64_t n, int activation);
    void (*attend)(int kind, const float *q, const void *keys, const void *values, int64_t S, int64_t D, float scale, float *scores, float *out);
    void (*arrange)(int kind, const float *x, int64_t K, Input *out);
    void (*linear)(const Matrix *matrix, int64_t from, int64_t to, const Input *inputs, int64_t count, const Outputs *out);
    void (*sketch)(const Matrix *head, int64_t from, int64_t to, const Sketch *sketch);
    void (*round_input)(int kind, float *x, int64_t K, Rounded *out);
    void (*bounds)(const Sketch *sketch, int64_t from, int64_t to, int64_t K, const Rounded *x, float *upper);
} Kernels;

/* The kernels of a level by its name, NULL where the processor cannot run them; for NULL, the best ones. */
const Kernels *find_kernels(const char *level);
const char *best_level(void);

#endif
