/* Threads that run one function together, and wait for one another inside it.
 *
 * A step has about a hundred points where all threads must have arrived, microseconds apart, so they wait for one another by
 * looking at a counter, and give their core away when that takes longer. Between two steps they look for a moment, then sleep.
 * Ours rather than OpenMP's: nothing to be found at installation, and no second OpenMP beside the one that torch brings.
 */

#include "threads.h"

#include <pthread.h>
#include <sched.h>

enum { MOST_THREADS = 256, RUN = 1024, LOOKS_BEFORE_YIELD = 100, LOOKS_BEFORE_SLEEP = 3000 };

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER; /* held by whoever runs something */
static pthread_mutex_t asleep = PTHREAD_MUTEX_INITIALIZER; /* guards `run` for those who sleep */
static pthread_cond_t new_run = PTHREAD_COND_INITIALIZER;

static int workers;                       /* threads that we have started */
static uint64_t run;                      /* number of the run * RUN + threads that take part in it, to be read at once */
static uint64_t run_before[MOST_THREADS]; /* what `run` was when a worker was started */
static void (*run_work)(void *, int, int);
static void *run_task;
static int arrived;                       /* threads that are waiting in the present meeting */
static unsigned meetings;                 /* meetings so far; unsigned, so that it may wrap */

/* Let a moment pass before looking again: on a free machine nanoseconds are enough, on a busy one the thread that we wait for may
 * need this very core. */
static inline void pause_after(int looks) {
    if (looks >= LOOKS_BEFORE_YIELD)
        sched_yield();
    else
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#else
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
#endif
}

void wait_for_all(int threads) {
    unsigned meeting = __atomic_load_n(&meetings, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
        __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&meetings, meeting + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int looks = 0; __atomic_load_n(&meetings, __ATOMIC_ACQUIRE) == meeting; looks += looks < LOOKS_BEFORE_YIELD) pause_after(looks);
}

/* Wait until there is another run than `seen`, and return it. */
static uint64_t next_run(uint64_t seen) {
    for (int looks = 0; looks < LOOKS_BEFORE_SLEEP; looks++) {
        uint64_t now = __atomic_load_n(&run, __ATOMIC_ACQUIRE);
        if (now != seen) return now;
        pause_after(looks);
    }
    pthread_mutex_lock(&asleep);
    while (run == seen) pthread_cond_wait(&new_run, &asleep);
    uint64_t now = run;
    pthread_mutex_unlock(&asleep);
    return now;
}

static void *serve(void *argument) {
    int thread = (int)(intptr_t)argument;
    for (uint64_t seen = run_before[thread];;) {
        seen = next_run(seen);
        int threads = seen % RUN;
        if (thread < threads) {
            run_work(run_task, thread, threads);
            wait_for_all(threads);
        }
    }
    return NULL;
}

/* A forked process has none of its parent's threads, and perhaps their locks. */
static void forget_workers(void) {
    pthread_mutex_init(&in_use, NULL);
    pthread_mutex_init(&asleep, NULL);
    pthread_cond_init(&new_run, NULL);
    workers = arrived = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

/* Start threads until there are so many workers, or the system gives no more. */
static void start_workers(int wanted) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    while (workers < wanted) {
        pthread_t thread;
        run_before[workers + 1] = run;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)(workers + 1))) return;
        pthread_detach(thread);
        workers++;
    }
}

void run_together(int threads, void (*work)(void *, int, int), void *task) {
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    pthread_mutex_lock(&in_use);
    start_workers(threads - 1);
    if (threads > workers + 1) threads = workers + 1;
    run_work = work;
    run_task = task;
    if (threads > 1) {
        pthread_mutex_lock(&asleep);
        __atomic_store_n(&run, (run / RUN + 1) * RUN + threads, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&new_run);
        pthread_mutex_unlock(&asleep);
    }
    work(task, 0, threads);
    wait_for_all(threads);
    pthread_mutex_unlock(&in_use);
}
