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
TARGET static __attribute__((noinline)) float FN(softmax)(float *scores, int64_t S) {
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

/* Add to part p of the sums the products of `count` numbers, from number `from` on, of B queries
 * with four keys, of which `last` is the last one that is read. */
INLINE void FN(add_scores)(
    int dtype, int B, const Queries *queries, int64_t i, const void *keys, int64_t j, int64_t last,
    int64_t D, int64_t from, int64_t count, int p, FLOATS (*sums)[4][PARTS]
) {
    FLOATS key[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        int64_t at = j + r < last ? j + r : last;
        key[r] = FN(load_some_floats)(keys, dtype, at * D + from, count);
    }
#pragma GCC unroll 6
    for (int b = 0; b < B; b++) {
        const float *q = queries->q + (i + b) * queries->stride;
        FLOATS x = FN(load_some_floats)(q, FLOAT32, from, count);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) sums[b][r][p] = FN(multiply_add)(x, key[r], sums[b][r][p]);
    }
}

/* Compute the scores of B queries for the first `seen` keys. After them, up to three scores without
 * a meaning are written. A score is the same for any B. */
INLINE void FN(score_keys)(
    int dtype, int B, const Queries *queries, int64_t i, const void *keys, int64_t seen, int64_t D,
    float scale, float *scores, int64_t room
) {
    for (int64_t j = 0; j < seen; j += 4) {
        FLOATS sums[TILE_QUERIES][4][PARTS] = {{{{0}}}};
        int64_t d = 0, last = seen - 1;
        prefetch_cached(keys, dtype, j * D, 4 * D);
        for (; d + 16 <= D; d += 16)
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++)
                FN(add_scores)(
                    dtype, B, queries, i, keys, j, last, D, d + LANES * p, LANES, p, sums
                );
        if (d < D)
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) {
                int64_t from = d + LANES * p;
                FN(add_scores)(dtype, B, queries, i, keys, j, last, D, from, D - from, p, sums);
            }
#pragma GCC unroll 6
        for (int b = 0; b < B; b++)
            *(f32x4_unaligned *)(scores + b * room + j) =
                FN(sum4)((const FLOATS(*)[PARTS])sums[b]) * scale;
    }
}

/* Average the values (S, D) with the weights of B queries that add up to `totals`: W vectors of
 * columns from column d on, or what is left of one. Even and odd positions are added up apart. B is
 * up to TILE_VALUES. */
INLINE void FN(weigh_values)(
    int dtype, int B, int W, const Queries *queries, int64_t i, const float *weights, int64_t room,
    const void *values, int64_t D, int64_t d, const float *totals
) {
    FLOATS y[TILE_VALUES][4][2] = {{{{0}}}};
    int64_t S = queries->S + i, pairs_end = S - S % 2, columns = W * LANES;
    if (W == 1 && D - d < columns) columns = D - d;
    for (int64_t j = 0; j < pairs_end; j += 2) {
        prefetch_cached(values, dtype, j * D + d, LANES * W);
        prefetch_cached(values, dtype, (j + 1) * D + d, LANES * W);
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            FLOATS value[4];
#pragma GCC unroll 4
            for (int w = 0; w < W; w++)
                value[w] = FN(load_some_floats)(
                    values, dtype, (j + odd) * D + d + LANES * w, columns - LANES * w
                );
#pragma GCC unroll 3
            for (int b = 0; b < B; b++)
#pragma GCC unroll 4
                for (int w = 0; w < W; w++) {
                    FLOATS weight = FN(splat_floats)(weights[b * room + j + odd]);
                    y[b][w][odd] = FN(multiply_add)(weight, value[w], y[b][w][odd]);
                }
        }
    }
#pragma GCC unroll 3
    for (int b = 0; b < B; b++) {
        for (int64_t pair = pairs_end; pair < S + b; pair += 2)
#pragma GCC unroll 2
            for (int odd = 0; odd < 2; odd++) {
                int64_t j = pair + odd;
                if (j == S + b) break;
#pragma GCC unroll 4
                for (int w = 0; w < W; w++) {
                    FLOATS weight = FN(splat_floats)(weights[b * room + j]);
                    FLOATS value = FN(load_some_floats)(
                        values, dtype, j * D + d + LANES * w, columns - LANES * w
                    );
                    y[b][w][odd] = FN(multiply_add)(weight, value, y[b][w][odd]);
                }
            }
        float *out = queries->out + (i + b) * queries->out_stride + d;
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) {
            FLOATS average = (y[b][w][0] + y[b][w][1]) / totals[b];
            memcpy(out + LANES * w, &average, W == 1 ? columns * sizeof(float) : sizeof average);
        }
    }
}

/* As weigh_values, for all columns. */
INLINE void FN(weigh_columns)(
    int dtype, int B, const Queries *queries, int64_t i, const float *weights, int64_t room,
    const void *values, int64_t D, const float *totals
) {
    int64_t d = 0;
    for (; d + 4 * LANES <= D; d += 4 * LANES)
        FN(weigh_values)(dtype, B, 4, queries, i, weights, room, values, D, d, totals);
    for (; d < D; d += LANES)
        for (int b = 0; b < B; b++)
            FN(weigh_values)(
                dtype, 1, 1, queries, i + b, weights + b * room, room, values, D, d, totals + b
            );
}

/* Attention in one head, with as many queries at once as meet keys in registers. All of these get
 * scores for the keys that the last one sees, and each uses those that it sees itself. */
INLINE void FN(attention_of)(
    int dtype, const Queries *queries, const void *keys, const void *values, int64_t D, float scale,
    float *scores, int64_t room
) {
    int64_t B;
    for (int64_t i = 0; i < queries->count; i += B) {
        int64_t S = queries->S + i, b = 0, left = queries->count - i;
        float totals[TILE_QUERIES];
        B = left >= TILE_QUERIES ? TILE_QUERIES : left >= TILE_VALUES ? TILE_VALUES : 1;
        if (B == 1)
            FN(score_keys)(dtype, 1, queries, i, keys, S, D, scale, scores, room);
#if TILE_QUERIES > 1
        else if (B == TILE_QUERIES)
            FN(score_keys)(
                dtype, TILE_QUERIES, queries, i, keys, S + B - 1, D, scale, scores, room
            );
        else
            FN(score_keys)(
                dtype, TILE_VALUES, queries, i, keys, S + B - 1, D, scale, scores, room
            );
#endif
        for (int64_t each = 0; each < B; each++)
            totals[each] = FN(softmax)(scores + each * room, S + each);
#if TILE_VALUES > 1
        for (; b + TILE_VALUES <= B; b += TILE_VALUES)
            FN(weigh_columns)(
                dtype, TILE_VALUES, queries, i + b, scores + b * room, room, values, D, totals + b
            );
#endif
        for (; b < B; b++)
            FN(weigh_columns)(
                dtype, 1, queries, i + b, scores + b * room, room, values, D, totals + b
            );
    }
}

/* Attention in one head: out = softmax(q @ keys.T * scale) @ values. q and out are float32, keys
 * and values (S, D) of the cache's dtype; `scores` is (TILE_QUERIES, room), with room for sixteen
 * more scores than the last query has. */
TARGET static void FN(attention)(
    int dtype, const Queries *queries, const void *keys, const void *values, int64_t D, float scale,
    float *scores, int64_t room
) {
    if (dtype == BFLOAT16)
        FN(attention_of)(BFLOAT16, queries, keys, values, D, scale, scores, room);
    else
        FN(attention_of)(FLOAT32, queries, keys, values, D, scale, scores, room);
}
