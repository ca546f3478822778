/* Threads that run one function together and wait for each other inside it. */

#ifndef GPT2KIT_THREADS_H
#define GPT2KIT_THREADS_H

#include <stdint.h>

/* Run `work(task, thread, threads)` in several threads, the calling one among them as thread 0, and
 * return when all have finished. `threads` is at most what was asked for: fewer if the system gives
 * no more. Calls from several threads take turns. */
void run_together(int threads, void (*work)(void *task, int thread, int threads), void *task);

/* Inside `work`: wait until all `threads` of this run are here. The caller passes the number
 * because a thread that is slow to return from here may still be inside when the next run, with
 * another number of threads, has begun. */
void wait_for_all(int threads);

#endif
