/* Bounds of all logits, from a sketch of the head. Part of kernels.h.
 *
 * A sketch keeps every row of the head in eight bits, and the norm of what that took away. With w'
 * and x' for the rounded row and input, the exact product w x differs from w' x' by at most
 *
 *     |w x - w' x'|  <=  |w - w'| |x| + |w'| |x - x'|
 *
 * A row whose upper bound lies below k lower bounds is not among the k largest, and need not be
 * computed. In trained models a few elements of x are far larger than the others, and make this
 * bound loose. So they are treated apart: rounding moves no element of w by more than half the
 * row's scale, so that each large element of x adds |x| scale / 2, and only the others count with
 * their norm. */

#define SLACK 1.0001f /* makes a norm that was computed with rounding an upper bound */
#define TINY 1e-12f   /* squares of smaller numbers could vanish, and bounds with them */

/* --- the sketch ------------------------------------------------------------------------------- */

/* Sketch rows `from` to `to` of the head (V, K). A row that is tiny or not finite gets a norm that
 * is not finite, so that it is always computed. */
TARGET static void FN(sketch_rows)(
    const Matrix *head, int64_t from, int64_t to, const Sketch *sketch
) {
    int64_t K = head->columns;
    for (int64_t row = from; row < to; row++) {
        f32x16 lanes = {0}, norm = {0}, error = {0};
        for (int64_t k = 0; k < K; k += 16) {
            f32x16 w = FN(load_some)(head->weight, head->dtype, row * K + k, K - k);
            lanes = FN(max)(lanes, FN(max)(w, -w));
            norm += w * w;
        }
        float max = FN(max_of)(lanes), scale = max / 127, factor = max > 0 ? 127 / max : 0;
        for (int64_t k = 0; k < K; k += 16) {
            f32x16 w = FN(load_some)(head->weight, head->dtype, row * K + k, K - k);
            i32x16 rounded = FN(nearest)(w * factor);
            f32x16 difference = w - __builtin_convertvector(rounded, f32x16) * scale;
            error += difference * difference;
            i8x16_unaligned narrow = __builtin_convertvector(rounded, i8x16_unaligned);
            memcpy(sketch->weight + row * K + k, &narrow, K - k < 16 ? K - k : 16);
        }
        sketch->scales[row] = scale;
        sketch->errors[row] = sqrtf(FN(sum)(error)) * SLACK;
        sketch->norms[row] = max > 0 && max < TINY
                                 ? INFINITY
                                 : sqrtf(FN(sum)(norm)) * SLACK + sketch->errors[row];
    }
}

/* Add up words `from` to `to`, each times an odd number that depends on its index: a checksum of
 * the head, which tells whether a sketch is still right. */
TARGET static uint64_t FN(sum_words)(const uint32_t *words, int64_t from, int64_t to) {
    uint64_t sum = 0;
    for (int64_t i = from; i < to; i++) sum += (uint64_t)words[i] * (uint32_t)(2 * i + 1);
    return sum;
}

/* --- the input -------------------------------------------------------------------------------- */

#if BF16

/* Return the numbers that weights of this dtype are multiplied with when they get x as input. */
INLINE f32x16 FN(as_multiplied)(int dtype, f32x16 x) {
    if (dtype != BFLOAT16) return x;
    __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)x);
    return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}

#else

INLINE f32x16 FN(as_multiplied)(int dtype, f32x16 x) {
    (void)dtype;
    return x;
}

#endif

/* Choose which elements of x count as large, those above max / 2^i, so that the error bound of a
 * usual row is smallest, and store their sum and the norm of the others. */
TARGET static void FN(split_large)(const float *x, int64_t K, float max, RoundedInput *out) {
    /* Rounding K numbers takes away about this norm, in units of their scale. */
    float usual = sqrtf(K / 12.0f), least = INFINITY;
    for (int i = 0; i < 8; i++) {
        f32x16 large = {0}, squares = {0};
        for (int64_t k = 0; k < K; k += 16) {
            f32x16 size = FN(load)(x, FLOAT32, k);
            size = FN(max)(size, -size);
            i32x16 is_large = FN(less)(FN(splat)(max / (1 << i)), size);
            large += (f32x16)(is_large & (i32x16)size);
            squares += (f32x16)(~is_large & (i32x16)(size * size));
        }
        float sum = FN(sum)(large) * SLACK, norm = sqrtf(FN(sum)(squares)) * SLACK;
        if (0.5f * sum + usual * norm < least) {
            least = 0.5f * sum + usual * norm;
            out->large_sum = sum;
            out->small_norm = norm;
        }
    }
}

/* Round an input (K,) to integers, as finely as possible while a row's sum of products stays below
 * 2^31. x has room for whole vectors, and gets the values that the weights are multiplied with. */
TARGET static void FN(round_input)(int dtype, float *x, int64_t K, RoundedInput *out) {
    f32x16 lanes = {0}, norm = {0}, error = {0};
    for (int64_t k = 0; k < K; k += 16) {
        f32x16 value = FN(as_multiplied)(dtype, FN(load_some)(x, FLOAT32, k, K - k));
        FN(store)(x + k, value);
        lanes = FN(max)(lanes, FN(max)(value, -value));
        norm += value * value;
    }
    int64_t finest = INT32_MAX / (128 * K);
    float max = FN(max_of)(lanes), range = finest < INT16_MAX ? finest : INT16_MAX;
    float factor = max > 0 ? range / max : 0;
    out->scale = max / range;
    for (int64_t k = 0; k < K; k += 16) {
        f32x16 value = FN(load)(x, FLOAT32, k);
        i32x16 rounded = FN(nearest)(value * factor);
        f32x16 difference = value - __builtin_convertvector(rounded, f32x16) * out->scale;
        error += difference * difference;
        for (int i = 0; i < 16; i++) out->int16[k + i] = rounded[i];
    }
    /* The exact product and this one are both sums with rounding: each term adds its own. */
    float rounding = (K / 16 + 32) * 2 * FLT_EPSILON;
    out->error = (sqrtf(FN(sum)(error)) + sqrtf(FN(sum)(norm)) * rounding) * SLACK;
    out->large_sum = out->small_norm = NAN; /* if x is tiny: then every row is computed */
    if (!(max > 0 && max < TINY)) FN(split_large)(x, K, max, out);
}

/* --- the bounds ------------------------------------------------------------------------------- */

#if VNNI

/* Multiply R sketched rows, which are row_bytes apart, with a rounded input of K numbers. */
INLINE void FN(dot_sketch)(
    int R, const int8_t *weight, int64_t row_bytes, int64_t K, const int16_t *x, int32_t *products
) {
    __m512i sum[TILE_ROWS];
    for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_si512();
    for (int64_t k = 0; k < K; k += 32) {
        __mmask32 there = K - k < 32 ? ((__mmask32)1 << (K - k)) - 1 : ~(__mmask32)0;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const int8_t *bytes = weight + r * row_bytes + k;
            if (k % 64 == 0) prefetch((const char *)bytes);
            __m512i w = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, bytes));
            sum[r] = _mm512_dpwssd_epi32(sum[r], w, _mm512_loadu_si512(x + k));
        }
    }
    for (int r = 0; r < R; r++) products[r] = _mm512_reduce_add_epi32(sum[r]);
}

#else

INLINE void FN(dot_sketch)(
    int R, const int8_t *weight, int64_t row_bytes, int64_t K, const int16_t *x, int32_t *products
) {
    for (int r = 0; r < R; r++) {
        const int8_t *bytes = weight + r * row_bytes;
        prefetch((const char *)bytes);
        products[r] = 0;
        for (int64_t k = 0; k < K; k++) products[r] += bytes[k] * x[k];
    }
}

#endif

/* Compute the bounds of R rows, `row` and those `apart` from it; R is 1 or 4. */
INLINE void FN(bounds_of)(
    int R, const Sketch *sketch, int64_t row, int64_t apart, int64_t K, const RoundedInput *x,
    float *bounds
) {
    int32_t products[TILE_ROWS];
    FN(dot_sketch)(R, sketch->weight + row * K, apart * K, K, x->int16, products);
    for (int r = 0; r < R; r++) {
        int64_t at = row + r * apart;
        bounds[at] = products[r] * (sketch->scales[at] * x->scale) + error_bound(sketch, at, x);
    }
}

/* Compute upper bounds of the logits of rows `from` to `to`; a lower bound is one less two error
 * bounds. */
TARGET static void FN(upper_bounds)(
    const Sketch *sketch, int64_t from, int64_t to, int64_t K, const RoundedInput *x, float *bounds
) {
    int64_t apart = (to - from) / TILE_ROWS; /* four long streams, as in matmul_of */
    for (int64_t row = from; row < from + apart; row++)
        FN(bounds_of)(TILE_ROWS, sketch, row, apart, K, x, bounds);
    for (int64_t row = from + apart * TILE_ROWS; row < to; row++)
        FN(bounds_of)(1, sketch, row, 0, K, x, bounds);
}

#undef SLACK
#undef TINY
