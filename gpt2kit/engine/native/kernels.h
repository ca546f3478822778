/* The arithmetic of one step, included by levels.c once for each instruction set.
 *
 * The includer defines
 *
 *     FN(name)  the name of a function at this level
 *     TARGET    the attribute that lets the compiler use the level's instructions
 *
 * and, if the level has more than the defaults below:
 *
 *     FLOATS, INTEGERS  its widest vectors
 *     LANES             how many numbers they have
 *     TILE_INPUTS       1 or 6: how many inputs TILE_ROWS rows of weights meet in registers
 *     TILE_QUERIES      1 or 6: how many queries meet keys in registers
 *     TILE_VALUES       1 or 3: how many of them meet values there, a divisor of TILE_QUERIES
 *     FMA               1 if it has x86's fused multiply-add
 *     VNNI, DOTPROD     1 if it has int8 dot products (x86's, ARM's)
 *     BF16              1 if it has bfloat16 dot products
 *
 * The code is written in vectors of sixteen lanes, with the vector extension of GCC and clang,
 * which maps them to registers of whatever width the processor has. A sum is always taken in the
 * same order, so that a token's result depends neither on the tokens that are read with it nor on
 * the number of threads. */

#ifndef FLOATS
#define FLOATS f32x4
#define INTEGERS i32x4
#define LANES 4
#endif
#ifndef TILE_INPUTS
#define TILE_INPUTS 1
#define TILE_QUERIES 1
#define TILE_VALUES 1
#endif
#ifndef FMA
#define FMA 0
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

#include "vectors.h"
#include "layers.h"
#include "int8.h"
#include "matmul.h"
#include "shortlist.h"

static const Kernels FN(kernels) = {
    .layer_norm = FN(layer_norm),
    .activate = FN(activate),
    .attention = FN(attention),
    .prepare_input = FN(prepare_input),
    .matmul = FN(matmul),
    .sketch_rows = FN(sketch_rows),
    .round_input = FN(round_input),
    .upper_bounds = FN(upper_bounds),
    .sum_words = FN(sum_words),
};

#undef INLINE
#undef FN
#undef TARGET
#undef FLOATS
#undef INTEGERS
#undef LANES
#undef PARTS
#undef TILE_INPUTS
#undef TILE_QUERIES
#undef TILE_VALUES
#undef FMA
#undef VNNI
#undef BF16
#undef DOTPROD
