/* Which rows of the head can have the largest products, found on a sketch of it; included by kernels.h for each instruction set.
 *
 * A sketch keeps every row in eight bits, and the norm of what that leaves out. The product of a row with x then lies within
 *
 *     |w x - w' x'|  <=  |w - w'| |x| + |w'| |x - x'|          (w', x': as rounded)
 *
 * of the product of the rounded ones, so that a row whose upper bound is below k lower bounds is not among the k largest. A few numbers
 * of x are far larger than the others, in trained models; by their norms alone, such vectors would be in doubt most. No number of w is
 * rounded by more than half of the row's scale, so that those few add |x| scale / 2 each, and only the others count with their norm.
 */

/* Up to sixteen of the numbers, 0 in place of the others. */
INLINE f32x16 FN(load_some)(const void *numbers, int kind, int64_t at, int64_t count) {
    if (count >= 16) return FN(load)(numbers, kind, at);
    float some[16] = {0};
    for (int64_t i = 0; i < count; i++) some[i] = read(numbers, kind, at + i);
    return FN(load)(some, FLOAT32, 0);
}

/* Sketch the rows `from` to `to`. A row that is tiny, or not finite, gets a norm that is not finite, and is never ruled out. */
TARGET static void FN(sketch)(const Matrix *head, int64_t from, int64_t to, const Sketch *sketch) {
    int64_t K = head->columns;
    for (int64_t row = from; row < to; row++) {
        f32x16 largest = {0}, norm = {0}, error = {0};
        for (int64_t k = 0; k < K; k += 16) {
            f32x16 w = FN(load_some)(head->weight, head->kind, row * K + k, K - k);
            largest = FN(larger)(largest, FN(larger)(w, -w));
            norm += w * w;
        }
        float most = FN(largest_of)(largest), scale = most / 127, factor = most > 0 ? 127 / most : 0;
        for (int64_t k = 0; k < K; k += 16) {
            f32x16 w = FN(load_some)(head->weight, head->kind, row * K + k, K - k);
            i32x16 whole = FN(nearest)(w * factor);
            f32x16 difference = w - __builtin_convertvector(whole, f32x16) * scale;
            error += difference * difference;
            i8x16_unaligned narrow = __builtin_convertvector(whole, i8x16_unaligned);
            memcpy(sketch->weight + row * K + k, &narrow, K - k < 16 ? K - k : 16);
        }
        sketch->scales[row] = scale;
        sketch->errors[row] = sqrtf(FN(sum)(error)) * ABOVE;
        sketch->norms[row] = most > 0 && most < TINY ? INFINITY : sqrtf(FN(sum)(norm)) * ABOVE + sketch->errors[row];
    }
}

/* The numbers that a matrix of this kind meets when `arrange` is given these. */
INLINE f32x16 FN(arranged)(int kind, f32x16 x) {
#if BF16
    if (kind == BFLOAT16) return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)), 16);
#endif
    (void)kind;
    return x;
}

/* Find from which size on numbers should count as large, most / 2^i, to leave the least doubt about a usual row. */
TARGET static void FN(part)(const float *x, int64_t K, float most, Rounded *out) {
    float least = INFINITY, usual = sqrtf(K / 12.0f);  /* the norm of what rounding leaves of K numbers, in units of the scale */
    for (int i = 0; i < 8; i++) {
        f32x16 large = {0}, squares = {0};
        for (int64_t k = 0; k < K; k += 16) {
            f32x16 size = FN(load)(x, FLOAT32, k);
            size = FN(larger)(size, -size);
            i32x16 is_large = FN(less)(FN(splat)(most / (1 << i)), size);
            large += (f32x16)(is_large & (i32x16)size);
            squares += (f32x16)(~is_large & (i32x16)(size * size));
        }
        float sum = FN(sum)(large) * ABOVE, norm = sqrtf(FN(sum)(squares)) * ABOVE;
        if (0.5f * sum + usual * norm < least) {
            least = 0.5f * sum + usual * norm;
            out->large = sum;
            out->norm = norm;
        }
    }
}

/* Round K numbers, with room for whole vectors, to whole ones: as fine as it can be while no row's sum of products reaches 2^31. */
TARGET static void FN(round_input)(int kind, float *numbers, int64_t K, Rounded *out) {
    f32x16 largest = {0}, norm = {0}, error = {0};
    for (int64_t k = 0; k < K; k += 16) {
        f32x16 x = FN(arranged)(kind, FN(load_some)(numbers, FLOAT32, k, K - k));
        FN(store)(numbers + k, x);
        largest = FN(larger)(largest, FN(larger)(x, -x));
        norm += x * x;
    }
    int64_t finest = INT32_MAX / (128 * K);
    float most = FN(largest_of)(largest), range = finest < INT16_MAX ? finest : INT16_MAX, factor = most > 0 ? range / most : 0;
    out->scale = most / range;
    for (int64_t k = 0; k < K; k += 16) {
        f32x16 x = FN(load)(numbers, FLOAT32, k);
        i32x16 whole = FN(nearest)(x * factor);
        f32x16 difference = x - __builtin_convertvector(whole, f32x16) * out->scale;
        error += difference * difference;
        for (int i = 0; i < 16; i++) out->whole[k + i] = whole[i];
    }
    /* Both the real product and this one are sums of rounded numbers: each number adds at most its rounding to the doubt. */
    float rounding = (K / 16 + 32) * 2 * FLT_EPSILON;
    out->error = (sqrtf(FN(sum)(error)) + sqrtf(FN(sum)(norm)) * rounding) * ABOVE;
    out->large = out->norm = NAN;  /* should x be tiny, or not finite: then nothing is ruled out */
    if (!(most > 0 && most < TINY)) FN(part)(numbers, K, most, out);
}

/* The upper bounds of the products of R rows, R = 1 or 4, that are `apart`. */
INLINE void FN(bound)(int R, const Sketch *sketch, int64_t row, int64_t apart, int64_t K, const Rounded *x, float *upper) {
    const int8_t *weight = sketch->weight + row * K;
    int32_t products[TILE_ROWS] = {0};
#if VNNI
    __m512i sum[TILE_ROWS];
    for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_si512();
    for (int64_t k = 0; k < K; k += 32) {
        __mmask32 there = K - k < 32 ? ((__mmask32)1 << (K - k)) - 1 : ~(__mmask32)0;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const int8_t *place = weight + r * apart * K + k;
            if (k % 64 == 0) fetch((const char *)place);
            sum[r] = _mm512_dpwssd_epi32(sum[r], _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, place)), _mm512_loadu_si512(x->whole + k));
        }
    }
    for (int r = 0; r < R; r++) products[r] = _mm512_reduce_add_epi32(sum[r]);
#else
    for (int r = 0; r < R; r++) {
        const int8_t *place = weight + r * apart * K;
        fetch((const char *)place);
        for (int64_t k = 0; k < K; k++) products[r] += place[k] * x->whole[k];
    }
#endif
    for (int r = 0; r < R; r++) {
        int64_t at = row + r * apart;
        upper[at] = products[r] * (sketch->scales[at] * x->scale) + doubt(sketch, at, x);
    }
}

TARGET static void FN(bounds)(const Sketch *sketch, int64_t from, int64_t to, int64_t K, const Rounded *x, float *upper) {
    int64_t apart = (to - from) / TILE_ROWS;  /* four long streams, as in linear_of */
    for (int64_t row = from; row < from + apart; row++) FN(bound)(TILE_ROWS, sketch, row, apart, K, x, upper);
    for (int64_t row = from + apart * TILE_ROWS; row < to; row++) FN(bound)(1, sketch, row, 0, K, x, upper);
}
