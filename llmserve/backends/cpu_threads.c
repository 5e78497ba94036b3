/* The threads that run a compiled CPU library's parallel loops, in place of TVM's own pool.

   TVM's pool gives every worker a fixed share and waits for all of them, so a step is as slow as the thread that the
   system runs last. Here each thread's share is cut into tasks, which it claims in order, so that it reads memory in
   order; who is done with its own claims from the others' shares, and the caller waits for tasks that were claimed,
   never for a worker that has not come. A machine with other work on it then costs what that work takes. Workers spin
   for a moment after their last task, letting others run in between, and sleep after that.

   Linked into each library, which compiled code calls through a pointer of its own (__TVMBackendParallelLaunch). Not a
   scheduler for anything else: one loop at a time, and a second caller runs its loop alone. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

/* As in tvm/runtime/c_backend_api.h. */
typedef struct {
  void* sync_handle;
  int32_t num_task;
} Group;
typedef int (*Task)(int task_id, Group* group, void* data);
typedef int (*Launch)(Task task, void* data, int num_task);

extern Launch __TVMBackendParallelLaunch;

enum { MAX_THREADS = 256, TASKS_PER_THREAD = 16, SPINS = 20000, YIELD_EVERY = 256 };

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ __volatile__("isb" ::: "memory")
#else
#define PAUSE() ((void)0)
#endif

/* A thread's part of the loop, on cache lines of its own, with all that is needed to claim from it. */
typedef struct {
  _Alignas(128) _Atomic uint64_t next; /* the loop's number in the upper half, the next task in the lower one */
  _Atomic(Task) task;
  _Atomic(void*) data;
  _Atomic int32_t num_task; /* of the whole loop */
  _Atomic uint32_t end;     /* of this part */
} Share;

static Share shares[MAX_THREADS];
static struct {
  _Alignas(128) _Atomic int32_t unfinished; /* tasks */
  _Alignas(128) _Atomic int32_t failed;
  _Atomic int32_t sleepers;
  _Atomic int32_t stopping;
  _Atomic int32_t threads; /* the caller's included */
} loop;

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER; /* held by the one whose loop it is */
static pthread_mutex_t bed = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t users_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t workers[MAX_THREADS];
static int users, num_workers;
static Launch original;

/* Claim and run tasks of a share until none is left. Fields are read before the claim: if it succeeds, the loop was
   still the same one. Returns the last value of `next` that was seen. */
static uint64_t drain(Share* share) {
  int32_t done = 0;
  uint64_t seen = atomic_load_explicit(&share->next, memory_order_acquire);
  for (;;) {
    Task task = atomic_load_explicit(&share->task, memory_order_relaxed);
    void* data = atomic_load_explicit(&share->data, memory_order_relaxed);
    int32_t num_task = atomic_load_explicit(&share->num_task, memory_order_relaxed);
    uint32_t end = atomic_load_explicit(&share->end, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    uint32_t index = (uint32_t)seen;
    if (index >= end) {
      uint64_t now = atomic_load_explicit(&share->next, memory_order_acquire);
      if (now == seen) break;
      seen = now;
      continue;
    }
    if (!atomic_compare_exchange_weak_explicit(&share->next, &seen, seen + 1, memory_order_acq_rel,
                                               memory_order_acquire))
      continue;
    ++seen;
    Group group = {0, num_task};
    if (task((int)index, &group, data)) atomic_store_explicit(&loop.failed, 1, memory_order_relaxed);
    ++done; /* the loop cannot end before they are taken off */
  }
  if (done) atomic_fetch_sub_explicit(&loop.unfinished, done, memory_order_release);
  return seen;
}

/* Run the thread's own tasks, then others'. Returns the last value of its own share's `next`. */
static uint64_t work(int self, int threads) {
  uint64_t seen = drain(&shares[self]);
  for (int i = 1; i < threads && atomic_load_explicit(&loop.unfinished, memory_order_relaxed) > 0; ++i)
    drain(&shares[(self + i) % threads]);
  return seen;
}

static void* worker(void* argument) {
  int self = (int)(intptr_t)argument;
  _Atomic uint64_t* next = &shares[self].next;
  while (!atomic_load_explicit(&loop.stopping, memory_order_acquire)) {
    uint64_t seen = work(self, atomic_load_explicit(&loop.threads, memory_order_relaxed));
    int spins = 0;
    while (atomic_load_explicit(next, memory_order_acquire) == seen && spins < SPINS) {
      PAUSE();
      if (++spins % YIELD_EVERY == 0) sched_yield(); /* the server's event loop, for one */
    }
    if (spins < SPINS) continue;
    pthread_mutex_lock(&bed);
    atomic_fetch_add(&loop.sleepers, 1);
    while (atomic_load(next) == seen && !atomic_load(&loop.stopping)) pthread_cond_wait(&bell, &bed);
    atomic_fetch_sub(&loop.sleepers, 1);
    pthread_mutex_unlock(&bed);
  }
  return 0;
}

static void ring(void) {
  pthread_mutex_lock(&bed);
  pthread_cond_broadcast(&bell);
  pthread_mutex_unlock(&bed);
}

static int alone(Task task, void* data) {
  Group group = {0, 1};
  return task(0, &group, data);
}

static int launch(Task task, void* data, int num_task) {
  static uint32_t number;
  if (num_workers == 0 || pthread_mutex_trylock(&caller)) return alone(task, data);
  int threads = num_workers + 1;
  if (num_task == 0) num_task = threads * TASKS_PER_THREAD;
  ++number;
  /* First close the last loop: who has seen its end must not claim one more task there by the new fields. */
  for (int i = 0; i < threads; ++i)
    atomic_store_explicit(&shares[i].next, (uint64_t)number << 32 | UINT32_MAX, memory_order_relaxed);
  atomic_thread_fence(memory_order_release);
  atomic_store_explicit(&loop.failed, 0, memory_order_relaxed);
  atomic_store_explicit(&loop.unfinished, num_task, memory_order_relaxed);
  for (int i = threads - 1; i >= 0; --i) { /* others' first */
    uint32_t begin = (uint32_t)((int64_t)num_task * i / threads);
    atomic_store_explicit(&shares[i].task, task, memory_order_relaxed);
    atomic_store_explicit(&shares[i].data, data, memory_order_relaxed);
    atomic_store_explicit(&shares[i].num_task, num_task, memory_order_relaxed);
    atomic_store_explicit(&shares[i].end, (uint32_t)((int64_t)num_task * (i + 1) / threads), memory_order_relaxed);
    atomic_store_explicit(&shares[i].next, (uint64_t)number << 32 | begin, memory_order_release);
  }
  atomic_thread_fence(memory_order_seq_cst); /* a worker counts itself asleep before it looks once more */
  if (atomic_load(&loop.sleepers)) ring();
  work(0, threads);
  while (atomic_load_explicit(&loop.unfinished, memory_order_acquire)) PAUSE();
  int failed = atomic_load_explicit(&loop.failed, memory_order_relaxed);
  pthread_mutex_unlock(&caller);
  return failed ? -1 : 0;
}

/* Run this library's loops on `threads` threads, the caller's included, until `llmserve_threads_stop` was called as
   often as this. The first caller decides about the number. Returns it. */
int llmserve_threads_start(int threads) {
  pthread_mutex_lock(&users_lock);
  if (users++ == 0) {
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    atomic_store(&loop.stopping, 0);
    for (void* self; num_workers < threads - 1; ++num_workers) {
      self = (void*)(intptr_t)(num_workers + 1);
      if (pthread_create(&workers[num_workers], 0, worker, self)) break;
    }
    atomic_store(&loop.threads, num_workers + 1);
    original = __TVMBackendParallelLaunch;
    __TVMBackendParallelLaunch = launch;
  }
  int running = num_workers + 1;
  pthread_mutex_unlock(&users_lock);
  return running;
}

void llmserve_threads_stop(void) {
  pthread_mutex_lock(&users_lock);
  if (users > 0 && --users == 0) {
    __TVMBackendParallelLaunch = original;
    atomic_store(&loop.stopping, 1);
    ring();
    for (; num_workers > 0; --num_workers) pthread_join(workers[num_workers - 1], 0);
  }
  pthread_mutex_unlock(&users_lock);
}
