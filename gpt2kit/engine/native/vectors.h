/* Vectors of sixteen numbers: loading, comparing, rounding, adding up, e^x. Part of kernels.h. */

/* Local variables of a type that is wider than the processor's vectors are kept in memory. So sums
 * that many numbers are added to have the level's widest type, PARTS of them for sixteen lanes. */
#define PARTS (16 / LANES)
typedef uint16_t FN(Halves) __attribute__((vector_size(2 * LANES)));
typedef uint32_t FN(Words) __attribute__((vector_size(4 * LANES)));

/* --- loading and storing ---------------------------------------------------------------------- */

/* Return a vector of sixteen times the same number, or of as many as the level's widest vector has.
 * (Compilers leave out the subtraction of 0, but not its addition, which changes -0.) */
INLINE f32x16 FN(splat)(float value) { return value - (f32x16){0}; }

INLINE FLOATS FN(splat_floats)(float value) { return value - (FLOATS){0}; }

/* Load sixteen numbers from index `at` on. */
INLINE f32x16 FN(load)(const void *numbers, int dtype, int64_t at) {
    if (dtype == BFLOAT16) { /* a bfloat16 is the upper half of a float32 */
        const uint16_t *halves = (const uint16_t *)numbers + at;
        return (f32x16)(__builtin_convertvector(*(const u16x16_unaligned *)halves, u32x16) << 16);
    }
    return *(const f32x16_unaligned *)((const float *)numbers + at);
}

/* Load up to sixteen numbers, and zeros after them. */
INLINE f32x16 FN(load_some)(const void *numbers, int dtype, int64_t at, int64_t count) {
    if (count >= 16) return FN(load)(numbers, dtype, at);
    float some[16] = {0};
    for (int64_t i = 0; i < count; i++) some[i] = read(numbers, dtype, at + i);
    return FN(load)(some, FLOAT32, 0);
}

/* As load, but as many numbers as the level's widest vector has. */
INLINE FLOATS FN(load_floats)(const void *numbers, int dtype, int64_t at) {
    FLOATS value;
    if (dtype == BFLOAT16) {
        FN(Halves) halves;
        memcpy(&halves, (const uint16_t *)numbers + at, sizeof halves);
#if LANES == 16 /* GCC widens sixteen numbers in two parts */
        FN(Words) words = (FN(Words))_mm512_cvtepu16_epi32((__m256i)halves);
#else
        FN(Words) words = __builtin_convertvector(halves, FN(Words));
#endif
        return (FLOATS)(words << 16);
    }
    memcpy(&value, (const float *)numbers + at, sizeof value);
    return value;
}

/* As load_floats, but if `count` numbers are fewer, zeros after them. */
INLINE FLOATS FN(load_some_floats)(const void *numbers, int dtype, int64_t at, int64_t count) {
    if (count >= LANES) return FN(load_floats)(numbers, dtype, at);
#if LANES == 16
    __mmask16 there = (1 << (count > 0 ? count : 0)) - 1;
    if (dtype == FLOAT32) return (FLOATS)_mm512_maskz_loadu_ps(there, (const float *)numbers + at);
    __m256i halves = _mm256_maskz_loadu_epi16(there, (const uint16_t *)numbers + at);
    return (FLOATS)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    FLOATS some = {0};
    for (int64_t i = 0; i < count; i++) some[i] = read(numbers, dtype, at + i);
    return some;
#endif
}

/* Load four numbers whose indices are `apart`. */
INLINE f32x4 FN(load4)(const void *numbers, int dtype, int64_t at, int64_t apart) {
    return (f32x4){
        read(numbers, dtype, at),
        read(numbers, dtype, at + apart),
        read(numbers, dtype, at + 2 * apart),
        read(numbers, dtype, at + 3 * apart),
    };
}

INLINE void FN(store)(float *numbers, f32x16 value) { *(f32x16_unaligned *)numbers = value; }

/* --- comparing -------------------------------------------------------------------------------- */

/* Compilers compare vectors that are wider than the processor's lane by lane, so these two compare
 * the level's widest ones. */

/* Return a mask: all bits set in the lanes in which a < b. */
INLINE i32x16 FN(less)(f32x16 a, f32x16 b) {
    union { f32x16 all; FLOATS part[64 / sizeof(FLOATS)]; } x = {a}, y = {b};
    union { i32x16 all; INTEGERS part[64 / sizeof(INTEGERS)]; } mask;
    for (size_t i = 0; i < 64 / sizeof(FLOATS); i++) mask.part[i] = x.part[i] < y.part[i];
    return mask.all;
}

/* Return the larger of two integers in each lane. */
INLINE i32x16 FN(max_int)(i32x16 a, i32x16 b) {
    union { i32x16 all; INTEGERS part[64 / sizeof(INTEGERS)]; } x = {a}, y = {b}, max;
    for (size_t i = 0; i < 64 / sizeof(INTEGERS); i++) {
        INTEGERS less = x.part[i] < y.part[i];
        max.part[i] = (less & y.part[i]) | (~less & x.part[i]);
    }
    return max.all;
}

/* Return the larger of two numbers in each lane; a NaN in `a` stays, one in `b` is dropped. */
INLINE f32x16 FN(max)(f32x16 a, f32x16 b) {
#if LANES == 16 /* the instruction returns its second operand if either is NaN */
    return (f32x16)_mm512_max_ps((__m512)b, (__m512)a);
#else
    i32x16 less = FN(less)(a, b);
    return (f32x16)((less & (i32x16)b) | (~less & (i32x16)a));
#endif
}

INLINE float FN(max_of)(f32x16 value) {
    float max = value[0];
    for (int i = 1; i < 16; i++) max = value[i] > max ? value[i] : max;
    return max;
}

/* Return the bits of absolute values. As integers they compare like the numbers, with infinity
 * above every number and NaN above infinity, so that a maximum of them loses neither. */
INLINE i32x16 FN(abs_bits)(f32x16 value) { return (i32x16)value & 0x7fffffff; }

/* Return the largest absolute value from abs_bits. */
INLINE float FN(max_abs)(i32x16 bits) {
    int32_t max = 0;
    float value;
    for (int i = 0; i < 16; i++) max = bits[i] > max ? bits[i] : max;
    memcpy(&value, &max, sizeof value);
    return value;
}

/* --- rounding and adding up ------------------------------------------------------------------- */

/* Return a * b + c, rounded once if the level can. Compilers do the same for a * b + c in some
 * places and not in others, so that the same sum in two functions could have different bits. */
INLINE FLOATS FN(multiply_add)(FLOATS a, FLOATS b, FLOATS c) {
#if FMA && LANES == 16
    return (FLOATS)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FMA
    return (FLOATS)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* As multiply_add, of four numbers. */
INLINE f32x4 FN(multiply_add4)(f32x4 a, f32x4 b, f32x4 c) {
#if FMA
    return (f32x4)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#else
    return a * b + c;
#endif
}

/* Adding 1.5 * 2^23 leaves the nearest integer in a float's low bits. */
#define ROUND 12582912.0f

/* Round to the nearest integer, for numbers below 2^22. */
INLINE i32x16 FN(nearest)(f32x16 value) {
    const f32x16 round = FN(splat)(ROUND);
    return (i32x16)(value + round) - (i32x16)round;
}

INLINE float FN(sum)(f32x16 value) {
    union { f32x16 all; f32x8 half[2]; } a = {value};
    union { f32x8 all; f32x4 half[2]; } b = {a.half[0] + a.half[1]};
    f32x4 c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Then sum4, which returns the sums of four times sixteen numbers, each taken in the order of
 * `sum`: lanes 0, 4, 8 and 12, lanes 1, 5, 9 and 13, and so on; then these four. */

#if LANES == 16

INLINE f32x4 FN(sum4)(const FLOATS (*values)[PARTS]) {
    __m512 eight[2]; /* twice eight numbers each: sums of lanes that are eight apart */
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512 a = (__m512)values[2 * i][0], b = (__m512)values[2 * i + 1][0];
        eight[i] = _mm512_add_ps(
            _mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(1, 0, 3, 2))
        );
    }
    __m512 four = _mm512_add_ps(
        _mm512_shuffle_f32x4(eight[0], eight[1], _MM_SHUFFLE(2, 0, 2, 0)),
        _mm512_shuffle_f32x4(eight[0], eight[1], _MM_SHUFFLE(3, 1, 3, 1))
    );
    __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, _MM_SHUFFLE(1, 0, 3, 2)));
    __m512 one = _mm512_add_ps(two, _mm512_movehdup_ps(two)); /* in every fourth lane */
    __m512i fourths = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return (f32x4)_mm512_castps512_ps128(_mm512_permutexvar_ps(fourths, one));
}

#else

INLINE f32x4 FN(quarter)(const FLOATS *parts) {
#if LANES == 8
    union { f32x8 all; f32x4 half[2]; } b = {parts[0] + parts[1]};
    return b.half[0] + b.half[1];
#else
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
#endif
}

INLINE f32x4 FN(sum4)(const FLOATS (*values)[PARTS]) {
    f32x4 quarter[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) quarter[i] = FN(quarter)(values[i]);
    f32x4 low = SHUFFLE(quarter[0], quarter[1], 0, 1, 4, 5) +
                SHUFFLE(quarter[0], quarter[1], 2, 3, 6, 7);
    f32x4 high = SHUFFLE(quarter[2], quarter[3], 0, 1, 4, 5) +
                 SHUFFLE(quarter[2], quarter[3], 2, 3, 6, 7);
    return SHUFFLE(low, high, 0, 2, 4, 6) + SHUFFLE(low, high, 1, 3, 5, 7);
}

#endif

/* --- e^x -------------------------------------------------------------------------------------- */

/* Return e^x, exact to one or two units in the last place, for x from -87 to 88 and as if it were
 * in that range otherwise; NaN stays NaN. With x = n ln 2 + r and |r| <= ln 2 / 2 it is 2^n times a
 * polynomial for e^r. */
INLINE f32x16 FN(exp)(f32x16 x) {
    const f32x16 round = FN(splat)(ROUND);
    x = FN(max)(x, FN(splat)(-87.0f));
    x = -FN(max)(-x, FN(splat)(-88.0f));
    f32x16 shifted = x * 1.44269504f + round; /* n in the low bits */
    f32x16 n = shifted - round;
    f32x16 r = x - n * 0.693359375f; /* ln 2 in two parts, the first with few bits */
    r = r + n * 2.12194440e-4f;
    f32x16 p = r * (1.0f / 5040) + (1.0f / 720);
    p = p * r + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    /* 2^n, made from its bits: n in the exponent */
    return p * (f32x16)(((i32x16)shifted << 23) + 0x3f800000);
}

#undef ROUND
