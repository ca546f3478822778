/* Products of int8 weights with inputs that are rounded to int8 too. Part of kernels.h.
 *
 * Each row of weights has one scale, and each BLOCK of the input another, so that the products of a
 * block are integers that add up exactly; gpt2kit/quantize.py defines the same in torch. */

/* Round BLOCK numbers to int8 with one scale. A NaN or infinity among them becomes the scale, and
 * so reaches every product. */
INLINE void FN(round_block)(const float *numbers, int8_t *rounded, float *scale) {
    i32x16 bits = {0};
    for (int i = 0; i < BLOCK; i += 16)
        bits = FN(max_int)(bits, FN(abs_bits)(FN(load)(numbers, FLOAT32, i)));
    float max = FN(max_abs)(bits), factor = max > 0 ? 127 / max : 0;
    *scale = max / 127;
    for (int i = 0; i < BLOCK; i += 16) {
        i32x16 nearest = FN(nearest)(FN(load)(numbers, FLOAT32, i) * factor);
        *(i8x16_unaligned *)(rounded + i) = __builtin_convertvector(nearest, i8x16_unaligned);
    }
}

/* Two functions follow, in a variant for each kind of dot product:
 *
 *     prepare_int8  round BLOCK numbers, the ones from index k of the input on
 *     add_int8      add to the sums the products of BLOCK weights of R rows, which are row_bytes
 *                   apart, with B inputs from index k on; sums[b][r] are sixteen numbers that add
 *                   up to the product, before it is multiplied by the row's scale
 */

#if VNNI

/* The instruction takes one factor without a sign: 128 is added to the weights where they are
 * multiplied, and 128 times the sum of every four inputs is subtracted beforehand, as `offsets`. */
INLINE void FN(prepare_int8)(const float *numbers, int64_t k, Input *out) {
    FN(round_block)(numbers, out->int8 + k, out->scales + k / BLOCK);
    const __m512i zero = _mm512_setzero_si512();
    __m512i inputs = _mm512_loadu_si512(out->int8 + k);
    __m512i sums = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)128), inputs);
    _mm512_storeu_si512(out->offsets + k / 4, _mm512_sub_epi32(zero, sums));
}

INLINE void FN(add_int8)(
    int R, int B, const char *weights, int64_t row_bytes, int64_t k, const Input *inputs,
    FLOATS (*sums)[TILE_ROWS][PARTS]
) {
    const __m512i flip = _mm512_set1_epi8((char)128);
    __m512i w[TILE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) /* + 128 */
        w[r] = _mm512_xor_si512(_mm512_loadu_si512(weights + r * row_bytes), flip);
#pragma GCC unroll 6
    for (int b = 0; b < B; b++) {
        __m512i offsets = _mm512_loadu_si512(inputs[b].offsets + k / 4);
        __m512i x = _mm512_loadu_si512(inputs[b].int8 + k);
        __m512 scale = _mm512_set1_ps(inputs[b].scales[k / BLOCK]);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(offsets, w[r], x));
            sums[b][r][0] = (FLOATS)_mm512_fmadd_ps(dot, scale, (__m512)sums[b][r][0]);
        }
    }
}

#else

INLINE void FN(prepare_int8)(const float *numbers, int64_t k, Input *out) {
    FN(round_block)(numbers, out->int8 + k, out->scales + k / BLOCK);
}

#endif

#if DOTPROD

/* Add four dot products of four numbers to four sums. Assembly, because not every compiler offers a
 * function for this instruction here. */
INLINE i32x4 FN(dot16)(i32x4 sum, i8x16 a, i8x16 b) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}

INLINE void FN(add_int8)(
    int R, int B, const char *weights, int64_t row_bytes, int64_t k, const Input *inputs,
    FLOATS (*sums)[TILE_ROWS][PARTS]
) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const char *block = weights + r * row_bytes;
        for (int b = 0; b < B; b++) {
            const int8_t *input = inputs[b].int8 + k;
            i32x4 dot = {0};
#pragma GCC unroll 4
            for (int i = 0; i < BLOCK; i += 16)
                dot = FN(dot16)(
                    dot, *(const i8x16_unaligned *)(block + i),
                    *(const i8x16_unaligned *)(input + i)
                );
            f32x4 scale = (f32x4){0} + inputs[b].scales[k / BLOCK];
            sums[b][r][0] =
                FN(multiply_add4)(__builtin_convertvector(dot, f32x4), scale, sums[b][r][0]);
        }
    }
}

#endif

#if !VNNI && !DOTPROD

INLINE void FN(add_int8)(
    int R, int B, const char *weights, int64_t row_bytes, int64_t k, const Input *inputs,
    FLOATS (*sums)[TILE_ROWS][PARTS]
) {
    for (int b = 0; b < B; b++)
        for (int r = 0; r < R; r++) {
            const int8_t *block = (const int8_t *)weights + r * row_bytes;
            const int8_t *input = inputs[b].int8 + k;
            int32_t dot = 0;
            for (int i = 0; i < BLOCK; i++) dot += block[i] * input[i];
            f32x4 product = {dot}, scale = {inputs[b].scales[k / BLOCK]}, sum = {sums[b][r][0][0]};
            sums[b][r][0][0] = FN(multiply_add4)(product, scale, sum)[0];
        }
}

#endif
