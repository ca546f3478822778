/* Run one step on the processor that this is compiled for. The memory that the step uses comes in
 * through stdin, each address as an offset from its start, and goes out through stdout. With the
 * argument `level`, print the name of the fastest level. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "step.h"

int64_t scratch_bytes(const Model *model, const Step *step);
int decode_step(const Model *model, const Step *step, const char *level);

typedef struct {
    int64_t bytes;       /* size of the memory */
    int64_t addresses;   /* how many addresses are in it */
    int64_t model, step; /* offsets of these two structs */
    char level[16];
} Header;

int main(int arguments, char **argument) {
    Header header;
    if (arguments > 1 && !strcmp(argument[1], "level")) return puts(best_level()) < 0;
    if (fread(&header, sizeof header, 1, stdin) != 1) return 2;
    char *memory = aligned_alloc(64, header.bytes);
    int64_t *offsets = malloc(header.addresses * sizeof *offsets); /* of the addresses */
    if (fread(offsets, 8, header.addresses, stdin) != (size_t)header.addresses) return 2;
    if (fread(memory, 1, header.bytes, stdin) != (size_t)header.bytes) return 2;
    for (int64_t i = 0; i < header.addresses; i++)
        *(char **)(memory + offsets[i]) += (intptr_t)memory;
    const Model *model = (const Model *)(memory + header.model);
    Step *step = (Step *)(memory + header.step);
    step->scratch = aligned_alloc(64, scratch_bytes(model, step) + 64);
    if (decode_step(model, step, header.level)) return 1;
    return fwrite(memory, 1, header.bytes, stdout) != (size_t)header.bytes;
}
