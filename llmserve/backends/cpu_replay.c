/* Kernel calls that are known beforehand, one after another: a step that a CPU does again, without the virtual machine.
   Linked into each library; replay.py says which calls. */

#include <stdint.h>

/* TVMFFIAny and TVMFFISafeCallType, as in tvm/ffi/c_api.h. */
typedef struct {
  int32_t type_index;
  uint32_t padding;
  int64_t value;
} Value;
typedef int (*Kernel)(void* self, const Value* arguments, int32_t num_arguments, Value* result);

typedef struct {
  Kernel kernel;
  const Value* arguments;
  int64_t num_arguments;
} Call;

/* Returns 0, or what the first kernel that fails returns; those after it are not called. */
int llmserve_replay(const Call* calls, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    Value result = {0, 0, 0}; /* none: kernels write to their arguments */
    int status = calls[i].kernel(0, calls[i].arguments, (int32_t)calls[i].num_arguments, &result);
    if (status) return status;
  }
  return 0;
}
