/* Run one step on the processor that this is compiled for: its memory comes through stdin, with addresses as distances from
 * its start, and goes out through stdout. With the argument `level`, print the name of the best level. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "step.h"

int64_t scratch_bytes(const Model *model, const Step *step);
int decode_step(const Model *model, const Step *step, const char *level);

typedef struct {
    int64_t bytes, addresses; /* of memory, and how many addresses are in it */
    int64_t model, step;      /* where these are */
    char level[16];
} Header;

int main(int arguments, char **argument) {
    Header header;
    if (arguments > 1 && !strcmp(argument[1], "level")) return puts(best_level()) < 0;
    if (fread(&header, sizeof header, 1, stdin) != 1) return 2;
    char *memory = aligned_alloc(64, header.bytes);
    int64_t *places = malloc(header.addresses * sizeof *places);
    if (fread(places, sizeof *places, header.addresses, stdin) != (size_t)header.addresses) return 2;
    if (fread(memory, 1, header.bytes, stdin) != (size_t)header.bytes) return 2;
    for (int64_t i = 0; i < header.addresses; i++) *(char **)(memory + places[i]) += (intptr_t)memory;
    const Model *model = (const Model *)(memory + header.model);
    Step *step = (Step *)(memory + header.step);
    step->scratch = aligned_alloc(64, scratch_bytes(model, step) + 64);
    if (decode_step(model, step, header.level)) return 1;
    return fwrite(memory, 1, header.bytes, stdout) != (size_t)header.bytes;
}
