/* Threads that run one function together and wait for each other inside it.
 *
 * A step has about a hundred points at which all threads must have arrived, microseconds apart. So
 * they wait by polling a counter, and yield their core if that takes longer. Between two steps they
 * poll for a moment, then sleep. This is not OpenMP because torch brings its own: a second one in
 * the same process would add threads, and would have to be found when the package is installed. */

#include "threads.h"

#include <pthread.h>
#include <sched.h>

enum {
    MAX_THREADS = 256,
    RUN = 1024, /* `run` holds the run's number * RUN + its threads */
    POLLS_BEFORE_YIELD = 100,
    POLLS_BEFORE_SLEEP = 3000,
};

static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;  /* held during run_together */
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER; /* guards `run` for sleeping threads */
static pthread_cond_t new_run = PTHREAD_COND_INITIALIZER;

static int workers;                      /* threads started so far */
static uint64_t run;                     /* number and threads in one word, to read both at once */
static uint64_t run_before[MAX_THREADS]; /* value of `run` when a worker was started */
static void (*run_work)(void *, int, int);
static void *run_task;
static int arrived;       /* threads waiting in the present meeting */
static unsigned meetings; /* completed meetings; unsigned, because it wraps */

#if defined(__x86_64__) || defined(__i386__)
static inline void relax(void) { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
static inline void relax(void) { __asm__ volatile("yield"); }
#else
static inline void relax(void) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
#endif

/* Wait a moment before the next poll. On an idle machine nanoseconds are enough; on a busy one the
 * thread that is waited for may need this very core. */
static inline void pause_after(int polls) {
    if (polls >= POLLS_BEFORE_YIELD)
        sched_yield();
    else
        relax();
}

void wait_for_all(int threads) {
    unsigned meeting = __atomic_load_n(&meetings, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
        __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&meetings, meeting + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int polls = 0; __atomic_load_n(&meetings, __ATOMIC_ACQUIRE) == meeting;) {
        pause_after(polls);
        polls += polls < POLLS_BEFORE_YIELD;
    }
}

/* Wait until `run` is no longer `seen`, and return its new value. */
static uint64_t next_run(uint64_t seen) {
    for (int polls = 0; polls < POLLS_BEFORE_SLEEP; polls++) {
        uint64_t now = __atomic_load_n(&run, __ATOMIC_ACQUIRE);
        if (now != seen) return now;
        pause_after(polls);
    }
    pthread_mutex_lock(&sleeping);
    while (run == seen) pthread_cond_wait(&new_run, &sleeping);
    uint64_t now = run;
    pthread_mutex_unlock(&sleeping);
    return now;
}

/* A worker's life: take part in each run that has enough threads. */
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

/* A forked process has none of its parent's threads, and may have inherited locked mutexes. */
static void forget_workers(void) {
    pthread_mutex_init(&running, NULL);
    pthread_mutex_init(&sleeping, NULL);
    pthread_cond_init(&new_run, NULL);
    workers = arrived = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

/* Start threads until there are `wanted` workers, or the system gives no more. */
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
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    pthread_mutex_lock(&running);
    start_workers(threads - 1);
    if (threads > workers + 1) threads = workers + 1;
    run_work = work;
    run_task = task;
    if (threads > 1) {
        pthread_mutex_lock(&sleeping);
        __atomic_store_n(&run, (run / RUN + 1) * RUN + threads, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&new_run);
        pthread_mutex_unlock(&sleeping);
    }
    work(task, 0, threads);
    wait_for_all(threads);
    pthread_mutex_unlock(&running);
}
