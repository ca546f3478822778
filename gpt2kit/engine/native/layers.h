/* Layer norm, activation functions and attention. Part of kernels.h. */

/* --- layer norm ------------------------------------------------------------------------------- */

/* Normalize one vector: out = (x - mean) / sqrt(variance + epsilon) * weight + bias. x and out are
 * (C,) float32; weight and bias are (C,) of the given dtype. */
TARGET static void FN(layer_norm)(
    const float *x, const Norm *norm, int dtype, float epsilon, int64_t C, float *out
) {
    const void *weight = norm->weight, *bias = norm->bias;
    f32x16 sum = {0};
    int64_t i;
    float mean = 0, variance = 0;
    for (i = 0; i + 16 <= C; i += 16) sum += FN(load)(x, FLOAT32, i);
    for (; i < C; i++) mean += x[i];
    mean = (mean + FN(sum)(sum)) / C;
    sum = FN(splat)(0);
    for (i = 0; i + 16 <= C; i += 16) {
        f32x16 deviation = FN(load)(x, FLOAT32, i) - mean;
        sum += deviation * deviation;
    }
    for (; i < C; i++) variance += (x[i] - mean) * (x[i] - mean);
    float factor = 1 / sqrtf((variance + FN(sum)(sum)) / C + epsilon);
    for (i = 0; i + 16 <= C; i += 16) {
        f32x16 y = (FN(load)(x, FLOAT32, i) - mean) * factor * FN(load)(weight, dtype, i);
        FN(store)(out + i, bias ? y + FN(load)(bias, dtype, i) : y);
    }
    for (; i < C; i++) {
        float y = (x[i] - mean) * factor * read(weight, dtype, i);
        out[i] = bias ? y + read(bias, dtype, i) : y;
    }
}

/* --- activation functions --------------------------------------------------------------------- */

INLINE f32x16 FN(activation_of)(f32x16 x, int activation) {
    switch (activation) {
        case GELU_NEW: /* x (1 + tanh u) / 2 is x * sigmoid(2u) */
            return x / (1.0f + FN(exp)(x * (x * x * 0.044715f + 1.0f) * -1.59576912f));
        case QUICK_GELU: return x / (1.0f + FN(exp)(x * -1.702f));
        case SILU: return x / (1.0f + FN(exp)(-x));
        case TANH: return 1.0f - 2.0f / (1.0f + FN(exp)(x * 2.0f));
        default: return FN(max)(x, FN(splat)(0)); /* RELU */
    }
}

/* Apply the activation function to n numbers, in place. */
TARGET static void FN(activate)(float *x, int64_t n, int activation) {
    if (activation == GELU) {
        for (int64_t i = 0; i < n; i++) x[i] *= 0.5f * (1 + erff(x[i] * 0.70710678f));
        return;
    }
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        FN(store)(x + i, FN(activation_of)(FN(load)(x, FLOAT32, i), activation));
    if (i < n) {
        float rest[16] = {0};
        memcpy(rest, x + i, (n - i) * sizeof(float));
        FN(store)(rest, FN(activation_of)(FN(load)(rest, FLOAT32, 0), activation));
        memcpy(x + i, rest, (n - i) * sizeof(float));
    }
}

/* --- attention -------------------------------------------------------------------------------- */

/* Replace S scores by e^(score - largest), and return the sum of these. `scores` has room for
 * sixteen more. */
INLINE float FN(softmax)(float *scores, int64_t S) {
    for (int64_t j = S; j % 16; j++) scores[j] = -INFINITY;
    f32x16 lanes = FN(splat)(-INFINITY), sum = {0};
    for (int64_t j = 0; j < S; j += 16) lanes = FN(max)(FN(load)(scores, FLOAT32, j), lanes);
    float max = FN(max_of)(lanes);
    for (int64_t j = 0; j < S; j += 16) {
        f32x16 score = FN(load)(scores, FLOAT32, j);
        f32x16 weight = FN(exp)(score - max);
        FN(store)(scores + j, weight);
        sum += weight;
    }
    return FN(sum)(sum);
}

/* Return the dot products of a query (D,) with R keys, from index `at` of `keys` on. R is 1 or 4; a
 * key's product is the same for both. */
INLINE f32x4 FN(dot_keys)(
    int dtype, int R, const float *q, const void *keys, int64_t at, int64_t D
) {
    f32x16 sum[4] = {{0}};
    int64_t vectors_end = D - D % 16;
    prefetch_cached(keys, dtype, at, R * D);
    for (int64_t d = 0; d < vectors_end; d += 16)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            sum[r] += FN(load)(q, FLOAT32, d) * FN(load)(keys, dtype, at + r * D + d);
    f32x4 scores = FN(sum4)(sum);
    for (int r = 0; r < R; r++)
        for (int64_t d = vectors_end; d < D; d++)
            scores[r] += q[d] * read(keys, dtype, at + r * D + d);
    return scores;
}

/* Average S values (S, D) with weights that add up to `total`: `vectors` times sixteen columns,
 * from column d on. Even and odd positions are added up apart. */
INLINE void FN(weigh_values)(
    int dtype, int vectors, const float *weights, const void *values, int64_t S, int64_t D,
    int64_t d, float total, float *out
) {
    f32x16 y[4][2] = {{{0}}};
    int64_t j = 0;
    for (; j + 2 <= S; j += 2) {
        int64_t even = j * D + d, odd = (j + 1) * D + d;
        prefetch_cached(values, dtype, even, 16 * vectors);
        prefetch_cached(values, dtype, odd, 16 * vectors);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) {
            y[i][0] += weights[j] * FN(load)(values, dtype, even + 16 * i);
            y[i][1] += weights[j + 1] * FN(load)(values, dtype, odd + 16 * i);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++) {
        if (j < S) y[i][0] += weights[j] * FN(load)(values, dtype, j * D + d + 16 * i);
        FN(store)(out + d + 16 * i, (y[i][0] + y[i][1]) / total);
    }
}

INLINE void FN(attention_of)(
    int dtype, const float *q, const void *keys, const void *values, int64_t S, int64_t D,
    float scale, float *scores, float *out
) {
    int64_t j = 0, d = 0;
    for (; j + 4 <= S; j += 4)
        *(f32x4_unaligned *)(scores + j) = FN(dot_keys)(dtype, 4, q, keys, j * D, D) * scale;
    for (; j < S; j++) scores[j] = FN(dot_keys)(dtype, 1, q, keys, j * D, D)[0] * scale;
    float total = FN(softmax)(scores, S);
    for (; d + 64 <= D; d += 64) FN(weigh_values)(dtype, 4, scores, values, S, D, d, total, out);
    for (; d + 16 <= D; d += 16) FN(weigh_values)(dtype, 1, scores, values, S, D, d, total, out);
    for (; d < D; d++) {
        float y = 0;
        for (j = 0; j < S; j++) y += scores[j] * read(values, dtype, j * D + d);
        out[d] = y / total;
    }
}

/* Attention of one token in one head: out = softmax(q @ keys.T * scale) @ values. q and out are
 * (D,) float32, keys and values (S, D) of the cache's dtype; `scores` has room for S + 16. */
TARGET static void FN(attention)(
    int dtype, const float *q, const void *keys, const void *values, int64_t S, int64_t D,
    float scale, float *scores, float *out
) {
    if (dtype == BFLOAT16)
        FN(attention_of)(BFLOAT16, q, keys, values, S, D, scale, scores, out);
    else
        FN(attention_of)(FLOAT32, q, keys, values, S, D, scale, scores, out);
}
