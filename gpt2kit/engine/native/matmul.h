/* Matrix products y = x @ weight.T + bias. Part of kernels.h.
 *
 * weight is (rows, K) of any dtype, each input (K,); int8.h has what is special about int8 weights.
 * When few tokens are read, the time goes into reading the weights from memory: each weight is read
 * once, and multiplied with all inputs. When many are read, it goes into multiplying: then a few
 * rows and a few inputs are multiplied at once, in registers, and both are cut into blocks that
 * stay in the fastest cache. Each product is added up in the same order either way. */

/* --- float32 and bfloat16 --------------------------------------------------------------------- */

/* Add to the sums the products of PAIRS weights of R rows, which are row_bytes apart, with B
 * inputs from index k on. sums[b][r] are sixteen numbers that add up to the product. Of bfloat16
 * weights the ones with even indices come first: see prepare_bfloat16. */
INLINE void FN(add_float)(
    int dtype, int R, int B, const char *weights, int64_t row_bytes, int64_t k, const Input *inputs,
    FLOATS (*sums)[TILE_ROWS][PARTS]
) {
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; p++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            FLOATS w[TILE_ROWS]; /* of both halves, they would not fit into the registers */
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const char *row = weights + r * row_bytes + p * sizeof(FLOATS);
                if (dtype == BFLOAT16) {
                    FN(Words) pairs = (FN(Words))FN(load_floats)(row, FLOAT32, 0);
                    w[r] = (FLOATS)(half ? SECOND_OF_PAIRS(pairs) : FIRST_OF_PAIRS(pairs));
                } else {
                    w[r] = FN(load_floats)(row, FLOAT32, 16 * half);
                }
            }
#pragma GCC unroll 6
            for (int b = 0; b < B; b++) {
                FLOATS x =
                    FN(load_floats)(inputs[b].floats, FLOAT32, k + 16 * half + LANES * p);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++)
                    sums[b][r][p] = FN(multiply_add)(w[r], x, sums[b][r][p]);
            }
        }
}

/* Two functions follow, in a variant with and one without bfloat16 dot products:
 *
 *     prepare_bfloat16  store BLOCK numbers, the ones from index k of the input on
 *     add_bfloat16      see add_float
 */

#if BF16

/* Inputs are rounded to bfloat16 too; products and sums are float32. */
INLINE void FN(prepare_bfloat16)(const float *numbers, int64_t k, Input *out) {
    uint16_t *rounded = (uint16_t *)out->floats + k;
    for (int i = 0; i < BLOCK; i += 16) {
        __m256bh halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(numbers + i));
        _mm256_storeu_si256((__m256i *)(rounded + i), (__m256i)halves);
    }
}

INLINE void FN(add_bfloat16)(
    int R, int B, const char *weights, int64_t row_bytes, int64_t k, const Input *inputs,
    FLOATS (*sums)[TILE_ROWS][PARTS]
) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        __m512bh w = (__m512bh)_mm512_loadu_si512(weights + r * row_bytes);
#pragma GCC unroll 6
        for (int b = 0; b < B; b++) {
            const uint16_t *input = (const uint16_t *)inputs[b].floats + k;
            __m512bh x = (__m512bh)_mm512_loadu_si512(input);
            sums[b][r][0] = (FLOATS)_mm512_dpbf16_ps((__m512)sums[b][r][0], w, x);
        }
    }
}

#else

/* Of every PAIRS numbers, first those with even indices, then those with odd ones: the order in
 * which add_float takes the weights apart. */
INLINE void FN(prepare_bfloat16)(const float *numbers, int64_t k, Input *out) {
    float *even_and_odd = out->floats + k;
    for (int i = 0; i < BLOCK; i++)
        even_and_odd[i / PAIRS * PAIRS + i % 2 * (PAIRS / 2) + i % PAIRS / 2] = numbers[i];
}

INLINE void FN(add_bfloat16)(
    int R, int B, const char *weights, int64_t row_bytes, int64_t k, const Input *inputs,
    FLOATS (*sums)[TILE_ROWS][PARTS]
) {
    FN(add_float)(BFLOAT16, R, B, weights, row_bytes, k, inputs, sums);
}

#endif

/* --- any dtype -------------------------------------------------------------------------------- */

/* Store K numbers in the form in which weights of this dtype read them. */
TARGET static void FN(prepare_input)(int dtype, const float *x, int64_t K, Input *out) {
    for (int64_t k = 0; k < K; k += BLOCK) {
        float padded[BLOCK] = {0};
        const float *numbers = x + k;
        if (K - k < BLOCK) numbers = memcpy(padded, x + k, (K - k) * sizeof(float));
        if (dtype == INT8)
            FN(prepare_int8)(numbers, k, out);
        else if (dtype == BFLOAT16)
            FN(prepare_bfloat16)(numbers, k, out);
        else
            memcpy(out->floats + k, numbers, BLOCK * sizeof(float));
    }
}

/* As add_float, for `unit` weights of any dtype: PAIRS, or BLOCK if they are int8. */
INLINE void FN(add)(
    int dtype, int R, int B, const char *weights, int64_t row_bytes, int64_t k, const Input *inputs,
    FLOATS (*sums)[TILE_ROWS][PARTS]
) {
    if (dtype == INT8)
        FN(add_int8)(R, B, weights, row_bytes, k, inputs, sums);
    else if (dtype == BFLOAT16)
        FN(add_bfloat16)(R, B, weights, row_bytes, k, inputs, sums);
    else
        FN(add_float)(FLOAT32, R, B, weights, row_bytes, k, inputs, sums);
}

/* Some rows of a matrix and some inputs that are multiplied at once: R rows, `row` and those
 * `apart` from it, with B inputs from index `first` on, in their numbers from k to `end`. Weights
 * that are `ahead` bytes further on are asked for. */
typedef struct {
    int64_t row, apart, first, k, end, ahead;
} FN(Tile);

/* Compute the outputs of a tile; R is 1 or 4. If it does not begin at the inputs' first number,
 * `partial` has the sums so far; if it does not reach their last, `partial` gets them. */
INLINE void FN(tile)(
    int dtype, int R, int B, const Matrix *matrix, FN(Tile) at, const Input *inputs,
    FLOATS (*partial)[TILE_ROWS][PARTS], const Outputs *out
) {
    FLOATS sums[TILE_INPUTS][TILE_ROWS][PARTS];
    int64_t K = matrix->columns, size = dtype == INT8 ? 1 : dtype == BFLOAT16 ? 2 : 4;
    int64_t unit = dtype == INT8 ? BLOCK : PAIRS, k = at.k;
    int64_t row_bytes = K * size * at.apart;
    const char *weight = (const char *)matrix->weight + K * size * at.row;
    inputs += at.first;
#pragma GCC unroll 6
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++)
                sums[b][r][p] = r < R && at.k ? partial[b][r][p] : (FLOATS){0};
    for (; k + unit <= at.end; k += unit) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *ahead = weight + r * row_bytes + k * size + at.ahead;
            __builtin_prefetch(ahead);
            if (dtype == FLOAT32) __builtin_prefetch(ahead + 64);
        }
        FN(add)(dtype, R, B, weight + k * size, row_bytes, k, inputs, sums);
    }
    if (k < at.end) { /* the last weights of rows that are no multiple of the unit */
        char padded[TILE_ROWS][PAIRS * 4] = {{0}};
        for (int r = 0; r < R; r++)
            memcpy(padded[r], weight + r * row_bytes + k * size, (K - k) * size);
        FN(add)(dtype, R, B, padded[0], sizeof padded[0], k, inputs, sums);
    }
    if (at.end < K) {
#pragma GCC unroll 6
        for (int b = 0; b < B; b++)
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int p = 0; p < PARTS; p++) partial[b][r][p] = sums[b][r][p];
        return;
    }
    f32x4 scale = (f32x4){0} + 1, bias = {0};
    int64_t apart = R == TILE_ROWS ? at.apart : 0;
    if (dtype == INT8) scale = FN(load4)(matrix->scales, FLOAT32, at.row, apart);
    if (matrix->bias) bias = FN(load4)(matrix->bias, matrix->bias_dtype, at.row, apart);
#pragma GCC unroll 6
    for (int b = 0; b < B; b++) {
        float *output = out->floats + (at.first + b) * out->stride + at.row;
        f32x4 y = FN(sum4)((const FLOATS(*)[PARTS])sums[b]);
        y = dtype == INT8 ? FN(multiply_add4)(y, scale, bias) : y + bias;
        if (R == TILE_ROWS && apart == 1) {
            f32x4_unaligned *four = (f32x4_unaligned *)output;
            if (out->add) y += *four;
            *four = y;
        } else {
            for (int r = 0; r < R; r++)
                output[r * apart] = out->add ? output[r * apart] + y[r] : y[r];
        }
    }
}

/* As tile, for the inputs up to `last`. */
INLINE void FN(tiles)(
    int dtype, const Matrix *matrix, FN(Tile) at, int64_t last, const Input *inputs,
    FLOATS (*partial)[TILE_ROWS][PARTS], const Outputs *out
) {
    int64_t first = at.first;
    for (; at.first + TILE_INPUTS <= last; at.first += TILE_INPUTS)
        FN(tile)(
            dtype, TILE_ROWS, TILE_INPUTS, matrix, at, inputs, partial + at.first - first, out
        );
#if TILE_INPUTS > 1
    for (; at.first + 2 <= last; at.first += 2)
        FN(tile)(dtype, TILE_ROWS, 2, matrix, at, inputs, partial + at.first - first, out);
    for (; at.first < last; at.first++)
        FN(tile)(dtype, TILE_ROWS, 1, matrix, at, inputs, partial + at.first - first, out);
#endif
}

/* Few inputs are all multiplied with four rows after another, so that each weight is read once. Of
 * many inputs, INPUTS_AT_ONCE, or half as many if they are float32, are multiplied with
 * ROWS_AT_ONCE rows, one block of their numbers after the other. */
INLINE void FN(matmul_of)(
    int dtype, const Matrix *matrix, int64_t from, int64_t to, const Input *inputs, int64_t count,
    const Outputs *out
) {
    FLOATS partial[ROWS_AT_ONCE / TILE_ROWS][INPUTS_AT_ONCE][TILE_ROWS][PARTS];
    int few = count <= FEW_INPUTS, are_small = dtype == INT8 || (dtype == BFLOAT16 && BF16);
    int64_t K = matrix->columns, tiles = (to - from) / TILE_ROWS, rest = from + tiles * TILE_ROWS;
    int64_t blocks = few ? 1 : (K + NUMBERS_AT_ONCE - 1) / NUMBERS_AT_ONCE;
    int64_t block = ((K + blocks - 1) / blocks + BLOCK - 1) / BLOCK * BLOCK;
    int64_t inputs_at_once = few ? count : are_small ? INPUTS_AT_ONCE : INPUTS_AT_ONCE / 2;
    int64_t tiles_at_once = few ? 1 : ROWS_AT_ONCE / TILE_ROWS;
    int64_t next_rows = TILE_ROWS * K * (dtype == INT8 ? 1 : dtype == BFLOAT16 ? 2 : 4);
    for (int64_t first = 0; first < count; first += inputs_at_once) {
        int64_t last = first + inputs_at_once < count ? first + inputs_at_once : count;
        FN(Tile) at = {.first = first, .end = K, .ahead = few ? PREFETCH_BYTES : next_rows};
        at.apart = few ? tiles : 1; /* four long streams of weights are prefetched better */
        for (int64_t begin = 0; begin < tiles; begin += tiles_at_once) {
            int64_t end = begin + tiles_at_once < tiles ? begin + tiles_at_once : tiles;
            for (at.k = 0; at.k < K; at.k = at.end) {
                at.end = at.k + block < K ? at.k + block : K;
                for (int64_t i = begin; i < end; i++) {
                    at.row = from + (few ? i : i * TILE_ROWS);
                    FN(tiles)(dtype, matrix, at, last, inputs, partial[i - begin], out);
                }
            }
        }
        at.k = 0;
        for (at.row = rest; at.row < to; at.row++)
            for (at.first = first; at.first < last; at.first++)
                FN(tile)(dtype, 1, 1, matrix, at, inputs, NULL, out);
    }
}

/* Compute outputs `from` to `to` of each input: inputs (count, K) -> out (count, to - from). */
TARGET static void FN(matmul)(
    const Matrix *matrix, int64_t from, int64_t to, const Input *inputs, int64_t count,
    const Outputs *out
) {
    if (matrix->dtype == INT8)
        FN(matmul_of)(INT8, matrix, from, to, inputs, count, out);
    else if (matrix->dtype == BFLOAT16)
        FN(matmul_of)(BFLOAT16, matrix, from, to, inputs, count, out);
    else
        FN(matmul_of)(FLOAT32, matrix, from, to, inputs, count, out);
}
