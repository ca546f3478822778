/* The arithmetic of one decode step, written once and included once for each instruction set.
 *
 * The includer defines FN(name), the name of a function at this level; TARGET, the attribute that lets the compiler use the
 * level's instructions; and, where the level has more than what stands below: FLOATS and INTEGERS, its widest vectors; TILE_INPUTS,
 * how many inputs (1 or 2) TILE_ROWS rows of weights meet in registers; SUMS, how many sums (1 or 2) each pair of them is taken in;
 * and VNNI, DOTPROD and BF16, whether it has the processor's products of int8 (x86's, ARM's) and of bfloat16 numbers.
 * Vectors are sixteen lanes of GCC's and clang's vector extension, which every processor runs in registers of its own width.
 * A sum is always taken in the same order, so that a result depends on neither the batch it is computed in nor the threads.
 *
 *     C width, K inputs of a matrix, D head size, S keys
 */

#ifndef FLOATS
#define FLOATS f32x4
#define INTEGERS i32x4
#endif
#ifndef TILE_INPUTS
#define TILE_INPUTS 1
#define SUMS 1
#endif
#ifndef VNNI
#define VNNI 0
#endif
#ifndef DOTPROD
#define DOTPROD 0
#endif
#ifndef BF16
#define BF16 0
#endif

#define INLINE TARGET static inline __attribute__((always_inline))

/* --- vectors ------------------------------------------------------------------------------------------------------ */

INLINE f32x16 FN(splat)(float value) { return (f32x16){0} + value; }

INLINE f32x16 FN(load)(const void *numbers, int kind, int64_t at) {
    if (kind == BFLOAT16)  /* the upper half of a float32 */
        return (f32x16)(__builtin_convertvector(*(const u16x16_unaligned *)((const uint16_t *)numbers + at), u32x16) << 16);
    return *(const f32x16_unaligned *)((const float *)numbers + at);
}

INLINE void FN(store)(float *numbers, f32x16 value) { *(f32x16_unaligned *)numbers = value; }

/* Where one is less than the other: all bits set. In the widest vectors of the level: wider ones are compared number by number. */
INLINE i32x16 FN(less)(f32x16 a, f32x16 b) {
    union { f32x16 whole; FLOATS part[64 / sizeof(FLOATS)]; } x = {a}, y = {b};
    union { i32x16 whole; INTEGERS part[64 / sizeof(INTEGERS)]; } result;
    for (size_t i = 0; i < 64 / sizeof(FLOATS); i++) result.part[i] = x.part[i] < y.part[i];
    return result.whole;
}

/* The larger of two; a NaN in the first one stays. */
INLINE f32x16 FN(larger)(f32x16 a, f32x16 b) {
    i32x16 less = FN(less)(a, b);
    return (f32x16)((less & (i32x16)b) | (~less & (i32x16)a));
}

/* The nearest whole numbers, of less than 2^22. */
INLINE i32x16 FN(nearest)(f32x16 value) {
    const f32x16 round = FN(splat)(12582912.0f);  /* adding 1.5 * 2^23 leaves the nearest whole number in the low bits */
    return (i32x16)(value + round) - (i32x16)round;
}

/* The bits of the absolute values. As integers they compare as the numbers do, infinity above them and NaN above infinity. */
INLINE i32x16 FN(abs_bits)(f32x16 value) { return (i32x16)value & 0x7fffffff; }

INLINE i32x16 FN(larger_bits)(i32x16 a, i32x16 b) {
    union { i32x16 whole; INTEGERS part[64 / sizeof(INTEGERS)]; } x = {a}, y = {b}, result;
    for (size_t i = 0; i < 64 / sizeof(INTEGERS); i++) {
        INTEGERS less = x.part[i] < y.part[i];
        result.part[i] = (less & y.part[i]) | (~less & x.part[i]);
    }
    return result.whole;
}

/* The largest absolute value, from abs_bits; NaN if one is NaN, else infinity if one is infinite. */
INLINE float FN(largest_abs)(i32x16 bits) {
    int32_t largest = 0;
    float value;
    for (int i = 0; i < 16; i++) largest = bits[i] > largest ? bits[i] : largest;
    memcpy(&value, &largest, sizeof value);
    return value;
}

INLINE float FN(largest_of)(f32x16 value) {
    float largest = value[0];
    for (int i = 1; i < 16; i++) largest = value[i] > largest ? value[i] : largest;
    return largest;
}

INLINE float FN(sum)(f32x16 value) {
    union { f32x16 whole; f32x8 half[2]; } a = {value};
    union { f32x8 whole; f32x4 half[2]; } b = {a.half[0] + a.half[1]};
    f32x4 c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Four numbers that are `apart`. */
INLINE f32x4 FN(load4)(const void *numbers, int kind, int64_t at, int64_t apart) {
    return (f32x4){read(numbers, kind, at), read(numbers, kind, at + apart), read(numbers, kind, at + 2 * apart), read(numbers, kind, at + 3 * apart)};
}

/* The sums of four vectors, each taken as `sum` takes it. */
INLINE f32x4 FN(sum4)(const f32x16 *values) {
    f32x4 quarter[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        union { f32x16 whole; f32x8 half[2]; } a = {values[i]};
        union { f32x8 whole; f32x4 half[2]; } b = {a.half[0] + a.half[1]};
        quarter[i] = b.half[0] + b.half[1];
    }
    f32x4 low = SHUFFLE(quarter[0], quarter[1], 0, 1, 4, 5) + SHUFFLE(quarter[0], quarter[1], 2, 3, 6, 7);
    f32x4 high = SHUFFLE(quarter[2], quarter[3], 0, 1, 4, 5) + SHUFFLE(quarter[2], quarter[3], 2, 3, 6, 7);
    return SHUFFLE(low, high, 0, 2, 4, 6) + SHUFFLE(low, high, 1, 3, 5, 7);
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
    /* 2^n as a number: added to the bits of p, it could turn a NaN into a number. */
    return p * (f32x16)(((i32x16)shifted << 23) + 0x3f800000);
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
    for (int64_t j = S; j % 16; j++) scores[j] = -INFINITY;
    f32x16 most = FN(splat)(-INFINITY), sum = {0};
    for (int64_t j = 0; j < S; j += 16) most = FN(larger)(FN(load)(scores, FLOAT32, j), most);
    float largest = FN(largest_of)(most);
    for (int64_t j = 0; j < S; j += 16) {
        f32x16 score = FN(load)(scores, FLOAT32, j);
        f32x16 weight = FN(exp)(score - largest);
        FN(store)(scores + j, weight);
        sum += weight;
    }
    return FN(sum)(sum);
}

/* --- attention ------------------------------------------------------------------------------------------------------- */

/* The products of a query with R keys, R = 1 or 4; each is the same for either. */
INLINE f32x4 FN(scores_of)(int kind, int R, const float *q, const void *keys, int64_t at, int64_t D) {
    f32x16 sum[4] = {{0}};
    int64_t whole = D - D % 16;
    fetch_cached(keys, kind, at, R * D);
    for (int64_t d = 0; d < whole; d += 16)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[r] += FN(load)(q, FLOAT32, d) * FN(load)(keys, kind, at + r * D + d);
    f32x4 scores = FN(sum4)(sum);
    for (int r = 0; r < R; r++)
        for (int64_t d = whole; d < D; d++) scores[r] += q[d] * read(keys, kind, at + r * D + d);
    return scores;
}

/* `vectors` times sixteen columns of the values, weighted by the scores and summed, two sums at a time. */
INLINE void FN(weigh)(int kind, int vectors, const float *scores, const void *values, int64_t S, int64_t D, int64_t d, float total, float *out) {
    f32x16 y[4][2] = {{{0}}};
    int64_t j = 0;
    for (; j + 2 <= S; j += 2) {
        fetch_cached(values, kind, j * D + d, 16 * vectors);
        fetch_cached(values, kind, (j + 1) * D + d, 16 * vectors);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) {
            y[i][0] += scores[j] * FN(load)(values, kind, j * D + d + 16 * i);
            y[i][1] += scores[j + 1] * FN(load)(values, kind, (j + 1) * D + d + 16 * i);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++) {
        if (j < S) y[i][0] += scores[j] * FN(load)(values, kind, j * D + d + 16 * i);
        FN(store)(out + d + 16 * i, (y[i][0] + y[i][1]) / total);
    }
}

/* One query of one head over S keys and values, (S, D) each; `scores` is scratch for S + 16 numbers. */
INLINE void FN(attend_to)(
    int kind, const float *q, const void *keys, const void *values, int64_t S, int64_t D, float scale, float *scores, float *out
) {
    int64_t j = 0, d = 0;
    for (; j + 4 <= S; j += 4) *(f32x4_unaligned *)(scores + j) = FN(scores_of)(kind, 4, q, keys, j * D, D) * scale;
    for (; j < S; j++) scores[j] = FN(scores_of)(kind, 1, q, keys, j * D, D)[0] * scale;
    float total = FN(softmax)(scores, S);
    for (; d + 64 <= D; d += 64) FN(weigh)(kind, 4, scores, values, S, D, d, total, out);
    for (; d + 16 <= D; d += 16) FN(weigh)(kind, 1, scores, values, S, D, d, total, out);
    for (; d < D; d++) {
        float y = 0;
        for (j = 0; j < S; j++) y += scores[j] * read(values, kind, j * D + d);
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

/* Round BLOCK numbers to int8 with one scale. A NaN or infinity among them becomes the scale, and so reaches every product. */
INLINE void FN(round_block)(const float *numbers, int8_t *whole, float *scale) {
    i32x16 largest = {0};
    for (int i = 0; i < BLOCK; i += 16) largest = FN(larger_bits)(largest, FN(abs_bits)(FN(load)(numbers, FLOAT32, i)));
    float most = FN(largest_abs)(largest), factor = most > 0 ? 127 / most : 0;
    *scale = most / 127;
    for (int i = 0; i < BLOCK; i += 16)
        *(i8x16_unaligned *)(whole + i) = __builtin_convertvector(FN(nearest)(FN(load)(numbers, FLOAT32, i) * factor), i8x16_unaligned);
}

/* Arrange K numbers for a matrix of this kind. */
TARGET static void FN(arrange)(int kind, const float *x, int64_t K, Input *out) {
    for (int64_t at = 0; at < K; at += BLOCK) {
        float rest[BLOCK] = {0};
        const float *numbers = x + at;
        if (K - at < BLOCK) numbers = memcpy(rest, x + at, (K - at) * sizeof(float));
        if (kind == INT8) {
            FN(round_block)(numbers, out->whole + at, out->scales + at / BLOCK);
#if VNNI
            /* Weights get 128 added where they are multiplied: this takes 128 times the inputs off. */
            __m512i whole = _mm512_loadu_si512(out->whole + at);
            __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)128), whole);
            _mm512_storeu_si512(out->offsets + at / 4, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
#endif
        } else if (kind == BFLOAT16) {
#if BF16
            for (int i = 0; i < BLOCK; i += 16)
                _mm256_storeu_si256((__m256i *)((uint16_t *)out->numbers + at + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(numbers + i)));
#else
            for (int i = 0; i < BLOCK; i++) out->numbers[at + i / PAIRS * PAIRS + i % 2 * (PAIRS / 2) + i % PAIRS / 2] = numbers[i];
#endif
        } else {
            memcpy(out->numbers + at, numbers, BLOCK * sizeof(float));
        }
    }
}

/* Two times sixteen weights, in the order in which inputs are arranged. */
INLINE void FN(load_pairs)(const void *weight, int kind, int64_t at, f32x16 *first, f32x16 *second) {
    if (kind == BFLOAT16) {
        u32x16 pairs = *(const u32x16_unaligned *)((const uint16_t *)weight + at);
        *first = (f32x16)(FIRST_OF_PAIRS(pairs));
        *second = (f32x16)(SECOND_OF_PAIRS(pairs));
    } else {
        *first = FN(load)(weight, FLOAT32, at);
        *second = FN(load)(weight, FLOAT32, at + 16);
    }
}

/* R rows of float32 or bfloat16 weights, so many bytes apart, times B inputs; sums[b][r] are sixteen numbers that add up to the product. */
INLINE void FN(tile_float)(int kind, int R, int B, const char *weight, int64_t row_bytes, int64_t K, const Input *inputs, f32x16 (*sums)[TILE_ROWS]) {
    f32x16 sum[TILE_INPUTS][TILE_ROWS][SUMS];
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int s = 0; s < SUMS; s++) sum[b][r][s] = FN(splat)(0);
    int size = kind == BFLOAT16 ? 2 : 4;
    for (int64_t k = 0; k < K; k += PAIRS)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *place = weight + r * row_bytes + k * size;
            char rest[PAIRS * 4];
            if (K - k < PAIRS) {
                memset(rest, 0, sizeof rest);
                place = memcpy(rest, place, (K - k) * size);
            } else {
                fetch(place);
                if (kind == FLOAT32) fetch(place + 64);
            }
            f32x16 first, second;
            FN(load_pairs)(place, kind, 0, &first, &second);
#pragma GCC unroll 2
            for (int b = 0; b < B; b++) {
                sum[b][r][0] += first * FN(load)(inputs[b].numbers, FLOAT32, k);
                sum[b][r][SUMS - 1] += second * FN(load)(inputs[b].numbers, FLOAT32, k + 16);
            }
        }
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sums[b][r] = SUMS == 2 ? sum[b][r][0] + sum[b][r][1] : sum[b][r][0];
}

#if BF16

/* The same with inputs that were rounded to bfloat16 too; products and sums are float32. */
INLINE void FN(tile_bfloat16)(int R, int B, const char *weight, int64_t row_bytes, int64_t K, const Input *inputs, f32x16 (*sums)[TILE_ROWS]) {
    __m512 sum[TILE_INPUTS][TILE_ROWS];
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[b][r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += PAIRS) {
        __mmask32 there = K - k < PAIRS ? ((__mmask32)1 << (K - k)) - 1 : ~(__mmask32)0;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *place = weight + r * row_bytes + k * 2;
            fetch(place);
            __m512bh w = (__m512bh)_mm512_maskz_loadu_epi16(there, place);
#pragma GCC unroll 2
            for (int b = 0; b < B; b++)
                sum[b][r] = _mm512_dpbf16_ps(sum[b][r], w, (__m512bh)_mm512_loadu_si512((const uint16_t *)inputs[b].numbers + k));
        }
    }
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sums[b][r] = (f32x16)sum[b][r];
}

#endif

#if DOTPROD

/* Add to each of four sums four products. As assembly: not every compiler has a function for it here. */
INLINE i32x4 FN(dot16)(i32x4 sum, i8x16 a, i8x16 b) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}

#endif

/* The same with int8 weights, but for the scale of each row. */
INLINE void FN(tile_int8)(int R, int B, const char *weight, int64_t row_bytes, int64_t K, const Input *inputs, f32x16 (*sums)[TILE_ROWS]) {
#if VNNI
    __m512 sum[TILE_INPUTS][TILE_ROWS];
    const __m512i flip = _mm512_set1_epi8((char)128);
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[b][r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += BLOCK) {
        __mmask64 there = K - k < BLOCK ? ((__mmask64)1 << (K - k)) - 1 : ~(__mmask64)0;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            fetch(weight + r * row_bytes + k);
            /* The instruction wants one factor without a sign: 128 is added to the weights, and the offsets take it off again. */
            __m512i w = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, weight + r * row_bytes + k), flip);
#pragma GCC unroll 2
            for (int b = 0; b < B; b++) {
                __m512i dot = _mm512_dpbusd_epi32(_mm512_loadu_si512(inputs[b].offsets + k / 4), w, _mm512_loadu_si512(inputs[b].whole + k));
                sum[b][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(inputs[b].scales[k / BLOCK]), sum[b][r]);
            }
        }
    }
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sums[b][r] = (f32x16)sum[b][r];
#elif DOTPROD
    f32x4 sum[TILE_INPUTS][TILE_ROWS] = {{{0}}};
    for (int64_t k = 0; k < K; k += BLOCK)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *place = weight + r * row_bytes + k;
            char rest[BLOCK];
            if (K - k < BLOCK) {
                memset(rest, 0, sizeof rest);
                place = memcpy(rest, place, K - k);
            } else {
                fetch(place);
            }
#pragma GCC unroll 2
            for (int b = 0; b < B; b++) {
                i32x4 dot = {0};
#pragma GCC unroll 4
                for (int i = 0; i < BLOCK; i += 16)
                    dot = FN(dot16)(dot, *(const i8x16_unaligned *)(place + i), *(const i8x16_unaligned *)(inputs[b].whole + k + i));
                sum[b][r] += __builtin_convertvector(dot, f32x4) * inputs[b].scales[k / BLOCK];
            }
        }
#pragma GCC unroll 2
    for (int b = 0; b < B; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) *(f32x4_unaligned *)&sums[b][r] = sum[b][r];  /* the other lanes are 0 */
#else
    for (int b = 0; b < B; b++)
        for (int r = 0; r < R; r++) {
            float sum = 0;
            for (int64_t k = 0; k < K; k += BLOCK) {
                const int8_t *w = (const int8_t *)weight + r * row_bytes + k, *x = inputs[b].whole + k;
                int32_t dot = 0;
                fetch((const char *)w);
                if (K - k >= BLOCK)
                    for (int i = 0; i < BLOCK; i++) dot += w[i] * x[i];
                else
                    for (int i = 0; i < K - k; i++) dot += w[i] * x[i];
                sum += dot * inputs[b].scales[k / BLOCK];
            }
            sums[b][r] = (f32x16){sum};
        }
#endif
}

/* Write, or add, the outputs of R rows, R = 1 or 4, that are `apart`, for B inputs from `first` on. */
INLINE void FN(tile)(int kind, int R, int B, const Matrix *matrix, int64_t row, int64_t apart, const Input *inputs, int64_t first, const Outputs *out) {
    f32x16 sums[TILE_INPUTS][TILE_ROWS] = {{{0}}};
    int64_t K = matrix->columns, row_bytes = K * (kind == INT8 ? 1 : kind == BFLOAT16 ? 2 : 4);
    const char *weight = (const char *)matrix->weight + row * row_bytes;
    if (kind == INT8)
        FN(tile_int8)(R, B, weight, row_bytes * apart, K, inputs + first, sums);
#if BF16
    else if (kind == BFLOAT16)
        FN(tile_bfloat16)(R, B, weight, row_bytes * apart, K, inputs + first, sums);
#endif
    else
        FN(tile_float)(kind, R, B, weight, row_bytes * apart, K, inputs + first, sums);
#pragma GCC unroll 2
    for (int b = 0; b < B; b++) {
        float *place = out->numbers + (first + b) * out->stride + row;
        f32x4 y = FN(sum4)(sums[b]);
        if (R == TILE_ROWS) {
            if (kind == INT8) y *= FN(load4)(matrix->scales, FLOAT32, row, apart);
            if (matrix->bias) y += FN(load4)(matrix->bias, matrix->bias_kind, row, apart);
            for (int r = 0; r < 4; r++) place[r * apart] = out->add ? place[r * apart] + y[r] : y[r];
        } else {
            float value = kind == INT8 ? y[0] * matrix->scales[row] : y[0];
            if (matrix->bias) value += read(matrix->bias, matrix->bias_kind, row);
            *place = out->add ? value + *place : value;
        }
    }
}

INLINE void FN(rows)(int kind, int R, const Matrix *matrix, int64_t row, int64_t apart, const Input *inputs, int64_t count, const Outputs *out) {
    int64_t b = 0;
    for (; b + TILE_INPUTS <= count; b += TILE_INPUTS) FN(tile)(kind, R, TILE_INPUTS, matrix, row, apart, inputs, b, out);
    for (; b < count; b++) FN(tile)(kind, R, 1, matrix, row, apart, inputs, b, out);
}

INLINE void FN(linear_of)(int kind, const Matrix *matrix, int64_t from, int64_t to, const Input *inputs, int64_t count, const Outputs *out) {
    int64_t apart = (to - from) / TILE_ROWS; /* so that memory sees four long streams coming, not four rows side by side */
    for (int64_t row = from; row < from + apart; row++) FN(rows)(kind, TILE_ROWS, matrix, row, apart, inputs, count, out);
    for (int64_t row = from + apart * TILE_ROWS; row < to; row++) FN(rows)(kind, 1, matrix, row, 0, inputs, count, out);
}

/* The outputs `from` to `to` of a matrix, for every input. */
TARGET static void FN(linear)(const Matrix *matrix, int64_t from, int64_t to, const Input *inputs, int64_t count, const Outputs *out) {
    if (matrix->kind == INT8)
        FN(linear_of)(INT8, matrix, from, to, inputs, count, out);
    else if (matrix->kind == BFLOAT16)
        FN(linear_of)(BFLOAT16, matrix, from, to, inputs, count, out);
    else
        FN(linear_of)(FLOAT32, matrix, from, to, inputs, count, out);
}

#include "shortlist.h"

static const Kernels FN(kernels) = {
    FN(normalise), FN(activate), FN(attend), FN(arrange), FN(linear), FN(sketch), FN(round_input), FN(bounds),
};

#undef INLINE
#undef FN
#undef TARGET
#undef FLOATS
#undef INTEGERS
#undef TILE_INPUTS
#undef SUMS
#undef VNNI
#undef BF16
#undef DOTPROD
