/* The threads that run a compiled CPU library's parallel loops, in place of TVM's own pool.

   TVM's pool gives every worker a fixed share and waits for all of them, so a step is as slow as the thread that the
   system runs last. Here a loop is cut into more tasks than threads, whoever is running claims the next one, and the
   caller waits for tasks that were claimed, never for a worker that has not come. A machine with other work on it then
   costs what that work takes. Workers spin for a moment after their last task and sleep after that.

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

enum { MAX_THREADS = 256, TASKS_PER_THREAD = 8, SPINS = 20000 };

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ __volatile__("isb" ::: "memory")
#else
#define PAUSE() ((void)0)
#endif

/* What all threads look at lies on cache lines of its own. */
static struct {
  _Alignas(128) _Atomic uint64_t next; /* the loop's number in the upper half, its next task in the lower one */
  _Alignas(128) _Atomic int32_t unfinished; /* tasks */
  _Alignas(128) _Atomic(Task) task;
  _Atomic(void*) data;
  _Atomic int32_t num_task;
  _Atomic int32_t failed;
  _Atomic int32_t sleepers;
  _Atomic int32_t stopping;
} loop;

static pthread_mutex_t caller = PTHREAD_MUTEX_INITIALIZER; /* held by the one whose loop it is */
static pthread_mutex_t bed = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t users_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t workers[MAX_THREADS];
static int users, num_workers;
static Launch original;

/* Claim and run tasks of the loop that `seen` belongs to until none is left. Fields are read before the claim: if it
   succeeds, the loop was still the same one. Returns the last value of `next` that was seen. */
static uint64_t work(uint64_t seen) {
  for (;;) {
    Task task = atomic_load_explicit(&loop.task, memory_order_relaxed);
    void* data = atomic_load_explicit(&loop.data, memory_order_relaxed);
    int32_t num_task = atomic_load_explicit(&loop.num_task, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    uint32_t index = (uint32_t)seen;
    if (index >= (uint32_t)num_task) {
      uint64_t now = atomic_load_explicit(&loop.next, memory_order_acquire);
      if (now == seen) return seen;
      seen = now;
      continue;
    }
    if (!atomic_compare_exchange_weak_explicit(&loop.next, &seen, seen + 1, memory_order_acq_rel, memory_order_acquire))
      continue;
    ++seen;
    Group group = {0, num_task};
    if (task((int)index, &group, data)) atomic_store_explicit(&loop.failed, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&loop.unfinished, 1, memory_order_release);
  }
}

static void* worker(void* unused) {
  (void)unused;
  uint64_t seen = atomic_load_explicit(&loop.next, memory_order_acquire);
  while (!atomic_load_explicit(&loop.stopping, memory_order_acquire)) {
    seen = work(seen);
    int spins = 0;
    while (atomic_load_explicit(&loop.next, memory_order_acquire) == seen && spins < SPINS) {
      PAUSE();
      ++spins;
    }
    if (spins < SPINS) {
      seen = atomic_load_explicit(&loop.next, memory_order_acquire);
      continue;
    }
    pthread_mutex_lock(&bed);
    atomic_fetch_add(&loop.sleepers, 1);
    while (atomic_load(&loop.next) == seen && !atomic_load(&loop.stopping)) pthread_cond_wait(&bell, &bed);
    atomic_fetch_sub(&loop.sleepers, 1);
    pthread_mutex_unlock(&bed);
    seen = atomic_load_explicit(&loop.next, memory_order_acquire);
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
  if (num_workers == 0 || pthread_mutex_trylock(&caller)) return alone(task, data);
  if (num_task == 0) num_task = (num_workers + 1) * TASKS_PER_THREAD;
  uint64_t number = (atomic_load_explicit(&loop.next, memory_order_relaxed) >> 32) + 1;
  /* First close the last loop: a worker that has seen its end must not claim one more task there by the new fields. */
  atomic_store_explicit(&loop.next, number << 32 | UINT32_MAX, memory_order_relaxed);
  atomic_thread_fence(memory_order_release);
  atomic_store_explicit(&loop.task, task, memory_order_relaxed);
  atomic_store_explicit(&loop.data, data, memory_order_relaxed);
  atomic_store_explicit(&loop.failed, 0, memory_order_relaxed);
  atomic_store_explicit(&loop.unfinished, num_task, memory_order_relaxed);
  atomic_store_explicit(&loop.num_task, num_task, memory_order_relaxed);
  atomic_store(&loop.next, number << 32);
  if (atomic_load(&loop.sleepers)) ring();
  work(number << 32);
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
    while (num_workers < threads - 1 && pthread_create(&workers[num_workers], 0, worker, 0) == 0) ++num_workers;
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
