/* Matrix products y = x @ weight.T + bias of a few inputs. Part of kernels.h.
 *
 * weight is (rows, K) of any dtype, each input (K,); int8.h has what is special about int8 weights.
 * When few tokens are read, the time goes into reading the weights from memory: each weight is read
 * once, and multiplied with all inputs. */

/* --- float32 and bfloat16 --------------------------------------------------------------------- */

/* Load PAIRS weights as two vectors, in the order of prepared inputs. */
INLINE void FN(load_pairs)(const void *weight, int dtype, f32x16 *first, f32x16 *second) {
    if (dtype == BFLOAT16) {
        u32x16 pairs = *(const u32x16_unaligned *)weight;
        *first = (f32x16)(FIRST_OF_PAIRS(pairs));
        *second = (f32x16)(SECOND_OF_PAIRS(pairs));
    } else {
        *first = FN(load)(weight, FLOAT32, 0);
        *second = FN(load)(weight, FLOAT32, 16);
    }
}

/* Multiply R rows of weights, which are row_bytes apart, with B inputs of K numbers. sums[b][r] are
 * sixteen numbers that add up to the product. */
INLINE void FN(tile_float)(
    int dtype, int R, int B, const char *weight, int64_t row_bytes, int64_t K, const Input *inputs,
    f32x16 (*sums)[TILE_ROWS]
) {
    f32x16 sum[TILE_INPUTS][TILE_ROWS][SUMS];
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int s = 0; s < SUMS; s++) sum[b][r][s] = FN(splat)(0);
    int size = dtype == BFLOAT16 ? 2 : 4;
    for (int64_t k = 0; k < K; k += PAIRS)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *weights = weight + r * row_bytes + k * size;
            char padded[PAIRS * 4];
            if (K - k < PAIRS) {
                memset(padded, 0, sizeof padded);
                weights = memcpy(padded, weights, (K - k) * size);
            } else {
                prefetch(weights);
                if (dtype == FLOAT32) prefetch(weights + 64);
            }
            f32x16 first, second;
            FN(load_pairs)(weights, dtype, &first, &second);
#pragma GCC unroll 2
            for (int b = 0; b < B; b++) {
                sum[b][r][0] += first * FN(load)(inputs[b].floats, FLOAT32, k);
                sum[b][r][SUMS - 1] += second * FN(load)(inputs[b].floats, FLOAT32, k + 16);
            }
        }
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            sums[b][r] = SUMS == 2 ? sum[b][r][0] + sum[b][r][1] : sum[b][r][0];
}

/* Two functions follow, in a variant with and one without bfloat16 dot products:
 *
 *     prepare_bfloat16  store BLOCK numbers, the ones from index k of the input on
 *     tile_bfloat16     the product; see tile_float
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

INLINE void FN(tile_bfloat16)(
    int R, int B, const char *weight, int64_t row_bytes, int64_t K, const Input *inputs,
    f32x16 (*sums)[TILE_ROWS]
) {
    __m512 sum[TILE_INPUTS][TILE_ROWS];
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[b][r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += PAIRS) {
        __mmask32 there = K - k < PAIRS ? ((__mmask32)1 << (K - k)) - 1 : ~(__mmask32)0;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *pairs = weight + r * row_bytes + k * 2;
            prefetch(pairs);
            __m512bh w = (__m512bh)_mm512_maskz_loadu_epi16(there, pairs);
#pragma GCC unroll 2
            for (int b = 0; b < B; b++) {
                const uint16_t *input = (const uint16_t *)inputs[b].floats + k;
                sum[b][r] = _mm512_dpbf16_ps(sum[b][r], w, (__m512bh)_mm512_loadu_si512(input));
            }
        }
    }
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sums[b][r] = (f32x16)sum[b][r];
}

#else

/* Of every PAIRS numbers, first those with even indices, then those with odd ones: the order in
 * which load_pairs takes the weights apart. */
INLINE void FN(prepare_bfloat16)(const float *numbers, int64_t k, Input *out) {
    float *even_and_odd = out->floats + k;
    for (int i = 0; i < BLOCK; i++)
        even_and_odd[i / PAIRS * PAIRS + i % 2 * (PAIRS / 2) + i % PAIRS / 2] = numbers[i];
}

INLINE void FN(tile_bfloat16)(
    int R, int B, const char *weight, int64_t row_bytes, int64_t K, const Input *inputs,
    f32x16 (*sums)[TILE_ROWS]
) {
    FN(tile_float)(BFLOAT16, R, B, weight, row_bytes, K, inputs, sums);
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

/* Compute the outputs of R rows of weights, `row` and those `apart` from it, for B inputs from
 * index `first` on; R is 1 or 4. */
INLINE void FN(tile)(
    int dtype, int R, int B, const Matrix *matrix, int64_t row, int64_t apart, const Input *inputs,
    int64_t first, const Outputs *out
) {
    f32x16 sums[TILE_INPUTS][TILE_ROWS] = {{{0}}};
    int64_t K = matrix->columns, row_bytes = K * (dtype == INT8 ? 1 : dtype == BFLOAT16 ? 2 : 4);
    const char *weight = (const char *)matrix->weight + row * row_bytes;
    if (dtype == INT8)
        FN(tile_int8)(R, B, weight, row_bytes * apart, K, inputs + first, sums);
    else if (dtype == BFLOAT16)
        FN(tile_bfloat16)(R, B, weight, row_bytes * apart, K, inputs + first, sums);
    else
        FN(tile_float)(FLOAT32, R, B, weight, row_bytes * apart, K, inputs + first, sums);
#pragma GCC unroll 2
    for (int b = 0; b < B; b++) {
        float *output = out->floats + (first + b) * out->stride + row;
        f32x4 y = FN(sum4)(sums[b]);
        if (R == TILE_ROWS) {
            if (dtype == INT8) y *= FN(load4)(matrix->scales, FLOAT32, row, apart);
            if (matrix->bias) y += FN(load4)(matrix->bias, matrix->bias_dtype, row, apart);
            for (int r = 0; r < 4; r++)
                output[r * apart] = out->add ? output[r * apart] + y[r] : y[r];
        } else {
            float value = dtype == INT8 ? y[0] * matrix->scales[row] : y[0];
            if (matrix->bias) value += read(matrix->bias, matrix->bias_dtype, row);
            *output = out->add ? value + *output : value;
        }
    }
}

/* As tile, for all inputs. */
INLINE void FN(tiles)(
    int dtype, int R, const Matrix *matrix, int64_t row, int64_t apart, const Input *inputs,
    int64_t count, const Outputs *out
) {
    int64_t b = 0;
    for (; b + TILE_INPUTS <= count; b += TILE_INPUTS)
        FN(tile)(dtype, R, TILE_INPUTS, matrix, row, apart, inputs, b, out);
    for (; b < count; b++) FN(tile)(dtype, R, 1, matrix, row, apart, inputs, b, out);
}

INLINE void FN(matmul_of)(
    int dtype, const Matrix *matrix, int64_t from, int64_t to, const Input *inputs, int64_t count,
    const Outputs *out
) {
    /* Four long streams of weights are prefetched better than four neighboring rows. */
    int64_t apart = (to - from) / TILE_ROWS;
    for (int64_t row = from; row < from + apart; row++)
        FN(tiles)(dtype, TILE_ROWS, matrix, row, apart, inputs, count, out);
    for (int64_t row = from + apart * TILE_ROWS; row < to; row++)
        FN(tiles)(dtype, 1, matrix, row, 0, inputs, count, out);
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
