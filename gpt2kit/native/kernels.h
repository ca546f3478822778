/* The arithmetic of one decode step, written once and included once for each instruction set.
 *
 * The includer defines FN(name), the name of a function at this level; TARGET, the attribute that lets the compiler use the
 * level's instructions; TILE_INPUTS, how many inputs one row of weights meets in registers; UNROLL, how many sums are taken at
 * once; and VNNI, 0 or 1.
 * Vectors are sixteen lanes of GCC's and clang's vector extension, which every processor runs in registers of its own width.
 * A sum is always taken in the same order, so that a result depends on neither the batch it is computed in nor the threads.
 *
 *     C width, K inputs of a matrix, D head size, S keys
 */

#define INLINE TARGET static inline __attribute__((always_inline))

/* --- vectors ------------------------------------------------------------------------------------------------------ */

INLINE f32x16 FN(splat)(float value) { return (f32x16){0} + value; }

INLINE f32x16 FN(load)(const void *numbers, int kind, int64_t at) {
    if (kind == BFLOAT16)  /* the upper half of a float32 */
        return (f32x16)(__builtin_convertvector(*(const u16x16_unaligned *)((const uint16_t *)numbers + at), u32x16) << 16);
    return *(const f32x16_unaligned *)((const float *)numbers + at);
}

INLINE void FN(store)(float *numbers, f32x16 value) { *(f32x16_unaligned *)numbers = value; }

/* The larger of two; a NaN in the first one stays. */
INLINE f32x16 FN(larger)(f32x16 a, f32x16 b) {
    i32x16 less = a < b;
    return (f32x16)((less & (i32x16)b) | (~less & (i32x16)a));
}

INLINE float FN(sum)(f32x16 value) {
    union { f32x16 whole; f32x8 half[2]; } a = {value};
    union { f32x8 whole; f32x4 half[2]; } b = {a.half[0] + a.half[1]};
    f32x4 c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* e^x to 1 unit in the last place or two: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, n into the exponent. */
INLINE f32x16 FN(exp)(f32x16 x) {
    const f32x16 round = FN(splat)(12582912.0f); /* 1.5 * 2^23 */
    x = FN(larger)(x, FN(splat)(-87.0f));
    x = -FN(larger)(-x, FN(splat)(-88.0f));
    f32x16 shifted = x * 1.44269504f + round;  /* n in the low bits */
    f32x16 n = shifted - round;
    f32x16 r = x - n * 0.693359375f;  /* ln 2 in two parts, the first exact in few bits */
    r = r + n * 2.12194440e-4f;
    f32x16 p = r * (1.0f / 5040) + (1.0f / 720);
    p = p * r + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return (f32x16)((i32x16)p + ((i32x16)shifted << 23));
}

/* --- layer norm, activations, softmax -------------------------------------------------------------------------------- */

/* out = (x - mean) / sqrt(variance + epsilon) * gain + bias, over C numbers. */
TARGET static void FN(normalise)(const float *x, const void *gain, const void *bias, int kind, float epsilon, int64_t C, float *out) {
    f32x16 sum = {0};
    int64_t i;
    float mean = 0, variance = 0;
    for (i = 0; i + 16 <= C; i += 16) sum += FN(load)(x, FLOAT32, i);
    for (; i < C; i++) mean += x[i];
    mean = (mean + FN(sum)(sum)) / C;
    sum = FN(splat)(0);
    for (i = 0; i + 16 <= C; i += 16) {
        f32x16 from_mean = FN(load)(x, FLOAT32, i) - mean;
        sum += from_mean * from_mean;
    }
    for (; i < C; i++) variance += (x[i] - mean) * (x[i] - mean);
    float factor = 1 / sqrtf((variance + FN(sum)(sum)) / C + epsilon);
    for (i = 0; i + 16 <= C; i += 16) {
        f32x16 y = (FN(load)(x, FLOAT32, i) - mean) * factor * FN(load)(gain, kind, i);
        FN(store)(out + i, bias ? y + FN(load)(bias, kind, i) : y);
    }
    for (; i < C; i++) out[i] = (x[i] - mean) * factor * read(gain, kind, i) + (bias ? read(bias, kind, i) : 0);
}

INLINE f32x16 FN(activated)(f32x16 x, int activation) {
    switch (activation) {
        case GELU_NEW: return x / (1.0f + FN(exp)(x * (x * x * 0.044715f + 1.0f) * -1.59576912f));  /* x * sigmoid(2u) = x (1 + tanh u) / 2 */
        case QUICK_GELU: return x / (1.0f + FN(exp)(x * -1.702f));
        case SILU: return x / (1.0f + FN(exp)(-x));
        case TANH: return 1.0f - 2.0f / (1.0f + FN(exp)(x * 2.0f));
        default: return FN(larger)(x, FN(splat)(0));  /* RELU */
    }
}

TARGET static void FN(activate)(float *x, int64_t n, int activation) {
    if (activation == GELU) {
        for (int64_t i = 0; i < n; i++) x[i] *= 0.5f * (1 + erff(x[i] * 0.70710678f));
        return;
    }
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) FN(store)(x + i, FN(activated)(FN(load)(x, FLOAT32, i), activation));
    if (i < n) {
        float rest[16] = {0};
        memcpy(rest, x + i, (n - i) * sizeof(float));
        FN(store)(rest, FN(activated)(FN(load)(rest, FLOAT32, 0), activation));
        memcpy(x + i, rest, (n - i) * sizeof(float));
    }
}

/* Turn S scores into weights e^(score - largest), and return their sum. There is room for sixteen more scores. */
INLINE float FN(softmax)(float *scores, int64_t S) {
    float largest = scores[0];
    for (int64_t j = 1; j < S; j++) largest = scores[j] > largest ? scores[j] : largest;
    for (int64_t j = S; j % 16; j++) scores[j] = -INFINITY;
    f32x16 sum = {0};
    for (int64_t j = 0; j < S; j += 16) {
        f32x16 score = FN(load)(scores, FLOAT32, j);
        f32x16 weight = FN(exp)(score - largest);
        FN(store)(scores + j, weight);
        sum += weight;
    }
    return FN(sum)(sum);
}

/* --- attention ------------------------------------------------------------------------------------------------------- */

/* One query of one head over S keys and values, (S, D) each; `scores` is scratch for S + 16 numbers. */
INLINE void FN(attend_to)(
    int kind, const float *q, const void *keys, const void *values, int64_t S, int64_t D, float scale, float *scores, float *out
) {
    int64_t whole = D - D % 16;
    for (int64_t j = 0; j < S; j++) {
        f32x16 sum = {0};
        for (int64_t d = 0; d < whole; d += 16) sum += FN(load)(q, FLOAT32, d) * FN(load)(keys, kind, j * D + d);
        float score = FN(sum)(sum);
        for (int64_t d = whole; d < D; d++) score += q[d] * read(keys, kind, j * D + d);
        scores[j] = score * scale;
    }
    float total = FN(softmax)(scores, S);
    int64_t d = 0;
    for (; d + 64 <= D; d += 64) {
        f32x16 y[4] = {{0}};
        for (int64_t j = 0; j < S; j++)
            for (int i = 0; i < 4; i++) y[i] += scores[j] * FN(load)(values, kind, j * D + d + 16 * i);
        for (int i = 0; i < 4; i++) FN(store)(out + d + 16 * i, y[i] / total);
    }
    for (; d + 16 <= D; d += 16) {
        f32x16 y = {0};
        for (int64_t j = 0; j < S; j++) y += scores[j] * FN(load)(values, kind, j * D + d);
        FN(store)(out + d, y / total);
    }
    for (; d < D; d++) {
        float y = 0;
        for (int64_t j = 0; j < S; j++) y += scores[j] * read(values, kind, j * D + d);
        out[d] = y / total;
    }
}

TARGET static void FN(attend)(
    int kind, const float *q, const void *keys, const void *values, int64_t S, int64_t D, float scale, float *scores, float *out
) {
    if (kind == BFLOAT16)
        FN(attend_to)(BFLOAT16, q, keys, values, S, D, scale, scores, out);
    else
        FN(attend_to)(FLOAT32, q, keys, values, S, D, scale, scores, out);
}

/* --- matrices -------------------------------------------------------------------------------------------------------- */

/* Round K numbers to int8 in blocks of 64, each with its own scale; the last block is filled with zeros. */
TARGET static void FN(quantise)(const float *x, int64_t K, Quantised *out) {
    for (int64_t block = 0; block * BLOCK < K; block++) {
        float numbers[BLOCK] = {0};
        int64_t left = K - block * BLOCK;
        memcpy(numbers, x + block * BLOCK, (left < BLOCK ? left : BLOCK) * sizeof(float));
        f32x16 largest = {0};
        for (int i = 0; i < BLOCK; i += 16) {
            f32x16 value = FN(load)(numbers, FLOAT32, i);
            largest = FN(larger)(largest, FN(larger)(value, -value));
        }
        float most = 0;
        for (int i = 0; i < 16; i++) most = largest[i] > most ? largest[i] : most;
        out->scales[block] = most / 127;
        float factor = most > 0 ? 127 / most : 0;
        const f32x16 round = FN(splat)(12582912.0f);  /* adding 1.5 * 2^23 leaves the nearest whole number in the low bits */
        i32x16 whole[4];
        for (int i = 0; i < 4; i++) whole[i] = (i32x16)(FN(load)(numbers, FLOAT32, 16 * i) * factor + round) - (i32x16)round;
        for (int i = 0; i < 4; i++)
            *(i8x16_unaligned *)(out->numbers + block * BLOCK + 16 * i) = __builtin_convertvector(whole[i], i8x16_unaligned);
#if VNNI
        /* Weights get 128 added where they are multiplied: this takes 128 times the inputs off. */
        __m512i inputs = _mm512_loadu_si512(out->numbers + block * BLOCK);
        __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)128), inputs);
        _mm512_storeu_si512(out->offsets + block * BLOCK / 4, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
#endif
    }
}

/* One row of float32 or bfloat16 weights times B inputs. */
INLINE void FN(row_float)(int kind, int B, const void *weight, int64_t K, const float *const *inputs, float *out) {
    f32x16 sum[TILE_INPUTS][UNROLL];
#pragma GCC unroll 4
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int u = 0; u < UNROLL; u++) sum[b][u] = FN(splat)(0);
    int64_t k = 0;
    for (; k + 16 * UNROLL <= K; k += 16 * UNROLL)
#pragma GCC unroll 4
        for (int u = 0; u < UNROLL; u++) {
            f32x16 w = FN(load)(weight, kind, k + 16 * u);
            fetch(weight, (k + 16 * u) * (kind == BFLOAT16 ? 2 : 4));
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) sum[b][u] += w * FN(load)(inputs[b], FLOAT32, k + 16 * u);
        }
    for (; k + 16 <= K; k += 16) {
        f32x16 w = FN(load)(weight, kind, k);
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) sum[b][0] += w * FN(load)(inputs[b], FLOAT32, k);
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
        float rest = 0;
        for (int64_t i = k; i < K; i++) rest += read(weight, kind, i) * inputs[b][i];
#pragma GCC unroll 4
        for (int u = 1; u < UNROLL; u++) sum[b][0] += sum[b][u];
        out[b] = FN(sum)(sum[b][0]) + rest;
    }
}

#if VNNI

/* One block of int8 weights times an input's, added to a sum. The instruction wants one factor without a sign: `w` has 128 added. */
INLINE __m512 FN(block_int8)(__m512i w, const Quantised *input, int64_t k, __m512 sum) {
    __m512i offset = _mm512_loadu_si512(input->offsets + k / 4);
    __m512i dot = _mm512_dpbusd_epi32(offset, w, _mm512_loadu_si512(input->numbers + k));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(input->scales[k / BLOCK]), sum);
}

/* One row of int8 weights times B quantised inputs. */
INLINE void FN(row_int8)(int B, const int8_t *weight, int64_t K, const Quantised *inputs, float *out) {
    __m512 sum[TILE_INPUTS][UNROLL];
    const __m512i flip = _mm512_set1_epi8((char)128);
#pragma GCC unroll 4
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int u = 0; u < UNROLL; u++) sum[b][u] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + BLOCK * UNROLL <= K; k += BLOCK * UNROLL)
#pragma GCC unroll 4
        for (int u = 0; u < UNROLL; u++) {
            __m512i w = _mm512_xor_si512(_mm512_loadu_si512(weight + k + BLOCK * u), flip);
            fetch(weight, k + BLOCK * u);
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) sum[b][u] = FN(block_int8)(w, &inputs[b], k + BLOCK * u, sum[b][u]);
        }
    for (; k < K; k += BLOCK) {
        __mmask64 there = K - k < BLOCK ? ((__mmask64)1 << (K - k)) - 1 : ~(__mmask64)0;
        __m512i w = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, weight + k), flip);
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) sum[b][0] = FN(block_int8)(w, &inputs[b], k, sum[b][0]);
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
#pragma GCC unroll 4
        for (int u = 1; u < UNROLL; u++) sum[b][0] = _mm512_add_ps(sum[b][0], sum[b][u]);
        out[b] = FN(sum)((f32x16)sum[b][0]);
    }
}

#else

INLINE void FN(row_int8)(int B, const int8_t *weight, int64_t K, const Quantised *inputs, float *out) {
    for (int b = 0; b < B; b++) {
        float sum = 0;
        for (int64_t k = 0; k < K; k += BLOCK) {
            const int8_t *w = weight + k, *x = inputs[b].numbers + k;
            int32_t dot = 0;
            fetch(w, 0);
            if (K - k >= BLOCK)
                for (int i = 0; i < BLOCK; i++) dot += w[i] * x[i];
            else
                for (int i = 0; i < K - k; i++) dot += w[i] * x[i];
            sum += dot * inputs[b].scales[k / BLOCK];
        }
        out[b] = sum;
    }
}

#endif

/* Write, or add, one output of the inputs `first` to `first + B`. */
INLINE void FN(row_out)(int kind, int B, const Matrix *matrix, int64_t row, const Inputs *inputs, int64_t first, const Outputs *out) {
    int64_t K = matrix->columns;
    float y[TILE_INPUTS];
    if (kind == INT8) {
        FN(row_int8)(B, (const int8_t *)matrix->weight + row * K, K, inputs->quantised + first, y);
    } else {
        const float *x[TILE_INPUTS];
        for (int b = 0; b < B; b++) x[b] = inputs->numbers + (first + b) * K;
        FN(row_float)(kind, B, (const char *)matrix->weight + row * K * (kind == BFLOAT16 ? 2 : 4), K, x, y);
    }
    for (int b = 0; b < B; b++) {
        float value = kind == INT8 ? y[b] * matrix->scales[row] : y[b];
        if (matrix->bias) value += read(matrix->bias, matrix->bias_kind, row);
        float *place = out->numbers + (first + b) * out->stride + row;
        *place = out->add ? *place + value : value;
    }
}

INLINE void FN(linear_of)(int kind, const Matrix *matrix, int64_t from, int64_t to, const Inputs *inputs, const Outputs *out) {
    for (int64_t row = from; row < to; row++) {
        int64_t b = 0;
        for (; b + TILE_INPUTS <= inputs->count; b += TILE_INPUTS) FN(row_out)(kind, TILE_INPUTS, matrix, row, inputs, b, out);
        for (; b < inputs->count; b++) FN(row_out)(kind, 1, matrix, row, inputs, b, out);
    }
}

/* The outputs `from` to `to` of a matrix, for every input. */
TARGET static void FN(linear)(const Matrix *matrix, int64_t from, int64_t to, const Inputs *inputs, const Outputs *out) {
    if (matrix->kind == INT8)
        FN(linear_of)(INT8, matrix, from, to, inputs, out);
    else if (matrix->kind == BFLOAT16)
        FN(linear_of)(BFLOAT16, matrix, from, to, inputs, out);
    else
        FN(linear_of)(FLOAT32, matrix, from, to, inputs, out);
}

static const Kernels FN(kernels) = {FN(normalise), FN(activate), FN(attend), FN(quantise), FN(linear)};

#undef INLINE
#undef FN
#undef TARGET
#undef TILE_INPUTS
#undef UNROLL
#undef VNNI
