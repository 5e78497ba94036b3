// Runs a kernel's blocks on a CPU: one after another, each thread of a block a fibre that runs from barrier to barrier.
//
// What a GPU leaves undefined and may let pass is an error here: a barrier that not all threads reach, a warp's
// operation that its lanes disagree on, memory outside an array, misalignment, overflow. Shared memory is filled with
// NaN before each block, and between barriers threads run in an order that keeps changing, so that what depends on a
// missing barrier or on memory that nobody has written comes out wrong. For Linux with glibc.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include <tvm/ffi/c_api.h>

// Memory of the whole block, in a section whose ends the linker tells. Weak, as a kernel may have none.
#define EMULATED_SHARED static __attribute__((section("emulated_shared")))
extern "C" {
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulation {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kStack = 256 << 10;

struct Index {
  unsigned x, y, z;
};

struct Fibre {
  jmp_buf at;
  unsigned thread;
  long site;         // the line of the barrier that it waits at, 0 once it is done
  uint64_t history;  // hash of the warp's operations that it took part in
};

struct Machine {
  Fibre fibres[kMaxThreads];
  int started;  // fibres that have a stack
  Fibre* current;
  jmp_buf scheduler, failed;
  Index grid, block, thread;
  void (*body)(void*);
  void* argument;
  uint32_t random;
  char error[512];
};

inline Machine machine;

[[noreturn]] inline void fail(const char* what, long a = 0, long b = 0) {
  char detail[256];
  snprintf(detail, sizeof detail, what, a, b);
  const Index block = machine.block;
  snprintf(machine.error, sizeof machine.error, "%s (block %u %u, thread %u)", detail, block.x, block.y,
           machine.thread.x);
  machine.started = 0;  // fibres stand where they happen to be; they begin anew
  _longjmp(machine.failed, 1);
}

// setjmp stands in functions of its own, so that nobody's variables are lost.
__attribute__((noinline)) inline void suspend() {
  if (_setjmp(machine.current->at) == 0) _longjmp(machine.scheduler, 1);
}

__attribute__((noinline)) inline void resume(Fibre& fibre) {
  machine.current = &fibre;
  machine.thread = {fibre.thread, 0, 0};
  if (_setjmp(machine.scheduler) == 0) _longjmp(fibre.at, 1);
}

inline void fibre_main() {
  for (;;) {
    suspend();
    machine.body(machine.argument);
    machine.current->site = 0;
  }
}

__attribute__((noinline)) inline void start(Fibre& fibre, char* stack) {
  static ucontext_t context, unused;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  makecontext(&context, fibre_main, 0);
  machine.current = &fibre;
  if (_setjmp(machine.scheduler) == 0) swapcontext(&unused, &context);
}

inline void barrier(int line) {
  machine.current->site = line;
  suspend();
}

inline unsigned lane() { return machine.current->thread % kWarp; }

// To be called in an operation of a whole warp: its lanes must agree on it.
inline void collective(uint64_t kind, const void* at, uint64_t stride) {
  uint64_t& hash = machine.current->history;
  for (uint64_t part : {kind, reinterpret_cast<uint64_t>(at), stride})
    hash = (hash ^ part) * 0x9E3779B97F4A7C15u + 1;
}

inline void run_block(int threads) {
  if (__start_emulated_shared)
    memset(__start_emulated_shared, 0xFF, __stop_emulated_shared - __start_emulated_shared);
  for (int t = 0; t < threads; ++t) machine.fibres[t].history = 0;
  long site;
  do {
    // A walk over the threads in odd steps visits each once.
    machine.random = machine.random * 1664525 + 1013904223;
    unsigned size = 1, first = machine.random >> 8, step = machine.random >> 20 | 1;
    while (size < static_cast<unsigned>(threads)) size *= 2;
    for (unsigned i = 0; i < size; ++i) {
      unsigned t = (first + i * step) % size;
      if (t < static_cast<unsigned>(threads)) resume(machine.fibres[t]);
    }
    site = machine.fibres[0].site;
    for (int t = 1; t < threads; ++t)
      if (machine.fibres[t].site != site)
        fail("a barrier that not all threads reach: lines %ld and %ld", site, machine.fibres[t].site);
  } while (site != 0);
  for (int t = 0; t < threads; ++t)
    if (machine.fibres[t].history != machine.fibres[t - t % kWarp].history)
      fail("the lanes of warp %ld disagree on an operation of the warp", t / kWarp);
}

__attribute__((noinline)) inline void run_blocks(int threads) {
  static char* stacks = static_cast<char*>(mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (threads < 1 || threads > kMaxThreads) fail("%ld threads in a block", threads);
  for (; machine.started < threads; ++machine.started) {
    machine.fibres[machine.started].thread = machine.started;
    start(machine.fibres[machine.started], stacks + kStack * machine.started);
  }
  for (machine.block.y = 0; machine.block.y < machine.grid.y; ++machine.block.y)
    for (machine.block.x = 0; machine.block.x < machine.grid.x; ++machine.block.x) run_block(threads);
}

inline void on_fault(int signal, siginfo_t* info, void*) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  fail("memory outside an array, at %lx", reinterpret_cast<long>(info->si_addr));
}

// Runs all blocks. Returns what went wrong, or null.
inline const char* launch(Index grid, int threads, void (*body)(void*), void* argument) {
  machine.body = body, machine.argument = argument, machine.grid = grid;
  struct sigaction action = {}, before;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &before);
  const char* error = machine.error;
  if (_setjmp(machine.failed) == 0) {
    run_blocks(threads);
    error = nullptr;
  }
  sigaction(SIGSEGV, &before, nullptr);
  return error;
}

// A kernel's parameter: `Value` is kept for all threads; `take` makes it of the host's arguments, `give` passes it on.
template <class P, bool last>
struct Parameter {
  using Value = P;
  static Value take(const TVMFFIAny*& next) {
    const TVMFFIAny& any = *next++;
    if constexpr (std::is_pointer_v<P>)
      return static_cast<P>(any.v_ptr);
    else
      return static_cast<P>(any.v_int64);
  }
  static P give(Value& value) { return value; }
};

// The host's arguments: the kernel's own, one or two sizes of the grid, the threads of a block.
template <class... P, size_t... I>
int call(void (*kernel)(P...), const TVMFFIAny* args, int count, std::index_sequence<I...>) {
  constexpr size_t last = sizeof...(P) - 1;
  const TVMFFIAny* next = args;
  std::tuple<typename Parameter<P, I == last>::Value...> values{Parameter<P, I == last>::take(next)...};
  const long sizes = args + count - next - 1;
  const char* error = "a grid of neither one nor two sizes";
  if (sizes == 1 || sizes == 2) {
    const Index grid{static_cast<unsigned>(next[0].v_int64), sizes > 1 ? static_cast<unsigned>(next[1].v_int64) : 1, 1};
    auto body = [&] { kernel(Parameter<P, I == last>::give(std::get<I>(values))...); };
    error = launch(grid, static_cast<int>(next[sizes].v_int64), [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body);
  }
  if (error) TVMFFIErrorSetRaisedFromCStr("RuntimeError", error);
  return error ? -1 : 0;
}

}  // namespace emulation

// What the compiler's own checks call (-fsanitize=...). Their data begins with the place in the source.
struct EmulatedPlace {
  const char* file;
  uint32_t line, column;
};
#define EMULATED_CHECK(check, what)                                                                      \
  extern "C" __attribute__((used, visibility("hidden"))) void __ubsan_handle_##check(EmulatedPlace* at) { \
    emulation::fail(what ", in line %ld", at->line);                                                     \
  }
EMULATED_CHECK(out_of_bounds_abort, "an index outside its array")
EMULATED_CHECK(type_mismatch_v1_abort, "a misaligned pointer")
EMULATED_CHECK(shift_out_of_bounds_abort, "a shift by too much")
EMULATED_CHECK(add_overflow_abort, "an overflow")
EMULATED_CHECK(sub_overflow_abort, "an overflow")
EMULATED_CHECK(mul_overflow_abort, "an overflow")
EMULATED_CHECK(negate_overflow_abort, "an overflow")
EMULATED_CHECK(divrem_overflow_abort, "a division by zero")

// Makes a kernel callable by the host's code.
#define EMULATED_KERNEL(name)                                                                              \
  extern "C" int __tvm_ffi_##name(void*, const TVMFFIAny* args, int32_t count, TVMFFIAny*) {               \
    return [&]<class... P>(void (*function)(P...)) {                                                       \
      return emulation::call(function, args, count, std::index_sequence_for<P...>{});                        \
    }(name);                                                                                               \
  }
