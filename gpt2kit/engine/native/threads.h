/* Threads that run one function together, and wait for one another inside it. */

#ifndef GPT2KIT_THREADS_H
#define GPT2KIT_THREADS_H

#include <stdint.h>

/* Run `work(task, thread, threads)` in so many threads, this one among them, and return when all have ended. One call at a time: others
 * wait. There are fewer threads where the system gives no more. */
void run_together(int threads, void (*work)(void *task, int thread, int threads), void *task);

/* Inside of `work`: wait until all `threads` of this run are here. The number is an argument because a thread that is slow to leave
 * a meeting may still be in here when the next run, of another number of threads, has begun. */
void wait_for_all(int threads);

#endif
